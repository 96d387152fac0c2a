//! Progress of long work, on standard error, where somebody is watching.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work that ends before this has passed shows nothing.
const QUIET: Duration = Duration::from_millis(500);

/// A bar that moves while work goes on, and is gone when it ends. Without a terminal it shows nothing.
pub(crate) struct Progress {
    bar: ProgressBar,
    since: std::time::Instant,
}

impl Progress {
    /// Progress of `doing` something to `bytes` bytes.
    pub(crate) fn of_bytes(doing: &'static str, bytes: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::hidden());
        let shape = "{msg} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let style = ProgressStyle::with_template(shape).expect("the template is a constant that was tried");
        bar.set_style(style.progress_chars("=> "));
        bar.set_message(doing);
        Self { bar, since: std::time::Instant::now() }
    }

    /// Says how many bytes are done.
    pub(crate) fn at(&self, bytes: u64) {
        if self.bar.is_hidden() && self.since.elapsed() > QUIET {
            // Draws only if standard error is a terminal.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.set_position(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
