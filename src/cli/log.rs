//! The log, on standard error, one line an event: for people on a terminal, as JSON elsewhere, unless a flag says otherwise.
//!
//! Invariant: whatever level is asked for, libraries that would repeat a secret are not heard.

use std::io::IsTerminal as _;
use std::str::FromStr;

use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt};

/// What is logged unless `VISIT_PACER_LOG` says otherwise (the syntax of `RUST_LOG`). The server's notices are the driver's
/// to pass on; what matters of them is told where it is handled.
const DEFAULT: &str = "info,sqlx::postgres::notice=error";

/// Where libraries repeat secrets, and what is heard of them at the most: requests and frames as they are sent, with the key;
/// a mistyped parameter of `DATABASE_URL` with its value, which may be the password.
const INDISCREET: [(&str, LevelFilter); 3] = [
    ("tungstenite", LevelFilter::INFO),
    ("tokio_tungstenite", LevelFilter::INFO),
    ("sqlx_postgres::options", LevelFilter::OFF),
];

/// How a line of the log looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    /// For people on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// For people.
    Human,
    /// One JSON object a line, with `timestamp`, `level`, `message`, and what else the line tells.
    Json,
}

/// A word that is no [`LogFormat`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("expected auto, human or json, found '{0}'")]
pub struct UnknownFormat(String);

impl FromStr for LogFormat {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        match text {
            "auto" => Ok(Self::Auto),
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            other => Err(UnknownFormat(other.to_owned())),
        }
    }
}

/// Starts the log, for people; coloured where `ansi` says so.
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
    let discreet = filter_fn(|event| {
        let quiet = |(place, most): &(&str, LevelFilter)| {
            !event.target().starts_with(place) || event.level() <= most
        };
        INDISCREET.iter().all(quiet)
    });
    tracing_subscriber::registry()
        .with(lines)
        .with(filter)
        .with(discreet)
        .init();
}

/// The one line in which a command says why it failed.
#[expect(clippy::print_stderr, reason = "the command line's own voice")]
pub fn failure(text: &str) {
    eprintln!("error: {text}");
}
