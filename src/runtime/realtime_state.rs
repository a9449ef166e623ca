//! Realtime as the runtime sees it: which tables and transports are followed, whether each is live, and what an event of the
//! feed means to the agent and to people.

use crate::domain::agent::RealtimeEvent;
use crate::domain::echo_check::Reconnect;
use crate::domain::error_policy::{ErrorKind, Failure};
use crate::domain::event::Event;
use crate::domain::time::{DbTime, Mono};
use crate::domain::transport::{Following, ListenBy, PerTransport, Transport};
use crate::observe::recent::ReceivedEvent;
use crate::realtime::{Broadcast, Change, Down, FeedCommand, FeedEvent, FollowedTable};

/// The tables that are followed; the canary only where it is published.
pub const DISTRIBUTIONS: &str = "visit_distribution";
/// See [`DISTRIBUTIONS`].
pub const CANARY: &str = "visit_pacer_canary";

const LIVE: &str = "live";

/// Whether one transport is live.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TransportState {
    /// Why it is not live; `None` while it is.
    pub down: Option<String>,
    /// Since when it is, or is not.
    pub since: Mono,
}

impl TransportState {
    /// Whether it is.
    pub fn is_live(&self) -> bool {
        self.down.is_none()
    }

    /// `live`, or why not.
    pub fn text(&self) -> &str {
        self.down.as_deref().unwrap_or(LIVE)
    }
}

/// See the module.
#[derive(Debug)]
pub struct RealtimeState {
    following: Following,
    /// None of a transport that is not followed.
    transports: PerTransport<Option<TransportState>>,
    /// What was last reported of each: the same failure again is no news.
    reported: PerTransport<Option<Failure>>,
}

impl RealtimeState {
    /// Before anything is known of the database.
    pub fn new(listen_by: ListenBy) -> Self {
        Self {
            following: Following::at_first(listen_by),
            transports: PerTransport::default(),
            reported: PerTransport::default(),
        }
    }

    /// The state of each transport that is followed.
    pub fn transports(&self) -> &PerTransport<Option<TransportState>> {
        &self.transports
    }

    /// `live`, or why each transport that is followed is not.
    pub fn text(&self) -> String {
        let texts = (self.transports.both()).map(|state| state.as_ref().map(TransportState::text));
        match texts {
            [None, None] => "connecting".to_owned(),
            [Some(one), None] | [None, Some(one)] => one.to_owned(),
            [Some(LIVE), Some(LIVE)] => LIVE.to_owned(),
            [Some(changes), Some(broadcast)] => {
                format!("postgres_changes: {changes}; broadcast: {broadcast}")
            }
        }
    }

    /// Follows something else from now on. The tables are joined again, unless only the broadcasts change.
    pub fn follow(&mut self, following: Following) -> Vec<FeedCommand> {
        let before = std::mem::replace(&mut self.following, following);
        let only_broadcasts = before != following && bindings(before) == bindings(following);
        let mut commands = vec![
            FeedCommand::Broadcasts(following.broadcast),
            FeedCommand::Bindings(bindings(following)),
        ];
        if !only_broadcasts {
            let why = "the publication changed".to_owned();
            commands.push(FeedCommand::Rejoin(Transport::Changes, why));
        }
        commands
    }

    /// Takes an event of the feed in. Returns what to report of it.
    pub fn take(&mut self, event: &FeedEvent, now: Mono) -> Option<Event> {
        match event {
            FeedEvent::Live(transport) => self.live(*transport, now),
            FeedEvent::Down(down) => self.down(down, now),
            FeedEvent::Changed(_) | FeedEvent::Broadcast(..) => None,
            FeedEvent::Lost(why) => Some(Event::REALTIME_EVENT_UNCLEAR.because(why)),
        }
    }

    fn live(&mut self, transport: Transport, now: Mono) -> Option<Event> {
        *self.reported.of_mut(transport) = None;
        let state = self.transports.of_mut(transport);
        if state.as_ref().is_some_and(TransportState::is_live) {
            return None;
        }
        *state = Some(TransportState {
            down: None,
            since: now,
        });
        Some(Event::REALTIME_LIVE.by(transport))
    }

    fn down(&mut self, down: &Down, now: Mono) -> Option<Event> {
        let state = self.transports.of_mut(down.transport);
        let since = match state {
            Some(state) if !state.is_live() => state.since,
            Some(_) | None => now,
        };
        let followed = self.following.by(down.transport);
        *state = followed.then(|| TransportState {
            down: Some(down.to_string()),
            since,
        });
        let report = Some(down.failure.clone());
        let before = std::mem::replace(self.reported.of_mut(down.transport), report.clone());
        if down.failure.kind == ErrorKind::Asked || before == report {
            return None;
        }
        let event = Event::REALTIME_DOWN.by(down.transport);
        Some(event.because(down.to_string()))
    }
}

/// The tables to follow.
pub fn bindings(following: Following) -> Vec<FollowedTable> {
    let names = match (following.changes, following.canary) {
        (false, _) => &[][..],
        (true, false) => &[DISTRIBUTIONS][..],
        (true, true) => &[DISTRIBUTIONS, CANARY][..],
    };
    names
        .iter()
        .map(|name| FollowedTable::new("public", *name))
        .collect()
}

/// The command that reconnects a silent channel.
pub fn reconnect_command(transport: Transport, reconnect: Reconnect) -> FeedCommand {
    match reconnect {
        Reconnect::Rejoin => FeedCommand::Rejoin(transport, "no echo within 10 s".to_owned()),
        Reconnect::Reopen => FeedCommand::Reopen("no echo within 10 s, again".to_owned()),
    }
}

/// What an event of the feed means to the agent; `None` for an event of a table that it does not follow.
pub fn agent_event(event: &FeedEvent) -> Option<RealtimeEvent> {
    match event {
        FeedEvent::Live(transport) => Some(RealtimeEvent::Live(*transport)),
        FeedEvent::Down(down) if down.failure.kind == ErrorKind::Table => {
            Some(RealtimeEvent::Unfollowed)
        }
        FeedEvent::Down(down) => Some(RealtimeEvent::Down(down.transport)),
        FeedEvent::Changed(change) => changed(change),
        FeedEvent::Broadcast(broadcast, replayed) => broadcasted(*broadcast, *replayed),
        FeedEvent::Lost(_) => Some(RealtimeEvent::Unclear),
    }
}

fn changed(change: &Change) -> Option<RealtimeEvent> {
    match (change.table.name.as_str(), change.id) {
        (CANARY, _) => Some(RealtimeEvent::Canary(Transport::Changes)),
        (DISTRIBUTIONS, Some(id)) if change.damage.is_none() => Some(RealtimeEvent::Row(
            Transport::Changes,
            id,
            change.config_version,
        )),
        (DISTRIBUTIONS, _) => Some(RealtimeEvent::Unclear),
        _ => None,
    }
}

/// A canary that is replayed from the server's store proves nothing.
fn broadcasted(broadcast: Broadcast, replayed: bool) -> Option<RealtimeEvent> {
    match broadcast {
        Broadcast::Row { id, config_version } => {
            Some(RealtimeEvent::Row(Transport::Broadcast, id, config_version))
        }
        Broadcast::Canary { .. } => {
            (!replayed).then_some(RealtimeEvent::Canary(Transport::Broadcast))
        }
    }
}

/// An event of the feed, for people.
pub fn received(event: &FeedEvent, at: Option<DbTime>) -> ReceivedEvent {
    let version = |version: Option<i64>| {
        version.map_or_else(String::new, |version| format!(", version {version}"))
    };
    let (transport, what, id) = match event {
        FeedEvent::Live(transport) => (Some(*transport), LIVE.to_owned(), None),
        FeedEvent::Down(down) => (Some(down.transport), format!("not live: {down}"), None),
        FeedEvent::Changed(change) => {
            let what = format!("{}{}", change.table.name, version(change.config_version));
            (Some(Transport::Changes), what, change.id)
        }
        FeedEvent::Broadcast(Broadcast::Row { id, config_version }, replayed) => {
            let replayed = if *replayed { ", replayed" } else { "" };
            let what = format!("{DISTRIBUTIONS}{}{replayed}", version(*config_version));
            (Some(Transport::Broadcast), what, Some(*id))
        }
        FeedEvent::Broadcast(Broadcast::Canary { .. }, _) => {
            (Some(Transport::Broadcast), "canary".to_owned(), None)
        }
        FeedEvent::Lost(why) => (None, format!("unclear: {why}"), None),
    };
    ReceivedEvent {
        at,
        transport,
        what,
        id,
    }
}
