//! The alternatives that a user might choose, if they are installed: pgbench and a Node script.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use url::Url;

use super::environment::BenchDatabase;
use crate::domain::secret::Secret;
use crate::domain::time::SECOND_US;

/// A transaction that stores one visit, without a lock, a number or a check.
const ONE_VISIT: &str = "insert into public.store_visits (partner_id, visited_at, session_duration, page_path, user_agent, device_type)
values (md5('bench1')::uuid, clock_timestamp(), 90, '/', 'Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0', 'desktop');
";
/// The first seconds of pgbench, in which it connects, are not counted.
const WARM_UP: u32 = 3;
/// The script.
const NODE_SCRIPT: &str = "pacer.mjs";

/// A transaction in the log of pgbench, in microseconds.
#[derive(Clone, Copy)]
pub struct Transaction {
    /// From its scheduled moment to its end.
    pub delay: i64,
    /// When it ended, by the clock of this machine.
    pub ended_at: i64,
}

/// Runs pgbench at a rate; `None` if it is not installed.
pub fn pgbench(
    database: &BenchDatabase,
    per_second: u32,
    seconds: u32,
) -> anyhow::Result<Option<Vec<Transaction>>> {
    let folder = std::env::temp_dir().join(format!("visit-pacer-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let logged = pgbench_in(&folder, database, per_second, seconds);
    std::fs::remove_dir_all(&folder)?;
    logged
}

fn pgbench_in(
    folder: &Path,
    database: &BenchDatabase,
    per_second: u32,
    seconds: u32,
) -> anyhow::Result<Option<Vec<Transaction>>> {
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
            &(seconds + WARM_UP).to_string(),
        ])
        .current_dir(folder)
        .stdin(Stdio::null());
    set_environment(&mut command, &database.url)?;
    let ended = match command.output() {
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        ended => ended.context("run pgbench")?,
    };
    ensure!(
        ended.status.success(),
        "pgbench failed: {}",
        String::from_utf8_lossy(&ended.stderr).trim()
    );
    let mut logged = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let is_log = path.to_string_lossy().contains("pgbench_log");
        let text = if is_log {
            std::fs::read_to_string(&path)?
        } else {
            String::new()
        };
        logged.extend(text.lines().filter_map(transaction));
    }
    let first = logged.iter().map(|transaction| transaction.ended_at).min();
    let warm = first.unwrap_or(0) + i64::from(WARM_UP) * SECOND_US;
    logged.retain(|transaction| transaction.ended_at >= warm);
    Ok(Some(logged))
}

/// The third field: microseconds since the scheduled moment. The fifth and sixth: when it ended. Source: pgbench,
/// "Per-Transaction Logging".
fn transaction(line: &str) -> Option<Transaction> {
    let mut fields = line.split(' ').skip(2);
    let delay = fields.next()?.parse().ok()?;
    let seconds: i64 = fields.nth(1)?.parse().ok()?;
    let micros: i64 = fields.next()?.parse().ok()?;
    Some(Transaction {
        delay,
        ended_at: seconds * SECOND_US + micros,
    })
}

/// Passes the URL in the environment, since every user can read a command line.
fn set_environment(command: &mut Command, url: &Secret) -> anyhow::Result<()> {
    let url = Url::parse(url.expose()).context("the URL of the database")?;
    let mode = url.query_pairs().find(|(name, _)| name == "sslmode");
    command
        .env("PGHOST", url.host_str().unwrap_or("127.0.0.1"))
        .env("PGPORT", url.port().unwrap_or(5432).to_string())
        .env("PGUSER", decoded(url.username()))
        .env("PGPASSWORD", decoded(url.password().unwrap_or("")))
        .env("PGDATABASE", url.path().trim_start_matches('/'))
        .env(
            "PGSSLMODE",
            mode.map_or_else(|| "prefer".to_owned(), |(_, mode)| mode.into_owned()),
        );
    Ok(())
}

/// A percent-decoded part of a URL.
fn decoded(part: &str) -> String {
    let form = format!("{}=", part.replace('+', "%2B"));
    let pair = url::form_urlencoded::parse(form.as_bytes()).next();
    pair.map_or_else(String::new, |(part, _)| part.into_owned())
}

/// The command of the Node script; `None` if Node, its packages or Realtime are missing.
pub fn node(folder: &Path, database: &BenchDatabase) -> Option<Command> {
    let (server, key) = database.realtime.as_ref()?;
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
        .env("DATABASE_URL", database.url.expose())
        .env("SUPABASE_URL", server.supabase_url())
        .env("SUPABASE_SERVICE_ROLE_KEY", key.expose());
    Some(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_pgbenchs_log_has_the_delay_and_the_end_of_a_transaction() {
        let read = transaction("0 199 2241 0 1175850568 995598 1020").expect("a transaction");
        assert_eq!((read.delay, read.ended_at), (2_241, 1_175_850_568_995_598));
        assert!(transaction("0 199 skipped 0 1175850568 998203 1071").is_none());
    }

    #[test]
    fn a_password_of_a_url_is_decoded() {
        assert_eq!(decoded("p%40s+s%3D%25"), "p@s+s=%");
    }
}
