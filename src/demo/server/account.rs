//! The account that the server runs as.
//!
//! PostgreSQL refuses to run as root, which is the usual user in a container. Started as root, the demo therefore runs `initdb`
//! and `postgres` as another account: the owner of an existing cluster, else `postgres`, else `nobody`.
//!
//! That account must be able to enter every directory on the path of the data and of the programs; [`Account::blocked_at`]
//! finds the one that it may not enter.

use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use nix::unistd::{Uid, User};

/// Accounts that are tried in this order.
const CANDIDATES: [&str; 2] = ["postgres", "nobody"];

/// The account that runs the server instead of root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

impl Account {
    /// The account for the server: `None` unless the current user is root. The owner of an existing `cluster` comes first, since
    /// no other account may open it.
    pub fn hand_over(cluster: &Path) -> anyhow::Result<Option<Self>> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        if let Ok(found) = cluster.metadata()
            && found.uid() != 0
        {
            let name = User::from_uid(Uid::from_raw(found.uid()))
                .ok()
                .flatten()
                .map_or_else(|| found.uid().to_string(), |user| user.name);
            return Ok(Some(Self {
                name,
                uid: found.uid(),
                gid: found.gid(),
            }));
        }
        for name in CANDIDATES {
            let user = User::from_name(name).with_context(|| format!("look up account {name}"))?;
            if let Some(user) = user {
                return Ok(Some(Self {
                    name: user.name,
                    uid: user.uid.as_raw(),
                    gid: user.gid.as_raw(),
                }));
            }
        }
        anyhow::bail!(
            "PostgreSQL does not run as root, and neither of the accounts {} exists here: \
             create one (useradd --system postgres) or start the demo as an ordinary user",
            CANDIDATES.join(" and ")
        )
    }

    /// The account's name, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes `command` run as this account.
    pub fn apply(&self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }

    /// Gives `path` to this account.
    pub fn give(&self, path: &Path) -> anyhow::Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
            .with_context(|| format!("give {} to account {}", path.display(), self.name))
    }

    /// The first directory of `path` that this account may not enter, by its mode bits. Directories that do not exist yet are
    /// ignored.
    pub fn blocked_at(&self, path: &Path) -> Option<PathBuf> {
        let ancestors: Vec<&Path> = path.ancestors().collect();
        ancestors
            .into_iter()
            .rev()
            .find(|directory| {
                directory
                    .metadata()
                    .is_ok_and(|found| !self.may_enter(&found))
            })
            .map(Path::to_path_buf)
    }

    fn may_enter(&self, directory: &std::fs::Metadata) -> bool {
        let needed = if directory.uid() == self.uid {
            0o100
        } else if directory.gid() == self.gid {
            0o010
        } else {
            0o001
        };
        directory.mode() & needed != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_closed_parent_directory_is_named() {
        let root = std::env::temp_dir().join(format!("vp-account-{}", std::process::id()));
        let closed = root.join("closed");
        std::fs::create_dir_all(closed.join("inside")).unwrap();
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o700)).unwrap();
        let stranger = Account {
            name: "stranger".to_owned(),
            uid: 54_321,
            gid: 54_321,
        };

        assert_eq!(
            stranger.blocked_at(&closed.join("inside/data")),
            Some(closed)
        );
        assert_eq!(stranger.blocked_at(&root.join("not-there/yet")), None);
        std::fs::remove_dir_all(root).unwrap();
    }
}
