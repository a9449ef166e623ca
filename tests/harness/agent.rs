//! The program as a process: an agent, or a command.
//!
//! Owns the process and its log. Its environment is exactly what the test gives, and its current folder that of the test, so no
//! `.env` is found.
//!
//! Invariant: no process outlives its [`Agent`], and no log contains a panic, a key or a password.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::server::Scratch;
use super::{PATIENCE, find, wait_until};

/// A limit for commands.
const COMMAND_ENDS_WITHIN: Duration = Duration::from_secs(60);

static STARTED: AtomicU32 = AtomicU32::new(0);

/// A running `visit-pacer run`.
pub struct Agent {
    child: Child,
    log: PathBuf,
    secrets: Vec<String>,
    address: SocketAddr,
}

/// The result of a command.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code, or `None` after a signal.
    pub code: Option<i32>,
    /// Its output, of both streams.
    pub said: String,
}

impl Agent {
    /// Starts one and waits until it logs where it listens.
    pub async fn start(
        folder: &Scratch,
        arguments: &[&str],
        environment: &[(String, String)],
    ) -> Self {
        let mut agent = Self::launch(folder, arguments, environment);
        agent.find_address().await;
        agent
    }

    /// Waits until it logs where it listens.
    pub async fn find_address(&mut self) {
        self.address = find("the agent logs where it listens", PATIENCE, async || {
            self.still_runs();
            let log = self.log();
            let (_, rest) = log.split_once("listen=")?;
            rest.split_whitespace().next()?.parse().ok()
        })
        .await;
    }

    /// Starts the program with these arguments.
    pub fn launch(folder: &Scratch, arguments: &[&str], environment: &[(String, String)]) -> Self {
        let log = folder.path().join(format!(
            "process-{}.log",
            STARTED.fetch_add(1, Ordering::Relaxed)
        ));
        let output = File::create(&log).expect("a log file");
        let errors = output.try_clone().expect("a second handle");
        let child = Command::new(env!("CARGO_BIN_EXE_visit-pacer"))
            .args(arguments)
            .current_dir(folder.path())
            .env_clear()
            .env("VISIT_PACER_LOG_FORMAT", "human")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .env(
                "PATH",
                std::env::vars_os()
                    .find(|(name, _)| name == "PATH")
                    .map(|(_, value)| value)
                    .unwrap_or_default(),
            )
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .expect("the program starts");
        Self {
            child,
            log,
            secrets: secrets(environment),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        }
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Warnings in the log.
    pub fn warnings(&self) -> usize {
        self.log().matches(" WARN ").count()
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id"))
    }

    /// Fails if the process has ended.
    pub fn still_runs(&mut self) {
        let ended = self.child.try_wait().expect("a child");
        assert!(
            ended.is_none(),
            "the agent has ended ({ended:?}):\n{}",
            self.log()
        );
    }

    /// Waits until `/readyz` answers 200.
    pub async fn ready(&self) {
        wait_until("the agent is ready", PATIENCE, async || {
            self.get("/readyz").await.0 == 200
        })
        .await;
    }

    /// Waits until `/readyz` answers 503 with these words.
    pub async fn unready(&self, words: &str) -> String {
        find(
            format!("the agent is not ready: {words}"),
            PATIENCE,
            async || {
                let (status, text) = self.get("/readyz").await;
                (status == 503 && text.contains(words)).then_some(text)
            },
        )
        .await
    }

    /// Waits until the log has these words.
    pub async fn says(&self, words: &str) {
        wait_until(format!("the agent says: {words}"), PATIENCE, async || {
            self.log().contains(words)
        })
        .await;
    }

    /// Requests a page: status and body, or status 0 without an answer.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let (status, _, body) = self.get_as(path, "*/*").await;
        (status, body)
    }

    /// Requests a page in one of these content types: status, head and body.
    pub async fn get_as(&self, path: &str, accept: &str) -> (u16, String, String) {
        let request = async {
            let mut stream = TcpStream::connect(self.address).await?;
            let request = format!(
                "GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: {accept}\r\nconnection: close\r\n\r\n"
            );
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok::<_, std::io::Error>(answer)
        };
        let answer = request.await.unwrap_or_default();
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or(0);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        (status, head.to_lowercase(), body.to_owned())
    }

    /// The value of a metric, such as `visit_pacer_realtime_live`: of one series if the name has labels, else the sum of all.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.get("/metrics").await;
        let values: Vec<f64> = text
            .lines()
            .filter_map(|line| line.rsplit_once(' '))
            .filter(|(series, _)| *series == name || series.split('{').next() == Some(name))
            .map(|(_, value)| value.parse().expect("a number"))
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// SIGKILL. Waits for the end.
    pub fn kill(&mut self) {
        self.child.kill().expect("a child");
        self.child.wait().expect("a child");
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("a child");
    }

    /// SIGSTOP. Waits until the process is stopped.
    pub async fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
        wait_until("the process is stopped", PATIENCE, async || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()));
            stat.is_ok_and(|stat| stat.contains(") T "))
        })
        .await;
    }

    /// SIGTERM. Waits for the end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.ends_within(PATIENCE).await
    }

    /// Waits for the end, with a limit.
    pub async fn ends_within(&mut self, limit: Duration) -> ExitStatus {
        find("the process ends", limit, async || {
            self.child.try_wait().expect("a child")
        })
        .await
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        self.child.kill().ok();
        self.child.wait().ok();
        let log = self.log();
        if std::thread::panicking() {
            eprintln!("--- the log of process {}:\n{log}---", self.child.id());
            return;
        }
        is_clean(&log, &self.secrets);
    }
}

/// Runs a command to its end.
pub async fn command(
    folder: &Scratch,
    arguments: &[&str],
    environment: &[(String, String)],
) -> Outcome {
    let mut process = Agent::launch(folder, arguments, environment);
    let status = process.ends_within(COMMAND_ENDS_WITHIN).await;
    Outcome {
        code: status.code(),
        said: process.log(),
    }
}

/// The secrets of an environment: keys, and passwords in URLs.
fn secrets(environment: &[(String, String)]) -> Vec<String> {
    let mut secrets = Vec::new();
    for (name, value) in environment {
        if name.contains("KEY") && !value.is_empty() {
            secrets.push(value.clone());
        }
        if let Ok(url) = url::Url::parse(value)
            && let Some(password) = url.password()
        {
            secrets.push(password.to_owned());
        }
    }
    secrets
}

fn is_clean(log: &str, secrets: &[String]) {
    assert!(!log.contains("panicked"), "a panic:\n{log}");
    for secret in secrets {
        assert!(
            !log.contains(secret.as_str()),
            "a key or password is in the output of a process"
        );
    }
}
