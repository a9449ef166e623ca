//! A million rows known, a hundred thousand of them active: memory, processor, cold start, syncs; two and four agents on one load.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::figures::{Cell, Table};
use super::ground::{Field, Ground, Rows};
use super::growth::{self, Looks};
use super::program::{Program, Told, cpu_of_server};

/// Rows in all, and those of them that are active, one visit each ten seconds.
const KNOWN: u32 = 1_000_000;
const ACTIVE: u32 = 100_000;
const RATES: &[(&str, &str)] = &[("minute", "6")];
/// … in each second a tenth of them.
const PERIOD: u32 = 10;
/// The agent's own bound: twice what the rows ask for.
const TOLD: Told = Told {
    max_visits_per_second: 20_000,
    log: None,
};
/// An agent is watched after it has settled.
const SETTLES: Duration = Duration::from_secs(10);
/// A first visit that has not come by now does not come: no row is active.
const FIRST_WITHIN: Duration = Duration::from_secs(15);
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Measures it; `seconds` for each figure.
pub async fn measure(ground: &mut Ground, seconds: u32) -> anyhow::Result<Vec<Table>> {
    let mut table = Table::new(
        "Scale, one agent",
        &[
            "rows known",
            "active",
            "visits/s",
            "ready after, s",
            "first batch, s",
            "memory, MiB",
            "bytes a row",
            "agent's CPU, %",
            "server's CPU, %",
            "idle sync, ms",
            "full look, s",
        ],
    );
    let time = Duration::from_secs(seconds.into());
    let empty = look(ground, 0, 0, time).await?;
    let active = look(ground, ACTIVE, ACTIVE, time).await?;
    let all = look(ground, KNOWN, ACTIVE, time).await?;
    table.rows.push(row(0, 0, &empty, None));
    table.rows.push(row(ACTIVE, ACTIVE, &active, Some(&empty)));
    table.rows.push(row(KNOWN, ACTIVE, &all, Some(&empty)));
    table.at_most(
        "memory for a row that is known, in bytes, at most 500",
        per_row(&all, &empty, KNOWN),
        500.0,
    );
    table.at_most(
        "cold start with a million rows, until the first batch is stored, s, at most 5",
        all.first.map_or(f64::NAN, |first| first.as_secs_f64()),
        5.0,
    );
    table.notes.push(
        "The active rows ask for 10,000 visits a second; what is beyond that was owed from before the agent's start, and is being made up."
            .to_owned(),
    );
    table.notes.push(format!(
        "A row that is active takes more memory than one that stands still: {:.0} bytes.",
        per_row(&active, &empty, ACTIVE)
    ));
    Ok(vec![table, growth::ticks(), shared(ground, time).await?])
}

/// Rows that several agents share, a visit a second each.
const SHARED: u32 = 10_000;
const EACH_SECOND: &[(&str, &str)] = &[("second", "1")];

/// One load, and one, two and four agents for it.
async fn shared(ground: &mut Ground, time: Duration) -> anyhow::Result<Table> {
    let mut table = Table::new(
        "Agents that share 10,000 rows of a visit a second",
        &[
            "agents",
            "visits/s",
            "memory of all, MiB",
            "CPU of all, %",
            "server's CPU, %",
            "transactions/s",
        ],
    );
    for count in [1, 2, 4] {
        let mut field = ground.field().await?;
        field.starts_realtime().await?;
        let rows = Rows {
            count: SHARED,
            rates: EACH_SECOND,
            start_in: -1,
            start_over: 0,
            active: true,
        };
        field.rows(rows).await?;
        let mut agents = Vec::new();
        for _ in 0..count {
            agents.push(Program::agent(&field, TOLD)?);
        }
        for agent in &mut agents {
            agent.ready().await?;
        }
        tokio::time::sleep(SETTLES).await;
        let before = together(ground, &agents, &mut field).await?;
        tokio::time::sleep(time).await;
        let after = together(ground, &agents, &mut field).await?;
        let seconds = after.at.duration_since(before.at).as_secs_f64();
        let rate = |after: i64, before: i64| -> anyhow::Result<f64> {
            Ok(f64::from(i32::try_from(after - before)?) / seconds)
        };
        let percent = |used: Duration| 100.0 * used.as_secs_f64() / seconds;
        let server = after.server.zip(before.server);
        table.rows.push(vec![
            Cell::whole(count),
            Cell::Number(rate(after.visits, before.visits)?, 0),
            Cell::Number(after.memory / 1_048_576.0, 1),
            Cell::Number(percent(after.cpu.saturating_sub(before.cpu)), 1),
            server.map_or(Cell::None, |(after, before)| {
                Cell::Number(percent(after.saturating_sub(before)), 1)
            }),
            Cell::Number(rate(after.transactions, before.transactions)?, 1),
        ]);
        for agent in agents {
            agent.stop().await?;
        }
        ground.clear(field).await?;
    }
    Ok(table)
}

/// What agents and their server have used and done so far.
struct Together {
    at: Instant,
    cpu: Duration,
    memory: f64,
    server: Option<Duration>,
    visits: i64,
    transactions: i64,
}

async fn together(
    ground: &Ground,
    agents: &[Program],
    field: &mut Field,
) -> anyhow::Result<Together> {
    let (mut cpu, mut memory) = (Duration::ZERO, 0.0);
    for agent in agents {
        cpu += agent.cpu()?;
        memory += f64::from(u32::try_from(agent.memory()? / 1024)?) * 1024.0;
    }
    Ok(Together {
        at: Instant::now(),
        cpu,
        memory,
        server: ground.server_pid().map(cpu_of_server).transpose()?,
        visits: stored(field).await?,
        transactions: field.transactions().await?,
    })
}

/// What was seen of an agent.
struct Seen {
    ready: Duration,
    first: Option<Duration>,
    memory: f64,
    cpu: f64,
    server: Option<f64>,
    rate: f64,
    looks: Option<Looks>,
}

/// An agent, started on a table that has so many rows already.
async fn look(
    ground: &mut Ground,
    known: u32,
    active: u32,
    time: Duration,
) -> anyhow::Result<Seen> {
    let mut field = ground.field().await?;
    // What is active comes last, so that little is owed when the agent starts.
    for (count, active) in [(known - active, false), (active, true)] {
        let rows = Rows {
            count,
            rates: RATES,
            start_in: -1,
            start_over: PERIOD,
            active,
        };
        if count > 0 {
            field.rows(rows).await?;
        }
    }
    field.starts_realtime().await?;
    let mut agent = Program::agent(&field, TOLD)?;
    let ready = agent.ready().await?;
    let mut first = None;
    while first.is_none() && active > 0 && agent.age() < ready + FIRST_WITHIN {
        first = any(&mut field).await?.then(|| agent.age());
        tokio::time::sleep(LOOK_EVERY).await;
    }
    tokio::time::sleep(SETTLES).await;
    let (began, cpu, visits) = (agent.age(), agent.cpu()?, stored(&mut field).await?);
    let server = ground.server_pid().map(cpu_of_server).transpose()?;
    tokio::time::sleep(time).await;
    let took = agent.age().saturating_sub(began).as_secs_f64();
    let percent = |used: Duration| 100.0 * used.as_secs_f64() / took;
    let server = match (server, ground.server_pid()) {
        (Some(before), Some(pid)) => Some(percent(cpu_of_server(pid)?.saturating_sub(before))),
        _none => None,
    };
    let mut seen = Seen {
        ready,
        first,
        cpu: percent(agent.cpu()?.saturating_sub(cpu)),
        server,
        rate: f64::from(i32::try_from(stored(&mut field).await? - visits)?) / took,
        memory: f64::from(u32::try_from(agent.memory()? / 1024)?) * 1024.0,
        looks: None,
    };
    agent.stop().await?;
    seen.looks = Some(growth::looks(&field).await?);
    ground.clear(field).await?;
    Ok(seen)
}

/// Whether a visit is stored.
async fn any(field: &mut Field) -> anyhow::Result<bool> {
    let any = sqlx::query_scalar("select exists (select from public.store_visits)");
    Ok(any.fetch_one(&mut field.connection).await?)
}

/// Visits that are stored.
async fn stored(field: &mut Field) -> anyhow::Result<i64> {
    let count = sqlx::query_scalar("select count(*) from public.store_visits");
    let count = count.fetch_one(&mut field.connection).await;
    count.context("count what is stored")
}

fn per_row(seen: &Seen, empty: &Seen, rows: u32) -> f64 {
    (seen.memory - empty.memory) / f64::from(rows.max(1))
}

fn row(known: u32, active: u32, seen: &Seen, empty: Option<&Seen>) -> Vec<Cell> {
    let looks = seen.looks.as_ref();
    vec![
        Cell::whole(known),
        Cell::whole(active),
        Cell::Number(seen.rate, 0),
        Cell::Number(seen.ready.as_secs_f64(), 1),
        seen.first
            .map_or(Cell::None, |first| Cell::Number(first.as_secs_f64(), 1)),
        Cell::Number(seen.memory / 1_048_576.0, 1),
        empty.map_or(Cell::None, |empty| {
            Cell::Number(per_row(seen, empty, known), 0)
        }),
        Cell::Number(seen.cpu, 1),
        seen.server
            .map_or(Cell::None, |percent| Cell::Number(percent, 1)),
        looks.map_or(Cell::None, |looks| Cell::millis(looks.changed)),
        looks.map_or(Cell::None, |looks| {
            Cell::Number(looks.full.as_secs_f64(), 1)
        }),
    ]
}
