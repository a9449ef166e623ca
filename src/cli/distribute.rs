//! `visit-pacer distribute`, `adopt`, `backfill`, `purge` and `uninstall`: the SQL functions, for people and scripts.

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Context as _, ensure};
use uuid::Uuid;

use super::{connect, log};
use crate::postgres::failure::Failure;
use crate::postgres::sql_functions;

/// Leaves the user's tables as they were.
const UNINSTALL: &str = include_str!("../../deploy/supabase/uninstall.sql");
/// Calls that one purge makes at the most; each removes up to 100,000 visits.
const PURGE_CALLS: u32 = 10_000;

/// Flags of `distribute`.
#[derive(clap::Args)]
pub struct Args {
    /// A partner, whose active distributions get visits at once [default: everybody gets what is due now]
    #[arg(long, value_name = "ID", requires = "visits")]
    partner: Option<Uuid>,
    /// How many, 1 to 10000
    #[arg(long, value_name = "N", requires = "partner", value_parser = clap::value_parser!(i32).range(1..=10_000))]
    visits: Option<i32>,
}

/// Flags of `adopt`.
#[derive(clap::Args)]
pub struct AdoptArgs {
    /// The partner whose untagged visits are counted into the distributions that hold them
    #[arg(long, value_name = "ID")]
    partner: Uuid,
}

/// Flags of `backfill`.
#[derive(clap::Args)]
pub struct BackfillArgs {
    /// The distribution, which then owes what time before the migration was due
    #[arg(long, value_name = "ID")]
    distribution: Uuid,
}

/// Flags of `purge`.
#[derive(clap::Args)]
pub struct PurgeArgs {
    /// The distribution, also one that is deleted
    #[arg(long, value_name = "ID")]
    distribution: Uuid,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Flags of `uninstall`.
#[derive(clap::Args)]
pub struct UninstallArgs {
    /// Keep the generated visits, and the columns that say what they are
    #[arg(long)]
    keep_visits: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// Stores visits by hand.
#[expect(clippy::print_stdout, reason = "the command's output")]
pub async fn distribute(args: Args) -> anyhow::Result<()> {
    let mut connection = connect().await?;
    let rows = sql_functions::distribute(&mut connection, args.partner.zip(args.visits))
        .await
        .map_err(Failure::from)?;
    for row in &rows {
        println!(
            "{}  {} visits added  {}",
            row.partner_id.unwrap_or_default(),
            row.visits_added,
            row.message.as_deref().unwrap_or_default()
        );
    }
    if rows.is_empty() {
        println!("nothing to do: no distribution is active");
    }
    Ok(())
}

/// Counts a partner's untagged visits in.
#[expect(clippy::print_stdout, reason = "the command's output")]
pub async fn adopt(args: AdoptArgs) -> anyhow::Result<()> {
    let mut connection = connect().await?;
    let rows = sql_functions::adopt(&mut connection, args.partner)
        .await
        .map_err(Failure::from)?;
    for row in &rows {
        let distribution = row
            .distribution_id
            .map_or_else(String::new, |id| format!("{id}  "));
        println!(
            "{distribution}{}",
            row.message.as_deref().unwrap_or_default()
        );
    }
    if rows.is_empty() {
        println!(
            "nothing to do: the partner has no untagged visits in the window of a distribution"
        );
    }
    Ok(())
}

/// Has the time before the migration made up for.
#[expect(clippy::print_stdout, reason = "the command's output")]
pub async fn backfill(args: BackfillArgs) -> anyhow::Result<()> {
    let mut connection = connect().await?;
    let message = sql_functions::backfill(&mut connection, args.distribution)
        .await
        .map_err(Failure::from)?;
    println!("{message}");
    Ok(())
}

/// Removes the generated visits of one distribution.
#[expect(clippy::print_stdout, reason = "the command's output")]
pub async fn purge(args: PurgeArgs) -> anyhow::Result<()> {
    let mut connection = connect().await?;
    let stored = sql_functions::generated(&mut connection, Some(args.distribution))
        .await
        .map_err(Failure::from)?;
    if stored == 0 {
        println!(
            "nothing to do: distribution {} has no stored visits",
            args.distribution
        );
        return Ok(());
    }
    agreed(
        args.yes,
        &format!(
            "{stored} generated visits of distribution {} are removed; they are never stored again.",
            args.distribution
        ),
    )?;
    let mut removed = 0;
    for _ in 0..PURGE_CALLS {
        let now = sql_functions::purge(&mut connection, args.distribution)
            .await
            .map_err(Failure::from)?;
        removed += now;
        if now == 0 {
            break;
        }
    }
    println!("removed {removed} visits");
    Ok(())
}

/// Takes everything of ours out of the database.
#[expect(clippy::print_stdout, reason = "the command's output")]
pub async fn uninstall(args: UninstallArgs) -> anyhow::Result<()> {
    log::init_stderr(log::LogFormat::Human); // the database's notices name what is restored
    let mut connection = connect().await?;
    let stored = sql_functions::generated(&mut connection, None)
        .await
        .map_err(Failure::from)?;
    let (keep, visits) = if args.keep_visits {
        ("yes", "stay, and so do their labels")
    } else {
        ("no", "are removed")
    };
    agreed(
        args.yes,
        &format!(
            "Everything of visit-pacer is removed from this database; the {stored} generated visits {visits}."
        ),
    )?;
    let sql = format!("set local visit_pacer.keep_visits = '{keep}';\n{UNINSTALL}");
    sql_functions::script(&mut connection, sql)
        .await
        .map_err(Failure::from)?;
    println!("done: your tables are as they were");
    Ok(())
}

/// Goes on where a person agrees; without a terminal only `--yes` does.
#[expect(clippy::print_stdout, reason = "the command's question")]
fn agreed(yes: bool, what: &str) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    ensure!(
        std::io::stdin().is_terminal(),
        "{what} There is no terminal to ask on: add --yes"
    );
    print!("{what} Go on? [y/N] ");
    std::io::stdout().flush().context("ask")?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .context("read the answer")?;
    let agrees = matches!(answer.trim(), "y" | "Y" | "yes");
    ensure!(agrees, "nothing was changed");
    Ok(())
}
