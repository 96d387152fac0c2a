//! Opens disks with everything that they depend on, as stacks of layers. Nothing else builds stacks.
//!
//! ```text
//!   open_chain("child.vhdx")
//!        child.vhdx     opened as asked for, locked for it          ─┐ linkage: the identifier that the child keeps
//!        base.vhdx      always read-only, locked against writers    ─┘ must be the one that the parent has
//! ```
//!
//! The whole chain is found and checked before the first byte of the child is changed. A chain whose identifiers do
//! not fit is refused, because the disk may be corrupt: the content of a parent that was changed under its child is
//! neither the old nor the new disk.
//!
//! Source for how a parent is found and recognised: MS-VHDX 2.2.2, 2.6.2.6.

mod chain;
mod error;
mod format;
mod layer;
mod parent;

pub use chain::{
    Chain, ChainDescription, ChainOptions, DEPTH_MAX, ParentMismatch, describe_chain, open_chain,
};
pub use error::ChainError;
pub use format::Format;
pub use layer::{LayerInfo, Mismatch, VhdxInfo};
pub use parent::{Parent, find_parent};
