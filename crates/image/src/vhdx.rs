//! VHDX, version 1: the native format.
//!
//! [`open()`] reads and checks everything that a file's content depends on, replays its log, and gives an [`Opened`]
//! file to the engine, which maps and changes it. [`create()`] makes new files and [`check()`] finds everything that
//! is wrong with one.
//!
//! | Part | Holds |
//! | --- | --- |
//! | [`layout`] | the structures as they lie on disk |
//! | [`geometry`] | blocks, chunks, table entries |
//! | [`header`], [`regions`], [`metadata`], [`locator`] | decoding and encoding of each structure |
//! | `replay`, `overlay` | the log, replayed on disk or in memory |
//! | `bat_scan`, [`space`] | the whole block allocation table, checked once; which parts of the host file are taken |
//! | [`mod@open`] | all of these in the format's order |
//! | `engine` | the map of an open file, and how its changes become durable |
//! | [`mod@create`], [`mod@check`] | new files; everything that is wrong with one |
//!
//! Source: MS-VHDX 8.0; where programs in the wild do otherwise, the line that allows for it says so.

pub mod check;
pub mod create;
pub mod error;
pub mod geometry;
pub mod header;
pub mod layout;
pub mod locator;
pub mod metadata;
pub mod open;
pub mod regions;
pub mod space;

mod bat_scan;
mod disk_io;
mod engine;
mod overlay;
mod replay;

pub use check::{CheckOptions, CheckReport, check};
pub use create::{CreateError, CreateOptions, Kind, create};
pub use engine::Vhdx;
pub use error::OpenError;
pub use geometry::Geometry;
pub use locator::ParentLocator;
pub use open::{Access, Opened, open};
pub use space::SpaceMap;
