//! What happened last, for whoever looks: the latest events of Realtime, and the latest repairs, warnings and errors.
//!
//! Written by the runtime, read by the web pages. Invariant: however much happens, no more is kept than the two bounds.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::Level;
use uuid::Uuid;

use crate::domain::time::DbTime;
use crate::domain::transport::Transport;

/// Repairs, warnings and errors that are kept.
pub const NOTES_KEPT: usize = 50;
/// Events of Realtime that are kept.
pub const EVENTS_KEPT: usize = 20;

/// A repair, a warning or an error, as the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// When, by the database's clock; `None` before it was known.
    pub at: Option<DbTime>,
    /// How bad.
    pub level: Level,
    /// What happened, and what to do about it.
    pub text: String,
    /// The row.
    pub id: Option<Uuid>,
}

/// Something that came from Realtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedEvent {
    /// When, by the database's clock; `None` before it was known.
    pub at: Option<DbTime>,
    /// By which way; `None` where both are concerned.
    pub transport: Option<Transport>,
    /// In words.
    pub what: String,
    /// The row.
    pub id: Option<Uuid>,
}

/// See the module. Clones write to, and read from, the same.
#[derive(Clone, Debug, Default)]
pub struct Recent(Arc<Mutex<Rings>>);

#[derive(Debug, Default)]
struct Rings {
    notes: VecDeque<Note>,
    events: VecDeque<ReceivedEvent>,
}

impl Recent {
    /// Keeps a note; the oldest goes where there is no room.
    pub fn note(&self, note: Note) {
        self.with(|rings| keep(&mut rings.notes, note, NOTES_KEPT));
    }

    /// Keeps an event; the oldest goes where there is no room.
    pub fn event(&self, event: ReceivedEvent) {
        self.with(|rings| keep(&mut rings.events, event, EVENTS_KEPT));
    }

    /// The notes, oldest first.
    pub fn notes(&self) -> Vec<Note> {
        self.with(|rings| rings.notes.iter().cloned().collect())
    }

    /// The events, oldest first.
    pub fn events(&self) -> Vec<ReceivedEvent> {
        self.with(|rings| rings.events.iter().cloned().collect())
    }

    fn with<T>(&self, use_them: impl FnOnce(&mut Rings) -> T) -> T {
        use_them(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn keep<T>(ring: &mut VecDeque<T>, newest: T, bound: usize) {
    while ring.len() >= bound {
        ring.pop_front();
    }
    ring.push_back(newest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_in_order_and_no_more_than_the_bound() {
        let recent = Recent::default();
        for number in 0..NOTES_KEPT + 3 {
            recent.note(Note {
                at: None,
                level: Level::WARN,
                text: number.to_string(),
                id: None,
            });
        }
        let texts: Vec<String> = recent.notes().into_iter().map(|note| note.text).collect();
        let expected: Vec<String> = (3..NOTES_KEPT + 3).map(|n| n.to_string()).collect();
        assert_eq!(texts, expected);
        assert_eq!(recent.events(), []);
    }
}
