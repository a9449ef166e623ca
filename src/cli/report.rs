//! `visit-pacer report`: one distribution over time, as a self-contained picture for a customer or an incident report.
//!
//! Owns the queries and the file; [`chart`] draws.

mod chart;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context as _, anyhow, bail, ensure};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use self::chart::{DistributionReport, ReportStep, moment};
use super::connection::connect;
use super::output::output;
use crate::domain::agent::ReadRequest;
use crate::domain::distribution::Distribution;
use crate::domain::history::History;
use crate::domain::time::{DbTime, SECOND_US};
use crate::postgres::connection::Connection;
use crate::postgres::{rows, series};

/// The largest number of steps.
const STEPS_MAX: i64 = 120;
/// Round lengths of a step, in seconds.
const STEP_LENGTHS: [i64; 16] = [
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 21_600, 86_400,
];

/// Flags of `report`.
#[derive(clap::Args)]
pub struct Args {
    /// Distribution
    #[arg(long, value_name = "ID")]
    id: Uuid,
    /// File to write: .svg, or .html to add the figures as a table
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Start of the time shown, such as 2026-01-31T08:00:00Z [default: the start of its window]
    #[arg(long, value_name = "TIME")]
    from: Option<DateTime<Utc>>,
    /// End of the time shown [default: now, or the end of its window]
    #[arg(long, value_name = "TIME")]
    to: Option<DateTime<Utc>>,
}

/// Writes the report.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let draw = match args.out.extension().and_then(|ext| ext.to_str()) {
        Some("svg") => chart::svg,
        Some("html" | "htm") => chart::html,
        Some(_) | None => bail!("--out {} is neither .svg nor .html", args.out.display()),
    };
    let report = read(&mut connect().await?, &args).await?;
    std::fs::write(&args.out, draw(&report))
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    output!(
        "{}: {} of {} visits that became due are stored; {}",
        args.out.display(),
        report.stored(),
        report.became_due(),
        report.largest_backlog()
    )?;
    Ok(())
}

async fn read(connection: &mut Connection, args: &Args) -> anyhow::Result<DistributionReport> {
    let id = args.id;
    let found = rows::read(connection, &ReadRequest::Rows(vec![id])).await?;
    let now = found.db;
    let row = found.rows.into_iter().next();
    let row =
        row.with_context(|| format!("no distribution has the id {id}; see visit-pacer status"))?;
    let row = Distribution::parse(&row.row)
        .map_err(|why| anyhow!("distribution {id} is not valid: {why}"))?;
    let history = series::history(connection, id).await?;
    let begins = history.begins().into_iter().chain(row.start).max();
    let from = args.from.map(DbTime::from).or(begins).unwrap_or(now);
    let window_end = row.curve.to.unwrap_or(now).min(now);
    let to = args.to.map_or(window_end, DbTime::from);
    ensure!(
        from < to,
        "there is nothing to report from {} to {}; see --from and --to",
        moment(from),
        moment(to)
    );
    let step = step_length(to.micros_since(from));
    let from = DbTime::from_micros(from.as_micros().div_euclid(step) * step);
    let stored = series::steps(connection, id, (from, to), step).await?;
    let before = series::before(connection, id, from).await?;
    let partners = series::partners(connection).await?;
    let partner = partners.into_iter().find(|(id, _)| *id == row.partner_id);
    Ok(DistributionReport {
        id,
        partner: partner
            .and_then(|(_, name)| name)
            .unwrap_or_else(|| row.partner_id.to_string()),
        made_at: rows::clock(connection).await?,
        steps: steps(&history, (before, &stored), (from, to), step),
        edits: history.told(),
        pauses: history.pauses(),
    })
}

/// The shortest round step that does not exceed the number of steps.
fn step_length(micros: i64) -> i64 {
    let seconds = micros / SECOND_US + 1;
    let fits = |length: &&i64| seconds <= **length * STEPS_MAX;
    let length = STEP_LENGTHS.iter().find(fits);
    length.copied().unwrap_or(seconds / STEPS_MAX + 1) * SECOND_US
}

/// The steps; stored are the visits before the first step, and those of each step that has any.
fn steps(
    history: &History,
    (mut total, stored): (i64, &[(i64, i64)]),
    (from, to): (DbTime, DbTime),
    step: i64,
) -> Vec<ReportStep> {
    let count = (to.micros_since(from) + step - 1) / step;
    let stored: BTreeMap<i64, i64> = stored.iter().copied().collect();
    let steps = (0..count).map(|n| {
        let at = from.plus_micros(n * step);
        let end = at.plus_micros(step).min(to);
        let due = history.due(end);
        let stored = stored.get(&n).copied().unwrap_or(0);
        total += stored;
        let became_due = history.due(at).zip(due);
        ReportStep {
            at,
            end,
            became_due: became_due.map(|(before, after)| (after - before).max(0)),
            due,
            stored,
            total,
        }
    });
    steps.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_not_too_many() {
        for (seconds, step) in [
            (60, 1),
            (240, 2),
            (3_600, 30),
            (86_400, 900),
            (864_000, 7_200),
        ] {
            assert_eq!(
                step_length(seconds * SECOND_US - 1),
                step * SECOND_US,
                "{seconds}"
            );
        }
        let century = 100 * 365 * 86_400 * SECOND_US;
        assert!(century / step_length(century) <= STEPS_MAX);
    }
}
