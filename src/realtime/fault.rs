//! What an end of the feed means and what a person can do about it.
//!
//! Sorts HTTP refusals and the server's texts into a few classes, each with its advice and its
//! pace of retries. The server gives codes on join replies and loose text elsewhere, so a text is
//! searched for known words; one that is unknown is an ordinary fault. No class ends the retries.

use std::fmt;
use std::time::Duration;

/// The kind of an end: how soon it is tried again, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DownClass {
    /// The agent asked for it: a rejoin or a new socket.
    Asked,
    /// The socket could not be opened, broke, or fell silent.
    Network,
    /// The server closed the channel, did not answer a join, or failed for a reason of its own.
    Channel,
    /// A table of the join cannot be followed. One such table kills all bindings of the join.
    Table,
    /// A quota of the project is used up.
    Quota,
    /// The API key was refused.
    Key,
    /// The project is unknown, suspended, or has Realtime switched off.
    Project,
}

impl DownClass {
    /// Tried again slowly: it takes a person, or a quota's window, to mend it.
    pub fn is_slow(self) -> bool {
        match self {
            Self::Asked | Self::Network | Self::Channel => false,
            Self::Table | Self::Quota | Self::Key | Self::Project => true,
        }
    }

    /// What to do about it, for the classes that wait for a person.
    pub fn advice(self) -> Option<&'static str> {
        match self {
            Self::Asked | Self::Network | Self::Channel => None,
            Self::Table => Some(
                "a table is missing, not published or not readable: run `visit-pacer migrate`, \
                 which adds visit_distribution to the publication supabase_realtime and grants \
                 SELECT on it to service_role",
            ),
            Self::Quota => Some(
                "the project's Realtime quota is used up: close other connections, or raise the \
                 limit in the Realtime settings of the project",
            ),
            Self::Key => Some(
                "Realtime does not accept the API key: copy the secret (or service_role) key of \
                 this very project from its API settings into SUPABASE_SERVICE_ROLE_KEY or \
                 SUPABASE_SECRET_KEY",
            ),
            Self::Project => Some(
                "Realtime does not serve this project: check that SUPABASE_URL (or REALTIME_URL) \
                 is the project's own address, restore the project if it is paused, and enable \
                 Realtime with public access to channels in its settings",
            ),
        }
    }

    /// The class of an HTTP answer that refused the socket.
    pub fn of_refusal(status: u16, message: &str) -> Self {
        match status {
            401 => Self::Key,
            403 | 404 => Self::Project,
            429 => Self::Quota,
            _ => {
                let class = Self::of_text(message);
                if class == Self::Channel {
                    Self::Network
                } else {
                    class
                }
            }
        }
    }

    /// The class of a text by which the server refused or ended a channel.
    pub fn of_text(text: &str) -> Self {
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if has(KEY_WORDS) {
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

const KEY_WORDS: &[&str] = &[
    "InvalidJWTToken",
    "MalformedJWT",
    "JwtSignatureError",
    "JwtSignerError",
    "Unauthorized",
    "API key is missing",
    "Token has expired",
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
const TABLE_WORDS: &[&str] = &["check Realtime is enabled"];

/// The feed is not live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Down {
    /// The kind of the end.
    pub class: DownClass,
    /// What happened, in a fragment that names no secret.
    pub reason: String,
    /// How long from now until the next attempt.
    pub retry_in: Duration,
}

/// One line for a log: what happened, what to do, when it is tried again.
impl fmt::Display for Down {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.reason)?;
        if let Some(advice) = self.class.advice() {
            write!(formatter, "; {advice}")?;
        }
        write!(
            formatter,
            "; tried again in {:.1} s",
            self.retry_in.as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_the_upgrade_are_told_apart() {
        for (status, message, class) in [
            (401, "API key is missing", DownClass::Key),
            (401, "Token has expired", DownClass::Key),
            (403, "", DownClass::Project),
            (404, "Tenant not found", DownClass::Project),
            (429, "Too many connected users", DownClass::Quota),
            (500, "", DownClass::Network),
            (502, "Bad Gateway", DownClass::Network),
            (503, "", DownClass::Network),
        ] {
            assert_eq!(
                DownClass::of_refusal(status, message),
                class,
                "{status} {message}"
            );
        }
    }

    #[test]
    fn texts_of_the_server_are_told_apart() {
        for (text, class) in [
            (
                "InvalidJWTToken: Token has expired 60 seconds ago",
                DownClass::Key,
            ),
            (
                "JwtSignatureError: Failed to validate JWT signature",
                DownClass::Key,
            ),
            (":signature_error", DownClass::Key),
            ("Token has expired 0 seconds ago", DownClass::Key),
            (
                "RealtimeDisabledForTenant: Realtime disabled for this tenant",
                DownClass::Project,
            ),
            (
                "ClientJoinRateLimitReached: Too many joins per second",
                DownClass::Quota,
            ),
            (
                "ChannelRateLimitReached: Too many channels",
                DownClass::Quota,
            ),
            (
                "Unable to subscribe to changes with given parameters. Please check Realtime is \
                 enabled for the given connect parameters: [event: *, schema: public]",
                DownClass::Table,
            ),
            (
                "Unable to subscribe to changes with given parameters. An exception happened so \
                 please check your connect parameters",
                DownClass::Channel,
            ),
            ("UnknownErrorOnChannel: %{}", DownClass::Channel),
            ("words nobody has seen before", DownClass::Channel),
        ] {
            assert_eq!(DownClass::of_text(text), class, "{text}");
        }
    }

    #[test]
    fn what_waits_for_a_person_says_what_to_do_and_what_does_not_says_nothing() {
        for class in [
            DownClass::Asked,
            DownClass::Network,
            DownClass::Channel,
            DownClass::Table,
            DownClass::Quota,
            DownClass::Key,
            DownClass::Project,
        ] {
            assert_eq!(class.advice().is_some(), class.is_slow(), "{class:?}");
        }
    }

    #[test]
    fn a_line_for_the_log_tells_what_happened_what_to_do_and_when() {
        let down = Down {
            class: DownClass::Key,
            reason: "refused with HTTP 401: Token has expired".to_owned(),
            retry_in: Duration::from_millis(7_500),
        };
        let line = down.to_string();
        assert!(
            line.starts_with("refused with HTTP 401: Token has expired; "),
            "{line}"
        );
        assert!(line.contains("SUPABASE_SERVICE_ROLE_KEY"), "{line}");
        assert!(line.ends_with("; tried again in 7.5 s"), "{line}");
    }
}
