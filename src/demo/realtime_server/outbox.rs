//! Where news wait for one client, between the reader of changes and the client's connection.
//!
//! Owns the bounds on what waits. It never makes the reader wait: a client that does not keep up is
//! marked for its connection to drop, and loses news from then on.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::mpsc::{self, Receiver, Sender, error::TrySendError};
use tokio_util::sync::CancellationToken;

use super::session::{News, Push};

/// Events that wait for one client.
const OUTBOX_EVENTS: usize = 65_536;

/// Bytes that wait for one client; the real server kills a socket whose process is as large.
const OUTBOX_BYTES: usize = 50_000_000;

/// Where a client's events wait.
#[derive(Clone)]
pub struct Outbox {
    events: Sender<Push>,
    bytes: Arc<AtomicUsize>,
    overflow: CancellationToken,
}

/// The client's end of an [`Outbox`].
pub struct Inbox {
    events: Receiver<Push>,
    bytes: Arc<AtomicUsize>,
    /// Cancelled when the client has not kept up.
    pub overflow: CancellationToken,
}

/// A new outbox and its other end.
pub fn outbox() -> (Outbox, Inbox) {
    let (sender, receiver) = mpsc::channel(OUTBOX_EVENTS);
    let bytes = Arc::new(AtomicUsize::new(0));
    let overflow = CancellationToken::new();
    let inbox = Inbox {
        events: receiver,
        bytes: Arc::clone(&bytes),
        overflow: overflow.clone(),
    };
    (
        Outbox {
            events: sender,
            bytes,
            overflow,
        },
        inbox,
    )
}

impl Outbox {
    /// Puts `push` at the end; a client that has too much waiting is marked instead.
    pub fn put(&self, push: Push) {
        let waiting = self.bytes.fetch_add(size(&push), Ordering::Relaxed);
        let full = matches!(self.events.try_send(push), Err(TrySendError::Full(_)));
        if full || waiting > OUTBOX_BYTES {
            self.overflow.cancel();
        }
    }

    /// Whether the client is gone.
    pub fn is_closed(&self) -> bool {
        self.events.is_closed()
    }
}

impl Inbox {
    /// The next news; none when nobody can send any more.
    pub async fn next(&mut self) -> Option<Push> {
        let push = self.events.recv().await?;
        self.bytes.fetch_sub(size(&push), Ordering::Relaxed);
        Some(push)
    }
}

fn size(push: &Push) -> usize {
    match &push.news {
        News::Changed { data, .. } => data.len(),
        News::Broadcast(message) => message.size(),
        News::Failed(message) => message.len(),
        News::Subscribed | News::BroadcastsAreRead => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(data: &str) -> Push {
        let news = News::Changed {
            data: data.into(),
            ids: [1].into(),
        };
        Push {
            generation: 1,
            news,
        }
    }

    #[tokio::test]
    async fn news_come_out_in_the_order_they_went_in() {
        let (outbox, mut inbox) = outbox();
        outbox.put(change("1"));
        outbox.put(change("2"));
        assert_eq!(inbox.next().await, Some(change("1")));
        assert_eq!(inbox.next().await, Some(change("2")));
        assert!(!inbox.overflow.is_cancelled());
        drop(inbox);
        assert!(outbox.is_closed());
    }

    #[test]
    fn too_many_news_mark_the_client() {
        let (outbox, inbox) = outbox();
        for _ in 0..OUTBOX_EVENTS {
            outbox.put(change(""));
        }
        assert!(!inbox.overflow.is_cancelled());
        outbox.put(change(""));
        assert!(inbox.overflow.is_cancelled());
    }

    #[tokio::test]
    async fn too_many_bytes_mark_the_client_and_bytes_that_were_taken_do_not_count() {
        let (outbox, mut inbox) = outbox();
        let large = change(&"x".repeat(OUTBOX_BYTES / 2 + 1));
        for _ in 0..4 {
            outbox.put(large.clone());
            inbox.next().await;
        }
        assert!(!inbox.overflow.is_cancelled());
        for _ in 0..3 {
            outbox.put(large.clone());
        }
        assert!(inbox.overflow.is_cancelled());
    }
}
