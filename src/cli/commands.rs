//! `visit-pacer pause`, `resume` and `sync`.

use anyhow::ensure;
use uuid::Uuid;

use super::connection::connect;
use super::output::output;
use crate::postgres::connection::Connection;
use crate::postgres::status;

/// Flags of `pause` and `resume`.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct WhichArgs {
    /// Ids of distributions
    #[arg(value_name = "ID")]
    ids: Vec<Uuid>,
    /// Everything: while paused nothing is stored, the curves continue, and the backlog drains after the resume
    #[arg(long)]
    all: bool,
}

/// Flags of `sync`.
#[derive(clap::Args)]
pub struct SyncArgs {
    /// Store the missing visits of open windows again, at the rate of their distributions
    #[arg(long)]
    lower: bool,
}

/// Pauses distributions.
pub async fn pause(args: WhichArgs) -> anyhow::Result<()> {
    let mut connection = connect().await?;
    if args.all {
        status::set_paused(&mut connection, true).await?;
        output!("paused everything; `visit-pacer resume --all` resumes")?;
        return Ok(());
    }
    set_active(&mut connection, &args.ids, false).await
}

/// Resumes distributions.
pub async fn resume(args: WhichArgs) -> anyhow::Result<()> {
    let mut connection = connect().await?;
    if args.all {
        let backlog = status::set_paused(&mut connection, false).await?;
        output!(
            "resumed everything; a backlog of {backlog} visits drains at each distribution's catch_up"
        )?;
        return Ok(());
    }
    set_active(&mut connection, &args.ids, true).await
}

async fn set_active(connection: &mut Connection, ids: &[Uuid], active: bool) -> anyhow::Result<()> {
    let found = status::set_active(connection, ids, active).await?;
    for id in &found {
        output!("{} {id}", if active { "resumed" } else { "paused" })?;
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

/// Makes the counters agree with the stored visits.
pub async fn sync(args: SyncArgs) -> anyhow::Result<()> {
    let rows = status::sync(&mut connect().await?, args.lower).await?;
    for row in &rows {
        output!(
            "{}  {} -> {}  {}",
            row.distribution_id,
            row.counted_before.unwrap_or(0),
            row.counted_now.unwrap_or(0),
            row.message.as_deref().unwrap_or("")
        )?;
    }
    if rows.is_empty() {
        output!("in sync: every counter agrees with the stored visits")?;
    }
    Ok(())
}
