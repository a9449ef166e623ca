//! TLS to the database: the certificate is verified, and an error says what to do.

use std::path::{Path, PathBuf};
use std::process::Command;

use visit_pacer::demo::server::{PostgresOptions, PostgresServer};
use visit_pacer::domain::secret::Secret;
use visit_pacer::postgres::reconnect::Database;

use crate::harness::server::Scratch;

/// Runs openssl.
fn openssl(folder: &Path, arguments: &str) {
    let ran = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(folder)
        .output()
        .expect("openssl runs");
    assert!(
        ran.status.success(),
        "openssl {arguments}: {}",
        String::from_utf8_lossy(&ran.stderr)
    );
}

/// An authority; gives its certificate.
fn authority(folder: &Path, name: &str) -> PathBuf {
    openssl(
        folder,
        &format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN={name} \
             -addext basicConstraints=critical,CA:TRUE -keyout {name}.key -out {name}.crt"
        ),
    );
    folder.join(format!("{name}.crt"))
}

/// A server with a certificate for `localhost` of the authority `ours`.
async fn server(folder: &Scratch) -> PostgresServer {
    let path = folder.path();
    openssl(
        path,
        "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -keyout server.key -out server.csr",
    );
    std::fs::write(path.join("names"), "subjectAltName=DNS:localhost\n").expect("written");
    openssl(
        path,
        "x509 -req -in server.csr -CA ours.crt -CAkey ours.key -CAcreateserial -days 2 -extfile names -out server.crt",
    );
    let mut server = PostgresServer::start(PostgresOptions {
        data_dir: path.join("postgres"),
        port: 0,
        durable: false,
        settings: Vec::new(),
    })
    .await
    .expect("a server");
    let cluster = server.data_dir().join("cluster");
    let owner = std::fs::metadata(&cluster).expect("the server's");
    for name in ["server.key", "server.crt"] {
        use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
        let to = cluster.join(name);
        std::fs::copy(path.join(name), &to).expect("copied");
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o600)).expect("ours");
        std::os::unix::fs::chown(&to, Some(owner.uid()), Some(owner.gid())).expect("handed over");
    }
    let mut connection = connect(&server.url("postgres"))
        .await
        .expect("a connection");
    sqlx::raw_sql("alter system set ssl = on")
        .execute(connection.simple())
        .await
        .expect("a superuser");
    connection.close().await.expect("a goodbye");
    server
        .stop(visit_pacer::demo::server::StopMode::Fast)
        .await
        .expect("it stops");
    server.start_again().await.expect("it starts with TLS");
    server
}

async fn connect(url: &str) -> Result<visit_pacer::postgres::connection::Connection, String> {
    let database = Database::from_url(&Secret::new(url)).expect("a URL");
    database
        .connect()
        .await
        .map_err(|failure| failure.to_string())
}

#[tokio::test]
async fn only_the_right_authority_and_host_are_accepted_and_the_error_says_what_to_do() {
    let folder = Scratch::new();
    let (ours, theirs) = (
        authority(folder.path(), "ours"),
        authority(folder.path(), "theirs"),
    );
    let server = server(&folder).await;
    let at = |host: &str, ca: Option<&PathBuf>| {
        let mut url = url::Url::parse(&server.url("postgres")).expect("a URL");
        url.set_host(Some(host)).expect("a host");
        url.query_pairs_mut()
            .clear()
            .append_pair("sslmode", "verify-full");
        if let Some(ca) = ca {
            url.query_pairs_mut()
                .append_pair("sslrootcert", ca.to_str().expect("plain"));
        }
        url.to_string()
    };
    let mut connection = connect(&at("localhost", Some(&ours)))
        .await
        .expect("verified");
    let encrypted: bool =
        sqlx::query_scalar("select ssl from pg_stat_ssl where pid = pg_backend_pid()")
            .fetch_one(&mut connection)
            .await
            .expect("a statement");
    assert!(encrypted);
    for (url, words) in [
        (at("localhost", Some(&theirs)), "sslrootcert"),
        (at("localhost", None), "sslrootcert"),
        (at("127.0.0.1", Some(&ours)), "another host"),
    ] {
        let text = connect(&url).await.expect_err("refused");
        assert!(text.contains(words), "{text}");
        println!("{text}");
    }
}

#[tokio::test]
async fn a_server_without_tls_is_refused_if_tls_is_required() {
    let mut url = url::Url::parse(&crate::harness::server::database().await).expect("a URL");
    url.query_pairs_mut()
        .clear()
        .append_pair("sslmode", "verify-full");
    let text = connect(url.as_str()).await.expect_err("refused");
    assert!(text.contains("offers no TLS"), "{text}");
}
