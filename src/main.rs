//! The binary: an async runtime, the command line, an exit code.

use std::process::ExitCode;

use visit_pacer::cli;

fn main() -> ExitCode {
    // The one crypto provider of the process. It is already installed only if this runs twice.
    let _installed = rustls::crypto::ring::default_provider()
        .install_default()
        .is_ok();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => runtime.block_on(cli::run()),
        Err(error) => {
            cli::log::failure(&format!("cannot start the async runtime: {error}"));
            ExitCode::FAILURE
        }
    }
}
