//! `visit-pacer health`: asks the agent of this machine, as a container's health check that has no shell and no curl.
//!
//! Knows only `/healthz` and `/readyz`, which need no token. Fails (exit code 1) with what the agent said, or why it said nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;

use super::run::LISTEN;
use crate::settings::Environment;

/// An agent that takes longer to answer is not well.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// Flags of `health`.
#[derive(clap::Args)]
pub struct Args {
    /// Where the agent listens, as told to `run` [default: 127.0.0.1:8787]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Ask whether it does all of its work, rather than whether its loop turns
    #[arg(long)]
    ready: bool,
}

/// Asks once.
#[expect(clippy::print_stdout, reason = "the command's output")]
pub async fn run(args: Args) -> anyhow::Result<()> {
    let environment = Environment::load()?;
    let listen = environment.flag(args.listen, "listen", LISTEN.parse()?)?;
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let url = format!("http://{}{path}", reachable(listen));
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(ANSWERS_WITHIN)
        .build()?;
    let answer = client.get(&url).send().await;
    let mut answer = answer.with_context(|| {
        format!("nobody answers at {url}; is `visit-pacer run` there, with this --listen?")
    })?;
    let status = answer.status();
    // One line; a longer answer is none of ours.
    let said = answer.chunk().await?.unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    anyhow::ensure!(status.is_success(), "{url}: {status}: {}", said.trim());
    println!("{}", said.trim());
    Ok(())
}

/// An agent that listens everywhere listens on loopback too.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let loopback = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip @ (IpAddr::V4(_) | IpAddr::V6(_)) => ip,
    };
    SocketAddr::new(loopback, listen.port())
}
