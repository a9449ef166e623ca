//! What a user would pick instead, where it is on this machine: pgbench, the guide's function by `pg_cron`, a Node script.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use url::Url;

use super::ground::Field;
use crate::domain::secret::Secret;
use crate::domain::time::SECOND_US;

/// A transaction that stores one visit, without a lock, a number or a check.
const ONE_VISIT: &str = "insert into public.store_visits (partner_id, visited_at, session_duration, page_path, user_agent, device_type)
values (md5('bench1')::uuid, clock_timestamp(), 90, '/', 'Mozilla/5.0 (X11; Linux x86_64; rv:132.0) Gecko/20100101 Firefox/132.0', 'desktop');
";
/// What pgbench does in its first seconds, such as connect, is not looked at.
const WARM_UP: u32 = 3;
/// The script, below the folder of peers.
const NODE_SCRIPT: &str = "pacer.mjs";

/// What pgbench logs of a transaction, in microseconds.
#[derive(Clone, Copy)]
pub struct Transaction {
    /// After its scheduled moment it was done.
    pub late: i64,
    /// When that was, by the clock of this machine.
    pub done: i64,
}

/// pgbench at a rate, once it is warm; `None` where it is not on this machine.
pub fn pgbench(
    field: &Field,
    per_second: u32,
    seconds: u32,
) -> anyhow::Result<Option<Vec<Transaction>>> {
    let folder = std::env::temp_dir().join(format!("visit-pacer-bench-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let logged = pgbench_in(&folder, field, per_second, seconds);
    std::fs::remove_dir_all(&folder)?;
    logged
}

fn pgbench_in(
    folder: &Path,
    field: &Field,
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
    place(&mut command, &field.url)?;
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
    let began = logged.iter().map(|done| done.done).min().unwrap_or(0);
    let warm = began + i64::from(WARM_UP) * SECOND_US;
    logged.retain(|transaction| transaction.done >= warm);
    Ok(Some(logged))
}

/// The third field: microseconds since the scheduled moment. The fifth and sixth: when it was done. Source: pgbench,
/// "Per-Transaction Logging".
fn transaction(line: &str) -> Option<Transaction> {
    let mut fields = line.split(' ').skip(2);
    let late = fields.next()?.parse().ok()?;
    let seconds: i64 = fields.nth(1)?.parse().ok()?;
    let micros: i64 = fields.next()?.parse().ok()?;
    Some(Transaction {
        late,
        done: seconds * SECOND_US + micros,
    })
}

/// Where the database is, by the environment: a password on a command line is anybody's to read.
fn place(command: &mut Command, url: &Secret) -> anyhow::Result<()> {
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

/// A part of a URL as it is meant.
fn decoded(part: &str) -> String {
    let form = format!("{}=", part.replace('+', "%2B"));
    let pair = url::form_urlencoded::parse(form.as_bytes()).next();
    pair.map_or_else(String::new, |(part, _)| part.into_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_pgbenchs_log_says_how_late_a_transaction_was_and_when_it_was_done() {
        let read = transaction("0 199 2241 0 1175850568 995598 1020").expect("a transaction");
        assert_eq!((read.late, read.done), (2_241, 1_175_850_568_995_598));
        assert!(transaction("0 199 skipped 0 1175850568 998203 1071").is_none());
    }

    #[test]
    fn a_password_is_what_it_was_before_it_came_into_a_url() {
        assert_eq!(decoded("p%40s+s%3D%25"), "p@s+s=%");
    }
}
