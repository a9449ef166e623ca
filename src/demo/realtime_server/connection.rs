//! One client's socket, from the TCP connection to its end.
//!
//! Owns the socket and its timers: idle time, send time, token expiry. What frames mean is
//! `session.rs`'s; which rows have changed is `changes.rs`'s.
//!
//! Invariants: steps are carried out in order; nothing waits for a client longer than the send
//! timeout; however a connection ends, its task ends.

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
    Options,
    broadcast::Listening,
    changes::Request,
    faults::{Faults, Refusal, Severance},
    handshake::{self, Accepted},
    outbox::{Inbox, Outbox, outbox},
    session::{Authorization, Session, Step},
};

/// How long a request's head may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long the end of a connection may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// A closed client that sends nothing for this long has no more to say.
const CLOSE_QUIET: Duration = Duration::from_millis(100);

/// What a connection needs of the server.
#[derive(Clone)]
pub struct Context {
    pub options: Arc<Options>,
    pub faults: Faults,
    pub requests: mpsc::Sender<Request>,
}

/// How a connection ends.
enum End {
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
    context: Context,
    seat: Option<OwnedSemaphorePermit>,
    mut severed: watch::Receiver<Option<Severance>>,
) {
    // Frames are small and due at once.
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
    let patience = HANDSHAKE_TIMEOUT + context.options.refusal_delay;
    let accepted = tokio::select! {
        accepted = timeout(patience, accepting) => accepted,
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
    let (outbox, inbox) = outbox();
    let overflow = inbox.overflow.clone();
    let mut client = Client {
        session: Session::new(
            version,
            context.options.jwt_secret.clone(),
            grant,
            context.options.limits.channels,
        ),
        socket: &mut socket,
        outbox,
        inbox,
        context: &context,
    };
    let end = tokio::select! {
        end = client.run() => end,
        () = overflow.cancelled() => End::Abrupt,
        changed = severed.changed() => {
            let severance = *severed.borrow_and_update();
            match severance {
                Some(Severance::Restart) if changed.is_ok() => End::Close(CloseCode::Restart),
                _ => End::Abrupt,
            }
        }
    };
    finish(socket, end).await;
}

async fn finish(mut socket: WebSocketStream<TcpStream>, end: End) {
    match end {
        End::Gone => {}
        End::Abrupt => drop(socket.get_ref().set_zero_linger()),
        End::Close(code) => {
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

struct Client<'a> {
    session: Session,
    socket: &'a mut WebSocketStream<TcpStream>,
    outbox: Outbox,
    inbox: Inbox,
    context: &'a Context,
}

impl Client<'_> {
    async fn run(&mut self) -> End {
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
                            || self.context.faults.next_generation(),
                        ),
                        // A ping is answered by the socket itself as soon as it is flushed.
                        Some(Ok(Message::Ping(_))) => match self.flush().await {
                            Ok(()) => continue,
                            Err(end) => return end,
                        },
                        Some(Ok(Message::Close(_))) => {
                            let _ = self.flush().await;
                            return End::Gone;
                        }
                        Some(Ok(_)) => continue,
                        Some(Err(SocketError::Capacity(_))) => return End::Close(CloseCode::Size),
                        Some(Err(_)) | None => return End::Gone,
                    }
                }
                push = self.inbox.next() => {
                    push.and_then(|push| self.session.push(&push)).into_iter().collect()
                }
                () = expiry(self.session.next_expiry()) => {
                    self.session.expire(Utc::now().timestamp())
                }
                () = sleep_until(idle_at) => return End::Close(CloseCode::Normal),
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

    /// Carries a step out; gives the steps that follow from it.
    async fn carry_out(&mut self, step: Step) -> Result<Vec<Step>, End> {
        let request = match step {
            Step::Send(text) => {
                self.send(Message::text(text)).await?;
                return Ok(Vec::new());
            }
            Step::SendBinary(bytes) => {
                self.send(Message::binary(bytes)).await?;
                return Ok(Vec::new());
            }
            Step::SendDelayed(text) => {
                sleep(self.context.options.limits.join_refusal_delay).await;
                self.send(Message::text(text)).await?;
                return Ok(Vec::new());
            }
            Step::Authorize(asked) => return self.authorize(asked).await,
            Step::Listen(listening) => return self.listen(listening).await,
            Step::Subscribe(wanted) => Request::Subscribe(wanted, self.outbox.clone()),
            Step::Unsubscribe(generation) => Request::Unsubscribe(generation),
        };
        self.request(request).await?;
        Ok(Vec::new())
    }

    /// Holds the whole socket until the database has answered, as the real server does.
    async fn authorize(&mut self, asked: Authorization) -> Result<Vec<Step>, End> {
        let (answer, verdict) = oneshot::channel();
        let (topic, role) = (asked.topic.clone(), asked.role.clone());
        self.request(Request::Authorize {
            topic,
            role,
            answer,
        })
        .await?;
        let verdict = verdict.await.map_err(|_| End::Abrupt)?;
        let now = Utc::now().timestamp();
        let next_generation = || self.context.faults.next_generation();
        Ok(self
            .session
            .authorized(&asked, verdict, now, next_generation))
    }

    /// Who listens to a private topic is let in once it is heard. A public join waits for nothing: it may well be one for
    /// changes, which are confirmed by themselves.
    async fn listen(&mut self, listening: Listening) -> Result<Vec<Step>, End> {
        let private = listening.topic.private;
        let (heard, hears) = oneshot::channel();
        let request = Request::Listen(listening, self.outbox.clone(), heard);
        self.request(request).await?;
        if private {
            hears.await.map_err(|_| End::Abrupt)?;
        }
        Ok(Vec::new())
    }

    async fn request(&mut self, request: Request) -> Result<(), End> {
        let sent = self.context.requests.send(request).await;
        sent.map_err(|_| End::Abrupt)
    }

    /// A client that does not read is dropped without a word, as the real server drops it.
    async fn send(&mut self, message: Message) -> Result<(), End> {
        let sending = self.socket.send(message);
        match timeout(self.context.options.limits.send_timeout, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Gone),
            Err(_) => Err(End::Abrupt),
        }
    }

    async fn flush(&mut self) -> Result<(), End> {
        match timeout(
            self.context.options.limits.send_timeout,
            self.socket.flush(),
        )
        .await
        {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Gone),
            Err(_) => Err(End::Abrupt),
        }
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
