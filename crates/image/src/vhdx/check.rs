//! Finding everything that is wrong with a file.
//!
//! Open stops at the first broken rule; a check goes on, as far as what it has found lets it, and says of each
//! finding how bad it is. It changes nothing: a dirty log is replayed in memory first, because that is the content
//! that counts.
//!
//! | Rule of a finding | Severity | Means |
//! | --- | --- | --- |
//! | those of [`OpenError::rule`] | corrupt | the file is refused for it |
//! | `header-invalid` | note | one of the two headers is damaged, as a crash may leave it |
//! | `headers-differ` | note | losing the current header would lose an identifier |
//! | `log-dirty` | note | the log holds updates for the next open |
//! | `region-table-invalid`, `region-tables-differ` | corrupt | one copy of the region table is damaged or stale |
//! | `bat-offset-reserved` | note | an entry has an offset where the format reserves it; Hyper-V refuses ZERO with one |
//! | `bat-beyond-disk` | leak | a block beyond the end of the disk takes space |
//! | `bitmap-unused` | note | a sector bitmap that no partially present block needs |
//! | `partial-full`, `partial-empty` | note | all, or none, of a partially present block's sectors are here |
//! | `file-ends-in-block` | note | what the last block misses reads as zeroes |
//! | `fixed-not-allocated` | note | a fixed disk without space for all its blocks |
//! | `fixed-file-short` | corrupt | a fixed disk's file is shorter than all its blocks |
//! | `leaked-space` | leak | the host stores data for space that belongs to nothing |
//! | `locator-no-path` | note | nothing says where the parent is |
//! | `linkage-mismatch` | corrupt | the parent is not, or no longer, what the child was made on |

mod blocks;
mod report;
mod structure;

use block::{Disk, Result};
use uuid::Uuid;

pub use self::report::{BlockCounts, CheckReport, Counts, Finding, Severity};
use self::structure::Structure;
use super::OpenError;
use super::locator::ParentLocator;

/// What a check knows beside the file.
#[derive(Clone, Copy, Debug, Default)]
pub struct CheckOptions {
    /// The parent's DataWriteGuid, where the parent was found.
    pub parent_data_write_guid: Option<Uuid>,
}

/// Checks the VHDX in `file`, which is not changed.
///
/// # Errors
/// Only what the host reports: whatever is wrong with the file is a finding.
pub async fn check(file: &Disk, options: &CheckOptions) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    report.counts.file_bytes = file.size();
    if let Some(structure) = Structure::check(file, &mut report).await? {
        check_linkage(structure.locator.as_ref(), options, &mut report);
        blocks::check(structure, &mut report).await?;
    }
    Ok(report)
}

fn check_linkage(locator: Option<&ParentLocator>, options: &CheckOptions, report: &mut CheckReport) {
    let Some(locator) = locator else { return };
    if locator.candidates(".".as_ref()).is_empty() {
        report.note("locator-no-path", "the parent locator has no path that could name the parent");
    }
    if let Some(found) = options.parent_data_write_guid.filter(|guid| !locator.matches(*guid)) {
        let expected = locator.linkage();
        report.corrupt(
            "linkage-mismatch",
            format!("the parent's identifier is {found}, and the child was made on {expected}"),
        );
    }
}

/// Adds a broken rule to the report; what the host reported is an error of the check itself.
fn record<T>(report: &mut CheckReport, result: Result<T, OpenError>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(OpenError::Host { doing, source }) => Err(source.context(doing)),
        Err(error) => {
            report.corrupt(error.rule(), error.to_string());
            Ok(None)
        }
    }
}
