//! The protocol of one client's socket: joins, leaves, tokens, heartbeats. No I/O, no clock, no SQL.
//!
//! Owns the channels that the client has joined. A frame goes in with the time; steps for the connection come out, to be
//! carried out in order. Whether a table exists is decided in `slot.rs`; the result arrives as a [`Push`].
//!
//! Invariants: every join has a generation of its own, and a push of an older generation is dropped; a channel whose token has
//! expired is closed; what is not understood is ignored, never fatal.

use std::collections::HashMap;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::{
    binding::{Binding, Target, unsupported},
    broadcast::{Topic, TopicSubscription},
    frame::{Incoming, Version},
    push::{Push, PushEvent},
};
use crate::demo::jwt::{self, Claims, JwtError};
use crate::domain::secret::Secret;

/// The role that may read every private topic; for others the policies decide.
const SERVICE_ROLE: &str = "service_role";

/// The extensions that `system` events name.
const CHANGES: &str = "postgres_changes";
const SYSTEM: &str = "system";

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
pub enum ConnectionStep {
    /// Send this frame.
    Send(Message),
    /// Find out whether the role may read the private topic; the answer goes to [`ServerSession::authorized`].
    Authorize(Authorization),
    /// Listen to a topic, and continue once the reader does.
    Listen(TopicSubscription),
    /// Subscribe to the changes of these targets.
    Subscribe(SubscriptionRequest),
    /// End the subscriptions of this generation.
    Unsubscribe(u64),
}

/// A join that waits for the policies on `realtime.messages`.
#[derive(Debug, Clone, PartialEq)]
pub struct Authorization {
    /// The topic, without `realtime:`.
    pub topic: String,
    /// The role that joins.
    pub role: String,
    frame: Incoming,
}

/// Whether a role may read a private topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadPermission {
    /// A policy allows it.
    Granted,
    /// No policy allows it.
    Denied,
    /// The database is unavailable.
    Unknown,
}

/// A subscription that a join requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscriptionRequest {
    /// The join.
    pub generation: u64,
    /// The role whose rights count.
    pub role: String,
    /// The targets; never empty.
    pub targets: Vec<Target>,
}

/// The protocol state of one socket.
pub struct ServerSession {
    version: Version,
    secret: Secret,
    grant: Grant,
    max_channels: usize,
    channels: HashMap<String, ServerChannel>,
}

struct ServerChannel {
    generation: u64,
    private: bool,
    join_ref: Value,
    grant: Grant,
    token: Option<Secret>,
    targets: Vec<Target>,
}

/// The parameters of an accepted join.
struct JoinRequest {
    bindings: Vec<Binding>,
    presence: bool,
    topic: Topic,
    grant: Grant,
    token: Option<Secret>,
}

impl ServerSession {
    /// A socket that was opened with a key that grants `grant`, for at most `max_channels` channels.
    pub fn new(version: Version, secret: Secret, grant: Grant, max_channels: usize) -> Self {
        Self {
            version,
            secret,
            grant,
            max_channels,
            channels: HashMap::new(),
        }
    }

    /// Takes a text frame at `now` (seconds since the Unix epoch). A join gets the generation `generation`.
    pub fn receive(&mut self, text: &str, now: i64, generation: u64) -> Vec<ConnectionStep> {
        let Some(frame) = self.version.read(text) else {
            return Vec::new();
        };
        match (frame.topic.as_str(), frame.event.as_str()) {
            ("phoenix", "heartbeat") => vec![self.reply(&frame, Ok("{}".to_owned()))],
            (topic, "phx_join") if topic.starts_with("realtime:") => {
                self.join(&frame, now, generation)
            }
            (_, "phx_leave") => self.leave(&frame),
            (topic, event) => match self.channels.get(topic) {
                Some(_) if event == "access_token" => self.refresh(&frame, now),
                // As without a policy that lets the role write.
                Some(channel) if event == "broadcast" && channel.private => Vec::new(),
                Some(_) => vec![self.reply(&frame, Err(unsupported(event)))],
                None => vec![self.reply(&frame, Err("unmatched topic".to_owned()))],
            },
        }
    }

    /// The frame for the client about `push`; none when its channel is gone.
    pub fn push(&self, push: &Push) -> Option<ConnectionStep> {
        let mut channels = self.channels.iter();
        let (topic, channel) =
            channels.find(|(_, channel)| channel.generation == push.generation)?;
        Some(match &push.event {
            PushEvent::Broadcast(message) => {
                ConnectionStep::Send(message.frame(self.version, topic)?)
            }
            PushEvent::Subscribed => {
                self.system(topic, channel, CHANGES, Ok("Subscribed to PostgreSQL"))
            }
            PushEvent::BroadcastsReady => {
                let message = "Replication connection established";
                self.system(topic, channel, SYSTEM, Ok(message))
            }
            PushEvent::Failed(message) => self.system(topic, channel, CHANGES, Err(message)),
            PushEvent::Changed { data, ids } => {
                let payload = format!(r#"{{"data":{data},"ids":{}}}"#, json!(**ids));
                self.send((&Value::Null, &Value::Null), topic, CHANGES, &payload)
            }
        })
    }

    /// When the next token expires, in seconds since the Unix epoch.
    pub fn next_expiry(&self) -> Option<i64> {
        let channels = self.channels.values();
        channels
            .filter_map(|channel| channel.grant.expires_at)
            .min()
    }

    /// Closes the channels whose token has expired at `now`.
    pub fn expire(&mut self, now: i64) -> Vec<ConnectionStep> {
        let expired: Vec<(String, JwtError)> = self
            .channels
            .iter()
            .filter_map(|(topic, channel)| {
                Some((topic.clone(), channel.grant.still_valid(now).err()?))
            })
            .collect();
        expired
            .into_iter()
            .flat_map(|(topic, error)| self.fail(&topic, &error.to_string()))
            .collect()
    }

    fn join(&mut self, frame: &Incoming, now: i64, generation: u64) -> Vec<ConnectionStep> {
        match self.admit(frame, now) {
            Ok(JoinRequest { topic, grant, .. }) if topic.private && grant.role != SERVICE_ROLE => {
                vec![ConnectionStep::Authorize(Authorization {
                    topic: topic.name,
                    role: grant.role,
                    frame: frame.clone(),
                })]
            }
            admitted => self.answer_join(frame, admitted, generation),
        }
    }

    /// Continues a join that waited for `permission`.
    pub fn authorized(
        &mut self,
        join: &Authorization,
        permission: ReadPermission,
        now: i64,
        generation: u64,
    ) -> Vec<ConnectionStep> {
        let admitted = match permission {
            ReadPermission::Granted => self.admit(&join.frame, now),
            ReadPermission::Denied => Err(format!(
                "Unauthorized: You do not have permissions to read from this Channel topic: {}",
                join.topic
            )),
            ReadPermission::Unknown => Err(
                "UnableToConnectToProject: Realtime was unable to connect to the project database"
                    .to_owned(),
            ),
        };
        self.answer_join(&join.frame, admitted, generation)
    }

    fn answer_join(
        &mut self,
        frame: &Incoming,
        admitted: Result<JoinRequest, String>,
        generation: u64,
    ) -> Vec<ConnectionStep> {
        let JoinRequest {
            bindings,
            presence,
            topic,
            grant,
            token,
        } = match admitted {
            Ok(join) => join,
            Err(reason) => return vec![self.reply(frame, Err(reason))],
        };
        let listed: Vec<String> = bindings.iter().map(Binding::described).collect();
        let response = format!(r#"{{"postgres_changes":[{}]}}"#, listed.join(","));
        let targets: Result<Vec<Target>, String> = bindings.iter().map(Binding::target).collect();
        let old = self.channels.remove(&frame.topic);
        let channel = ServerChannel {
            generation,
            private: topic.private,
            join_ref: frame.join_ref.clone(),
            grant,
            token,
            targets: targets.clone().unwrap_or_default(),
        };
        // The listener comes before the reply: whoever has the reply receives all that is committed from then on.
        let listening = TopicSubscription::of(generation, topic, frame.payload.get("config"));
        let mut steps = vec![
            ConnectionStep::Listen(listening),
            self.reply(frame, Ok(response)),
        ];
        if let Some(old) = old {
            steps.push(self.closed(&frame.topic, &old));
            steps.push(ConnectionStep::Unsubscribe(old.generation));
        }
        if presence {
            let refs = (&channel.join_ref, &Value::Null);
            steps.push(self.send(refs, &frame.topic, "presence_state", "{}"));
        }
        if let Err(message) = targets {
            steps.push(self.system(&frame.topic, &channel, CHANGES, Err(&message)));
        }
        steps.extend(channel.subscription());
        self.channels.insert(frame.topic.clone(), channel);
        steps
    }

    /// The parameters of a join, or the real server's reason to refuse it.
    fn admit(&self, frame: &Incoming, now: i64) -> Result<JoinRequest, String> {
        let name = frame.topic.strip_prefix("realtime:").unwrap_or_default();
        if name.is_empty() {
            return Err("TopicNameRequired: You must provide a topic name".to_owned());
        }
        if !self.channels.contains_key(&frame.topic) && self.channels.len() >= self.max_channels {
            return Err("ChannelRateLimitReached: Too many channels".to_owned());
        }
        let payload = frame.payload.as_object().ok_or_else(|| {
            let payload = match &frame.payload {
                Value::Null => "nil".to_owned(),
                other => other.to_string(),
            };
            format!("UnknownErrorOnChannel: expected params to be a :map, got: `{payload}`")
        })?;
        let token = payload.get("access_token").and_then(Value::as_str);
        let token = token.filter(|token| !token.starts_with("sb_"));
        let grant = match token {
            None => self.grant.still_valid(now),
            Some(token) => jwt::verify(&self.secret, token, now).map(Grant::from),
        };
        let grant = grant.map_err(|error| refused_token(&error))?;
        let config = payload.get("config");
        let (bindings, presence) = read_config(config)?;
        Ok(JoinRequest {
            bindings,
            presence,
            topic: Topic::of(name, config),
            grant,
            token: token.map(Secret::new),
        })
    }

    fn leave(&mut self, frame: &Incoming) -> Vec<ConnectionStep> {
        let mut steps = vec![self.reply(frame, Ok("{}".to_owned()))];
        if let Some(channel) = self.channels.remove(&frame.topic) {
            steps.push(self.closed(&frame.topic, &channel));
            steps.push(ConnectionStep::Unsubscribe(channel.generation));
        }
        steps
    }

    /// A new token for a channel: no reply; the subscription is made again with it.
    fn refresh(&mut self, frame: &Incoming, now: i64) -> Vec<ConnectionStep> {
        let token = frame.payload.get("access_token").and_then(Value::as_str);
        let token = token.filter(|token| !token.starts_with("sb_"));
        let (Some(token), Some(channel)) = (token, self.channels.get_mut(&frame.topic)) else {
            return Vec::new();
        };
        let is_known = channel
            .token
            .as_ref()
            .is_some_and(|known| known.expose() == token);
        if is_known {
            return Vec::new();
        }
        match jwt::verify(&self.secret, token, now) {
            Ok(claims) => {
                channel.grant = claims.into();
                channel.token = Some(Secret::new(token));
                channel.subscription().into_iter().collect()
            }
            Err(JwtError::Signature) => self.fail(&frame.topic, ":signature_error"),
            Err(error) => self.fail(&frame.topic, &error.to_string()),
        }
    }

    /// Closes a channel for a reason that concerns the channel, not its subscription.
    fn fail(&mut self, topic: &str, message: &str) -> Vec<ConnectionStep> {
        let Some(channel) = self.channels.remove(topic) else {
            return Vec::new();
        };
        vec![
            self.system(topic, &channel, SYSTEM, Err(message)),
            self.closed(topic, &channel),
            ConnectionStep::Unsubscribe(channel.generation),
        ]
    }

    /// Replies with a response, as JSON text, or with the reason of an error.
    fn reply(&self, frame: &Incoming, outcome: Result<String, String>) -> ConnectionStep {
        let (status, response) = match outcome {
            Ok(response) => ("ok", response),
            Err(reason) => ("error", json!({ "reason": reason }).to_string()),
        };
        let join_ref = match self.channels.get(&frame.topic) {
            Some(channel) => &channel.join_ref,
            None => &frame.join_ref,
        };
        let payload = format!(r#"{{"status":"{status}","response":{response}}}"#);
        let refs = (join_ref, &frame.reference);
        self.send(refs, &frame.topic, "phx_reply", &payload)
    }

    fn system(
        &self,
        topic: &str,
        channel: &ServerChannel,
        extension: &str,
        outcome: Result<&str, &str>,
    ) -> ConnectionStep {
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
        self.send((&channel.join_ref, &Value::Null), topic, SYSTEM, &payload)
    }

    fn closed(&self, topic: &str, channel: &ServerChannel) -> ConnectionStep {
        let refs = (&channel.join_ref, &channel.join_ref);
        self.send(refs, topic, "phx_close", "{}")
    }

    fn send(
        &self,
        refs: (&Value, &Value),
        topic: &str,
        event: &str,
        payload: &str,
    ) -> ConnectionStep {
        let text = self.version.write(refs, topic, event, payload);
        ConnectionStep::Send(Message::text(text))
    }
}

impl ServerChannel {
    fn subscription(&self) -> Option<ConnectionStep> {
        (!self.targets.is_empty()).then(|| {
            ConnectionStep::Subscribe(SubscriptionRequest {
                generation: self.generation,
                role: self.grant.role.clone(),
                targets: self.targets.clone(),
            })
        })
    }
}

/// The bindings of a join, and whether it wants presence.
fn read_config(config: Option<&Value>) -> Result<(Vec<Binding>, bool), String> {
    let Some(config) = config else {
        return Ok((Vec::new(), false));
    };
    let config = config
        .as_object()
        .ok_or("UnknownErrorOnChannel: no function clause matching in Access.get/3")?;
    let presence = config
        .get("presence")
        .and_then(|presence| presence.get("enabled"));
    let listed = config.get("postgres_changes").and_then(Value::as_array);
    let bindings = listed.into_iter().flatten().map(|params| match params {
        Value::Object(params) => Ok(Binding::new(params.clone())),
        other => Err(format!(
            "UnknownErrorOnChannel: expected a map, got:\n\n    {other}\n"
        )),
    });
    Ok((
        bindings.collect::<Result<_, _>>()?,
        presence == Some(&Value::Bool(true)),
    ))
}

fn refused_token(error: &JwtError) -> String {
    let code = match error {
        JwtError::Malformed => "MalformedJWT",
        JwtError::Signature => "JwtSignatureError",
        JwtError::MissingClaims | JwtError::Expired { .. } => "InvalidJWTToken",
    };
    format!("{code}: {error}")
}

#[cfg(test)]
mod tests;
