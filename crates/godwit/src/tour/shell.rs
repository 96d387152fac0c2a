//! Runs the tour's commands, as a person at a shell in the tour's directory would.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use qemu::Child;
use rustix::process::Signal;
use serde_json::Value;

use super::guest::Guest;
use super::machine::{self, Machine};
use super::narrator::Narrator;

/// How long a server may take to close its disk.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) struct Shell<'a> {
    pub(super) narrator: &'a mut Narrator,
    pub(super) dir: &'a Path,
    godwit: PathBuf,
}

/// What a command ended with.
pub(super) struct Ended {
    pub(super) code: Option<i32>,
    pub(super) text: String,
}

impl<'a> Shell<'a> {
    pub(super) fn new(narrator: &'a mut Narrator, dir: &'a Path) -> anyhow::Result<Self> {
        Ok(Self { narrator, dir, godwit: std::env::current_exe().context("find this program")? })
    }

    /// Runs a command line, shows it and what it says, and expects it to succeed. `godwit` is this program.
    pub(super) fn run<S: AsRef<OsStr>>(&mut self, line: &[S]) -> anyhow::Result<String> {
        let ended = self.try_run(line)?;
        ensure!(ended.code == Some(0), "{} did not succeed", display(line));
        Ok(ended.text)
    }

    /// Runs a command line, and shows it and what it says.
    pub(super) fn try_run<S: AsRef<OsStr>>(&mut self, line: &[S]) -> anyhow::Result<Ended> {
        self.narrator.command(&display(line))?;
        let ended = self.run_silently(line)?;
        self.narrator.output(ended.code, &ended.text)?;
        Ok(ended)
    }

    /// Runs a command line of ours with `--json` and returns its answer, without showing either.
    pub(super) fn ask(&self, line: &[&str]) -> anyhow::Result<Value> {
        let line = [line, &["--json"]].concat();
        let ended = self.run_silently(&line)?;
        ensure!(ended.code == Some(0), "{} did not succeed: {}", display(&line), ended.text);
        serde_json::from_str(&ended.text).with_context(|| format!("the answer of {}", display(&line)))
    }

    fn run_silently<S: AsRef<OsStr>>(&self, line: &[S]) -> anyhow::Result<Ended> {
        let output = self.command(line).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("run {}", display(line)))?;
        let text = [output.stdout, output.stderr].concat();
        Ok(Ended { code: output.status.code(), text: String::from_utf8_lossy(&text).into_owned() })
    }

    fn command<S: AsRef<OsStr>>(&self, line: &[S]) -> Command {
        let program = line[0].as_ref();
        let mut command = Command::new(if program == "godwit" { self.godwit.as_os_str() } else { program });
        command.args(&line[1..]).current_dir(self.dir);
        command
    }

    /// Space that a file of the tour takes on the host, in bytes.
    pub(super) fn host_bytes(&self, file: &str) -> anyhow::Result<u64> {
        // stat(2): st_blocks counts units of 512 bytes, whatever the file system's block is.
        Ok(self.dir.join(file).metadata().with_context(|| format!("look at {file}"))?.blocks() * 512)
    }

    /// Serves a disk over NBD while `work` runs with the server's address.
    pub(super) fn with_server(
        &mut self,
        disk: &str,
        options: &[&str],
        work: impl FnOnce(&mut Self, &str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let uri = "nbd+unix:///?socket=nbd.sock";
        let line = [&["godwit", "serve", disk, "--nbd", uri], options].concat();
        self.narrator.command(&format!("{} &", display(&line)))?;
        let mut server = self.start(&line)?;
        let mut first = String::new();
        let output = server.process().stdout.take().context("the server has no output")?;
        BufReader::new(output).read_line(&mut first)?;
        ensure!(!first.is_empty(), "the server ended instead of serving {disk}");
        work(self, uri)?;
        server.signal(Signal::TERM)?;
        let status = server.wait_timeout(CLOSE_TIMEOUT)?.context("the server has not closed the disk")?;
        ensure!(status.success(), "the server ended with {status}");
        Ok(())
    }

    /// Boots the guest from `disk`, shows its console to the end, and refuses trouble; where the guest waits for a line,
    /// `paused` is called first.
    pub(super) fn boot(
        &mut self,
        disk: &str,
        guest: &Guest,
        parameters: &str,
        mut paused: impl FnMut(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<String>> {
        let mut machine = Machine::start(self, disk, guest, parameters)?;
        let mut seen = Vec::new();
        while let Some(line) = machine.next_line()? {
            self.narrator.console(&line)?;
            machine::check(&line)?;
            if line.contains("guest: paused") {
                paused(self)?;
                machine.type_line()?;
            }
            seen.push(line);
        }
        machine.wait()?;
        Ok(seen)
    }

    /// Starts a command whose standard output is read by the caller. It is killed when dropped.
    pub(super) fn start<S: AsRef<OsStr>>(&self, line: &[S]) -> anyhow::Result<Child> {
        let mut command = self.command(line);
        // What QEMU complains of when a server is killed is what is to be expected.
        command.env("GODWIT_LOG", "error").stdin(Stdio::null()).stdout(Stdio::piped());
        Child::spawn(&mut command, &[]).with_context(|| format!("start {}", display(line)))
    }
}

/// A command line as one would type it.
pub(super) fn display<S: AsRef<OsStr>>(line: &[S]) -> String {
    let quoted = |word: &S| {
        let word = word.as_ref().to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
        if !word.is_empty() && word.chars().all(plain) {
            word.into_owned()
        } else {
            format!("'{}'", word.replace('\'', r"'\''"))
        }
    };
    line.iter().map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_line_can_be_typed() {
        assert_eq!(
            display(&["a", "b c", "nbd+unix:///?socket=x", "it's", ""]),
            r"a 'b c' 'nbd+unix:///?socket=x' 'it'\''s' ''"
        );
    }
}
