//! The HTTP side of a connection: path, version, key, and the upgrade to WebSocket.
//!
//! Owns the answers that a client gets before there is a socket, in the real server's words. The caller bounds the time of the
//! whole handshake.
//!
//! Invariant: a key is compared and dropped; it appears in no answer and no log.

use axum::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        handshake::{machine::TryParse, server},
        protocol::{Role, WebSocketConfig},
    },
};
use url::form_urlencoded;

use super::{faults::Refusal, frame::Version, options::RealtimeOptions, session::Grant};
use crate::demo::jwt::{self, JwtError};

/// The paths that are served: the one behind Supabase's gateway and a bare server's own.
const PATHS: [&str; 2] = ["/realtime/v1/websocket", "/socket/websocket"];

/// Bytes of a request's head at most.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Bytes of a frame or message of a client at most, as the real server's `max_frame_size`.
const MAX_FRAME_BYTES: usize = 5_000_000;

/// An accepted client.
pub struct Accepted {
    /// Its socket.
    pub socket: WebSocketStream<TcpStream>,
    /// The version that it speaks.
    pub version: Version,
    /// What its key grants.
    pub grant: Grant,
}

/// An answer that ends the connection.
struct HttpAnswer {
    status: StatusCode,
    body: String,
    json: bool,
}

/// An accepted upgrade request.
struct AcceptedUpgrade {
    version: Version,
    grant: Grant,
    upgrade: Response<()>,
}

/// Reads a request and upgrades it, or refuses it with an HTTP answer. None when the connection has ended.
pub async fn accept(
    mut stream: TcpStream,
    options: &RealtimeOptions,
    refusal: Option<Refusal>,
    now: i64,
) -> Option<Accepted> {
    let (request, rest) = read_head(&mut stream).await?;
    let admission = match refusal {
        None => admit(&request, options, now),
        Some(Refusal::Reset) => return None,
        Some(Refusal::Http { status, message }) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            Err(HttpAnswer::json(status, &message))
        }
    };
    let AcceptedUpgrade {
        version,
        grant,
        upgrade,
    } = match admission {
        Ok(admission) => admission,
        Err(answer) => {
            let mut response = Response::new(());
            *response.status_mut() = answer.status;
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(answer.body.len()));
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
            headers.insert(header::CONTENT_TYPE, answer.content_type());
            let mut bytes = head(&response)?;
            bytes.extend_from_slice(answer.body.as_bytes());
            stream.write_all(&bytes).await.ok()?;
            stream.shutdown().await.ok()?;
            return None;
        }
    };
    stream.write_all(&head(&upgrade)?).await.ok()?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_FRAME_BYTES))
        .max_frame_size(Some(MAX_FRAME_BYTES))
        .write_buffer_size(0);
    let socket =
        WebSocketStream::from_partially_read(stream, rest, Role::Server, Some(config)).await;
    Some(Accepted {
        socket,
        version,
        grant,
    })
}

/// The request, and the bytes after its head.
async fn read_head(stream: &mut TcpStream) -> Option<(Request<()>, Vec<u8>)> {
    let mut bytes = Vec::with_capacity(1_024);
    while bytes.len() < MAX_HEAD_BYTES {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        if let Some((size, request)) = Request::try_parse(&bytes).ok()? {
            return Some((request, bytes.split_off(size)));
        }
    }
    None
}

fn admit(
    request: &Request<()>,
    options: &RealtimeOptions,
    now: i64,
) -> Result<AcceptedUpgrade, HttpAnswer> {
    let path = request.uri().path();
    if !PATHS.contains(&path.strip_suffix('/').unwrap_or(path)) {
        return Err(HttpAnswer::text(StatusCode::NOT_FOUND, "Not Found"));
    }
    let upgrade = server::create_response(request)
        .map_err(|_| HttpAnswer::text(StatusCode::BAD_REQUEST, "expected a WebSocket upgrade"))?;
    let query = request.uri().query().unwrap_or_default();
    let version = Version::negotiate(parameter(query, "vsn").as_deref())
        .ok_or_else(|| HttpAnswer::text(StatusCode::FORBIDDEN, ""))?;
    let key = key_of(request.headers()).or_else(|| parameter(query, "apikey"));
    let grant = match key {
        None => Err("API key is missing".to_owned()),
        Some(key) => grant_of(&key, options, now),
    };
    let grant = grant.map_err(|message| HttpAnswer::json(StatusCode::UNAUTHORIZED, &message))?;
    Ok(AcceptedUpgrade {
        version,
        grant,
        upgrade,
    })
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

fn key_of(headers: &HeaderMap) -> Option<String> {
    headers
        .get("x-api-key")?
        .to_str()
        .ok()
        .map(ToOwned::to_owned)
}

fn parameter(query: &str, name: &str) -> Option<String> {
    form_urlencoded::parse(query.as_bytes())
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.into_owned())
}

fn head(response: &Response<()>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    server::write_response(&mut bytes, response).ok()?;
    Some(bytes)
}

impl HttpAnswer {
    fn text(status: StatusCode, body: &str) -> Self {
        Self {
            status,
            body: body.to_owned(),
            json: false,
        }
    }

    fn json(status: StatusCode, message: &str) -> Self {
        let body = serde_json::json!({ "error": message }).to_string();
        Self {
            status,
            body,
            json: true,
        }
    }

    fn content_type(&self) -> HeaderValue {
        HeaderValue::from_static(if self.json {
            "application/json; charset=utf-8"
        } else {
            "text/html; charset=utf-8"
        })
    }
}
