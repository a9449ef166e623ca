//! `visit-pacer report`: one distribution over time, as a picture that stands by itself: what one shows a customer, or attaches to
//! an incident.
//!
//! Owns the questions and the file; the drawing is `svg`.

mod svg;

use std::path::PathBuf;

use anyhow::{Context as _, anyhow, ensure};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use self::svg::{Figures, Report, Step};
use super::connect;
use crate::domain::agent::ReadRequest;
use crate::domain::distribution::Distribution;
use crate::domain::history::History;
use crate::domain::time::{DbTime, SECOND_US};
use crate::postgres::connection::Connection;
use crate::postgres::failure::Failure;
use crate::postgres::{rows, series};

/// Steps that the time is cut into at the most.
const STEPS_MAX: i64 = 120;
/// Lengths of a step that people count in, in seconds.
const STEP_LENGTHS: [i64; 16] = [
    1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1_800, 3_600, 7_200, 21_600, 86_400,
];

/// Flags of `report`.
#[derive(clap::Args)]
pub struct Args {
    /// The distribution
    #[arg(long, value_name = "ID")]
    id: Uuid,
    /// The file to write: .svg, or .html with the figures as a table as well
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// From this moment on, such as 2026-01-31T08:00:00Z [default: from the beginning of its window]
    #[arg(long, value_name = "TIME")]
    from: Option<DateTime<Utc>>,
    /// To this moment [default: now, or the end of its window]
    #[arg(long, value_name = "TIME")]
    to: Option<DateTime<Utc>>,
}

/// Writes it.
#[expect(clippy::print_stdout, reason = "the command's output")]
pub async fn run(args: Args) -> anyhow::Result<()> {
    let extension = args.out.extension().and_then(|ext| ext.to_str());
    let is_html = match extension {
        Some("svg") => false,
        Some("html" | "htm") => true,
        Some(_) | None => {
            return Err(anyhow!(
                "--out {} is neither .svg nor .html",
                args.out.display()
            ));
        }
    };
    let mut connection = connect().await?;
    let report = read(&mut connection, &args).await?;
    let text = if is_html {
        svg::html(&report)
    } else {
        svg::svg(&report)
    };
    std::fs::write(&args.out, text).with_context(|| format!("write {}", args.out.display()))?;
    println!(
        "{}: {} of {} visits that were due are stored; {}",
        args.out.display(),
        report.figures.stored,
        report.figures.asked,
        report.lag_in_words()
    );
    Ok(())
}

async fn read(connection: &mut Connection, args: &Args) -> anyhow::Result<Report> {
    let id = args.id;
    let found = rows::read(connection, &ReadRequest::Rows(vec![id]))
        .await
        .map_err(Failure::from)?;
    let now = found.db;
    let row =
        found.rows.into_iter().next().ok_or_else(|| {
            anyhow!("there is no distribution {id}; visit-pacer status lists them")
        })?;
    let row = Distribution::parse(&row.row)
        .map_err(|why| anyhow!("the distribution {id} cannot be paced: {why}"))?;
    let history = series::history(connection, id)
        .await
        .map_err(Failure::from)?;
    let begins = history
        .begins()
        .into_iter()
        .chain(row.start)
        .max()
        .unwrap_or(now);
    let from = args.from.map_or(begins, DbTime::from);
    let to = args
        .to
        .map_or_else(|| row.curve.to.unwrap_or(now).min(now), DbTime::from);
    ensure!(
        from < to,
        "there is nothing to report between {} and {}; see --from and --to",
        moment(from),
        moment(to)
    );
    let step = step_length(to.micros_since(from));
    let from = DbTime::from_micros(from.as_micros().div_euclid(step) * step);
    let stored = series::steps(connection, id, (from, to), step)
        .await
        .map_err(Failure::from)?;
    let partner = series::partners(connection).await.map_err(Failure::from)?;
    let partner = partner.into_iter().find(|(id, _)| *id == row.partner_id);
    let partner = partner.and_then(|(_, name)| name);
    let at = rows::clock(connection).await.map_err(Failure::from)?;
    let before = series::before(connection, id, from)
        .await
        .map_err(Failure::from)?;
    Ok(Report::new(svg::Said {
        id,
        partner: partner.unwrap_or_else(|| row.partner_id.to_string()),
        made_at: at,
        steps: steps(&history, &stored, (from, to), step),
        step_us: step,
        stored_before: before,
        edits: history.told(),
        pauses: history.pauses(),
    }))
}

/// The shortest step that people count in, of which there are not too many.
fn step_length(micros: i64) -> i64 {
    let seconds = micros / SECOND_US + 1;
    let fits = |length: &&i64| seconds <= **length * STEPS_MAX;
    let length = STEP_LENGTHS.iter().find(fits);
    length.copied().unwrap_or(seconds / STEPS_MAX + 1) * SECOND_US
}

fn steps(
    history: &History,
    stored: &[(i64, i64)],
    (from, to): (DbTime, DbTime),
    step: i64,
) -> Vec<Step> {
    let count = (to.micros_since(from) + step - 1) / step;
    let stored: std::collections::BTreeMap<i64, i64> = stored.iter().copied().collect();
    (0..count)
        .map(|n| {
            let at = from.plus_micros(n * step);
            let end = at.plus_micros(step).min(to);
            Step {
                at,
                end,
                asked: history
                    .due(at)
                    .zip(history.due(end))
                    .map(|(before, after)| (after - before).max(0)),
                due: history.due(end),
                stored: stored.get(&n).copied().unwrap_or(0),
            }
        })
        .collect()
}

/// A moment as the pictures have it.
fn moment(at: DbTime) -> String {
    at.to_datetime().map_or_else(
        || at.as_micros().to_string(),
        |at| at.format("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

impl Report {
    fn lag_in_words(&self) -> String {
        let Figures { worst_lag, .. } = &self.figures;
        match worst_lag {
            Some((visits, at)) if *visits > 0 => format!(
                "at the worst moment ({} UTC) it was {visits} visit{} behind",
                moment(*at),
                if *visits == 1 { "" } else { "s" }
            ),
            Some(_) | None => "it was never behind at the end of a step".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_cut_into_steps_that_people_count_in_and_not_too_many() {
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
