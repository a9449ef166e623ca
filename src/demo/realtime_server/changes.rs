//! The task that reads row changes and sends them to subscribers.
//!
//! Owns the subscriptions and the slot. When Postgres is unavailable the task opens a new slot with back-off, without limit: an
//! existing subscription sees nothing of it, a new one fails with the real server's message. It knows no frames: events go to
//! a client's [`PushSender`].
//!
//! Invariants: transactions arrive in commit order and their rows in the order they were made; `Subscribed` comes before the
//! first change of a subscription; a client that does not keep up is dropped and delays nobody else.

use std::{collections::HashMap, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{
    sync::{mpsc::Receiver, oneshot},
    task::yield_now,
    time::{Instant, sleep, timeout},
};

use super::{
    binding::Target,
    broadcast::{BroadcastMessage, TopicSubscription},
    faults::{Disorder, Faults},
    options::RealtimeOptions,
    payload::{PublishedTable, RowChange},
    push::{PushEvent, PushSender},
    session::{ReadPermission, SubscriptionRequest},
    slot::{ResolveError, Slot, SlotError, TableMatch, not_enabled},
};
use crate::demo::pgoutput::{self, DecodeError, Relation, RowOperation, WalMessage};
use crate::domain::transport::Transport;

/// The size of the task's request queue.
pub const REQUEST_QUEUE: usize = 1_024;

/// The pause between two reads of a slot that has nothing new.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// A slow read is followed by a pause of this many times its duration: each read decodes from the slot's restart position
/// again, and must not use up the CPU.
const POLL_REST: u32 = 2;

/// The pauses before a lost slot is opened again.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// The real server's message where it has no connection.
const UNABLE_TO_CONNECT: &str = "Realtime was unable to connect to the project database";

/// Rows that are processed before other tasks get a turn.
const ROWS_PER_TURN: usize = 64;

/// A request of a connection.
pub enum ReaderRequest {
    /// Subscribe a channel, or again after its token has changed.
    Subscribe(SubscriptionRequest, PushSender),
    /// Whether the policies on `realtime.messages` let a role read a private topic.
    Authorize {
        topic: String,
        role: String,
        answer: oneshot::Sender<ReadPermission>,
    },
    /// Let a channel receive the messages of a topic, and answer once it does.
    Listen(TopicSubscription, PushSender, oneshot::Sender<()>),
    /// Forget a channel.
    Unsubscribe(u64),
}

struct Subscription {
    request: SubscriptionRequest,
    sender: PushSender,
    matches: Vec<(Target, TableMatch)>,
}

struct TopicListener {
    listening: TopicSubscription,
    sender: PushSender,
}

/// An event that is ready for a client, before faults.
#[derive(Clone)]
struct PendingEvent {
    table: Arc<str>,
    sender: PushSender,
    generation: u64,
    event: PushEvent,
}

/// Why a slot was lost.
#[derive(Debug, Error)]
enum SlotLost {
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("pgoutput sent a row before its transaction or its table")]
    OutOfOrder,
}

/// The task's state; [`ChangeReader::run`] is the task.
pub struct ChangeReader {
    options: Arc<RealtimeOptions>,
    faults: Faults,
    requests: Receiver<ReaderRequest>,
    subscriptions: Vec<Subscription>,
    listeners: Vec<TopicListener>,
    disorder: Disorder<PendingEvent>,
}

/// The tables that the slot has described so far.
#[derive(Default)]
struct KnownTables(HashMap<u32, (Relation, PublishedTable)>);

impl ChangeReader {
    /// A task that answers `requests`.
    pub fn new(
        options: Arc<RealtimeOptions>,
        faults: Faults,
        requests: Receiver<ReaderRequest>,
    ) -> Self {
        Self {
            options,
            faults,
            requests,
            subscriptions: Vec::new(),
            listeners: Vec::new(),
            disorder: Disorder::new(),
        }
    }

    /// Reads and delivers changes until the server stops.
    pub async fn run(mut self) {
        let mut pause = RETRY_MIN;
        loop {
            let name = format!("demo_realtime_{:016x}", rand::random::<u64>());
            let lost = match Slot::open(self.options.database_url.expose(), name).await {
                Err(error) => SlotLost::from(error),
                Ok(slot) => {
                    pause = RETRY_MIN;
                    let Err(lost) = self.follow(slot).await else {
                        return;
                    };
                    lost
                }
            };
            // Once per outage; a publication that does not exist yet is no outage.
            if pause == RETRY_MIN && !matches!(lost, SlotLost::Slot(SlotError::NoPublication)) {
                tracing::warn!(%lost, "no replication slot, retrying; changes are lost until then");
            } else {
                tracing::debug!(%lost, ?pause, "no replication slot, retrying");
            }
            if !self.wait(pause, &lost).await {
                return;
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Waits, and answers requests without a slot. False when the server stops.
    async fn wait(&mut self, pause: Duration, lost: &SlotLost) -> bool {
        let until = sleep(pause);
        tokio::pin!(until);
        loop {
            let request = tokio::select! {
                () = &mut until => return true,
                request = self.requests.recv() => request,
            };
            // Whoever waits for an answer may be gone.
            match request {
                None => return false,
                Some(ReaderRequest::Unsubscribe(generation)) => self.forget(generation),
                Some(ReaderRequest::Authorize { answer, .. }) => {
                    let _is_waiting = answer.send(ReadPermission::Unknown).is_ok();
                }
                Some(ReaderRequest::Listen(listening, sender, listens)) => {
                    self.listeners.push(TopicListener { listening, sender });
                    let _is_waiting = listens.send(()).is_ok();
                }
                Some(ReaderRequest::Subscribe(request, sender)) => {
                    self.forget(request.generation);
                    let message = match (lost, request.targets.first()) {
                        (SlotLost::Slot(SlotError::NoPublication), Some(target)) => {
                            not_enabled(target).to_string()
                        }
                        _ => UNABLE_TO_CONNECT.to_owned(),
                    };
                    sender.put(request.generation, PushEvent::Failed(message));
                }
            }
        }
    }

    /// Delivers changes while the slot lasts; returns `Ok` when the server stops.
    async fn follow(&mut self, mut slot: Slot) -> Result<(), SlotLost> {
        let mut tables = KnownTables::default();
        let mut published = slot.published().await?;
        let mut next_check = Instant::now() + self.options.limits.publication_check;
        let mut next_cleaning = Instant::now();
        let mut pause = Duration::ZERO;
        loop {
            match timeout(pause, self.requests.recv()).await {
                Ok(None) => return Ok(()),
                Ok(Some(request)) => self.answer(request, &mut slot).await?,
                Err(_) => {}
            }
            if Instant::now() >= next_check {
                next_check = Instant::now() + self.options.limits.publication_check;
                let now_published = slot.published().await?;
                if now_published != published {
                    published = now_published;
                    self.subscribe_all_again(&mut slot).await?;
                }
            }
            if Instant::now() >= next_cleaning {
                next_cleaning = Instant::now() + self.options.limits.cleaning;
                slot.clean().await;
            }
            let began = Instant::now();
            let messages = slot.read().await?;
            let took = began.elapsed();
            pause = if messages.is_empty() {
                POLL_INTERVAL.max(took * POLL_REST)
            } else {
                took
            };
            self.process(&messages, &mut tables, &mut slot).await?;
            for event in self.disorder.due(Instant::now()) {
                self.deliver(event);
            }
            self.subscriptions
                .retain(|subscription| !subscription.sender.is_closed());
            self.listeners
                .retain(|listener| !listener.sender.is_closed());
            self.faults.count_subscribers(self.subscriptions.len());
        }
    }

    async fn answer(&mut self, request: ReaderRequest, slot: &mut Slot) -> Result<(), SlotError> {
        match request {
            ReaderRequest::Unsubscribe(generation) => self.forget(generation),
            ReaderRequest::Subscribe(request, sender) => {
                self.subscribe(request, sender, slot).await?;
            }
            ReaderRequest::Authorize {
                topic,
                role,
                answer,
            } => {
                let _is_waiting = answer.send(slot.may_read(&topic, &role).await).is_ok();
            }
            ReaderRequest::Listen(listening, sender, listens) => {
                self.listen(listening, sender, slot).await?;
                let _is_waiting = listens.send(()).is_ok();
            }
        }
        Ok(())
    }

    async fn listen(
        &mut self,
        listening: TopicSubscription,
        sender: PushSender,
        slot: &mut Slot,
    ) -> Result<(), SlotError> {
        let generation = listening.generation;
        if let Some(replay) = listening.replay {
            for message in slot.stored(&listening.topic.name, replay).await? {
                sender.put(generation, PushEvent::Broadcast(message));
            }
        }
        if listening.announce_ready && slot.reads_messages() {
            sender.put(generation, PushEvent::BroadcastsReady);
        }
        self.listeners.push(TopicListener { listening, sender });
        Ok(())
    }

    async fn subscribe(
        &mut self,
        request: SubscriptionRequest,
        sender: PushSender,
        slot: &mut Slot,
    ) -> Result<(), SlotError> {
        let generation = request.generation;
        self.forget(generation);
        let mut matches = Vec::new();
        for target in &request.targets {
            match slot.resolve(target, &request.role).await {
                Ok(found) => matches.extend(found.into_iter().map(|found| (target.clone(), found))),
                Err(ResolveError::Target(message)) => {
                    sender.put(generation, PushEvent::Failed(message));
                    return Ok(());
                }
                Err(ResolveError::Slot(error)) => {
                    sender.put(generation, PushEvent::Failed(UNABLE_TO_CONNECT.to_owned()));
                    return Err(error);
                }
            }
        }
        sender.put(generation, PushEvent::Subscribed);
        self.subscriptions.push(Subscription {
            request,
            sender,
            matches,
        });
        self.faults.count_subscribers(self.subscriptions.len());
        Ok(())
    }

    /// After the published tables have changed: each subscription is made again, and its client gets the outcome.
    async fn subscribe_all_again(&mut self, slot: &mut Slot) -> Result<(), SlotError> {
        for subscription in std::mem::take(&mut self.subscriptions) {
            self.subscribe(subscription.request, subscription.sender, slot)
                .await?;
        }
        Ok(())
    }

    fn forget(&mut self, generation: u64) {
        self.subscriptions
            .retain(|subscription| subscription.request.generation != generation);
        self.listeners
            .retain(|listener| listener.listening.generation != generation);
        self.faults.count_subscribers(self.subscriptions.len());
    }

    async fn process(
        &mut self,
        messages: &[Vec<u8>],
        tables: &mut KnownTables,
        slot: &mut Slot,
    ) -> Result<(), SlotLost> {
        let mut transaction = None;
        for (index, message) in messages.iter().enumerate() {
            if index % ROWS_PER_TURN == ROWS_PER_TURN - 1 {
                yield_now().await;
            }
            match pgoutput::decode(message)? {
                WalMessage::Begin { committed_at } => transaction = Some(committed_at),
                WalMessage::Relation(relation) => tables.learn(relation, slot).await?,
                WalMessage::Ignored => {}
                WalMessage::Row(row) => {
                    let committed_at = transaction.ok_or(SlotLost::OutOfOrder)?;
                    let (_, table) = tables.0.get(&row.relation).ok_or(SlotLost::OutOfOrder)?;
                    self.faults.count_read(&table.name);
                    self.route(&RowChange {
                        table,
                        row: &row,
                        committed_at,
                    });
                }
            }
        }
        Ok(())
    }

    /// Creates the events of one change, one for each listener and subscriber.
    fn route(&mut self, change: &RowChange<'_>) {
        let table: Arc<str> = change.table.name.as_str().into();
        let mut events = Vec::new();
        let mut add = |sender: &PushSender, generation, event| {
            events.push(PendingEvent {
                table: Arc::clone(&table),
                sender: sender.clone(),
                generation,
                event,
            });
        };
        if let Some((topic, message)) = BroadcastMessage::of_row(change) {
            for TopicListener { listening, sender } in &self.listeners {
                if listening.topic == topic {
                    let event = PushEvent::Broadcast(message.clone());
                    add(sender, listening.generation, event);
                }
            }
        }
        // The event's data for roles that may read the table, and for others; each is rendered once.
        let mut rendered: [Option<Arc<str>>; 2] = [None, None];
        for subscription in &self.subscriptions {
            let matches = subscription.matches.iter();
            let matching = matches.filter(|(target, found)| wants(target, *found, change));
            let matching: Vec<_> = matching.collect();
            let Some((_, TableMatch { authorized, .. })) = matching.first() else {
                continue;
            };
            let mut ids: Vec<u32> = matching.iter().map(|(target, _)| target.id).collect();
            ids.sort_unstable();
            ids.dedup();
            let [hidden, shown] = &mut rendered;
            let data = if *authorized { shown } else { hidden }
                .get_or_insert_with(|| change.data(*authorized).into());
            let event = PushEvent::Changed {
                data: Arc::clone(data),
                ids: ids.into(),
            };
            add(&subscription.sender, subscription.request.generation, event);
        }
        let (fault, now) = (self.faults.event_fault(), Instant::now());
        for event in events {
            for event in self.disorder.pass(event, fault, now) {
                self.deliver(event);
            }
        }
    }

    fn deliver(&self, pending: PendingEvent) {
        let transport = if matches!(pending.event, PushEvent::Broadcast(_)) {
            Transport::Broadcast
        } else {
            Transport::Changes
        };
        if !self.faults.is_withheld(transport) && !self.faults.is_deaf(pending.generation) {
            self.faults.count_delivered(&pending.table);
            pending.sender.put(pending.generation, pending.event);
        }
    }
}

impl KnownTables {
    /// Takes a relation message; the catalogue is queried only when the table has changed.
    async fn learn(&mut self, relation: Relation, slot: &mut Slot) -> Result<(), SlotError> {
        let is_known = self
            .0
            .get(&relation.oid)
            .is_some_and(|(known, _)| *known == relation);
        if !is_known {
            let table = slot.describe(&relation).await?;
            self.0.insert(relation.oid, (relation, table));
        }
        Ok(())
    }
}

fn wants(target: &Target, found: TableMatch, change: &RowChange<'_>) -> bool {
    let operation = change.row.operation;
    found.relation == change.row.relation
        && target.operation.is_none_or(|wanted| wanted == operation)
        && (operation == RowOperation::Delete || !found.deletes_only || !found.authorized)
}
