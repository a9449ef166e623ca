//! What an agent costs: memory, CPU time and statements with ten distributions, beside the Node script.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::environment::{BenchEnvironment, Workload};
use super::figures::{Cell, ReportTable};
use super::program::{AgentOptions, Program, Runner, Usage};

const ROWS: u32 = 10;
const RATES: &[(&str, &str)] = &[("minute", "30"), ("minute", "60"), ("hour", "900")];
/// The start is not measured.
const WARM_UP: Duration = Duration::from_secs(8);
/// The kernel counts CPU time in hundredths of a second, so a figure needs this many seconds.
const SECONDS_MIN: u32 = 30;
const OPTIONS: AgentOptions = AgentOptions {
    max_visits_per_second: 2_000,
    log: None,
};
const MIB: f64 = 1_048_576.0;

/// Memory in bytes, CPU time in percent of a core, statements per second.
struct Footprint {
    memory: f64,
    cpu: f64,
    server_cpu: Option<f64>,
    statements: Option<f64>,
}

/// Measures for `seconds` each.
pub async fn measure(
    environment: &mut BenchEnvironment,
    peers: &Path,
    seconds: u32,
) -> anyhow::Result<ReportTable> {
    let seconds = seconds.max(SECONDS_MIN);
    let mut table = ReportTable::new(
        "Footprint, ten distributions",
        "program | memory, MiB | CPU, % of a core | server's CPU, % | statements/s",
    );
    let counted = environment.count_statements().await?;
    let mut found = Vec::new();
    for runner in [Runner::Idle, Runner::Agent, Runner::Node] {
        let footprint = footprint(environment, seconds, (runner, peers), counted).await?;
        if footprint.is_none() {
            table.note(runner.missing());
        }
        found.push(footprint);
    }
    let [idle, agent, node] = found.as_slice() else {
        unreachable!("three are measured");
    };
    let (idle, agent) = idle.as_ref().zip(agent.as_ref()).context("no agent")?;
    for (runner, footprint) in [(Runner::Agent, Some(agent)), (Runner::Node, node.as_ref())] {
        let Some(footprint) = footprint else { continue };
        let server_cpu = footprint.server_cpu.zip(idle.server_cpu);
        table.rows.push(vec![
            Cell::word(runner.name()),
            Cell::Number(footprint.memory / MIB, 1),
            Cell::Number(footprint.cpu, 2),
            Cell::number(
                server_cpu.map(|(with, without)| (with - without).max(0.0)),
                2,
            ),
            Cell::number(footprint.statements, 1),
        ]);
    }
    table.at_most("memory, MiB, at most 20", agent.memory / MIB, 20.0);
    table.at_most("CPU, % of a core, under 0.5", agent.cpu, 0.5);
    match agent.statements {
        Some(statements) => table.at_most("statements per second, under 5", statements, 5.0),
        None => table.note("No statements per second: they need pg_stat_statements, on a server that may be restarted."),
    }
    table.note("The server's figures exclude those of the Realtime server, which runs beside both programs.");
    Ok(table)
}

/// Measures one program, or the server without any; `None` if the program is not installed or has exited.
async fn footprint(
    environment: &mut BenchEnvironment,
    seconds: u32,
    (runner, peers): (Runner, &Path),
    counted: bool,
) -> anyhow::Result<Option<Footprint>> {
    let mut database = environment.database().await?;
    database.start_realtime().await?;
    if counted {
        database.count_statements().await?;
    }
    database.insert(Workload::running(ROWS, RATES)).await?;
    let mut program = runner.start(&database, OPTIONS, peers).await?;
    let mut footprint = None;
    if runner == Runner::Idle || program.is_some() {
        tokio::time::sleep(WARM_UP).await;
        if let Some(program) = &mut program
            && program.has_ended()?
        {
            environment.remove(database).await?;
            return Ok(None);
        }
        let before = Usage::read(environment, program.as_ref(), &mut database).await?;
        tokio::time::sleep(Duration::from_secs(seconds.into())).await;
        let after = Usage::read(environment, program.as_ref(), &mut database).await?;
        let used = after.since(&before);
        let seconds = f64::from(seconds);
        let percent = |used: Duration| 100.0 * used.as_secs_f64() / seconds;
        let statements = used.statements.map(i32::try_from).transpose()?;
        footprint = Some(Footprint {
            memory: program.as_ref().map_or(Ok(0.0), Program::memory)?,
            cpu: percent(used.cpu.unwrap_or_default()),
            server_cpu: used.server_cpu.map(percent),
            statements: statements.map(|sent| f64::from(sent) / seconds),
        });
    }
    if let Some(program) = program {
        program.stop().await?;
    }
    environment.remove(database).await?;
    Ok(footprint)
}
