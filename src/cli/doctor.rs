//! `visit-pacer doctor`: prints what is wrong, why it matters, and how to fix it.

use anyhow::ensure;
use serde_json::json;

use super::output::output;
use crate::domain::finding::{has_errors, report};
use crate::runtime::doctor;
use crate::settings::Environment;

/// Flags of `doctor`.
#[derive(clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs the checks and prints the findings; fails if one is an error.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let environment = Environment::load()?;
    let findings = doctor::examine(&environment.database()?, environment.realtime()).await;
    let failed = has_errors(&findings);
    if args.json {
        let document = json!({ "ok": !failed, "findings": findings });
        output!("{}", serde_json::to_string_pretty(&document)?)?;
    } else {
        output!("{}", report(&findings))?;
    }
    ensure!(
        !failed,
        "the agent cannot work until the errors above are fixed"
    );
    Ok(())
}
