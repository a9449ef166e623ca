//! The HTTP side of a connection: path, version, key, and the upgrade to WebSocket.
//!
//! Owns the answers that a client gets before there is a socket, in the real server's words. The caller bounds the time of the
//! whole handshake.
//!
//! Invariant: a key is compared and dropped; it appears in no answer and no log.

use axum::http::{HeaderValue, Request, StatusCode, header};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async_with_config,
    tungstenite::{
        handshake::server::{ErrorResponse, Response},
        protocol::WebSocketConfig,
    },
};
use url::form_urlencoded;

use super::{faults::Refusal, frame::Version, options::RealtimeOptions, session::Grant};
use crate::demo::jwt::{self, JwtError};

/// The paths that are served: the one behind Supabase's gateway and a bare server's own.
const PATHS: [&str; 2] = ["/realtime/v1/websocket", "/socket/websocket"];

/// Bytes of a frame or message of a client at most, as the real server's `max_frame_size`.
const MAX_FRAME_BYTES: usize = 5_000_000;

const TEXT: &str = "text/html; charset=utf-8";
const JSON: &str = "application/json; charset=utf-8";

/// An accepted client.
pub struct Accepted {
    /// Its socket.
    pub socket: WebSocketStream<TcpStream>,
    /// The version that it speaks.
    pub version: Version,
    /// What its key grants.
    pub grant: Grant,
}

/// Reads a request and upgrades it, or refuses it with an HTTP answer. None when the connection has ended.
#[expect(clippy::result_large_err, reason = "the answer that tungstenite takes")]
pub async fn accept(
    stream: TcpStream,
    options: &RealtimeOptions,
    refusal: Option<Refusal>,
    now: i64,
) -> Option<Accepted> {
    let refused = match refusal {
        None => None,
        Some(Refusal::Reset) => return None,
        Some(Refusal::Http { status, message }) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            Some(refuse(status, &message))
        }
    };
    let mut admitted = None;
    let admit = |request: &Request<()>, upgrade: Response| match refused {
        Some(refused) => Err(refused),
        None => {
            admitted = Some(admit(request, options, now)?);
            Ok(upgrade)
        }
    };
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_FRAME_BYTES))
        .max_frame_size(Some(MAX_FRAME_BYTES))
        .write_buffer_size(0);
    let socket = accept_hdr_async_with_config(stream, admit, Some(config)).await;
    let (socket, (version, grant)) = (socket.ok()?, admitted?);
    Some(Accepted {
        socket,
        version,
        grant,
    })
}

#[expect(clippy::result_large_err, reason = "the answer that tungstenite takes")]
fn admit(
    request: &Request<()>,
    options: &RealtimeOptions,
    now: i64,
) -> Result<(Version, Grant), ErrorResponse> {
    let path = request.uri().path();
    if !PATHS.contains(&path.strip_suffix('/').unwrap_or(path)) {
        return Err(answer(StatusCode::NOT_FOUND, TEXT, "Not Found"));
    }
    let query = request.uri().query().unwrap_or_default();
    let version = Version::negotiate(parameter(query, "vsn").as_deref())
        .ok_or_else(|| answer(StatusCode::FORBIDDEN, TEXT, ""))?;
    let header = request.headers().get("x-api-key");
    let header = header.and_then(|key| Some(key.to_str().ok()?.to_owned()));
    let grant = match header.or_else(|| parameter(query, "apikey")) {
        None => Err("API key is missing".to_owned()),
        Some(key) => grant_of(&key, options, now),
    };
    let grant = grant.map_err(|message| refuse(StatusCode::UNAUTHORIZED, &message))?;
    Ok((version, grant))
}

fn grant_of(key: &str, options: &RealtimeOptions, now: i64) -> Result<Grant, String> {
    if options.extra_keys.iter().any(|known| known.expose() == key) {
        return Ok(Grant {
            role: "service_role".to_owned(),
            expires_at: i64::try_from(options.limits.opaque_key_life.as_secs())
                .ok()
                .and_then(|life| now.checked_add(life)),
        });
    }
    jwt::verify(&options.jwt_secret, key, now)
        .map(Grant::from)
        .map_err(|error| match error {
            JwtError::Expired { .. } => "Token has expired".to_owned(),
            other => other.to_string(),
        })
}

fn parameter(query: &str, name: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes())
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.into_owned())
}

fn refuse(status: StatusCode, message: &str) -> ErrorResponse {
    let body = serde_json::json!({ "error": message }).to_string();
    answer(status, JSON, &body)
}

fn answer(status: StatusCode, content_type: &'static str, body: &str) -> ErrorResponse {
    let mut answer = ErrorResponse::new(Some(body.to_owned()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
