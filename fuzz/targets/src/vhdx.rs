//! VHDX files: whatever is in one, opening it answers, and a file that opens keeps the promises of a disk.
//!
//! What must hold of any file: a check ends, and finds something that endangers data where open refuses the file.
//! What must hold of a file that opens: its map is gapless and its mapped bytes can be read; it opens the same again.
//! If it can be opened for writing: what was written and flushed is read back, from the same file when it is opened
//! anew without having been closed (so through its log) and when it has been closed; and a sector that was not written
//! reads as it did when the file was opened read-only, with its log replayed in memory.
//!
//! Two ways to fuzz: as the bytes are, and with every checksum made right first, so that the fuzzer gets behind them.

mod folded;
mod session;

use crate::Seed;

pub(crate) use session::{run_as_is, run_sealed};

pub(crate) fn seeds() -> Vec<Seed> {
    session::seeds()
}
