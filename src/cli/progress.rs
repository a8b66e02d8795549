//! The progress bar: on a terminal only, on stderr, gone when the work is done.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Read};
use std::time::Duration;

/// A bar, or nothing when stderr is no terminal.
pub struct Progress(ProgressBar);

impl Progress {
    fn new(bar: ProgressBar, what: &str, template: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
            return Self(bar);
        }
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    /// For work of unknown length.
    #[must_use]
    pub fn spinner(what: &str) -> Self {
        Self::new(ProgressBar::new_spinner(), what, "{spinner} {msg} {elapsed}")
    }

    /// For bytes; with a rate, and the time left where the total is known.
    #[must_use]
    pub fn bytes(what: &str, total: Option<u64>) -> Self {
        match total {
            Some(total) => Self::new(
                ProgressBar::new(total),
                what,
                "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left",
            ),
            None => Self::new(
                ProgressBar::no_length(),
                what,
                "{spinner} {msg} {binary_bytes} {binary_bytes_per_sec} {elapsed}",
            ),
        }
    }

    /// Counts bytes done.
    pub fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    /// Counts what passes through a reader.
    pub fn reader<R: Read>(&self, inner: R) -> Counted<'_, R> {
        Counted { progress: self, inner }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// See [`Progress::reader`].
pub struct Counted<'a, R> {
    progress: &'a Progress,
    inner: R,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.progress.add(read as u64);
        Ok(read)
    }
}
