//! Where Realtime listens, and the key to it.
//!
//! Owns the URL's form and the place of the key in the upgrade request; does not open anything.
//!
//! Invariants: nothing that is printed holds the key: an endpoint shows its URL without user and
//! query, its errors repeat nothing of what was given, and [`Endpoint::redact`] cleans the rest.

use std::fmt;
use std::time::Duration;

use thiserror::Error;
use tokio_tungstenite::tungstenite::Error as WebSocketError;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use url::Url;

use super::frame::PROTOCOL_VERSION;
use super::key::Key;
use super::token::Minter;
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
    credential: Credential,
}

/// What opens the socket, and what joins on it.
#[derive(Clone)]
enum Credential {
    /// One key does both.
    Key(Secret),
    /// Tokens of our own making do both.
    Tokens(Minter),
    /// The key opens, tokens of our own making join.
    KeyAndTokens(Secret, Minter),
}

impl Credential {
    fn minter(&self) -> Option<&Minter> {
        match self {
            Self::Key(_) => None,
            Self::Tokens(minter) | Self::KeyAndTokens(_, minter) => Some(minter),
        }
    }

    /// What opens the socket.
    fn opens(&self) -> Secret {
        match self {
            Self::Key(key) | Self::KeyAndTokens(key, _) => key.clone(),
            Self::Tokens(minter) => minter.mint(),
        }
    }
}

impl Endpoint {
    /// The endpoint at `url`, a WebSocket address (http and https mean ws and wss). A key in its
    /// query is replaced by `key`.
    pub fn new(url: &str, key: Secret) -> Result<Self, EndpointError> {
        let printable = key.expose().bytes().all(|byte| byte.is_ascii_graphic());
        if key.expose().is_empty() || !printable {
            return Err(EndpointError::Key);
        }
        Self::at(url, Credential::Key(key))
    }

    /// The endpoint at `url`, with tokens of our own making: they open the socket and join.
    pub fn with_tokens(url: &str, minter: Minter) -> Result<Self, EndpointError> {
        Self::at(url, Credential::Tokens(minter))
    }

    /// The same endpoint, where the key opens the socket and tokens of our own making join.
    #[must_use]
    pub fn joined_with(self, minter: Minter) -> Self {
        let credential = match self.credential {
            Credential::Key(key) | Credential::KeyAndTokens(key, _) => {
                Credential::KeyAndTokens(key, minter)
            }
            Credential::Tokens(_) => Credential::Tokens(minter),
        };
        Self { credential, ..self }
    }

    fn at(url: &str, credential: Credential) -> Result<Self, EndpointError> {
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
        Ok(Self { url, credential })
    }

    /// The token that a join carries: a new one where we make them, the key where it is a JWT, nothing
    /// for `sb_…` keys, which the server exchanges for a token of its own when the socket opens.
    pub fn access_token(&self) -> Option<Secret> {
        match &self.credential {
            Credential::Key(key) => {
                let is_jwt = !is_opaque(key) && key.expose().split('.').count() == 3;
                is_jwt.then(|| key.clone())
            }
            Credential::Tokens(minter) | Credential::KeyAndTokens(_, minter) => Some(minter.mint()),
        }
    }

    /// After how long [`Self::access_token`] is to be asked again; `None` where it never changes.
    pub fn renew_after(&self) -> Option<Duration> {
        self.credential.minter().map(Minter::renew_after)
    }

    /// What can be told of the key, or of the tokens.
    pub fn key(&self) -> Key {
        match &self.credential {
            Credential::Key(key) => Key::read(key),
            Credential::Tokens(minter) | Credential::KeyAndTokens(_, minter) => Key::Minted {
                role: minter.role().to_owned(),
            },
        }
    }

    /// The upgrade request. The key goes both into the header, which a hosted gateway reads, and into the
    /// query. An `sb_…` key on a line without TLS, which is the Supabase CLI's, goes into the query alone:
    /// that gateway exchanges it there and nowhere else, and Realtime looks at the header first.
    pub(super) fn request(&self) -> Result<Request, WebSocketError> {
        let key = self.credential.opens();
        let mut url = self.url.clone();
        url.query_pairs_mut()
            .append_pair("apikey", key.expose())
            .append_pair("vsn", PROTOCOL_VERSION);
        let mut request = url.as_str().into_client_request()?;
        if !(is_opaque(&key) && self.url.scheme() == "ws") {
            let mut header = HeaderValue::from_str(key.expose())?;
            header.set_sensitive(true);
            request.headers_mut().insert("x-api-key", header);
        }
        Ok(request)
    }

    /// A text from outside, with the key, and every JWT, blotted out.
    pub(super) fn redact(&self, text: &str) -> String {
        let text = match &self.credential {
            Credential::Key(key) | Credential::KeyAndTokens(key, _) => {
                text.replace(key.expose(), "[key]")
            }
            Credential::Tokens(_) => text.to_owned(),
        };
        let mut rest = text.as_str();
        let mut clean = String::new();
        while let Some((before, jwt)) = rest.split_once(JWT_BEGINS) {
            clean.push_str(before);
            clean.push_str("[token]");
            rest = jwt.trim_start_matches(is_of_a_jwt);
        }
        clean + rest
    }
}

/// How a JWT begins: `{"` in base64.
const JWT_BEGINS: &str = "eyJ";

fn is_of_a_jwt(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

/// Whether it is one of the keys that are no JWT: `sb_secret_…`, `sb_publishable_…`.
fn is_opaque(key: &Secret) -> bool {
    key.expose().starts_with("sb_")
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
