//! How commands answer: text for people, or one JSON document for programs.

use std::io::{self, Write};

use serde::Serialize;

/// The form of a command's answer on standard output. Progress and warnings go to standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Text for people.
    Text,
    /// One JSON document, or one per line where a command reports as it goes.
    Json,
}

impl Form {
    /// Prints `answer` as JSON, or lets `text` write it for people.
    pub(crate) fn print<T: Serialize>(
        self,
        answer: &T,
        text: impl FnOnce(&mut dyn Write, &T) -> io::Result<()>,
    ) -> anyhow::Result<()> {
        let mut out = io::stdout().lock();
        match self {
            Self::Text => text(&mut out, answer)?,
            Self::Json => {
                serde_json::to_writer_pretty(&mut out, answer)?;
                writeln!(out)?;
            }
        }
        out.flush()?;
        Ok(())
    }
}
