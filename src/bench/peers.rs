//! What a user would pick instead, where it is on this machine: pgbench, the guide's function by `pg_cron`, a Node script.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use url::Url;

use super::figures::Spread;
use super::ground::Field;
use crate::domain::secret::Secret;

/// A transaction that stores one visit, without a lock, a number or a check.
const ONE_VISIT: &str = "insert into public.store_visits (partner_id, visited_at, session_duration, page_path, user_agent, device_type)
values (md5('bench1')::uuid, clock_timestamp(), 90, '/', 'Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0', 'desktop');
";
/// The script, below the folder of peers.
const NODE_SCRIPT: &str = "pacer.mjs";

/// pgbench at a rate: how late each transaction was done, by its schedule.
pub fn pgbench(field: &Field, per_second: u32, seconds: u32) -> anyhow::Result<Option<Spread>> {
    let folder = std::env::temp_dir().join(format!("visit-pacer-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let lateness = pgbench_in(&folder, field, per_second, seconds);
    std::fs::remove_dir_all(&folder)?;
    lateness
}

fn pgbench_in(
    folder: &Path,
    field: &Field,
    per_second: u32,
    seconds: u32,
) -> anyhow::Result<Option<Spread>> {
    std::fs::write(folder.join("one_visit.sql"), ONE_VISIT)?;
    let mut command = Command::new("pgbench");
    command
        .args([
            "--no-vacuum",
            "--file",
            "one_visit.sql",
            "--log",
            "--jobs",
            "1",
            "--client",
            "4",
        ])
        .args([
            "--rate",
            &per_second.to_string(),
            "--time",
            &seconds.to_string(),
        ])
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    place(&mut command, &field.url)?;
    let ended = match command.status() {
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        ended => ended.context("run pgbench")?,
    };
    ensure!(ended.success(), "pgbench failed: {ended}");
    let mut late = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let is_log = path.to_string_lossy().contains("pgbench_log");
        let text = if is_log {
            std::fs::read_to_string(&path)?
        } else {
            String::new()
        };
        // The third field: microseconds since the scheduled moment.
        let figures = text
            .lines()
            .filter_map(|line| line.split(' ').nth(2)?.parse::<i64>().ok());
        late.extend(figures);
    }
    Ok(Some(Spread::of(late)))
}

/// Where the database is, by the environment: a password on a command line is anybody's to read.
fn place(command: &mut Command, url: &Secret) -> anyhow::Result<()> {
    let url = Url::parse(url.expose()).context("the URL of the database")?;
    let mode = url.query_pairs().find(|(name, _)| name == "sslmode");
    command
        .env("PGHOST", url.host_str().unwrap_or("127.0.0.1"))
        .env("PGPORT", url.port().unwrap_or(5432).to_string())
        .env("PGUSER", url.username())
        .env("PGPASSWORD", url.password().unwrap_or(""))
        .env("PGDATABASE", url.path().trim_start_matches('/'))
        .env(
            "PGSSLMODE",
            mode.map_or_else(|| "prefer".to_owned(), |(_, mode)| mode.into_owned()),
        );
    Ok(())
}

/// The Node script as a process to start; `None` where Node, its packages or Realtime are missing.
pub fn node(folder: &Path, field: &Field) -> Option<Command> {
    let (server, key) = field.realtime.as_ref()?;
    let script: PathBuf = folder.join(NODE_SCRIPT);
    let packages = folder.join("node_modules");
    let node = Command::new("node")
        .arg("--version")
        .stdout(Stdio::null())
        .status();
    if !script.exists() || !packages.exists() || !node.is_ok_and(|ended| ended.success()) {
        return None;
    }
    let mut command = Command::new("node");
    command
        .arg(NODE_SCRIPT)
        .current_dir(folder)
        .env("DATABASE_URL", field.url.expose())
        .env("SUPABASE_URL", server.supabase_url())
        .env("SUPABASE_SERVICE_ROLE_KEY", key.expose());
    Some(command)
}
