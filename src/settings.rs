//! Connection settings and secrets from the environment, files and `.env`.
//!
//! The environment takes precedence over systemd credentials (`$CREDENTIALS_DIRECTORY/NAME`), these over `.env`. In the
//! environment and `.env`, `NAME_FILE` names a file that contains the value. The names of `supabase status -o env` come last.
//!
//! Invariant: a secret is read from these sources only, never from the command line, and no error repeats one.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::env_file::EnvFile;
use crate::domain::secret::Secret;
use crate::postgres::reconnect::Database;
use crate::realtime::token;
use crate::realtime::{Endpoint, Minter, websocket_url};

mod env_file;

/// A setting that is missing, malformed or contradictory: exit code 78.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct SettingError(String);

impl SettingError {
    /// With this text.
    pub fn new(text: String) -> Self {
        Self(text)
    }
}

/// The variables of one setting.
struct SettingNames {
    /// Different values are rejected.
    names: &'static [&'static str],
    /// Names of `supabase status -o env`, in order of precedence. They come last, since other programs may use them too.
    local: &'static [&'static str],
}

const DATABASE_URL: SettingNames = SettingNames {
    names: &["SUPABASE_DB_URL", "DATABASE_URL"],
    local: &["DB_URL"],
};
const API_KEY: SettingNames = SettingNames {
    names: &["SUPABASE_SECRET_KEY", "SUPABASE_SERVICE_ROLE_KEY"],
    local: &["SECRET_KEY", "SERVICE_ROLE_KEY"],
};
const SUPABASE_URL: SettingNames = SettingNames {
    names: &["SUPABASE_URL"],
    local: &["API_URL"],
};
const REALTIME_URL: SettingNames = SettingNames {
    names: &["REALTIME_URL"],
    local: &[],
};
const JWT_SECRET: SettingNames = SettingNames {
    names: &["SUPABASE_JWT_SECRET"],
    local: &[],
};
const JWT_ROLE: SettingNames = SettingNames {
    names: &["SUPABASE_JWT_ROLE"],
    local: &[],
};
const JWT_SECONDS: SettingNames = SettingNames {
    names: &["SUPABASE_JWT_SECONDS"],
    local: &[],
};

const TOKEN: SettingNames = SettingNames {
    names: &["VISIT_PACER_TOKEN"],
    local: &[],
};

/// The shortest token of the dashboard: 64 random bits in hex.
const TOKEN_MIN: usize = 16;
/// The shortest lifetime of a signed token, in seconds: it is renewed after half of it.
const JWT_SECONDS_MIN: u64 = 4;
/// The longest file of a secret.
const SECRET_BYTES_MAX: u64 = 16 * 1024;

/// The environment, systemd credentials and `.env`.
pub struct Environment {
    process: BTreeMap<String, String>,
    credentials: Option<PathBuf>,
    file: EnvFile,
}

impl Environment {
    /// The environment of this process, and the `.env` of the current folder, if any.
    pub fn load() -> Result<Self, SettingError> {
        let process: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Ok(Self {
            credentials: process.get("CREDENTIALS_DIRECTORY").map(PathBuf::from),
            process,
            file: read_env_file(Path::new(".env"))?,
        })
    }

    /// Numbers of the lines of `.env` that are not `NAME=value` and were skipped.
    pub fn skipped_lines(&self) -> &[usize] {
        &self.file.skipped
    }

    /// From given values: for tests.
    pub fn of(process: &[(&str, &str)], file: &[(&str, &str)]) -> Self {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        let process: BTreeMap<String, String> = map(process);
        Self {
            credentials: process.get("CREDENTIALS_DIRECTORY").map(PathBuf::from),
            process,
            file: EnvFile {
                values: map(file),
                skipped: Vec::new(),
            },
        }
    }

    /// From given values and the text of an `.env`: for tests.
    pub fn with_file(process: &[(&str, &str)], file: &[u8]) -> Result<Self, SettingError> {
        Ok(Self {
            file: parse_env_file(file)?,
            ..Self::of(process, &[])
        })
    }

    /// A variable as it is, in the process or else in `.env`.
    pub fn variable(&self, name: &str) -> Option<&str> {
        let value = self
            .process
            .get(name)
            .or_else(|| self.file.values.get(name));
        value.map(String::as_str)
    }

    /// The value of a setting. Different values under two of its names are rejected.
    fn one_of(&self, setting: &SettingNames) -> Result<Option<String>, SettingError> {
        for source in [
            SettingSource::Process,
            SettingSource::Credentials,
            SettingSource::File,
        ] {
            let mut found: Option<(&str, String)> = None;
            for name in setting.names {
                let Some(value) = self.value(source, name)? else {
                    continue;
                };
                match &found {
                    Some((other, first)) if *first != value => {
                        return Err(SettingError(format!(
                            "{other} and {name} are both set and differ; keep one of them"
                        )));
                    }
                    Some(_) => {}
                    None => found = Some((name, value)),
                }
            }
            if let Some((_, value)) = found {
                return Ok(Some(value));
            }
        }
        for source in [SettingSource::Process, SettingSource::File] {
            for name in setting.local {
                if let Some(value) = self.value(source, name)? {
                    return Ok(Some(value));
                }
            }
        }
        Ok(None)
    }

    /// The value of a name in one source: the value itself, or the content of the file that `NAME_FILE` names.
    fn value(&self, source: SettingSource, name: &str) -> Result<Option<String>, SettingError> {
        let values = match source {
            SettingSource::Process => &self.process,
            SettingSource::File => &self.file.values,
            SettingSource::Credentials => {
                let folder = self.credentials.as_ref();
                let path = folder.map(|folder| folder.join(name));
                return match path.filter(|path| path.exists()) {
                    Some(path) => read_secret(name, &path).map(Some),
                    None => Ok(None),
                };
            }
        };
        let file_name = format!("{name}_FILE");
        let text = |name: &str| {
            let value = values.get(name).map(|value| value.trim());
            value.filter(|value| !value.is_empty())
        };
        match (text(name), text(&file_name)) {
            (Some(_), Some(_)) => Err(SettingError(format!(
                "{name} and {file_name} are both set; keep one of them"
            ))),
            (Some(value), None) => Ok(Some(value.to_owned())),
            (None, Some(path)) => read_secret(&file_name, Path::new(path)).map(Some),
            (None, None) => Ok(None),
        }
    }

    fn required(&self, setting: &SettingNames, what: &str) -> Result<String, SettingError> {
        self.one_of(setting)?.ok_or_else(|| {
            SettingError(format!("{} is not set; {what}", setting.names.join(" or ")))
        })
    }

    /// The database.
    pub fn database(&self) -> Result<Database, SettingError> {
        Database::from_url(&self.database_url()?)
            .map_err(|error| SettingError(format!("{}: {error}", DATABASE_URL.names.join(" or "))))
    }

    /// `DATABASE_URL` as it is.
    pub fn database_url(&self) -> Result<Secret, SettingError> {
        let url = self.required(
            &DATABASE_URL,
            "it is the connection string of the Supabase project (Connect > Session pooler or Direct connection)",
        )?;
        Ok(Secret::new(url))
    }

    /// Realtime's address, and its credentials: a key, tokens signed here, or both.
    pub fn realtime(&self) -> Result<Endpoint, SettingError> {
        const WHAT: &str = "it is the project's secret key (Project Settings > API Keys), an sb_secret_… or a service_role key; \
                            or set SUPABASE_JWT_SECRET";
        let minter = self.minter()?;
        let key = match (self.one_of(&API_KEY)?, &minter) {
            (None, None) => Some(self.required(&API_KEY, WHAT)?),
            (key, _) => key,
        };
        let url = match self.one_of(&REALTIME_URL)? {
            Some(url) => url,
            None => {
                let base = self.required(
                    &SUPABASE_URL,
                    "it is the project's URL, such as https://REF.supabase.co",
                )?;
                websocket_url(&base)
                    .map_err(|error| SettingError(format!("SUPABASE_URL: {error}")))?
                    .to_string()
            }
        };
        let endpoint = match (key, minter) {
            (None, Some(minter)) => Endpoint::with_tokens(&url, minter),
            (key, None) => Endpoint::new(&url, Secret::new(key.unwrap_or_default())),
            (Some(key), Some(minter)) => Endpoint::new(&url, Secret::new(key))
                .map(|endpoint| endpoint.with_join_tokens(minter)),
        };
        endpoint.map_err(|error| SettingError(format!("REALTIME_URL or SUPABASE_URL: {error}")))
    }

    /// The token of the dashboard, if any.
    pub fn token(&self) -> Result<Option<Secret>, SettingError> {
        let Some(token) = self.one_of(&TOKEN)? else {
            return Ok(None);
        };
        if token.len() < TOKEN_MIN {
            return Err(SettingError(format!(
                "VISIT_PACER_TOKEN has {} characters; expected {TOKEN_MIN} or more, such as the output of `openssl rand -hex 16`",
                token.len()
            )));
        }
        Ok(Some(Secret::new(token)))
    }

    /// The signer of tokens, if the project's JWT secret is set.
    fn minter(&self) -> Result<Option<Minter>, SettingError> {
        let Some(secret) = self.one_of(&JWT_SECRET)? else {
            return Ok(None);
        };
        let role = self.one_of(&JWT_ROLE)?;
        let lifetime = match self.one_of(&JWT_SECONDS)? {
            None => token::LIFETIME,
            Some(text) => {
                let seconds = text.parse().ok().filter(|s| *s >= JWT_SECONDS_MIN);
                seconds.map(Duration::from_secs).ok_or_else(|| {
                    SettingError(format!(
                        "SUPABASE_JWT_SECONDS is '{text}'; expected {JWT_SECONDS_MIN} or more seconds"
                    ))
                })?
            }
        };
        let role = role.unwrap_or_else(|| token::ROLE.to_owned());
        Ok(Some(Minter::new(Secret::new(secret), role, lifetime)))
    }
}

/// Where a value may be.
#[derive(Clone, Copy)]
enum SettingSource {
    Process,
    Credentials,
    File,
}

/// The text of a small file, without the final newline.
fn read_secret(name: &str, path: &Path) -> Result<String, SettingError> {
    use std::io::Read as _;
    let mut text = String::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(SECRET_BYTES_MAX).read_to_string(&mut text));
    read.map_err(|error| {
        SettingError(format!(
            "{name}: {} cannot be read: {error}",
            path.display()
        ))
    })?;
    let text = text.trim();
    if text.is_empty() {
        return Err(SettingError(format!("{name}: {} is empty", path.display())));
    }
    Ok(text.to_owned())
}

fn read_env_file(path: &Path) -> Result<EnvFile, SettingError> {
    match std::fs::read(path) {
        Ok(text) => parse_env_file(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(EnvFile::default()),
        Err(error) => Err(SettingError(format!(".env cannot be read: {error}"))),
    }
}

fn parse_env_file(text: &[u8]) -> Result<EnvFile, SettingError> {
    EnvFile::parse(text, is_ours).map_err(|error| SettingError(error.to_string()))
}

/// Whether a setting of this program has that name.
fn is_ours(name: &str) -> bool {
    let name = name.strip_suffix("_FILE").unwrap_or(name);
    let settings = [
        &DATABASE_URL,
        &API_KEY,
        &SUPABASE_URL,
        &REALTIME_URL,
        &JWT_SECRET,
        &JWT_ROLE,
        &JWT_SECONDS,
        &TOKEN,
    ];
    let names =
        |setting: &&SettingNames| setting.names.contains(&name) || setting.local.contains(&name);
    name.starts_with("VISIT_PACER_") || settings.iter().any(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::realtime::ApiKey;

    fn error<T>(outcome: Result<T, SettingError>) -> String {
        outcome.err().expect("refused").to_string()
    }

    #[test]
    fn different_values_under_two_names_are_rejected_and_the_error_has_both_names() {
        let environment = Environment::of(
            &[
                ("DATABASE_URL", "postgres://a@h/d"),
                ("SUPABASE_DB_URL", "postgres://b@h/d"),
            ],
            &[],
        );
        let text = error(environment.database());
        assert!(
            text.contains("DATABASE_URL")
                && text.contains("SUPABASE_DB_URL")
                && !text.contains("@h"),
            "{text}"
        );
        let same = Environment::of(
            &[
                ("DATABASE_URL", "postgres://a@h/d"),
                ("SUPABASE_DB_URL", "postgres://a@h/d"),
            ],
            &[],
        );
        assert!(same.database().is_ok());
    }

    fn user(environment: &Environment) -> String {
        let database = environment.database().expect("a database");
        database.user().to_owned()
    }

    #[test]
    fn a_secret_may_be_in_a_file_that_the_environment_or_systemd_names() {
        let folder = std::env::temp_dir().join(format!("pacer-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&folder).expect("a folder");
        let path = folder.join("DATABASE_URL");
        std::fs::write(&path, "postgres://of_the_file:pw@h/d\n").expect("written");
        let (named, folder_text) = (
            path.to_str().expect("plain"),
            folder.to_str().expect("plain"),
        );
        let in_env = [("DATABASE_URL", "postgres://of_env_file:pw@h/d")];
        for (process, expected) in [
            (vec![("DATABASE_URL_FILE", named)], "of_the_file"),
            (vec![("CREDENTIALS_DIRECTORY", folder_text)], "of_the_file"),
            (vec![], "of_env_file"),
        ] {
            assert_eq!(user(&Environment::of(&process, &in_env)), expected);
        }
        let both = [
            ("DATABASE_URL", "postgres://a@h/d"),
            ("DATABASE_URL_FILE", named),
        ];
        let text = error(Environment::of(&both, &[]).database());
        assert!(
            text.contains("DATABASE_URL and DATABASE_URL_FILE are both set"),
            "{text}"
        );
        std::fs::write(&path, "\n").expect("written");
        let text = error(Environment::of(&both[1..], &[]).database());
        assert!(
            text.contains("DATABASE_URL_FILE") && text.contains("is empty"),
            "{text}"
        );
        std::fs::remove_dir_all(&folder).expect("ours");
        let text = error(Environment::of(&both[1..], &[]).database());
        assert!(text.contains("cannot be read"), "{text}");
    }

    #[test]
    fn the_names_of_supabase_status_are_used_last() {
        let printed = [
            ("API_URL", "http://127.0.0.1:54321"),
            ("DB_URL", "postgresql://local:pw@127.0.0.1:54322/postgres"),
            ("SECRET_KEY", "sb_secret_local"),
            ("SERVICE_ROLE_KEY", "another"),
        ];
        let local = Environment::of(&printed, &[]);
        assert_eq!(user(&local), "local");
        let endpoint = local.realtime().expect("an endpoint");
        assert_eq!(endpoint.key(), ApiKey::Secret);
        assert_eq!(
            endpoint.to_string(),
            "ws://127.0.0.1:54321/realtime/v1/websocket"
        );
        let env_file = [("DATABASE_URL", "postgres://of_env_file:pw@h/d")];
        assert_eq!(user(&Environment::of(&printed, &env_file)), "of_env_file");
    }

    #[test]
    fn a_jwt_secret_makes_tokens_alone_or_beside_a_key() {
        let at = ("SUPABASE_URL", "http://h");
        let secret = (
            "SUPABASE_JWT_SECRET",
            "at least 32 characters, for a test of ours",
        );
        let role = ("SUPABASE_JWT_ROLE", "visit_pacer");
        let key = ("SUPABASE_SECRET_KEY", "sb_secret_a");
        let kind = |process: &[(&str, &str)]| {
            Environment::of(process, &[])
                .realtime()
                .expect("an endpoint")
                .key()
        };
        let minted = |role: &str| ApiKey::Minted {
            role: role.to_owned(),
        };
        assert_eq!(kind(&[at, secret]), minted("service_role"));
        assert_eq!(kind(&[at, secret, key, role]), minted("visit_pacer"));
        let short = [at, secret, ("SUPABASE_JWT_SECONDS", "2")];
        let text = error(Environment::of(&short, &[]).realtime());
        assert!(text.contains("SUPABASE_JWT_SECONDS is '2'"), "{text}");
    }

    #[test]
    fn an_error_names_the_setting_and_repeats_no_secret() {
        let nothing = Environment::of(&[], &[]);
        assert!(error(nothing.database()).contains("SUPABASE_DB_URL or DATABASE_URL is not set"));
        assert!(
            error(nothing.realtime())
                .contains("SUPABASE_SECRET_KEY or SUPABASE_SERVICE_ROLE_KEY is not set")
        );
        let odd = Environment::of(&[("DATABASE_URL", "mysql://u:hunter2@h/d")], &[]);
        let text = error(odd.database());
        assert!(
            text.contains("postgres://user:password@host:port/database")
                && !text.contains("hunter2"),
            "{text}"
        );
    }
}
