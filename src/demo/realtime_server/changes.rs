//! The one task that reads row changes and hands them to subscribers.
//!
//! Owns the subscriptions, the slot and its loss. Postgres gone means a new slot with back-off, for
//! ever: whoever is subscribed then sees nothing of it, and whoever subscribes then is told. It
//! knows no frames: what it says to a client goes into that client's [`Outbox`].
//!
//! Invariants: transactions arrive in commit order and their rows in the order they were made;
//! `Subscribed` comes before the first change of a subscription; a client that does not keep up is
//! dropped and holds up nobody else.

use std::{collections::HashMap, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{
    sync::{mpsc::Receiver, oneshot},
    task::yield_now,
    time::{Instant, sleep, timeout},
};

use super::{
    Options,
    binding::{ChangeKind, Target},
    broadcast::{Listening, Message},
    faults::{Disorder, Faults},
    outbox::Outbox,
    payload::{RowChange, Table, View},
    session::{News, Push, Verdict, Wanted},
    slot::{Match, Refused, Slot, SlotError, not_enabled},
};
use crate::demo::pgoutput::{self, DecodeError, Message as Logged, Relation};
use crate::domain::transport::Transport;

/// Requests that wait for the task.
pub const REQUEST_QUEUE: usize = 1_024;

/// The pause between two reads of a slot that has nothing new.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// After a read that took long, a pause of this many times as long: decoding starts at the slot's
/// restart position again each time, and must not eat the machine.
const POLL_REST: u32 = 2;

/// The pauses before a lost slot is made again.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Rows handed out before other tasks get a turn.
const ROWS_PER_TURN: usize = 64;

/// What a connection asks of the task.
pub enum Request {
    /// Subscribe a channel, or again after its token has changed.
    Subscribe(Wanted, Outbox),
    /// Ask whether the policies on `realtime.messages` let a role read a private topic.
    Authorize {
        topic: String,
        role: String,
        answer: oneshot::Sender<Verdict>,
    },
    /// Let a channel hear a topic, and say when it does.
    Listen(Listening, Outbox, oneshot::Sender<()>),
    /// Forget a channel.
    Unsubscribe(u64),
}

struct Subscription {
    wanted: Wanted,
    outbox: Outbox,
    /// The targets that were found, as they were asked for.
    matches: Vec<(Target, Match)>,
}

struct Listener {
    listening: Listening,
    outbox: Outbox,
}

/// An event that is ready, before faults.
#[derive(Clone)]
struct Event {
    table: Arc<str>,
    outbox: Outbox,
    push: Push,
}

/// Why a slot had to be given up.
#[derive(Debug, Error)]
enum Lost {
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("pgoutput sent {0} before what it belongs to; the slot is made anew")]
    OutOfOrder(&'static str),
}

/// The task's state; [`Changes::run`] is the task.
pub struct Changes {
    options: Arc<Options>,
    faults: Faults,
    requests: Receiver<Request>,
    subscriptions: Vec<Subscription>,
    listeners: Vec<Listener>,
    disorder: Disorder<Event>,
}

/// What was learnt of the tables since the slot was made.
#[derive(Default)]
struct Tables {
    known: HashMap<u32, (Relation, Arc<Table>)>,
}

impl Changes {
    /// A task that answers `requests`.
    pub fn new(options: Arc<Options>, faults: Faults, requests: Receiver<Request>) -> Self {
        let disorder = Disorder::new();
        Self {
            options,
            faults,
            requests,
            subscriptions: Vec::new(),
            listeners: Vec::new(),
            disorder,
        }
    }

    /// Reads and hands out changes until nobody can ask any more.
    pub async fn run(mut self) {
        let mut pause = RETRY_MIN;
        loop {
            let name = format!("demo_realtime_{:016x}", rand::random::<u64>());
            let url = &self.options.database_url;
            let lost = match Slot::open(url.expose(), &self.options.publication, name).await {
                Err(error) => Lost::from(error),
                Ok(slot) => {
                    pause = RETRY_MIN;
                    let Err(lost) = self.follow(slot).await else {
                        return;
                    };
                    lost
                }
            };
            // Once an outage; a publication that comes later is no outage.
            if pause == RETRY_MIN && !matches!(lost, Lost::Slot(SlotError::NoPublication(_))) {
                tracing::warn!(%lost, "realtime stand-in: changes are lost until Postgres is back");
            } else {
                tracing::debug!(%lost, ?pause, "realtime stand-in: no slot");
            }
            if !self.wait(pause, &lost).await {
                return;
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Waits, and tells whoever asks meanwhile why it cannot be. False when nobody can ask any
    /// more.
    async fn wait(&mut self, pause: Duration, lost: &Lost) -> bool {
        let until = sleep(pause);
        tokio::pin!(until);
        loop {
            let request = tokio::select! {
                () = &mut until => return true,
                request = self.requests.recv() => request,
            };
            match request {
                None => return false,
                Some(Request::Unsubscribe(generation)) => self.forget(generation),
                // Who asked may be gone.
                Some(Request::Authorize { answer, .. }) => {
                    let _hears = answer.send(Verdict::Unknown).is_ok();
                }
                Some(Request::Listen(listening, outbox, heard)) => {
                    self.listeners.push(Listener { listening, outbox });
                    let _hears = heard.send(()).is_ok();
                }
                Some(Request::Subscribe(wanted, outbox)) => {
                    self.forget(wanted.generation);
                    let message = match (lost, wanted.targets.first()) {
                        (Lost::Slot(SlotError::NoPublication(_)), Some(target)) => {
                            not_enabled(target).to_string()
                        }
                        _ => "Realtime was unable to connect to the project database".to_owned(),
                    };
                    let generation = wanted.generation;
                    outbox.put(Push {
                        generation,
                        news: News::Failed(message),
                    });
                }
            }
        }
    }

    /// Hands out changes while the slot lasts; ends well when nobody can ask any more.
    async fn follow(&mut self, mut slot: Slot) -> Result<(), Lost> {
        let mut tables = Tables::default();
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
            let asked_at = Instant::now();
            let messages = slot.read().await?;
            let took = asked_at.elapsed();
            pause = if messages.is_empty() {
                POLL_INTERVAL.max(took * POLL_REST)
            } else {
                took
            };
            self.hand_out(&messages, &mut tables, &mut slot).await?;
            for event in self.disorder.due(Instant::now()) {
                self.deliver(event);
            }
            self.subscriptions
                .retain(|subscription| !subscription.outbox.is_closed());
            self.listeners
                .retain(|listener| !listener.outbox.is_closed());
            self.faults.count_subscribers(self.subscriptions.len());
        }
    }

    async fn answer(&mut self, request: Request, slot: &mut Slot) -> Result<(), Lost> {
        match request {
            Request::Unsubscribe(generation) => self.forget(generation),
            Request::Subscribe(wanted, outbox) => self.subscribe(wanted, outbox, slot).await?,
            Request::Authorize {
                topic,
                role,
                answer,
            } => {
                let _hears = answer.send(slot.may_read(&topic, &role).await).is_ok();
            }
            Request::Listen(listening, outbox, heard) => {
                self.listen(listening, outbox, slot).await?;
                let _hears = heard.send(()).is_ok();
            }
        }
        Ok(())
    }

    async fn listen(
        &mut self,
        listening: Listening,
        outbox: Outbox,
        slot: &mut Slot,
    ) -> Result<(), SlotError> {
        let stored = match listening.replay {
            Some(replay) => slot.stored(&listening.topic.name, replay).await?,
            None => Vec::new(),
        };
        let told = stored.into_iter().map(News::Broadcast);
        let ready = slot.reads_messages() && listening.readiness;
        for news in told.chain(ready.then_some(News::BroadcastsAreRead)) {
            outbox.put(Push {
                generation: listening.generation,
                news,
            });
        }
        self.listeners.push(Listener { listening, outbox });
        Ok(())
    }

    async fn subscribe(
        &mut self,
        wanted: Wanted,
        outbox: Outbox,
        slot: &mut Slot,
    ) -> Result<(), SlotError> {
        let generation = wanted.generation;
        self.forget(generation);
        let mut matches = Vec::new();
        for target in &wanted.targets {
            match slot.resolve(target, &wanted.role).await {
                Ok(found) => matches.extend(found.into_iter().map(|found| (target.clone(), found))),
                Err(Refused::Target(message)) => {
                    outbox.put(Push {
                        generation,
                        news: News::Failed(message),
                    });
                    return Ok(());
                }
                Err(Refused::Slot(error)) => {
                    let message = "Realtime was unable to connect to the project database";
                    outbox.put(Push {
                        generation,
                        news: News::Failed(message.to_owned()),
                    });
                    return Err(error);
                }
            }
        }
        outbox.put(Push {
            generation,
            news: News::Subscribed,
        });
        self.subscriptions.push(Subscription {
            wanted,
            outbox,
            matches,
        });
        self.faults.count_subscribers(self.subscriptions.len());
        Ok(())
    }

    /// The published tables have changed: each subscription is made again, and its client told.
    async fn subscribe_all_again(&mut self, slot: &mut Slot) -> Result<(), SlotError> {
        for Subscription { wanted, outbox, .. } in std::mem::take(&mut self.subscriptions) {
            self.subscribe(wanted, outbox, slot).await?;
        }
        Ok(())
    }

    fn forget(&mut self, generation: u64) {
        self.subscriptions
            .retain(|subscription| subscription.wanted.generation != generation);
        self.listeners
            .retain(|listener| listener.listening.generation != generation);
        self.faults.count_subscribers(self.subscriptions.len());
    }

    async fn hand_out(
        &mut self,
        messages: &[Vec<u8>],
        tables: &mut Tables,
        slot: &mut Slot,
    ) -> Result<(), Lost> {
        let mut committed_at = None;
        for (index, message) in messages.iter().enumerate() {
            if index % ROWS_PER_TURN == ROWS_PER_TURN - 1 {
                yield_now().await;
            }
            let (relation, kind, new, old) = match pgoutput::decode(message)? {
                Logged::Begin {
                    committed_at: at, ..
                } => {
                    committed_at = Some(at);
                    continue;
                }
                Logged::Relation(relation) => {
                    tables.learn(relation, slot).await?;
                    continue;
                }
                Logged::Insert { relation, new } => (relation, ChangeKind::Insert, Some(new), None),
                Logged::Update { relation, old, new } => {
                    (relation, ChangeKind::Update, Some(new), old)
                }
                Logged::Delete { relation, old } => (relation, ChangeKind::Delete, None, Some(old)),
                Logged::Commit { .. }
                | Logged::Origin { .. }
                | Logged::Type { .. }
                | Logged::Truncate { .. } => continue,
            };
            let committed_at = committed_at.ok_or(Lost::OutOfOrder("a row"))?;
            let table = tables.table(relation).ok_or(Lost::OutOfOrder("a row"))?;
            self.faults.count_read(&table.name);
            let (table, new, old) = (&*table, new.as_ref(), old.as_ref());
            self.route(
                relation,
                &RowChange {
                    table,
                    kind,
                    new,
                    old,
                    committed_at,
                },
            );
        }
        Ok(())
    }

    /// Makes the events of one change, one for each subscriber and each view of the row.
    fn route(&mut self, relation: u32, change: &RowChange<'_>) {
        let mut rendered: Vec<(View<'_>, Arc<str>)> = Vec::new();
        let mut events = self.broadcasts(change);
        for subscription in &self.subscriptions {
            let mut views: Vec<(View<'_>, Vec<u32>)> = Vec::new();
            for (target, found) in &subscription.matches {
                if found.relation == relation && wants(target, found, change) {
                    let select = target.select.as_deref();
                    let view = View {
                        authorized: found.authorized,
                        select,
                    };
                    match views.iter_mut().find(|(known, _)| *known == view) {
                        Some((_, ids)) => ids.push(target.id),
                        None => views.push((view, vec![target.id])),
                    }
                }
            }
            for (view, mut ids) in views {
                ids.sort_unstable();
                ids.dedup();
                let known = rendered.iter().find(|(known, _)| *known == view);
                let data = if let Some((_, data)) = known {
                    Arc::clone(data)
                } else {
                    let data: Arc<str> = change.data(view).into();
                    rendered.push((view, Arc::clone(&data)));
                    data
                };
                let generation = subscription.wanted.generation;
                events.push(Event {
                    table: change.table.name.as_str().into(),
                    outbox: subscription.outbox.clone(),
                    push: Push {
                        generation,
                        news: News::Changed {
                            data,
                            ids: ids.into(),
                        },
                    },
                });
            }
        }
        let (fault, now) = (self.faults.event_fault(), Instant::now());
        for event in events {
            for event in self.disorder.pass(event, fault, now) {
                self.deliver(event);
            }
        }
    }

    /// Makes the events of a message, one for each who listens to its topic.
    fn broadcasts(&self, change: &RowChange<'_>) -> Vec<Event> {
        let Some((topic, message)) = Message::of_row(change) else {
            return Vec::new();
        };
        let table: Arc<str> = change.table.name.as_str().into();
        let listens = |listener: &&Listener| listener.listening.topic == topic;
        let event = |listener: &Listener| Event {
            table: Arc::clone(&table),
            outbox: listener.outbox.clone(),
            push: Push {
                generation: listener.listening.generation,
                news: News::Broadcast(message.clone()),
            },
        };
        self.listeners.iter().filter(listens).map(event).collect()
    }

    fn deliver(&self, event: Event) {
        let transport = match event.push.news {
            News::Broadcast(_) => Transport::Broadcast,
            News::Changed { .. } | News::Subscribed | News::BroadcastsAreRead | News::Failed(_) => {
                Transport::Changes
            }
        };
        if !self.faults.is_withheld(transport) && !self.faults.is_deaf(event.push.generation) {
            self.faults.count_delivered(&event.table);
            event.outbox.put(event.push);
        }
    }
}

impl Tables {
    /// Takes a relation message; the catalogue is asked only when the table has changed.
    async fn learn(&mut self, relation: Relation, slot: &mut Slot) -> Result<(), SlotError> {
        let known = self
            .known
            .get(&relation.oid)
            .is_some_and(|(known, _)| *known == relation);
        if !known {
            let table = Arc::new(slot.describe(&relation).await?);
            self.known.insert(relation.oid, (relation, table));
        }
        Ok(())
    }

    fn table(&self, relation: u32) -> Option<Arc<Table>> {
        self.known
            .get(&relation)
            .map(|(_, table)| Arc::clone(table))
    }
}

fn wants(target: &Target, found: &Match, change: &RowChange<'_>) -> bool {
    target.kind.is_none_or(|kind| kind == change.kind)
        && (change.kind == ChangeKind::Delete || !found.deletes_only || !found.authorized)
        && found
            .tests
            .iter()
            .all(|test| test.passes(change.value(&test.filter.column)))
}
