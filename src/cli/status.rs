//! `visit-pacer status`
use super::connect;
use crate::postgres::admin;
use crate::postgres::fault::Fault;

/// Flags of `status`.
#[derive(clap::Args)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Shows it.
#[expect(clippy::print_stdout, reason = "the command's output")]
pub async fn run(args: Args) -> anyhow::Result<()> {
    let mut connection = connect().await?;
    let rows = admin::status(&mut connection).await.map_err(Fault::from)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        for row in rows {
            println!("{row:?}");
        }
    }
    Ok(())
}
