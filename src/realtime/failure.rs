//! The kind of a failure of Realtime, by the HTTP status that refused the socket or by the server's text.
//!
//! The server sends codes in replies to a join and loose text elsewhere, so a text is searched for known words; an unknown
//! one is an ordinary failure of the channel.

use std::fmt;
use std::time::Duration;

use crate::domain::error_policy::{ErrorKind, Failure};
use crate::domain::transport::Transport;

impl ErrorKind {
    /// Of an HTTP response that refused the socket.
    pub fn from_http_status(status: u16, message: &str) -> Self {
        match status {
            401 => Self::Key,
            403 | 404 => Self::Project,
            429 => Self::Quota,
            _ => {
                let kind = Self::from_realtime_text(message);
                if kind == Self::Channel {
                    Self::Network
                } else {
                    kind
                }
            }
        }
    }

    /// Of a text with which the server refused or ended a channel.
    pub fn from_realtime_text(text: &str) -> Self {
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if has(EXPIRED_WORDS) {
            Self::Expired
        } else if has(TOPIC_WORDS) {
            Self::Topic
        } else if has(KEY_WORDS) {
            Self::Key
        } else if has(PROJECT_WORDS) {
            Self::Project
        } else if has(QUOTA_WORDS) {
            Self::Quota
        } else if has(TABLE_WORDS) {
            Self::Table
        } else {
            Self::Channel
        }
    }
}

const EXPIRED_WORDS: &[&str] = &["Token has expired"];
const KEY_WORDS: &[&str] = &[
    "InvalidJWTToken",
    "MalformedJWT",
    "JwtSignatureError",
    "JwtSignerError",
    "Unauthorized",
    "API key is missing",
    "not a valid JWT",
    "JWT signature",
    "signature_error",
    "required in JWT",
];
const PROJECT_WORDS: &[&str] = &[
    "TenantNotFound",
    "Tenant not found",
    "RealtimeDisabledForTenant",
    "suspended",
    "PrivateOnly",
];
const QUOTA_WORDS: &[&str] = &[
    "RateLimitReached",
    "Too many messages per second",
    "Too many joins",
    "Too many channels",
    "Too many connected users",
    "DatabaseLackOfConnections",
    "IncreaseConnectionPool",
];
const TOPIC_WORDS: &[&str] = &["permissions to read from this Channel topic"];
const TABLE_WORDS: &[&str] = &["check Realtime is enabled"];

/// A transport is not live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Down {
    /// Which one.
    pub transport: Transport,
    /// Why.
    pub failure: Failure,
    /// How long until the next attempt.
    pub retry_in: Duration,
}

/// What failed, what to do, and when the next attempt is.
impl fmt::Display for Down {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let retry_in = self.retry_in.as_secs_f64();
        write!(formatter, "{}; retrying in {retry_in:.1} s", self.failure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_the_upgrade_are_told_apart() {
        for (status, message, kind) in [
            (401, "API key is missing", ErrorKind::Key),
            (401, "Token has expired", ErrorKind::Key),
            (403, "", ErrorKind::Project),
            (404, "Tenant not found", ErrorKind::Project),
            (429, "Too many connected users", ErrorKind::Quota),
            (500, "", ErrorKind::Network),
            (502, "Bad Gateway", ErrorKind::Network),
            (503, "", ErrorKind::Network),
        ] {
            assert_eq!(
                ErrorKind::from_http_status(status, message),
                kind,
                "{status} {message}"
            );
        }
    }

    #[test]
    fn texts_of_the_server_are_told_apart() {
        for (text, kind) in [
            (
                "InvalidJWTToken: Token has expired 60 seconds ago",
                ErrorKind::Expired,
            ),
            (
                "JwtSignatureError: Failed to validate JWT signature",
                ErrorKind::Key,
            ),
            (":signature_error", ErrorKind::Key),
            ("Token has expired 0 seconds ago", ErrorKind::Expired),
            (
                "RealtimeDisabledForTenant: Realtime disabled for this tenant",
                ErrorKind::Project,
            ),
            (
                "ClientJoinRateLimitReached: Too many joins per second",
                ErrorKind::Quota,
            ),
            (
                "ChannelRateLimitReached: Too many channels",
                ErrorKind::Quota,
            ),
            (
                "Unable to subscribe to changes with given parameters. Please check Realtime is \
                 enabled for the given connect parameters: [event: *, schema: public]",
                ErrorKind::Table,
            ),
            (
                "Unable to subscribe to changes with given parameters. An exception happened so \
                 please check your connect parameters",
                ErrorKind::Channel,
            ),
            ("UnknownErrorOnChannel: %{}", ErrorKind::Channel),
            ("words nobody has seen before", ErrorKind::Channel),
        ] {
            assert_eq!(ErrorKind::from_realtime_text(text), kind, "{text}");
        }
    }

    #[test]
    fn a_line_for_the_log_says_what_happened_what_to_do_and_when() {
        let down = Down {
            transport: Transport::Changes,
            failure: Failure::new(ErrorKind::Key, "HTTP 401: Token has expired"),
            retry_in: Duration::from_millis(7_500),
        };
        let line = down.to_string();
        assert!(line.contains(": HTTP 401: Token has expired; "), "{line}");
        assert!(line.contains("SUPABASE_SERVICE_ROLE_KEY"), "{line}");
        assert!(line.ends_with("; retrying in 7.5 s"), "{line}");
    }
}
