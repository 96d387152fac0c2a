//! What the tests need on this machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The guest's files.
pub(crate) struct Assets {
    dir: PathBuf,
}

const TOOLS: [&str; 6] = ["qemu-system-x86_64", "qemu-img", "nbdcopy", "e2fsck", "debugfs", "cmp"];

impl Assets {
    /// Finds the guest, or says what is missing and how to get it.
    pub(crate) fn find() -> Option<Self> {
        let dir = std::env::var_os("GODWIT_GUEST")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"), PathBuf::from);
        let assets = Self { dir };
        let tool_missing = TOOLS.into_iter().find(|tool| !runs(tool));
        let missing = match tool_missing {
            Some(tool) => format!("{tool} is not installed; scripts/test installs it"),
            None if !assets.dir.join("stamp").is_file() => {
                format!("there is no guest in {}; guest/build makes it", assets.dir.display())
            }
            None => return Some(assets),
        };
        assert!(std::env::var_os("GODWIT_REQUIRE_GUEST").is_none(), "{missing}");
        eprintln!("skipped: {missing}");
        None
    }

    pub(crate) fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    pub(crate) fn initrd(&self) -> PathBuf {
        self.dir.join("initrd")
    }

    /// The root file system, a sparse raw image.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("root.ext4")
    }

    /// The guest's program, which also runs here.
    pub(crate) fn worker(&self) -> PathBuf {
        self.dir.join("worker")
    }
}

fn runs(tool: &str) -> bool {
    let version = if tool == "e2fsck" || tool == "debugfs" { "-V" } else { "--version" };
    Command::new(tool).arg(version).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Runs a program to its end; panics with what it said unless it succeeds. Returns its standard output.
pub(crate) fn run(command: &mut Command) -> String {
    let (code, output) = run_for_code(command);
    assert_eq!(code, Some(0), "{command:?} said:\n{output}");
    output
}

/// Runs a program to its end. Returns its exit code and all that it said.
pub(crate) fn run_for_code(command: &mut Command) -> (Option<i32>, String) {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}
