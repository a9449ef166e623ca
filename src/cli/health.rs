//! `visit-pacer health`: queries the agent on this machine, for health checks of containers without shell and curl.
//!
//! Uses only `/healthz` and `/readyz`, which need no token. Fails (exit code 1) with the agent's answer, or why there was none.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;

use super::output::output;
use super::run::LISTEN;
use crate::settings::Environment;

/// An agent that takes longer to answer is unhealthy.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Flags of `health`.
#[derive(clap::Args)]
pub struct Args {
    /// Address of the agent, as given to `run`
    #[arg(long, env = "VISIT_PACER_LISTEN", value_name = "ADDR", default_value = LISTEN)]
    listen: SocketAddr,
    /// Check that the agent is ready, rather than that its loop makes progress
    #[arg(long)]
    ready: bool,
}

/// Queries once.
pub async fn run(args: Args) -> anyhow::Result<()> {
    // The address may be in a `.env` that cannot be read.
    Environment::load()?;
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let url = format!("http://{}{path}", reachable(args.listen));
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(TIMEOUT)
        .build()?;
    let answer = client.get(&url).send().await;
    let mut answer = answer.with_context(|| {
        format!("no answer from {url}; check that `visit-pacer run` is running with this --listen")
    })?;
    let status = answer.status();
    // The agent answers with one line.
    let text = answer.chunk().await?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    anyhow::ensure!(status.is_success(), "{url}: {status}: {}", text.trim());
    output!("{}", text.trim())?;
    Ok(())
}

/// The loopback address of an agent that listens on all addresses.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let loopback = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(loopback, listen.port())
}
