//! `visit-pacer distribute`, `adopt`, `backfill`, `purge` and `uninstall`: the SQL functions as commands.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Context as _, ensure};
use uuid::Uuid;

use super::connection::connect;
use super::log;
use super::output::output;
use crate::domain::partner::PartnerId;
use crate::postgres::sql_functions;

/// Restores the user's tables as they were.
const UNINSTALL: &str = include_str!("../../deploy/supabase/uninstall.sql");
/// The largest number of calls of one purge; each removes up to 100,000 visits.
const PURGE_CALLS: u32 = 10_000;

/// Flags of `distribute`.
#[derive(clap::Args)]
pub struct Args {
    /// Partner whose active distributions receive visits at once [default: store what is due now for all]
    #[arg(long, value_name = "ID", requires = "visits")]
    partner: Option<PartnerId>,
    /// Number of visits, 1 to 10000
    #[arg(long, value_name = "N", requires = "partner", value_parser = clap::value_parser!(i32).range(1..=10_000))]
    visits: Option<i32>,
}

/// Flags of `adopt`.
#[derive(clap::Args)]
pub struct AdoptArgs {
    /// Partner
    #[arg(long, value_name = "ID")]
    partner: PartnerId,
}

/// Flags of `backfill`.
#[derive(clap::Args)]
pub struct BackfillArgs {
    /// Distribution
    #[arg(long, value_name = "ID")]
    distribution: Uuid,
}

/// Flags of `purge`.
#[derive(clap::Args)]
pub struct PurgeArgs {
    /// Distribution, also a deleted one
    #[arg(long, value_name = "ID")]
    distribution: Uuid,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
}

/// Flags of `uninstall`.
#[derive(clap::Args)]
pub struct UninstallArgs {
    /// Keep the generated visits, and the columns that label them
    #[arg(long)]
    keep_visits: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
}

/// Stores visits now.
pub async fn distribute(args: Args) -> anyhow::Result<()> {
    let mut connection = connect().await?;
    let rows =
        sql_functions::distribute(&mut connection, args.partner.as_ref().zip(args.visits)).await?;
    for row in &rows {
        output!(
            "{}  {} visits added  {}",
            row.partner_id
                .as_ref()
                .map_or_else(String::new, PartnerId::to_string),
            row.visits_added,
            row.message.as_deref().unwrap_or_default()
        )?;
    }
    if rows.is_empty() {
        output!("nothing to do: no distribution is active")?;
    }
    Ok(())
}

/// Tags a partner's untagged visits.
pub async fn adopt(args: AdoptArgs) -> anyhow::Result<()> {
    let mut connection = connect().await?;
    let rows = sql_functions::adopt(&mut connection, &args.partner).await?;
    for row in &rows {
        let distribution = row
            .distribution_id
            .map_or_else(String::new, |id| format!("{id}  "));
        output!(
            "{distribution}{}",
            row.message.as_deref().unwrap_or_default()
        )?;
    }
    if rows.is_empty() {
        output!(
            "nothing to do: the partner has no untagged visits in the window of a distribution"
        )?;
    }
    Ok(())
}

/// Adds the time before the migration to a distribution.
pub async fn backfill(args: BackfillArgs) -> anyhow::Result<()> {
    let mut connection = connect().await?;
    let message = sql_functions::backfill(&mut connection, args.distribution).await?;
    output!("{message}")?;
    Ok(())
}

/// Removes the generated visits of one distribution.
pub async fn purge(args: PurgeArgs) -> anyhow::Result<()> {
    let mut connection = connect().await?;
    let stored = sql_functions::generated(&mut connection, Some(args.distribution)).await?;
    if stored == 0 {
        output!(
            "nothing to do: distribution {} has no stored visits",
            args.distribution
        )?;
        return Ok(());
    }
    confirm(
        args.yes,
        &format!(
            "This removes {stored} generated visits of distribution {}. They are never stored again.",
            args.distribution
        ),
    )?;
    let mut removed = 0;
    for _ in 0..PURGE_CALLS {
        let now = sql_functions::purge(&mut connection, args.distribution).await?;
        removed += now;
        if now == 0 {
            break;
        }
    }
    output!("removed {removed} visits")?;
    Ok(())
}

/// Removes visit-pacer from the database.
pub async fn uninstall(args: UninstallArgs) -> anyhow::Result<()> {
    log::init_stderr(log::LogFormat::Human); // the notices of the database name what is restored
    let mut connection = connect().await?;
    let stored = sql_functions::generated(&mut connection, None).await?;
    let (keep, visits) = if args.keep_visits {
        ("yes", "stay, with their labels")
    } else {
        ("no", "are removed too")
    };
    confirm(
        args.yes,
        &format!(
            "This removes visit-pacer from the database. The {stored} generated visits {visits}."
        ),
    )?;
    let sql = format!("set local visit_pacer.keep_visits = '{keep}';\n{UNINSTALL}");
    sql_functions::script(&mut connection, sql).await?;
    output!("done: the tables are as they were before visit-pacer")?;
    Ok(())
}

/// Asks for confirmation; without a terminal only `--yes` gives it.
fn confirm(yes: bool, what: &str) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    ensure!(
        std::io::stdin().is_terminal(),
        "{what} There is no terminal to confirm on: add --yes"
    );
    write!(std::io::stdout(), "{what} Continue? [y/N] ")?;
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .context("cannot read the answer")?;
    let confirmed = matches!(answer.trim(), "y" | "Y" | "yes");
    ensure!(confirmed, "nothing was changed");
    Ok(())
}
