//! A live table at the bottom of the terminal: earlier output stays above it and scrolls up with the log, as in any shell.
//!
//! Owns the terminal while it is shown: raw mode, the cursor, the keys; [`LiveTable`] owns what they do. A task reads the
//! database once a second; drawing and keys have a thread of their own, so that a slow terminal delays nothing else.
//!
//! Invariant: however it ends, by a key, a signal, an error or a panic, the terminal is restored.

use std::collections::VecDeque;
use std::io::{self, IsTerminal as _, Stdout, Write as _, stdout};
use std::sync::{Arc, Once};
use std::time::Duration;

use anyhow::Context as _;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{MoveTo, Show};
use ratatui::crossterm::event::{self, Event, KeyEvent};
use ratatui::crossterm::terminal::{self, Clear, ClearType, disable_raw_mode, enable_raw_mode};
use ratatui::crossterm::{execute, queue};
use ratatui::{Terminal, TerminalOptions, Viewport};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::live_table::{KeyAction, LiveTable};
use super::log_buffer::LogBuffer;
use super::snapshot::{LiveStatus, follow};
use crate::postgres::reconnect::{Database, ReconnectingConnection};

/// The longest time that a key, a line of the log or the end waits.
const POLL: Duration = Duration::from_millis(100);
/// Log lines that are printed again after a change of the terminal's size.
const RECENT_MAX: usize = 20;
/// Lines above the table that a long table leaves free.
const FREE_ABOVE: u16 = 3;

/// What is shown.
pub struct Screen {
    /// Above the table.
    pub title: &'static str,
    /// Keys besides those of the table, below it.
    pub keys: &'static [&'static str],
    /// Printed first, as plain lines that can be copied.
    pub intro: Vec<String>,
    /// The log.
    pub log: LogBuffer,
}

/// Whether there is a terminal to draw on, to read keys from, and to log to.
pub fn is_possible() -> bool {
    io::stdin().is_terminal() && stdout().is_terminal() && io::stderr().is_terminal()
}

impl Screen {
    /// Shows it until `stop` is cancelled, or `q` or Ctrl-C is pressed. The terminal is restored when this has returned, so cancel
    /// and await it rather than drop it.
    pub async fn show(self, database: Database, stop: CancellationToken) -> anyhow::Result<()> {
        let (sender, live) = watch::channel(Arc::default());
        let mut painter = tokio::task::spawn_blocking(move || self.paint(live, &stop));
        tokio::select! {
            painted = &mut painter => painted.context("the thread of the screen failed")?,
            never = follow(ReconnectingConnection::new(database), sender) => match never {},
        }
    }

    fn paint(
        self,
        mut live: watch::Receiver<Arc<LiveStatus>>,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let _raw = RawMode::enter(self.log.clone())?;
        print(&self.intro)?;
        let mut view = InlineView::open(1).context("cannot ask the terminal for its cursor")?;
        let mut table = LiveTable::new(self.title, self.keys);
        let mut recent = VecDeque::new();
        while !stop.is_cancelled() {
            let fresh = self.log.drain();
            recent.extend(fresh.iter().cloned());
            recent.drain(..recent.len().saturating_sub(RECENT_MAX));
            if !fresh.is_empty() {
                view.print_above(&fresh)?;
            }
            let (keys, is_resized) = wait_for_input()?;
            if is_resized {
                execute!(stdout(), Clear(ClearType::All), MoveTo(0, 0))?;
                print(recent.make_contiguous())?;
                print(&self.intro)?;
                view = InlineView::open(1)?;
            }
            let is_new = live.has_changed().unwrap_or(false);
            if !is_new && fresh.is_empty() && keys.is_empty() && !is_resized {
                continue;
            }
            // No borrow while drawing: it would stop the task that reads the database.
            let live = Arc::clone(&live.borrow_and_update());
            table.update(&live);
            let actions = keys.iter().map(|key| table.press(*key, &live));
            match actions.max().unwrap_or(KeyAction::Redraw) {
                KeyAction::Quit => break,
                KeyAction::PrintIntro => view.print_above(&self.intro)?,
                KeyAction::Redraw => {}
            }
            view.draw(&mut table, &live)?;
        }
        view.leave()
    }
}

/// The keys of the next moment, and whether the size of the terminal has changed.
fn wait_for_input() -> io::Result<(Vec<KeyEvent>, bool)> {
    const EVENTS_MAX: usize = 64;
    let (mut keys, mut is_resized) = (Vec::new(), false);
    let mut patience = POLL;
    for _ in 0..EVENTS_MAX {
        if !event::poll(patience)? {
            break;
        }
        patience = Duration::ZERO;
        match event::read()? {
            Event::Key(key) if !key.is_release() => keys.push(key),
            Event::Resize(..) => is_resized = true,
            Event::Key(_) | Event::Mouse(_) | Event::Paste(_) => {}
            Event::FocusGained | Event::FocusLost => {}
        }
    }
    Ok((keys, is_resized))
}

/// Prints lines as they are: the terminal folds long ones, so that they can be copied whole.
fn print(lines: &[String]) -> io::Result<()> {
    let mut out = stdout().lock();
    for line in lines {
        write!(out, "{line}\r\n")?;
    }
    out.flush()
}

/// The lines at the bottom of the terminal that the table has.
struct InlineView {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    height: u16,
}

impl InlineView {
    /// Below the cursor; what is above scrolls up if there is no room.
    fn open(height: u16) -> io::Result<Self> {
        let viewport = Viewport::Inline(height);
        let backend = CrosstermBackend::new(stdout());
        let terminal = Terminal::with_options(backend, TerminalOptions { viewport })?;
        Ok(Self { terminal, height })
    }

    fn print_above(&mut self, lines: &[String]) -> io::Result<()> {
        let top = self.terminal.get_frame().area().top();
        execute!(stdout(), MoveTo(0, top), Clear(ClearType::FromCursorDown))?;
        print(lines)?;
        *self = Self::open(self.height)?;
        Ok(())
    }

    /// Draws the table; its height grows with it and never shrinks.
    fn draw(&mut self, table: &mut LiveTable, live: &LiveStatus) -> io::Result<()> {
        let (_, rows) = terminal::size()?;
        let most = rows.saturating_sub(FREE_ABOVE).max(rows.div_ceil(2)).max(1);
        let height = table.height(live, most).max(self.height.min(most));
        if height > self.height {
            self.height = height;
            self.print_above(&[])?;
        }
        self.terminal.draw(|frame| table.draw(live, most, frame))?;
        Ok(())
    }

    /// Leaves the last picture where it is, and the cursor below it.
    fn leave(mut self) -> anyhow::Result<()> {
        let below = self.terminal.get_frame().area().bottom().saturating_sub(1);
        queue!(stdout(), MoveTo(0, below))?;
        print(&[String::new()])?;
        Ok(())
    }
}

/// The terminal in raw mode and the log held back, until this is dropped.
struct RawMode(LogBuffer);

impl RawMode {
    fn enter(log: LogBuffer) -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                restore_terminal();
                before(panic);
            }));
        });
        enable_raw_mode()?;
        log.hold();
        Ok(Self(log))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        restore_terminal();
        self.0.release();
    }
}

fn restore_terminal() {
    // An error has nowhere to go.
    let _restored = disable_raw_mode().is_ok() && execute!(stdout(), Show).is_ok();
}
