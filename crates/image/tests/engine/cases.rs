//! The files that the tests run on: made by `create`, in memory, of every kind.

use std::path::Path;

use block::{DevInfo, Disk};
use image::ImageDev;
use image::vhdx::{self, Access, CreateOptions, Kind, Vhdx};
use testkit::{MemDev, SparseBytes, block_on, pattern};

/// A kind of file to test.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) virtual_size: u64,
    pub(crate) block_bytes: u32,
    pub(crate) sector_bytes: u32,
    pub(crate) child: bool,
}

const MIB: u64 = 1 << 20;

/// Dynamic and differencing files, both sector sizes, an end inside a block, and more than one chunk.
pub(crate) const CASES: [Case; 6] = [
    Case { name: "dynamic", virtual_size: 24 * MIB, block_bytes: 1 << 20, sector_bytes: 512, child: false },
    Case {
        name: "dynamic-4k",
        virtual_size: 37 * MIB + 4096,
        block_bytes: 2 << 20,
        sector_bytes: 4096,
        child: false,
    },
    Case {
        name: "dynamic-chunks",
        virtual_size: 9000 * MIB,
        block_bytes: 256 << 20,
        sector_bytes: 512,
        child: false,
    },
    Case {
        name: "child",
        virtual_size: 24 * MIB + 512,
        block_bytes: 1 << 20,
        sector_bytes: 512,
        child: true,
    },
    Case { name: "child-4k", virtual_size: 40 * MIB, block_bytes: 4 << 20, sector_bytes: 4096, child: true },
    Case {
        name: "child-chunks",
        virtual_size: 9000 * MIB,
        block_bytes: 32 << 20,
        sector_bytes: 512,
        child: true,
    },
];

/// What the medium under the files is like: it writes sectors of 512 bytes.
pub(crate) const HOST: DevInfo = DevInfo { block_bytes: 512, physical_block_bytes: 512, ..MemDev::INFO };

/// A file before its first change, and what it depends on.
#[derive(Clone)]
pub(crate) struct Fixture {
    pub(crate) case: Case,
    pub(crate) file: SparseBytes,
    /// What the parent's guest sees, for a child.
    pub(crate) parent: Option<SparseBytes>,
}

impl Case {
    /// A new file of this kind.
    pub(crate) fn make(self) -> Fixture {
        block_on(async {
            if !self.child {
                let file = new_file(&CreateOptions { ..self.options(Kind::Dynamic) }).await;
                return Fixture { case: self, file, parent: None };
            }
            let parent_file = new_file(&self.options(Kind::Dynamic)).await;
            let parent =
                vhdx::open(Disk::new(MemDev::from_image(parent_file, HOST)), Access::ReadOnly).await.unwrap();
            let options = CreateOptions::child_of(&parent, Path::new("/vm/parent.vhdx"), Path::new("/vm"))
                .await
                .unwrap();
            let file = new_file(&CreateOptions { block_bytes: self.block_bytes, ..options }).await;
            Fixture { case: self, file, parent: Some(self.parent_content()) }
        })
    }

    fn options(self, kind: Kind) -> CreateOptions {
        CreateOptions {
            block_bytes: self.block_bytes,
            logical_sector_bytes: self.sector_bytes,
            ..CreateOptions::new(self.virtual_size, kind)
        }
    }

    /// A parent that is a little smaller than its child and has data at the start, in the middle and at its end.
    fn parent_content(self) -> SparseBytes {
        let unit = u64::from(self.sector_bytes);
        let size = self.virtual_size - 3 * unit;
        let mut content = SparseBytes::new(size);
        for (stamp, start) in [(1, 0), (2, self.virtual_size / 2 / unit * unit), (3, size - 64 * unit)] {
            let range = block::ByteRange::new(start, 64 * unit).unwrap();
            content.write(start, &pattern(stamp, range));
        }
        content
    }
}

impl Fixture {
    /// Opens `file` for writing, with the parent under it.
    pub(crate) async fn open(&self, file: Disk) -> Disk {
        Disk::new(self.open_dev(file, Access::ReadWrite).await)
    }

    /// As [`Self::open`], keeping the engine at hand.
    pub(crate) async fn open_dev(&self, file: Disk, access: Access) -> ImageDev<Vhdx> {
        let opened =
            vhdx::open(file, access).await.unwrap_or_else(|error| panic!("{}: {error}", self.case.name));
        let info = DevInfo { block_bytes: self.case.sector_bytes, read_only: true, ..MemDev::INFO };
        let parent = self.parent.as_ref().map(|image| Disk::new(MemDev::from_image(image.clone(), info)));
        ImageDev::new(Vhdx::new(opened), parent)
    }

    /// The same file over a parent without data, so that it reads as zeroes.
    pub(crate) fn over_empty_parent(self) -> Self {
        let parent = self.parent.map(|content| SparseBytes::new(content.size()));
        Self { parent, ..self }
    }

    /// What the guest sees before any change.
    pub(crate) fn content(&self) -> SparseBytes {
        let mut content = self.parent.clone().unwrap_or_else(|| SparseBytes::new(self.case.virtual_size));
        content.resize(self.case.virtual_size);
        content
    }
}

async fn new_file(options: &CreateOptions) -> SparseBytes {
    let dev = std::sync::Arc::new(MemDev::with_info(0, HOST));
    let file = Disk::from_arc(std::sync::Arc::clone(&dev));
    vhdx::create(&file, options).await.unwrap();
    dev.image()
}
