//! `visit-pacer demo`: PostgreSQL, Realtime and an agent on this machine, from one command.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use super::log::{self, LogFormat};
use super::log_buffer::LogBuffer;
use super::run::{LISTEN, MAX_VISITS_PER_SECOND};
use super::screen::{self, Screen};
use crate::demo::private_file::write_private;
use crate::demo::server::default_data_dir;
use crate::demo::stack::{DATABASE, Stack, StackOptions};
use crate::domain::secret::Secret;
use crate::domain::transport::ListenBy;
use crate::observe::SelectedDistributions;
use crate::postgres::reconnect::Database;
use crate::postgres::status::{self, StatusRow};
use crate::realtime::{Endpoint, websocket_url};
use crate::runtime::serve::{Service, asked_to_stop, serve};
use crate::runtime::snapshot::Snapshot;
use crate::settings::Environment;
use crate::web;
use crate::web::guard::Access;

const DB_PORT: u16 = 55_432;
const REALTIME_PORT: u16 = 54_421;

/// Flags of `demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Directory of all data, kept between runs [default: $XDG_DATA_HOME/visit-pacer/demo; for root /var/lib/visit-pacer/demo]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Write DATABASE_URL, SUPABASE_URL, … to this file when everything is ready
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// Address of the dashboard, /healthz, /readyz and /metrics [default: 127.0.0.1:8787, or a free port]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// Port of PostgreSQL; if it is 0 or in use, any free port
    #[arg(long, value_name = "N", default_value_t = DB_PORT)]
    db_port: u16,
    /// Port of Realtime; if it is 0 or in use, any free port
    #[arg(long, value_name = "N", default_value_t = REALTIME_PORT)]
    realtime_port: u16,
    /// Start without sample distributions
    #[arg(long)]
    empty: bool,
    /// Start PostgreSQL and Realtime, but no agent
    #[arg(long)]
    stack_only: bool,
    /// Stop after this time, such as 90s or 5m
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    stop_after: Option<Duration>,
}

/// Starts the stack and the agent, until Ctrl-C or the end of `--for`.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let lines = screen::is_possible().then(LogBuffer::default);
    match &lines {
        Some(lines) => log::init(BoxMakeWriter::new(lines.clone()), false),
        None => log::init_stderr(LogFormat::Human),
    }
    let data_dir = args.data_dir.clone().map_or_else(default_data_dir, Ok)?;
    let data = data_dir.display().to_string();
    let listener = listener(args.listen)?;
    info!("Starting PostgreSQL and Realtime with data in {data}");
    let stack = Stack::start(StackOptions {
        data_dir,
        db_port: args.db_port,
        realtime_port: args.realtime_port,
        sample: !args.empty,
    })
    .await?;
    let served = with_stack(&stack, listener, &args, lines).await;
    stack.stop().await?;
    info!("Stopped. The data is kept for the next run; to remove it: rm -r '{data}'");
    served
}

async fn with_stack(
    stack: &Stack,
    listener: TcpListener,
    args: &Args,
    lines: Option<LogBuffer>,
) -> anyhow::Result<()> {
    let listen = listener.local_addr()?;
    if let Some(path) = &args.env_file {
        write_private(path, &env_file(stack, listen))?;
    }
    let shutdown = CancellationToken::new();
    let served = async {
        let served = agent(stack, listener, args.stack_only, shutdown.clone()).await;
        shutdown.cancel();
        served
    };
    let shown = async {
        if let Err(error) = show(stack, lines, &shutdown).await {
            warn!("Cannot show the live table on this terminal; the log continues: {error:#}");
            shutdown.cancelled().await;
        }
        shutdown.cancel();
    };
    let asked = async {
        let asked = until_asked(args.stop_after, &shutdown).await;
        info!("Stopping");
        shutdown.cancel();
        asked
    };
    let (served, (), asked) = tokio::join!(served, shown, asked);
    served.and(asked)
}

async fn agent(
    stack: &Stack,
    listener: TcpListener,
    stack_only: bool,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    if stack_only {
        drop(listener);
        shutdown.cancelled().await;
        return Ok(());
    }
    let (snapshot, _unseen) = watch::channel(Snapshot::default());
    serve(service(stack, listener, snapshot)?, shutdown).await
}

/// Waits for Ctrl-C, SIGTERM, the end of `--for`, or `shutdown`.
async fn until_asked(time: Option<Duration>, shutdown: &CancellationToken) -> anyhow::Result<()> {
    let time_is_over = async {
        match time {
            Some(time) => tokio::time::sleep(time).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        asked = asked_to_stop() => asked,
        () = time_is_over => Ok(()),
        () = shutdown.cancelled() => Ok(()),
    }
}

/// Prints how to connect. On a terminal the live table follows, until `shutdown` or a key.
async fn show(
    stack: &Stack,
    lines: Option<LogBuffer>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let psql = format!("psql '{}'", stack.database_url());
    let Some(lines) = lines else {
        info!("PostgreSQL is ready: {psql}");
        shutdown.cancelled().await;
        return Ok(());
    };
    let database = Database::from_url(&Secret::new(stack.database_url()))?;
    let rows = status::status(&mut database.connect().await?).await?;
    let screen = Screen {
        title: "synthetic visits, each labelled with its distribution",
        keys: &["q stops everything", "p: psql line again"],
        intro: intro(&psql, &rows),
        log: lines,
    };
    screen.show(database, shutdown.clone()).await
}

/// Commands to copy into another terminal, with the ids of existing distributions.
fn intro(psql: &str, rows: &[StatusRow]) -> Vec<String> {
    const INSERT: &str = "\
        with p as (insert into partners (name) values ('Example') returning id) \
        insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit, end_time) \
        select id, 600, 'minute', 120, now() + interval '1 hour' from p;";
    let edits = match (rows.first(), rows.last()) {
        (Some(first), Some(last)) => vec![
            format!(
                "update visit_distribution set is_active = false where id = '{}';",
                first.id
            ),
            format!(
                "update visit_distribution set visits_per_unit = 10 * visits_per_unit where id = '{}';",
                last.id
            ),
        ],
        _none => vec![INSERT.to_owned()],
    };
    let text = |lines: &[&str]| lines.iter().copied().map(str::to_owned).collect();
    let before: Vec<String> = text(&[
        "",
        "All visits stored here are synthetic and labelled with their distribution.",
        "Open another terminal and connect with psql:",
        "",
        psql,
        "",
        "Edit the table there, for example:",
        "",
    ]);
    [
        before,
        edits,
        text(&["", "and watch the effect below.", ""]),
    ]
    .concat()
}

fn service(
    stack: &Stack,
    listener: TcpListener,
    snapshot: watch::Sender<Snapshot>,
) -> anyhow::Result<Service> {
    let access = Access::new(Environment::load()?.token()?, Vec::new(), false, false);
    access.allows(listener.local_addr()?)?;
    let url = websocket_url(&stack.realtime.supabase_url())?;
    Ok(Service {
        database: Database::from_url(&Secret::new(stack.database_url()))?,
        endpoint: Endpoint::new(url.as_str(), stack.key.clone())?,
        listen_by: ListenBy::Auto,
        max_visits_per_second: MAX_VISITS_PER_SECOND,
        metrics_distributions: SelectedDistributions::default(),
        listener,
        access,
        snapshot,
    })
}

/// The requested address; by default the usual one, or a free port if that is in use.
fn listener(asked: Option<SocketAddr>) -> anyhow::Result<TcpListener> {
    if let Some(address) = asked {
        return web::bind(address);
    }
    web::bind(LISTEN.parse()?).or_else(|_taken| web::bind(SocketAddr::from(([127, 0, 0, 1], 0))))
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
