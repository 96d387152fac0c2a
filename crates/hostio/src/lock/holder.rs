//! Who holds a lock: the kernel does not tell for locks of open files, but shows each process's own.

use std::fmt;
use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Stat, fstat, stat};

/// Holders that an error names at most.
const HOLDERS_MAX: usize = 3;
/// Processes that are looked at, at most, before the search is given up.
const PROCESSES_MAX: usize = 65_536;
/// Characters of a command line that an error shows at most.
const COMMAND_CHARS_MAX: usize = 120;

/// The processes that hold a lock; may be empty, where we may not look at them.
pub(super) struct Holders(Vec<Holder>);

struct Holder {
    process: u32,
    command: String,
}

/// The processes that hold a lock on `byte` of the file behind `file` through another open file than this.
pub(super) fn of(file: impl AsFd, byte: u64) -> Holders {
    let file = file.as_fd();
    let Ok(wanted) = fstat(file) else { return Holders(Vec::new()) };
    let own = format!("/proc/{}/fdinfo/{}", std::process::id(), file.as_raw_fd());
    let holds = |process: &u32| holds_lock(*process, &wanted, byte, Path::new(&own));
    let holders = processes().take(PROCESSES_MAX).filter(holds).take(HOLDERS_MAX);
    Holders(holders.map(|process| Holder { process, command: command_of(process) }).collect())
}

fn processes() -> impl Iterator<Item = u32> {
    numbers_in(PathBuf::from("/proc")).map(|(process, _)| process)
}

/// The entries of `directory` whose names are numbers; none where it cannot be read.
fn numbers_in(directory: PathBuf) -> impl Iterator<Item = (u32, PathBuf)> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
}

fn holds_lock(process: u32, wanted: &Stat, byte: u64, own: &Path) -> bool {
    numbers_in(PathBuf::from(format!("/proc/{process}/fdinfo"))).any(|(fd, info)| {
        info != own
            && fs::read_to_string(&info).is_ok_and(|info| info.lines().any(|line| line_locks(line, byte)))
            && stat(format!("/proc/{process}/fd/{fd}"))
                .is_ok_and(|found| (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino))
    })
}

/// Whether a line of a descriptor's information tells of a lock that covers `byte`, such as
/// `lock: 1: OFDLCK ADVISORY READ -1 fe:00:131 101 101` (the last word may be `EOF`).
fn line_locks(line: &str, byte: u64) -> bool {
    let Some(lock) = line.strip_prefix("lock:") else { return false };
    let mut words = lock.split_whitespace().rev();
    let (Some(last), Some(first)) = (words.next(), words.next()) else { return false };
    let first: Option<u64> = first.parse().ok();
    let last = if last == "EOF" { Some(u64::MAX) } else { last.parse().ok() };
    first.zip(last).is_some_and(|(first, last)| (first..=last).contains(&byte))
}

/// The process's command line, in one line of printable text.
fn command_of(process: u32) -> String {
    let bytes = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let mut words = text.split('\0').collect::<Vec<_>>().join(" ").trim_end().replace(char::is_control, "?");
    if let Some((end, _)) = words.char_indices().nth(COMMAND_CHARS_MAX) {
        words.truncate(end);
        words.push_str("...");
    }
    words
}

impl Holders {
    /// Whether nobody was found.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("a process that cannot be seen from here");
        }
        for (index, Holder { process, command }) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            if *process == std::process::id() {
                write!(f, "{comma}this process itself ({process})")?;
            } else {
                write!(f, "{comma}process {process} ({command})")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_descriptor_information_are_understood() {
        let line = "lock:\t1: OFDLCK  ADVISORY  READ  -1 fe:00:131 101 103";
        for (byte, covered) in [(100, false), (101, true), (103, true), (104, false)] {
            assert_eq!(line_locks(line, byte), covered);
        }
        assert!(line_locks("lock:\t1: POSIX  ADVISORY  WRITE 12 fe:00:131 0 EOF", 205));
        for other in ["pos:\t101", "lock:", "lock:\tx", "flags: 101 101", "lock: a b"] {
            assert!(!line_locks(other, 101));
        }
    }
}
