//! The log, on standard error: for people on a terminal and elsewhere one plain line an event.
//!
//! Invariant: whatever level is asked for, libraries that would repeat a secret are not heard.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

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

/// Starts the log.
pub fn init(writer: BoxMakeWriter, ansi: bool) {
    let filter =
        EnvFilter::try_from_env("VISIT_PACER_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let discreet = filter_fn(|event| {
        let quiet = |(place, most): &(&str, LevelFilter)| {
            !event.target().starts_with(place) || event.level() <= most
        };
        INDISCREET.iter().all(quiet)
    });
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(ansi)
        .with_target(false)
        .finish()
        .with(discreet)
        .init();
}

/// Starts the log on standard error.
pub fn init_stderr() {
    init(
        BoxMakeWriter::new(std::io::stderr),
        std::io::stderr().is_terminal(),
    );
}

/// The one line in which a command says why it failed.
#[expect(clippy::print_stderr, reason = "the command line's own voice")]
pub fn failure(text: &str) {
    eprintln!("error: {text}");
}
