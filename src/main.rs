//! The binary: the command line, a runtime, an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use visit_pacer::cli::{self, Cli};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The one crypto provider of the process; installing it twice is the only way to fail.
    let _installed = rustls::crypto::ring::default_provider()
        .install_default()
        .is_ok();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            cli::log::failure(&format!("cannot start the async runtime: {error}"));
            return ExitCode::FAILURE;
        }
    };
    runtime.block_on(cli::run(cli))
}
