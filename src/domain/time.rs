//! Two kinds of time that must not be mixed: the database's wall clock, and the process's own monotonic clock.
//!
//! Neither is read here: both arrive as parameters.

use std::cmp::Ordering;
use std::fmt;
use std::num::NonZeroI64;
use std::time::Duration;

use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, Serializer};

/// Microseconds in a second.
pub const SECOND_US: i64 = 1_000_000;

/// A moment of the database's clock (`clock_timestamp()`): the only wall clock that counts.
///
/// Kept as microseconds `^ i64::MAX`, so that "none" takes no room of its own: an agent may know a million rows.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DbTime(NonZeroI64);

impl DbTime {
    /// From microseconds since the Unix epoch; the last of all moments stands for the one before it too.
    pub const fn from_micros(micros: i64) -> Self {
        match NonZeroI64::new(micros ^ i64::MAX) {
            Some(kept) => Self(kept),
            None => Self(NonZeroI64::new(1).expect("one is not zero")),
        }
    }

    /// Microseconds since the Unix epoch.
    pub const fn as_micros(self) -> i64 {
        self.0.get() ^ i64::MAX
    }

    /// This moment moved by so many microseconds.
    #[must_use]
    pub const fn plus_micros(self, micros: i64) -> Self {
        Self::from_micros(self.as_micros().saturating_add(micros))
    }

    /// Microseconds from `earlier` to this moment; negative where it is later.
    pub const fn micros_since(self, earlier: Self) -> i64 {
        self.as_micros().saturating_sub(earlier.as_micros())
    }

    /// `None` beyond chrono's range.
    pub fn to_datetime(self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp_micros(self.as_micros())
    }
}

impl Ord for DbTime {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_micros().cmp(&other.as_micros())
    }
}

impl PartialOrd for DbTime {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Debug for DbTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DbTime({})", self.as_micros())
    }
}

/// As RFC 3339 in UTC.
impl Serialize for DbTime {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let at = self.to_datetime();
        at.map(|at| at.to_rfc3339_opts(SecondsFormat::Micros, true))
            .serialize(serializer)
    }
}

impl From<DateTime<Utc>> for DbTime {
    fn from(at: DateTime<Utc>) -> Self {
        Self::from_micros(at.timestamp_micros())
    }
}

/// Microseconds of the process's monotonic clock since the process started.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Mono(i64);

impl Mono {
    /// From microseconds since the start of the process.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since the start of the process.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// This moment moved forward.
    #[must_use]
    pub fn plus(self, by: Duration) -> Self {
        Self(self.0.saturating_add(micros_of(by)))
    }

    /// How long ago `earlier` was; zero where it is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
}

/// Whole microseconds of a duration, saturating.
pub fn micros_of(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
