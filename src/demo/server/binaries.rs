//! Where PostgreSQL's programs are on this machine.
//!
//! The search order: `$PGBIN`, `PATH`, `pg_config --bindir`, the directories of Debian, Red Hat, Homebrew and Postgres.app, and
//! earlier downloads. If `$PGBIN` is set, nothing else is searched; otherwise the newest version wins, and the first place
//! among equals. Old, broken and unreachable installations are skipped, and the reason is kept for the error. This module runs
//! only `postgres --version` and `pg_config --bindir`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::account::Account;

/// The oldest major version that the demo runs on: the oldest that Supabase still runs.
pub const OLDEST_MAJOR: u32 = 15;

/// The programs that must be in one directory.
const NEEDED: [&str; 2] = ["initdb", "postgres"];

/// Parent directories, and the prefix of their children that have a `bin`.
const USUAL_PLACES: [(&str, &str); 6] = [
    ("/usr/lib/postgresql", ""),
    ("/usr", "pgsql-"),
    ("/opt/homebrew/opt", "postgresql"),
    ("/usr/local/opt", "postgresql"),
    ("/home/linuxbrew/.linuxbrew/opt", "postgresql"),
    ("/Applications/Postgres.app/Contents/Versions", ""),
];

/// A PostgreSQL version, ordered as releases are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PgVersion {
    /// 15 in 15.14.
    pub major: u32,
    /// 14 in 15.14, 0 in a beta.
    pub minor: u32,
}

impl PgVersion {
    /// Reads the answer of `postgres --version`, such as `postgres (PostgreSQL) 15.14`.
    pub fn parse(answer: &str) -> Option<Self> {
        let number = answer
            .split_once("(PostgreSQL)")?
            .1
            .split_whitespace()
            .next()?;
        let mut parts = number.split(|c: char| !c.is_ascii_digit());
        let major = parts.next()?.parse().ok()?;
        let minor = if number.contains('.') {
            parts.next()?.parse().ok()?
        } else {
            0
        };
        Some(Self { major, minor })
    }
}

impl fmt::Display for PgVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// One installation: a directory with the programs of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    /// The directory of the programs.
    pub dir: PathBuf,
    /// The answer of `postgres --version`.
    pub version: PgVersion,
}

/// The result of a search.
#[derive(Debug, Default)]
pub struct Search {
    /// Usable installations, newest first.
    pub usable: Vec<Binaries>,
    /// A sentence for each unusable one.
    pub skipped: Vec<String>,
    /// `$PGBIN` is set: nothing else may be used or downloaded.
    pub named: bool,
}

impl Search {
    /// Searches this machine and `downloaded` for programs that `account` (or the current user) may run.
    pub fn of_this_machine(downloaded: &[PathBuf], account: Option<&Account>) -> Self {
        let named = std::env::var_os("PGBIN").filter(|named| !named.is_empty());
        match named {
            Some(named) => Self {
                named: true,
                ..Self::among(&[PathBuf::from(named)], account)
            },
            None => Self::among(&places(downloaded), account),
        }
    }

    /// Searches `places` only.
    pub fn among(places: &[PathBuf], account: Option<&Account>) -> Self {
        let mut search = Self::default();
        for place in places {
            match examine(place, account) {
                Ok(found) if search.usable.iter().all(|known| known.dir != found.dir) => {
                    search.usable.push(found);
                }
                Ok(_) => {}
                Err(reason) => search.skipped.push(reason),
            }
        }
        search
            .usable
            .sort_by_key(|found| std::cmp::Reverse(found.version));
        search
    }

    /// The newest installation, of `major` if a cluster exists already.
    pub fn best(&self, major: Option<u32>) -> Option<&Binaries> {
        self.usable
            .iter()
            .find(|found| major.is_none_or(|major| found.version.major == major))
    }
}

/// The directories in the search order that contain one of the programs.
fn places(downloaded: &[PathBuf]) -> Vec<PathBuf> {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&on_path)
        .flat_map(|dir| [dir.join("postgres"), dir.join("initdb"), dir.join("pg_ctl")])
        .filter_map(|program| Some(program.canonicalize().ok()?.parent()?.to_path_buf()))
        .collect();
    places.extend(pg_config_bindir());
    for (parent, prefix) in USUAL_PLACES {
        let Ok(children) = Path::new(parent).read_dir() else {
            continue;
        };
        let mut children: Vec<PathBuf> = children
            .filter_map(Result::ok)
            .filter(|child| child.file_name().to_string_lossy().starts_with(prefix))
            .map(|child| child.path().join("bin"))
            .collect();
        children.sort();
        places.extend(children);
    }
    places.push(PathBuf::from("/usr/bin"));
    places.extend(downloaded.iter().cloned());
    places.retain(|place| NEEDED.iter().any(|program| place.join(program).exists()));
    places
}

fn pg_config_bindir() -> Option<PathBuf> {
    let answer = Command::new("pg_config").arg("--bindir").output().ok()?;
    let bindir = String::from_utf8(answer.stdout).ok()?;
    Some(PathBuf::from(bindir.trim())).filter(|bindir| bindir.is_absolute())
}

/// The installation in `place`, or why it is not usable.
fn examine(place: &Path, account: Option<&Account>) -> Result<Binaries, String> {
    let shown = place.display();
    for program in NEEDED {
        if !place.join(program).exists() {
            return Err(format!("{shown} has no {program}"));
        }
    }
    if let Some(account) = account
        && let Some(blocked) = account.blocked_at(place)
    {
        return Err(format!(
            "{shown} is not reachable for account {}, which may not enter {}",
            account.name(),
            blocked.display()
        ));
    }
    let answer = Command::new(place.join("postgres"))
        .arg("--version")
        .output()
        .map_err(|error| format!("{shown}/postgres does not run: {error}"))?;
    let answer = String::from_utf8_lossy(&answer.stdout);
    let version = PgVersion::parse(&answer)
        .ok_or_else(|| format!("{shown}/postgres gave no version, but {:?}", answer.trim()))?;
    if version.major < OLDEST_MAJOR {
        return Err(format!(
            "{shown} holds PostgreSQL {version}, older than {OLDEST_MAJOR}"
        ));
    }
    Ok(Binaries {
        dir: place.canonicalize().unwrap_or_else(|_| place.to_path_buf()),
        version,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A directory whose `postgres` says that it is `version`.
    fn pretend(root: &Path, name: &str, version: &str) -> PathBuf {
        let dir = root.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        for program in NEEDED {
            let text = format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n");
            std::fs::write(dir.join(program), text).unwrap();
            let executable = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(dir.join(program), executable).unwrap();
        }
        dir
    }

    #[test]
    fn versions_of_releases_packages_and_betas_are_read() {
        let read = |text| PgVersion::parse(text).map(|v| (v.major, v.minor));
        assert_eq!(
            read("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"),
            Some((15, 14))
        );
        assert_eq!(read("postgres (PostgreSQL) 17.6\n"), Some((17, 6)));
        assert_eq!(read("postgres (PostgreSQL) 18beta1"), Some((18, 0)));
        assert_eq!(read("postgres (PostgreSQL) "), None);
        assert_eq!(read("sh: not found"), None);
    }

    #[test]
    fn the_newest_wins_an_older_one_is_skipped_with_the_reason_and_a_cluster_decides() {
        let root = std::env::temp_dir().join(format!("vp-binaries-{}", std::process::id()));
        let places = [
            pretend(&root, "a", "14.9"),
            pretend(&root, "b", "15.2"),
            pretend(&root, "c", "17.1"),
            root.join("d"),
        ];

        let search = Search::among(&places, None);
        assert_eq!(search.best(None).unwrap().version.to_string(), "17.1");
        assert_eq!(search.best(Some(15)).unwrap().version.to_string(), "15.2");
        assert_eq!(search.best(Some(16)), None);
        let [old, absent] = search.skipped.as_slice() else {
            panic!("two are skipped: {:?}", search.skipped);
        };
        assert!(
            old.ends_with("a holds PostgreSQL 14.9, older than 15"),
            "{old}"
        );
        assert!(absent.ends_with("d has no initdb"), "{absent}");
        std::fs::remove_dir_all(root).unwrap();
    }
}
