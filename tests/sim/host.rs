//! A machine that runs the program: an agent and a Realtime session in one process, again and again.
//!
//! The glue between the two is that of the program's main loop and feed: an event of the session becomes an input, what the
//! agent asks of the feed becomes a command. Owns the process, its monotonic clock, and what waits for it while it is
//! stopped; its effects on the world are [`Deed`]s.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use uuid::Uuid;
use visit_pacer::domain::agent::{
    Action, Agent, Answer, Input, MaintenanceTask, ReadRequest, RoundTrip,
};
use visit_pacer::domain::batch::Batch;
use visit_pacer::domain::echo_check::Reconnect;
use visit_pacer::domain::error_policy::{ErrorKind, Failure};
use visit_pacer::domain::event::Event;
use visit_pacer::domain::secret::Secret;
use visit_pacer::domain::time::{DbTime, Mono, micros_of};
use visit_pacer::domain::transport::{Following, ListenBy, Transport};
use visit_pacer::realtime::frame::Frame;
use visit_pacer::realtime::session::{Session, SessionAction, SessionInput};
use visit_pacer::realtime::{Down, FeedCommand, FeedEvent};
use visit_pacer::runtime::realtime_state::{
    RealtimeState, agent_event, bindings, reconnect_command,
};

use crate::dice::Dice;
use crate::realtime::SocketId;

/// Ticks at one moment that lead to nothing.
const IDLE_TICKS: u32 = 20;
/// Actions that one input leads to.
const ACTIONS: usize = 1_000;

/// A statement for the database.
#[derive(Clone, Debug)]
pub enum Statement {
    Store(Batch),
    Read(ReadRequest),
    Maintain(MaintenanceTask),
    Goodbye,
}

/// What arrives at the process.
#[derive(Debug)]
pub enum Arrival {
    Wake,
    /// The answer to a statement that was sent at this moment, with the database's clock if it answered.
    Answer(Answer, Option<DbTime>, Mono),
    Opened(SocketId),
    Refused(SocketId, u16, &'static str),
    Text(SocketId, String),
    Binary(SocketId, Vec<u8>),
    Closed(SocketId),
    /// SIGTERM.
    Terminate,
}

/// What the process does.
#[derive(Debug)]
pub enum Deed {
    Send(Statement, Mono),
    Dial(SocketId),
    Say(SocketId, String),
    HangUp(SocketId),
    Emit(Event),
    Reconnect(Transport, Reconnect),
    Down(Down),
    Follow(Following),
    /// An event had the version that is known.
    KnewAlready,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SocketState {
    Closed,
    Dialing(SocketId),
    Open(SocketId),
}

pub struct Host {
    name: usize,
    /// Counts its processes.
    pub life: u32,
    pub process: Option<Process>,
    /// SIGSTOP: what arrives waits.
    pub stopped: bool,
    waiting: VecDeque<Arrival>,
    sockets: u32,
    born: i64,
    /// Millionths by which its clock is fast.
    drift_ppm: i64,
    /// When its alarm rings.
    pub alarm: Option<i64>,
    /// Where `Instant`s are counted from.
    epoch: Instant,
    /// Events that its write-backs have caused since the calm began.
    pub write_backs: i64,
}

pub struct Process {
    pub id: Uuid,
    pub agent: Agent,
    session: Session,
    socket: SocketState,
    realtime: RealtimeState,
    /// What it follows. Without the canary it would not know of a channel of changes that is dead.
    pub following: Following,
    host: usize,
    idle_ticks: u32,
    epoch: Instant,
}

impl Host {
    pub fn new(name: usize, drift_ppm: i64, epoch: Instant) -> Self {
        Self {
            name,
            life: 0,
            process: None,
            stopped: false,
            waiting: VecDeque::new(),
            sockets: 0,
            born: 0,
            drift_ppm,
            alarm: None,
            epoch,
            write_backs: 0,
        }
    }

    /// A new process.
    pub fn start(&mut self, bound: u32, now: i64, dice: &mut Dice) {
        let id = Uuid::from_u64_pair(u64::from(dice.draw()) << 32 | u64::from(dice.draw()), 0);
        let token = dice.percent(50).then(|| Secret::new("a.b.c"));
        self.born = now;
        self.life += 1;
        self.process = Some(Process {
            id,
            agent: Agent::new(id, bound, Mono::from_micros(0)),
            session: Session::new(bindings(Following::at_first(ListenBy::Auto)), token),
            socket: SocketState::Closed,
            realtime: RealtimeState::new(ListenBy::Auto),
            following: Following::at_first(ListenBy::Auto),
            host: self.name,
            idle_ticks: 0,
            epoch: self.epoch,
        });
    }

    /// kill -9, or the end: all memory is lost. Returns the socket that its kernel closes.
    pub fn die(&mut self) -> Option<SocketId> {
        self.stopped = false;
        self.waiting.clear();
        self.alarm = None;
        match self.process.take()?.socket {
            SocketState::Open(socket) | SocketState::Dialing(socket) => Some(socket),
            SocketState::Closed => None,
        }
    }

    /// Ends a process that has no job in hand.
    pub fn leave(&mut self, now: i64, dice: &mut Dice) -> Vec<Deed> {
        let mono = self.mono(now);
        let Some(process) = &mut self.process else {
            return Vec::new();
        };
        process.session(SessionInput::Command(FeedCommand::Shutdown), mono, dice);
        let mut deeds = process.settle(mono, &mut self.sockets, dice);
        deeds.push(Deed::Send(Statement::Goodbye, mono));
        deeds
    }

    /// SIGCONT: returns what arrived meanwhile.
    pub fn go_on(&mut self) -> VecDeque<Arrival> {
        self.stopped = false;
        self.alarm = None;
        std::mem::take(&mut self.waiting)
    }

    pub fn takes(&mut self, arrival: Arrival, now: i64, dice: &mut Dice) -> Vec<Deed> {
        let mono = self.mono(now);
        let Some(process) = &mut self.process else {
            return Vec::new();
        };
        if self.stopped {
            self.waiting.push_back(arrival);
            return Vec::new();
        }
        process.takes(arrival, mono, &mut self.sockets, dice)
    }

    /// Its monotonic clock.
    pub fn mono(&self, now: i64) -> Mono {
        let elapsed = now - self.born;
        Mono::from_micros(elapsed + elapsed * self.drift_ppm / 1_000_000)
    }

    /// Its next deadline, in true time.
    pub fn wakes_at(&mut self, now: i64) -> Option<i64> {
        let mono = self.mono(now);
        let process = self.process.as_mut().filter(|_| !self.stopped)?;
        let agent = process.agent.next_deadline(mono).map(|(at, _)| at);
        let session = process.session.next_deadline();
        let session = session.map(|(at, _)| process.mono_of(at));
        let at = agent
            .into_iter()
            .chain(session)
            .min()?
            .max(mono)
            .as_micros();
        let mut elapsed = at - at * self.drift_ppm / 1_000_000 - 1;
        while self.mono(self.born + elapsed).as_micros() < at {
            elapsed += 1;
        }
        Some(now.max(self.born + elapsed))
    }
}

impl Process {
    fn takes(
        &mut self,
        arrival: Arrival,
        mono: Mono,
        sockets: &mut u32,
        dice: &mut Dice,
    ) -> Vec<Deed> {
        let mut ticks = false;
        match arrival {
            Arrival::Wake => ticks = self.wake(mono, dice),
            Arrival::Answer(answer, db, sent) => {
                let round_trip = |db| RoundTrip {
                    sent,
                    db,
                    received: mono,
                };
                let input = Input::Answer(answer, db.map(round_trip));
                self.agent.handle(input, mono);
            }
            Arrival::Opened(socket) if self.socket == SocketState::Dialing(socket) => {
                self.socket = SocketState::Open(socket);
                self.session(SessionInput::Opened, mono, dice);
            }
            Arrival::Refused(socket, status, words)
                if self.socket == SocketState::Dialing(socket) =>
            {
                self.socket = SocketState::Closed;
                let kind = ErrorKind::from_http_status(status, words);
                let failed = SessionInput::DialFailed(Failure::new(kind, words));
                self.session(failed, mono, dice);
            }
            Arrival::Text(socket, text) if self.socket == SocketState::Open(socket) => {
                let frame = Frame::decode_text(&text);
                let input = frame.map_or(SessionInput::Activity, SessionInput::Received);
                self.session(input, mono, dice);
            }
            Arrival::Binary(socket, bytes) if self.socket == SocketState::Open(socket) => {
                let frame = Frame::decode_binary(&bytes);
                let input = frame.map_or(SessionInput::Activity, SessionInput::Received);
                self.session(input, mono, dice);
            }
            Arrival::Closed(socket) if self.socket == SocketState::Open(socket) => {
                let reason = "closed by the server".to_owned();
                self.session(SessionInput::Closed(reason), mono, dice);
            }
            Arrival::Opened(_)
            | Arrival::Refused(..)
            | Arrival::Text(..)
            | Arrival::Binary(..)
            | Arrival::Closed(_) => {}
            Arrival::Terminate => self.agent.handle(Input::Stop, mono),
        }
        let deeds = self.settle(mono, sockets, dice);
        self.idle_ticks = if ticks && deeds.is_empty() {
            self.idle_ticks + 1
        } else {
            0
        };
        let why = self.agent.next_deadline(mono).filter(|(at, _)| *at <= mono);
        if let Some((_, why)) = why {
            assert!(self.idle_ticks < IDLE_TICKS, "the agent spins for: {why}");
        }
        deeds
    }

    /// Ticks what is due; returns whether the agent was.
    fn wake(&mut self, mono: Mono, dice: &mut Dice) -> bool {
        if self
            .session
            .next_deadline()
            .is_some_and(|(at, _)| self.mono_of(at) <= mono)
        {
            self.session(SessionInput::Tick, mono, dice);
        }
        let due = self
            .agent
            .next_deadline(mono)
            .is_some_and(|(at, _)| at <= mono);
        if due {
            self.agent.handle(Input::Tick, mono);
        }
        due
    }

    /// Carries out the actions of both until there are none left.
    fn settle(&mut self, mono: Mono, sockets: &mut u32, dice: &mut Dice) -> Vec<Deed> {
        let mut deeds = Vec::new();
        for _ in 0..ACTIONS {
            if let Some(action) = self.session.poll_action() {
                self.carry_out(action, mono, sockets, &mut deeds);
            } else if let Some(action) = self.agent.poll_action() {
                self.act(action, mono, dice, &mut deeds);
            } else {
                return deeds;
            }
        }
        panic!("one input leads to {ACTIONS} actions");
    }

    /// As the feed does.
    fn carry_out(
        &mut self,
        action: SessionAction,
        mono: Mono,
        sockets: &mut u32,
        deeds: &mut Vec<Deed>,
    ) {
        match action {
            SessionAction::Dial => {
                *sockets += 1;
                let socket = SocketId {
                    host: self.host,
                    number: *sockets,
                };
                self.socket = SocketState::Dialing(socket);
                deeds.push(Deed::Dial(socket));
            }
            SessionAction::Send(frame) => {
                if let SocketState::Open(socket) = self.socket {
                    deeds.push(Deed::Say(socket, frame.encode()));
                }
            }
            SessionAction::Close | SessionAction::Abandon => {
                if let SocketState::Open(socket) | SocketState::Dialing(socket) =
                    std::mem::replace(&mut self.socket, SocketState::Closed)
                {
                    deeds.push(Deed::HangUp(socket));
                }
            }
            SessionAction::Emit(event) => {
                let known = self.agent.counters().realtime.events_known;
                if let Some(event) = agent_event(&event) {
                    self.agent.handle(Input::Realtime(event), mono);
                }
                if self.agent.counters().realtime.events_known > known {
                    deeds.push(Deed::KnewAlready);
                }
                if let FeedEvent::Down(down) = event {
                    deeds.push(Deed::Down(down));
                }
            }
            SessionAction::Stop => {}
        }
    }

    /// As the loop does.
    fn act(&mut self, action: Action, mono: Mono, dice: &mut Dice, deeds: &mut Vec<Deed>) {
        let now = at(self.epoch, mono);
        let mut command = |command| {
            let input = SessionInput::Command(command);
            self.session.handle(input, now, dice.draw());
        };
        match action {
            Action::Store(batch) => deeds.push(Deed::Send(Statement::Store(batch), mono)),
            Action::Read(request) => deeds.push(Deed::Send(Statement::Read(request), mono)),
            Action::Maintain(task) => deeds.push(Deed::Send(Statement::Maintain(task), mono)),
            Action::Reconnect(transport, reconnect) => {
                command(reconnect_command(transport, reconnect));
                deeds.push(Deed::Reconnect(transport, reconnect));
            }
            Action::Follow(following) => {
                self.following = following;
                for each in self.realtime.follow(following) {
                    command(each);
                }
                deeds.push(Deed::Follow(following));
            }
            Action::Emit(event) => deeds.push(Deed::Emit(event)),
        }
    }

    fn session(&mut self, input: SessionInput, mono: Mono, dice: &mut Dice) {
        self.session
            .handle(input, at(self.epoch, mono), dice.draw());
    }

    /// The first whole microsecond that is not before it.
    fn mono_of(&self, at: Instant) -> Mono {
        let since = at.saturating_duration_since(self.epoch) + Duration::from_nanos(999);
        Mono::from_micros(micros_of(since))
    }
}

fn at(epoch: Instant, mono: Mono) -> Instant {
    epoch + Duration::from_micros(u64::try_from(mono.as_micros()).expect("after the start"))
}
