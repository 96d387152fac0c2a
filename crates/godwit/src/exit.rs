//! Exit codes that scripts can rely on.

use std::process::ExitCode;

/// What a command ended with.
///
/// 2 and 3 mean what they mean for `qemu-img check`; usage errors have the code of sysexits(3), so that they are not
/// taken for a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// What was asked was done, and nothing is wrong.
    Done = 0,
    /// What was asked could not be done.
    Failed = 1,
    /// A check found an inconsistency that endangers data.
    Corrupt = 2,
    /// A check found only space that nothing uses.
    Leaks = 3,
    /// The command line could not be understood.
    Usage = 64,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
