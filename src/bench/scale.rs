//! A million distributions, a hundred thousand of them active: memory, CPU, cold start, syncs. And two and four agents that
//! share one load.

use std::time::{Duration, Instant};

use super::environment::{BenchDatabase, BenchEnvironment, Workload};
use super::figures::{Cell, ReportTable};
use super::growth::{self, ReadDurations};
use super::program::{AgentOptions, Program, server_cpu};

/// Distributions in all, and those of them that are active, with one visit each ten seconds.
const TOTAL: u32 = 1_000_000;
const ACTIVE: u32 = 100_000;
const RATES: &[(&str, &str)] = &[("minute", "6")];
/// Their starts are spread over these ten seconds.
const PERIOD: u32 = 10;
/// With a rate limit of twice what is due.
const OPTIONS: AgentOptions = AgentOptions {
    max_visits_per_second: 20_000,
    log: None,
};
/// The start is not measured.
const WARM_UP: Duration = Duration::from_secs(10);
/// How long the first visit may take.
const FIRST_VISIT_TIMEOUT: Duration = Duration::from_secs(15);
const CHECK_EVERY: Duration = Duration::from_millis(10);

/// Measures for `seconds` each.
pub async fn measure(
    environment: &mut BenchEnvironment,
    seconds: u32,
) -> anyhow::Result<Vec<ReportTable>> {
    let mut table = ReportTable::new(
        "Scale, one agent",
        "distributions | active | visits/s | ready after, s | first batch, s | memory, MiB | bytes per distribution | agent's CPU, % | server's CPU, % | idle sync, ms | full read, s",
    );
    let time = Duration::from_secs(seconds.into());
    let empty = one_agent(environment, 0, 0, time).await?;
    let active = one_agent(environment, ACTIVE, ACTIVE, time).await?;
    let all = one_agent(environment, TOTAL, ACTIVE, time).await?;
    table.rows.push(row(0, 0, &empty, None));
    table.rows.push(row(ACTIVE, ACTIVE, &active, Some(&empty)));
    table.rows.push(row(TOTAL, ACTIVE, &all, Some(&empty)));
    table.at_most(
        "memory per distribution, in bytes, at most 500",
        bytes_each(&all, &empty, TOTAL),
        500.0,
    );
    table.at_most(
        "cold start with a million distributions, until the first batch is stored, s, at most 5",
        all.first.map_or(f64::NAN, |first| first.as_secs_f64()),
        5.0,
    );
    table.note("10,000 visits per second are due; what is beyond that is the backlog from before the agent's start.");
    table.note(format!(
        "An active distribution takes more memory than an inactive one: {:.0} bytes.",
        bytes_each(&active, &empty, ACTIVE)
    ));
    Ok(vec![
        table,
        growth::ticks(),
        several_agents(environment, time).await?,
    ])
}

/// Distributions that several agents share, with a visit per second each.
const SHARED: u32 = 10_000;
const EACH_SECOND: &[(&str, &str)] = &[("second", "1")];

/// One load, and one, two and four agents for it.
async fn several_agents(
    environment: &mut BenchEnvironment,
    time: Duration,
) -> anyhow::Result<ReportTable> {
    let mut table = ReportTable::new(
        "Agents that share 10,000 distributions of a visit per second",
        "agents | visits/s | memory of all, MiB | CPU of all, % | server's CPU, % | transactions/s",
    );
    for count in [1, 2, 4] {
        let mut database = environment.database().await?;
        database.start_realtime().await?;
        let workload = Workload::running(SHARED, EACH_SECOND);
        database.insert(workload).await?;
        let mut agents = Vec::new();
        for _ in 0..count {
            agents.push(Program::agent(&database, OPTIONS)?);
        }
        for agent in &mut agents {
            agent.ready().await?;
        }
        tokio::time::sleep(WARM_UP).await;
        let before = totals(environment, &agents, &mut database).await?;
        tokio::time::sleep(time).await;
        let after = totals(environment, &agents, &mut database).await?;
        let seconds = after.at.duration_since(before.at).as_secs_f64();
        let rate = |after: i64, before: i64| -> anyhow::Result<f64> {
            Ok(f64::from(i32::try_from(after - before)?) / seconds)
        };
        let percent = |after: Duration, before: Duration| {
            100.0 * after.saturating_sub(before).as_secs_f64() / seconds
        };
        let server = after.server_cpu.zip(before.server_cpu);
        table.rows.push(vec![
            Cell::whole(count),
            Cell::Number(rate(after.visits, before.visits)?, 0),
            Cell::Number(after.memory / 1_048_576.0, 1),
            Cell::Number(percent(after.cpu, before.cpu), 1),
            Cell::number(server.map(|(after, before)| percent(after, before)), 1),
            Cell::Number(rate(after.transactions, before.transactions)?, 1),
        ]);
        for agent in agents {
            agent.stop().await?;
        }
        environment.remove(database).await?;
    }
    Ok(table)
}

/// What agents and their server have used and done so far.
struct Totals {
    at: Instant,
    cpu: Duration,
    memory: f64,
    server_cpu: Option<Duration>,
    visits: i64,
    transactions: i64,
}

async fn totals(
    environment: &BenchEnvironment,
    agents: &[Program],
    database: &mut BenchDatabase,
) -> anyhow::Result<Totals> {
    let (mut cpu, mut memory) = (Duration::ZERO, 0.0);
    for agent in agents {
        cpu += agent.cpu()?;
        memory += agent.memory()?;
    }
    let transactions =
        "select xact_commit from pg_stat_database where datname = current_database()";
    Ok(Totals {
        at: Instant::now(),
        cpu,
        memory,
        server_cpu: server_cpu(environment)?,
        visits: database.number(VISITS).await?,
        transactions: database.number(transactions).await?,
    })
}

/// The number of stored visits.
const VISITS: &str = "select count(*) from public.store_visits";

/// What one agent used.
struct AgentFigures {
    ready: Duration,
    first: Option<Duration>,
    memory: f64,
    cpu: f64,
    server_cpu: Option<f64>,
    rate: f64,
    reads: ReadDurations,
}

/// Measures an agent that starts on a table with so many distributions.
async fn one_agent(
    environment: &mut BenchEnvironment,
    total: u32,
    active: u32,
    time: Duration,
) -> anyhow::Result<AgentFigures> {
    let mut database = environment.database().await?;
    // The active ones come last, so that the backlog is small when the agent starts.
    for (count, is_active) in [(total - active, false), (active, true)] {
        let workload = Workload {
            start_over: PERIOD,
            active: is_active,
            ..Workload::running(count, RATES)
        };
        if count > 0 {
            database.insert(workload).await?;
        }
    }
    database.start_realtime().await?;
    let mut agent = Program::agent(&database, OPTIONS)?;
    let ready = agent.ready().await?;
    let any = "select exists (select from public.store_visits)::int::bigint";
    let mut first = None;
    while first.is_none() && active > 0 && agent.age() < ready + FIRST_VISIT_TIMEOUT {
        first = (database.number(any).await? == 1).then(|| agent.age());
        tokio::time::sleep(CHECK_EVERY).await;
    }
    tokio::time::sleep(WARM_UP).await;
    let (began, cpu, visits) = (agent.age(), agent.cpu()?, database.number(VISITS).await?);
    let server_before = server_cpu(environment)?;
    tokio::time::sleep(time).await;
    let seconds = agent.age().saturating_sub(began).as_secs_f64();
    let percent = |after: Duration, before: Duration| {
        100.0 * after.saturating_sub(before).as_secs_f64() / seconds
    };
    let server = server_cpu(environment)?.zip(server_before);
    let cpu = percent(agent.cpu()?, cpu);
    let visits = database.number(VISITS).await? - visits;
    let memory = agent.memory()?;
    agent.stop().await?;
    let reads = growth::read_durations(&database).await?;
    environment.remove(database).await?;
    Ok(AgentFigures {
        ready,
        first,
        memory,
        cpu,
        server_cpu: server.map(|(after, before)| percent(after, before)),
        rate: f64::from(i32::try_from(visits)?) / seconds,
        reads,
    })
}

fn bytes_each(figures: &AgentFigures, empty: &AgentFigures, count: u32) -> f64 {
    (figures.memory - empty.memory) / f64::from(count.max(1))
}

fn row(total: u32, active: u32, figures: &AgentFigures, empty: Option<&AgentFigures>) -> Vec<Cell> {
    vec![
        Cell::whole(total),
        Cell::whole(active),
        Cell::Number(figures.rate, 0),
        Cell::Number(figures.ready.as_secs_f64(), 1),
        Cell::number(figures.first.map(|first| first.as_secs_f64()), 1),
        Cell::Number(figures.memory / 1_048_576.0, 1),
        Cell::number(empty.map(|empty| bytes_each(figures, empty, total)), 0),
        Cell::Number(figures.cpu, 1),
        Cell::number(figures.server_cpu, 1),
        Cell::millis(figures.reads.sync),
        Cell::Number(figures.reads.full.as_secs_f64(), 1),
    ]
}
