//! What anybody may send to the agent's own HTTP: an answer or a closed connection, and the next one is served.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use visit_pacer::web::api::{Dashboard, LISTENERS_MAX, QUERIES_MAX};
use visit_pacer::web::guard::Access;
use visit_pacer::web::{Pages, bind, serve};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// The longest answer: a few pages.
const ANSWER_BYTES: u64 = 1 << 20;

/// As the bytes of one connection.
pub fn run(data: &[u8]) {
    let answer = exchange(data, true);
    let is_http = answer.starts_with(b"HTTP/1.") || data.starts_with(b"PRI * HTTP/2");
    assert!(
        is_http || answer.is_empty(),
        "an answer is HTTP: {}",
        answer.escape_ascii()
    );
    let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let healthy = exchange(request, false);
    assert!(healthy.starts_with(b"HTTP/1.1 200 "), "it serves on");
}

/// A dashboard whose queries get no answer.
fn dashboard() -> Dashboard {
    let (queries, _never) = mpsc::channel(QUERIES_MAX);
    let hosts = vec!["x".to_owned()];
    Dashboard {
        queries,
        listeners: Arc::new(Semaphore::new(LISTENERS_MAX)),
        access: Arc::new(Access::new(None, hosts, true, false)),
    }
}

/// `ends`: nothing more can follow, so that a request that lacks something ends too; it may then go without an answer.
fn exchange(request: &[u8], ends: bool) -> Vec<u8> {
    let mut stream = TcpStream::connect(server()).expect("it listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a timeout that is not zero");
    // It may have closed before it read all: then there is an answer, or none.
    stream.write_all(request).ok();
    if ends {
        stream.shutdown(Shutdown::Write).ok();
    }
    let mut answer = Vec::new();
    if let Err(error) = stream.take(ANSWER_BYTES).read_to_end(&mut answer) {
        let kind = error.kind();
        let late = matches!(
            kind,
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
        );
        assert!(!late, "a request that has ended is answered or closed");
    }
    answer
}

/// The address of the one server, started by the first request, which serves until the process ends.
fn server() -> SocketAddr {
    static SERVER: OnceLock<SocketAddr> = OnceLock::new();
    *SERVER.get_or_init(|| {
        let (told, address) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let any = SocketAddr::from(([127, 0, 0, 1], 0));
                let listener = bind(any).expect("a free port");
                told.send(listener.local_addr().expect("an address")).ok();
                let pages = Pages {
                    loop_age: Arc::new(|| Some(Duration::ZERO)),
                    unready: Arc::new(|| vec!["not yet".to_owned()]),
                    metrics: Arc::new(|_, _| {
                        Ok(("text/plain", "visit_pacer_ready 1\n".to_owned()))
                    }),
                    dashboard: dashboard(),
                };
                serve(listener, pages, CancellationToken::new()).await.ok();
            });
        });
        address.recv().expect("it starts")
    })
}
