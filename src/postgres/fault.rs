//! What an error of the database means for whoever asked.

use sqlx::Error;

/// What went wrong, by what follows from it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// No answer: the connection is lost, or took too long. Whatever was sent may have been done.
    #[error("the database does not answer: {0}")]
    Away(String),
    /// The login, or the database of that name, was refused.
    #[error("the database refuses the login: {0}")]
    Login(String),
    /// The statement was refused for what is in it: the row's fault.
    #[error("{0}")]
    Data(String),
    /// The statement was refused for a passing reason: locks, limits, a full disk, read-only.
    #[error("the database is busy or limited: {0}")]
    Busy(String),
    /// A table, column, function or right is missing.
    #[error("the schema does not fit: {0}")]
    Schema(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let Error::Database(database) = &error else {
            return Self::Away(without_secrets(&error));
        };
        let code = database.code().unwrap_or_default().into_owned();
        let message = format!("{} ({code})", database.message());
        match code.get(..2).unwrap_or_default() {
            "28" | "3D" => Self::Login(message),
            "22" | "23" | "44" | "P0" => Self::Data(message),
            "08" => Self::Away(message),
            "57" if code != "57014" => Self::Away(message),
            "42" | "3F" => Self::Schema(message),
            _ => Self::Busy(message),
        }
    }
}

/// An I/O or protocol error in words; the driver's errors about its configuration could echo a URL, so those are not repeated.
fn without_secrets(error: &Error) -> String {
    if matches!(error, Error::Configuration(_)) {
        return "the connection settings are not usable; expected postgres://user:password@host:port/database".to_owned();
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_connection_leaves_the_outcome_unknown() {
        let broken = Error::Io(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert!(matches!(Fault::from(broken), Fault::Away(_)));
    }

    #[test]
    fn an_error_about_settings_never_repeats_them() {
        let error = Error::Configuration("postgres://me:hunter2@db".into());
        assert!(!Fault::from(error).to_string().contains("hunter2"));
    }
}
