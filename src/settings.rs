//! What the agent is told by flags, the environment and `.env`, checked once.
//!
//! A flag goes before the environment, the environment before `.env`. Secrets come from the environment or `.env` only,
//! never from the command line.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use crate::domain::secret::Secret;
use crate::postgres::link::Database;
use crate::realtime::{Endpoint, websocket_url};

/// A setting that is missing, malformed, or said twice in two ways: exit code 78.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct SettingError(String);

/// The names under which one setting is looked for, Supabase's own among them.
const DATABASE_URL: &[&str] = &["SUPABASE_DB_URL", "DATABASE_URL"];
const API_KEY: &[&str] = &["SUPABASE_SECRET_KEY", "SUPABASE_SERVICE_ROLE_KEY"];
const SUPABASE_URL: &[&str] = &["SUPABASE_URL"];
const REALTIME_URL: &[&str] = &["REALTIME_URL"];

/// The environment, and `.env` behind it.
pub struct Environment {
    process: BTreeMap<String, String>,
    file: BTreeMap<String, String>,
}

impl Environment {
    /// This process's environment, and the `.env` of the current folder where there is one.
    pub fn load() -> Result<Self, SettingError> {
        let process = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Ok(Self {
            process,
            file: read_env_file(Path::new(".env"))?,
        })
    }

    /// From given values: for tests.
    pub fn of(process: &[(&str, &str)], file: &[(&str, &str)]) -> Self {
        let map = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect()
        };
        Self {
            process: map(process),
            file: map(file),
        }
    }

    /// From given values and the text of an `.env`: for tests.
    pub fn with_file(process: &[(&str, &str)], file: &[u8]) -> Result<Self, SettingError> {
        Ok(Self {
            file: env_lines(dotenvy::from_read_iter(file))?,
            ..Self::of(process, &[])
        })
    }

    /// A flag's value where it was given, else that of its environment name, `VISIT_PACER_<FLAG>`.
    pub fn flag<T: std::str::FromStr>(
        &self,
        given: Option<T>,
        flag: &str,
        otherwise: T,
    ) -> Result<T, SettingError> {
        if let Some(value) = given {
            return Ok(value);
        }
        let name = format!("VISIT_PACER_{}", flag.to_uppercase().replace('-', "_"));
        let found = self
            .process
            .get(&name)
            .or_else(|| self.file.get(&name))
            .filter(|text| !text.is_empty());
        match found {
            None => Ok(otherwise),
            Some(text) => text.parse().map_err(|_| {
                SettingError(format!(
                    "{name} is '{text}', which cannot be read; see `visit-pacer help run`"
                ))
            }),
        }
    }

    /// The value of a setting that has several names. Two that differ are refused.
    fn one_of(&self, names: &[&str]) -> Result<Option<String>, SettingError> {
        for source in [&self.process, &self.file] {
            let mut found: Option<(&str, &String)> = None;
            for name in names {
                let Some(value) = source.get(*name).filter(|value| !value.trim().is_empty()) else {
                    continue;
                };
                match found {
                    Some((other, first)) if first != value => {
                        return Err(SettingError(format!(
                            "{other} and {name} are both set and differ; keep one of them"
                        )));
                    }
                    Some(_) => {}
                    None => found = Some((name, value)),
                }
            }
            if let Some((_, value)) = found {
                return Ok(Some(value.trim().to_owned()));
            }
        }
        Ok(None)
    }

    fn required(&self, names: &[&str], what: &str) -> Result<String, SettingError> {
        self.one_of(names)?
            .ok_or_else(|| SettingError(format!("{} is not set; {what}", names.join(" or "))))
    }

    /// Where the database is.
    pub fn database(&self) -> Result<Database, SettingError> {
        let url = self.required(
            DATABASE_URL,
            "it is the connection string of the Supabase project (Connect > Session pooler or Direct connection)",
        )?;
        Database::from_url(&Secret::new(url))
            .map_err(|error| SettingError(format!("{}: {error}", DATABASE_URL.join(" or "))))
    }

    /// Where Realtime is, and the key to it.
    pub fn realtime(&self) -> Result<Endpoint, SettingError> {
        let key = Secret::new(self.required(
            API_KEY,
            "it is the project's secret key (Project Settings > API Keys), an sb_secret_… or a service_role key",
        )?);
        let url = match self.one_of(REALTIME_URL)? {
            Some(url) => url,
            None => {
                let base = self.required(
                    SUPABASE_URL,
                    "it is the project's URL, such as https://REF.supabase.co",
                )?;
                websocket_url(&base)
                    .map_err(|error| SettingError(format!("SUPABASE_URL: {error}")))?
                    .to_string()
            }
        };
        Endpoint::new(&url, key)
            .map_err(|error| SettingError(format!("REALTIME_URL or SUPABASE_URL: {error}")))
    }
}

fn read_env_file(path: &Path) -> Result<BTreeMap<String, String>, SettingError> {
    let lines = match dotenvy::from_path_iter(path) {
        Ok(lines) => lines,
        Err(error) if error.not_found() => return Ok(BTreeMap::new()),
        Err(error) => return Err(SettingError(format!(".env cannot be read: {error}"))),
    };
    env_lines(lines)
}

fn env_lines<R: io::Read>(
    lines: dotenvy::Iter<R>,
) -> Result<BTreeMap<String, String>, SettingError> {
    lines
        .collect::<Result<_, _>>()
        // The error would repeat the line, and the line may hold a key.
        .map_err(|_| {
            SettingError(
                ".env has a line that is not NAME=value; quote values that have spaces".to_owned(),
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error<T>(outcome: Result<T, SettingError>) -> String {
        outcome.err().expect("refused").to_string()
    }

    #[test]
    fn two_names_of_one_setting_with_different_values_are_refused_naming_both() {
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

    #[test]
    fn a_flag_goes_before_the_environment_and_the_environment_before_the_file() {
        let environment = Environment::of(
            &[("VISIT_PACER_MAX_VISITS_PER_SECOND", "7")],
            &[
                ("VISIT_PACER_MAX_VISITS_PER_SECOND", "8"),
                ("VISIT_PACER_LISTEN", "127.0.0.1:1"),
            ],
        );
        assert_eq!(
            environment.flag(Some(6_u32), "max-visits-per-second", 5),
            Ok(6)
        );
        assert_eq!(
            environment.flag(None, "max-visits-per-second", 5_u32),
            Ok(7)
        );
        assert_eq!(
            environment.flag(None, "listen", "x".to_owned()),
            Ok("127.0.0.1:1".to_owned())
        );
        assert_eq!(environment.flag(None, "else", 5_u32), Ok(5));
    }

    #[test]
    fn what_is_missing_or_malformed_is_named_and_no_secret_repeated() {
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
