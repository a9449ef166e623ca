//! `visit-pacer bench`: which benchmarks to run, and where the figures go.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};

use super::log::{self, LogFormat};
use super::output::output;
use crate::bench::environment::BenchEnvironment;
use crate::bench::figures::{BenchReport, ReportTable, Samples, markdown};
use crate::bench::{footprint, plot, precision, reaction, scale, throughput};
use crate::runtime::serve::asked_to_stop;
use crate::settings::Environment;

/// Flags of `bench`.
#[derive(clap::Args)]
pub struct Args {
    /// The benchmark to run
    #[arg(value_enum, default_value_t = Benchmark::All)]
    benchmark: Benchmark,
    /// Use the server of `DATABASE_URL` instead of an embedded one, with databases that are removed afterwards
    #[arg(long)]
    on_server: bool,
    /// Duration of each measurement in seconds
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(5..=600))]
    seconds: u32,
    /// Directory of the Node script and its packages (`npm ci`)
    #[arg(long, value_name = "DIR", default_value = "tests/peers")]
    peers: PathBuf,
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write a chart of the measured delays to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// A benchmark.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Benchmark {
    /// Visits per second through the writer, against COPY
    Throughput,
    /// Delay of commits and errors of single seconds, against pgbench, cron and a Node script
    Precision,
    /// Time from the COMMIT of an edit to the schedule, and to the first visit after a resume
    Reaction,
    /// Memory and CPU with ten distributions, against a Node script
    Footprint,
    /// A million distributions: memory, CPU, cold start
    Scale,
    /// All of them
    All,
}

/// Runs the benchmarks.
pub async fn run(args: Args) -> anyhow::Result<()> {
    log::init_stderr(LogFormat::Human);
    ensure!(
        args.svg.is_none() || args.wants(Benchmark::Precision) || args.wants(Benchmark::Reaction),
        "--svg needs the benchmark `precision`, `reaction` or `all`"
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
    let mut environment = BenchEnvironment::open(given).await?;
    let mut results = Results::default();
    // A dropped measurement ends its processes.
    let measured = tokio::select! {
        measured = measure(&mut environment, &args, &mut results) => measured,
        stop = asked_to_stop() => stop.and_then(|()| bail!("stopped before all benchmarks had ended")),
    };
    let machine = environment.machine().await;
    let closed = environment.close().await;
    let report = BenchReport {
        machine: machine?,
        tables: results.tables,
    };
    output!("{}", markdown(&report))?;
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    }
    if let Some(path) = &args.svg {
        std::fs::write(path, plot::svg(&results.curves))
            .with_context(|| format!("write {}", path.display()))?;
    }
    measured.and(closed)
}

impl Args {
    fn wants(&self, benchmark: Benchmark) -> bool {
        self.benchmark == benchmark || self.benchmark == Benchmark::All
    }
}

/// The results so far.
#[derive(Default)]
struct Results {
    tables: Vec<ReportTable>,
    curves: Vec<(String, Samples)>,
}

async fn measure(
    environment: &mut BenchEnvironment,
    args: &Args,
    results: &mut Results,
) -> anyhow::Result<()> {
    let Results { tables, curves } = results;
    if args.wants(Benchmark::Throughput) {
        tables.push(throughput::measure(environment, args.seconds).await?);
    }
    if args.wants(Benchmark::Precision) {
        let (table, delays) = precision::measure(environment, &args.peers, args.seconds).await?;
        tables.push(table);
        curves.extend(delays);
    }
    if args.wants(Benchmark::Reaction) {
        let (table, delays) = reaction::measure(environment, args.seconds).await?;
        tables.push(table);
        curves.extend(delays);
    }
    if args.wants(Benchmark::Footprint) {
        tables.push(footprint::measure(environment, &args.peers, args.seconds).await?);
    }
    if args.wants(Benchmark::Scale) {
        tables.extend(scale::measure(environment, args.seconds).await?);
    }
    Ok(())
}
