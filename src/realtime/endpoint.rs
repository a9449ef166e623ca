//! The address of Realtime and the credential for it: the form of the URL, and where the key goes in the upgrade request.
//!
//! Invariant: nothing printed contains the key. An endpoint shows its URL without user and query, errors repeat nothing of
//! the input, and [`Endpoint::redact`] cleans texts of the server.

use std::fmt;
use std::time::Duration;

use thiserror::Error;
use tokio_tungstenite::tungstenite::Error as WebSocketError;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use url::Url;

use super::frame::PROTOCOL_VERSION;
use super::key::ApiKey;
use super::token::Minter;
use crate::domain::secret::Secret;

/// Why an address cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EndpointError {
    /// Not a URL.
    #[error("expected a URL such as https://<project>.supabase.co, found none ({0})")]
    Malformed(#[from] url::ParseError),
    /// Another scheme, or no host.
    #[error("expected a URL that starts with https://, http://, wss:// or ws:// and names a host")]
    Scheme,
    /// A key that cannot be a header.
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

/// See the module.
#[derive(Clone)]
pub struct Endpoint {
    url: Url,
    credential: Credential,
}

/// What authenticates the socket and its joins.
#[derive(Clone)]
enum Credential {
    /// One key for both.
    Key(Secret),
    /// Tokens for both.
    Tokens(Minter),
    /// The key for the socket, tokens for the joins.
    KeyAndTokens(Secret, Minter),
}

impl Credential {
    fn minter(&self) -> Option<&Minter> {
        match self {
            Self::Key(_) => None,
            Self::Tokens(minter) | Self::KeyAndTokens(_, minter) => Some(minter),
        }
    }

    fn for_socket(&self) -> Secret {
        match self {
            Self::Key(key) | Self::KeyAndTokens(key, _) => key.clone(),
            Self::Tokens(minter) => minter.mint(),
        }
    }
}

impl Endpoint {
    /// The endpoint at `url`, a WebSocket address (http and https mean ws and wss), with a key.
    pub fn new(url: &str, key: Secret) -> Result<Self, EndpointError> {
        let printable = key.expose().bytes().all(|byte| byte.is_ascii_graphic());
        if key.expose().is_empty() || !printable {
            return Err(EndpointError::Key);
        }
        Self::at(url, Credential::Key(key))
    }

    /// The endpoint at `url`, with tokens in place of a key.
    pub fn with_tokens(url: &str, minter: Minter) -> Result<Self, EndpointError> {
        Self::at(url, Credential::Tokens(minter))
    }

    /// The same endpoint, with tokens for the joins.
    #[must_use]
    pub fn with_join_tokens(self, minter: Minter) -> Self {
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

    /// The token of a join: a new one if the agent signs them, the key if it is a JWT, none for an `sb_…` key, which the
    /// server exchanges for its own token when the socket opens.
    pub fn access_token(&self) -> Option<Secret> {
        match &self.credential {
            Credential::Key(key) => {
                let is_jwt = !is_opaque(key) && key.expose().split('.').count() == 3;
                is_jwt.then(|| key.clone())
            }
            Credential::Tokens(minter) | Credential::KeyAndTokens(_, minter) => Some(minter.mint()),
        }
    }

    /// After how long [`Self::access_token`] is to be called again; `None` if it never changes.
    pub fn renew_after(&self) -> Option<Duration> {
        self.credential.minter().map(Minter::renew_after)
    }

    /// What the key, or the tokens, say about themselves.
    pub fn key(&self) -> ApiKey {
        match &self.credential {
            Credential::Key(key) => ApiKey::read(key),
            Credential::Tokens(minter) | Credential::KeyAndTokens(_, minter) => ApiKey::Minted {
                role: minter.role().to_owned(),
            },
        }
    }

    /// The upgrade request. The key is in the query and in a header, which hosted gateways read. An `sb_…` key without TLS
    /// (the Supabase CLI) is in the query only: that gateway exchanges it nowhere else, and Realtime prefers the header.
    pub(super) fn request(&self) -> Result<Request, WebSocketError> {
        let key = self.credential.for_socket();
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

    /// A text of the server without the key and without any JWT.
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

/// The first characters of every JWT: `{"` in base64.
const JWT_BEGINS: &str = "eyJ";

fn is_of_a_jwt(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

/// Whether it is a key that is not a JWT: `sb_secret_…`, `sb_publishable_…`.
fn is_opaque(key: &Secret) -> bool {
    key.expose().starts_with("sb_")
}

/// The URL without user, query and key.
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
