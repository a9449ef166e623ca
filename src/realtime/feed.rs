//! The task of the Realtime client: it owns the socket, the clock and the queue of events, and drives the [`Session`].
//!
//! Invariants: a receiver that does not take its events never delays a heartbeat: too many of them become one
//! [`FeedEvent::Lost`], which asks for a full sync. The task ends at shutdown or when the receiver is gone, and never
//! otherwise.

use std::collections::VecDeque;
use std::future::{Future, pending};
use std::ops::ControlFlow;
use std::pin::Pin;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::change::FollowedTable;
use super::endpoint::Endpoint;
use super::session::{FeedCommand, FeedEvent, Session, SessionAction, SessionInput};
use super::socket::Socket;
use crate::domain::error_policy::Failure;
use crate::domain::transport::Transport;

/// Events that may wait for a slow receiver.
pub const EVENTS_QUEUED: usize = 4_096;

/// See [`run`].
#[derive(Clone)]
pub struct FeedConfig {
    /// Address and key of Realtime.
    pub endpoint: Endpoint,
    /// The tables to follow.
    pub bindings: Vec<FollowedTable>,
    /// Whether to listen to broadcasts.
    pub broadcasts: bool,
}

/// Follows the tables until `shutdown` is cancelled, [`FeedCommand::Shutdown`] arrives, or the receiver of `events` is
/// dropped. Leaving and closing take 5 s at most. It continues without a sender of commands.
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
        renew_at: renewal_time(&config.endpoint),
        endpoint: config.endpoint,
        session,
        socket: SocketState::Closed,
        queue: EventQueue::default(),
    };
    let mut has_commander = true;
    while feed.perform().await.is_continue() {
        let deadline = feed
            .session
            .next_deadline()
            .map(|(at, _)| Instant::from_std(at));
        let input = tokio::select! {
            () = shutdown.cancelled() => SessionInput::Command(FeedCommand::Shutdown),
            command = commands.recv(), if has_commander => {
                has_commander = command.is_some();
                let Some(command) = command else { continue };
                SessionInput::Command(command)
            }
            input = feed.socket.next() => input,
            () = wake_at(deadline) => SessionInput::Tick,
            () = wake_at(feed.renew_at) => {
                feed.renew();
                continue;
            }
            permit = events.reserve(), if !feed.queue.is_empty() => {
                let Ok(permit) = permit else { return };
                feed.queue.send(permit);
                continue;
            }
            () = events.closed() => return,
        };
        feed.handle(input);
    }
}

fn renewal_time(endpoint: &Endpoint) -> Option<Instant> {
    endpoint.renew_after().map(|after| Instant::now() + after)
}

async fn wake_at(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

struct Feed {
    endpoint: Endpoint,
    session: Session,
    socket: SocketState,
    queue: EventQueue,
    renew_at: Option<Instant>,
}

impl Feed {
    /// Replaces the access token before it expires.
    fn renew(&mut self) {
        if let Some(token) = self.endpoint.access_token() {
            self.session.renew(token);
        }
        self.renew_at = renewal_time(&self.endpoint);
    }

    fn handle(&mut self, input: SessionInput) {
        self.session
            .handle(input, Instant::now().into_std(), rand::random());
    }

    /// Carries out the actions of the session. A frame that cannot be sent is the end of the socket, which leads to more
    /// actions.
    async fn perform(&mut self) -> ControlFlow<()> {
        while let Some(action) = self.session.poll_action() {
            match action {
                SessionAction::Dial => {
                    self.renew();
                    self.socket =
                        SocketState::Dialing(Box::pin(Socket::dial(self.endpoint.clone())));
                }
                SessionAction::Send(frame) => {
                    if let SocketState::Open(socket) = &mut self.socket
                        && let Err(reason) = socket.send(&frame).await
                    {
                        self.socket = SocketState::Closed;
                        self.handle(SessionInput::Closed(reason));
                    }
                }
                SessionAction::Close => {
                    if let SocketState::Open(socket) =
                        std::mem::replace(&mut self.socket, SocketState::Closed)
                    {
                        socket.close().await;
                    }
                }
                SessionAction::Abandon => self.socket = SocketState::Closed,
                SessionAction::Emit(event) => self.queue.push(event),
                SessionAction::Stop => return ControlFlow::Break(()),
            }
        }
        ControlFlow::Continue(())
    }
}

enum SocketState {
    Closed,
    Dialing(Pin<Box<dyn Future<Output = Result<Socket, Failure>> + Send>>),
    Open(Box<Socket>),
}

impl SocketState {
    /// The next input from the socket. Cancel safe.
    async fn next(&mut self) -> SessionInput {
        match self {
            Self::Closed => pending().await,
            Self::Dialing(dialing) => match dialing.await {
                Ok(socket) => {
                    *self = Self::Open(Box::new(socket));
                    SessionInput::Opened
                }
                Err(failure) => {
                    *self = Self::Closed;
                    SessionInput::DialFailed(failure)
                }
            },
            Self::Open(socket) => socket.receive().await,
        }
    }
}

/// Events that wait for the receiver, in order, at most [`EVENTS_QUEUED`].
#[derive(Default)]
struct EventQueue {
    events: VecDeque<FeedEvent>,
}

impl EventQueue {
    fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Adds an event. If the queue is full, the latest state of each transport and the need of a full sync replace its events.
    fn push(&mut self, event: FeedEvent) {
        if self.events.len() >= EVENTS_QUEUED {
            let is_state = |event: &FeedEvent, transport: Transport| match event {
                FeedEvent::Live(of) => *of == transport,
                FeedEvent::Down(down) => down.transport == transport,
                FeedEvent::Changed(_) | FeedEvent::Broadcast(..) | FeedEvent::Lost(_) => false,
            };
            let last = |transport| {
                self.events
                    .iter()
                    .rfind(|event| is_state(event, transport))
                    .cloned()
            };
            let state: Vec<FeedEvent> = Transport::ALL.into_iter().filter_map(last).collect();
            self.events.clear();
            self.events.extend(state);
            let reason = "event queue overflowed".to_owned();
            self.events.push_back(FeedEvent::Lost(reason));
        }
        self.events.push_back(event);
    }

    fn send(&mut self, permit: mpsc::Permit<'_, FeedEvent>) {
        if let Some(event) = self.events.pop_front() {
            permit.send(event);
        }
    }
}

#[cfg(test)]
mod tests;
