//! The process's monotonic clock: the one place that reads it for the core.

use std::time::Duration;

use tokio::time::Instant;

use crate::domain::time::{Mono, micros_of};

/// Counts from the start of the process.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    start: Instant,
}

impl Clock {
    /// A clock that shows zero now.
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    /// What it shows.
    pub fn now(&self) -> Mono {
        Mono::from_micros(micros_of(self.start.elapsed()))
    }

    /// For the timer.
    pub fn instant(&self, at: Mono) -> Instant {
        self.start + Duration::from_micros(u64::try_from(at.as_micros()).unwrap_or(0))
    }
}
