//! The WebSocket to Realtime: opens it, moves frames, closes it; with its limits of time and size.
//!
//! Invariants: no text of the server contains the key; every wait for the server, except for its next frame, is bounded.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt as _};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::client::Response;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_tls_with_config};

use super::endpoint::Endpoint;
use super::frame::Frame;
use super::session::SessionInput;
use crate::domain::error_policy::{ErrorKind, Failure};

/// From the DNS lookup to the upgrade. The server delays a refusal by 2 s.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// For sending a frame. Frames are small: a socket that is full for this long is dead.
const SEND_TIMEOUT: Duration = Duration::from_secs(3);
/// For the closing handshake.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// The largest message accepted. The server truncates rows at 1 MiB of its decoder's text; escaping makes up to six times
/// as much of it, and names and types of the columns are added.
const LARGEST_MESSAGE_BYTES: usize = 8 * 1024 * 1024;
/// The largest amount of unsent data; a join is under 10 KiB.
const LARGEST_UNSENT_BYTES: usize = 256 * 1024;
/// The longest text of a refusal that is kept.
const LONGEST_REFUSAL_CHARS: usize = 200;

/// An open socket.
pub struct Socket {
    stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    endpoint: Endpoint,
}

impl Socket {
    /// Opens a socket. Cancel safe.
    pub async fn dial(endpoint: Endpoint) -> Result<Self, Failure> {
        const NO_DELAY: bool = true;
        let limits = WebSocketConfig::default()
            .max_message_size(Some(LARGEST_MESSAGE_BYTES))
            .max_frame_size(Some(LARGEST_MESSAGE_BYTES))
            .max_write_buffer_size(LARGEST_UNSENT_BYTES);
        let request = endpoint
            .request()
            .map_err(|error| unreachable(&endpoint, &error))?;
        let dialing = connect_async_tls_with_config(request, Some(limits), NO_DELAY, None);
        match timeout(CONNECT_TIMEOUT, Box::pin(dialing)).await {
            Ok(Ok((stream, _))) => Ok(Self { stream, endpoint }),
            Ok(Err(WebSocketError::Http(response))) => Err(refusal(&endpoint, &response)),
            Ok(Err(error)) => Err(unreachable(&endpoint, &error)),
            Err(_) => Err(Failure::new(
                ErrorKind::Network,
                format!("no answer from {endpoint} within 15 s"),
            )),
        }
    }

    /// The next message, or the end of the socket. Cancel safe.
    pub async fn receive(&mut self) -> SessionInput {
        let frame = match self.stream.next().await {
            Some(Ok(Message::Text(text))) => Frame::decode_text(&text),
            Some(Ok(Message::Binary(bytes))) => Frame::decode_binary(&bytes),
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                return SessionInput::Activity;
            }
            Some(Ok(Message::Close(close))) => return SessionInput::Closed(close_reason(close)),
            Some(Err(error)) => return SessionInput::Closed(self.broken(&error)),
            None => return SessionInput::Closed("closed without a close frame".to_owned()),
        };
        frame.map_or_else(
            |error| {
                tracing::debug!(%error, "Unreadable frame from Realtime");
                SessionInput::Activity
            },
            SessionInput::Received,
        )
    }

    fn broken(&self, error: &WebSocketError) -> String {
        self.endpoint.redact(&error.to_string())
    }

    /// Sends a frame. After an error the socket cannot be used any more.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), String> {
        let sending = self.stream.send(Message::text(frame.encode()));
        match timeout(SEND_TIMEOUT, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.broken(&error)),
            Err(_) => Err("sending timed out after 3 s".to_owned()),
        }
    }

    /// Closes the socket with the closing handshake, which may also answer a close of the server.
    pub async fn close(mut self) {
        let closing = async {
            if SinkExt::close(&mut self.stream).await.is_ok() {
                while let Some(Ok(_)) = self.stream.next().await {}
            }
        };
        if timeout(CLOSE_TIMEOUT, closing).await.is_err() {
            tracing::debug!(endpoint = %self.endpoint, "Realtime did not answer the close frame");
        }
    }
}

fn refusal(endpoint: &Endpoint, response: &Response) -> Failure {
    let status = response.status();
    let message = (response.body().as_deref())
        .and_then(refusal_message)
        .or_else(|| status.canonical_reason().map(str::to_owned))
        .unwrap_or_default();
    let message: String = (endpoint.redact(&message).chars())
        .filter(|c| !c.is_control())
        .take(LONGEST_REFUSAL_CHARS)
        .collect();
    let kind = ErrorKind::from_http_status(status.as_u16(), &message);
    Failure::new(kind, format!("HTTP {}: {message}", status.as_u16()))
}

fn unreachable(endpoint: &Endpoint, error: &WebSocketError) -> Failure {
    let reason = endpoint.redact(&error.to_string());
    Failure::new(
        ErrorKind::Network,
        format!("cannot reach {endpoint}: {reason}"),
    )
}

/// The message in the body of a refusal: `error` of Realtime, `message` of a gateway. The body is unparsed, so the JSON may be
/// between the lengths of a chunked transfer.
fn refusal_message(body: &[u8]) -> Option<String> {
    let body = str::from_utf8(body).ok()?;
    let json = body.get(body.find('{')?..=body.rfind('}')?)?;
    let fields: Value = serde_json::from_str(json).ok()?;
    let message = fields.get("error").or_else(|| fields.get("message"))?;
    message.as_str().map(str::to_owned)
}

fn close_reason(close: Option<CloseFrame>) -> String {
    match close {
        None => "closed by the server without a code".to_owned(),
        Some(CloseFrame { code, reason }) if reason.is_empty() => {
            format!("closed by the server with code {}", u16::from(code))
        }
        Some(CloseFrame { code, reason }) => {
            format!(
                "closed by the server with code {} ({reason})",
                u16::from(code)
            )
        }
    }
}

#[cfg(test)]
mod tests;
