//! The programs that are measured, as processes of their own, and what the kernel says of them.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

use super::ground::Field;

/// A program has ended so long after it was asked to.
const ENDS_WITHIN: Duration = Duration::from_secs(15);
/// An agent is ready so long after its start, a million rows included.
const READY_WITHIN: Duration = Duration::from_secs(120);
/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Nobody answers there: an agent whose server decodes nothing listens in vain, and syncs.
const NOWHERE: &str = "http://127.0.0.1:9";

/// A process of ours; killed with this value.
pub struct Program {
    child: Child,
    listen: u16,
    began: Instant,
    log: Option<PathBuf>,
}

/// What an agent is told beside where its database is.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// `--max-visits-per-second`
    pub max_visits_per_second: u32,
    /// `VISIT_PACER_LOG`, where its log is to be read afterwards.
    pub log: Option<&'static str>,
}

impl Program {
    /// Starts an agent on the field.
    pub fn agent(field: &Field, told: Told) -> anyhow::Result<Self> {
        let listen = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let (url, key) = match &field.realtime {
            Some((server, key)) => (server.supabase_url(), key.expose()),
            None => (NOWHERE.to_owned(), "sb_secret_none"),
        };
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("run")
            .args(["--listen", &format!("127.0.0.1:{listen}")])
            .args([
                "--max-visits-per-second",
                &told.max_visits_per_second.to_string(),
            ])
            .current_dir(std::env::temp_dir())
            .env_clear()
            .env("DATABASE_URL", field.url.expose())
            .env("SUPABASE_URL", url)
            .env("SUPABASE_SERVICE_ROLE_KEY", key);
        let log = told.log.map(|level| {
            command
                .env("VISIT_PACER_LOG", level)
                .env("VISIT_PACER_LOG_FORMAT", "json");
            std::env::temp_dir().join(format!("visit-pacer-bench-{listen}.log"))
        });
        Self::start(command, listen, log)
    }

    /// Starts another program.
    pub fn peer(command: Command) -> anyhow::Result<Self> {
        Self::start(command, 0, None)
    }

    fn start(mut command: Command, listen: u16, log: Option<PathBuf>) -> anyhow::Result<Self> {
        let said = match &log {
            Some(path) => File::create(path)?.into(),
            None => Stdio::null(),
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said);
        let child = command
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        Ok(Self {
            child,
            listen,
            began: Instant::now(),
            log,
        })
    }

    /// Waits until the agent has read every row; how long after its start.
    pub async fn ready(&mut self) -> anyhow::Result<Duration> {
        let url = format!("http://127.0.0.1:{}/readyz", self.listen);
        let client = reqwest::Client::builder().no_proxy().build()?;
        while self.began.elapsed() < READY_WITHIN {
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent ended ({status}); run it by hand to see why");
            }
            let answer = client.get(&url).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(self.began.elapsed());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        bail!("the agent was not ready within {READY_WITHIN:?}")
    }

    /// Since its start.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// What it has used of the processors so far.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_of(self.child.id(), false)
    }

    /// What it holds of the memory, in bytes.
    pub fn memory(&self) -> anyhow::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
        Ok(1024 * kib.context("the kernel does not say how much memory it has")?)
    }

    /// Stops it; what it has logged.
    pub async fn stop_and_read_log(mut self) -> anyhow::Result<String> {
        let log = self.log.take().context("its log was not kept")?;
        self.stop().await?;
        let text = std::fs::read_to_string(&log)?;
        std::fs::remove_file(&log)?;
        Ok(text)
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Asks it to stop, and waits.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        kill(
            Pid::from_raw(i32::try_from(self.child.id())?),
            Signal::SIGTERM,
        )?;
        let asked = Instant::now();
        while asked.elapsed() < ENDS_WITHIN {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        bail!("a program has not ended {ENDS_WITHIN:?} after SIGTERM")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _gone = self.child.kill().is_ok();
        let _reaped = self.child.wait().is_ok();
    }
}

/// What a server has used of the processors: its children, those that have ended included.
pub fn cpu_of_server(postmaster: u32) -> anyhow::Result<Duration> {
    let mut used = cpu_of(postmaster, true)?;
    let children =
        std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"));
    for child in children.unwrap_or_default().split_whitespace() {
        // One that has just ended is counted with the postmaster from now on.
        used += cpu_of(child.parse()?, false).unwrap_or_default();
    }
    Ok(used)
}

/// User and system time, see proc(5): fields 14 and 15, and 16 and 17 for children that were waited for.
fn cpu_of(pid: u32, with_ended_children: bool) -> anyhow::Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(Path::new(&path)).with_context(|| format!("read {path}"))?;
    let after_name = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<u64> = after_name
        .split_whitespace()
        .skip(11)
        .take(if with_ended_children { 4 } else { 2 })
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let per_second = sysconf(SysconfVar::CLK_TCK)?.and_then(|ticks| u64::try_from(ticks).ok());
    let ticks: u64 = fields.iter().sum();
    Ok(Duration::from_secs(1) * u32::try_from(ticks)? / u32::try_from(per_second.unwrap_or(100))?)
}
