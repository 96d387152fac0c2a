//! Programs that are run if they are there.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// How long a client may take, in seconds: many times what it needs.
const CLIENT_TIMEOUT_SECONDS: &str = "120";

/// A command of the program `name`, with an end in time; `None`, and a word about it, if it is not installed.
pub(crate) fn tool(name: &str) -> Option<Command> {
    let path = std::env::var_os("PATH")?;
    if !std::env::split_paths(&path).any(|directory| directory.join(name).is_file()) {
        eprintln!("skipped: {name} is not installed");
        return None;
    }
    let mut command = Command::new("timeout");
    command.arg(CLIENT_TIMEOUT_SECONDS).arg(name).stdin(Stdio::null());
    Some(command)
}

/// Runs `command`, which has to succeed, and gives what it printed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = output(command);
    assert!(output.status.success(), "{command:?}: {}", both(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `command`, which has to fail, and gives all that it printed.
pub(crate) fn run_to_failure(command: &mut Command) -> String {
    let output = output(command);
    assert!(!output.status.success(), "{command:?} succeeded: {}", both(&output));
    both(&output)
}

fn output(command: &mut Command) -> Output {
    command.output().expect("the program can be started")
}

fn both(output: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr))
}

/// Runs a script in nbdsh with a handle `h` that is not connected, and `uri` in the variable `uri`; it has to succeed.
/// `false` if nbdsh is not installed.
pub(crate) fn nbdsh(uri: &str, script: &str) -> bool {
    let Some(mut command) = tool("nbdsh") else { return false };
    // nbdsh takes the first python3 there is; its module belongs to the distribution's.
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("/usr/bin:{path}"));
    run(command.arg("-c").arg(format!("uri = {uri:?}")).arg("-c").arg(script));
    true
}

/// Bytes that differ from block to block and hold no long zeroes.
pub(crate) fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1 ^ seed).collect()
}

/// Writes `bytes` to a new file.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) {
    std::fs::write(path, bytes).expect("the file can be written");
}
