//! The log, on standard error: for people on a terminal and elsewhere one plain line an event.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

/// What is logged unless `VISIT_PACER_LOG` says otherwise (the syntax of `RUST_LOG`). The server's notices are the driver's
/// to pass on; what matters of them is told where it is handled.
const DEFAULT: &str = "info,sqlx::postgres::notice=error";

/// Starts the log.
pub fn init(writer: BoxMakeWriter, ansi: bool) {
    let filter =
        EnvFilter::try_from_env("VISIT_PACER_LOG").unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    // A mistyped parameter of DATABASE_URL would be logged with its value, which may be the password.
    let filter = match "sqlx_postgres::options=off".parse() {
        Ok(never) => filter.add_directive(never),
        Err(_) => filter,
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(ansi)
        .with_target(false)
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
