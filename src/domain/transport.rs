//! The two ways to hear that a row changed, which of them a user wants, and which are followed.
//!
//! Realtime polls for `postgres_changes`, and drops them without a word in several situations; broadcasts from the
//! database come in milliseconds, over another connection of the server's. Each covers for the other.

use std::str::FromStr;

/// A way to hear of a change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Transport {
    /// `postgres_changes`.
    Changes,
    /// Realtime's broadcast from the database: `realtime.send` in a trigger.
    Broadcast,
}

impl Transport {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Changes, Self::Broadcast];

    /// As users and Supabase name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Changes => "postgres_changes",
            Self::Broadcast => "broadcast",
        }
    }
}

/// One of something for each way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PerTransport<T> {
    /// That of [`Transport::Changes`].
    pub changes: T,
    /// That of [`Transport::Broadcast`].
    pub broadcast: T,
}

impl<T> PerTransport<T> {
    /// The one of this way.
    pub fn of(&self, transport: Transport) -> &T {
        match transport {
            Transport::Changes => &self.changes,
            Transport::Broadcast => &self.broadcast,
        }
    }

    /// The one of this way.
    pub fn of_mut(&mut self, transport: Transport) -> &mut T {
        match transport {
            Transport::Changes => &mut self.changes,
            Transport::Broadcast => &mut self.broadcast,
        }
    }

    /// Both.
    pub fn both(&self) -> [&T; 2] {
        [&self.changes, &self.broadcast]
    }

    /// Both.
    pub fn both_mut(&mut self) -> [&mut T; 2] {
        [&mut self.changes, &mut self.broadcast]
    }
}

/// Which ways a user wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ListenBy {
    /// `postgres_changes`, and broadcasts where the project sends them.
    #[default]
    Auto,
    /// `postgres_changes` alone.
    PostgresChanges,
    /// Broadcasts alone.
    Broadcast,
}

/// A word that is no [`ListenBy`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected auto, postgres_changes or broadcast, found '{0}'")]
pub struct UnknownTransport(String);

impl FromStr for ListenBy {
    type Err = UnknownTransport;

    fn from_str(text: &str) -> Result<Self, UnknownTransport> {
        match text {
            "auto" => Ok(Self::Auto),
            "postgres_changes" => Ok(Self::PostgresChanges),
            "broadcast" => Ok(Self::Broadcast),
            other => Err(UnknownTransport(other.to_owned())),
        }
    }
}

/// What is followed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Following {
    /// `visit_distribution`, by `postgres_changes`.
    pub changes: bool,
    /// The canary beside it.
    pub canary: bool,
    /// Broadcasts.
    pub broadcast: bool,
}

impl Following {
    /// Before anything is known of the database.
    pub const fn at_first(by: ListenBy) -> Self {
        Self::with(by, true, false)
    }

    /// Whether this way is.
    pub const fn by(self, transport: Transport) -> bool {
        match transport {
            Transport::Changes => self.changes,
            Transport::Broadcast => self.broadcast,
        }
    }

    /// With what the database has: a canary that is published, a trigger that broadcasts.
    pub const fn with(by: ListenBy, canary: bool, broadcasts: bool) -> Self {
        let changes = !matches!(by, ListenBy::Broadcast);
        Self {
            changes,
            canary: changes && canary,
            broadcast: match by {
                ListenBy::Auto => broadcasts,
                ListenBy::PostgresChanges => false,
                ListenBy::Broadcast => true,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_follows_both_ways_only_where_the_project_broadcasts() {
        let both = Following::with(ListenBy::Auto, true, true);
        assert!(both.changes && both.canary && both.broadcast);
        assert!(!Following::with(ListenBy::Auto, true, false).broadcast);
        assert!(!Following::at_first(ListenBy::Auto).broadcast);
    }

    #[test]
    fn a_single_way_stays_the_only_one() {
        let changes = Following::with(ListenBy::PostgresChanges, true, true);
        assert!(changes.changes && !changes.broadcast);
        let broadcast = Following::with(ListenBy::Broadcast, true, false);
        assert!(!broadcast.changes && !broadcast.canary && broadcast.broadcast);
        assert_eq!("broadcast".parse(), Ok(ListenBy::Broadcast));
        assert!("both".parse::<ListenBy>().is_err());
    }
}
