//! `visit-pacer doctor`: what is wrong, why it matters, and what mends it.

use anyhow::ensure;
use serde_json::json;

use crate::domain::finding::{report, stops};
use crate::runtime::doctor;
use crate::settings::Environment;

/// Flags of `doctor`.
#[derive(clap::Args)]
pub struct Args {
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Looks, and prints; fails where a finding stops the agent.
#[expect(clippy::print_stdout, reason = "the command's output")]
pub async fn run(args: Args) -> anyhow::Result<()> {
    let environment = Environment::load()?;
    let findings = doctor::examine(&environment.database()?, environment.realtime()).await;
    let stopped = stops(&findings);
    if args.json {
        let document = json!({ "ok": !stopped, "findings": findings });
        println!("{}", serde_json::to_string_pretty(&document)?);
    } else {
        println!("{}", report(&findings));
    }
    ensure!(
        !stopped,
        "the agent cannot work like this: mend what stops it"
    );
    Ok(())
}
