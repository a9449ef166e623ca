//! `visit-pacer demo`: everything on this machine, from one command.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::log;
use super::run::{LISTEN, MAX_VISITS_PER_SECOND};
use crate::demo::server::default_data_dir;
use crate::demo::stack::{DATABASE, Options, Stack, write_private};
use crate::domain::secret::Secret;
use crate::postgres::link::Database;
use crate::realtime::{Endpoint, websocket_url};
use crate::runtime::serve::{Service, asked_to_stop, serve};
use crate::runtime::snapshot::Snapshot;

const DB_PORT: u16 = 55_432;
const REALTIME_PORT: u16 = 54_421;

/// Flags of `demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Where everything is kept between runs [default: $XDG_DATA_HOME/visit-pacer/demo]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Write DATABASE_URL, SUPABASE_URL, … to this file when all is ready
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Where the agent serves /healthz, /readyz and /metrics [default: 127.0.0.1:8787, or a free port]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Postgres's port; 0, or one that is taken: any free one
    #[arg(long, value_name = "N", default_value_t = DB_PORT)]
    db_port: u16,
    /// Realtime's port, likewise
    #[arg(long, value_name = "N", default_value_t = REALTIME_PORT)]
    realtime_port: u16,
    /// Start without sample rows
    #[arg(long)]
    empty: bool,
    /// Start Postgres and Realtime, but no agent
    #[arg(long)]
    stack_only: bool,
    /// Stop after this time, such as 90s or 5m
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    stop_after: Option<Duration>,
}

/// Starts the stack and the agent, until Ctrl-C or the end of `--for`.
pub async fn run(args: Args) -> anyhow::Result<()> {
    log::init_stderr();
    let data_dir = args.data_dir.clone().map_or_else(default_data_dir, Ok)?;
    let listener = listener(args.listen).await?;
    info!("starting Postgres in {}", data_dir.display());
    let stack = Stack::start(Options {
        data_dir,
        db_port: args.db_port,
        realtime_port: args.realtime_port,
        sample: !args.empty,
    })
    .await?;
    let served = with_stack(&stack, listener, &args).await;
    stack.stop().await?;
    served
}

async fn with_stack(stack: &Stack, listener: TcpListener, args: &Args) -> anyhow::Result<()> {
    let listen = listener.local_addr()?;
    if let Some(path) = &args.env_file {
        write_private(path, &env_file(stack, listen))?;
    }
    info!("Postgres is ready: psql '{}'", stack.database_url());
    info!(
        "Realtime (a stand-in for development) is ready at {}",
        stack.realtime.supabase_url()
    );
    let shutdown = CancellationToken::new();
    let agent = async {
        if args.stack_only {
            drop(listener);
            shutdown.cancelled().await;
            return Ok(());
        }
        let (snapshot, _unseen) = watch::channel(Snapshot::default());
        let service = service(stack, listener, snapshot)?;
        serve(service, shutdown.clone()).await
    };
    tokio::pin!(agent);
    let stop_after = async {
        match args.stop_after {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        served = &mut agent => return served,
        asked = asked_to_stop() => asked?,
        () = stop_after => {}
    }
    info!("stopping");
    shutdown.cancel();
    agent.await
}

fn service(
    stack: &Stack,
    listener: TcpListener,
    snapshot: watch::Sender<Snapshot>,
) -> anyhow::Result<Service> {
    let url = websocket_url(&stack.realtime.supabase_url())?;
    Ok(Service {
        database: Database::from_url(&Secret::new(stack.database_url()))?,
        endpoint: Endpoint::new(url.as_str(), stack.key.clone())?,
        max_visits_per_second: MAX_VISITS_PER_SECOND,
        listener,
        snapshot,
    })
}

/// The address asked for; without one the usual, or any free one where that is taken.
async fn listener(asked: Option<SocketAddr>) -> anyhow::Result<TcpListener> {
    if let Some(address) = asked {
        return crate::web::bind(address).await;
    }
    match TcpListener::bind(LISTEN).await {
        Ok(listener) => Ok(listener),
        Err(_taken) => TcpListener::bind("127.0.0.1:0")
            .await
            .context("listen on a free port of 127.0.0.1"),
    }
}

fn env_file(stack: &Stack, listen: SocketAddr) -> String {
    format!(
        "DATABASE_URL={}\nSUPABASE_URL={}\nSUPABASE_SERVICE_ROLE_KEY={}\nREALTIME_URL={}\nVISIT_PACER_LISTEN={listen}\n",
        stack.postgres.url(DATABASE),
        stack.realtime.supabase_url(),
        stack.key.expose(),
        stack.realtime.url(),
    )
}

/// `90s`, `5m`, `2h`, or plain seconds.
fn duration(text: &str) -> anyhow::Result<Duration> {
    let (number, seconds) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) if text.ends_with('m') => (number, 60),
        Some(number) if text.ends_with('h') => (number, 3_600),
        Some(number) => (number, 1),
        None => (text, 1),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| anyhow!("use a number with s, m or h, such as 90s or 5m"))?;
    Ok(Duration::from_secs(number.saturating_mul(seconds)))
}
