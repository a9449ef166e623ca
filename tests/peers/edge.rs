//! The Edge Function `distribute-visits` in the real Deno runtime, with a stand-in for `PostgREST` on a real database.
//!
//! `edge/distribute.mjs` runs both as children of a Node process and checks each promise of the function. They end with that
//! process, however it ends.

use std::{path::Path, process::Stdio, time::Duration};

use tokio::{process::Command, time::timeout};

use crate::harness::Place;

/// The run takes about five seconds on an idle machine.
const PATIENCE: Duration = Duration::from_mins(3);

#[tokio::test]
async fn the_edge_function_keeps_its_promises_in_the_deno_runtime() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers");
    super::install(&directory).await;
    let place = Place::new().await;
    let run = Command::new("node")
        .args(["--test-reporter=spec", "edge/distribute.mjs"])
        .current_dir(&directory)
        .env("DATABASE_URL", &place.url)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let run = timeout(PATIENCE, run)
        .await
        .expect("it ends in time")
        .expect("node runs; install Node 20 or later");
    let said = String::from_utf8_lossy(&run.stdout);
    let errors = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success(), "{said}{errors}");
    assert!(
        said.contains("no key is in any answer or log"),
        "all promises are checked: {said}{errors}"
    );
}
