//! What the tour tells: text for people, or events for programs, one JSON object per line.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use crate::report::Form;

/// Columns of running text.
const WIDTH: usize = 100;
/// Lines of a command's output that are shown; the rest is counted.
const OUTPUT_LINES_MAX: usize = 30;

/// Field names are part of the interface.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
enum Event<'a> {
    Chapter { number: usize, title: &'a str },
    Text { text: &'a str },
    Command { command: &'a str },
    Output { exit_code: Option<i32>, text: &'a str },
    Console { line: &'a str },
    Proved { claim: &'a str, evidence: &'a str },
    End { complete: bool, proved: &'a [String], dir: &'a Path },
}

pub(super) struct Narrator {
    form: Form,
    chapters: usize,
    proved: Vec<String>,
}

impl Narrator {
    pub(super) fn new(form: Form) -> Self {
        Self { form, chapters: 0, proved: Vec::new() }
    }

    /// Begins the next part.
    pub(super) fn chapter(&mut self, title: &str) -> io::Result<()> {
        self.chapters += 1;
        let number = self.chapters;
        self.tell(&Event::Chapter { number, title }, |out| {
            writeln!(out, "\n{number}. {title}\n{}", "-".repeat(title.len() + 3))
        })
    }

    /// Explains.
    pub(super) fn say(&mut self, text: &str) -> io::Result<()> {
        self.tell(&Event::Text { text }, |out| {
            wrapped(text, WIDTH).into_iter().try_for_each(|line| writeln!(out, "{line}"))
        })
    }

    /// Shows a command that is about to run.
    pub(super) fn command(&mut self, command: &str) -> io::Result<()> {
        self.tell(&Event::Command { command }, |out| writeln!(out, "  $ {command}"))
    }

    /// Shows what a command said, and its exit code if it is not 0.
    pub(super) fn output(&mut self, exit_code: Option<i32>, text: &str) -> io::Result<()> {
        self.tell(&Event::Output { exit_code, text }, |out| {
            let lines: Vec<_> = text.lines().collect();
            for line in lines.iter().take(OUTPUT_LINES_MAX) {
                writeln!(out, "    {line}")?;
            }
            if let Some(more) = lines.len().checked_sub(OUTPUT_LINES_MAX + 1) {
                writeln!(out, "    ... and {} more lines", more + 1)?;
            }
            match exit_code {
                Some(0) => Ok(()),
                Some(code) => writeln!(out, "    (exit code {code})"),
                None => writeln!(out, "    (killed by a signal)"),
            }
        })
    }

    /// Shows a line of the guest's console.
    pub(super) fn console(&mut self, line: &str) -> io::Result<()> {
        self.tell(&Event::Console { line }, |out| writeln!(out, "    guest | {line}"))
    }

    /// States what was just proved, and by what.
    pub(super) fn proved(&mut self, claim: &str, evidence: &str) -> io::Result<()> {
        self.proved.push(claim.into());
        self.tell(&Event::Proved { claim, evidence }, |out| writeln!(out, "  [ok] {claim}: {evidence}"))
    }

    /// Sums up.
    pub(super) fn end(&mut self, dir: &Path, complete: bool) -> io::Result<()> {
        let proved = std::mem::take(&mut self.proved);
        self.tell(&Event::End { complete, proved: &proved, dir }, |out| {
            let heading =
                if complete { "What was proved" } else { "What was proved before something went wrong" };
            writeln!(out, "\n{heading}\n{}", "-".repeat(heading.len()))?;
            proved.iter().try_for_each(|claim| writeln!(out, "  [ok] {claim}"))?;
            writeln!(out, "\nThe files are in {}", dir.display())
        })
    }

    fn tell(&self, event: &Event<'_>, text: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match self.form {
            Form::Text => text(&mut out)?,
            Form::Json => {
                serde_json::to_writer(&mut out, event)?;
                writeln!(out)?;
            }
        }
        out.flush()
    }
}

/// Breaks `text` between words into lines of at most `width` characters, where words allow it.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is always a last line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.into());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_breaks_between_words_only() {
        assert_eq!(wrapped("one two  three\n four", 8), ["one two", "three", "four"]);
        assert_eq!(wrapped("unbreakable a", 5), ["unbreakable", "a"]);
    }
}
