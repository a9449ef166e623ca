//! The protocol machine, driven by a script of what a socket, a server and an owner may do: one line an input.
//!
//! Whatever comes, it sends only over an open socket, dials only without one, is live only on one, shows no token, and has a
//! deadline whenever nobody else will wake it.

use std::time::{Duration, Instant};

use visit_pacer::domain::error_policy::{ErrorKind, Failure};
use visit_pacer::domain::secret::Secret;
use visit_pacer::domain::transport::Transport;
use visit_pacer::realtime::change::FollowedTable;
use visit_pacer::realtime::frame::Frame;
use visit_pacer::realtime::session::{
    FeedCommand, FeedEvent, Session, SessionAction, SessionInput,
};

/// Lines of a script that are read at the most.
const INPUTS: usize = 300;
/// What one input may lead to.
const ACTIONS: usize = 8;
const TOKEN: &str = "the-token-that-nobody-sees";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Socket {
    None,
    Dialing,
    Open,
}

struct Driver {
    session: Session,
    now: Instant,
    socket: Socket,
    stopped: bool,
    /// The ref of the last join, and of the last frame sent.
    join_ref: Option<String>,
    last_ref: Option<String>,
}

/// As a script.
pub fn run(data: &[u8]) {
    let tables =
        ["visit_distribution", "visit_pacer_canary"].map(|name| FollowedTable::new("public", name));
    let mut driver = Driver {
        session: Session::new(tables.to_vec(), Some(Secret::new(TOKEN))),
        now: Instant::now(),
        socket: Socket::None,
        stopped: false,
        join_ref: None,
        last_ref: None,
    };
    driver.act();
    let lines = data.split(|byte| *byte == b'\n');
    for (line, draw) in lines
        .take(INPUTS)
        .zip((0_u32..).map(|n| n.wrapping_mul(0x9e37_79b9)))
    {
        let Some(input) = driver.input(line) else {
            continue;
        };
        let now = driver.now;
        driver.session.handle(input, now, draw);
        driver.act();
    }
}

impl Driver {
    /// What a line says, where it can happen.
    fn input(&mut self, line: &[u8]) -> Option<SessionInput> {
        let reason = || "so the script".to_owned();
        let input = match line {
            b"opened" => SessionInput::Opened,
            b"refused" => SessionInput::DialFailed(Failure::new(ErrorKind::Key, reason())),
            b"closed" => SessionInput::Closed(reason()),
            b"noise" => SessionInput::Activity,
            b"rejoin" => SessionInput::Command(FeedCommand::Rejoin(Transport::Changes, reason())),
            b"reopen" => SessionInput::Command(FeedCommand::Reopen(reason())),
            b"shutdown" => SessionInput::Command(FeedCommand::Shutdown),
            b"fewer" => {
                let table = FollowedTable::new("public", "visit_distribution");
                SessionInput::Command(FeedCommand::Bindings(vec![table]))
            }
            b"tick" => {
                let (deadline, _) = self.session.next_deadline()?;
                self.now = self.now.max(deadline);
                SessionInput::Tick
            }
            b"later" => {
                self.now += Duration::from_secs(7);
                SessionInput::Tick
            }
            message => SessionInput::Received(self.frame(message)?),
        };
        let possible = match &input {
            SessionInput::Opened | SessionInput::DialFailed(_) => self.socket == Socket::Dialing,
            SessionInput::Closed(_) | SessionInput::Activity | SessionInput::Received(_) => {
                self.socket == Socket::Open
            }
            SessionInput::Command(_) | SessionInput::Tick => !self.stopped,
        };
        if possible {
            self.socket = match input {
                SessionInput::Opened => Socket::Open,
                SessionInput::DialFailed(_) => Socket::None,
                SessionInput::Closed(_)
                | SessionInput::Activity
                | SessionInput::Received(_)
                | SessionInput::Command(_)
                | SessionInput::Tick => self.socket,
            };
        }
        possible.then_some(input)
    }

    /// A frame; after `=`, with the refs of the join and the frame last sent, as a server answers.
    fn frame(&self, message: &[u8]) -> Option<Frame> {
        let answer = message.strip_prefix(b"=");
        let text = str::from_utf8(answer.unwrap_or(message)).ok()?;
        let mut frame = Frame::decode_text(text).ok()?;
        if answer.is_some() {
            frame.join_ref = frame.join_ref.and_then(|_| self.join_ref.clone());
            frame.ref_ = frame.ref_.and_then(|_| self.last_ref.clone());
        }
        Some(frame)
    }

    /// Does what the session asks, and holds it to its word.
    fn act(&mut self) {
        let mut actions = 0;
        while let Some(action) = self.session.poll_action() {
            actions += 1;
            assert!(actions <= ACTIONS, "one input leads to few actions");
            assert!(!self.stopped, "nothing follows the end: {action:?}");
            self.follow(action);
        }
        let waits_for_others = self.stopped || self.socket == Socket::Dialing;
        assert_eq!(self.session.next_deadline().is_none(), waits_for_others);
    }

    fn follow(&mut self, action: SessionAction) {
        match action {
            SessionAction::Dial => {
                assert_eq!(self.socket, Socket::None, "one socket");
                self.socket = Socket::Dialing;
            }
            SessionAction::Send(frame) => {
                assert_eq!(self.socket, Socket::Open, "sends on an open socket");
                self.last_ref.clone_from(&frame.ref_);
                if frame.event == "phx_join" {
                    self.join_ref.clone_from(&frame.ref_);
                } else {
                    assert!(!frame.encode().contains(TOKEN), "only a join has the token");
                }
            }
            SessionAction::Close | SessionAction::Abandon => self.socket = Socket::None,
            SessionAction::Emit(event) => {
                assert!(!format!("{event:?}").contains(TOKEN), "no news shows it");
                let news = matches!(
                    event,
                    FeedEvent::Live(_) | FeedEvent::Broadcast(..) | FeedEvent::Changed(_)
                );
                assert!(
                    !news || self.socket == Socket::Open,
                    "news comes from a socket"
                );
            }
            SessionAction::Stop => self.stopped = true,
        }
    }
}
