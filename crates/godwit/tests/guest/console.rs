//! The guest's serial console, as a test sees it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What the load has acknowledged: for each writer the blocks from `.0` up to, not including, `.1`.
pub(crate) type Acknowledged = BTreeMap<u64, (u64, u64)>;

pub(crate) struct Console {
    stream: UnixStream,
    lines: Receiver<String>,
    seen: Vec<String>,
    pub(crate) acknowledged: Acknowledged,
    pub(crate) acknowledgements: u64,
}

impl Console {
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).expect("the console listens when the machine has started");
        let input = BufReader::new(stream.try_clone().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in input.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { stream, lines, seen: Vec::new(), acknowledged: BTreeMap::new(), acknowledgements: 0 }
    }

    /// Types a line.
    pub(crate) fn type_line(&mut self, line: &str) {
        writeln!(self.stream, "{line}").unwrap();
    }

    /// Waits until a line contains `text`; panics if the console ends or `timeout` passes before.
    pub(crate) fn wait_for(&mut self, text: &str, timeout: Duration) -> String {
        let deadline = Instant::now() + timeout;
        loop {
            let line = self.next_line(deadline).unwrap_or_else(|why| panic!("{why} before {text:?}; {self}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    /// Waits for `count` more acknowledgements.
    pub(crate) fn wait_for_acknowledgements(&mut self, count: u64, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        let enough = self.acknowledgements + count;
        while self.acknowledgements < enough {
            let next = self.next_line(deadline);
            next.unwrap_or_else(|why| panic!("{why} before {count} more acknowledgements; {self}"));
        }
    }

    /// Reads what is still to come, up to the end of the machine.
    pub(crate) fn read_to_end(&mut self, timeout: Duration) {
        let deadline = Instant::now() + timeout;
        while self.next_line(deadline).is_ok() {}
    }

    /// Panics if the guest has seen an error of any kind.
    pub(crate) fn assert_no_error(&self) {
        let marks =
            ["ERROR", "FAILED", "LOST", "I/O error", "EXT4-fs error", "EXT4-fs warning", "panic", "BUG:"];
        let bad: Vec<_> =
            self.seen.iter().filter(|line| marks.iter().any(|mark| line.contains(mark))).collect();
        assert!(bad.is_empty(), "the guest has seen errors: {bad:#?}");
    }

    pub(crate) fn has_seen(&self, text: &str) -> bool {
        self.seen.iter().any(|line| line.contains(text))
    }

    fn next_line(&mut self, deadline: Instant) -> Result<String, &'static str> {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = self.lines.recv_timeout(left).map_err(|error| match error {
            RecvTimeoutError::Timeout => "time is up",
            RecvTimeoutError::Disconnected => "the console ended",
        })?;
        match acknowledgement(&line) {
            Some((writer, floor, end)) => {
                self.acknowledged.insert(writer, (floor, end));
                self.acknowledgements += 1;
            }
            None => self.seen.push(line.clone()),
        }
        Ok(line)
    }
}

impl std::fmt::Display for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let last = &self.seen[self.seen.len().saturating_sub(40)..];
        write!(
            f,
            "{} acknowledgements; the console's last lines:\n{}",
            self.acknowledgements,
            last.join("\n")
        )
    }
}

/// `ack WRITER FLOOR END.`; the point says that the line is whole.
fn acknowledgement(line: &str) -> Option<(u64, u64, u64)> {
    let mut words = line.strip_prefix("ack ")?.strip_suffix('.')?.split(' ').map(str::parse);
    let fields = (words.next()?.ok()?, words.next()?.ok()?, words.next()?.ok()?);
    words.next().is_none().then_some(fields)
}
