//! Listening: what Realtime tells, by which transports, and whether a channel that seems live still delivers.

use uuid::Uuid;

use super::maintenance::is_refused;
use super::turn::{Effect, Turn};
use super::{Action, MaintenanceTask, Published, RealtimeCounters, RealtimeEvent, TaskOutcome};
use crate::domain::echo_check::{CANARY, EchoCheck, Reconnect};
use crate::domain::error_policy::Failure;
use crate::domain::event::Event;
use crate::domain::limits::COALESCE;
use crate::domain::schedule::Schedule;
use crate::domain::time::Mono;
use crate::domain::transport::{Following, ListenBy, PerTransport, Transport};

/// See the module.
#[derive(Debug)]
pub(super) struct Listening {
    listen_by: ListenBy,
    following: Following,
    published: Option<Published>,
    checks: PerTransport<EchoCheck>,
    live_since: Option<Mono>,
    down_since: Option<Mono>,
    counters: RealtimeCounters,
}

impl Listening {
    pub(super) fn new(listen_by: ListenBy, now: Mono) -> Self {
        Self {
            listen_by,
            following: Following::at_first(listen_by),
            published: None,
            checks: PerTransport::default(),
            live_since: None,
            down_since: Some(now),
            counters: RealtimeCounters::default(),
        }
    }

    pub(super) fn counters(&self) -> RealtimeCounters {
        self.counters
    }

    pub(super) fn live_since(&self) -> Option<Mono> {
        self.live_since
    }

    pub(super) fn down_since(&self) -> Option<Mono> {
        self.down_since
    }

    /// Whether no subscriber gets an event of a write to `visit_distribution`.
    pub(super) fn is_unheard(&self) -> bool {
        let anywhere = |published: Published| published.anywhere;
        !self.following.changes && !self.published.is_none_or(anywhere)
    }

    pub(super) fn deadline(&self) -> Option<(Mono, &'static str)> {
        let checks = self.checks.both().map(EchoCheck::next_deadline);
        Some((checks.into_iter().flatten().min()?, "echo check"))
    }

    /// When the next canary is due, and by which transport.
    pub(super) fn canary(&self) -> Option<(Mono, Transport)> {
        let at = |transport| Some((self.canary_at(transport)?, transport));
        Transport::ALL.into_iter().filter_map(at).min()
    }

    /// Never while its event could not arrive.
    fn canary_at(&self, transport: Transport) -> Option<Mono> {
        let arrives = self.published.is_some_and(|published| match transport {
            Transport::Changes => published.canary,
            Transport::Broadcast => published.broadcasts,
        });
        let check = self.checks.of(transport);
        check.canary_at().filter(|_| arrives)
    }

    pub(super) fn receive(&mut self, event: &RealtimeEvent, schedule: &Schedule, turn: &mut Turn) {
        match event {
            RealtimeEvent::Live(transport) => {
                self.checks.of_mut(*transport).live(turn.now);
                self.live_since = self.live_since.or(Some(turn.now));
                self.down_since = None;
                turn.effect(Effect::Subscribed);
            }
            RealtimeEvent::Down(transport) => self.down(*transport, turn),
            RealtimeEvent::Row(transport, id, version) => {
                *self.counters.events.of_mut(*transport) += 1;
                self.heard(*transport, *id, turn);
                if version.is_some() && *version == schedule.version(*id) {
                    self.counters.events_known += 1;
                } else {
                    turn.effect(Effect::Read(vec![*id], turn.now.plus(COALESCE)));
                }
            }
            RealtimeEvent::Canary(transport) => self.heard(*transport, CANARY, turn),
            RealtimeEvent::Unclear => {
                self.counters.events.changes += 1;
                turn.effect(Effect::Sync);
            }
            RealtimeEvent::Unfollowed => {
                self.down(Transport::Changes, turn);
                turn.effect(Effect::Task(MaintenanceTask::CheckPublication));
            }
        }
    }

    fn heard(&mut self, transport: Transport, id: Uuid, turn: &mut Turn) {
        if let Some(elapsed) = self.checks.of_mut(transport).heard(id, turn.now) {
            turn.emit(Event::ECHO_RECEIVED.by(transport).after(elapsed));
        }
    }

    /// A transport is not live; the agent hears nothing only where none is.
    fn down(&mut self, transport: Transport, turn: &mut Turn) {
        self.checks.of_mut(transport).down();
        if self.checks.both().into_iter().any(EchoCheck::is_live) {
            return;
        }
        self.live_since = None;
        self.down_since = self.down_since.or(Some(turn.now));
        turn.effect(Effect::Unsubscribed);
    }

    /// Reconnects channels that kept silent for too long.
    pub(super) fn reconnect(&mut self, turn: &mut Turn) {
        for transport in Transport::ALL {
            let Some(reconnect) = self.checks.of_mut(transport).reconnect(turn.now) else {
                continue;
            };
            *self.counters.silent.of_mut(transport) += 1;
            let event = match reconnect {
                Reconnect::Rejoin => {
                    self.counters.rejoins += 1;
                    Event::CHANNEL_SILENT
                }
                Reconnect::Reopen => {
                    self.counters.reopens += 1;
                    Event::CHANNEL_STILL_SILENT
                }
            };
            turn.emit(event.by(transport));
            turn.act(Action::Reconnect(transport, reconnect));
        }
    }

    /// Changes of these rows arrived by no transport, though one was live.
    pub(super) fn missed(&mut self, ids: &[Uuid], now: Mono) {
        for check in self.checks.both_mut() {
            for id in ids {
                check.repaired(*id, now);
            }
        }
    }

    /// A task is about to write something whose echo must arrive.
    pub(super) fn task_started(&mut self, task: &MaintenanceTask, now: Mono) {
        if let MaintenanceTask::WriteBack(ids) = task {
            for id in ids {
                self.checks.changes.writing(*id, now);
            }
        } else if let MaintenanceTask::Canary(transport) = task {
            self.checks.of_mut(*transport).writing(CANARY, now);
        }
    }

    /// The task was answered, so it is known what was written.
    pub(super) fn task_answered(
        &mut self,
        task: &MaintenanceTask,
        answer: &Result<TaskOutcome, Failure>,
        turn: &mut Turn,
    ) {
        if let MaintenanceTask::WriteBack(ids) = task {
            if let Ok(TaskOutcome::WroteBack(rows)) = answer {
                for row in rows.iter().filter(|row| row.changed) {
                    self.checks.changes.wrote(row.id, turn.now);
                }
            }
            for id in ids {
                self.checks.changes.did_not_write(*id);
            }
        } else if let MaintenanceTask::Canary(transport) = task {
            let check = self.checks.of_mut(*transport);
            match answer {
                Ok(_) => check.wrote(CANARY, turn.now),
                Err(failure) if is_refused(failure) => check.cannot_write(CANARY, turn.now),
                Err(_) => check.did_not_write(CANARY),
            }
        } else if let Ok(TaskOutcome::Publication(published)) = answer {
            self.follow(*published, turn);
        }
    }

    /// What is followed depends on what the database publishes. A subscription does not survive that its table was removed
    /// from the publication, so it is made again then.
    fn follow(&mut self, published: Published, turn: &mut Turn) {
        let before = self.published.replace(published);
        if before == Some(published) {
            return;
        }
        let following = Following::with(self.listen_by, published.canary, published.broadcasts);
        for (applies, event) in [
            (
                following.changes && !published.distributions,
                Event::DISTRIBUTIONS_UNPUBLISHED,
            ),
            (
                following.changes && !published.canary,
                Event::CANARY_UNPUBLISHED,
            ),
            (
                following.changes && published.visits,
                Event::VISITS_PUBLISHED,
            ),
            (
                following.broadcast && !published.broadcasts,
                Event::BROADCASTS_MISSING,
            ),
        ] {
            if applies {
                turn.emit(event);
            }
        }
        if self.listen_by == ListenBy::Auto && following.broadcast != self.following.broadcast {
            turn.emit(if following.broadcast {
                Event::BROADCASTS_STARTED
            } else {
                Event::BROADCASTS_STOPPED
            });
        }
        let tables = |published: Published| (published.distributions, published.canary);
        let changed = before.is_some_and(|before| tables(before) != tables(published));
        if following != self.following || (following.changes && changed) {
            turn.act(Action::Follow(following));
        }
        self.following = following;
    }
}
