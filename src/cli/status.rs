//! `visit-pacer status`: the status of all distributions, once, as JSON, or live.
//!
//! With `--check` it is a plugin for monitoring systems (Nagios, Icinga, Sensu …): one line, and the exit codes of such plugins.

use std::io::{IsTerminal as _, Write as _};

use anyhow::ensure;
use ratatui::backend::IntoCrossterm as _;
use ratatui::crossterm::style::{Colored, ContentStyle};
use ratatui::crossterm::terminal;
use ratatui::text::Line;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::connection::{connect, database};
use super::log_buffer::LogBuffer;
use super::screen::{self, Screen};
use super::snapshot::StatusSnapshot;
use super::table;
use crate::postgres::failure::Failure;
use crate::postgres::status;
use crate::runtime::serve::asked_to_stop;

/// Flags of `status`.
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON: {"agents": […], "distributions": […]}
    #[arg(long)]
    json: bool,
    /// Show a live table until q or Ctrl-C: scroll as in less, / filters, s sorts
    #[arg(long, conflicts_with = "json")]
    watch: bool,
    /// Print one line for a monitoring system; exit code 0: OK, 1: distributions are behind, 2: no agent, invalid
    /// distributions, or everything paused, 3: the database cannot be queried
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    check: bool,
}

/// The exit code of `--check`, other than 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the check is not OK")]
pub struct CheckFailed(pub u8);

/// Distributions are behind.
const WARNING: u8 = 1;
/// Nothing is stored, or some distribution never will be.
const CRITICAL: u8 = 2;
/// The database cannot be queried.
const UNKNOWN: u8 = 3;

/// Prints or shows the status.
pub async fn run(args: Args) -> anyhow::Result<()> {
    if args.check {
        return check().await;
    }
    let snapshot = StatusSnapshot::read(&mut connect().await?).await?;
    if args.watch {
        return watch().await;
    }
    let text = if args.json {
        let all = json!({ "agents": snapshot.agents, "distributions": snapshot.rows });
        format!("{}\n", serde_json::to_string_pretty(&all)?)
    } else {
        text(&snapshot)
    };
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

async fn check() -> anyhow::Result<()> {
    let read = async {
        let mut connection = connect().await?;
        let read = async {
            let snapshot = StatusSnapshot::read(&mut connection).await?;
            Ok((snapshot, status::paused(&mut connection).await?))
        };
        anyhow::Ok(
            read.await
                .map_err(|error: sqlx::Error| Failure::from(error))?,
        )
    };
    let (code, line) = match read.await {
        Ok((snapshot, paused)) => result(&snapshot, paused),
        Err(error) => (UNKNOWN, format!("UNKNOWN - {error:#}")),
    };
    std::io::stdout()
        .lock()
        .write_all(format!("{line}\n").as_bytes())?;
    if code != 0 {
        return Err(CheckFailed(code).into());
    }
    Ok(())
}

/// The exit code, and the line with its performance data.
fn result(snapshot: &StatusSnapshot, paused: bool) -> (u8, String) {
    let rows = &snapshot.rows;
    let count = |status: &str| rows.iter().filter(|row| row.status == status).count();
    let (behind, invalid, active) = (count("behind"), count("invalid"), count("active"));
    let backlog: i64 = rows.iter().filter_map(|row| row.backlog).sum();
    let serving = snapshot.alive_agents().filter(|agent| agent.serving);
    let serving = serving.count();
    let (code, text) = if paused {
        (CRITICAL, "CRITICAL - everything is paused".to_owned())
    } else if serving == 0 {
        let text = "CRITICAL - no agent is serving; start visit-pacer run";
        (CRITICAL, text.to_owned())
    } else if invalid > 0 {
        let text =
            format!("CRITICAL - {invalid} distributions are invalid; see visit-pacer status");
        (CRITICAL, text)
    } else if behind > 0 {
        let text = format!("WARNING - {behind} distributions are behind; see visit-pacer status");
        (WARNING, text)
    } else {
        (
            0,
            format!("OK - {active} distributions are on their curves"),
        )
    };
    let data = format!(
        "agents={serving} active={active} behind={behind} invalid={invalid} backlog={backlog}"
    );
    (code, format!("{text} | {data}"))
}

async fn watch() -> anyhow::Result<()> {
    ensure!(
        screen::is_possible(),
        "--watch needs a terminal; use `visit-pacer status`, or --json in a script"
    );
    let screen = Screen {
        title: "status of all distributions",
        keys: &["q quits"],
        intro: Vec::new(),
        log: LogBuffer::default(),
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

/// The table as text: on a terminal fitted to its width and coloured.
fn text(snapshot: &StatusSnapshot) -> String {
    let is_terminal = std::io::stdout().is_terminal();
    let size = is_terminal.then(terminal::size).and_then(Result::ok);
    let width = size.map_or(usize::MAX, |(columns, _)| columns.into());
    let is_coloured = is_terminal && !Colored::ansi_color_disabled();
    let mut text = String::new();
    let lines = [table::lines(snapshot, width), table::agents(snapshot)];
    for line in lines.iter().flatten() {
        text += styled(line, is_coloured).trim_end();
        text.push('\n');
    }
    text
}

fn styled(line: &Line<'_>, is_coloured: bool) -> String {
    if !is_coloured {
        return line.to_string();
    }
    let spans = line.spans.iter().map(|span| {
        let style: ContentStyle = span.style.into_crossterm();
        style.apply(&span.content).to_string()
    });
    spans.collect()
}
