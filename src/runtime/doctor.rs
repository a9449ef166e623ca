//! Looks everything over that the agent stands on: the database, the key, Realtime, and that an edit really comes back.
//!
//! Owns the check at Realtime: it listens in each way as the agent does, touches the canary, and waits for what tells of that.
//! What is asked of the database is in [`crate::postgres::doctor`].

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::realtime_state::{agent_event, bindings};
use crate::domain::agent::{Published, RealtimeEvent};
use crate::domain::error_policy::ErrorKind;
use crate::domain::finding::{Finding, Fix, Severity};
use crate::domain::time::{DbTime, micros_of};
use crate::domain::transport::{Following, ListenBy, Transport};
use crate::postgres::connection::Connection;
use crate::postgres::failure::Failure;
use crate::postgres::maintenance::{self, Identity};
use crate::postgres::reconnect::Database;
use crate::postgres::{doctor, rows};
use crate::realtime::{ApiKey, Down, Endpoint, FeedConfig, FeedEvent, feed};
use crate::settings::SettingError;

/// How long Realtime may take to be live; a cold one needs 15 s to reach its database.
const LIVE_WITHIN: Duration = Duration::from_secs(25);
/// How long an event may take, and how often the canary is touched before it is given up.
const ECHO_WITHIN: Duration = Duration::from_secs(4);
const TOUCHES: u32 = 3;
/// Attempts to get live that may fail before it is given up.
const FAILURES: u32 = 3;
/// Events that may wait while the canary is being touched.
const EVENTS: usize = 64;
/// A key that is good for less than this is worth a note, in seconds.
const KEY_ENDS_SOON_S: i64 = 7 * 86_400;

/// Looks at everything. An endpoint that cannot be told is a finding, too.
pub async fn examine(
    database: &Database,
    endpoint: Result<Endpoint, SettingError>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let recognised = Box::pin(database.clone().recognised()).await;
    let opened = match &recognised {
        Ok(database) => database.connect().await,
        Err(failure) => Err(failure.clone()),
    };
    let database = recognised.as_ref().unwrap_or(database);
    let mut connection = match opened {
        Ok(connection) => Some(connection),
        Err(failure) => {
            findings.push(unreachable(database, &failure));
            None
        }
    };
    if let Some(connection) = &mut connection {
        findings.extend(the_database(database, connection).await);
    }
    match endpoint {
        Err(error) => findings.push(unset(&error)),
        Ok(endpoint) => {
            findings.extend(the_key(&endpoint.key(), host_time()));
            findings.extend(the_feeds(&endpoint, connection.as_mut()).await);
        }
    }
    findings
}

async fn the_database(database: &Database, connection: &mut Connection) -> Vec<Finding> {
    let mut findings = Vec::new();
    if database.is_pooled() {
        findings.push(Finding {
            check: "pooler",
            severity: Severity::Info,
            what: format!("{} is a transaction pooler", database.place()),
            why: "each call takes four round trips instead of one, and migrate does not work through it",
            fix: manual(&format!(
                "use the session pooler or the direct connection: {}",
                database.session_url()
            )),
        });
    }
    match doctor::examine(connection).await {
        Ok(found) => findings.extend(found),
        Err(error) => findings.push(unreachable(database, &Failure::from(error))),
    }
    if let Ok(db) = rows::clock(connection).await {
        findings.extend(doctor::clock_offset(host_time(), db));
    }
    if database.is_unverified() {
        findings.push(Finding {
            check: "tls",
            severity: Severity::Info,
            what: "the server's certificate is not verified".to_owned(),
            why: "whoever stands between could read the password",
            fix: manual("add ?sslmode=verify-full (and sslrootcert=FILE for an authority of your own) to DATABASE_URL"),
        });
    }
    findings
}

fn unreachable(database: &Database, failure: &Failure) -> Finding {
    failing(
        "database",
        format!("{}: {failure}", database.place()),
        "everything is kept there",
        "check host, port, user and password of DATABASE_URL, and that the project is not paused",
    )
}

fn unset(error: &SettingError) -> Finding {
    failing(
        "realtime-settings",
        error.to_string(),
        "the agent does not start without them",
        "set it in the environment or in .env",
    )
}

/// What the key tells of itself.
fn the_key(key: &ApiKey, now: DbTime) -> Option<Finding> {
    const WHY: &str = "Realtime shows the rows only to the project's secret key";
    const FIX: &str = "copy the secret (or service_role) key from Project Settings > API Keys";
    let now_s = now.as_micros() / 1_000_000;
    let what = match key {
        // What the role may see, the check at Realtime shows.
        ApiKey::Secret | ApiKey::Minted { .. } => return None,
        ApiKey::Publishable => "the key is a publishable one".to_owned(),
        ApiKey::Unknown => "the key is neither a JWT nor an sb_secret_… key".to_owned(),
        ApiKey::Jwt {
            role: Some(role), ..
        } if role != "service_role" => format!("the key's role is {role}, not service_role"),
        ApiKey::Jwt {
            expires_at: Some(at),
            ..
        } if *at <= now_s => format!("the key expired {} s ago", now_s - at),
        ApiKey::Jwt {
            expires_at: Some(at),
            ..
        } if *at - now_s < KEY_ENDS_SOON_S => {
            return Some(Finding {
                check: "key",
                severity: Severity::Warning,
                what: format!("the key expires in {} h", (at - now_s) / 3_600),
                why: "Realtime closes the channel when it does",
                fix: manual(FIX),
            });
        }
        ApiKey::Jwt { .. } => return None,
    };
    Some(failing("key", what, WHY, FIX))
}

/// Follows each way that the database has, and has a canary come back by it.
async fn the_feeds(endpoint: &Endpoint, mut connection: Option<&mut Connection>) -> Vec<Finding> {
    let published = match &mut connection {
        Some(connection) => maintenance::published(connection).await.unwrap_or_default(),
        None => Published::default(),
    };
    let changes = Following::with(ListenBy::PostgresChanges, published.canary, false);
    let heard = connection.as_deref_mut().filter(|_| published.canary);
    let mut findings = Vec::from_iter(the_feed(endpoint, changes, heard).await);
    if published.broadcasts {
        let broadcasts = Following::with(ListenBy::Broadcast, false, true);
        findings.extend(the_feed(endpoint, broadcasts, connection).await);
    }
    findings
}

async fn the_feed(
    endpoint: &Endpoint,
    following: Following,
    connection: Option<&mut Connection>,
) -> Option<Finding> {
    let check = TransportCheck {
        transport: if following.changes {
            Transport::Changes
        } else {
            Transport::Broadcast
        },
        place: endpoint.to_string(),
        role: role(&endpoint.key()),
    };
    let config = FeedConfig {
        endpoint: endpoint.clone(),
        bindings: bindings(following),
        broadcasts: following.broadcast,
    };
    let (_commands_out, commands) = mpsc::channel(1);
    let (events_in, mut events) = mpsc::channel(EVENTS);
    let shutdown = CancellationToken::new();
    let feed = Box::pin(feed::run(config, commands, events_in, shutdown.clone()));
    let watching = async {
        let found = check.watch(&mut events, connection).await;
        events.close();
        shutdown.cancel();
        found
    };
    let ((), found) = tokio::join!(feed, watching);
    found
}

/// Checks one transport: that it joins, and that an event arrives.
struct TransportCheck {
    transport: Transport,
    place: String,
    /// The role that the key stands for.
    role: String,
}

impl TransportCheck {
    async fn watch(
        &self,
        events: &mut mpsc::Receiver<FeedEvent>,
        connection: Option<&mut Connection>,
    ) -> Option<Finding> {
        if let Err(down) = live(events).await {
            return Some(self.not_live(down));
        }
        let connection = connection?;
        for _ in 0..TOUCHES {
            if let Err(error) = self.touch(connection).await {
                let failure = Failure::from(error);
                let what = format!(
                    "the canary of {} cannot be touched: {failure}",
                    self.transport.as_str()
                );
                return Some(self.finding("echo", what, manual("see the other findings")));
            }
            let canary = canary_event(events, self.transport);
            if timeout(ECHO_WITHIN, canary).await.is_ok() {
                return None;
            }
        }
        let waited = ECHO_WITHIN.as_secs() * u64::from(TOUCHES);
        let what = match self.transport {
            Transport::Changes => {
                format!("an edit was made, and no event of it came within {waited} s")
            }
            Transport::Broadcast => {
                format!("a canary was sent, and no broadcast came within {waited} s")
            }
        };
        Some(self.finding("echo", what, manual("check that DATABASE_URL and SUPABASE_URL are of one project, then the key's role and the publication; restart the project where all of it is in order")))
    }

    fn not_live(&self, down: Option<Down>) -> Finding {
        let unanswered = || format!("not live within {} s", LIVE_WITHIN.as_secs());
        let reason = down
            .as_ref()
            .map_or_else(unanswered, |down| down.failure.message.clone());
        let kind = down.map(|down| down.failure.kind);
        let advice = kind.and_then(ErrorKind::advice).unwrap_or("check that this host reaches the address of SUPABASE_URL or REALTIME_URL, and that the project is not paused");
        let fix = Fix {
            sql: (kind == Some(ErrorKind::Topic)).then(|| doctor::let_read_the_topic(&self.role)),
            manual: Some(advice.to_owned()),
        };
        self.finding("realtime", format!("{}: {reason}", self.place), fix)
    }

    async fn touch(&self, connection: &mut Connection) -> Result<(), sqlx::Error> {
        let identity = Identity {
            id: Uuid::from_u128(rand::random()),
            name: "doctor".to_owned(),
        };
        match self.transport {
            Transport::Changes => maintenance::touch_canary(connection, &identity).await,
            Transport::Broadcast => maintenance::broadcast_canary(connection).await,
        }
    }

    /// Without broadcasts the agent hears of edits all the same.
    fn finding(&self, check: &'static str, what: String, fix: Fix) -> Finding {
        let (check, severity, why) = match self.transport {
            Transport::Changes => (
                check,
                Severity::Error,
                "edits are seen by the periodic sync alone until Realtime tells them",
            ),
            Transport::Broadcast => (
                if check == "echo" {
                    "broadcast-echo"
                } else {
                    "broadcast"
                },
                Severity::Warning,
                "edits are broadcast, but not heard: postgres_changes alone tells of them",
            ),
        };
        Finding {
            check,
            severity,
            what,
            why,
            fix,
        }
    }
}

/// The Postgres role that Realtime takes the key's holder for.
fn role(key: &ApiKey) -> String {
    match key {
        ApiKey::Minted { role }
        | ApiKey::Jwt {
            role: Some(role), ..
        } => role.clone(),
        ApiKey::Secret | ApiKey::Publishable | ApiKey::Jwt { role: None, .. } | ApiKey::Unknown => {
            "service_role".to_owned()
        }
    }
}

/// Waits until the subscription is confirmed. What needs a person ends it at once, anything else after some attempts.
async fn live(events: &mut mpsc::Receiver<FeedEvent>) -> Result<(), Option<Down>> {
    let (mut last, mut failures) = (None, 0);
    let waiting = async {
        loop {
            match events.recv().await {
                Some(FeedEvent::Live(_)) => return true,
                Some(FeedEvent::Down(down)) => {
                    failures += 1;
                    let over = down.failure.kind.is_slow() || failures == FAILURES;
                    last = Some(down);
                    if over {
                        return false;
                    }
                }
                Some(FeedEvent::Changed(_) | FeedEvent::Broadcast(..) | FeedEvent::Lost(_)) => {}
                None => return false,
            }
        }
    };
    if timeout(LIVE_WITHIN, waiting).await == Ok(true) {
        Ok(())
    } else {
        Err(last)
    }
}

async fn canary_event(events: &mut mpsc::Receiver<FeedEvent>, transport: Transport) {
    while let Some(event) = events.recv().await {
        if agent_event(&event) == Some(RealtimeEvent::Canary(transport)) {
            return;
        }
    }
    std::future::pending::<()>().await;
}

fn failing(check: &'static str, what: String, why: &'static str, fix: &str) -> Finding {
    Finding {
        check,
        severity: Severity::Error,
        what,
        why,
        fix: manual(fix),
    }
}

fn manual(what: &str) -> Fix {
    Fix {
        sql: None,
        manual: Some(what.to_owned()),
    }
}

/// What this host's wall clock says: only to compare it.
fn host_time() -> DbTime {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    DbTime::from_micros(micros_of(since_epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: i64 = 1_800_000_000;

    fn what(key: &ApiKey) -> Option<String> {
        let now = DbTime::from_micros(NOW_S * 1_000_000);
        the_key(key, now).map(|finding| finding.what)
    }

    fn jwt(role: &str, expires_at: i64) -> ApiKey {
        ApiKey::Jwt {
            role: Some(role.to_owned()),
            expires_at: Some(expires_at),
        }
    }

    #[test]
    fn a_key_that_shows_no_rows_is_found_before_it_is_used() {
        assert_eq!(what(&ApiKey::Secret), None);
        assert_eq!(what(&jwt("service_role", NOW_S + 10_000_000)), None);
        for (key, word) in [
            (ApiKey::Publishable, "publishable"),
            (ApiKey::Unknown, "neither"),
            (jwt("anon", NOW_S + 10_000_000), "role is anon"),
            (jwt("service_role", NOW_S - 5), "expired 5 s ago"),
            (jwt("service_role", NOW_S + 7_200), "expires in 2 h"),
        ] {
            let what = what(&key).expect("a finding");
            assert!(what.contains(word), "{what}");
        }
    }
}
