//! `visit-pacer bench`: what to measure, and where the figures go.

use std::path::PathBuf;

use anyhow::Context as _;

use super::log::{self, LogFormat};
use crate::bench::figures::{Report, markdown};
use crate::bench::ground::Ground;
use crate::bench::{footprint, plot, precision, reaction, scale, throughput};
use crate::settings::Environment;

/// Flags of `bench`.
#[derive(clap::Args)]
pub struct Args {
    /// What to measure
    #[arg(value_enum, default_value_t = Part::All)]
    part: Part,
    /// Measure on the server of `DATABASE_URL`, in databases of its own that are removed, rather than on an embedded one
    #[arg(long)]
    on_server: bool,
    /// How long each figure is measured, in seconds
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(5..=600))]
    seconds: u32,
    /// Where the Node script is, with its packages (`npm ci`)
    #[arg(long, value_name = "DIR", default_value = "tests/peers")]
    peers: PathBuf,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the lateness that was measured into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Visits a second through the writer, against COPY
    Throughput,
    /// Lateness of commits and errors of single seconds, against pgbench, cron and a Node script
    Precision,
    /// From the COMMIT of an edit to the schedule, and to the first visit after a resume
    Reaction,
    /// Memory and processor with ten rows, against a Node script's
    Footprint,
    /// A million rows: memory, processor, cold start
    Scale,
    /// Everything
    All,
}

/// Measures.
#[expect(clippy::print_stdout, reason = "the command's output")]
pub async fn run(args: Args) -> anyhow::Result<()> {
    log::init_stderr(LogFormat::Human);
    let given = if args.on_server {
        Some(Environment::load()?.database_url()?)
    } else {
        None
    };
    let mut ground = Ground::open(given).await?;
    let measured = measure(&mut ground, &args).await;
    ground.close().await?;
    let report = measured?;
    println!("{}", markdown(&report));
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

async fn measure(ground: &mut Ground, args: &Args) -> anyhow::Result<Report> {
    let (mut tables, mut curves) = (Vec::new(), Vec::new());
    let wants = |part| args.part == part || args.part == Part::All;
    if wants(Part::Throughput) {
        tables.push(throughput::measure(ground, args.seconds).await?);
    }
    if wants(Part::Precision) {
        let (table, late) = precision::measure(ground, &args.peers, args.seconds).await?;
        tables.push(table);
        curves.extend(late);
    }
    if wants(Part::Reaction) {
        let (table, late) = reaction::measure(ground, args.seconds).await?;
        tables.push(table);
        curves.extend(late);
    }
    if wants(Part::Footprint) {
        tables.push(footprint::measure(ground, &args.peers, args.seconds).await?);
    }
    if wants(Part::Scale) {
        tables.extend(scale::measure(ground, args.seconds).await?);
    }
    if let Some(path) = &args.svg {
        std::fs::write(path, plot::svg(&curves))
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(Report {
        machine: ground.machine().await?,
        tables,
    })
}
