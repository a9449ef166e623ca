//! What it costs to run beside a project: memory and processor with ten rows, against the Node script's.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

use super::figures::{Cell, Table};
use super::ground::{Ground, Rows};
use super::peers;
use super::program::{Program, Told, cpu_of_server};

const ROWS: u32 = 10;
const RATES: &[(&str, &str)] = &[("minute", "30"), ("minute", "60"), ("hour", "900")];
/// The start is not the running.
const SETTLES: Duration = Duration::from_secs(8);
/// A tick of the kernel's count is a hundredth of a second; over so long that matters little.
const SECONDS_MIN: u32 = 30;
const TOLD: Told = Told {
    max_visits_per_second: 2_000,
    log: None,
};
const MIB: f64 = 1_048_576.0;

/// What was seen of a program.
struct Seen {
    memory: f64,
    cpu: f64,
    server: Option<f64>,
    /// A second.
    statements: Option<f64>,
}

/// Measures it; `seconds` for each program.
pub async fn measure(ground: &mut Ground, peers: &Path, seconds: u32) -> anyhow::Result<Table> {
    let seconds = seconds.max(SECONDS_MIN);
    let mut table = Table::new(
        "Footprint, ten rows",
        &[
            "who",
            "memory, MiB",
            "CPU, % of a core",
            "server's CPU, %",
            "statements/s",
        ],
    );
    let counted = ground.count_statements().await?;
    let idle = look(ground, seconds, Who::Nobody, counted).await?;
    let ours = look(ground, seconds, Who::Agent, counted).await?;
    let (idle, ours) = idle.zip(ours).context("both are always there")?;
    let node = look(ground, seconds, Who::Node(peers), counted).await?;
    for (who, seen) in [("visit-pacer", Some(&ours)), ("Node script", node.as_ref())] {
        let Some(seen) = seen else {
            table
                .notes
                .push("No Node script: it needs node, `npm ci` in tests/peers and wal_level = logical, or it ended by itself.".to_owned());
            continue;
        };
        table.rows.push(vec![
            Cell::word(who),
            Cell::Number(seen.memory / MIB, 1),
            Cell::Number(seen.cpu, 2),
            seen.server
                .zip(idle.server)
                .map_or(Cell::None, |(with, without)| {
                    Cell::Number((with - without).max(0.0), 2)
                }),
            seen.statements
                .map_or(Cell::None, |statements| Cell::Number(statements, 1)),
        ]);
    }
    table.at_most("memory, MiB, at most 20", ours.memory / MIB, 20.0);
    table.at_most("CPU, % of a core, under 0.5", ours.cpu, 0.5);
    match ours.statements {
        Some(statements) => table.at_most("statements a second, under 5", statements, 5.0),
        None => table.notes.push(
            "No statements a second: they need pg_stat_statements, on a server that may be restarted."
                .to_owned(),
        ),
    }
    table.notes.push(
        "The server's figures are without those of the Realtime server, which runs beside either."
            .to_owned(),
    );
    Ok(table)
}

/// Who works on the rows.
#[derive(Clone, Copy)]
enum Who<'a> {
    Nobody,
    Agent,
    /// The script, which is in that folder.
    Node(&'a Path),
}

/// One program for so long, or none; `None` where it is not on this machine.
async fn look(
    ground: &mut Ground,
    seconds: u32,
    who: Who<'_>,
    counted: bool,
) -> anyhow::Result<Option<Seen>> {
    let mut field = ground.field().await?;
    field.starts_realtime().await?;
    if counted {
        field.is_counted().await?;
    }
    field
        .rows(Rows {
            count: ROWS,
            rates: RATES,
            start_in: -1,
            start_over: 0,
            active: true,
        })
        .await?;
    let mut program = match who {
        Who::Nobody => None,
        Who::Agent => {
            let mut agent = Program::agent(&field, TOLD)?;
            agent.ready().await?;
            Some(agent)
        }
        Who::Node(folder) => peers::node(folder, &field).map(Program::peer).transpose()?,
    };
    let mut seen = None;
    if matches!(who, Who::Nobody) || program.is_some() {
        tokio::time::sleep(SETTLES).await;
        if let Some(program) = &mut program
            && program.has_ended()?
        {
            ground.clear(field).await?;
            return Ok(None);
        }
        let cpu = || program.as_ref().map_or(Ok(Duration::ZERO), Program::cpu);
        let server = || ground.server_pid().map(cpu_of_server).transpose();
        let before = (cpu()?, server()?, field.statements().await?);
        tokio::time::sleep(Duration::from_secs(seconds.into())).await;
        let after = (cpu()?, server()?, field.statements().await?);
        let sent = match after.2.zip(before.2) {
            Some((after, before)) => Some(i32::try_from(after - before)?),
            None => None,
        };
        let percent = |used: Duration| 100.0 * used.as_secs_f64() / f64::from(seconds);
        seen = Some(Seen {
            memory: match &program {
                Some(program) => f64::from(u32::try_from(program.memory()? / 1024)?) * 1024.0,
                None => 0.0,
            },
            cpu: percent(after.0.saturating_sub(before.0)),
            server: after
                .1
                .zip(before.1)
                .map(|(after, before)| percent(after.saturating_sub(before))),
            statements: sent.map(|sent| f64::from(sent) / f64::from(seconds)),
        });
    }
    if let Some(program) = program {
        program.stop().await?;
    }
    ground.clear(field).await?;
    Ok(seen)
}
