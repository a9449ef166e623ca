//! The one task of the Realtime client: its socket, its session, its clock.
//!
//! Owns the socket and the [`Outbox`]; decides nothing about the protocol, that is the session's.
//! The loop waits for one thing at a time, makes an input of it, and hands it to the session; what
//! the session wants done is done before the next wait. This is the only file of the client that
//! reads a clock or draws random numbers.
//!
//! Invariants: an owner that does not take its events never holds up the heartbeat; when too many
//! wait for it, they become one [`FeedEvent::Lost`], which asks for a full sync. The task ends at
//! shutdown, or when nobody is left to listen, and never otherwise.

use std::collections::VecDeque;
use std::future::{Future, pending};
use std::pin::Pin;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::change::Table;
use super::endpoint::Endpoint;
use super::session::{Action, FeedCommand, FeedEvent, Input, Session};
use super::socket::{ConnectError, Received, Socket};
use crate::domain::transport::Transport;

/// How many events may wait for an owner that is slow to take them.
pub const OUTBOX_EVENTS: usize = 4_096;

/// What the feed needs to know.
#[derive(Clone)]
pub struct FeedConfig {
    /// Where Realtime listens, and the key.
    pub endpoint: Endpoint,
    /// The tables of the first join.
    pub bindings: Vec<Table>,
    /// Whether broadcasts are listened to from the start.
    pub broadcasts: bool,
}

/// Follows the tables until it is told to stop or nobody listens.
///
/// It ends when `shutdown` is cancelled, [`FeedCommand::Shutdown`] arrives, or nobody holds the
/// other end of `events`; leaving and closing take 5 s at most. A channel of commands whose other
/// end is gone is no reason to stop.
pub async fn run(
    config: FeedConfig,
    mut commands: mpsc::Receiver<FeedCommand>,
    events: mpsc::Sender<FeedEvent>,
    shutdown: CancellationToken,
) {
    let mut session = Session::new(config.bindings, config.endpoint.access_token());
    if config.broadcasts {
        session = session.with_broadcasts();
    }
    let mut feed = Feed {
        renew_at: renewal(&config.endpoint),
        endpoint: config.endpoint,
        session,
        link: Link::Closed,
        outbox: Outbox::default(),
    };
    let mut commanded = true;
    while feed.perform().await == Course::Goes {
        let deadline = feed
            .session
            .next_deadline()
            .map(|(at, _)| Instant::from_std(at));
        let input = tokio::select! {
            () = shutdown.cancelled() => Input::Command(FeedCommand::Shutdown),
            command = commands.recv(), if commanded => {
                commanded = command.is_some();
                let Some(command) = command else { continue };
                Input::Command(command)
            }
            input = feed.link.next() => input,
            () = wake_at(deadline) => Input::Tick,
            () = wake_at(feed.renew_at) => {
                feed.renew();
                continue;
            }
            permit = events.reserve(), if !feed.outbox.is_empty() => {
                let Ok(permit) = permit else { return };
                feed.outbox.pass_on(permit);
                continue;
            }
            () = events.closed() => return,
        };
        feed.handle(input);
    }
}

/// When the token is to be renewed, from now.
fn renewal(endpoint: &Endpoint) -> Option<Instant> {
    endpoint.renew_after().map(|after| Instant::now() + after)
}

async fn wake_at(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

/// Whether the task goes on.
#[derive(PartialEq, Eq)]
enum Course {
    Goes,
    Ends,
}

/// What the task owns.
struct Feed {
    endpoint: Endpoint,
    session: Session,
    link: Link,
    outbox: Outbox,
    renew_at: Option<Instant>,
}

impl Feed {
    /// Puts a new token in the old one's place, before that expires.
    fn renew(&mut self) {
        if let Some(token) = self.endpoint.access_token() {
            self.session.renew(token);
        }
        self.renew_at = renewal(&self.endpoint);
    }

    fn handle(&mut self, input: Input) {
        self.session
            .handle(input, Instant::now().into_std(), rand::random());
    }

    /// Does all that the session wants done. A frame that cannot be sent is the end of the socket,
    /// and what the session wants then is done as well.
    async fn perform(&mut self) -> Course {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Dial => {
                    self.renew();
                    self.link = Link::Dialing(Box::pin(Socket::dial(self.endpoint.clone())));
                }
                Action::Send(frame) => {
                    if let Link::Open(socket) = &mut self.link
                        && let Err(reason) = socket.send(&frame).await
                    {
                        self.link = Link::Closed;
                        self.handle(Input::Closed { reason });
                    }
                }
                Action::Close => {
                    if let Link::Open(socket) = std::mem::replace(&mut self.link, Link::Closed) {
                        socket.close().await;
                    }
                }
                Action::Abandon => self.link = Link::Closed,
                Action::Emit(event) => self.outbox.push(event),
                Action::Stop => return Course::Ends,
            }
        }
        Course::Goes
    }
}

/// The socket, or the way to one.
enum Link {
    Closed,
    Dialing(Pin<Box<dyn Future<Output = Result<Socket, ConnectError>> + Send>>),
    Open(Box<Socket>),
}

impl Link {
    /// What the link brings next. May be dropped at any time; nothing is lost.
    async fn next(&mut self) -> Input {
        match self {
            Self::Closed => pending().await,
            Self::Dialing(dialing) => match dialing.await {
                Ok(socket) => {
                    *self = Self::Open(Box::new(socket));
                    Input::Opened
                }
                Err(error) => {
                    *self = Self::Closed;
                    Input::DialFailed {
                        class: error.class(),
                        reason: error.to_string(),
                    }
                }
            },
            Self::Open(socket) => match socket.receive().await {
                Received::Frame(frame) => Input::Received(frame),
                Received::SignOfLife => Input::Noise,
                Received::Unreadable(error) => {
                    tracing::debug!(%error, "realtime sent what is no frame");
                    Input::Noise
                }
                Received::Closed(reason) => Input::Closed { reason },
            },
        }
    }
}

/// Events that wait for the owner, in order, at most [`OUTBOX_EVENTS`].
#[derive(Default)]
struct Outbox {
    events: VecDeque<FeedEvent>,
}

impl Outbox {
    fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Adds an event. Where there is no room, all that wait are replaced by what they amount to:
    /// the latest word on whether the feed is live, and the need of a full sync.
    fn push(&mut self, event: FeedEvent) {
        if self.events.len() >= OUTBOX_EVENTS {
            let of_way = |event: &FeedEvent, transport: Transport| match event {
                FeedEvent::Live(of) => *of == transport,
                FeedEvent::Down(down) => down.transport == transport,
                FeedEvent::Changed(_) | FeedEvent::Broadcast(..) | FeedEvent::Lost(_) => false,
            };
            let last = |transport| {
                self.events
                    .iter()
                    .rfind(|event| of_way(event, transport))
                    .cloned()
            };
            let state: Vec<FeedEvent> = Transport::ALL.into_iter().filter_map(last).collect();
            self.events.clear();
            self.events.extend(state);
            let reason = "more changes came than were taken".to_owned();
            self.events.push_back(FeedEvent::Lost(reason));
        }
        self.events.push_back(event);
    }

    fn pass_on(&mut self, permit: mpsc::Permit<'_, FeedEvent>) {
        if let Some(event) = self.events.pop_front() {
            permit.send(event);
        }
    }
}

#[cfg(test)]
mod tests;
