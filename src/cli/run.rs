//! `visit-pacer run`: the agent, configured by the environment.

use std::net::SocketAddr;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::log::{self, LogFormat};
use crate::domain::transport::ListenBy;
use crate::observe::RowsAsked;
use crate::runtime::serve::{Service, asked_to_stop, serve};
use crate::runtime::snapshot::Snapshot;
use crate::settings::{Environment, SettingError};
use crate::web;
use crate::web::guard::Access;

/// Where the agent answers unless told otherwise.
pub const LISTEN: &str = "127.0.0.1:8787";
/// The bound of the whole agent unless told otherwise.
pub const MAX_VISITS_PER_SECOND: u32 = 2_000;

/// The environment, in the help.
pub const ENVIRONMENT: &str = "\
Environment (also read from NAME_FILE, systemd credentials and .env; then as `supabase status -o env` has it):
  DATABASE_URL, or SUPABASE_DB_URL                   the project's Postgres: direct or session pooler
  SUPABASE_URL                                       the project's URL, such as https://REF.supabase.co
  SUPABASE_SERVICE_ROLE_KEY, or SUPABASE_SECRET_KEY  the project's secret key
  SUPABASE_JWT_SECRET                                instead of, or beside, a key: joins with short-lived tokens that it signs
                                                     for SUPABASE_JWT_ROLE [default: service_role]
  REALTIME_URL                                       Realtime's websocket, where it is not below SUPABASE_URL
  VISIT_PACER_TOKEN                                  asked for by the dashboard; needed where --listen is not a loopback address
  VISIT_PACER_LISTEN, VISIT_PACER_READ_ONLY, VISIT_PACER_METRICS_OPEN, VISIT_PACER_ALLOWED_HOST, VISIT_PACER_LISTEN_BY, VISIT_PACER_MAX_VISITS_PER_SECOND,
  VISIT_PACER_METRICS_ROWS, VISIT_PACER_LOG, VISIT_PACER_LOG_FORMAT";

/// Flags of `run`.
#[derive(clap::Args)]
pub struct Args {
    /// Where the dashboard, /healthz, /readyz and /metrics are served [default: 127.0.0.1:8787]
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
    /// How edits are heard of: by `postgres_changes`, by `broadcast` (see deploy/supabase/broadcast.sql), or `auto`: by both
    /// where the project broadcasts them [default: auto]
    #[arg(long, value_name = "WAY")]
    listen_by: Option<ListenBy>,
    /// The most that all rows together may get [default: 2000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_visits_per_second: Option<u32>,
    /// Rows that have series of their own in /metrics, at most 100; /metrics?rows=ID,ID asks for others
    #[arg(long, value_name = "ID,ID…")]
    metrics_rows: Option<RowsAsked>,
    /// The dashboard shows, and changes nothing
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    read_only: Option<bool>,
    /// /metrics needs no token
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    metrics_open: Option<bool>,
    /// A name under which the dashboard is reached, beside localhost and addresses, such as that of a proxy before it; with
    /// commas between several
    #[arg(long, value_name = "HOST,HOST…")]
    allowed_host: Option<String>,
    /// How the log looks: `human`, `json`, or `auto`: human on a terminal, JSON elsewhere [default: auto]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

/// Runs the agent until it is asked to stop.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let environment = Environment::load()?;
    log::init_stderr(environment.flag(args.log_format, "log-format", LogFormat::Auto)?);
    let listen = environment.flag(args.listen, "listen", LISTEN.parse()?)?;
    let max_visits_per_second = environment.flag(
        args.max_visits_per_second,
        "max-visits-per-second",
        MAX_VISITS_PER_SECOND,
    )?;
    let listen_by = environment.flag(args.listen_by, "listen-by", ListenBy::Auto)?;
    let metrics_rows = environment.flag(args.metrics_rows, "metrics-rows", RowsAsked::default())?;
    let access = access(
        &environment,
        (args.read_only, args.metrics_open, args.allowed_host),
    )?;
    access.allows(listen)?;
    let (database, endpoint) = (environment.database()?, environment.realtime()?);
    let listener = web::bind(listen)?;
    info!(
        database = %database.place(), realtime = %endpoint, listen = %listener.local_addr()?,
        "visit-pacer {}: generated visits are labelled with their distribution_id", env!("CARGO_PKG_VERSION")
    );
    let shutdown = CancellationToken::new();
    let (snapshot, _unseen) = watch::channel(Snapshot::default());
    let service = Service {
        database,
        endpoint,
        listen_by,
        max_visits_per_second,
        metrics_rows,
        listener,
        access,
        snapshot,
    };
    let serving = serve(service, shutdown.clone());
    tokio::pin!(serving);
    tokio::select! {
        served = &mut serving => served,
        asked = asked_to_stop() => {
            asked?;
            info!("asked to stop");
            shutdown.cancel();
            serving.await
        }
    }
}

/// Who may see the pages, and edit there.
fn access(
    environment: &Environment,
    (read_only, metrics_open, allowed_host): (Option<bool>, Option<bool>, Option<String>),
) -> Result<Access, SettingError> {
    let hosts: String = environment.flag(allowed_host, "allowed-host", String::new())?;
    let hosts = hosts
        .split(',')
        .map(str::trim)
        .filter(|host| !host.is_empty());
    Ok(Access::new(
        environment.token()?,
        hosts.map(str::to_owned).collect(),
        environment.flag(metrics_open, "metrics-open", false)?,
        environment.flag(read_only, "read-only", false)?,
    ))
}
