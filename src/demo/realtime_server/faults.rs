//! Fault injection for tests: the switches, and what they do to events.
//!
//! Owns no task: the server's tasks read the switches. All are off at first and outlive a stop and start of the server.
//!
//! Invariant: at most [`MAX_HELD`] events are held back; beyond that the oldest is delivered.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use crate::domain::transport::{PerTransport, Transport};

/// Events held back at most.
const MAX_HELD: usize = 100_000;

/// How long an event waits to be overtaken by a later one.
const REORDER_PATIENCE: Duration = Duration::from_millis(200);

/// What happens to events on their way to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EventFault {
    /// Nothing: each is delivered once, in order, at once.
    #[default]
    None,
    /// They are lost.
    Drop,
    /// Each is delivered twice.
    Duplicate,
    /// Each is delivered this much later.
    Delay(Duration),
    /// Each second one overtakes the one before it.
    Reorder,
}

/// Which channels receive nothing, though joins and heartbeats are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Deafness {
    /// None.
    #[default]
    None,
    /// Those that were joined before now; a rejoin receives events again.
    UntilRejoin,
    /// All.
    All,
}

/// How a connecting client is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The connection is reset.
    Reset,
    /// An HTTP answer with `{"error": message}`.
    Http {
        /// The status, such as 429.
        status: u16,
        /// The message.
        message: String,
    },
}

/// How open connections end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severance {
    /// Close code 1012, service restart.
    Restart,
    /// TCP reset, no close frame.
    Abrupt,
}

/// What the server did since it was created.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerCounts {
    /// Row changes read from the database, by table name.
    pub read: BTreeMap<String, u64>,
    /// Events queued for clients, by table name: one for each subscriber of each change.
    pub delivered: BTreeMap<String, u64>,
    /// Channels that are subscribed now.
    pub subscribers: usize,
}

/// The switches. Clones share the same switches.
#[derive(Clone)]
pub struct Faults {
    switches: Arc<Mutex<Switches>>,
    counts: watch::Sender<ServerCounts>,
    severed: watch::Sender<Option<Severance>>,
}

#[derive(Default)]
struct Switches {
    events: EventFault,
    refusal: Option<Refusal>,
    all_deaf: bool,
    deaf_below: u64,
    withheld: PerTransport<bool>,
    next_generation: u64,
}

impl Faults {
    pub(super) fn new() -> Self {
        Self {
            switches: Arc::default(),
            counts: watch::Sender::new(ServerCounts::default()),
            severed: watch::Sender::new(None),
        }
    }

    /// What happens to events from now on.
    pub fn set_events(&self, fault: EventFault) {
        self.switches().events = fault;
    }

    /// Which channels are deaf from now on.
    pub fn set_deafness(&self, deafness: Deafness) {
        let mut switches = self.switches();
        switches.all_deaf = deafness == Deafness::All;
        switches.deaf_below = match deafness {
            Deafness::UntilRejoin => switches.next_generation,
            Deafness::None | Deafness::All => 0,
        };
    }

    /// Whether events of one transport are dropped from now on, though joins are answered.
    pub fn withhold(&self, transport: Transport, withheld: bool) {
        *self.switches().withheld.of_mut(transport) = withheld;
    }

    /// Whether and how clients are refused from now on.
    pub fn refuse_connects(&self, refusal: Option<Refusal>) {
        self.switches().refusal = refusal;
    }

    /// Ends every open connection; new ones are accepted.
    pub fn drop_connections(&self, severance: Severance) {
        self.severed.send_replace(Some(severance));
    }

    /// What the server did so far.
    pub fn counts(&self) -> ServerCounts {
        self.counts.borrow().clone()
    }

    /// Events delivered of the table of this name.
    pub fn delivered(&self, table: &str) -> u64 {
        self.counts
            .borrow()
            .delivered
            .get(table)
            .copied()
            .unwrap_or_default()
    }

    /// Channels that are subscribed now.
    pub fn subscribers(&self) -> usize {
        self.counts.borrow().subscribers
    }

    /// The counts, to wait for a change.
    pub fn watch(&self) -> watch::Receiver<ServerCounts> {
        self.counts.subscribe()
    }

    pub(super) fn event_fault(&self) -> EventFault {
        self.switches().events
    }

    pub(super) fn refusal(&self) -> Option<Refusal> {
        self.switches().refusal.clone()
    }

    pub(super) fn is_deaf(&self, generation: u64) -> bool {
        let switches = self.switches();
        switches.all_deaf || generation < switches.deaf_below
    }

    pub(super) fn is_withheld(&self, transport: Transport) -> bool {
        *self.switches().withheld.of(transport)
    }

    pub(super) fn next_generation(&self) -> u64 {
        let mut switches = self.switches();
        let generation = switches.next_generation;
        switches.next_generation = generation.wrapping_add(1);
        generation
    }

    pub(super) fn severed(&self) -> watch::Receiver<Option<Severance>> {
        self.severed.subscribe()
    }

    pub(super) fn count_read(&self, table: &str) {
        self.counts
            .send_modify(|counts| *counts.read.entry(table.to_owned()).or_default() += 1);
    }

    pub(super) fn count_delivered(&self, table: &str) {
        self.counts
            .send_modify(|counts| *counts.delivered.entry(table.to_owned()).or_default() += 1);
    }

    pub(super) fn count_subscribers(&self, subscribers: usize) {
        self.counts.send_if_modified(|counts| {
            let changed = counts.subscribers != subscribers;
            counts.subscribers = subscribers;
            changed
        });
    }

    fn switches(&self) -> MutexGuard<'_, Switches> {
        self.switches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Events that a fault holds back.
pub(super) struct Disorder<T> {
    held: VecDeque<(Instant, T)>,
}

impl<T: Clone> Disorder<T> {
    pub(super) fn new() -> Self {
        Self {
            held: VecDeque::new(),
        }
    }

    /// Takes an event and returns those to deliver now, in order.
    pub(super) fn pass(&mut self, event: T, fault: EventFault, now: Instant) -> Vec<T> {
        match fault {
            EventFault::Drop => Vec::new(),
            EventFault::Delay(delay) => self.hold(event, now + delay),
            EventFault::Reorder => match self.held.pop_front() {
                Some((_, earlier)) => vec![event, earlier],
                None => self.hold(event, now + REORDER_PATIENCE),
            },
            EventFault::None => {
                let mut events = self.release();
                events.push(event);
                events
            }
            EventFault::Duplicate => {
                let mut events = self.release();
                events.extend([event.clone(), event]);
                events
            }
        }
    }

    /// The events that have waited long enough at `now`.
    pub(super) fn due(&mut self, now: Instant) -> Vec<T> {
        let due = self.held.iter().take_while(|(at, _)| *at <= now).count();
        self.held.drain(..due).map(|(_, event)| event).collect()
    }

    fn hold(&mut self, event: T, until: Instant) -> Vec<T> {
        self.held.push_back((until, event));
        let excess = self.held.len().saturating_sub(MAX_HELD);
        self.held.drain(..excess).map(|(_, event)| event).collect()
    }

    fn release(&mut self) -> Vec<T> {
        self.held.drain(..).map(|(_, event)| event).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_fault_events_pass_once_and_in_order() {
        let mut disorder = Disorder::new();
        assert_eq!(disorder.pass(1, EventFault::None, Instant::now()), [1]);
        assert_eq!(disorder.pass(2, EventFault::None, Instant::now()), [2]);
    }

    #[test]
    fn dropped_events_are_gone_and_duplicated_ones_come_twice() {
        let mut disorder = Disorder::new();
        assert_eq!(disorder.pass(1, EventFault::Drop, Instant::now()), [0; 0]);
        assert_eq!(
            disorder.pass(2, EventFault::Duplicate, Instant::now()),
            [2, 2]
        );
    }

    #[test]
    fn delayed_events_come_when_their_time_has_come() {
        let (mut disorder, now) = (Disorder::new(), Instant::now());
        let delay = Duration::from_secs(1);
        assert_eq!(disorder.pass(1, EventFault::Delay(delay), now), [0; 0]);
        assert_eq!(disorder.due(now), [0; 0]);
        assert_eq!(disorder.due(now + delay), [1]);
        assert_eq!(disorder.due(now + delay), [0; 0]);
    }

    #[test]
    fn reordering_lets_the_next_event_overtake_and_keeps_none_for_ever() {
        let (mut disorder, now) = (Disorder::new(), Instant::now());
        assert_eq!(disorder.pass(1, EventFault::Reorder, now), [0; 0]);
        assert_eq!(disorder.pass(2, EventFault::Reorder, now), [2, 1]);
        assert_eq!(disorder.pass(3, EventFault::Reorder, now), [0; 0]);
        assert_eq!(disorder.due(now + REORDER_PATIENCE), [3]);
    }

    #[test]
    fn events_that_were_held_come_before_the_first_after_the_fault() {
        let (mut disorder, now) = (Disorder::new(), Instant::now());
        disorder.pass(1, EventFault::Delay(Duration::from_secs(9)), now);
        assert_eq!(disorder.pass(2, EventFault::None, now), [1, 2]);
    }

    #[test]
    fn only_channels_joined_before_are_deaf_until_they_rejoin() {
        let faults = Faults::new();
        let before = faults.next_generation();
        faults.set_deafness(Deafness::UntilRejoin);
        let after = faults.next_generation();
        assert!(faults.is_deaf(before));
        assert!(!faults.is_deaf(after));
        faults.set_deafness(Deafness::None);
        assert!(!faults.is_deaf(before));
    }
}
