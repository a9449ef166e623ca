//! Where Realtime listens, and the key to it.
//!
//! Owns the URL's form and the place of the key in the upgrade request; does not open anything.
//!
//! Invariants: nothing that is printed holds the key: an endpoint shows its URL without user and
//! query, its errors repeat nothing of what was given, and [`Endpoint::blot`] cleans the rest.

use std::fmt;

use thiserror::Error;
use tokio_tungstenite::tungstenite::Error as WebSocketError;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use url::Url;

use super::frame::PROTOCOL_VERSION;
use crate::domain::secret::Secret;

/// Why an address cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EndpointError {
    /// Not a URL.
    #[error("expected a URL such as https://<project>.supabase.co, found none ({0})")]
    Malformed(#[from] url::ParseError),
    /// A URL of another scheme, or one that cannot have a host.
    #[error("expected a URL that starts with https://, http://, wss:// or ws:// and names a host")]
    Scheme,
    /// A key that cannot be sent.
    #[error("expected an API key in printable ASCII, found other characters: copy the key again")]
    Key,
}

/// The WebSocket address of Realtime behind a project's address:
/// `https://<project>.supabase.co` gives `wss://<project>.supabase.co/realtime/v1/websocket`.
pub fn websocket_url(supabase_url: &str) -> Result<Url, EndpointError> {
    let mut url = Url::parse(supabase_url.trim())?;
    url.set_query(None);
    url.set_fragment(None);
    url.path_segments_mut()
        .map_err(|()| EndpointError::Scheme)?
        .pop_if_empty()
        .extend(["realtime", "v1", "websocket"]);
    with_websocket_scheme(url)
}

fn with_websocket_scheme(mut url: Url) -> Result<Url, EndpointError> {
    let scheme = match url.scheme() {
        "https" | "wss" => "wss",
        "http" | "ws" => "ws",
        _ => return Err(EndpointError::Scheme),
    };
    url.set_scheme(scheme).map_err(|()| EndpointError::Scheme)?;
    if url.has_host() {
        Ok(url)
    } else {
        Err(EndpointError::Scheme)
    }
}

/// Where Realtime listens and the key to it. Shows itself without the key.
#[derive(Clone)]
pub struct Endpoint {
    url: Url,
    key: Secret,
}

impl Endpoint {
    /// The endpoint at `url`, a WebSocket address (http and https mean ws and wss). A key in its
    /// query is replaced by `key`.
    pub fn new(url: &str, key: Secret) -> Result<Self, EndpointError> {
        let mut url = with_websocket_scheme(Url::parse(url.trim())?)?;
        let others: Vec<(String, String)> = url
            .query_pairs()
            .filter(|(name, _)| name != "apikey" && name != "vsn")
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        url.set_query(None);
        url.set_fragment(None);
        if !others.is_empty() {
            url.query_pairs_mut().extend_pairs(others);
        }
        let printable = key.expose().bytes().all(|byte| byte.is_ascii_graphic());
        if key.expose().is_empty() || !printable {
            return Err(EndpointError::Key);
        }
        Ok(Self { url, key })
    }

    /// The token that each join carries: the key where it is a JWT, nothing for `sb_…` keys, which
    /// the server exchanges for a token of its own when the socket opens.
    pub fn access_token(&self) -> Option<Secret> {
        let key = self.key.expose();
        let is_jwt = !key.starts_with("sb_") && key.split('.').count() == 3;
        is_jwt.then(|| self.key.clone())
    }

    /// The upgrade request. The key goes both into the header, which a hosted gateway reads, and
    /// into the query, the only place where a local gateway exchanges an `sb_…` key.
    pub(super) fn request(&self) -> Result<Request, WebSocketError> {
        let mut url = self.url.clone();
        url.query_pairs_mut()
            .append_pair("apikey", self.key.expose())
            .append_pair("vsn", PROTOCOL_VERSION);
        let mut request = url.as_str().into_client_request()?;
        let mut key = HeaderValue::from_str(self.key.expose())?;
        key.set_sensitive(true);
        request.headers_mut().insert("x-api-key", key);
        Ok(request)
    }

    /// A text from outside, with the key blotted out.
    pub(super) fn blot(&self, text: &str) -> String {
        text.replace(self.key.expose(), "[key]")
    }
}

/// The address without user, query and key.
impl fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{}://{}",
            self.url.scheme(),
            self.url.host_str().unwrap_or_default()
        )?;
        if let Some(port) = self.url.port() {
            write!(formatter, ":{port}")?;
        }
        formatter.write_str(self.url.path())
    }
}

#[cfg(test)]
mod tests;
