//! One run of `postgres` as a child process: its processes, its log, its end.
//!
//! A run has three parts:
//! - the **postmaster**, in a process group of its own, so that a terminal's Ctrl-C does not reach it;
//! - the **watchdog**, a small `sh` with a pipe from this process. When this process ends for whatever reason (`kill -9`
//!   included), it reads the end of the file and stops the postmaster;
//! - the **log thread**, which copies the server's output into a log of bounded size and reaps both processes. The output ends
//!   when the last process of the server has ended, so a finished thread proves that none is left.
//!
//! It is independent of async runtimes: a server that tests share outlives the runtime of each of them.

use std::fs::{File, OpenOptions};
use std::io::{self, PipeReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The size at which the log is renamed to `server.log.1`.
const LOG_BYTES_MAX: u64 = 8 << 20;
/// How much of the log's end an error contains.
const TAIL_BYTES_MAX: u64 = 4 << 10;
const TAIL_LINES_MAX: usize = 20;
/// How often the end of the server is checked.
const CHECK_INTERVAL: Duration = Duration::from_millis(10);

/// Waits for its input to end, then stops the postmaster whose number was its first line and whose lock file is `$1`: fast, and
/// after ten seconds immediately. A number that the lock file does not confirm is ignored; a server that has just started has
/// five seconds to write it.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM
lock_file=$1
read -r pid || exit 0
while read -r _; do :; done
pause() { sleep 0.1 || sleep 1; }
is_ours() { kill -0 "$pid" && read -r owner < "$lock_file" && [ "$owner" = "$pid" ]; }
looks=0
until is_ours; do
    kill -0 "$pid" && [ "$looks" -lt 50 ] || exit 0
    looks=$((looks + 1))
    pause
done
kill -INT "$pid"
looks=0
while is_ours && [ "$looks" -lt 100 ]; do
    looks=$((looks + 1))
    pause
done
if is_ours; then kill -QUIT "$pid"; fi
"#;

/// A running server. Dropping it sends [`Signal::SIGINT`] without waiting.
pub struct Postmaster {
    pid: Pid,
    log: JoinHandle<()>,
}

impl Postmaster {
    /// Starts the command `postgres`, with input and output of its own; `shell` is a command `sh` for the same account,
    /// `lock_file` the cluster's `postmaster.pid`.
    pub fn spawn(
        mut postgres: Command,
        mut shell: Command,
        lock_file: &Path,
        log: &Path,
    ) -> anyhow::Result<Self> {
        let (output, input) = io::pipe().context("open the pipe of the server's log")?;
        let file = LogFile::fresh(log).with_context(|| format!("open {}", log.display()))?;
        let mut watchdog = shell
            .arg("-c")
            .arg(WATCHDOG)
            .arg("visit-pacer-watchdog")
            .arg(lock_file)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start the watchdog of the server (sh)")?;
        let mut alive = watchdog
            .stdin
            .take()
            .expect("the watchdog's input is piped");
        let errors = input.try_clone().context("share the log's pipe")?;
        let server = postgres
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(input)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("start {}", postgres.get_program().display()))?;
        // The command has the pipe's writing end, without which the output would never end.
        drop(postgres);
        let pid =
            Pid::from_raw(i32::try_from(server.id()).context("read the server's process number")?);
        let sent = writeln!(alive, "{pid}");
        let log = std::thread::spawn(move || copy_log(output, file, server, watchdog, alive));
        let postmaster = Self { pid, log };
        sent.context("send the server's process number to the watchdog")?;
        Ok(postmaster)
    }

    /// The postmaster's process number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether any process of the server is running.
    pub fn is_running(&self) -> bool {
        !self.log.is_finished()
    }

    /// Sends `signal` to the postmaster, if it is running.
    pub fn signal(&self, signal: Signal) {
        if self.is_running()
            && let Err(error) = kill(self.pid, signal)
        {
            tracing::debug!(pid = self.pid.as_raw(), %signal, %error, "Signal not delivered");
        }
    }

    /// Waits until all processes of the server have ended: true if that was within `limit`.
    pub async fn gone_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.is_running() && Instant::now() < deadline {
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
        !self.is_running()
    }
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        self.signal(Signal::SIGINT);
    }
}

/// The log thread, from the server's first line to its last process.
fn copy_log(
    mut output: PipeReader,
    mut log: LogFile,
    mut server: Child,
    mut watchdog: Child,
    alive: ChildStdin,
) {
    let mut text = [0; 8192];
    loop {
        match output.read(&mut text) {
            Ok(0) => break,
            Ok(read) => log.write(text.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::warn!(%error, "Cannot read the server's log");
                break;
            }
        }
    }
    for (name, ended) in [
        ("server", server.wait()),
        ("watchdog", {
            drop(alive);
            watchdog.wait()
        }),
    ] {
        match ended {
            Ok(status) => tracing::debug!(name, %status, "Process ended"),
            Err(error) => tracing::warn!(name, %error, "Cannot wait for a process"),
        }
    }
}

/// The server's log of this run.
struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl LogFile {
    /// Renames an existing log and begins a new one.
    fn fresh(path: &Path) -> io::Result<Self> {
        if path.exists() {
            std::fs::rename(path, path.with_extension("log.1"))?;
        }
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            bytes: 0,
        })
    }

    /// Appends `text`, unless the disk is full: the server must never wait for its log.
    fn write(&mut self, text: &[u8]) {
        let length = u64::try_from(text.len()).expect("a length fits 64 bits");
        if self.bytes + length > LOG_BYTES_MAX
            && let Ok(fresh) = Self::fresh(&self.path)
        {
            *self = fresh;
        }
        if self.bytes + length <= LOG_BYTES_MAX && self.file.write_all(text).is_ok() {
            self.bytes += length;
        }
    }
}

/// The last lines of the log at `path`, for an error.
pub fn tail(path: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES_MAX)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES_MAX);
    lines.get(from..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_is_bounded_and_its_tail_is_its_last_lines() {
        let dir = std::env::temp_dir().join(format!("vp-log-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let path = dir.join("server.log");
        let mut log = LogFile::fresh(&path).unwrap();
        let line = format!("{}\n", "x".repeat(1023));
        for _ in 0..(3 * LOG_BYTES_MAX / 1024) {
            log.write(line.as_bytes());
        }
        log.write(b"the last line\n");

        let size = |name: &str| dir.join(name).metadata().unwrap().len();
        assert!(size("server.log") <= LOG_BYTES_MAX);
        assert!(size("server.log.1") <= LOG_BYTES_MAX);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2);
        assert!(tail(&path).ends_with("the last line"));
        assert!(tail(&path).lines().count() <= TAIL_LINES_MAX);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
