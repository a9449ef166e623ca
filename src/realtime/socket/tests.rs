use super::*;
use crate::domain::secret::Secret;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2lnbmF0dXJl";

fn endpoint(url: &str, key: &str) -> Endpoint {
    Endpoint::new(url, Secret::new(key)).expect("a valid endpoint")
}

/// Dials a server that answers the upgrade with `answer` and hangs up.
async fn dial_answered_with(answer: String) -> Failure {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("ws://{}", listener.local_addr().expect("an address"));
    let server = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(stream.read_u8().await.expect("a whole request"));
        }
        stream.write_all(answer.as_bytes()).await.expect("a reader");
    };
    let (error, ()) = tokio::join!(Socket::dial(endpoint(&url, JWT)), server);
    error.err().expect("a refusal")
}

fn http(status: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn a_refusal_has_its_status_and_the_message_of_the_server() {
    let answer = http("401 Unauthorized", r#"{"error":"Token has expired"}"#);
    let error = dial_answered_with(answer).await;
    let message = "Token has expired";
    assert_eq!(error.message, format!("HTTP 401: {message}"));
    assert_eq!(error.kind, ErrorKind::Key);
}

#[tokio::test]
async fn a_chunked_refusal_of_a_gateway_has_its_message() {
    let body = "31\r\n{\"message\":\"No API key found in request\"}\r\n0\r\n\r\n";
    let head = "HTTP/1.1 401 Unauthorized\r\ntransfer-encoding: chunked";
    let error = dial_answered_with(format!("{head}\r\n\r\n{body}")).await;
    let message = "No API key found in request";
    assert_eq!(error.message, format!("HTTP 401: {message}"));
}

#[tokio::test]
async fn a_server_without_tls_is_unreachable_over_wss() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("wss://{}", listener.local_addr().expect("an address"));
    let server = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            .await
            .expect("a reader");
        stream
    };
    let (error, _stream) = tokio::join!(Socket::dial(endpoint(&url, JWT)), server);
    let error = error.err().expect("an error");
    assert!(
        error.message.starts_with("cannot reach wss://127.0.0.1:"),
        "{error}"
    );
    assert_eq!(error.kind, ErrorKind::Network);
}

#[tokio::test]
async fn a_refusal_without_a_message_has_the_name_of_its_status() {
    for (status, code, message) in [
        ("403 No", 403, "Forbidden"),
        ("502 No", 502, "Bad Gateway"),
        ("599 No", 599, ""),
    ] {
        let error = dial_answered_with(http(status, "<html>")).await;
        assert_eq!(error.message, format!("HTTP {code}: {message}"));
    }
}

#[tokio::test]
async fn a_key_that_the_server_repeats_is_redacted() {
    let body = format!(r#"{{"error":"bad key {JWT}\u0007"}}"#);
    let error = dial_answered_with(http("401 Unauthorized", &body)).await;
    let message = error.message;
    assert!(message.ends_with("bad key [key]"), "{message}");
}

#[tokio::test]
async fn a_server_that_does_not_speak_http_is_unreachable() {
    let error = dial_answered_with("SSH-2.0-OpenSSH\r\n\r\n".to_owned()).await;
    let message = error.message;
    assert_eq!(error.kind, ErrorKind::Network);
    assert!(
        message.starts_with("cannot reach ws://127.0.0.1:"),
        "{message}"
    );
    assert!(!message.contains(JWT), "{message}");
}

#[tokio::test]
async fn a_closed_port_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!(
        "ws://{}/socket/websocket",
        listener.local_addr().expect("an address")
    );
    drop(listener);
    let error = Socket::dial(endpoint(&url, JWT))
        .await
        .err()
        .expect("an error");
    assert!(
        error.message.starts_with(&format!("cannot reach {url}: ")),
        "{error}"
    );
    assert_eq!(error.kind, ErrorKind::Network);
}
