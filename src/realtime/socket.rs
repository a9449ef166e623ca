//! The socket of the Realtime client: opens it, moves frames, closes it. Decides nothing.
//!
//! Owns the bounds of time and size, and the wording of what went wrong.
//!
//! Invariants: every text from outside has the key blotted out; every wait for the peer but that
//! for its next frame is bounded.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt as _};
use serde_json::Value;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_tls_with_config};

use super::endpoint::Endpoint;
use super::frame::{Frame, FrameError};
use crate::domain::error_policy::ErrorKind;

/// How long opening may take, from the name's look-up to the upgrade. The server holds a refusal
/// back for 2 s.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a frame may take to leave. Ours are small: a socket that is full for so long is dead.
const SEND_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the closing handshake may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The largest message taken. The server cuts rows at 1 MiB of its decoder's text; their JSON may
/// be escaped to up to six times that, and the names and types of the columns come on top.
const LARGEST_MESSAGE_BYTES: usize = 8 * 1024 * 1024;
/// What may wait unsent; a join is under 10 KiB.
const LARGEST_UNSENT_BYTES: usize = 256 * 1024;
/// What is kept of a text by which a server refuses the socket.
const LONGEST_REFUSAL_CHARS: usize = 200;

/// Why the socket could not be opened.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ConnectError {
    /// The server answered the upgrade with another status than 101.
    #[error("Realtime refused the connection with HTTP {status}: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The server's own words, or the name of the status.
        message: String,
    },
    /// Nothing came of it in [`CONNECT_TIMEOUT`].
    #[error("expected {endpoint} to answer within 15 s, found silence")]
    TimedOut {
        /// The address, without the key.
        endpoint: String,
    },
    /// The name, the connection, TLS, or the upgrade failed.
    #[error("failed to reach {endpoint}: {reason}")]
    Broken {
        /// The address, without the key.
        endpoint: String,
        /// What failed.
        reason: String,
    },
}

impl ConnectError {
    fn refused(endpoint: &Endpoint, response: &Response) -> Self {
        let status = response.status();
        let told = response
            .body()
            .as_deref()
            .and_then(told_in)
            .or_else(|| status.canonical_reason().map(str::to_owned))
            .unwrap_or_default();
        let told = endpoint.redact(&told);
        let message = told
            .chars()
            .filter(|c| !c.is_control())
            .take(LONGEST_REFUSAL_CHARS)
            .collect();
        Self::Refused {
            status: status.as_u16(),
            message,
        }
    }

    fn broken(endpoint: &Endpoint, error: &WebSocketError) -> Self {
        Self::Broken {
            endpoint: endpoint.to_string(),
            reason: endpoint.redact(&error.to_string()),
        }
    }

    /// What the failure means for the next attempt.
    pub fn class(&self) -> ErrorKind {
        match self {
            Self::Refused { status, message } => ErrorKind::of_refusal(*status, message),
            Self::TimedOut { .. } | Self::Broken { .. } => ErrorKind::Network,
        }
    }
}

/// What the socket brought.
#[derive(Debug)]
pub enum Received {
    /// A frame.
    Frame(Frame),
    /// A ping or a pong.
    SignOfLife,
    /// A message that is no frame; it is left out.
    Unreadable(FrameError),
    /// The end, in words.
    Closed(String),
}

/// An open socket.
pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    endpoint: Endpoint,
}

impl Socket {
    /// Opens a socket. May be dropped at any time.
    pub async fn dial(endpoint: Endpoint) -> Result<Self, ConnectError> {
        const NO_DELAY: bool = true;
        let limits = WebSocketConfig::default()
            .max_message_size(Some(LARGEST_MESSAGE_BYTES))
            .max_frame_size(Some(LARGEST_MESSAGE_BYTES))
            .max_write_buffer_size(LARGEST_UNSENT_BYTES);
        let request = endpoint
            .request()
            .map_err(|error| ConnectError::broken(&endpoint, &error))?;
        let dialing = connect_async_tls_with_config(request, Some(limits), NO_DELAY, None);
        match timeout(CONNECT_TIMEOUT, Box::pin(dialing)).await {
            Ok(Ok((stream, _))) => Ok(Self { stream, endpoint }),
            Ok(Err(WebSocketError::Http(response))) => {
                Err(ConnectError::refused(&endpoint, &response))
            }
            Ok(Err(error)) => Err(ConnectError::broken(&endpoint, &error)),
            Err(_) => Err(ConnectError::TimedOut {
                endpoint: endpoint.to_string(),
            }),
        }
    }

    /// What comes next. May be dropped at any time; nothing is lost.
    pub async fn receive(&mut self) -> Received {
        let frame = match self.stream.next().await {
            Some(Ok(Message::Text(text))) => Frame::decode_text(&text),
            Some(Ok(Message::Binary(bytes))) => Frame::decode_binary(&bytes),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                return Received::SignOfLife;
            }
            Some(Ok(Message::Close(close))) => return Received::Closed(told_close(close)),
            Some(Err(error)) => {
                let reason = self.endpoint.redact(&error.to_string());
                return Received::Closed(format!("the connection broke: {reason}"));
            }
            None => return Received::Closed("the server hung up".to_owned()),
        };
        frame.map_or_else(Received::Unreadable, Received::Frame)
    }

    /// Sends a frame. An error, told in words, means that the socket is of no further use.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), String> {
        let sending = self.stream.send(Message::text(frame.encode()));
        match timeout(SEND_TIMEOUT, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                let reason = self.endpoint.redact(&error.to_string());
                Err(format!("the connection broke: {reason}"))
            }
            Err(_) => Err("the connection took nothing for 3 s".to_owned()),
        }
    }

    /// Closes the socket politely, for as long as that takes within its bound; also answers a
    /// close of the server's.
    pub async fn close(mut self) {
        let closing = async {
            if SinkExt::close(&mut self.stream).await.is_ok() {
                while let Some(Ok(_)) = self.stream.next().await {}
            }
        };
        if timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::debug!(endpoint = %self.endpoint, "realtime did not answer the close");
        }
    }
}

/// The words of a refusal: `error` of Realtime, `message` of a gateway. The body is what came with
/// the head; its JSON may stand between the lengths of a chunked transfer.
fn told_in(body: &[u8]) -> Option<String> {
    let body = str::from_utf8(body).ok()?;
    let json = body.get(body.find('{')?..=body.rfind('}')?)?;
    let fields: Value = serde_json::from_str(json).ok()?;
    let told = fields.get("error").or_else(|| fields.get("message"))?;
    told.as_str().map(str::to_owned)
}

fn told_close(close: Option<CloseFrame>) -> String {
    match close {
        None => "the server closed the socket without a code".to_owned(),
        Some(CloseFrame { code, reason }) if reason.is_empty() => {
            format!("the server closed the socket with code {}", u16::from(code))
        }
        Some(CloseFrame { code, reason }) => {
            format!(
                "the server closed the socket with code {} ({reason})",
                u16::from(code)
            )
        }
    }
}

#[cfg(test)]
mod tests;
