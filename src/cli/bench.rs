//! `visit-pacer bench`: what to measure, and where the figures go.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};

use super::log::{self, LogFormat};
use crate::bench::figures::{Report, Spread, Table, markdown};
use crate::bench::ground::Ground;
use crate::bench::{footprint, plot, precision, reaction, scale, throughput};
use crate::runtime::serve::asked_to_stop;
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
    ensure!(
        args.svg.is_none() || args.wants(Part::Precision) || args.wants(Part::Reaction),
        "--svg draws what `precision` and `reaction` measure: ask for one of them, or for all"
    );
    for path in args.json.iter().chain(&args.svg) {
        let opened = File::options().create(true).append(true).open(path);
        opened.with_context(|| format!("write {}", path.display()))?;
    }
    let given = if args.on_server {
        Some(Environment::load()?.database_url()?)
    } else {
        None
    };
    let mut ground = Ground::open(given).await?;
    let mut found = Found::default();
    // Dropped, what is measured ends, and its processes with it.
    let measured = tokio::select! {
        measured = measure(&mut ground, &args, &mut found) => measured,
        stop = asked_to_stop() => stop.and_then(|()| bail!("stopped before everything was measured")),
    };
    let machine = ground.machine().await;
    let closed = ground.close().await;
    let report = Report {
        machine: machine?,
        tables: found.tables,
    };
    println!("{}", markdown(&report));
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &args.svg {
        std::fs::write(path, plot::svg(&found.curves))
            .with_context(|| format!("write {}", path.display()))?;
    }
    measured.and(closed)
}

impl Args {
    fn wants(&self, part: Part) -> bool {
        self.part == part || self.part == Part::All
    }
}

/// What was measured so far.
#[derive(Default)]
struct Found {
    tables: Vec<Table>,
    curves: Vec<(String, Spread)>,
}

async fn measure(ground: &mut Ground, args: &Args, found: &mut Found) -> anyhow::Result<()> {
    let Found { tables, curves } = found;
    if args.wants(Part::Throughput) {
        tables.push(throughput::measure(ground, args.seconds).await?);
    }
    if args.wants(Part::Precision) {
        let (table, late) = precision::measure(ground, &args.peers, args.seconds).await?;
        tables.push(table);
        curves.extend(late);
    }
    if args.wants(Part::Reaction) {
        let (table, late) = reaction::measure(ground, args.seconds).await?;
        tables.push(table);
        curves.extend(late);
    }
    if args.wants(Part::Footprint) {
        tables.push(footprint::measure(ground, &args.peers, args.seconds).await?);
    }
    if args.wants(Part::Scale) {
        tables.extend(scale::measure(ground, args.seconds).await?);
    }
    Ok(())
}
