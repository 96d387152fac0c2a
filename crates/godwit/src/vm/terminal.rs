//! The terminal while QEMU has it.

use std::io::stdin;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

/// Puts the terminal's settings back when dropped: QEMU makes it raw for the guest's console, and cannot undo that
/// when it is killed.
pub(super) struct TerminalSettings(Option<Termios>);

impl TerminalSettings {
    /// Remembers how standard input is set, if it is a terminal.
    pub(super) fn keep() -> Self {
        Self(tcgetattr(stdin()).ok())
    }
}

impl Drop for TerminalSettings {
    fn drop(&mut self) {
        if let Some(settings) = &self.0
            && let Err(error) = tcsetattr(stdin(), OptionalActions::Now, settings)
        {
            tracing::warn!(%error, "the terminal's settings could not be put back; `reset` does it");
        }
    }
}
