//! `visit-pacer migrate`: brings the schema.

use std::io::Write as _;

use super::log;
use crate::postgres::failure::Failure;
use crate::postgres::migrations::{self, MIGRATIONS, MigrateError};
use crate::settings::Environment;

/// Flags of `migrate`.
#[derive(clap::Args)]
pub struct Args {
    /// Print the SQL of all files and change nothing
    #[arg(long)]
    print: bool,
}

/// Applies what is missing, or prints everything.
#[expect(clippy::print_stdout, reason = "the command's output")]
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
    log::init_stderr(log::LogFormat::Human); // the database's notices name what was replaced
    let database = Box::pin(Environment::load()?.database()?.recognised()).await?;
    database.keeps_sessions()?;
    let mut connection = database.connect().await?;
    let applied = match migrations::apply(connection.simple()).await {
        Err(MigrateError::Database(error)) => return Err(Failure::from(error).into()),
        applied => applied?,
    };
    for name in &applied {
        println!("applied {name}");
    }
    if applied.is_empty() {
        println!("nothing to do: the schema is complete");
    }
    Ok(())
}
