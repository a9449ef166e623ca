//! Which trouble an error of the database is: by its SQLSTATE, its text, or the driver's kind of error.
//!
//! What is done about it is the table's to say: [`Trouble::policy`].

use sqlx::Error;

pub use crate::domain::policy::{Fault, Trouble};

/// SQLSTATEs and classes of them (PostgreSQL documentation, appendix A); the first that fits counts.
const BY_CODE: &[(&str, Trouble)] = &[
    ("08", Trouble::Lost),
    ("40003", Trouble::Lost), // statement_completion_unknown
    ("25P03", Trouble::Lost), // idle_in_transaction_session_timeout ends the session
    ("25P04", Trouble::Lost),
    ("57014", Trouble::Timeout),
    ("57P", Trouble::ShuttingDown),
    ("25006", Trouble::ReadOnly),
    ("53100", Trouble::DiskFull),
    ("53200", Trouble::Memory),
    ("53300", Trouble::Connections),
    ("55P03", Trouble::Locked),
    ("40P01", Trouble::Locked),
    ("40001", Trouble::Locked),
    ("26000", Trouble::Pooler),
    ("42P05", Trouble::Pooler),
    ("22", Trouble::Data),
    ("23", Trouble::Data),
    ("44", Trouble::Data),
    ("P0", Trouble::Data),
    ("42", Trouble::Schema),
    ("3F", Trouble::Schema),
    ("28", Trouble::Login),
    ("3D", Trouble::Login),
];

/// What Supabase's pooler says instead of a SQLSTATE that would tell.
const BY_TEXT: &[(&str, Trouble)] = &[
    ("EMAXCONN", Trouble::Connections),
    ("MaxClientsInSessionMode", Trouble::Connections),
    ("max clients reached", Trouble::Connections),
    ("Max client connections reached", Trouble::Connections),
    ("Tenant or user not found", Trouble::Login),
];

/// The code of whatever pgbouncer says by itself.
const PGBOUNCER: &str = "08P01";
/// What it then says of a login or a database that it refuses, as opposed to a server that it cannot reach.
const BY_TEXT_OF_PGBOUNCER: &[(&str, Trouble)] = &[
    ("authentication failed", Trouble::Login),
    ("no such user", Trouble::Login),
    ("no such database", Trouble::Login),
    ("does not exist", Trouble::Login),
    ("no more connections allowed", Trouble::Connections),
];

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        if let Error::Database(database) = &error {
            return reported(&database.code().unwrap_or_default(), database.message());
        }
        if matches!(error, Error::Configuration(_)) {
            // It could echo a URL, and so is not repeated.
            return Self::new(Trouble::Login, UNUSABLE_SETTINGS);
        }
        let trouble = if matches!(error, Error::Tls(_)) {
            Trouble::Tls
        } else {
            Trouble::Lost
        };
        Self::new(trouble, error.to_string())
    }
}

const UNUSABLE_SETTINGS: &str = "the connection settings are not usable; expected \
    postgres://user:password@host:port/database";

/// An error that the server, or a pooler before it, reports.
fn reported(code: &str, message: &str) -> Fault {
    let texts = (BY_TEXT_OF_PGBOUNCER.iter().filter(|_| code == PGBOUNCER)).chain(BY_TEXT);
    let by_text = texts.into_iter().find(|(text, _)| message.contains(text));
    let by_code = || BY_CODE.iter().find(|(class, _)| code.starts_with(class));
    let trouble = by_text
        .or_else(by_code)
        .map_or(Trouble::Server, |(_, trouble)| *trouble);
    Fault::new(trouble, format!("{message} ({code})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_connection_is_a_lost_answer_and_so_is_what_the_driver_does_not_understand() {
        let broken = Error::Io(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert_eq!(Fault::from(broken).trouble, Trouble::Lost);
        let garbled = Error::Protocol("unexpected message".to_owned());
        assert_eq!(Fault::from(garbled).trouble, Trouble::Lost);
        let unsafe_line = Error::Tls("server does not support TLS".into());
        assert_eq!(Fault::from(unsafe_line).trouble, Trouble::Tls);
    }

    #[test]
    fn each_sqlstate_is_the_trouble_that_it_tells_of() {
        let rules: [(&[&str], Trouble); 14] = [
            (
                &["08000", "08003", "08006", "08P01", "40003", "25P03"],
                Trouble::Lost,
            ),
            (&["57P01", "57P02", "57P03", "57P05"], Trouble::ShuttingDown),
            (&["25006"], Trouble::ReadOnly),
            (&["53100"], Trouble::DiskFull),
            (&["53200"], Trouble::Memory),
            (&["53300"], Trouble::Connections),
            (&["57014"], Trouble::Timeout),
            (&["55P03", "40P01", "40001"], Trouble::Locked),
            (
                &["22003", "23505", "23503", "23514", "44000", "P0001"],
                Trouble::Data,
            ),
            (
                &["42P01", "42703", "42501", "42883", "3F000"],
                Trouble::Schema,
            ),
            (&["28P01", "28000", "3D000"], Trouble::Login),
            (&["26000", "42P05"], Trouble::Pooler),
            (
                &["XX000", "XX001", "58030", "0A000", "53000", ""],
                Trouble::Server,
            ),
            (&["40000"], Trouble::Server),
        ];
        for (codes, trouble) in rules {
            for code in codes {
                assert_eq!(reported(code, "as it says").trouble, trouble, "{code}");
            }
        }
        for (class, _) in BY_CODE {
            let named = rules.iter().flat_map(|(codes, _)| codes.iter());
            let walked = named.into_iter().any(|code| code.starts_with(class));
            assert!(walked || *class == "25P04", "{class} is not walked");
        }
    }

    #[test]
    fn what_a_pooler_says_counts_for_more_than_its_code() {
        for (text, trouble) in [
            (
                "(EMAXCONNSESSION) max clients reached in session mode",
                Trouble::Connections,
            ),
            (
                "MaxClientsInSessionMode: max clients reached",
                Trouble::Connections,
            ),
            ("Max client connections reached", Trouble::Connections),
            ("Tenant or user not found", Trouble::Login),
        ] {
            assert_eq!(reported("XX000", text).trouble, trouble, "{text}");
        }
        for (text, trouble) in [
            ("SASL authentication failed", Trouble::Login),
            ("no such user: me", Trouble::Login),
            ("no such database: nowhere", Trouble::Login),
            (
                "server login failed: FATAL database \"nowhere\" does not exist",
                Trouble::Login,
            ),
            (
                "server login failed: FATAL the database system is starting up",
                Trouble::Lost,
            ),
            (
                "no more connections allowed (max_client_conn)",
                Trouble::Connections,
            ),
            ("server conn crashed?", Trouble::Lost),
            ("pgbouncer cannot connect to server", Trouble::Lost),
        ] {
            assert_eq!(reported("08P01", text).trouble, trouble, "{text}");
        }
        let of_the_users_own = reported("P0001", "no such user: of a trigger");
        assert_eq!(of_the_users_own.trouble, Trouble::Data);
    }

    #[test]
    fn an_error_about_settings_never_repeats_them() {
        let error = Error::Configuration("postgres://me:hunter2@db".into());
        assert!(!Fault::from(error).to_string().contains("hunter2"));
    }
}
