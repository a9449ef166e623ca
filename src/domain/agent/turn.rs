//! One turn of the agent: the time of an input, and what its owner leaves for the other owners.

use std::collections::{BTreeSet, VecDeque};

use uuid::Uuid;

use super::worker::Worker;
use super::{Action, MaintenanceTask};
use crate::domain::error_policy::{ErrorKind, Failure};
use crate::domain::event::Event;
use crate::domain::ownership::PeerAgent;
use crate::domain::time::{DbTime, Mono};

/// What happened at one owner and matters to another. Only the agent passes it on, in order.
#[derive(Debug)]
pub(super) enum Effect {
    /// For the runtime.
    Act(Action),
    /// A job failed with such an error, and is retried. The event, if it is to be reported.
    Failed(ErrorKind, Option<Event>),
    /// A subscription is live, or was made again: changes may have been missed before.
    Subscribed,
    /// No subscription is live any more.
    Unsubscribed,
    /// Changes may have been missed.
    Sync,
    /// These rows are to be read by then.
    Read(Vec<Uuid>, Mono),
    /// The schedule has these rows as they were read.
    Applied(Vec<Uuid>),
    /// The row was deleted.
    Deleted(Uuid),
    /// Visits of these rows were stored.
    Stored(BTreeSet<Uuid>),
    /// The status of these rows, or of what was written back of them, may have changed.
    Inspect(Vec<Uuid>),
    /// Only a sync found that these rows had changed, though Realtime was live.
    Missed(Vec<Uuid>),
    /// A sync has ended.
    Synced {
        /// It was the first.
        first: bool,
    },
    /// Such a task is to be done once.
    Task(MaintenanceTask),
    /// The other agents, as a heartbeat found them.
    Peers(Vec<PeerAgent>),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Turn {
    pub(super) now: Mono,
    /// `None` before the first round trip, when no row is known.
    pub(super) db_now: Option<DbTime>,
    draw: u32,
    effects: VecDeque<Effect>,
}

impl Turn {
    /// `draw`: a random number, for the jitter of a retry.
    pub(super) fn new(now: Mono, db_now: Option<DbTime>, draw: u32) -> Self {
        Self {
            now,
            db_now,
            draw,
            effects: VecDeque::new(),
        }
    }

    pub(super) fn effect(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    pub(super) fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    pub(super) fn act(&mut self, action: Action) {
        self.effect(Effect::Act(action));
    }

    pub(super) fn emit(&mut self, event: Event) {
        self.act(Action::Emit(event));
    }

    /// The job that a worker has just finished failed.
    pub(super) fn fail<Job>(&mut self, worker: &mut Worker<Job>, failure: &Failure) {
        let event = worker.fail(failure, self.draw, self.now);
        self.effect(Effect::Failed(failure.kind, event));
    }
}
