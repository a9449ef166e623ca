//! One run of `postgres` as our direct child: its processes, its log, its end.
//!
//! Three things belong to a run:
//! - the **postmaster**, in a process group of its own, so that a terminal's Ctrl-C does not reach
//!   it before we stop it in order;
//! - the **watchdog**, a small `sh` that holds one end of a pipe whose other end only we hold. When
//!   we are gone, however that came about (`kill -9` too), it reads the end of the file and stops
//!   the postmaster;
//! - the **keeper**, a thread that copies the server's output into a log of bounded size, and that
//!   reaps both processes. The pipe of that output ends when the last process of the server has
//!   gone, so a finished keeper proves that none is left.
//!
//! It is bound to no async runtime: a server that tests share outlives the runtime of each of them.

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

/// The log's size at which it is set aside as `server.log.1`, so that both stay below twice this.
const LOG_BYTES_MAX: u64 = 8 << 20;
/// How much of the log's end an error shows.
const TAIL_BYTES_MAX: u64 = 4 << 10;
const TAIL_LINES_MAX: usize = 20;
/// How often we look whether the server has gone.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Waits for its input to end, then stops the postmaster whose number was its first line and whose
/// lock file is `$1`: fast, and after ten seconds at once. A number that the lock file does not
/// confirm is left alone; a server that has only just begun has five seconds to write it.
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

/// A running server, until it is told to stop, ends by itself, or is dropped (which stops it, as
/// [`Signal::SIGINT`] does, without waiting).
pub struct Postmaster {
    pid: Pid,
    keeper: JoinHandle<()>,
}

impl Postmaster {
    /// Starts `postgres`, a command that is complete but for its input and output; `shell` is a
    /// command `sh` for the same account. `lock_file` is the cluster's `postmaster.pid`.
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
        let mut leash = watchdog
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
        // The command still holds the pipe's writing end, which would keep it from ever ending.
        drop(postgres);
        let pid =
            Pid::from_raw(i32::try_from(server.id()).context("read the server's process number")?);
        let told = writeln!(leash, "{pid}");
        let keeper = std::thread::spawn(move || keep(output, file, server, watchdog, leash));
        let postmaster = Self { pid, keeper };
        told.context("tell the watchdog which server to watch")?;
        Ok(postmaster)
    }

    /// The postmaster's process number.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Whether any process of the server is left.
    pub fn is_running(&self) -> bool {
        !self.keeper.is_finished()
    }

    /// Sends `signal` to the postmaster, if it is still there.
    pub fn signal(&self, signal: Signal) {
        if self.is_running()
            && let Err(error) = kill(self.pid, signal)
        {
            tracing::debug!(pid = self.pid.as_raw(), %signal, %error, "signal not delivered");
        }
    }

    /// Waits until no process of the server is left: true if that came within `limit`.
    pub async fn gone_within(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while self.is_running() && Instant::now() < deadline {
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        !self.is_running()
    }
}

impl Drop for Postmaster {
    fn drop(&mut self) {
        self.signal(Signal::SIGINT);
    }
}

/// The keeper's work, from the server's first line to its last process.
fn keep(
    mut output: PipeReader,
    mut log: LogFile,
    mut server: Child,
    mut watchdog: Child,
    leash: ChildStdin,
) {
    let mut text = [0; 8192];
    loop {
        match output.read(&mut text) {
            Ok(0) => break,
            Ok(read) => log.write(text.get(..read).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::warn!(%error, "the server's log cannot be read any more");
                break;
            }
        }
    }
    for (name, ended) in [
        ("server", server.wait()),
        ("watchdog", {
            drop(leash);
            watchdog.wait()
        }),
    ] {
        match ended {
            Ok(status) => tracing::debug!(name, %status, "ended"),
            Err(error) => tracing::warn!(name, %error, "its end was not seen"),
        }
    }
}

/// The server's log: this run's, and set aside, at most one before it.
struct LogFile {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl LogFile {
    /// Sets the log that is there aside and begins a new one.
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

    /// Appends `text`. What cannot be written (a full disk) is lost: the server must never wait for
    /// its log.
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
