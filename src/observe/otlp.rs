//! The same families as `/metrics`, pushed: OTLP over HTTP, as JSON (`http/json` of the OTLP specification).
//!
//! `variables` reads what OpenTelemetry's environment variables say, `message` is the body of a push; here are the pushes: one each
//! interval, and one last when the agent stops. Which series there are is told by whoever calls, at each push.
//!
//! Invariants: nobody waits for a push but its own task, and a stop no longer than [`LAST_PUSH_WITHIN`]. Body, answer and time are
//! bounded. What could not be pushed is not kept: counts and histograms are cumulative, so the next push tells all of it.
//! No header, user or query of the address is in a log or an error.

mod message;
#[cfg(test)]
mod tests;
mod variables;

use std::collections::BTreeMap;
use std::error::Error;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Client, StatusCode, redirect};
use serde::Deserialize;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::Url;
use uuid::Uuid;

use self::message::{Span, request};
use super::{Family, process};

/// A stop waits so long for the last push.
pub const LAST_PUSH_WITHIN: Duration = Duration::from_secs(3);
/// The longest body, in bytes; that of a hundred rows with series of their own has some 100,000.
const BODY_MAX: usize = 4 << 20;
/// What is read of an answer, in bytes.
const ANSWER_MAX: usize = 16 << 10;
/// What is told of why a collector rejected something, in characters.
const REASON_MAX: usize = 200;
/// Which process it is, of those with one `service.name`.
const INSTANCE: &str = "service.instance.id";

/// Where metrics are pushed to, how often, and in whose name. It may hold secrets, so it shows nothing of itself.
pub struct Export {
    url: Url,
    headers: HeaderMap,
    timeout: Duration,
    every: Duration,
    resource: BTreeMap<String, String>,
}

/// Why a push came to nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Unsent(String),
    #[error("no answer within {} s", .0.as_secs_f64())]
    Late(Duration),
    #[error("it answered {0}")]
    Refused(StatusCode),
    #[error("it rejected {points} data points: {reason}")]
    Rejected { points: u64, reason: String },
    #[error("the body has {0} bytes; expected {BODY_MAX} at the most")]
    TooLarge(usize),
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            text.extend([": ", &error.to_string()]);
            cause = error.source();
        }
        Self::Unsent(text)
    }
}

/// `ExportMetricsServiceResponse`.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Answer {
    partial_success: PartialSuccess,
}

/// `ExportMetricsPartialSuccess`.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PartialSuccess {
    /// An int64, which is a string in JSON; some write a number.
    rejected_data_points: serde_json::Value,
    error_message: String,
}

/// Whether pushes fail: what is worth a line in the log.
#[derive(Default)]
struct Outage(bool);

/// What is said of an outage.
#[derive(Debug, PartialEq, Eq)]
enum Said {
    Begins(String),
    Ends,
}

impl Outage {
    fn hear(&mut self, outcome: Result<(), Failure>) -> Option<Said> {
        let was = std::mem::replace(&mut self.0, outcome.is_err());
        match (was, outcome) {
            (false, Err(failure)) => Some(Said::Begins(failure.to_string())),
            (true, Ok(())) => Some(Said::Ends),
            (true, Err(_)) | (false, Ok(())) => None,
        }
    }
}

impl Export {
    /// Pushes what `readings` gives until `shutdown`, and then once more. `agent` is the instance, unless the environment names
    /// another.
    pub async fn run<F: Fn() -> Vec<Family>>(
        mut self,
        agent: Uuid,
        readings: F,
        shutdown: CancellationToken,
    ) {
        let instance = self.resource.entry(INSTANCE.to_owned());
        instance.or_insert_with(|| agent.to_string());
        let place = self.place();
        let client = match self.client() {
            Ok(client) => client,
            Err(error) => {
                warn!(
                    "no metrics are pushed to {place}: HTTPS cannot be set up: {}",
                    Failure::from(error)
                );
                return;
            }
        };
        info!(every = ?self.every, "metrics are pushed to {place} as OTLP");
        let begun = nanoseconds();
        let body = || self.body(&readings(), begun);
        let mut outage = Outage::default();
        let mut due = Instant::now() + self.every;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                () = sleep_until(due) => {}
            }
            let outcome = tokio::select! {
                () = shutdown.cancelled() => break,
                outcome = self.push(&client, body()) => outcome,
            };
            match outage.hear(outcome) {
                Some(Said::Begins(why)) => warn!(
                    "metrics cannot be pushed to {place}: {why}; pacing goes on, and each {:?} it is tried again",
                    self.every
                ),
                Some(Said::Ends) => info!("metrics are pushed to {place} again"),
                None => {}
            }
            due = (due + self.every).max(Instant::now());
        }
        let last = timeout(LAST_PUSH_WITHIN, self.push(&client, body())).await;
        let outcome = last.unwrap_or(Err(Failure::Late(LAST_PUSH_WITHIN)));
        if let Some(Said::Begins(why)) = outage.hear(outcome) {
            warn!("the last metrics were not pushed to {place}: {why}");
        }
    }

    fn client(&self) -> reqwest::Result<Client> {
        // An error says that the process has one already, which will do.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        Client::builder()
            .user_agent(concat!("visit-pacer/", env!("CARGO_PKG_VERSION")))
            // Headers may be keys, which are for nobody else.
            .redirect(redirect::Policy::none())
            .pool_max_idle_per_host(0)
            .timeout(self.timeout)
            .build()
    }

    fn body(&self, ours: &[Family], begun: u64) -> Vec<u8> {
        let span = Span {
            begun,
            now: nanoseconds(),
        };
        let request = request(&self.resource, ours, &process::families(), span);
        request.to_string().into_bytes()
    }

    async fn push(&self, client: &Client, body: Vec<u8>) -> Result<(), Failure> {
        if body.len() > BODY_MAX {
            return Err(Failure::TooLarge(body.len()));
        }
        let mut headers = self.headers.clone();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let request = client.post(self.url.clone()).headers(headers).body(body);
        let failure = |error: reqwest::Error| {
            if error.is_timeout() {
                Failure::Late(self.timeout)
            } else {
                error.into()
            }
        };
        let mut answer = request.send().await.map_err(failure)?;
        if !answer.status().is_success() {
            return Err(Failure::Refused(answer.status()));
        }
        let mut text = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(failure)? {
            if text.len() + part.len() > ANSWER_MAX {
                return Ok(());
            }
            text.extend_from_slice(&part);
        }
        accepted(&text)
    }

    /// The address, without user and query.
    fn place(&self) -> String {
        let mut url = self.url.clone();
        url.set_query(None);
        // Fails where there is no host, and then there is no user.
        let _none = url
            .set_username("")
            .and_then(|()| url.set_password(None))
            .is_err();
        url.to_string()
    }
}

/// An answer that says nothing of rejected points, in words that we know, has accepted them all.
fn accepted(answer: &[u8]) -> Result<(), Failure> {
    let answer: Answer = serde_json::from_slice(answer).unwrap_or_default();
    let PartialSuccess {
        rejected_data_points,
        error_message,
    } = answer.partial_success;
    let text = rejected_data_points.as_str();
    let points = text.map_or_else(|| rejected_data_points.as_u64(), |text| text.parse().ok());
    match points.unwrap_or(0) {
        0 => Ok(()),
        points => Err(Failure::Rejected {
            points,
            reason: error_message.chars().take(REASON_MAX).collect(),
        }),
    }
}

/// Since the Unix epoch, by this host's clock: a collector knows no other.
fn nanoseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}
