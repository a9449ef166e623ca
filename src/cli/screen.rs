//! A live table at the foot of the terminal: below what was printed, which stays where it is and
//! scrolls up with the log, as in any shell.
//!
//! Owns the terminal while it is shown: raw mode, the cursor, the keys; what they do to the table
//! is `browser`'s. The looks come from a task
//! that asks the database once a second; drawing and keys are on a thread of their own, so that a
//! slow terminal delays nothing else.
//!
//! Invariant: however it ends — a key, a signal, an error, a panic — the terminal is as it was.

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Stdout, Write as _, stdout};
use std::sync::Once;
use std::time::Duration;

use anyhow::Context as _;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{MoveTo, Show};
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent};
use ratatui::crossterm::terminal::{self, Clear, ClearType, disable_raw_mode, enable_raw_mode};
use ratatui::crossterm::{execute, queue};
use ratatui::text::Line;
use ratatui::widgets::Paragraph;
use ratatui::{Terminal, TerminalOptions, Viewport};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::browser::{Browser, Room, Wish, Words};
use super::lines::Lines;
use super::status::{Seen, keep_looking};
use crate::postgres::reconnect::{Database, ReconnectingConnection};

/// How long a key, a line of the log or the end may wait.
const TURN: Duration = Duration::from_millis(100);
/// Lines of the log that are printed again when the terminal's size changes.
const RECENT_MAX: usize = 20;
/// Lines above the table that a table of many rows leaves free.
const FREE_ABOVE: u16 = 3;

/// What is shown.
pub struct Screen {
    /// Above and below the table.
    pub words: Words,
    /// Printed first, as plain text that can be copied whole.
    pub intro: Vec<String>,
    /// The log.
    pub lines: Lines,
}

/// Whether there is a terminal to draw on, to read keys from, and to log to.
pub fn is_possible() -> bool {
    io::stdin().is_terminal() && stdout().is_terminal() && io::stderr().is_terminal()
}

impl Screen {
    /// Shows it until `stop` is cancelled, or `q` or Ctrl-C is pressed. The terminal is free again
    /// when this has returned; so cancel and await it, rather than drop it.
    pub async fn show(self, database: Database, stop: CancellationToken) -> anyhow::Result<()> {
        let (sender, seen) = watch::channel(Seen::default());
        let mut painter = tokio::task::spawn_blocking(move || self.paint(seen, &stop));
        tokio::select! {
            painted = &mut painter => painted.context("the screen's thread")?,
            never = keep_looking(ReconnectingConnection::new(database), sender) => match never {},
        }
    }

    fn paint(
        self,
        mut seen: watch::Receiver<Seen>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let _held = Held::take(self.lines.clone())?;
        print(&self.intro)?;
        let mut canvas = Canvas::open(1).context("ask the terminal where its cursor is")?;
        let mut browser = Browser::default();
        let mut recent = VecDeque::new();
        while !stop.is_cancelled() {
            let fresh = self.lines.drain();
            recent.extend(fresh.iter().cloned());
            recent.drain(..recent.len().saturating_sub(RECENT_MAX));
            if !fresh.is_empty() {
                canvas.print_above(&fresh)?;
            }
            let user = User::turn()?;
            if user.has_resized {
                execute!(stdout(), Clear(ClearType::All), MoveTo(0, 0))?;
                let recent: Vec<String> = recent.iter().cloned().collect();
                print(&recent)?;
                print(&self.intro)?;
                canvas = Canvas::open(1)?;
            }
            let is_new = seen.has_changed().unwrap_or(false);
            if !is_new && fresh.is_empty() && user.keys.is_empty() && !user.has_resized {
                continue;
            }
            let room = canvas.room()?;
            let (wish, lines) = {
                let seen = seen.borrow_and_update();
                browser.arrange(&seen);
                let wish = press(&mut browser, &user.keys, &seen);
                (wish, browser.view(&seen, self.words, room))
            };
            match wish {
                Turn::Quit => break,
                Turn::Again => canvas.print_above(&self.intro)?,
                Turn::Look => {}
            }
            canvas.draw(lines)?;
        }
        canvas.leave()
    }
}

/// What is to be done; of several at once the last one here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Turn {
    Look,
    Again,
    Quit,
}

fn press(browser: &mut Browser, keys: &[KeyEvent], seen: &Seen) -> Turn {
    let turns = keys.iter().map(|key| match browser.press(*key, seen) {
        Wish::Quit => Turn::Quit,
        Wish::Other if key.code == KeyCode::Char('p') => Turn::Again,
        Wish::Other | Wish::Look => Turn::Look,
    });
    turns.max().unwrap_or(Turn::Look)
}

/// What the user did.
#[derive(Default)]
struct User {
    keys: Vec<KeyEvent>,
    has_resized: bool,
}

impl User {
    /// Waits a little for it.
    fn turn() -> io::Result<Self> {
        const EVENTS_MAX: usize = 64;
        let mut user = Self::default();
        let mut patience = TURN;
        for _ in 0..EVENTS_MAX {
            if !event::poll(patience)? {
                break;
            }
            patience = Duration::ZERO;
            match event::read()? {
                Event::Key(key) if !key.is_release() => user.keys.push(key),
                Event::Resize(..) => user.has_resized = true,
                Event::Key(_) | Event::Mouse(_) | Event::Paste(_) => {}
                Event::FocusGained | Event::FocusLost => {}
            }
        }
        Ok(user)
    }
}

/// Prints lines as they are: the terminal folds long ones, so that they can be copied whole.
fn print(lines: &[String]) -> io::Result<()> {
    let mut out = stdout().lock();
    for line in lines {
        write!(out, "{line}\r\n")?;
    }
    out.flush()
}

/// The foot of the terminal.
struct Canvas {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    height: u16,
    top: u16,
}

impl Canvas {
    /// Below the cursor; what is above scrolls up where there is no room.
    fn open(height: u16) -> io::Result<Self> {
        let viewport = Viewport::Inline(height);
        let backend = CrosstermBackend::new(stdout());
        let mut terminal = Terminal::with_options(backend, TerminalOptions { viewport })?;
        let top = terminal.get_frame().area().top();
        Ok(Self {
            terminal,
            height,
            top,
        })
    }

    fn print_above(&mut self, lines: &[String]) -> io::Result<()> {
        execute!(
            stdout(),
            MoveTo(0, self.top),
            Clear(ClearType::FromCursorDown)
        )?;
        print(lines)?;
        *self = Self::open(self.height)?;
        Ok(())
    }

    /// The room that there is: what is taken stays taken.
    fn room(&self) -> io::Result<Room> {
        let (width, rows) = terminal::size()?;
        let most = rows.saturating_sub(FREE_ABOVE).max(rows.div_ceil(2)).max(1);
        Ok(Room {
            width: width.into(),
            least: self.height.min(most).into(),
            most: most.into(),
        })
    }

    /// Draws the lines, taking more room where they need it.
    fn draw(&mut self, lines: Vec<Line<'static>>) -> io::Result<()> {
        let wanted = u16::try_from(lines.len()).unwrap_or(u16::MAX);
        if wanted > self.height {
            self.height = wanted;
            self.print_above(&[])?;
        }
        self.terminal
            .draw(|frame| frame.render_widget(Paragraph::new(lines), frame.area()))?;
        Ok(())
    }

    /// Leaves the last picture where it is, and the cursor below it.
    fn leave(mut self) -> anyhow::Result<()> {
        let area = self.terminal.get_frame().area();
        let below = area.bottom().saturating_sub(1);
        queue!(stdout(), MoveTo(0, below))?;
        print(&[String::new()])?;
        Ok(())
    }
}

/// The terminal in raw mode and the log held back, until this is dropped.
struct Held(Lines);

impl Held {
    fn take(lines: Lines) -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                free_terminal();
                before(panic);
            }));
        });
        enable_raw_mode()?;
        lines.hold();
        Ok(Self(lines))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        free_terminal();
        self.0.release();
    }
}

fn free_terminal() {
    // There is nobody left to tell.
    let _freed = disable_raw_mode().is_ok() && execute!(stdout(), Show).is_ok();
}
