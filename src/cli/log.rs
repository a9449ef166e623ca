//! The log on standard error, one line per event: human-readable on a terminal, JSON elsewhere, unless a flag says otherwise.
//!
//! Invariant: at no level does a library log a secret.

use std::io::{IsTerminal as _, Write as _};

use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

/// The default of `VISIT_PACER_LOG` (the syntax of `RUST_LOG`). Notices of the server that matter are logged where they are handled.
const DEFAULT: &str = "info,sqlx::postgres::notice=error";

/// Libraries that log secrets, and their highest permitted level: requests and frames contain the key; a mistyped parameter of
/// `DATABASE_URL` is logged with its value, which may be the password.
const LEVEL_LIMITS: [(&str, LevelFilter); 3] = [
    ("tungstenite", LevelFilter::INFO),
    ("tokio_tungstenite", LevelFilter::INFO),
    ("sqlx_postgres::options", LevelFilter::OFF),
];

/// The format of a log line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// Human-readable on a terminal, JSON elsewhere
    #[default]
    Auto,
    /// Human-readable
    Human,
    /// One JSON object per line, with `timestamp`, `level`, `message` and further fields
    Json,
}

/// Starts a human-readable log; `ansi`: with colours.
pub fn init(writer: BoxMakeWriter, ansi: bool) {
    let human = fmt::layer()
        .with_writer(writer)
        .with_ansi(ansi)
        .with_target(false);
    start(human.boxed());
}

/// Starts the log on standard error.
pub fn init_stderr(format: LogFormat) {
    let is_terminal = std::io::stderr().is_terminal();
    let writer = BoxMakeWriter::new(std::io::stderr);
    match format {
        LogFormat::Human => init(writer, is_terminal),
        LogFormat::Auto if is_terminal => init(writer, true),
        LogFormat::Auto | LogFormat::Json => {
            let json = fmt::layer()
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false)
                .with_writer(writer)
                .with_target(false);
            start(json.boxed());
        }
    }
}

fn start(lines: Box<dyn Layer<Registry> + Send + Sync>) {
    let filter =
        EnvFilter::try_from_env("VISIT_PACER_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let without_secrets = filter_fn(|event| {
        let quiet = |(place, most): &(&str, LevelFilter)| {
            !event.target().starts_with(place) || event.level() <= most
        };
        LEVEL_LIMITS.iter().all(quiet)
    });
    tracing_subscriber::registry()
        .with(lines)
        .with(filter)
        .with(without_secrets)
        .init();
}

/// The one line that states why a command failed.
pub fn failure(text: &str) {
    // Where standard error cannot be written, nobody can be told.
    let _told = writeln!(std::io::stderr(), "error: {text}").is_ok();
}

/// Warns before the log has started, on standard error.
pub fn warning(text: &str) {
    let _told = writeln!(std::io::stderr(), "warning: {text}").is_ok();
}
