//! How exactly: the lateness of commits against the moment that the curve and the row's grid say, and the seconds whose visits
//! were not those of the curve. Beside it, on the same tables: pgbench at the same rate, the guide's function by `pg_cron`
//! each minute, and a Node script.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use sqlx::Executor as _;
use uuid::Uuid;

use super::figures::{Cell, Spread, Table, ratio};
use super::ground::{Field, Ground, Rows};
use super::peers::{self, Transaction};
use super::program::{Program, Told, cpu_of_server};
use crate::domain::curve::Curve;
use crate::domain::distribution::Distribution;
use crate::domain::limits::FIRE_PERIOD_US;
use crate::domain::schedule::Schedule;
use crate::domain::time::{DbTime, SECOND_US};
use crate::postgres::reconnect::Database;
use crate::postgres::rows;

/// One visit a second on the average, at rates that meet no second alike.
const MIXED: &[(&str, &str)] = &[
    ("minute", "33.33"),
    ("second", "1"),
    ("minute", "86.67"),
    ("hour", "3600"),
];
const EACH_SECOND: &[(&str, &str)] = &[("second", "1")];
const TEN_A_SECOND: &[(&str, &str)] = &[("second", "10")];
/// Rows start so long after they were inserted: everybody is up by then.
const START_IN: i32 = 8;
/// A peer that stores less than this part of its rate is no measure.
const KEEPS_UP: f64 = 0.95;
/// What comes in the first seconds is not looked at.
const WARM_UP_US: i64 = 3 * SECOND_US;
/// What was scheduled within the time is stored so long after it, or late.
const SETTLES_US: i64 = 3 * SECOND_US;
/// A minute of cron, and the one in which it begins.
const CRON_SECONDS: u32 = 130;
const TOLD: Told = Told {
    max_visits_per_second: 50_000,
    log: None,
};

/// Who stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Who {
    Agent,
    Cron,
    Node,
}

/// What was seen of one of them.
struct Seen {
    who: &'static str,
    rows: u32,
    visits: usize,
    seconds: f64,
    late: Spread,
    /// Seconds of single rows whose visits were not those of the curve, of so many.
    off: (usize, usize),
    /// A second, the program's own.
    statements: Option<f64>,
    cpu: Option<Duration>,
    server: Option<Duration>,
}

/// Rows, and who is to store their visits for so long.
#[derive(Clone, Copy, Debug)]
struct Load {
    who: Who,
    rows: u32,
    rates: &'static [(&'static str, &'static str)],
    seconds: u32,
}

/// Measures it; `seconds` for each figure.
pub async fn measure(
    ground: &mut Ground,
    peers: &Path,
    seconds: u32,
) -> anyhow::Result<(Table, Vec<(String, Spread)>)> {
    let mut table = Table::new(
        "Precision",
        &[
            "who",
            "rows",
            "visits/s",
            "row-seconds off",
            "late p50, ms",
            "p99, ms",
            "max, ms",
            "statements/s",
            "CPU s / 10⁶ visits",
            "server's",
        ],
    );
    if !ground.keeps_commits().await? {
        table.notes.push(
            "Not measured: this server does not keep the moments of commits; set track_commit_timestamp = on and restart it."
                .to_owned(),
        );
        return Ok((table, Vec::new()));
    }
    let mut all = Vec::new();
    let counted = ground.count_statements().await?;
    if !counted {
        table.notes.push(
            "No statements a second, and no aim for them: they need pg_stat_statements, on a server that may be restarted."
                .to_owned(),
        );
    }
    for load in loads(seconds) {
        match look(ground, peers, load, counted).await? {
            Some(seen) => {
                table.rows.push(row(&seen));
                all.push(seen);
            }
            None => table.notes.push(load.who.is_missing().to_owned()),
        }
    }
    let pgbench = pgbench(ground, &mut table, seconds).await?;
    table.notes.extend(how_to_read(&pgbench));
    aims(&mut table, &all, &pgbench);
    let of_a_thousand = all
        .into_iter()
        .filter(|seen| seen.rows == 1_000 || seen.who == Who::Cron.name());
    let mut curves: Vec<(String, Spread)> = of_a_thousand
        .map(|seen| (format!("{}, {} rows", seen.who, seen.rows), seen.late))
        .collect();
    // Of two of one name the last is the one beside the peers.
    curves.reverse();
    curves.dedup_by_key(|(name, _)| name.clone());
    curves.reverse();
    let peers = pgbench.into_iter();
    curves.extend(peers.map(|(rate, peer)| (format!("pgbench --rate {rate}"), peer.late)));
    Ok((table, curves))
}

fn loads(seconds: u32) -> Vec<Load> {
    let load = |who, rows, rates| Load {
        who,
        rows,
        rates,
        seconds,
    };
    let cron = Load {
        seconds: CRON_SECONDS,
        // What is due in a minute is less than distribute_visits() stores in a call.
        ..load(Who::Cron, 100, EACH_SECOND)
    };
    vec![
        load(Who::Agent, 1, TEN_A_SECOND),
        load(Who::Agent, 100, MIXED),
        load(Who::Agent, 1_000, MIXED),
        load(Who::Agent, 1_000, EACH_SECOND),
        load(Who::Agent, 10_000, MIXED),
        load(Who::Agent, 10_000, EACH_SECOND),
        load(Who::Node, 1, TEN_A_SECOND),
        load(Who::Node, 1_000, EACH_SECOND),
        cron,
    ]
}

async fn pgbench(
    ground: &mut Ground,
    table: &mut Table,
    seconds: u32,
) -> anyhow::Result<BTreeMap<u32, Pgbench>> {
    let mut field = ground.field().await?;
    let partners = Rows {
        count: 1,
        rates: EACH_SECOND,
        start_in: 3_600,
        start_over: 0,
        active: false,
    };
    field.rows(partners).await?;
    let mut found = BTreeMap::new();
    for rate in [10, 1_000] {
        field
            .connection
            .execute("truncate public.store_visits")
            .await?;
        let Some(done) = peers::pgbench(&field, rate, seconds)? else {
            table
                .notes
                .push("No pgbench: it is not in the PATH.".to_owned());
            continue;
        };
        let late = Spread::of(done.iter().map(|done| done.late).collect());
        let a_second = f64::from(u32::try_from(done.len())?) / f64::from(seconds);
        let mut cells = vec![
            Cell::word("pgbench --rate"),
            Cell::None,
            Cell::Number(a_second, 0),
            Cell::None,
        ];
        cells.extend(late.cells());
        cells.extend([Cell::Number(a_second, 0), Cell::None, Cell::None]);
        table.rows.push(cells);
        if !keeps_up(done.len(), rate * seconds) {
            table.notes.push(format!(
                "pgbench did not keep up with {rate} a second here, so nothing is judged by it."
            ));
            continue;
        }
        let answer = match ground.server_pid() {
            Some(_ours) => Some(answers(&field.plain_commits().await?, &done)),
            None => None,
        };
        found.insert(
            rate,
            Pgbench {
                late,
                answer,
                a_second,
            },
        );
    }
    ground.clear(field).await?;
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
            "Late is until the moment of the commit, which the server notes before it flushes; pgbench's until its client has the answer{after}."
        ),
        "The server's CPU includes that of the Realtime server beside the agent and the script."
            .to_owned(),
    ]
}

/// What was seen of pgbench at a rate.
struct Pgbench {
    /// Until its client had the answer.
    late: Spread,
    /// From the moment of a commit to its answer, where both are by one clock.
    answer: Option<Spread>,
    a_second: f64,
}

impl Pgbench {
    /// How many times its lateness ours is.
    fn times(&self, ours: &Spread, percent: usize) -> f64 {
        ratio(ours.percentile(percent), self.late.percentile(percent))
    }
}

/// Whether so many transactions are those of the rate. pgbench draws its moments at random (a Poisson process), so a few may be
/// missing by chance: three standard deviations are allowed for.
fn keeps_up(done: usize, asked: u32) -> bool {
    let asked = f64::from(asked);
    f64::from(u32::try_from(done).unwrap_or(u32::MAX)) >= KEEPS_UP * asked - 3.0 * asked.sqrt()
}

/// From the moments of commits, which the server notes before it flushes them, to their answers: the last so many of both.
fn answers(commits: &[i64], done: &[Transaction]) -> Spread {
    let mut done: Vec<i64> = done.iter().map(|done| done.done).collect();
    done.sort_unstable();
    let pairs = commits.iter().rev().zip(done.iter().rev());
    Spread::of(pairs.map(|(commit, done)| done - commit).collect())
}

impl Who {
    /// As the table has it.
    fn name(self) -> &'static str {
        match self {
            Self::Agent => AGENT,
            Self::Node => "Node script",
            Self::Cron => "pg_cron, each minute",
        }
    }

    /// Why there are no figures of it.
    fn is_missing(self) -> &'static str {
        match self {
            Self::Agent => "An agent ended by itself; run it by hand to see why.",
            Self::Node => {
                "No Node script: it needs node, `npm ci` in tests/peers and wal_level = logical, or it ended by itself."
            }
            Self::Cron => {
                "No cron: pg_cron is not installed beside this server, or the server is not ours to load it."
            }
        }
    }
}

fn aims(table: &mut Table, all: &[Seen], pgbench: &BTreeMap<u32, Pgbench>) {
    let ours = |rows: u32| {
        all.iter()
            .filter(move |seen| seen.who == AGENT && seen.rows == rows)
    };
    let off: usize = all
        .iter()
        .filter(|seen| seen.who == AGENT)
        .map(|seen| seen.off.0)
        .sum();
    let is_seen = all.iter().any(|seen| seen.who == AGENT && seen.visits > 0);
    table.at_most(
        "row-seconds of visit-pacer that are off the curve: none",
        if is_seen {
            f64::from(u32::try_from(off).unwrap_or(u32::MAX))
        } else {
            f64::NAN
        },
        0.0,
    );
    if let (Some(one), Some(peer)) = (ours(1).next(), pgbench.get(&10)) {
        table.at_most(
            "p50 at one row and 10/s, within 2 × pgbench's",
            peer.times(&one.late, 50),
            2.0,
        );
    }
    if let (Some(many), Some(peer)) = (ours(1_000).next_back(), pgbench.get(&1_000)) {
        table.at_most(
            "p99 at 1,000 rows and 1,000/s, within 5 × pgbench's",
            peer.times(&many.late, 99),
            5.0,
        );
        if let Some(statements) = many.statements {
            table.at_most(
                "… with no more than a twentieth of its statements",
                ratio(statements, peer.a_second),
                0.05,
            );
        }
    }
}

const AGENT: &str = "visit-pacer";

async fn look(
    ground: &mut Ground,
    peers: &Path,
    load: Load,
    counted: bool,
) -> anyhow::Result<Option<Seen>> {
    let mut field = ground.field().await?;
    // For cron the server is restarted, and nobody follows the table.
    if load.who != Who::Cron {
        field.starts_realtime().await?;
        if counted {
            field.is_counted().await?;
        }
    }
    let start = field
        .rows(Rows {
            count: load.rows,
            rates: load.rates,
            start_in: START_IN,
            start_over: 0,
            active: true,
        })
        .await?;
    let mut program = None;
    match load.who {
        Who::Agent => {
            let mut agent = Program::agent(&field, TOLD)?;
            agent.ready().await?;
            program = Some(agent);
        }
        Who::Node => {
            let command = peers::node(peers, &field);
            program = command.map(Program::peer).transpose()?;
        }
        Who::Cron => {}
    }
    let is_there = match load.who {
        Who::Agent | Who::Node => program.is_some(),
        Who::Cron => ground.schedule_cron(&mut field).await?,
    };
    let mut seen = if is_there {
        Some(watch(ground, &mut field, program.as_ref(), load, start).await?)
    } else {
        None
    };
    if let Some(mut program) = program {
        if program.has_ended()? {
            seen = None; // what it left undone is nobody's figure
        } else {
            program.stop().await?;
        }
    }
    if load.who == Who::Cron && is_there {
        ground.unschedule_cron().await?;
    }
    ground.clear(field).await?;
    Ok(seen)
}

async fn watch(
    ground: &Ground,
    field: &mut Field,
    program: Option<&Program>,
    load: Load,
    start: DbTime,
) -> anyhow::Result<Seen> {
    let from = start.plus_micros(WARM_UP_US);
    let to = from.plus_micros(i64::from(load.seconds) * SECOND_US);
    field.reach(from).await?;
    let before = (used(ground, program)?, field.statements().await?);
    field.reach(to).await?;
    let after = (used(ground, program)?, field.statements().await?);
    field.reach(to.plus_micros(SETTLES_US)).await?;
    let (late, off) = judge(field, load.who, (from, to)).await?;
    let spent =
        |before: Option<Duration>, after: Option<Duration>| Some(after?.saturating_sub(before?));
    let seconds = f64::from(load.seconds);
    Ok(Seen {
        who: load.who.name(),
        rows: load.rows,
        visits: late.len(),
        seconds,
        late,
        off,
        statements: match after.1.zip(before.1) {
            Some((after, before)) => Some(f64::from(i32::try_from(after - before)?) / seconds),
            None => None,
        },
        cpu: spent(before.0.0, after.0.0),
        server: spent(before.0.1, after.0.1),
    })
}

/// The processor time of a program and of the server so far.
fn used(
    ground: &Ground,
    program: Option<&Program>,
) -> anyhow::Result<(Option<Duration>, Option<Duration>)> {
    Ok((
        program.map(Program::cpu).transpose()?,
        ground.server_pid().map(cpu_of_server).transpose()?,
    ))
}

/// How late the visits were that were scheduled in the time, and how many seconds of single rows were not those of the curve.
async fn judge(
    field: &mut Field,
    who: Who,
    (from, to): (DbTime, DbTime),
) -> anyhow::Result<(Spread, (usize, usize))> {
    field
        .connection
        .execute("analyze public.store_visits")
        .await?;
    let commits = field.commits().await?;
    let mut by_row: BTreeMap<Uuid, Vec<DbTime>> = BTreeMap::new();
    for (row, at) in commits {
        by_row.entry(row).or_default().push(at);
    }
    let mut connection = Database::from_url(&field.url)?.connect().await?;
    let known = rows::every(&mut connection).await?.rows;
    // The others tick on full seconds, as one row alone does.
    let running = if who == Who::Agent { known.len() } else { 1 };
    let nothing = Vec::new();
    let (mut late, mut off, mut of) = (Vec::new(), 0, 0);
    for read in &known {
        let Ok(row) = Distribution::parse(&read.row) else {
            continue;
        };
        let grid = |at| Schedule::instant_at_or_after(running, row.id, at);
        let commits = by_row.get(&row.id).unwrap_or(&nothing);
        let (row_late, row_off, row_of) = judge_row(&row.curve, grid, commits, (from, to));
        late.extend(row_late);
        off += row_off;
        of += row_of;
    }
    Ok((Spread::of(late), (off, of)))
}

fn judge_row(
    curve: &Curve,
    grid: impl Fn(DbTime) -> DbTime,
    commits: &[DbTime],
    (from, to): (DbTime, DbTime),
) -> (Vec<i64>, usize, usize) {
    let (mut late, mut off, mut seconds) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    for k in 1.. {
        let Some(scheduled) = curve.due_at(k).map(&grid).filter(|at| *at < to) else {
            break;
        };
        if scheduled < from {
            continue;
        }
        seconds.insert(scheduled);
        let at = usize::try_from(k - 1)
            .ok()
            .and_then(|place| commits.get(place));
        let after = at.map(|at| at.micros_since(scheduled));
        late.extend(after);
        if !after.is_some_and(|after| (0..FIRE_PERIOD_US).contains(&after)) {
            off.insert(scheduled);
        }
    }
    (late, off.len(), seconds.len())
}

fn row(seen: &Seen) -> Vec<Cell> {
    let visits = f64::from(u32::try_from(seen.visits).unwrap_or(u32::MAX));
    let a_million = |used: Option<Duration>| {
        used.map_or(Cell::None, |used| {
            Cell::Number(used.as_secs_f64() / visits.max(1.0) * 1e6, 1)
        })
    };
    let [p50, p99, max] = seen.late.cells();
    let off = if seen.off.0 == 0 {
        Cell::whole(0)
    } else {
        Cell::word(format!("{} of {}", seen.off.0, seen.off.1))
    };
    vec![
        Cell::word(seen.who),
        Cell::whole(seen.rows),
        Cell::Number(visits / seen.seconds, 0),
        off,
        p50,
        p99,
        max,
        seen.statements
            .map_or(Cell::None, |statements| Cell::Number(statements, 1)),
        a_million(seen.cpu),
        a_million(seen.server),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::curve::VISIT;

    #[test]
    fn a_peer_that_chance_gave_fewer_transactions_keeps_up_and_one_that_is_saturated_does_not() {
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
        let grid = |at| Schedule::instant_at_or_after(1, Uuid::nil(), at);
        // Visit k is due at k − 1/2, and so fires at k.
        let commits = [s(1.002), s(1.9), s(4.5), s(4.6)];
        let judged = judge_row(&curve, grid, &commits, (s(0.0), s(6.0)));
        assert_eq!(judged, (vec![2_000, -100_000, 1_500_000, 600_000], 3, 5));
    }
}
