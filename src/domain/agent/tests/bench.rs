//! A bench for the agent: time passes from deadline to deadline, and the test plays workers, Realtime and log.

use std::collections::VecDeque;
use std::time::Duration;

use uuid::Uuid;

use super::super::*;
use crate::domain::echo_check::Reconnect;
use crate::domain::error_policy::Failure;
use crate::domain::fixture;
pub(super) use crate::domain::fixture::{T0, id};
use crate::domain::ownership::PeerAgent;
use crate::domain::schedule::{Control, RowRead};
use crate::domain::transport::Transport;

/// The agent's own id.
pub(super) const ME: Uuid = Uuid::from_u128(7);

pub(super) const ALL_PUBLISHED: Published = Published {
    distributions: true,
    canary: true,
    visits: false,
    anywhere: true,
    broadcasts: false,
};

/// That many visits a second from [`T0`] on.
pub(super) fn row(n: u128, per_second: u32) -> RowRead {
    fixture::row(n, &per_second.to_string())
}

pub(super) fn edited(mut row: RowRead) -> RowRead {
    row.row.config_version = row.row.config_version.map(|version| version + 1);
    row
}

/// An agent on a bench: time passes from deadline to deadline, and the tests are its workers.
pub(super) struct AgentBench {
    pub(super) agent: Agent,
    pub(super) now: Mono,
    /// Actions that no test has taken yet.
    pub(super) asked: VecDeque<Action>,
    /// By how much the database's clock differs from where it began.
    pub(super) db_offset_us: i64,
    /// The other agents, as the heartbeats find them.
    pub(super) peers: Vec<PeerAgent>,
    /// What the last heartbeat said: whether it serves.
    pub(super) serving: Option<bool>,
    /// What was written back.
    pub(super) written: Vec<Uuid>,
    /// What Realtime publishes, as the last check found.
    pub(super) published: Published,
    /// What each reconciliation finds, and how many there were.
    pub(super) differences: Vec<CountDifference>,
    pub(super) reconciled: u32,
}

impl AgentBench {
    pub(super) fn new() -> Self {
        let now = Mono::from_micros(0);
        let mut bench = Self {
            agent: Agent::new(ME, 2_000, now),
            now,
            asked: VecDeque::new(),
            db_offset_us: 0,
            peers: Vec::new(),
            serving: None,
            written: Vec::new(),
            published: ALL_PUBLISHED,
            differences: Vec::new(),
            reconciled: 0,
        };
        bench.input(Input::Tick);
        bench
    }

    /// An agent that has read these rows and the control row; Realtime is down.
    pub(super) fn paced(rows: Vec<RowRead>) -> Self {
        let mut bench = Self::new();
        assert_eq!(bench.take_read(), Some(ReadRequest::All));
        bench.answer_read(rows);
        assert_eq!(
            bench.take_task(),
            Some(MaintenanceTask::Heartbeat { serving: false })
        );
        bench.answer_heartbeat(Control::default());
        assert_eq!(
            bench.take_task(),
            Some(MaintenanceTask::Heartbeat { serving: true })
        );
        bench.answer_heartbeat(Control::default());
        assert_eq!(bench.take_task(), Some(MaintenanceTask::CheckPublication));
        bench.done(TaskOutcome::Publication(ALL_PUBLISHED));
        if let Some(MaintenanceTask::Reconcile(_)) = bench.take_task() {
            bench.done(TaskOutcome::Reconciled(Vec::new()));
        }
        bench.asked.clear();
        bench
    }

    /// … and Realtime is live.
    pub(super) fn live(rows: &[RowRead]) -> Self {
        let mut bench = Self::paced(rows.to_vec());
        bench.input(Input::Realtime(RealtimeEvent::Live(Transport::Changes)));
        assert_eq!(
            bench.take_read(),
            Some(ReadRequest::All),
            "a live subscription is followed by a sync"
        );
        bench.answer_read(rows.to_vec());
        bench
    }

    pub(super) fn input(&mut self, input: Input) {
        self.agent.handle(input, self.now);
        while let Some(action) = self.agent.poll_action() {
            self.asked.push_back(action);
        }
    }

    pub(super) fn round_trip(&self) -> RoundTrip {
        let db = DbTime::from_micros(T0 + self.db_offset_us + self.now.as_micros());
        RoundTrip {
            sent: self.now,
            db,
            received: self.now,
        }
    }

    pub(super) fn answer_read(&mut self, rows: Vec<RowRead>) {
        self.answer_read_at(rows, None);
    }

    /// … with this watermark.
    pub(super) fn answer_read_at(&mut self, rows: Vec<RowRead>, watermark: Option<u64>) {
        let watermark = watermark.map(XidWatermark);
        self.answer_found(ReadResult {
            rows,
            watermark,
            ..ReadResult::default()
        });
    }

    pub(super) fn answer_found(&mut self, found: ReadResult) {
        let round_trip = self.round_trip();
        self.input(Input::Answer(Answer::Read(Ok(found)), Some(round_trip)));
        self.answer_publication_checks();
    }

    /// After each sync the agent checks what Realtime publishes.
    fn answer_publication_checks(&mut self) {
        let check = |action: &Action| {
            matches!(action, Action::Maintain(MaintenanceTask::CheckPublication)).then_some(())
        };
        while self.take(check).is_some() {
            self.done(TaskOutcome::Publication(self.published));
        }
    }

    pub(super) fn done(&mut self, outcome: TaskOutcome) {
        if let TaskOutcome::Publication(published) = &outcome {
            self.published = *published;
        }
        let round_trip = self.round_trip();
        self.input(Input::Answer(
            Answer::Maintained(Ok(outcome)),
            Some(round_trip),
        ));
    }

    pub(super) fn answer_heartbeat(&mut self, control: Control) {
        self.done(TaskOutcome::Heartbeat(control, self.peers.clone()));
    }

    pub(super) fn stored(&mut self, rows: impl IntoIterator<Item = Uuid>) {
        let round_trip = self.round_trip();
        let rows = rows.into_iter().collect();
        let outcome = BatchOutcome::Committed(rows);
        self.input(Input::Answer(Answer::Stored(outcome), Some(round_trip)));
    }

    pub(super) fn fail_batch(&mut self, failure: Failure) {
        let outcome = BatchOutcome::Failed(failure);
        self.input(Input::Answer(Answer::Stored(outcome), None));
    }

    pub(super) fn batch_unsent(&mut self, failure: Failure) {
        let outcome = BatchOutcome::Unsent(failure);
        self.input(Input::Answer(Answer::Stored(outcome), None));
    }

    pub(super) fn fail_read(&mut self, failure: Failure) {
        self.input(Input::Answer(Answer::Read(Err(failure)), None));
    }

    pub(super) fn fail_task(&mut self, failure: Failure) {
        self.input(Input::Answer(Answer::Maintained(Err(failure)), None));
    }

    pub(super) fn take<T>(&mut self, wanted: impl Fn(&Action) -> Option<T>) -> Option<T> {
        let at = self
            .asked
            .iter()
            .position(|action| wanted(action).is_some())?;
        self.asked.remove(at).as_ref().and_then(wanted)
    }

    pub(super) fn take_read(&mut self) -> Option<ReadRequest> {
        self.take(|action| {
            if let Action::Read(what) = action {
                Some(what.clone())
            } else {
                None
            }
        })
    }

    pub(super) fn take_batch(&mut self) -> Option<Batch> {
        self.take(|action| {
            if let Action::Store(batch) = action {
                Some(batch.clone())
            } else {
                None
            }
        })
    }

    pub(super) fn take_task(&mut self) -> Option<MaintenanceTask> {
        self.take(|action| {
            if let Action::Maintain(task) = action {
                Some(task.clone())
            } else {
                None
            }
        })
    }

    pub(super) fn take_reconnect(&mut self) -> Option<Reconnect> {
        self.take(|action| {
            if let Action::Reconnect(_, reconnect) = action {
                Some(*reconnect)
            } else {
                None
            }
        })
    }

    pub(super) fn events(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        while let Some(event) = self.take(|action| {
            if let Action::Emit(event) = action {
                Some(event.clone())
            } else {
                None
            }
        }) {
            events.push(event);
        }
        events
    }

    pub(super) fn at(seconds: f64) -> Mono {
        Mono::from_micros(0).plus(Duration::from_secs_f64(seconds))
    }

    /// Lets time pass to this second, from deadline to deadline; heartbeats are answered on the way.
    pub(super) fn pass_to(&mut self, seconds: f64) {
        self.answer_heartbeats();
        let end = Self::at(seconds);
        let mut idle_ticks = 0;
        while let Some((at, why)) = self
            .agent
            .next_deadline(self.now)
            .filter(|(at, _)| *at <= end)
        {
            idle_ticks = if at > self.now { 0 } else { idle_ticks + 1 };
            assert!(idle_ticks < 10, "it spins for: {why}");
            self.now = self.now.max(at);
            self.input(Input::Tick);
            self.answer_heartbeats();
            self.answer_publication_checks();
        }
        self.now = end;
    }

    /// Lets time pass to this second; tasks are answered at once, nothing else is.
    pub(super) fn keep_until(&mut self, seconds: f64) {
        let end = Self::at(seconds);
        while self.now < end {
            self.now = self.now.plus(Duration::from_millis(10)).min(end);
            self.input(Input::Tick);
            while let Some(task) = self.take_task() {
                let outcome = match task {
                    MaintenanceTask::Heartbeat { serving } => {
                        self.serving = Some(serving);
                        TaskOutcome::Heartbeat(self.agent.schedule.control(), self.peers.clone())
                    }
                    MaintenanceTask::WriteBack(rows) => {
                        self.written.extend(rows);
                        TaskOutcome::WroteBack(Vec::new())
                    }
                    MaintenanceTask::Reconcile(_) => {
                        self.reconciled += 1;
                        TaskOutcome::Reconciled(self.differences.clone())
                    }
                    MaintenanceTask::CheckPublication => TaskOutcome::Publication(self.published),
                    MaintenanceTask::Canary(_) => TaskOutcome::Canary,
                    MaintenanceTask::Initialise => TaskOutcome::Initialised(0),
                    MaintenanceTask::MarkInvalid(..) => TaskOutcome::MarkedInvalid(true),
                };
                self.done(outcome);
            }
        }
    }

    /// … and batches are stored, and their rows returned.
    pub(super) fn store_until(&mut self, seconds: f64) -> Vec<Uuid> {
        let mut rows = Vec::new();
        let end = Self::at(seconds);
        while self.now < end {
            let next = self.now.plus(Duration::from_millis(10)).min(end);
            self.keep_until(Duration::from_micros(next.as_micros().unsigned_abs()).as_secs_f64());
            while let Some(batch) = self.take_batch() {
                let stored: Vec<Uuid> = batch.rows.iter().map(|row| row.id).collect();
                self.stored(stored.clone());
                rows.extend(stored);
            }
        }
        rows
    }

    pub(super) fn answer_heartbeats(&mut self) {
        let beat = |action: &Action| match action {
            Action::Maintain(MaintenanceTask::Heartbeat { serving }) => Some(*serving),
            _ => None,
        };
        while let Some(serving) = self.take(beat) {
            self.serving = Some(serving);
            let control = self.agent.schedule.control();
            self.answer_heartbeat(control);
        }
    }

    /// Lets time pass until the agent asks for such a task; batches that it asks for meanwhile are stored.
    pub(super) fn pass_until_task(
        &mut self,
        seconds: f64,
        wanted: impl Fn(&MaintenanceTask) -> bool,
    ) -> Option<MaintenanceTask> {
        let end = Self::at(seconds);
        while self.now < end {
            while let Some(batch) = self.take_batch() {
                self.stored(batch.rows.iter().map(|row| row.id));
            }
            self.answer_heartbeats();
            self.answer_publication_checks();
            if let Some(task) = self.take(|action| {
                if let Action::Maintain(task) = action {
                    wanted(task).then(|| task.clone())
                } else {
                    None
                }
            }) {
                return Some(task);
            }
            let (at, _) = self.agent.next_deadline(self.now)?;
            self.now = self.now.max(at).min(end);
            self.input(Input::Tick);
        }
        None
    }
}
