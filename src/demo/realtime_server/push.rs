//! What the reader of changes sends to one client, and the queue in which it waits.
//!
//! Invariant: the queue is bounded and never makes the reader wait. A client that does not keep up is marked for its
//! connection to drop, and loses events from then on.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::mpsc::{self, Receiver, Sender, error::TrySendError};
use tokio_util::sync::CancellationToken;

use super::broadcast::BroadcastMessage;

/// Events in one client's queue.
const QUEUE_EVENTS: usize = 65_536;

/// Bytes in one client's queue; the real server kills a socket whose process is as large.
const QUEUE_BYTES: usize = 50_000_000;

/// An event of one channel, for its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// The join that it belongs to.
    pub generation: u64,
    /// What happened.
    pub event: PushEvent,
}

/// See [`Push`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushEvent {
    /// The subscription works.
    Subscribed,
    /// Broadcasts from the database are read.
    BroadcastsReady,
    /// A broadcast from the database.
    Broadcast(BroadcastMessage),
    /// The subscription failed, with the real server's message.
    Failed(String),
    /// A row changed.
    Changed {
        /// The event's `data`, as JSON text.
        data: Arc<str>,
        /// The bindings that matched.
        ids: Arc<[u32]>,
    },
}

/// The reader's end of a client's queue.
#[derive(Clone)]
pub struct PushSender {
    events: Sender<Push>,
    bytes: Arc<AtomicUsize>,
    overflow: CancellationToken,
}

/// The client's end of its queue.
pub struct PushReceiver {
    events: Receiver<Push>,
    bytes: Arc<AtomicUsize>,
    /// Cancelled when the client has not kept up.
    pub overflow: CancellationToken,
}

/// A new queue.
pub fn push_queue() -> (PushSender, PushReceiver) {
    let (sender, receiver) = mpsc::channel(QUEUE_EVENTS);
    let bytes = Arc::new(AtomicUsize::new(0));
    let overflow = CancellationToken::new();
    let receiver = PushReceiver {
        events: receiver,
        bytes: Arc::clone(&bytes),
        overflow: overflow.clone(),
    };
    let sender = PushSender {
        events: sender,
        bytes,
        overflow,
    };
    (sender, receiver)
}

impl PushSender {
    /// Adds an event to the queue; a client whose queue is full is marked instead.
    pub fn put(&self, generation: u64, event: PushEvent) {
        let waiting = self.bytes.fetch_add(event.size(), Ordering::Relaxed);
        let sent = self.events.try_send(Push { generation, event });
        if matches!(sent, Err(TrySendError::Full(_))) || waiting > QUEUE_BYTES {
            self.overflow.cancel();
        }
    }

    /// Whether the client is gone.
    pub fn is_closed(&self) -> bool {
        self.events.is_closed()
    }
}

impl PushReceiver {
    /// The next event; none when nobody can send any more.
    pub async fn next(&mut self) -> Option<Push> {
        let push = self.events.recv().await?;
        self.bytes.fetch_sub(push.event.size(), Ordering::Relaxed);
        Some(push)
    }
}

impl PushEvent {
    fn size(&self) -> usize {
        match self {
            Self::Changed { data, .. } => data.len(),
            Self::Broadcast(message) => message.size(),
            Self::Failed(message) => message.len(),
            Self::Subscribed | Self::BroadcastsReady => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(data: &str) -> PushEvent {
        PushEvent::Changed {
            data: data.into(),
            ids: [1].into(),
        }
    }

    #[tokio::test]
    async fn events_come_out_in_the_order_they_went_in() {
        let (sender, mut receiver) = push_queue();
        sender.put(1, change("1"));
        sender.put(1, change("2"));
        for event in [change("1"), change("2")] {
            let generation = 1;
            assert_eq!(receiver.next().await, Some(Push { generation, event }));
        }
        assert!(!receiver.overflow.is_cancelled());
        drop(receiver);
        assert!(sender.is_closed());
    }

    #[test]
    fn too_many_events_mark_the_client() {
        let (sender, receiver) = push_queue();
        for _ in 0..QUEUE_EVENTS {
            sender.put(1, change(""));
        }
        assert!(!receiver.overflow.is_cancelled());
        sender.put(1, change(""));
        assert!(receiver.overflow.is_cancelled());
    }

    #[tokio::test]
    async fn too_many_bytes_mark_the_client_and_bytes_that_were_taken_do_not_count() {
        let (sender, mut receiver) = push_queue();
        let large = change(&"x".repeat(QUEUE_BYTES / 2 + 1));
        for _ in 0..4 {
            sender.put(1, large.clone());
            receiver.next().await;
        }
        assert!(!receiver.overflow.is_cancelled());
        for _ in 0..3 {
            sender.put(1, large.clone());
        }
        assert!(receiver.overflow.is_cancelled());
    }
}
