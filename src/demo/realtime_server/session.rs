//! The protocol of one client's socket: joins, leaves, tokens, heartbeats. No socket, no clock, no
//! SQL.
//!
//! Owns the channels that the client has joined. A frame goes in with the time; steps for the
//! connection come out, to be carried out in order. Subscriptions are only asked for here: whether
//! a table exists is found out in `changes.rs`, which answers with a [`Push`].
//!
//! Invariants: every join has a generation of its own, and a push of an older generation is
//! dropped; a channel whose token has expired is closed; what is not understood is ignored, never
//! fatal.

use std::{collections::HashMap, sync::Arc};

use serde_json::{Map, Value, json};

use super::{
    binding::{Binding, Target},
    broadcast::{Listening, Message, Topic},
    frame::{Incoming, Outgoing, Version},
};
use crate::demo::jwt::{self, Claims, JwtError};
use crate::domain::secret::Secret;

/// The role that may read every private topic; of others the database is asked.
const SERVICE_ROLE: &str = "service_role";

/// What a client may do, and until when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// The Postgres role.
    pub role: String,
    /// Seconds since the Unix epoch; none for opaque keys, which do not expire.
    pub expires_at: Option<i64>,
}

impl Grant {
    fn still_valid(&self, now: i64) -> Result<Self, JwtError> {
        match self
            .expires_at
            .map(|expires_at| now.saturating_sub(expires_at))
        {
            Some(seconds_ago) if seconds_ago >= 0 => Err(JwtError::Expired { seconds_ago }),
            _ => Ok(self.clone()),
        }
    }
}

impl From<Claims> for Grant {
    fn from(claims: Claims) -> Self {
        Self {
            role: claims.role,
            expires_at: Some(claims.expires_at),
        }
    }
}

/// What the connection has to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Send this text frame.
    Send(String),
    /// Hold the whole socket for the delay of a refused join, then send this text frame.
    SendDelayed(String),
    /// Send this binary frame.
    SendBinary(Vec<u8>),
    /// Ask whether the role may read the private topic; the answer goes to [`Session::authorized`].
    Authorize(Authorization),
    /// Listen to a topic, and go on once it is.
    Listen(Listening),
    /// Ask for the changes of these targets.
    Subscribe(Wanted),
    /// Stop the changes of this generation.
    Unsubscribe(u64),
}

/// A join that waits for what the policies on `realtime.messages` say.
#[derive(Debug, Clone, PartialEq)]
pub struct Authorization {
    /// The topic, without `realtime:`.
    pub topic: String,
    /// Who wants to read it.
    pub role: String,
    frame: Incoming,
}

/// What the database says to an [`Authorization`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A policy lets the role read.
    MayRead,
    /// None does.
    MayNot,
    /// The database cannot be asked.
    Unknown,
}

/// A subscription that a join asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The join.
    pub generation: u64,
    /// The role whose rights count.
    pub role: String,
    /// What is asked for; never empty.
    pub targets: Vec<Target>,
}

/// News of a subscription, for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push {
    /// The join that it belongs to.
    pub generation: u64,
    /// What happened.
    pub news: News,
}

/// See [`Push`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// The subscription works.
    Subscribed,
    /// Broadcasts from the database are read.
    BroadcastsAreRead,
    /// A broadcast from the database.
    Broadcast(Message),
    /// The subscription failed, with the real server's message.
    Failed(String),
    /// A row changed.
    Changed {
        /// The event's `data`, as JSON text.
        data: Arc<str>,
        /// The bindings that matched.
        ids: Arc<[u32]>,
    },
}

/// The protocol state of one socket.
pub struct Session {
    version: Version,
    secret: Secret,
    grant: Grant,
    max_channels: usize,
    channels: HashMap<String, Channel>,
}

struct Channel {
    generation: u64,
    private: bool,
    join_ref: Value,
    grant: Grant,
    token: Option<Secret>,
    targets: Vec<Target>,
}

/// What a join asks for.
struct Admission {
    bindings: Vec<Binding>,
    presence: bool,
    topic: Topic,
    grant: Grant,
    token: Option<Secret>,
}

/// Why a join is refused, in the real server's words.
struct Refusal(String);

impl Session {
    /// A socket that was opened with a key that grants `grant`, for so many channels.
    pub fn new(version: Version, secret: Secret, grant: Grant, max_channels: usize) -> Self {
        Self {
            version,
            secret,
            grant,
            max_channels,
            channels: HashMap::new(),
        }
    }

    /// Takes a text frame at `now` (seconds since the Unix epoch). `next_generation` is drawn from
    /// once a join.
    pub fn receive(
        &mut self,
        text: &str,
        now: i64,
        next_generation: impl FnOnce() -> u64,
    ) -> Vec<Step> {
        let Some(frame) = self.version.read(text) else {
            return Vec::new();
        };
        match (frame.topic.as_str(), frame.event.as_str()) {
            ("phoenix", "heartbeat") => vec![self.reply(&frame, Ok(()))],
            (topic, "phx_join") if topic.starts_with("realtime:") => {
                self.join(&frame, now, next_generation)
            }
            (_, "phx_leave") => self.leave(&frame),
            (topic, event) if self.channels.contains_key(topic) => match event {
                "access_token" => self.refresh(&frame, now),
                // As without a policy that lets the role write.
                "broadcast" if self.is_private(topic) => Vec::new(),
                _ => vec![self.reply(&frame, Err(unsupported(event)))],
            },
            _ => vec![self.reply(&frame, Err("unmatched topic".to_owned()))],
        }
    }

    /// The frame that tells the client of `push`, to be sent; none when its channel is gone.
    pub fn push(&self, push: &Push) -> Option<Step> {
        let (topic, channel) = self
            .channels
            .iter()
            .find(|(_, channel)| channel.generation == push.generation)?;
        let text = match &push.news {
            News::Broadcast(message) => return message.frame(self.version, topic),
            News::Subscribed => self.system(topic, channel, Ok("Subscribed to PostgreSQL")),
            News::BroadcastsAreRead => {
                let message = "Replication connection established";
                self.system_of(topic, channel, "system", Ok(message))
            }
            News::Failed(message) => self.system(topic, channel, Err(message)),
            News::Changed { data, ids } => self.version.write(&Outgoing {
                join_ref: Value::Null,
                reference: Value::Null,
                topic: topic.clone(),
                event: "postgres_changes",
                payload: format!(r#"{{"data":{data},"ids":{}}}"#, json!(**ids)),
            }),
        };
        Some(Step::Send(text))
    }

    /// When the next token expires, in seconds since the Unix epoch.
    pub fn next_expiry(&self) -> Option<i64> {
        self.channels
            .values()
            .filter_map(|channel| channel.grant.expires_at)
            .min()
    }

    /// Closes the channels whose token has expired at `now`.
    pub fn expire(&mut self, now: i64) -> Vec<Step> {
        let expired: Vec<(String, i64)> = self
            .channels
            .iter()
            .filter_map(|(topic, channel)| Some((topic.clone(), channel.grant.expires_at?)))
            .filter(|(_, expires_at)| *expires_at <= now)
            .collect();
        expired
            .into_iter()
            .flat_map(|(topic, expires_at)| {
                let seconds_ago = now.saturating_sub(expires_at);
                self.fail(&topic, &JwtError::Expired { seconds_ago }.to_string())
            })
            .collect()
    }

    fn join(
        &mut self,
        frame: &Incoming,
        now: i64,
        next_generation: impl FnOnce() -> u64,
    ) -> Vec<Step> {
        match self.admit(frame, now) {
            Err(refusal) => self.refuse(frame, refusal),
            Ok(Admission { topic, grant, .. }) if topic.private && grant.role != SERVICE_ROLE => {
                vec![Step::Authorize(Authorization {
                    topic: topic.name,
                    role: grant.role,
                    frame: frame.clone(),
                })]
            }
            Ok(admission) => self.let_in(frame, admission, next_generation),
        }
    }

    /// Goes on with a join that waited for this verdict.
    pub fn authorized(
        &mut self,
        asked: &Authorization,
        verdict: Verdict,
        now: i64,
        next_generation: impl FnOnce() -> u64,
    ) -> Vec<Step> {
        let admitted = match verdict {
            Verdict::MayRead => self.admit(&asked.frame, now),
            Verdict::MayNot => Err(Refusal(format!(
                "Unauthorized: You do not have permissions to read from this Channel topic: {}",
                asked.topic
            ))),
            Verdict::Unknown => Err(Refusal(
                "UnableToConnectToProject: Realtime was unable to connect to the project database"
                    .to_owned(),
            )),
        };
        match admitted {
            Err(refusal) => self.refuse(&asked.frame, refusal),
            Ok(admission) => self.let_in(&asked.frame, admission, next_generation),
        }
    }

    fn refuse(&self, frame: &Incoming, Refusal(reason): Refusal) -> Vec<Step> {
        match self.reply(frame, Err(reason)) {
            Step::Send(text) => vec![Step::SendDelayed(text)],
            _ => Vec::new(),
        }
    }

    fn let_in(
        &mut self,
        frame: &Incoming,
        admission: Admission,
        next_generation: impl FnOnce() -> u64,
    ) -> Vec<Step> {
        let Admission {
            bindings,
            presence,
            topic,
            grant,
            token,
        } = admission;
        let listed: Vec<String> = bindings.iter().map(Binding::described).collect();
        let payload = format!(
            r#"{{"status":"ok","response":{{"postgres_changes":[{}]}}}}"#,
            listed.join(",")
        );
        // Whoever has the reply hears all that is committed from then on.
        let generation = next_generation();
        let private = topic.private;
        let listening = Listening::of(generation, topic, frame.payload.get("config"));
        let reply = self.version.write(&Outgoing {
            join_ref: frame.join_ref.clone(),
            reference: frame.reference.clone(),
            topic: frame.topic.clone(),
            event: "phx_reply",
            payload,
        });
        let mut steps = vec![Step::Listen(listening), Step::Send(reply)];
        if let Some(old) = self.channels.remove(&frame.topic) {
            steps.push(Step::Send(self.closed(&frame.topic, &old)));
            steps.push(Step::Unsubscribe(old.generation));
        }
        let targets: Result<Vec<Target>, String> = bindings.iter().map(Binding::target).collect();
        let channel = Channel {
            generation,
            private,
            join_ref: frame.join_ref.clone(),
            grant,
            token,
            targets: targets.clone().unwrap_or_default(),
        };
        if presence {
            steps.push(Step::Send(self.version.write(&Outgoing {
                join_ref: channel.join_ref.clone(),
                reference: Value::Null,
                topic: frame.topic.clone(),
                event: "presence_state",
                payload: "{}".to_owned(),
            })));
        }
        if let Err(message) = targets {
            steps.push(Step::Send(self.system(
                &frame.topic,
                &channel,
                Err(&message),
            )));
        }
        steps.extend(channel.wanted().map(Step::Subscribe));
        self.channels.insert(frame.topic.clone(), channel);
        steps
    }

    /// What a join asks for, if it may.
    fn admit(&self, frame: &Incoming, now: i64) -> Result<Admission, Refusal> {
        let name = frame.topic.strip_prefix("realtime:").unwrap_or_default();
        if name.is_empty() {
            return Err(Refusal(
                "TopicNameRequired: You must provide a topic name".to_owned(),
            ));
        }
        if !self.channels.contains_key(&frame.topic) && self.channels.len() >= self.max_channels {
            return Err(Refusal(
                "ChannelRateLimitReached: Too many channels".to_owned(),
            ));
        }
        let payload = frame.payload.as_object().ok_or_else(|| {
            let payload = match &frame.payload {
                Value::Null => "nil".to_owned(),
                other => other.to_string(),
            };
            Refusal(format!(
                "UnknownErrorOnChannel: expected params to be a :map, got: `{payload}`"
            ))
        })?;
        let token = payload.get("access_token").and_then(Value::as_str);
        let token = token.filter(|token| !token.starts_with("sb_"));
        let grant = match token {
            None => self.grant.still_valid(now),
            Some(token) => jwt::verify(&self.secret, token, now).map(Grant::from),
        };
        let grant = grant.map_err(|error| refused_token(&error))?;
        let config = payload.get("config");
        let (bindings, presence) = read_config(name, config)?;
        Ok(Admission {
            bindings,
            presence,
            topic: Topic::of(name, config),
            grant,
            token: token.map(Secret::new),
        })
    }

    fn is_private(&self, topic: &str) -> bool {
        self.channels
            .get(topic)
            .is_some_and(|channel| channel.private)
    }

    fn leave(&mut self, frame: &Incoming) -> Vec<Step> {
        let mut steps = vec![self.reply(frame, Ok(()))];
        if let Some(channel) = self.channels.remove(&frame.topic) {
            steps.push(Step::Send(self.closed(&frame.topic, &channel)));
            steps.push(Step::Unsubscribe(channel.generation));
        }
        steps
    }

    /// A new token for a channel: no reply; the subscription is made again under it.
    fn refresh(&mut self, frame: &Incoming, now: i64) -> Vec<Step> {
        let token = frame.payload.get("access_token").and_then(Value::as_str);
        let Some(token) = token.filter(|token| !token.starts_with("sb_")) else {
            return Vec::new();
        };
        let Some(channel) = self.channels.get_mut(&frame.topic) else {
            return Vec::new();
        };
        if channel
            .token
            .as_ref()
            .is_some_and(|known| known.expose() == token)
        {
            return Vec::new();
        }
        match jwt::verify(&self.secret, token, now) {
            Ok(claims) => {
                channel.grant = claims.into();
                channel.token = Some(Secret::new(token));
                channel.wanted().map(Step::Subscribe).into_iter().collect()
            }
            Err(JwtError::Signature) => self.fail(&frame.topic, ":signature_error"),
            Err(error) => self.fail(&frame.topic, &error.to_string()),
        }
    }

    /// Ends a channel for a reason that concerns the channel, not its subscription.
    fn fail(&mut self, topic: &str, message: &str) -> Vec<Step> {
        let Some(channel) = self.channels.remove(topic) else {
            return Vec::new();
        };
        vec![
            Step::Send(self.system_of(topic, &channel, "system", Err(message))),
            Step::Send(self.closed(topic, &channel)),
            Step::Unsubscribe(channel.generation),
        ]
    }

    fn reply(&self, frame: &Incoming, outcome: Result<(), String>) -> Step {
        let (status, response) = match outcome {
            Ok(()) => ("ok", json!({})),
            Err(reason) => ("error", json!({ "reason": reason })),
        };
        let join_ref = match self.channels.get(&frame.topic) {
            Some(channel) => channel.join_ref.clone(),
            None => frame.join_ref.clone(),
        };
        Step::Send(self.version.write(&Outgoing {
            join_ref,
            reference: frame.reference.clone(),
            topic: frame.topic.clone(),
            event: "phx_reply",
            payload: format!(r#"{{"status":"{status}","response":{response}}}"#),
        }))
    }

    fn system(&self, topic: &str, channel: &Channel, outcome: Result<&str, &str>) -> String {
        self.system_of(topic, channel, "postgres_changes", outcome)
    }

    fn system_of(
        &self,
        topic: &str,
        channel: &Channel,
        extension: &str,
        outcome: Result<&str, &str>,
    ) -> String {
        let (status, message) = match outcome {
            Ok(message) => ("ok", message),
            Err(message) => ("error", message),
        };
        let name = topic.strip_prefix("realtime:").unwrap_or(topic);
        let payload = format!(
            r#"{{"message":{},"status":"{status}","extension":"{extension}","channel":{}}}"#,
            Value::from(message),
            Value::from(name),
        );
        self.version.write(&Outgoing {
            join_ref: channel.join_ref.clone(),
            reference: Value::Null,
            topic: topic.to_owned(),
            event: "system",
            payload,
        })
    }

    fn closed(&self, topic: &str, channel: &Channel) -> String {
        self.version.write(&Outgoing {
            join_ref: channel.join_ref.clone(),
            reference: channel.join_ref.clone(),
            topic: topic.to_owned(),
            event: "phx_close",
            payload: "{}".to_owned(),
        })
    }
}

impl Channel {
    fn wanted(&self) -> Option<Wanted> {
        (!self.targets.is_empty()).then(|| Wanted {
            generation: self.generation,
            role: self.grant.role.clone(),
            targets: self.targets.clone(),
        })
    }
}

fn read_config(name: &str, config: Option<&Value>) -> Result<(Vec<Binding>, bool), Refusal> {
    let Some(config) = config else {
        return Ok((vec![binding_of_topic(name)], false));
    };
    let config = config.as_object().ok_or_else(|| {
        Refusal("UnknownErrorOnChannel: no function clause matching in Access.get/3".to_owned())
    })?;
    let presence = config
        .get("presence")
        .and_then(|presence| presence.get("enabled"));
    let listed = config.get("postgres_changes").and_then(Value::as_array);
    let bindings = listed.into_iter().flatten().map(|params| match params {
        Value::Object(params) => Ok(Binding::new(params.clone())),
        other => Err(Refusal(format!(
            "UnknownErrorOnChannel: expected a map, got:\n\n    {other}\n"
        ))),
    });
    Ok((
        bindings.collect::<Result<_, _>>()?,
        presence == Some(&Value::Bool(true)),
    ))
}

/// The protocol before there was a `config`: the topic says `schema[:table[:filter]]`.
fn binding_of_topic(name: &str) -> Binding {
    let keys = ["schema", "table", "filter"].map(ToOwned::to_owned);
    let params: Map<String, Value> = keys
        .into_iter()
        .zip(name.splitn(3, ':').map(Value::from))
        .collect();
    Binding::new(params)
}

fn refused_token(error: &JwtError) -> Refusal {
    let code = match error {
        JwtError::Malformed => "MalformedJWT",
        JwtError::Signature => "JwtSignatureError",
        JwtError::MissingClaims | JwtError::Expired { .. } => "InvalidJWTToken",
    };
    Refusal(format!("{code}: {error}"))
}

fn unsupported(what: &str) -> String {
    format!(
        "NotSupported: this development server has changes and broadcasts from the database only, not `{what}`"
    )
}

#[cfg(test)]
mod tests;
