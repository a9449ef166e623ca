//! The lines of the log on their way to a terminal: straight to standard error, or, while a
//! screen is drawn there, through a bounded queue to the screen.
//!
//! Invariant: the log never waits for the screen. Where the queue is full the oldest line goes,
//! and the screen is told how many went.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait for the screen.
const WAITING_MAX: usize = 200;

/// A queue with two ends: the log's writer, and the screen.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    is_held: bool,
    waiting: VecDeque<String>,
    dropped: usize,
}

impl Lines {
    /// From now on lines wait for [`Self::drain`].
    pub fn hold(&self) {
        self.queue().is_held = true;
    }

    /// Writes what waits to standard error, and from now on every line.
    pub fn release(&self) {
        let waiting = self.drain();
        self.queue().is_held = false;
        for line in waiting {
            to_stderr(&line);
        }
    }

    /// The lines that wait, the oldest first.
    pub fn drain(&self) -> Vec<String> {
        let mut queue = self.queue();
        let dropped = std::mem::take(&mut queue.dropped);
        let told = (dropped > 0).then(|| format!("({dropped} lines of the log left out)"));
        told.into_iter().chain(queue.waiting.drain(..)).collect()
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
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

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for Lines {
    /// `text` is one event: the log's formatter writes each at once.
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
    // A log that nobody can read any more is no reason to stop.
    let _written = writeln!(std::io::stderr(), "{line}").is_ok();
}

/// `2026-11-22T18:20:03.123456Z` at the start becomes `18:20:03`: who looks on knows the day.
fn brief(line: &str) -> String {
    let cut = || {
        let (sequence, rest) = line.split_once('Z')?;
        let (_day, time) = sequence.split_once('T')?;
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
        let mut lines = Lines::default();
        lines.hold();
        lines.write_all(b"one\n").unwrap();
        lines.write_all(b"two\n").unwrap();
        assert_eq!(lines.drain(), ["one", "two"]);
        assert_eq!(lines.drain(), Vec::<String>::new());
    }

    #[test]
    fn the_oldest_lines_go_when_too_many_wait_and_their_number_is_told() {
        let mut lines = Lines::default();
        lines.hold();
        for number in 0..WAITING_MAX + 3 {
            lines.write_all(format!("{number}\n").as_bytes()).unwrap();
        }
        let drained = lines.drain();
        assert_eq!(drained.len(), WAITING_MAX + 1);
        assert_eq!(drained[..2], ["(3 lines of the log left out)", "3"]);
    }

    #[test]
    fn a_line_keeps_the_time_and_loses_the_day() {
        let line = "2026-11-22T18:20:03.123456Z  INFO Realtime is live";
        assert_eq!(brief(line), "18:20:03  INFO Realtime is live");
        assert_eq!(brief("no stamp: Z and T"), "no stamp: Z and T");
    }
}
