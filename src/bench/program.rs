//! The measured programs, as processes of their own, and what they use: CPU time, memory, statements.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

use super::environment::{BenchDatabase, BenchEnvironment};
use super::peers;

/// How long a program may take to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// How long an agent may take to be ready, with a million rows.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// How often both are checked.
const CHECK_EVERY: Duration = Duration::from_millis(20);
/// No server listens there: an agent without Realtime reads the table by sync.
const NOWHERE: &str = "http://127.0.0.1:9";

/// A process; dropping it kills it.
pub struct Program {
    child: Child,
    listen: u16,
    started: Instant,
    log: Option<PathBuf>,
}

/// The options of a measured agent.
#[derive(Clone, Copy, Debug)]
pub struct AgentOptions {
    /// `--max-visits-per-second`
    pub max_visits_per_second: u32,
    /// `VISIT_PACER_LOG`, if its log is needed afterwards.
    pub log: Option<&'static str>,
}

impl Program {
    /// Starts an agent for the database.
    pub fn agent(database: &BenchDatabase, options: AgentOptions) -> anyhow::Result<Self> {
        let listen = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let (url, key) = match &database.realtime {
            Some((server, key)) => (server.supabase_url(), key.expose()),
            None => (NOWHERE.to_owned(), "sb_secret_none"),
        };
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("run")
            .args(["--listen", &format!("127.0.0.1:{listen}")])
            .args([
                "--max-visits-per-second",
                &options.max_visits_per_second.to_string(),
            ])
            .current_dir(std::env::temp_dir())
            .env_clear()
            .env("DATABASE_URL", database.url.expose())
            .env("SUPABASE_URL", url)
            .env("SUPABASE_SERVICE_ROLE_KEY", key);
        let log = options.log.map(|level| {
            command
                .env("VISIT_PACER_LOG", level)
                .env("VISIT_PACER_LOG_FORMAT", "json");
            std::env::temp_dir().join(format!("visit-pacer-bench-{listen}.log"))
        });
        Self::start(command, listen, log)
    }

    fn start(mut command: Command, listen: u16, log: Option<PathBuf>) -> anyhow::Result<Self> {
        let output = match &log {
            Some(path) => File::create(path)?.into(),
            None => Stdio::null(),
        };
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output);
        let child = command
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        Ok(Self {
            child,
            listen,
            started: Instant::now(),
            log,
        })
    }

    /// Waits until the agent has read every row, and returns the time since its start.
    pub async fn ready(&mut self) -> anyhow::Result<Duration> {
        let url = format!("http://127.0.0.1:{}/readyz", self.listen);
        let client = reqwest::Client::builder().no_proxy().build()?;
        while self.started.elapsed() < READY_TIMEOUT {
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent exited with {status}; run it by hand to see why");
            }
            let answer = client.get(&url).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(self.started.elapsed());
            }
            tokio::time::sleep(CHECK_EVERY).await;
        }
        bail!("the agent was not ready within {READY_TIMEOUT:?}")
    }

    /// The time since its start.
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// The CPU time that it has used.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        cpu_of(self.child.id(), false)
    }

    /// Its resident memory, in bytes.
    pub fn memory(&self) -> anyhow::Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u32>().ok());
        Ok(1024.0 * f64::from(kib.context("the kernel does not report its memory")?))
    }

    /// Stops it, and returns its log.
    pub async fn stop_and_read_log(mut self) -> anyhow::Result<String> {
        let log = self.log.take().context("no log was kept")?;
        self.stop().await?;
        let text = std::fs::read_to_string(&log)?;
        std::fs::remove_file(&log)?;
        Ok(text)
    }

    /// Whether it has exited by itself.
    pub fn has_ended(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Sends SIGTERM, and waits for its end.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        kill(
            Pid::from_raw(i32::try_from(self.child.id())?),
            Signal::SIGTERM,
        )?;
        let sent = Instant::now();
        while sent.elapsed() < STOP_TIMEOUT {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            tokio::time::sleep(CHECK_EVERY).await;
        }
        bail!("a program is still running {STOP_TIMEOUT:?} after SIGTERM")
    }
}

/// Who stores the visits of a measurement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Runner {
    /// Nobody.
    Idle,
    /// visit-pacer.
    Agent,
    /// The Node script.
    Node,
    /// The guide's function, by `pg_cron`.
    Cron,
}

impl Runner {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "nobody",
            Self::Agent => "visit-pacer",
            Self::Node => "Node script",
            Self::Cron => "pg_cron, each minute",
        }
    }

    /// Why there are no figures for it.
    pub fn missing(self) -> &'static str {
        match self {
            Self::Idle | Self::Agent => "The agent exited by itself; run it by hand to see why.",
            Self::Node => {
                "No Node script: it needs node, `npm ci` in tests/peers and wal_level = logical, or it exited by itself."
            }
            Self::Cron => {
                "No cron: pg_cron is not installed on this server, or the server must not be restarted to load it."
            }
        }
    }

    /// Starts its program, if it has one and that is installed, and waits until an agent is ready. The script is below `peers`.
    pub async fn start(
        self,
        database: &BenchDatabase,
        options: AgentOptions,
        peers: &Path,
    ) -> anyhow::Result<Option<Program>> {
        match self {
            Self::Idle | Self::Cron => Ok(None),
            Self::Agent => {
                let mut agent = Program::agent(database, options)?;
                agent.ready().await?;
                Ok(Some(agent))
            }
            Self::Node => {
                let command = peers::node(peers, database);
                command
                    .map(|command| Program::start(command, 0, None))
                    .transpose()
            }
        }
    }
}

/// What a program and the server have used.
pub struct Usage {
    /// CPU time of the program.
    pub cpu: Option<Duration>,
    /// CPU time of the server.
    pub server_cpu: Option<Duration>,
    /// Statements of the program.
    pub statements: Option<i64>,
}

impl Usage {
    /// The usage until now.
    pub async fn read(
        environment: &BenchEnvironment,
        program: Option<&Program>,
        database: &mut BenchDatabase,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            cpu: program.map(Program::cpu).transpose()?,
            server_cpu: server_cpu(environment)?,
            statements: database.statements().await?,
        })
    }

    /// The usage since an earlier reading.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let spent = |after: Option<Duration>, before: Option<Duration>| {
            Some(after?.saturating_sub(before?))
        };
        Self {
            cpu: spent(self.cpu, before.cpu),
            server_cpu: spent(self.server_cpu, before.server_cpu),
            statements: self
                .statements
                .zip(before.statements)
                .map(|(after, before)| after - before),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _gone = self.child.kill().is_ok();
        let _reaped = self.child.wait().is_ok();
    }
}

/// The CPU time of the server with all its children, past ones included.
pub fn server_cpu(environment: &BenchEnvironment) -> anyhow::Result<Option<Duration>> {
    let Some(postmaster) = environment.server_pid() else {
        return Ok(None);
    };
    let mut used = cpu_of(postmaster, true)?;
    let children =
        std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children"));
    for child in children.unwrap_or_default().split_whitespace() {
        // The time of a child that has just ended counts for the postmaster from then on.
        used += cpu_of(child.parse()?, false).unwrap_or_default();
    }
    Ok(Some(used))
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
