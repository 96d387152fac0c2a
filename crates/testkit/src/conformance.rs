//! The conformance suite: `block`'s table of semantics, line by line, for everything that implements it.
//!
//! ```
//! use block::Disk;
//! use testkit::{MemDev, block_on, conformance};
//!
//! block_on(conformance::check(async || Disk::new(MemDev::new(8 << 20))));
//! ```
//!
//! The suite is one future and brings no runtime, so a device that needs one runs it in its own. Two lines of the table
//! need more than a disk: what a flush promises is for [`crate::CrashDev`] with [`crate::Model`], and the latch after a
//! failed flush is [`check_failed_flush`], for layers that can be put on a [`crate::FaultDev`].

mod bench;
mod change;
mod content;
mod life;
mod range;
mod status;
mod threads;

use std::fmt;
use std::pin::Pin;

use block::{BlockError, Disk};

use crate::{FaultDev, Mismatch};

/// Smallest disk that the suite takes; larger ones let it cross more of a format's borders.
pub const SIZE_BYTES_MIN: u64 = 1 << 20;

/// A line of the table that a device breaks.
#[derive(Debug)]
pub struct Violation {
    /// The first column of the table in `block`'s documentation.
    pub line: &'static str,
    /// What was done and what came of it.
    pub finding: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the contract's line \"{}\" is broken: {}", self.line, self.finding)
    }
}

/// What a check found; the suite knows the line.
#[derive(Debug)]
struct Finding(String);

type Checked = Result<(), Finding>;
type Check = for<'a> fn(&'a Disk) -> Pin<Box<dyn Future<Output = Checked> + 'a>>;

/// Each check gets a disk of its own. Ranges come first: a device that gets those wrong fails everything else.
const CHECKS: &[(&str, Check)] = &[
    ("Facts", |disk| Box::pin(range::facts(disk))),
    ("Range", |disk| Box::pin(range::beyond_the_end(disk))),
    ("Range", |disk| Box::pin(range::misaligned(disk))),
    ("Zero length", |disk| Box::pin(range::zero_length(disk))),
    ("Visibility", |disk| Box::pin(content::writes_are_seen(disk))),
    ("Visibility", |disk| Box::pin(content::scattered_memory(disk))),
    ("Visibility", |disk| Box::pin(content::random_requests(disk))),
    ("Order", |disk| Box::pin(content::overlapping_writes(disk))),
    ("Order", |disk| Box::pin(content::random_requests_in_flight(disk))),
    ("flush", |disk| Box::pin(content::flush_and_fua(disk))),
    ("write_zeroes", |disk| Box::pin(change::write_zeroes(disk))),
    ("write_zeroes", |disk| Box::pin(change::fast_zeroes(disk))),
    ("discard", |disk| Box::pin(change::discard(disk))),
    ("discard", |disk| Box::pin(change::discard_exposes_nothing(disk))),
    ("block_status", |disk| Box::pin(status::form(disk))),
    ("block_status", |disk| Box::pin(status::agrees_with_content(disk))),
    ("resize", |disk| Box::pin(life::resize(disk))),
    ("Cancellation", |disk| Box::pin(life::dropped_futures(disk))),
    ("close", |disk| Box::pin(life::close(disk))),
    ("close", |disk| Box::pin(life::close_waits(disk))),
];

const READ_ONLY_CHECKS: &[(&str, Check)] = &[
    ("Facts", |disk| Box::pin(range::facts(disk))),
    ("Range", |disk| Box::pin(range::beyond_the_end(disk))),
    ("Range", |disk| Box::pin(range::misaligned(disk))),
    ("Zero length", |disk| Box::pin(range::zero_length(disk))),
    ("block_status", |disk| Box::pin(status::form(disk))),
    ("Read-only", |disk| Box::pin(life::read_only(disk))),
    ("close", |disk| Box::pin(life::close(disk))),
];

/// Holds a writable device to the contract. `make` gives a fresh disk that reads as zeroes and has at least
/// [`SIZE_BYTES_MIN`] bytes, every time; it is called once per check, and the disk is closed before the next call.
///
/// # Panics
/// With every line of the table that is broken, and how.
pub async fn check(make: impl AsyncFn() -> Disk) {
    report(violations(make).await);
}

/// What [`check`] would panic with.
pub async fn violations(make: impl AsyncFn() -> Disk) -> Vec<Violation> {
    run(make, CHECKS, false).await
}

/// Holds a read-only device to the contract; its content may be anything.
///
/// # Panics
/// With every line of the table that is broken, and how.
pub async fn check_read_only(make: impl AsyncFn() -> Disk) {
    report(run(make, READ_ONLY_CHECKS, true).await);
}

/// Holds a layer to the line "Failure": a flush that fails latches it. `make` puts the layer on a [`FaultDev`] without
/// rules, and gives both.
///
/// # Panics
/// If the layer trusts a flush after one that failed, or does not go on reading.
pub async fn check_failed_flush(make: impl AsyncFn() -> (Disk, std::sync::Arc<FaultDev>)) {
    let (disk, below) = make().await;
    let found = life::failed_flush(&disk, &below).await;
    report(
        found.err().into_iter().map(|finding| Violation { line: "Failure", finding: finding.0 }).collect(),
    );
}

/// Holds a device to the contract while several threads use it at once: neighbouring blocks, allocation, flushes and
/// looks at the status. `disk` is as [`check`] wants it; `run` drives a future on the thread that calls it, such as
/// [`crate::block_on`] does.
///
/// # Panics
/// With the line of the table that is broken, and how.
pub fn check_threads(disk: &Disk, run: impl Fn(ThreadFuture) + Sync) {
    report(threads::violations(disk, run));
}

/// What one thread of [`check_threads`] does.
pub type ThreadFuture = Pin<Box<dyn Future<Output = ()>>>;

fn report(violations: Vec<Violation>) {
    let lines: Vec<String> = violations.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{}", lines.join("\n"));
}

async fn run(
    make: impl AsyncFn() -> Disk,
    checks: &[(&'static str, Check)],
    read_only: bool,
) -> Vec<Violation> {
    let mut violations = Vec::new();
    for &(line, check) in checks {
        let disk = make().await;
        assert!(disk.size() >= SIZE_BYTES_MIN, "the suite needs {SIZE_BYTES_MIN} bytes, not {}", disk.size());
        assert_eq!(disk.info().read_only, read_only, "the device is of the kind that this suite is for");
        let found = check(&disk).await;
        violations.extend(found.err().map(|finding| Violation { line, finding: finding.0 }));
        // Some checks have closed the disk already; the others must not leave a lock for the next one to meet.
        let _ = disk.close().await;
    }
    violations
}

impl From<BlockError> for Finding {
    fn from(error: BlockError) -> Self {
        Self(error.chain())
    }
}

impl From<Mismatch> for Finding {
    fn from(mismatch: Mismatch) -> Self {
        Self(mismatch.to_string())
    }
}

impl From<String> for Finding {
    fn from(finding: String) -> Self {
        Self(finding)
    }
}

/// Adds what was being done to a finding.
trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Finding>;
}

impl<T, E: Into<Finding>> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Finding> {
        self.map_err(|error| Finding(format!("{}: {}", what(), error.into().0)))
    }
}

#[cfg(test)]
mod tests;
