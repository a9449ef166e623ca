//! The demo's data directory: its lock, its password, and the cluster in it.
//!
//! ```text
//! <data dir>/lock          locked by the demo that uses the directory
//!            password      of the superuser `postgres`, 0600
//!            cluster/      created by initdb, completely or not at all
//!            server.log    of the present run; server.log.1 is the log before it
//! ```
//!
//! Invariant: the owner of a [`Cluster`] has the lock, so a postmaster that is running in the cluster at that moment was left
//! behind by a demo that is dead, and may be stopped.

use std::fs::{DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::distr::{Alphanumeric, SampleString};

use super::account::Account;
use super::binaries::Binaries;
use crate::demo::private_file::write_private;
use crate::domain::secret::Secret;

/// The data directory if root starts the demo and root's own directories are closed to the account that runs PostgreSQL.
pub const DATA_DIR_OF_ROOT: &str = "/var/lib/visit-pacer/demo";

/// The superuser of the demo's server.
pub const SUPERUSER: &str = "postgres";

const PASSWORD_LENGTH: usize = 32;
const INITDB_TIMEOUT: Duration = Duration::from_mins(2);
/// The signals that stop a left-over server, each with a time limit.
const STALE_STOPS: [(Signal, Duration); 3] = [
    (Signal::SIGINT, Duration::from_secs(10)),
    (Signal::SIGQUIT, Duration::from_secs(6)),
    (Signal::SIGKILL, Duration::from_secs(3)),
];
const STALE_LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// The environment variables that the programs inherit. The others, which may be secret, they do not get.
const ENVIRONMENT: [&str; 4] = ["PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR"];

/// A data directory, locked while this value lives.
pub struct Cluster {
    root: PathBuf,
    account: Option<Account>,
    lock: File,
}

impl Cluster {
    /// Locks the data directory `root` for this process, and creates it if necessary.
    pub fn take(root: &Path) -> anyhow::Result<Self> {
        let root = std::path::absolute(root)
            .with_context(|| format!("make {} an absolute path", root.display()))?;
        let account = Account::hand_over(&root.join("cluster"))?;
        create_directories(&root, account.as_ref())?;
        let root = root
            .canonicalize()
            .with_context(|| format!("resolve {}", root.display()))?;
        if let Some(account) = &account
            && let Some(blocked) = account.blocked_at(&root)
        {
            bail!(
                "PostgreSQL does not run as root, so account {} runs it, which may not enter {}: \
                 choose another data directory (such as {}) or allow it (chmod o+x {})",
                account.name(),
                blocked.display(),
                DATA_DIR_OF_ROOT,
                blocked.display()
            );
        }
        let lock = lock(&root)?;
        Ok(Self {
            root,
            account,
            lock,
        })
    }

    /// The data directory, absolute and without symbolic links.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The account that the programs run as, if not the current one.
    pub fn account(&self) -> Option<&Account> {
        self.account.as_ref()
    }

    /// PostgreSQL's own data directory.
    pub fn dir(&self) -> PathBuf {
        self.root.join("cluster")
    }

    /// PostgreSQL's own lock file.
    pub fn lock_file(&self) -> PathBuf {
        self.dir().join("postmaster.pid")
    }

    /// The server's log.
    pub fn log(&self) -> PathBuf {
        self.root.join("server.log")
    }

    /// The major version that created the cluster, or `None` if there is none yet.
    pub fn major(&self) -> anyhow::Result<Option<u32>> {
        if !self.dir().exists() {
            return Ok(None);
        }
        let path = self.dir().join("PG_VERSION");
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!(
                "read {}: {} is not a PostgreSQL cluster; move it away to start with an empty one",
                path.display(),
                self.dir().display()
            )
        })?;
        let major = text
            .trim()
            .parse()
            .with_context(|| format!("{} contains {text:?}, not a version", path.display()))?;
        Ok(Some(major))
    }

    /// A command that runs `program` as the server's account, in the data directory, with a minimal environment and no input.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("LC_ALL", "C")
            .current_dir(&self.root);
        for name in ENVIRONMENT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        command.stdin(Stdio::null());
        if let Some(account) = &self.account {
            account.apply(&mut command);
        }
        command
    }

    /// The superuser's password, created before the cluster.
    pub fn password(&self) -> anyhow::Result<Secret> {
        let path = self.root.join("password");
        match std::fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => return Ok(Secret::new(text.trim())),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error).with_context(|| format!("read {}", path.display()));
            }
        }
        if self.dir().exists() {
            bail!(
                "{} contains no password for {}: restore it, or move the cluster away to start with an \
                 empty one",
                path.display(),
                self.dir().display()
            );
        }
        let password = Alphanumeric.sample_string(&mut rand::rng(), PASSWORD_LENGTH);
        write_private(&path, &format!("{password}\n"))?;
        Ok(Secret::new(password))
    }

    /// Creates the cluster with `initdb` if there is none. Without `durable` nothing is flushed to disk. The password must exist.
    pub async fn init(&self, binaries: &Binaries, durable: bool) -> anyhow::Result<()> {
        if self.dir().exists() {
            return Ok(());
        }
        let fresh = self.root.join("cluster.new");
        if fresh.exists() {
            std::fs::remove_dir_all(&fresh)
                .with_context(|| format!("remove the incomplete {}", fresh.display()))?;
        }
        DirBuilder::new()
            .mode(0o700)
            .create(&fresh)
            .with_context(|| format!("create {}", fresh.display()))?;
        let password_file = self.root.join("password");
        if let Some(account) = &self.account {
            account.give(&fresh)?;
            account.give(&password_file)?;
        }
        let mut initdb = self.command(binaries.dir.join("initdb"));
        initdb
            .args(["--username", SUPERUSER])
            .args(["--encoding", "UTF8", "--locale", "C"])
            .args(["--auth", "scram-sha-256", "--data-checksums"])
            .arg("--pwfile")
            .arg(&password_file);
        if !durable {
            initdb.arg("--no-sync");
        }
        initdb.arg("--pgdata").arg(&fresh);
        let mut initdb = tokio::process::Command::from(initdb);
        let output = tokio::time::timeout(INITDB_TIMEOUT, initdb.kill_on_drop(true).output())
            .await
            .with_context(|| format!("initdb did not end within {INITDB_TIMEOUT:?}"))?
            .with_context(|| format!("run {}/initdb", binaries.dir.display()))?;
        if !output.status.success() {
            bail!(
                "{}/initdb ended with {}: {}",
                binaries.dir.display(),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        std::fs::rename(&fresh, self.dir())
            .with_context(|| format!("rename {} to cluster", fresh.display()))
    }

    /// Stops a postmaster that a dead demo has left running, and removes a lock file whose process number now belongs to another
    /// program, since PostgreSQL would refuse to start.
    pub async fn stop_stale(&self) -> anyhow::Result<()> {
        let Some(pid) = self.postmaster_on_file() else {
            return Ok(());
        };
        if !self.is_our_postmaster(pid) {
            if command_line(pid).is_some_and(|line| !line.is_empty()) {
                std::fs::remove_file(self.lock_file())
                    .with_context(|| format!("remove stale {}", self.lock_file().display()))?;
            }
            return Ok(());
        }
        tracing::info!(
            pid = pid.as_raw(),
            "Stopping a server that an earlier demo left running"
        );
        for (signal, limit) in STALE_STOPS {
            let delivered = kill(pid, signal);
            let deadline = Instant::now() + limit;
            while self.is_our_postmaster(pid) && Instant::now() < deadline {
                tokio::time::sleep(STALE_LOOK_INTERVAL).await;
            }
            if !self.is_our_postmaster(pid) {
                return Ok(());
            }
            tracing::warn!(pid = pid.as_raw(), %signal, ?delivered, "The server has not stopped");
        }
        bail!(
            "process {pid}, a PostgreSQL server of {}, does not stop; end it (kill -9 {pid})",
            self.dir().display()
        )
    }

    fn postmaster_on_file(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(self.lock_file()).ok()?;
        let pid = text.lines().next()?.trim().parse().ok()?;
        (pid > 1).then(|| Pid::from_raw(pid))
    }

    /// Whether `pid` is a running `postgres` whose arguments name this cluster. (A process that has ended but was not reaped has
    /// no arguments.)
    fn is_our_postmaster(&self, pid: Pid) -> bool {
        let cluster = self.dir();
        command_line(pid).is_some_and(|line| {
            line.contains("postgres") && line.contains(&*cluster.to_string_lossy())
        })
    }
}

impl Drop for Cluster {
    /// Unlocks explicitly: a program that another thread is starting at this moment may have a copy of the open file, so closing
    /// this one alone would leave the directory locked.
    fn drop(&mut self) {
        if let Err(error) = self.lock.unlock() {
            tracing::debug!(%error, "Cannot unlock the data directory");
        }
    }
}

/// The arguments of process `pid` from `/proc` or `ps`; `None` if there is no such process.
fn command_line(pid: Pid) -> Option<String> {
    let bytes = if Path::new("/proc/self/cmdline").exists() {
        std::fs::read(format!("/proc/{pid}/cmdline")).ok()?
    } else {
        let mut ps = Command::new("ps");
        ps.args(["-ww", "-o", "args=", "-p"]).arg(pid.to_string());
        ps.output()
            .ok()
            .filter(|output| output.status.success())?
            .stdout
    };
    Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
}

/// Creates `root` and its missing parents, open to `account` whatever the umask is.
fn create_directories(root: &Path, account: Option<&Account>) -> anyhow::Result<()> {
    let missing: Vec<&Path> = root.ancestors().take_while(|dir| !dir.exists()).collect();
    std::fs::create_dir_all(root).with_context(|| format!("create {}", root.display()))?;
    if account.is_some() {
        for dir in missing {
            std::fs::set_permissions(dir, Permissions::from_mode(0o755))
                .with_context(|| format!("open {} to others", dir.display()))?;
        }
    }
    Ok(())
}

fn lock(root: &Path) -> anyhow::Result<File> {
    let path = root.join("lock");
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .write(true)
        .truncate(false)
        .open(&path)
        .with_context(|| {
            format!(
                "open {}: if another user created that data directory, choose another one",
                path.display()
            )
        })?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            file.read_to_string(&mut owner).ok();
            bail!(
                "{} is in use by another demo (process {}): stop it, or choose another data \
                 directory",
                root.display(),
                owner.trim()
            );
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("lock {}", path.display()));
        }
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(file)
}
