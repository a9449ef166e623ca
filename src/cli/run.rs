//! `visit-pacer run`: the agent, configured by the environment.

use std::net::SocketAddr;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::log::{self, LogFormat};
use crate::domain::way::ListenBy;
use crate::observe::RowsAsked;
use crate::runtime::serve::{Service, asked_to_stop, serve};
use crate::runtime::snapshot::Snapshot;
use crate::settings::Environment;
use crate::web;

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
  VISIT_PACER_LISTEN, VISIT_PACER_LISTEN_BY, VISIT_PACER_MAX_VISITS_PER_SECOND,
  VISIT_PACER_METRICS_ROWS, VISIT_PACER_LOG, VISIT_PACER_LOG_FORMAT";

/// Flags of `run`.
#[derive(clap::Args)]
pub struct Args {
    /// Where /healthz, /readyz and /metrics are served [default: 127.0.0.1:8787]
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
    let (database, endpoint) = (environment.database()?, environment.realtime()?);
    let listener = web::bind(listen).await?;
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
