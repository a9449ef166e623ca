//! `visit-pacer pause`, `resume` and `sync`: edits of the table and one call, for people and scripts.

use anyhow::ensure;
use uuid::Uuid;

use super::connect;
use crate::postgres::connection::Connection;
use crate::postgres::failure::Failure;
use crate::postgres::status;

/// Flags of `pause` and `resume`.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct WhichArgs {
    /// Distributions, by id
    #[arg(value_name = "ID")]
    ids: Vec<Uuid>,
    /// Everything, by the control row: nothing is stored, the curves go on, and what is owed drains afterwards
    #[arg(long)]
    all: bool,
}

/// Flags of `sync`.
#[derive(clap::Args)]
pub struct SyncArgs {
    /// Have the missing visits of open windows stored again, at the pace of their rows
    #[arg(long)]
    lower: bool,
}

/// Pauses.
#[expect(clippy::print_stdout, reason = "the command's output")]
pub async fn pause(args: WhichArgs) -> anyhow::Result<()> {
    let mut connection = connect().await?;
    if args.all {
        status::set_paused(&mut connection, true)
            .await
            .map_err(Failure::from)?;
        println!("paused everything; `visit-pacer resume --all` goes on");
        return Ok(());
    }
    set_active(&mut connection, &args.ids, false).await
}

/// Lets go on.
#[expect(clippy::print_stdout, reason = "the command's output")]
pub async fn resume(args: WhichArgs) -> anyhow::Result<()> {
    let mut connection = connect().await?;
    if args.all {
        let owed = status::set_paused(&mut connection, false)
            .await
            .map_err(Failure::from)?;
        println!("everything goes on; {owed} visits are owed and drain at each row's catch_up");
        return Ok(());
    }
    set_active(&mut connection, &args.ids, true).await
}

#[expect(clippy::print_stdout, reason = "the command's output")]
async fn set_active(connection: &mut Connection, ids: &[Uuid], active: bool) -> anyhow::Result<()> {
    let found = status::set_active(connection, ids, active)
        .await
        .map_err(Failure::from)?;
    for id in &found {
        println!("{} {id}", if active { "resumed" } else { "paused" });
    }
    let unknown: Vec<String> = ids
        .iter()
        .filter(|id| !found.contains(id))
        .map(Uuid::to_string)
        .collect();
    ensure!(
        unknown.is_empty(),
        "no distribution has the id {}",
        unknown.join(", ")
    );
    Ok(())
}

/// Makes the counters agree with what is stored.
#[expect(clippy::print_stdout, reason = "the command's output")]
pub async fn sync(args: SyncArgs) -> anyhow::Result<()> {
    let mut connection = connect().await?;
    let rows = status::sync(&mut connection, args.lower)
        .await
        .map_err(Failure::from)?;
    for row in &rows {
        println!(
            "{}  {} -> {}  {}",
            row.distribution_id,
            row.counted_before.unwrap_or(0),
            row.counted_now.unwrap_or(0),
            row.message.as_deref().unwrap_or("")
        );
    }
    if rows.is_empty() {
        println!("in sync: every counter agrees with the visits that are stored");
    }
    Ok(())
}
