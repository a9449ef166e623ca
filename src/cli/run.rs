//! `visit-pacer run`: the agent.

use std::net::SocketAddr;

use clap::ArgAction;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::log::{self, LogFormat};
use crate::domain::transport::ListenBy;
use crate::observe::SelectedDistributions;
use crate::runtime::serve::{Service, asked_to_stop, serve};
use crate::runtime::snapshot::Snapshot;
use crate::settings::Environment;
use crate::web;
use crate::web::guard::Access;

/// Default address of the agent's HTTP server.
pub const LISTEN: &str = "127.0.0.1:8787";
/// Default rate limit of the whole agent.
pub const MAX_VISITS_PER_SECOND: u32 = 2_000;

/// Settings that are no flags, in the help.
pub const ENVIRONMENT: &str = "\
Connection settings, never flags. Read from the environment, files named by NAME_FILE, systemd credentials, and .env:
  DATABASE_URL or SUPABASE_DB_URL
          the project's Postgres, directly or through the session pooler
  SUPABASE_URL
          the project's URL, such as https://REF.supabase.co
  SUPABASE_SECRET_KEY or SUPABASE_SERVICE_ROLE_KEY
          the project's secret key
  SUPABASE_JWT_SECRET
          instead of a key, or with one: sign short-lived tokens for SUPABASE_JWT_ROLE [default: service_role]
  REALTIME_URL
          Realtime's websocket, if it is not below SUPABASE_URL
  VISIT_PACER_TOKEN
          token of the dashboard, required if --listen is not a loopback address
  VISIT_PACER_LOG
          log filter, such as debug, in the syntax of RUST_LOG
The variables of `supabase status -o env` (DB_URL, API_URL, SERVICE_ROLE_KEY, ...) are used last.";

/// Flags of `run`.
#[derive(clap::Args)]
pub struct Args {
    /// Address of the dashboard, /healthz, /readyz and /metrics
    #[arg(long, env = "VISIT_PACER_LISTEN", value_name = "ADDR", default_value = LISTEN)]
    listen: SocketAddr,
    /// Source of change notifications: `postgres_changes`, `broadcast` (see deploy/supabase/broadcast.sql), or `auto`: both, if
    /// the database broadcasts
    #[arg(
        long,
        env = "VISIT_PACER_LISTEN_BY",
        value_name = "SOURCE",
        default_value = "auto"
    )]
    listen_by: ListenBy,
    /// Limit of visits per second over all distributions
    #[arg(long, env = "VISIT_PACER_MAX_VISITS_PER_SECOND", value_name = "N", default_value_t = MAX_VISITS_PER_SECOND,
        value_parser = clap::value_parser!(u32).range(1..))]
    max_visits_per_second: u32,
    /// Distributions that have series of their own in /metrics, at most 100; /metrics?distributions=ID,ID returns others
    #[arg(
        long,
        env = "VISIT_PACER_METRICS_DISTRIBUTIONS",
        value_name = "ID,ID…",
        default_value = "",
        hide_default_value = true
    )]
    metrics_distributions: SelectedDistributions,
    /// Reject edits on the dashboard
    #[arg(long, env = "VISIT_PACER_READ_ONLY", value_name = "BOOL", default_value_t = false, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    read_only: bool,
    /// Serve /metrics without the token
    #[arg(long, env = "VISIT_PACER_METRICS_OPEN", value_name = "BOOL", default_value_t = false, action = ArgAction::Set,
        num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    metrics_open: bool,
    /// Host names of the dashboard besides localhost and IP addresses, such as that of a reverse proxy
    #[arg(
        long,
        env = "VISIT_PACER_ALLOWED_HOST",
        value_name = "HOST,HOST…",
        value_delimiter = ','
    )]
    allowed_host: Vec<String>,
    /// Log format
    #[arg(
        long,
        env = "VISIT_PACER_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value_t
    )]
    log_format: LogFormat,
}

/// Runs the agent until it is asked to stop.
pub async fn run(args: Args) -> anyhow::Result<()> {
    log::init_stderr(args.log_format);
    let environment = Environment::load()?;
    let hosts = args.allowed_host.iter().map(|host| host.trim().to_owned());
    let access = Access::new(
        environment.token()?,
        hosts.filter(|host| !host.is_empty()).collect(),
        args.metrics_open,
        args.read_only,
    );
    access.allows(args.listen)?;
    let (database, endpoint) = (environment.database()?, environment.realtime()?);
    let listener = web::bind(args.listen)?;
    info!(
        database = %database.place(), realtime = %endpoint, listen = %listener.local_addr()?,
        "visit-pacer {}: generated visits are labelled with their distribution_id", env!("CARGO_PKG_VERSION")
    );
    let shutdown = CancellationToken::new();
    let (snapshot, _unseen) = watch::channel(Snapshot::default());
    let service = Service {
        database,
        endpoint,
        listen_by: args.listen_by,
        max_visits_per_second: args.max_visits_per_second,
        metrics_distributions: args.metrics_distributions,
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
