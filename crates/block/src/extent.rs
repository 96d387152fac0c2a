//! Extent states: whether a file describes a range, and what a read of it returns.

use std::fmt;

/// The state of an extent.
///
/// The names are VHDX's, which has the finest set; other formats use those that they can express.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExtentState {
    /// No layer describes the extent. Reads as zeroes.
    NotPresent,
    /// The layer says that the content does not matter. Reads as zeroes, never as the parent's content.
    Undefined,
    /// The layer says that the content is zeroes.
    Zero,
    /// The guest trimmed the extent. Reads as zeroes, never as the parent's content.
    Unmapped,
    /// The layer holds the bytes.
    Present,
    /// The layer holds the bytes, in a block of which other sectors come from the parent.
    PartiallyPresent,
}

impl ExtentState {
    /// Whether a layer stores bytes for the extent.
    pub const fn is_data(self) -> bool {
        matches!(self, Self::Present | Self::PartiallyPresent)
    }

    /// The state's name in reports and in the `godwit:state` context.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotPresent => "not-present",
            Self::Undefined => "undefined",
            Self::Zero => "zero",
            Self::Unmapped => "unmapped",
            Self::Present => "present",
            Self::PartiallyPresent => "partially-present",
        }
    }
}

impl fmt::Display for ExtentState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A stretch of a disk in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes, never 0.
    pub len: u64,
    /// What the layer that answers says of it.
    pub state: ExtentState,
    /// Which layer answers: 0 is the top, 1 its parent, and so on.
    pub depth: u32,
    /// Where the bytes start in that layer's host file, if they are stored there as they are.
    pub host_offset: Option<u64>,
    /// Whether it is known to read as zeroes: always without data, and where data lies in a hole of the host file.
    pub zeroes: bool,
}

impl Extent {
    /// An extent of `len` bytes that the top layer holds at `host_offset`.
    pub const fn present(len: u64, host_offset: Option<u64>) -> Self {
        Self { len, state: ExtentState::Present, depth: 0, host_offset, zeroes: false }
    }

    /// An extent of `len` bytes without data, in `state`, of the top layer.
    pub const fn hole(len: u64, state: ExtentState) -> Self {
        Self { len, state, depth: 0, host_offset: None, zeroes: true }
    }
}

/// Appends `extent` to `list`, joined with the last one where both say the same and lie together in the host file.
pub fn push_extent(list: &mut Vec<Extent>, extent: Extent) {
    if extent.len == 0 {
        return;
    }
    if let Some(last) = list.last_mut()
        && (last.state, last.depth, last.zeroes) == (extent.state, extent.depth, extent.zeroes)
        && last.host_offset.map(|offset| offset + last.len) == extent.host_offset
    {
        last.len += extent.len;
        return;
    }
    list.push(extent);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_join_only_when_they_lie_together() {
        let mut list = Vec::new();
        push_extent(&mut list, Extent::present(8, Some(100)));
        push_extent(&mut list, Extent::present(8, Some(108)));
        push_extent(&mut list, Extent::present(8, Some(200)));
        push_extent(&mut list, Extent::hole(4, ExtentState::Zero));
        push_extent(&mut list, Extent::hole(4, ExtentState::Zero));
        push_extent(&mut list, Extent::hole(0, ExtentState::Unmapped));
        let lens: Vec<_> = list.iter().map(|e| e.len).collect();
        assert_eq!(lens, [16, 8, 8]);
    }
}
