//! How a virtual disk is cut into blocks, chunks and entries of the block allocation table.
//!
//! A *chunk* is as many payload blocks as one sector bitmap block of 1 MiB can describe. In the table an entry for
//! the bitmap follows each chunk's payload entries, in every kind of file. Source: MS-VHDX 2.5.

use super::layout::{BAT_ENTRY_BYTES, SECTORS_PER_BITMAP};

/// The shape of a virtual disk; all sizes were checked by open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Size of the virtual disk in bytes: a multiple of the logical sector, at most 64 TiB.
    pub virtual_size: u64,
    /// Size of a payload block: a power of two from 1 to 256 MiB.
    pub block_bytes: u32,
    /// 512 or 4096.
    pub logical_sector_bytes: u32,
    /// 512 or 4096.
    pub physical_sector_bytes: u32,
    /// Payload blocks in a chunk.
    pub chunk_ratio: u64,
    /// Payload blocks of the disk; the last may reach beyond its end.
    pub payload_blocks: u64,
    /// Chunks of the disk, each with a sector bitmap entry.
    pub bitmap_blocks: u64,
    /// Entries that the block allocation table must have.
    pub bat_entries: u64,
    /// Whether the disk is differencing.
    pub has_parent: bool,
}

impl Geometry {
    /// The geometry of a disk. The arguments keep the rules of the fields above.
    pub fn new(
        virtual_size: u64,
        block_bytes: u32,
        logical_sector_bytes: u32,
        physical_sector_bytes: u32,
        has_parent: bool,
    ) -> Self {
        let chunk_ratio = SECTORS_PER_BITMAP * u64::from(logical_sector_bytes) / u64::from(block_bytes);
        let payload_blocks = virtual_size.div_ceil(u64::from(block_bytes));
        let bitmap_blocks = payload_blocks.div_ceil(chunk_ratio);
        let bat_entries = if has_parent {
            // The last bitmap must be in the table, so the last chunk's entries are all there.
            bitmap_blocks * (chunk_ratio + 1)
        } else {
            payload_blocks + payload_blocks.saturating_sub(1) / chunk_ratio
        };
        Self {
            virtual_size,
            block_bytes,
            logical_sector_bytes,
            physical_sector_bytes,
            chunk_ratio,
            payload_blocks,
            bitmap_blocks,
            bat_entries,
            has_parent,
        }
    }

    /// Index in the block allocation table of a payload block's entry.
    pub const fn payload_entry_index(&self, block: u64) -> u64 {
        block + block / self.chunk_ratio
    }

    /// Index in the block allocation table of the entry of a chunk's sector bitmap.
    pub const fn bitmap_entry_index(&self, chunk: u64) -> u64 {
        chunk * (self.chunk_ratio + 1) + self.chunk_ratio
    }

    /// What the entry at `index` describes.
    pub const fn slot(&self, index: u64) -> Slot {
        let (chunk, place) = (index / (self.chunk_ratio + 1), index % (self.chunk_ratio + 1));
        if place == self.chunk_ratio {
            Slot::Bitmap(chunk)
        } else {
            Slot::Payload(chunk * self.chunk_ratio + place)
        }
    }

    /// The block that holds a byte of the virtual disk.
    pub const fn block_of(&self, guest_offset: u64) -> u64 {
        guest_offset / self.block_bytes as u64
    }

    /// The chunk that a payload block belongs to.
    pub const fn chunk_of(&self, block: u64) -> u64 {
        block / self.chunk_ratio
    }

    /// First byte of a block on the virtual disk.
    pub const fn block_start(&self, block: u64) -> u64 {
        block * self.block_bytes as u64
    }

    /// Bytes of a block that lie on the virtual disk; fewer than `block_bytes` only in the last block.
    pub const fn block_len(&self, block: u64) -> u64 {
        let rest = self.virtual_size - self.block_start(block);
        if rest < self.block_bytes as u64 { rest } else { self.block_bytes as u64 }
    }

    /// Sectors in a whole block.
    pub const fn sectors_per_block(&self) -> u64 {
        (self.block_bytes / self.logical_sector_bytes) as u64
    }

    /// Bytes of sector bitmap that describe one payload block: from 32 bytes to 64 KiB.
    pub const fn bitmap_bytes_per_block(&self) -> u64 {
        self.sectors_per_block() / 8
    }

    /// First byte, inside its chunk's bitmap block, of the bits that describe a payload block.
    pub const fn bitmap_offset_of(&self, block: u64) -> u64 {
        block % self.chunk_ratio * self.bitmap_bytes_per_block()
    }

    /// Byte inside the chunk's bitmap block, and bit inside that byte, of a sector given by its index on the virtual
    /// disk. The bit is 1 where the sector is in this file, 0 where it is the parent's; bit 0 is the lowest.
    pub const fn bitmap_position(&self, sector: u64) -> (u64, u8) {
        let in_chunk = sector % SECTORS_PER_BITMAP;
        (in_chunk / 8, (in_chunk % 8) as u8)
    }

    /// Length of the block allocation table in bytes.
    pub const fn bat_bytes(&self) -> u64 {
        self.bat_entries * BAT_ENTRY_BYTES
    }
}

/// What an entry of the block allocation table describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// A payload block; in the last chunk of a differencing disk it may lie beyond the end of the disk.
    Payload(u64),
    /// The sector bitmap of a chunk.
    Bitmap(u64),
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const TIB: u64 = 1 << 40;

    fn geometry(virtual_size: u64, block_mib: u32, sector: u32, has_parent: bool) -> Geometry {
        Geometry::new(virtual_size, block_mib << 20, sector, 4096, has_parent)
    }

    #[test]
    fn chunk_ratios_are_those_of_the_format() {
        let ratio = |block_mib, sector| geometry(TIB, block_mib, sector, false).chunk_ratio;
        assert_eq!([ratio(1, 512), ratio(2, 512), ratio(32, 512), ratio(256, 512)], [4096, 2048, 128, 16]);
        assert_eq!([ratio(1, 4096), ratio(256, 4096)], [32768, 128]);
    }

    #[test]
    fn entry_counts_include_bitmaps_between_chunks_but_a_last_one_only_in_a_child() {
        let entries = |size, block, parent| geometry(size, block, 512, parent).bat_entries;
        assert_eq!(entries(4 * MIB, 2, true), 2049);
        assert_eq!(entries(4 * MIB, 2, false), 2);
        assert_eq!(entries(4096 * MIB, 2, false), 2048);
        assert_eq!(entries(4096 * MIB + 512, 2, false), 2050);
        assert_eq!(entries(64 * TIB, 1, false), (1 << 26) + (1 << 14) - 1);
        assert_eq!(entries(0, 1, false) + entries(0, 1, true), 0);
    }

    #[test]
    fn slots_are_the_inverse_of_the_entry_indices() {
        let g = geometry(20 * 1024 * MIB + 512, 32, 512, true);
        for block in [0, 1, 127, 128, 129, 639, 640] {
            assert_eq!(g.slot(g.payload_entry_index(block)), Slot::Payload(block));
        }
        for chunk in 0..g.bitmap_blocks {
            assert_eq!(g.slot(g.bitmap_entry_index(chunk)), Slot::Bitmap(chunk));
        }
        assert_eq!(g.bitmap_entry_index(g.bitmap_blocks - 1) + 1, g.bat_entries);
        assert_eq!((g.block_len(0), g.block_len(640)), (32 * MIB, 512));
    }

    #[test]
    fn every_sector_has_one_bit() {
        let g = geometry(16 * 1024 * MIB, 2, 512, true);
        assert_eq!(g.bitmap_position(9), (1, 1));
        assert_eq!(g.bitmap_position(SECTORS_PER_BITMAP + 8), (1, 0));
        assert_eq!(g.bitmap_offset_of(1), 512);
        let first_of_block_1 = g.block_start(1) / 512;
        assert_eq!(g.bitmap_position(first_of_block_1), (512, 0));
    }
}
