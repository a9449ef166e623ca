use super::*;
use crate::domain::secret::Secret;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2lnbmF0dXJl";

fn endpoint(url: &str, key: &str) -> Endpoint {
    Endpoint::new(url, Secret::new(key)).expect("a valid endpoint")
}

/// Dials a server that answers the upgrade with `answer` and hangs up.
async fn dial_answered_with(answer: String) -> ConnectError {
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
async fn a_refusal_is_told_with_its_status_and_the_words_of_the_server() {
    let answer = http("401 Unauthorized", r#"{"error":"Token has expired"}"#);
    let error = dial_answered_with(answer).await;
    let message = "Token has expired".to_owned();
    assert_eq!(
        error,
        ConnectError::Refused {
            status: 401,
            message
        }
    );
    assert_eq!(error.class(), ErrorKind::Key);
}

#[tokio::test]
async fn a_refusal_of_a_gateway_in_chunks_is_told_in_its_words() {
    let body = "31\r\n{\"message\":\"No API key found in request\"}\r\n0\r\n\r\n";
    let head = "HTTP/1.1 401 Unauthorized\r\ntransfer-encoding: chunked";
    let error = dial_answered_with(format!("{head}\r\n\r\n{body}")).await;
    let message = "No API key found in request".to_owned();
    assert_eq!(
        error,
        ConnectError::Refused {
            status: 401,
            message
        }
    );
}

#[tokio::test]
async fn a_server_without_tls_is_told_as_unreachable_over_wss() {
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
        error
            .to_string()
            .starts_with("failed to reach wss://127.0.0.1:"),
        "{error}"
    );
    assert_eq!(error.class(), ErrorKind::Network);
}

#[tokio::test]
async fn a_refusal_without_words_is_told_by_the_name_of_its_status() {
    for (status, code, message) in [
        ("403 No", 403, "Forbidden"),
        ("502 No", 502, "Bad Gateway"),
        ("599 No", 599, ""),
    ] {
        let error = dial_answered_with(http(status, "<html>")).await;
        let message = message.to_owned();
        assert_eq!(
            error,
            ConnectError::Refused {
                status: code,
                message
            }
        );
    }
}

#[tokio::test]
async fn a_server_that_repeats_the_key_is_not_quoted() {
    let body = format!(r#"{{"error":"bad key {JWT}\u0007"}}"#);
    let error = dial_answered_with(http("401 Unauthorized", &body)).await;
    let told = error.to_string();
    assert!(told.ends_with("bad key [key]"), "{told}");
}

#[tokio::test]
async fn a_server_that_speaks_no_http_is_told_as_unreachable_by_its_address() {
    let error = dial_answered_with("SSH-2.0-OpenSSH\r\n\r\n".to_owned()).await;
    let told = error.to_string();
    assert_eq!(error.class(), ErrorKind::Network);
    assert!(
        told.starts_with("failed to reach ws://127.0.0.1:"),
        "{told}"
    );
    assert!(!told.contains(JWT), "{told}");
}

#[tokio::test]
async fn a_port_where_nobody_listens_is_told_as_unreachable() {
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
        error
            .to_string()
            .starts_with(&format!("failed to reach {url}: ")),
        "{error}"
    );
    assert_eq!(error.class(), ErrorKind::Network);
}
