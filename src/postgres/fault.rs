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
    #[error("the schema does not fit: {0}; run: visit-pacer migrate")]
    Schema(String),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        let Error::Database(database) = &error else {
            return Self::Away(without_secrets(&error));
        };
        Self::of(&database.code().unwrap_or_default(), database.message())
    }
}

impl Fault {
    /// What an error that the server reports means, by its SQLSTATE (PostgreSQL documentation, appendix A).
    pub fn of(code: &str, message: &str) -> Self {
        let text = format!("{message} ({code})");
        match (code.get(..2).unwrap_or_default(), code) {
            // Read-only: a standby, or the old primary; another connection may find the new one.
            (_, "25006") => Self::Away(text),
            (_, "57014") => Self::Busy(text),
            ("28" | "3D", _) => Self::Login(text),
            ("22" | "23" | "44" | "P0", _) => Self::Data(text),
            ("08" | "57", _) => Self::Away(text),
            ("42" | "3F", _) => Self::Schema(text),
            _ => Self::Busy(text),
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
    fn each_sqlstate_means_what_follows_from_it() {
        type Is = fn(&Fault) -> bool;
        let rules: [(&[&str], Is); 5] = [
            (&["28P01", "28000", "3D000"], |fault| {
                matches!(fault, Fault::Login(_))
            }),
            (&["23505", "23503", "22003", "P0001", "23514"], |fault| {
                matches!(fault, Fault::Data(_))
            }),
            (&["57P01", "57P03", "08006", "25006"], |fault| {
                matches!(fault, Fault::Away(_))
            }),
            (&["42P01", "42703", "42501", "3F000"], |fault| {
                matches!(fault, Fault::Schema(_))
            }),
            (
                &["40P01", "55P03", "57014", "53300", "53100", "40001", ""],
                |fault| matches!(fault, Fault::Busy(_)),
            ),
        ];
        for (codes, is) in rules {
            for code in codes {
                assert!(is(&Fault::of(code, "as the server says")), "{code}");
            }
        }
    }

    #[test]
    fn an_error_about_settings_never_repeats_them() {
        let error = Error::Configuration("postgres://me:hunter2@db".into());
        assert!(!Fault::from(error).to_string().contains("hunter2"));
    }
}
