//! The log on its way to a terminal: directly to standard error or, while a screen is drawn there, through a bounded queue to the
//! screen.
//!
//! Invariant: the log never waits for the screen. A full queue drops its oldest line, and the screen shows how many were dropped.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait for the screen.
const WAITING_MAX: usize = 200;

/// A queue from the log's writer to the screen.
#[derive(Clone, Default)]
pub struct LogBuffer(Arc<Mutex<LogQueue>>);

#[derive(Default)]
struct LogQueue {
    is_held: bool,
    waiting: VecDeque<String>,
    dropped: usize,
}

impl LogBuffer {
    /// Makes lines wait for [`Self::drain`].
    pub fn hold(&self) {
        self.queue().is_held = true;
    }

    /// Writes the waiting lines to standard error, and from now on every line.
    pub fn release(&self) {
        let waiting = self.drain();
        self.queue().is_held = false;
        for line in waiting {
            to_stderr(&line);
        }
    }

    /// Takes the waiting lines, the oldest first.
    pub fn drain(&self) -> Vec<String> {
        let mut queue = self.queue();
        let dropped = std::mem::take(&mut queue.dropped);
        let note = (dropped > 0).then(|| format!("({dropped} log lines dropped)"));
        note.into_iter().chain(queue.waiting.drain(..)).collect()
    }

    fn queue(&self) -> MutexGuard<'_, LogQueue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: String) {
        let mut queue = self.queue();
        if !queue.is_held {
            drop(queue);
            return to_stderr(&line);
        }
        if queue.waiting.len() == WAITING_MAX {
            queue.waiting.pop_front();
            queue.dropped += 1;
        }
        queue.waiting.push_back(line);
    }
}

impl<'a> MakeWriter<'a> for LogBuffer {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for LogBuffer {
    /// `text` is one event: the formatter writes each at once.
    fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
        for line in String::from_utf8_lossy(text).lines() {
            self.push(brief(line));
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn to_stderr(line: &str) {
    // A closed standard error is no reason to stop.
    let _written = writeln!(std::io::stderr(), "{line}").is_ok();
}

/// Shortens `2026-11-22T18:20:03.123456Z` at the start to `18:20:03`.
fn brief(line: &str) -> String {
    let cut = || {
        let (timestamp, rest) = line.split_once('Z')?;
        let (_day, time) = timestamp.split_once('T')?;
        let (time, _micros) = time.split_once('.')?;
        Some(format!("{time}{rest}"))
    };
    cut().unwrap_or_else(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_wait_in_order_while_a_screen_holds_them() {
        let mut lines = LogBuffer::default();
        lines.hold();
        lines.write_all(b"one\n").unwrap();
        lines.write_all(b"two\n").unwrap();
        assert_eq!(lines.drain(), ["one", "two"]);
        assert_eq!(lines.drain(), Vec::<String>::new());
    }

    #[test]
    fn the_oldest_lines_go_when_too_many_wait_and_their_number_is_shown() {
        let mut lines = LogBuffer::default();
        lines.hold();
        for number in 0..WAITING_MAX + 3 {
            lines.write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        let drained = lines.drain();
        assert_eq!(drained.len(), WAITING_MAX + 1);
        assert_eq!(drained[..2], ["(3 log lines dropped)", "3"]);
    }

    #[test]
    fn a_line_keeps_the_time_and_loses_the_day() {
        let line = "2026-11-22T18:20:03.123456Z  INFO Realtime is live";
        assert_eq!(brief(line), "18:20:03  INFO Realtime is live");
        assert_eq!(brief("no timestamp: Z and T"), "no timestamp: Z and T");
    }
}
