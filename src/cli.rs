//! The command line: one file per subcommand, the exit codes, the log.
//!
//! Exit codes (those of `status --check` are a monitor's: see `status`): 0 done, 1 failed, 2 usage, 78 (`EX_CONFIG`) a setting missing or malformed, the schema missing or old, or
//! the login or the database refused.

pub mod bench;
pub mod browser;
pub mod commands;
pub mod demo;
pub mod distribute;
pub mod doctor;
pub mod health;
pub mod lines;
pub mod log;
pub mod manual;
pub mod measured;
pub mod migrate;
pub mod plan;
pub mod report;
pub mod run;
pub mod screen;
pub mod status;
pub mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::postgres::connection::Connection;
use crate::postgres::failure::Failure;
use crate::postgres::reconnect::{Database, NeedsSession};
use crate::runtime::serve::Unfit;
use crate::settings::{Environment, SettingError};
use crate::web::guard::Exposed;

/// Stores planned visits at an exact pace, beside Supabase; edits of visit_distribution drive it.
///
/// The visits that it stores are synthetic and labelled with the distribution that they belong to.
#[derive(Parser)]
#[command(name = "visit-pacer", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a local Postgres and Realtime with sample rows, and the agent beside them
    Demo(demo::Args),
    /// Run the agent
    #[command(after_help = run::ENVIRONMENT)]
    Run(run::Args),
    /// Bring the schema: the files of `migrations/` that the database does not have yet
    Migrate(migrate::Args),
    /// Show where each distribution stands
    Status(status::Args),
    /// Say what a row would do before it is made active: its pace, its end, the disk it takes
    Plan(plan::Args),
    /// Draw one distribution over time, asked for against stored, as a picture or a page
    Report(report::Args),
    /// Compare the database, and Realtime, with what is needed; print what mends each finding
    Doctor(doctor::Args),
    /// Ask the agent of this machine whether it is well: exit code 0 or 1, for health checks
    Health(health::Args),
    /// Make the counters agree with the visits that are stored
    Sync(commands::SyncArgs),
    /// Pause distributions, or everything
    Pause(commands::WhichArgs),
    /// Let distributions go on, or everything
    Resume(commands::WhichArgs),
    /// Store visits now: what is due, or so many of a partner
    Distribute(distribute::Args),
    /// Count a partner's untagged visits into the distributions whose windows hold them
    Adopt(distribute::AdoptArgs),
    /// Have a distribution owe what time before the migration was due
    Backfill(distribute::BackfillArgs),
    /// Remove the generated visits of a distribution, for good
    Purge(distribute::PurgeArgs),
    /// Take everything of visit-pacer out of the database
    Uninstall(distribute::UninstallArgs),
    /// Measure how much, how exactly and how soon visits are stored, beside COPY, pgbench, cron and a Node script
    Bench(bench::Args),
    /// Print the completions of a shell: source them there
    Completions(manual::CompletionsArgs),
    /// Print the manual page, or write one for each command into a folder
    Man(manual::ManArgs),
}

/// Runs what the command line asks for.
pub async fn run(cli: Cli) -> ExitCode {
    let outcome = match cli.command {
        Command::Demo(args) => demo::run(args).await,
        Command::Run(args) => run::run(args).await,
        Command::Migrate(args) => migrate::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Sync(args) => commands::sync(args).await,
        Command::Pause(args) => commands::pause(args).await,
        Command::Resume(args) => commands::resume(args).await,
        Command::Plan(args) => plan::run(args).await,
        Command::Report(args) => report::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Health(args) => health::run(args).await,
        Command::Distribute(args) => distribute::distribute(args).await,
        Command::Adopt(args) => distribute::adopt(args).await,
        Command::Backfill(args) => distribute::backfill(args).await,
        Command::Purge(args) => distribute::purge(args).await,
        Command::Uninstall(args) => distribute::uninstall(args).await,
        Command::Bench(args) => bench::run(args).await,
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if nobody_reads(&error) => ExitCode::SUCCESS,
        Err(error) if error.is::<status::Unwell>() => {
            // Its line is on standard output already, where monitors read it.
            let unwell = error.downcast_ref::<status::Unwell>();
            ExitCode::from(unwell.map_or(status::UNKNOWN, |unwell| unwell.0))
        }
        Err(error) => {
            log::failure(&format!("{error:#}"));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Whether it is the end of a pipe, such as into `head`.
fn nobody_reads(error: &anyhow::Error) -> bool {
    let pipe = error.downcast_ref::<std::io::Error>();
    pipe.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn exit_code(error: &anyhow::Error) -> u8 {
    const FAILED: u8 = 1;
    const EX_CONFIG: u8 = 78;
    let refused = error
        .downcast_ref::<Failure>()
        .is_some_and(|failure| failure.policy().halts);
    let exposed = error.is::<Exposed>();
    if error.is::<SettingError>()
        || error.is::<Unfit>()
        || error.is::<NeedsSession>()
        || refused
        || exposed
    {
        EX_CONFIG
    } else {
        FAILED
    }
}

/// The database of a command that asks now and then: not worth a look whether a transaction pooler stands in between.
fn database() -> anyhow::Result<Database> {
    Ok(Environment::load()?.database()?.in_transactions())
}

/// A connection for a command that asks once.
async fn connect() -> anyhow::Result<Connection> {
    Ok(database()?.connect().await?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
