//! The command line: one file per subcommand, the exit codes, the log.
//!
//! Exit codes: 0 success, 1 failure, 2 usage, 78 (`EX_CONFIG`) a setting missing or malformed, the schema missing or old, or the
//! login or the database refused. `status --check` has those of monitoring plugins.

#[cfg(feature = "bench")]
pub mod bench;
pub mod commands;
pub mod connection;
#[cfg(feature = "demo")]
pub mod demo;
pub mod distribute;
pub mod doctor;
pub mod duration;
mod environment;
pub mod health;
pub mod live_table;
pub mod log;
pub mod log_buffer;
pub mod manual;
pub mod migrate;
pub mod output;
pub mod plan;
pub mod report;
pub mod run;
pub mod screen;
pub mod snapshot;
pub mod status;
pub mod table;

use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::postgres::failure::Failure;
use crate::postgres::reconnect::NeedsSession;
use crate::runtime::serve::Unfit;
use crate::settings::{Environment, SettingError};
use crate::web::guard::Exposed;

/// Store planned visits at an exact rate, beside Supabase
///
/// The agent follows every edit of the table visit_distribution. The visits that it stores are synthetic and labelled with the id
/// of their distribution.
#[derive(Parser)]
#[command(name = "visit-pacer", version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start Postgres, Realtime, sample data and the agent on this machine
    #[cfg(feature = "demo")]
    Demo(demo::Args),
    /// Run the agent
    #[command(after_help = run::ENVIRONMENT)]
    Run(run::Args),
    /// Apply pending database migrations
    Migrate(migrate::Args),
    /// Show the status of all distributions
    Status(status::Args),
    /// Show what a distribution would do before it is active: rate, end, disk space
    Plan(plan::Args),
    /// Draw one distribution over time, visits due against visits stored, as SVG or HTML
    Report(report::Args),
    /// Check the database and Realtime; print SQL that fixes each finding
    Doctor(doctor::Args),
    /// Query the agent on this machine, for container health checks (exit code 0 or 1)
    Health(health::Args),
    /// Make the counters agree with the stored visits
    Sync(commands::SyncArgs),
    /// Pause distributions, or everything
    Pause(commands::WhichArgs),
    /// Resume distributions, or everything
    Resume(commands::WhichArgs),
    /// Store visits now: those that are due, or a number for one partner
    Distribute(distribute::Args),
    /// Tag a partner's untagged visits with the distributions whose windows contain them
    Adopt(distribute::AdoptArgs),
    /// Make a distribution store the visits of the time before the migration too
    Backfill(distribute::BackfillArgs),
    /// Delete the generated visits of a distribution permanently
    Purge(distribute::PurgeArgs),
    /// Remove visit-pacer from the database
    Uninstall(distribute::UninstallArgs),
    /// Measure throughput, precision, reaction time and footprint, beside COPY, pgbench, cron and a Node.js script
    #[cfg(feature = "bench")]
    Bench(bench::Args),
    /// Print shell completions
    Completions(manual::CompletionsArgs),
    /// Print the manual page, or write one for each command into a folder
    Man(manual::ManArgs),
}

/// Parses the command line, with the environment and `.env` behind its flags. Ends the process after `--help` and wrong usage.
pub fn parse() -> Result<Cli, SettingError> {
    let mut command = Cli::command();
    // A `.env` that cannot be read is reported by the command that needs it; `--help` needs none.
    if let Ok(environment) = Environment::load() {
        if !environment.skipped_lines().is_empty() {
            let lines: Vec<String> = (environment.skipped_lines().iter())
                .map(usize::to_string)
                .collect();
            log::warning(&format!(
                "skipped lines of .env that are not NAME=value: {}",
                lines.join(", ")
            ));
        }
        command = environment::with_env_file(command, &environment);
    }
    let parsed = command.try_get_matches();
    let parsed = parsed.and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|error| environment::malformed_setting(&error).unwrap_or_else(|| error.exit()))
}

/// Runs the subcommand of this process.
pub async fn run() -> ExitCode {
    let outcome = match parse() {
        Ok(cli) => dispatch(cli.command).await,
        Err(error) => Err(error.into()),
    };
    let Err(error) = outcome else {
        return ExitCode::SUCCESS;
    };
    if is_closed_pipe(&error) {
        return ExitCode::SUCCESS;
    }
    if let Some(status::CheckFailed(code)) = error.downcast_ref() {
        return ExitCode::from(*code);
    }
    let error = with_advice(error);
    log::failure(&format!("{error:#}"));
    ExitCode::from(exit_code(&error))
}

async fn dispatch(command: Command) -> anyhow::Result<()> {
    match command {
        #[cfg(feature = "demo")]
        Command::Demo(args) => demo::run(args).await,
        Command::Run(args) => run::run(args).await,
        Command::Migrate(args) => migrate::run(args).await,
        Command::Status(args) => status::run(args).await,
        Command::Plan(args) => plan::run(args).await,
        Command::Report(args) => report::run(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Health(args) => health::run(args).await,
        Command::Sync(args) => commands::sync(args).await,
        Command::Pause(args) => commands::pause(args).await,
        Command::Resume(args) => commands::resume(args).await,
        Command::Distribute(args) => distribute::distribute(args).await,
        Command::Adopt(args) => distribute::adopt(args).await,
        Command::Backfill(args) => distribute::backfill(args).await,
        Command::Purge(args) => distribute::purge(args).await,
        Command::Uninstall(args) => distribute::uninstall(args).await,
        #[cfg(feature = "bench")]
        Command::Bench(args) => bench::run(args).await,
        Command::Completions(args) => manual::completions(&args, Cli::command()),
        Command::Man(args) => manual::man(&args, Cli::command()),
    }
}

/// Whether standard output is a pipe whose reader ended, such as `head`.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<std::io::Error>();
    error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Turns an error of the database into a [`Failure`], whose text has the server's message and what to do.
fn with_advice(error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<sqlx::Error>() {
        Ok(error) => Failure::from(error).into(),
        Err(error) => error,
    }
}

fn exit_code(error: &anyhow::Error) -> u8 {
    const FAILED: u8 = 1;
    const EX_CONFIG: u8 = 78;
    let failure = error.downcast_ref::<Failure>();
    if failure.is_some_and(|failure| failure.policy().halts)
        || error.is::<SettingError>()
        || error.is::<Unfit>()
        || error.is::<NeedsSession>()
        || error.is::<Exposed>()
    {
        EX_CONFIG
    } else {
        FAILED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
