//! The two ways to hear that a row changed, which of them a user wants, and which are followed.
//!
//! Realtime polls for `postgres_changes`, and drops them without a word in several situations; broadcasts from the
//! database come in milliseconds, over another connection of the server's. Each covers for the other.

use std::str::FromStr;

/// A way to hear of a change.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Way {
    /// `postgres_changes`.
    Changes,
    /// Realtime's broadcast from the database: `realtime.send` in a trigger.
    Broadcast,
}

impl Way {
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
pub struct Ways<T> {
    /// That of [`Way::Changes`].
    pub changes: T,
    /// That of [`Way::Broadcast`].
    pub broadcast: T,
}

impl<T> Ways<T> {
    /// The one of this way.
    pub fn of(&self, way: Way) -> &T {
        match way {
            Way::Changes => &self.changes,
            Way::Broadcast => &self.broadcast,
        }
    }

    /// The one of this way.
    pub fn of_mut(&mut self, way: Way) -> &mut T {
        match way {
            Way::Changes => &mut self.changes,
            Way::Broadcast => &mut self.broadcast,
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
pub struct UnknownWay(String);

impl FromStr for ListenBy {
    type Err = UnknownWay;

    fn from_str(text: &str) -> Result<Self, UnknownWay> {
        match text {
            "auto" => Ok(Self::Auto),
            "postgres_changes" => Ok(Self::PostgresChanges),
            "broadcast" => Ok(Self::Broadcast),
            other => Err(UnknownWay(other.to_owned())),
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
    pub const fn by(self, way: Way) -> bool {
        match way {
            Way::Changes => self.changes,
            Way::Broadcast => self.broadcast,
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
