//! Precision: the delay of commits after the moment that the curve and the distribution's phase give, and the seconds whose
//! visits were not those of the curve. On the same tables: pgbench at the same rate, the guide's function by `pg_cron` each
//! minute, and a Node script.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use sqlx::Executor as _;
use uuid::Uuid;

use super::environment::{BenchDatabase, BenchEnvironment, Workload};
use super::figures::{Cell, ReportTable, Samples, ratio};
use super::peers::{self, Transaction};
use super::program::{AgentOptions, Program, Runner, Usage};
use crate::domain::curve::Curve;
use crate::domain::distribution::Distribution;
use crate::domain::limits::FIRE_PERIOD_US;
use crate::domain::schedule::Schedule;
use crate::domain::time::{DbTime, SECOND_US};
use crate::postgres::reconnect::Database;
use crate::postgres::rows;

type Rates = &'static [(&'static str, &'static str)];

/// A visit per second on average, at rates for which no two seconds are alike.
const MIXED: Rates = &[
    ("minute", "33.33"),
    ("second", "1"),
    ("minute", "86.67"),
    ("hour", "3600"),
];
const EACH_SECOND: Rates = &[("second", "1")];
const TEN_PER_SECOND: Rates = &[("second", "10")];
/// Distributions start this long after they were inserted, when every program is running.
const START_IN: i32 = 8;
/// An alternative that stores less than this part of its rate is not compared.
const KEEPS_UP: f64 = 0.95;
/// The first seconds are not measured.
const WARM_UP_US: i64 = 3 * SECOND_US;
/// The time after the measured interval in which its last visits may still be stored.
const LAST_VISITS_US: i64 = 3 * SECOND_US;
/// Two runs of cron, each minute.
const CRON_SECONDS: u32 = 130;
const OPTIONS: AgentOptions = AgentOptions {
    max_visits_per_second: 50_000,
    log: None,
};

/// The figures of one program.
struct PrecisionFigures {
    load: Load,
    visits: usize,
    delay: Samples,
    /// Seconds of single distributions whose visits were not those of the curve, and all seconds.
    off: (usize, usize),
    usage: Usage,
}

/// A number of distributions, and who stores their visits for how long.
#[derive(Clone, Copy, Debug)]
struct Load {
    runner: Runner,
    rows: u32,
    rates: Rates,
    seconds: u32,
}

/// Measures for `seconds` each; returns the table, and the delays by name.
pub async fn measure(
    environment: &mut BenchEnvironment,
    peers: &Path,
    seconds: u32,
) -> anyhow::Result<(ReportTable, Vec<(String, Samples)>)> {
    let mut table = ReportTable::new(
        "Precision",
        "program | distributions | visits/s | seconds off | delay p50, ms | p99, ms | max, ms | statements/s | CPU s / 10⁶ visits | server's",
    );
    if !environment.has_commit_times().await? {
        table.note("Not measured: this server does not record commit times; set track_commit_timestamp = on and restart it.");
        return Ok((table, Vec::new()));
    }
    let mut all = Vec::new();
    let counted = environment.count_statements().await?;
    if !counted {
        table.note("No statements per second, and no goal for them: they need pg_stat_statements, on a server that may be restarted.");
    }
    for load in loads(seconds) {
        match run(environment, peers, load, counted).await? {
            Some(figures) => {
                table.rows.push(row(&figures)?);
                all.push(figures);
            }
            None => table.note(load.runner.missing()),
        }
    }
    let pgbench = pgbench(environment, &mut table, seconds).await?;
    table.notes.extend(how_to_read(&pgbench));
    goals(&mut table, &all, &pgbench)?;
    let charted = all
        .into_iter()
        .filter(|figures| figures.load.rows == 1_000 || figures.load.runner == Runner::Cron);
    let mut curves: Vec<(String, Samples)> = charted
        .map(|figures| {
            let Load { runner, rows, .. } = figures.load;
            let name = format!("{}, {rows} distributions", runner.name());
            (name, figures.delay)
        })
        .collect();
    // Of two of one name the last has the load of the alternatives.
    curves.reverse();
    curves.dedup_by_key(|(name, _)| name.clone());
    curves.reverse();
    let peers = pgbench.into_iter();
    curves.extend(peers.map(|(rate, peer)| (format!("pgbench --rate {rate}"), peer.delay)));
    Ok((table, curves))
}

fn loads(seconds: u32) -> Vec<Load> {
    let load = |runner, rows, rates| Load {
        runner,
        rows,
        rates,
        seconds,
    };
    let cron = Load {
        seconds: CRON_SECONDS,
        // What is due in a minute is less than distribute_visits() stores in a call.
        ..load(Runner::Cron, 100, EACH_SECOND)
    };
    vec![
        load(Runner::Agent, 1, TEN_PER_SECOND),
        load(Runner::Agent, 100, MIXED),
        load(Runner::Agent, 1_000, MIXED),
        load(Runner::Agent, 1_000, EACH_SECOND),
        load(Runner::Agent, 10_000, MIXED),
        load(Runner::Agent, 10_000, EACH_SECOND),
        load(Runner::Node, 1, TEN_PER_SECOND),
        load(Runner::Node, 1_000, EACH_SECOND),
        cron,
    ]
}

async fn pgbench(
    environment: &mut BenchEnvironment,
    table: &mut ReportTable,
    seconds: u32,
) -> anyhow::Result<BTreeMap<u32, Pgbench>> {
    let mut database = environment.database().await?;
    let partners = Workload {
        start_in: 3_600,
        active: false,
        ..Workload::running(1, EACH_SECOND)
    };
    database.insert(partners).await?;
    let mut found = BTreeMap::new();
    for rate in [10, 1_000] {
        let truncate = "truncate public.store_visits";
        database.connection.execute(truncate).await?;
        let Some(done) = peers::pgbench(&database, rate, seconds)? else {
            table.note("No pgbench: it is not in the PATH.");
            continue;
        };
        let delay = Samples::of(done.iter().map(|done| done.delay).collect());
        let per_second = f64::from(u32::try_from(done.len())?) / f64::from(seconds);
        let mut cells = vec![
            Cell::word("pgbench --rate"),
            Cell::None,
            Cell::Number(per_second, 0),
            Cell::None,
        ];
        cells.extend(delay.cells());
        cells.extend([Cell::Number(per_second, 0), Cell::None, Cell::None]);
        table.rows.push(cells);
        if !keeps_up(done.len(), rate * seconds) {
            table.note(format!(
                "pgbench did not keep up with {rate} per second, so it is not compared."
            ));
            continue;
        }
        let answer = match environment.server_pid() {
            Some(_embedded) => Some(answers(&database.plain_commits().await?, &done)),
            None => None,
        };
        let peer = Pgbench {
            delay,
            answer,
            per_second,
        };
        found.insert(rate, peer);
    }
    environment.remove(database).await?;
    Ok(found)
}

fn how_to_read(pgbench: &BTreeMap<u32, Pgbench>) -> [String; 2] {
    let mut answers = pgbench.values().filter_map(|peer| peer.answer.as_ref());
    let after = answers.next_back().map_or_else(String::new, |answer| {
        let [p50, p99] = [50, 99].map(|percent| answer.percentile(percent));
        format!(", {p50:.1} ms later (p50; p99 {p99:.1})")
    });
    [
        format!(
            "The delay ends at the commit time, which the server takes before it flushes; pgbench's ends when its client has the answer{after}."
        ),
        "The server's CPU includes that of the Realtime server beside the agent and the script."
            .to_owned(),
    ]
}

/// The figures of pgbench at a rate.
struct Pgbench {
    /// Until its client had the answer.
    delay: Samples,
    /// From a commit time to the answer, if both are by the same clock.
    answer: Option<Samples>,
    per_second: f64,
}

impl Pgbench {
    /// The ratio of a delay to that of pgbench.
    fn ratio(&self, delay: &Samples, percent: usize) -> f64 {
        ratio(delay.percentile(percent), self.delay.percentile(percent))
    }
}

/// Whether so many transactions are enough for the rate. pgbench draws its moments at random (a Poisson process), so a few may
/// be missing by chance: three standard deviations are allowed for.
fn keeps_up(done: usize, expected: u32) -> bool {
    let expected = f64::from(expected);
    let done = f64::from(u32::try_from(done).unwrap_or(u32::MAX));
    done >= KEEPS_UP * expected - 3.0 * expected.sqrt()
}

/// From commit times, which the server takes before it flushes, to the answers: the last ones of both.
fn answers(commits: &[i64], done: &[Transaction]) -> Samples {
    let mut ends: Vec<i64> = done.iter().map(|done| done.ended_at).collect();
    ends.sort_unstable();
    let pairs = commits.iter().rev().zip(ends.iter().rev());
    Samples::of(pairs.map(|(commit, end)| end - commit).collect())
}

fn goals(
    table: &mut ReportTable,
    all: &[PrecisionFigures],
    pgbench: &BTreeMap<u32, Pgbench>,
) -> anyhow::Result<()> {
    let agents: Vec<_> = all
        .iter()
        .filter(|figures| figures.load.runner == Runner::Agent)
        .collect();
    let off: usize = agents.iter().map(|figures| figures.off.0).sum();
    let off = if agents.iter().any(|figures| figures.visits > 0) {
        f64::from(u32::try_from(off)?)
    } else {
        f64::NAN
    };
    table.at_most(
        "seconds of visit-pacer that are off the curve: none",
        off,
        0.0,
    );
    let of = |rows: u32| agents.iter().filter(move |agent| agent.load.rows == rows);
    if let (Some(one), Some(peer)) = (of(1).next(), pgbench.get(&10)) {
        table.at_most(
            "p50 with one distribution and 10/s, within 2 × pgbench's",
            peer.ratio(&one.delay, 50),
            2.0,
        );
    }
    if let (Some(many), Some(peer)) = (of(1_000).next_back(), pgbench.get(&1_000)) {
        table.at_most(
            "p99 with 1,000 distributions and 1,000/s, within 5 × pgbench's",
            peer.ratio(&many.delay, 99),
            5.0,
        );
        if let Some(statements) = many.statements()? {
            table.at_most(
                "… with no more than a twentieth of its statements",
                ratio(statements, peer.per_second),
                0.05,
            );
        }
    }
    Ok(())
}

async fn run(
    environment: &mut BenchEnvironment,
    peers: &Path,
    load: Load,
    counted: bool,
) -> anyhow::Result<Option<PrecisionFigures>> {
    let mut database = environment.database().await?;
    // For cron the server is restarted, and no program follows the table.
    if load.runner != Runner::Cron {
        database.start_realtime().await?;
        if counted {
            database.count_statements().await?;
        }
    }
    let workload = Workload {
        start_in: START_IN,
        ..Workload::running(load.rows, load.rates)
    };
    let start = database.insert(workload).await?;
    let program = load.runner.start(&database, OPTIONS, peers).await?;
    let runs = match load.runner {
        Runner::Cron => environment.schedule_cron(&mut database).await?,
        Runner::Idle | Runner::Agent | Runner::Node => program.is_some(),
    };
    let mut figures = None;
    if runs {
        figures = Some(watch(environment, &mut database, program.as_ref(), load, start).await?);
    }
    if let Some(mut program) = program {
        if program.has_ended()? {
            figures = None; // its visits are incomplete
        } else {
            program.stop().await?;
        }
    }
    if load.runner == Runner::Cron && runs {
        environment.unschedule_cron().await?;
    }
    environment.remove(database).await?;
    Ok(figures)
}

async fn watch(
    environment: &BenchEnvironment,
    database: &mut BenchDatabase,
    program: Option<&Program>,
    load: Load,
    start: DbTime,
) -> anyhow::Result<PrecisionFigures> {
    let from = start.plus_micros(WARM_UP_US);
    let to = from.plus_micros(i64::from(load.seconds) * SECOND_US);
    database.wait_until(from).await?;
    let before = Usage::read(environment, program, database).await?;
    database.wait_until(to).await?;
    let after = Usage::read(environment, program, database).await?;
    database.wait_until(to.plus_micros(LAST_VISITS_US)).await?;
    let (delay, off) = judge(database, load.runner, (from, to)).await?;
    Ok(PrecisionFigures {
        load,
        visits: delay.len(),
        delay,
        off,
        usage: after.since(&before),
    })
}

/// The delays of the visits that were scheduled in the interval, and how many seconds of single distributions were not those of
/// the curve.
async fn judge(
    database: &mut BenchDatabase,
    runner: Runner,
    (from, to): (DbTime, DbTime),
) -> anyhow::Result<(Samples, (usize, usize))> {
    let analyze = "analyze public.store_visits";
    database.connection.execute(analyze).await?;
    let mut by_row: BTreeMap<Uuid, Vec<DbTime>> = BTreeMap::new();
    for (row, at) in database.commits().await? {
        by_row.entry(row).or_default().push(at);
    }
    let mut connection = Database::from_url(&database.url)?.connect().await?;
    let known = rows::every(&mut connection).await?.rows;
    // The others store on full seconds, as the agent does with a single distribution.
    let running = if runner == Runner::Agent {
        known.len()
    } else {
        1
    };
    let (mut delays, mut off, mut of) = (Vec::new(), 0, 0);
    for read in &known {
        let Ok(row) = Distribution::parse(&read.row) else {
            continue;
        };
        let fire = |at| Schedule::instant_at_or_after(running, row.id, at);
        let commits = by_row.get(&row.id).map_or(&[][..], Vec::as_slice);
        let (row_delays, row_off, row_of) = judge_row(&row.curve, fire, commits, (from, to));
        delays.extend(row_delays);
        off += row_off;
        of += row_of;
    }
    Ok((Samples::of(delays), (off, of)))
}

fn judge_row(
    curve: &Curve,
    fire: impl Fn(DbTime) -> DbTime,
    commits: &[DbTime],
    (from, to): (DbTime, DbTime),
) -> (Vec<i64>, usize, usize) {
    let (mut delays, mut off, mut seconds) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for k in 1.. {
        let Some(scheduled) = curve.due_at(k).map(&fire).filter(|at| *at < to) else {
            break;
        };
        if scheduled < from {
            continue;
        }
        seconds.insert(scheduled);
        let at = usize::try_from(k - 1)
            .ok()
            .and_then(|place| commits.get(place));
        let delay = at.map(|at| at.micros_since(scheduled));
        delays.extend(delay);
        if !delay.is_some_and(|delay| (0..FIRE_PERIOD_US).contains(&delay)) {
            off.insert(scheduled);
        }
    }
    (delays, off.len(), seconds.len())
}

impl PrecisionFigures {
    /// Statements per second.
    fn statements(&self) -> anyhow::Result<Option<f64>> {
        let statements = self.usage.statements.map(i32::try_from).transpose()?;
        Ok(statements.map(|sent| f64::from(sent) / f64::from(self.load.seconds)))
    }
}

fn row(figures: &PrecisionFigures) -> anyhow::Result<Vec<Cell>> {
    let visits = f64::from(u32::try_from(figures.visits)?);
    let per_million = |used: Option<Duration>| {
        Cell::number(
            used.map(|used| used.as_secs_f64() / visits.max(1.0) * 1e6),
            1,
        )
    };
    let [p50, p99, max] = figures.delay.cells();
    let off = match figures.off {
        (0, _) => Cell::whole(0),
        (off, of) => Cell::word(format!("{off} of {of}")),
    };
    Ok(vec![
        Cell::word(figures.load.runner.name()),
        Cell::whole(figures.load.rows),
        Cell::Number(visits / f64::from(figures.load.seconds), 0),
        off,
        p50,
        p99,
        max,
        Cell::number(figures.statements()?, 1),
        per_million(figures.usage.cpu),
        per_million(figures.usage.server_cpu),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::curve::VISIT;

    #[test]
    fn a_peer_with_fewer_transactions_by_chance_keeps_up_and_a_saturated_one_does_not() {
        assert!(keeps_up(90, 110), "10 a second for 11 s");
        assert!(!keeps_up(60, 110));
        assert!(keeps_up(10_800, 11_000));
        assert!(!keeps_up(8_800, 11_000), "800 a second of 1,000");
        assert!(!keeps_up(0, 110), "an empty log");
    }

    fn s(seconds: f64) -> DbTime {
        #[expect(clippy::cast_possible_truncation, reason = "a few seconds")]
        DbTime::from_micros(1_800_000_000_000_000 + (seconds * 1e6) as i64)
    }

    #[test]
    fn a_second_is_off_when_a_visit_of_it_comes_early_late_or_never() {
        let curve = Curve {
            anchor: 0,
            slope: VISIT / 1_000_000,
            from: Some(s(0.0)),
            to: None,
            total: 1_000,
        };
        let fire = |at| Schedule::instant_at_or_after(1, Uuid::nil(), at);
        // Visit k is due at k − 1/2, and so fires at k.
        let commits = [s(1.002), s(1.9), s(4.5), s(4.6)];
        let judged = judge_row(&curve, fire, &commits, (s(0.0), s(6.0)));
        assert_eq!(judged, (vec![2_000, -100_000, 1_500_000, 600_000], 3, 5));
    }
}
