//! One client's socket, from the TCP connection to its end.
//!
//! Owns the socket and its timers: idle time, send time, token expiry. Frames are interpreted in `session.rs`.
//!
//! Invariants: steps are carried out in order; nothing waits for a client longer than the send timeout; however a connection
//! ends, its task ends.

use std::{collections::VecDeque, future::pending, sync::Arc, time::Duration};

use chrono::Utc;
use futures_util::{SinkExt, StreamExt};
use tokio::{
    io::AsyncReadExt,
    net::TcpStream,
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error as SocketError, Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::{
    broadcast::TopicSubscription,
    changes::ReaderRequest,
    faults::{Faults, Refusal, Severance},
    handshake::{self, Accepted},
    options::RealtimeOptions,
    push::{PushReceiver, PushSender, push_queue},
    session::{Authorization, ConnectionStep, ServerSession},
};

/// How long a request's head may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long the end of a connection may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A closed client that sends nothing for this long has nothing left to send.
const CLOSE_QUIET: Duration = Duration::from_millis(100);

/// What a connection needs of the server.
#[derive(Clone)]
pub struct ServerContext {
    pub options: Arc<RealtimeOptions>,
    pub faults: Faults,
    pub requests: mpsc::Sender<ReaderRequest>,
}

/// How a connection ends.
enum ConnectionEnd {
    /// The client closed it, or it broke.
    Gone,
    /// It is closed with this code.
    Close(CloseCode),
    /// It is reset.
    Abrupt,
}

/// Serves one client until it or the server ends the connection. No seat means too many clients.
pub async fn serve(
    stream: TcpStream,
    context: ServerContext,
    seat: Option<OwnedSemaphorePermit>,
    mut severed: watch::Receiver<Option<Severance>>,
) {
    // Frames are small and sent at once.
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let refusal = context.faults.refusal().or_else(|| {
        seat.is_none().then(|| Refusal::Http {
            status: 429,
            message: "Too many connected users".to_owned(),
        })
    });
    let now = Utc::now().timestamp();
    let accepting = handshake::accept(stream, &context.options, refusal, now);
    let accepted = tokio::select! {
        accepted = timeout(HANDSHAKE_TIMEOUT, accepting) => accepted,
        _ = severed.changed() => return,
    };
    let Ok(Some(Accepted {
        mut socket,
        version,
        grant,
    })) = accepted
    else {
        return;
    };
    let (sender, pushes) = push_queue();
    let overflow = pushes.overflow.clone();
    let mut client = ClientConnection {
        session: ServerSession::new(
            version,
            context.options.jwt_secret.clone(),
            grant,
            context.options.limits.channels,
        ),
        socket: &mut socket,
        sender,
        pushes,
        context: &context,
    };
    let end = tokio::select! {
        end = client.run() => end,
        () = overflow.cancelled() => ConnectionEnd::Abrupt,
        changed = severed.changed() => {
            let severance = *severed.borrow_and_update();
            match severance {
                Some(Severance::Restart) if changed.is_ok() => ConnectionEnd::Close(CloseCode::Restart),
                _ => ConnectionEnd::Abrupt,
            }
        }
    };
    finish(socket, end).await;
}

async fn finish(mut socket: WebSocketStream<TcpStream>, end: ConnectionEnd) {
    match end {
        ConnectionEnd::Gone => {}
        ConnectionEnd::Abrupt => drop(socket.get_ref().set_zero_linger()),
        ConnectionEnd::Close(code) => {
            let frame = CloseFrame {
                code,
                reason: "".into(),
            };
            if let Ok(Ok(())) = timeout(CLOSE_TIMEOUT, socket.close(Some(frame))).await {
                // What the client still sends is read, or TCP would reset the close frame away.
                let mut scratch = [0; 4_096];
                let stream = socket.get_mut();
                let drain = async {
                    while let Ok(Ok(1..)) = timeout(CLOSE_QUIET, stream.read(&mut scratch)).await {}
                };
                let _ = timeout(CLOSE_TIMEOUT, drain).await;
            }
        }
    }
}

struct ClientConnection<'a> {
    session: ServerSession,
    socket: &'a mut WebSocketStream<TcpStream>,
    sender: PushSender,
    pushes: PushReceiver,
    context: &'a ServerContext,
}

impl ClientConnection<'_> {
    async fn run(&mut self) -> ConnectionEnd {
        let idle_timeout = self.context.options.limits.idle_timeout;
        let mut idle_at = Instant::now() + idle_timeout;
        loop {
            let steps = tokio::select! {
                message = self.socket.next() => {
                    idle_at = Instant::now() + idle_timeout;
                    match message {
                        Some(Ok(Message::Text(text))) => self.session.receive(
                            &text,
                            Utc::now().timestamp(),
                            self.context.faults.next_generation(),
                        ),
                        // A ping is answered by the socket itself as soon as it is flushed.
                        Some(Ok(Message::Ping(_))) => match self.flush().await {
                            Ok(()) => continue,
                            Err(end) => return end,
                        },
                        Some(Ok(Message::Close(_))) => {
                            let _ = self.flush().await;
                            return ConnectionEnd::Gone;
                        }
                        Some(Ok(_)) => continue,
                        Some(Err(SocketError::Capacity(_))) => return ConnectionEnd::Close(CloseCode::Size),
                        Some(Err(_)) | None => return ConnectionEnd::Gone,
                    }
                }
                push = self.pushes.next() => {
                    push.and_then(|push| self.session.push(&push)).into_iter().collect()
                }
                () = expiry(self.session.next_expiry()) => {
                    self.session.expire(Utc::now().timestamp())
                }
                () = sleep_until(idle_at) => return ConnectionEnd::Close(CloseCode::Normal),
            };
            let mut steps = VecDeque::from(steps);
            while let Some(step) = steps.pop_front() {
                match self.carry_out(step).await {
                    Ok(next) => steps.extend(next),
                    Err(end) => return end,
                }
            }
        }
    }

    /// Carries out a step; returns the steps that follow from it.
    async fn carry_out(
        &mut self,
        step: ConnectionStep,
    ) -> Result<Vec<ConnectionStep>, ConnectionEnd> {
        match step {
            ConnectionStep::Send(message) => self.send(message).await?,
            ConnectionStep::Authorize(join) => return self.authorize(join).await,
            ConnectionStep::Listen(listening) => self.listen(listening).await?,
            ConnectionStep::Subscribe(subscription) => {
                let request = ReaderRequest::Subscribe(subscription, self.sender.clone());
                self.request(request).await?;
            }
            ConnectionStep::Unsubscribe(generation) => {
                self.request(ReaderRequest::Unsubscribe(generation)).await?;
            }
        }
        Ok(Vec::new())
    }

    /// Blocks the whole socket until the database has answered, as the real server does.
    async fn authorize(
        &mut self,
        join: Authorization,
    ) -> Result<Vec<ConnectionStep>, ConnectionEnd> {
        let (answer, permission) = oneshot::channel();
        let (topic, role) = (join.topic.clone(), join.role.clone());
        self.request(ReaderRequest::Authorize {
            topic,
            role,
            answer,
        })
        .await?;
        let permission = permission.await.map_err(|_| ConnectionEnd::Abrupt)?;
        let (now, generation) = (
            Utc::now().timestamp(),
            self.context.faults.next_generation(),
        );
        Ok(self.session.authorized(&join, permission, now, generation))
    }

    /// A private join continues once the reader listens. A public join does not wait: it may be one for changes, which have
    /// a confirmation of their own.
    async fn listen(&mut self, listening: TopicSubscription) -> Result<(), ConnectionEnd> {
        let private = listening.topic.private;
        let (listens, listening_now) = oneshot::channel();
        let request = ReaderRequest::Listen(listening, self.sender.clone(), listens);
        self.request(request).await?;
        if private {
            listening_now.await.map_err(|_| ConnectionEnd::Abrupt)?;
        }
        Ok(())
    }

    async fn request(&mut self, request: ReaderRequest) -> Result<(), ConnectionEnd> {
        let sent = self.context.requests.send(request).await;
        sent.map_err(|_| ConnectionEnd::Abrupt)
    }

    async fn send(&mut self, message: Message) -> Result<(), ConnectionEnd> {
        let limit = self.context.options.limits.send_timeout;
        within(limit, self.socket.send(message)).await
    }

    async fn flush(&mut self) -> Result<(), ConnectionEnd> {
        let limit = self.context.options.limits.send_timeout;
        within(limit, self.socket.flush()).await
    }
}

/// A client that does not read is dropped without a close frame, as the real server does.
async fn within(
    limit: Duration,
    sending: impl Future<Output = Result<(), SocketError>>,
) -> Result<(), ConnectionEnd> {
    match timeout(limit, sending).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(ConnectionEnd::Gone),
        Err(_) => Err(ConnectionEnd::Abrupt),
    }
}

/// Ends at `at` (seconds since the Unix epoch), or never.
async fn expiry(at: Option<i64>) {
    let Some(at) = at else { return pending().await };
    let left = at
        .saturating_mul(1_000)
        .saturating_sub(Utc::now().timestamp_millis());
    sleep(Duration::from_millis(u64::try_from(left).unwrap_or(0))).await;
}
