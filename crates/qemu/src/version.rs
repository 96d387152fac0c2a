//! Which QEMU this is.

use std::fmt;
use std::path::Path;
use std::process::Command;

/// The version of a QEMU program, as `--version` tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl Version {
    /// The oldest version that this crate is held against.
    pub const OLDEST: Self = Self { major: 7, minor: 2 };
    /// `reconnect` of socket character devices gave way to `reconnect-ms` (QEMU's changelog of 9.2).
    pub(crate) const RECONNECT_MS: Self = Self { major: 9, minor: 2 };

    /// Asks the program at `binary`.
    ///
    /// # Errors
    /// A sentence that says what is wrong: the program does not run, or is not QEMU.
    pub fn of(binary: &Path) -> Result<Self, String> {
        let output = Command::new(binary).arg("--version").output();
        let output = output.map_err(|error| format!("run {}: {error}", binary.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        Self::parse(&text).ok_or_else(|| {
            format!("{} --version does not answer like QEMU: {:?}", binary.display(), text.trim())
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let numbers = text.split_once("version ")?.1;
        let mut numbers = numbers.split(|c: char| !c.is_ascii_digit());
        Some(Self { major: numbers.next()?.parse().ok()?, minor: numbers.next()?.parse().ok()? })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_debian_and_of_upstream_are_read() {
        let debian =
            "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003-2022";
        assert_eq!(Version::parse(debian), Some(Version { major: 7, minor: 2 }));
        assert_eq!(Version::parse("QEMU emulator version 10.0.2"), Some(Version { major: 10, minor: 0 }));
        assert_eq!(Version::parse("GNU bash, version x"), None);
        assert!(Version { major: 10, minor: 0 } > Version::RECONNECT_MS);
    }
}
