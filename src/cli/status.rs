//! `visit-pacer status`: where each distribution stands, once, as JSON, or live.
//!
//! With `--check` it is a plugin of a monitor (Nagios, Icinga, Sensu …): one line, and the exit codes of such plugins.
//!
//! Owns the look at the database that the demo's screen takes as well; the wording is `table`'s.

use std::convert::Infallible;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::ensure;
use ratatui::backend::IntoCrossterm as _;
use ratatui::crossterm::style::{Colored, ContentStyle};
use ratatui::crossterm::terminal;
use ratatui::text::Line;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::browser::Words;
use super::connection::{connect, database};
use super::lines::Lines;
use super::measured::RateEstimator;
use super::screen::{self, Screen};
use super::table::{self, Look, Measured, View};

use crate::postgres::connection::Connection;
use crate::postgres::failure::Failure;
use crate::postgres::reconnect::{ReconnectingConnection, with_timeout};
use crate::postgres::{rows, status};
use crate::runtime::serve::asked_to_stop;

/// An agent that was not seen for so many seconds is none.
const AGENT_SEEN_WITHIN: f64 = 20.0;
/// How often the database is asked.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Flags of `status`.
#[derive(clap::Args)]
pub struct Args {
    /// As JSON: {"agents": […], "distributions": […]}
    #[arg(long)]
    json: bool,
    /// Live on a terminal, until q or Ctrl-C: scroll as in less, / filters, s sorts
    #[arg(long, conflicts_with = "json")]
    watch: bool,
    /// For a monitor, one line; exit code 0: all is well, 1: rows are behind, 2: no agent, rows invalid, or everything
    /// paused, 3: the database cannot be asked
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    check: bool,
}

/// Not all is well: the exit code of `--check`, as monitors have it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not all is well")]
pub struct CheckFailed(pub u8);

/// Rows are behind.
pub const WARNING: u8 = 1;
/// Nothing is stored, or never will be.
pub const CRITICAL: u8 = 2;
/// Nobody knows.
pub const UNKNOWN: u8 = 3;

/// Shows it.
pub async fn run(args: Args) -> anyhow::Result<()> {
    if args.check {
        return check().await;
    }
    let look = look(&mut connect().await?).await.map_err(Failure::from)?;
    if args.watch {
        return watch().await;
    }
    let text = if args.json {
        let all = json!({ "agents": look.agents, "distributions": look.rows });
        format!("{}\n", serde_json::to_string_pretty(&all)?)
    } else {
        paper(&look)
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

async fn check() -> anyhow::Result<()> {
    let looked = async {
        let mut connection = connect().await?;
        let look = look(&mut connection).await.map_err(Failure::from)?;
        let paused = status::paused(&mut connection)
            .await
            .map_err(Failure::from)?;
        anyhow::Ok((look, paused))
    };
    let (code, line) = match looked.await {
        Ok((look, paused)) => verdict(&look, paused),
        Err(error) => (UNKNOWN, format!("UNKNOWN - {error:#}")),
    };
    std::io::stdout()
        .lock()
        .write_all(format!("{line}\n").as_bytes())?;
    if code == 0 {
        return Ok(());
    }
    Err(CheckFailed(code).into())
}

/// The exit code, and the line with its performance data.
fn verdict(look: &Look, paused: bool) -> (u8, String) {
    let count = |status: &str| look.rows.iter().filter(|row| row.status == status).count();
    let (behind, invalid, running) = (count("behind"), count("invalid"), count("active"));
    let backlog: i64 = look.rows.iter().filter_map(|row| row.backlog).sum();
    let serving = look
        .agents
        .iter()
        .filter(|agent| agent.serving && agent.seen_seconds_ago < AGENT_SEEN_WITHIN)
        .count();
    let (code, word, words) = if paused {
        (
            CRITICAL,
            "CRITICAL",
            "everything is paused by visit_pacer_control".to_owned(),
        )
    } else if serving == 0 {
        (
            CRITICAL,
            "CRITICAL",
            "no agent serves; start visit-pacer run".to_owned(),
        )
    } else if invalid > 0 {
        (
            CRITICAL,
            "CRITICAL",
            format!("{invalid} rows are invalid; visit-pacer status says why"),
        )
    } else if behind > 0 {
        (
            WARNING,
            "WARNING",
            format!("{behind} rows are behind; visit-pacer status says why"),
        )
    } else {
        (0, "OK", format!("{running} rows are on their curves"))
    };
    let line = format!(
        "{word} - {words} | agents={serving} active={running} behind={behind} invalid={invalid} backlog={backlog}"
    );
    (code, line)
}

/// One look at everything.
pub async fn look(connection: &mut Connection) -> Result<Look, sqlx::Error> {
    Ok(Look {
        at: rows::clock(connection)
            .await?
            .to_datetime()
            .unwrap_or_default(),
        rows: status::status(connection).await?,
        agents: status::agents(connection).await?,
    })
}

/// What a screen knows.
#[derive(Default)]
pub struct Seen {
    /// The latest look that succeeded.
    pub look: Option<Look>,
    /// What was measured up to then.
    pub measured: Measured,
    /// Why there is no newer look.
    pub kind: Option<String>,
}

/// Asks the database once a second, and again when it is back after it was away.
pub async fn keep_looking(
    mut link: ReconnectingConnection,
    seen: watch::Sender<Seen>,
) -> Infallible {
    let mut rate_estimate = RateEstimator::default();
    let mut next = Instant::now();
    loop {
        let looked = match link.open().await {
            Ok(connection) => with_timeout(look(connection)).await,
            Err(failure) => Err(failure),
        };
        match link.check(looked) {
            Ok(look) => seen.send_modify(|seen| {
                seen.measured = rate_estimate.take(&look);
                seen.look = Some(look);
                seen.kind = None;
            }),
            Err(failure) => seen.send_modify(|seen| seen.kind = Some(failure.to_string())),
        }
        next = (next + LOOK_EVERY).max(Instant::now());
        sleep_until(next).await;
    }
}

async fn watch() -> anyhow::Result<()> {
    ensure!(
        screen::is_possible(),
        "--watch needs a terminal to draw on; use `visit-pacer status`, or --json for a script"
    );
    let screen = Screen {
        words: Words {
            title: "where each distribution stands",
            keys: &["q ends"],
        },
        intro: Vec::new(),
        lines: Lines::default(),
    };
    let stop = CancellationToken::new();
    let shown = screen.show(database()?, stop.clone());
    tokio::pin!(shown);
    tokio::select! {
        shown = &mut shown => shown,
        asked = asked_to_stop() => {
            stop.cancel();
            shown.await.and(asked)
        }
    }
}

/// The table as text: fit to the terminal and coloured where there is one.
fn paper(look: &Look) -> String {
    let is_terminal = std::io::stdout().is_terminal();
    let columns = is_terminal
        .then(terminal::size)
        .and_then(Result::ok)
        .map(|(columns, _)| columns);
    let view = View {
        width: columns.map_or(usize::MAX, usize::from),
        live: None,
    };
    let is_coloured = is_terminal && !Colored::ansi_color_disabled();
    let mut text = String::new();
    for line in [
        table::distributions(look, view),
        table::agents(&look.agents),
    ]
    .concat()
    {
        text += written(&line, is_coloured).trim_end();
        text.push('\n');
    }
    text
}

fn written(line: &Line<'_>, is_coloured: bool) -> String {
    if !is_coloured {
        return line.to_string();
    }
    let styled = line.spans.iter().map(|span| {
        let style: ContentStyle = span.style.into_crossterm();
        style.apply(&span.content).to_string()
    });
    styled.collect()
}
