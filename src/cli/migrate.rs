//! `visit-pacer migrate`: applies pending migrations.

use std::io::Write as _;

use super::log;
use super::output::output;
use crate::postgres::failure::Failure;
use crate::postgres::migrations::{self, MIGRATIONS, MigrateError};
use crate::settings::Environment;

/// Flags of `migrate`.
#[derive(clap::Args)]
pub struct Args {
    /// Print the SQL of all migrations and change nothing
    #[arg(long)]
    print: bool,
}

/// Applies the pending migrations, or prints all.
pub async fn run(args: Args) -> anyhow::Result<()> {
    if args.print {
        for file in MIGRATIONS {
            writeln!(
                std::io::stdout(),
                "-- {}\nbegin;\n{}\ncommit;\n",
                file.name,
                file.sql.trim_end()
            )?;
        }
        return Ok(());
    }
    log::init_stderr(log::LogFormat::Human); // the notices of the database name what was replaced
    let database = Box::pin(Environment::load()?.database()?.recognised()).await?;
    database.keeps_sessions()?;
    let mut connection = database.connect().await?;
    let applied = match migrations::apply(connection.simple()).await {
        Err(MigrateError::Database(error)) => return Err(Failure::from(error).into()),
        applied => applied?,
    };
    for name in &applied {
        output!("applied {name}")?;
    }
    if applied.is_empty() {
        output!("nothing to do: the schema is up to date")?;
    }
    Ok(())
}
