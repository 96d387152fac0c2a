//! What is told of the layers of a chain.

use std::fmt;
use std::path::PathBuf;

use image::vhdx::Opened;
use uuid::Uuid;

use crate::Format;

/// One file of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// The path by which it was opened.
    pub path: PathBuf,
    /// What it is.
    pub format: Format,
    /// Size of the disk that the layer describes.
    pub virtual_size: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// What only a VHDX has.
    pub vhdx: Option<VhdxInfo>,
    /// What does not fit between this layer and its parent, where the caller allowed for it.
    pub mismatch: Option<Mismatch>,
}

/// What only a VHDX has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhdxInfo {
    /// The identifier of the data, which children keep a copy of.
    pub data_write_guid: Uuid,
    /// The identifier of the file's state.
    pub file_write_guid: Uuid,
    /// The identifier that a guest sees.
    pub disk_id: Uuid,
    /// The identifier of the data of the parent that the layer was made on; `None` where it has no parent.
    pub linkage: Option<Uuid>,
    /// A second one that fits too.
    pub linkage2: Option<Uuid>,
    /// Size of a block.
    pub block_bytes: u32,
    /// The logical sector.
    pub logical_sector_bytes: u32,
    /// The physical sector.
    pub physical_sector_bytes: u32,
    /// Whether the disk is fixed.
    pub is_fixed: bool,
    /// Whether the log held updates when the layer was opened.
    pub was_dirty: bool,
    /// The program that made the file.
    pub creator: String,
}

impl VhdxInfo {
    pub(crate) fn of(opened: &Opened) -> Self {
        let header = opened.header();
        Self {
            data_write_guid: header.data_write_guid,
            file_write_guid: header.file_write_guid,
            disk_id: opened.parameters.disk_id,
            linkage: opened.locator.as_ref().map(image::vhdx::ParentLocator::linkage),
            linkage2: opened.locator.as_ref().and_then(image::vhdx::ParentLocator::linkage2),
            block_bytes: opened.geometry.block_bytes,
            logical_sector_bytes: opened.geometry.logical_sector_bytes,
            physical_sector_bytes: opened.geometry.physical_sector_bytes,
            is_fixed: opened.parameters.leave_blocks_allocated,
            was_dirty: opened.was_dirty,
            creator: opened.creator.clone(),
        }
    }
}

/// A parent that is not what its child was made on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The child's file.
    pub child: PathBuf,
    /// The identifier of the parent's data that the child was made on.
    pub expected: Uuid,
    /// A second one that would fit too.
    pub expected2: Option<Uuid>,
    /// The parent's file.
    pub parent: PathBuf,
    /// The identifier that the parent's data has.
    pub found: Uuid,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { child, expected, parent, found, .. } = self;
        write!(
            f,
            "the disk may be corrupt: {} was made on a parent with identifier {expected}",
            child.display()
        )?;
        if let Some(expected2) = self.expected2 {
            write!(f, " or {expected2}")?;
        }
        write!(
            f,
            ", and {} has identifier {found}: it is another disk, or was changed since; ",
            parent.display()
        )?;
        write!(
            f,
            "put the parent with {expected} in its place, or look at the disk read-only with \
             --allow-parent-mismatch, or accept this parent with `godwit disk rebase --accept-parent`"
        )
    }
}
