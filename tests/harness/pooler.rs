//! A real pgbouncer between the agents and the server of their place, like the poolers of Supabase.
//!
//! Owns the process and its settings. [`directly_and_pooled`] makes two tests of one body. Only agents and commands use the
//! pooler; the test itself and Realtime connect to the server.
//!
//! Invariant: no pgbouncer outlives its [`Pooler`].

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tokio::net::TcpStream;

use super::server::Scratch;
use super::{PATIENCE, Place, long, wait_until};

/// Debian installs it here, which is not in the PATH of users.
const PGBOUNCER: &str = "/usr/sbin/pgbouncer";
/// `nobody`: pgbouncer refuses to be root.
const NOBODY: u32 = 65_534;
/// Backends of a transaction pooler: fewer than the connections of one agent.
const BACKENDS: u32 = 2;

/// How agents and commands reach the database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Via {
    /// Directly.
    Direct,
    /// Through a pooler in transaction mode that the URL does not reveal.
    TransactionPooler,
}

impl Via {
    /// A place on the server that all tests share.
    pub async fn place(self) -> Place {
        self.to(Place::new().await).await
    }

    /// A place on a server of its own, which the test may stop and start.
    pub async fn place_apart(self) -> Place {
        self.to(Place::apart().await).await
    }

    /// The size of a test: outside the long forms a smaller one with a pooler, since the direct test runs too.
    pub fn short<T>(self, full: T, less: T) -> T {
        if self == Self::Direct || long() {
            full
        } else {
            less
        }
    }

    async fn to(self, mut place: Place) -> Place {
        if self == Self::TransactionPooler {
            place.pooler = Some(Pooler::before(&place, "transaction", BACKENDS).await);
        }
        place
    }
}

/// Makes two tests of each body, an `async fn(Via)` of that name: `directly` and `through_a_transaction_pooler`.
macro_rules! directly_and_pooled {
    ($($body:ident)+) => {$(
        mod $body {
            use crate::harness::pooler::Via;

            #[tokio::test]
            async fn directly() {
                Box::pin(super::$body(Via::Direct)).await;
            }

            #[tokio::test]
            async fn through_a_transaction_pooler() {
                Box::pin(super::$body(Via::TransactionPooler)).await;
            }
        }
    )+};
}
pub(crate) use directly_and_pooled;

/// A pgbouncer before the server of a place.
pub struct Pooler {
    process: Child,
    port: u16,
    _folder: Scratch,
}

impl Pooler {
    /// In that mode, with that many backends for each database.
    pub async fn before(place: &Place, mode: &str, backends: u32) -> Self {
        let folder = Scratch::new();
        let url = url::Url::parse(&place.url).expect("a URL");
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        drop(listener);
        let (user, password) = (url.username(), url.password().unwrap_or_default());
        let users = folder.path().join("users");
        std::fs::write(&users, format!("\"{user}\" \"{password}\"\n")).expect("written");
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n\
             [pgbouncer]\nlisten_addr=127.0.0.1\nlisten_port={port}\nunix_socket_dir=\n\
             auth_type=scram-sha-256\nauth_file={}\nserver_login_retry=1\n\
             pool_mode={mode}\ndefault_pool_size={backends}\nmax_client_conn=200\n\
             server_reset_query=DISCARD ALL\n",
            place.port(),
            users.display(),
        );
        let path = folder.path().join("pgbouncer.ini");
        std::fs::write(&path, settings).expect("written");
        let mut command = Command::new(PGBOUNCER);
        command.arg("-q").arg(&path).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.current_dir(folder.path());
        if geteuid().is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        let process = command
            .spawn()
            .expect("pgbouncer is installed (Debian: apt install pgbouncer)");
        wait_until("pgbouncer listens", PATIENCE, async || {
            TcpStream::connect(("127.0.0.1", port)).await.is_ok()
        })
        .await;
        Self {
            process,
            port,
            _folder: folder,
        }
    }

    /// The URL of a database, through this pooler.
    pub fn url(&self, direct: &str) -> String {
        let mut url = url::Url::parse(direct).expect("a URL");
        url.set_port(Some(self.port)).expect("a host");
        url.into()
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let pid = i32::try_from(self.process.id()).expect("a process id");
        kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        self.process.wait().ok();
    }
}
