//! The latest events: of the agent, as far as the dashboard lists them, and of Realtime.
//!
//! Written by the runtime, read by the dashboard. Invariant: no more of each are kept than the bounds.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use uuid::Uuid;

use crate::domain::event::Event;
use crate::domain::time::DbTime;
use crate::domain::transport::Transport;

/// Events of the agent that are kept.
pub const EVENTS_KEPT: usize = 50;
/// Events of Realtime that are kept.
pub const RECEIVED_KEPT: usize = 20;

/// An event of Realtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedEvent {
    /// When, by the database's clock; `None` before it was known.
    pub at: Option<DbTime>,
    /// Its transport; `None` where both are concerned.
    pub transport: Option<Transport>,
    /// In words.
    pub what: String,
    /// The distribution.
    pub id: Option<Uuid>,
}

/// See the module. Clones share what they keep.
#[derive(Clone, Debug, Default)]
pub struct Recent(Arc<Mutex<Rings>>);

#[derive(Debug, Default)]
struct Rings {
    events: VecDeque<Event>,
    received: VecDeque<ReceivedEvent>,
}

impl Recent {
    /// Keeps an event of the agent, in place of the oldest where there are too many.
    pub fn event(&self, event: Event) {
        self.with(|rings| keep(&mut rings.events, event, EVENTS_KEPT));
    }

    /// Keeps an event of Realtime, in place of the oldest where there are too many.
    pub fn received(&self, event: ReceivedEvent) {
        self.with(|rings| keep(&mut rings.received, event, RECEIVED_KEPT));
    }

    /// The events of the agent, newest first.
    pub fn events(&self) -> Vec<Event> {
        self.with(|rings| rings.events.iter().rev().cloned().collect())
    }

    /// The events of Realtime, newest first.
    pub fn all_received(&self) -> Vec<ReceivedEvent> {
        self.with(|rings| rings.received.iter().rev().cloned().collect())
    }

    fn with<T>(&self, f: impl FnOnce(&mut Rings) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn keep<T>(ring: &mut VecDeque<T>, newest: T, bound: usize) {
    ring.push_back(newest);
    while ring.len() > bound {
        ring.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_kept_in_order_and_no_more_than_the_bound() {
        let recent = Recent::default();
        for number in 0..EVENTS_KEPT + 3 {
            recent.event(Event::ANCHORED.count(number));
        }
        let counts: Vec<_> = recent.events().iter().map(|event| event.count).collect();
        let expected: Vec<_> = (3..EVENTS_KEPT + 3).rev().map(Some).collect();
        assert_eq!(counts, expected);
        assert_eq!(recent.all_received(), []);
    }
}
