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
use super::peers;
use super::program::{Program, Told, cpu_of_server};
use crate::domain::curve::Curve;
use crate::domain::distribution::Distribution;
use crate::domain::limits::FIRE_PERIOD_US;
use crate::domain::time::{DbTime, SECOND_US};
use crate::domain::timetable::Timetable;
use crate::postgres::link::Database;
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
/// What comes in the first seconds is not looked at.
const WARM_UP_US: i64 = 3 * SECOND_US;
/// A minute of cron, and the one in which it begins.
const CRON_SECONDS: u32 = 130;
const TOLD: Told = Told {
    max_visits_per_second: 50_000,
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
    transactions: f64,
    cpu: Option<Duration>,
    server: Option<Duration>,
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
            "transactions/s",
            "CPU s / 10⁶ visits",
            "server's",
        ],
    );
    let mut all = Vec::new();
    for (rows, rates) in [
        (1, TEN_A_SECOND),
        (100, MIXED),
        (1_000, MIXED),
        (1_000, EACH_SECOND),
        (10_000, MIXED),
        (10_000, EACH_SECOND),
    ] {
        all.extend(look(ground, peers, Who::Agent, rows, rates, seconds).await?);
    }
    let mut missing = Vec::new();
    for (who, rows, time) in [
        (Who::Node, 1, seconds),
        (Who::Node, 1_000, seconds),
        (Who::Cron, 1_000, CRON_SECONDS),
    ] {
        let rates = if rows == 1 { TEN_A_SECOND } else { EACH_SECOND };
        match look(ground, peers, who, rows, rates, time).await? {
            Some(seen) => all.push(seen),
            None => missing.push(who),
        }
    }
    for seen in &all {
        table.rows.push(row(seen));
    }
    let mut field = ground.field().await?;
    field
        .rows(Rows {
            count: 1,
            rates: EACH_SECOND,
            start_in: 3_600,
            active: false,
        })
        .await?;
    let mut pgbench = BTreeMap::new();
    for rate in [10, 1_000] {
        if let Some(late) = peers::pgbench(&field, rate, seconds)? {
            let [p50, p99, max] = late.cells();
            table.rows.push(vec![
                Cell::word("pgbench --rate"),
                Cell::None,
                Cell::whole(rate),
                Cell::None,
                p50,
                p99,
                max,
                Cell::whole(rate),
                Cell::None,
                Cell::None,
            ]);
            pgbench.insert(rate, late);
        }
    }
    ground.clear(field).await?;
    aims(&mut table, &all, &pgbench);
    if missing.contains(&Who::Node) {
        table
            .notes
            .push("No Node script: it needs node, and `npm ci` in tests/peers.".to_owned());
    }
    if missing.contains(&Who::Cron) {
        table.notes.push("No cron: pg_cron is not installed beside this server, or the server is not ours to load it.".to_owned());
    }
    let mut plots: Vec<(String, Spread)> = Vec::new();
    for seen in all.into_iter().filter(|seen| seen.rows == 1_000) {
        plots.push((format!("{}, {} rows", seen.who, seen.rows), seen.late));
    }
    for (rate, late) in pgbench {
        plots.push((format!("pgbench --rate {rate}"), late));
    }
    Ok((table, plots))
}

fn aims(table: &mut Table, all: &[Seen], pgbench: &BTreeMap<u32, Spread>) {
    let ours = |rows: u32| {
        all.iter()
            .filter(move |seen| seen.who == AGENT && seen.rows == rows)
    };
    let off: usize = all
        .iter()
        .filter(|seen| seen.who == AGENT)
        .map(|seen| seen.off.0)
        .sum();
    table.at_most(
        "row-seconds of visit-pacer that are off the curve: none",
        f64::from(u32::try_from(off).unwrap_or(u32::MAX)),
        0.0,
    );
    if let (Some(one), Some(peer)) = (ours(1).next(), pgbench.get(&10)) {
        table.at_most(
            "p50 at one row and 10/s, within 2 × pgbench's",
            ratio(one.late.percentile(50), peer.percentile(50)),
            2.0,
        );
    }
    if let (Some(many), Some(peer)) = (ours(1_000).last(), pgbench.get(&1_000)) {
        table.at_most(
            "p99 at 1,000 rows and 1,000/s, within 5 × pgbench's",
            ratio(many.late.percentile(99), peer.percentile(99)),
            5.0,
        );
        table.at_most(
            "… at no more than a twentieth of its transactions",
            many.transactions / 1_000.0,
            0.05,
        );
    }
}

const AGENT: &str = "visit-pacer";

async fn look(
    ground: &mut Ground,
    peers: &Path,
    who: Who,
    rows: u32,
    rates: &[(&str, &str)],
    seconds: u32,
) -> anyhow::Result<Option<Seen>> {
    let mut field = ground.field().await?;
    let seen = look_at(ground, peers, &mut field, who, rows, rates, seconds).await;
    ground.clear(field).await?;
    seen
}

async fn look_at(
    ground: &mut Ground,
    peers: &Path,
    field: &mut Field,
    who: Who,
    rows: u32,
    rates: &[(&str, &str)],
    seconds: u32,
) -> anyhow::Result<Option<Seen>> {
    let realtime = field.realtime().await?;
    let start = field
        .rows(Rows {
            count: rows,
            rates,
            start_in: START_IN,
            active: true,
        })
        .await?;
    let mut program = None;
    match who {
        Who::Agent => {
            let mut agent = Program::agent(field, realtime.as_ref(), TOLD)?;
            agent.ready().await?;
            program = Some(agent);
        }
        Who::Node => {
            let command = realtime
                .as_ref()
                .and_then(|realtime| peers::node(peers, field, realtime));
            if let Some(command) = command {
                program = Some(Program::peer(command)?);
            }
        }
        Who::Cron => {}
    }
    let here = match who {
        Who::Agent | Who::Node => program.is_some(),
        Who::Cron => ground.schedule_cron(field).await?,
    };
    let mut seen = None;
    if here {
        field.reach(start.plus_micros(WARM_UP_US)).await?;
        let before = (used(ground, program.as_ref())?, field.transactions().await?);
        let until = start.plus_micros(WARM_UP_US + i64::from(seconds) * SECOND_US);
        field.reach(until).await?;
        let after = (used(ground, program.as_ref())?, field.transactions().await?);
        let took = f64::from(seconds);
        field.reach(until.plus_micros(3 * SECOND_US)).await?;
        let (late, off) = judge(field, who, (start.plus_micros(WARM_UP_US), until)).await?;
        let spent = |before: Option<Duration>, after: Option<Duration>| {
            Some(after?.saturating_sub(before?))
        };
        seen = Some(Seen {
            who: match who {
                Who::Agent => AGENT,
                Who::Node => "Node script",
                Who::Cron => "pg_cron, each minute",
            },
            rows,
            visits: late.len(),
            seconds: took,
            late,
            off,
            transactions: f64::from(i32::try_from(after.1 - before.1)?) / took,
            cpu: spent(before.0.0, after.0.0),
            server: spent(before.0.1, after.0.1),
        });
    }
    if let Some(program) = program {
        program.stop().await?;
    }
    if who == Who::Cron && here {
        ground.unschedule_cron().await?;
    }
    if let Some((mut server, _)) = realtime {
        server.stop().await;
    }
    Ok(seen)
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
        let grid = |at| Timetable::instant_at_or_after(running, row.id, at);
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
        Cell::Number(seen.transactions, 1),
        a_million(seen.cpu),
        a_million(seen.server),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::curve::VISIT;

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
        let grid = |at| Timetable::instant_at_or_after(1, Uuid::nil(), at);
        // Visit k is due at k − 1/2, and so fires at k.
        let commits = [s(1.002), s(1.9), s(4.5), s(4.6)];
        let judged = judge_row(&curve, grid, &commits, (s(0.0), s(6.0)));
        assert_eq!(judged, (vec![2_000, -100_000, 1_500_000, 600_000], 3, 5));
    }
}
