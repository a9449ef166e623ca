//! The kind of an error of the database, by its SQLSTATE, the text of a pooler, or the driver's type of error.

use sqlx::Error;
use sqlx::postgres::PgDatabaseError;

use crate::domain::error_policy::ServerFields;
pub use crate::domain::error_policy::{ErrorKind, Failure};

/// SQLSTATEs and classes of them (PostgreSQL documentation, appendix A); the first match counts.
const BY_CODE: &[(&str, ErrorKind)] = &[
    ("08", ErrorKind::Lost),
    ("40003", ErrorKind::Lost), // statement_completion_unknown
    ("25P03", ErrorKind::Lost), // idle_in_transaction_session_timeout ends the session
    ("25P04", ErrorKind::Lost),
    ("57014", ErrorKind::Timeout),
    ("57P", ErrorKind::ShuttingDown),
    ("25006", ErrorKind::ReadOnly),
    ("53100", ErrorKind::DiskFull),
    ("53200", ErrorKind::Memory),
    ("53300", ErrorKind::Connections),
    ("55P03", ErrorKind::Locked),
    ("40P01", ErrorKind::Locked),
    ("40001", ErrorKind::Locked),
    ("26000", ErrorKind::Pooler),
    ("42P05", ErrorKind::Pooler),
    ("22", ErrorKind::Data),
    ("23", ErrorKind::Data),
    ("44", ErrorKind::Data),
    ("P0", ErrorKind::Data),
    ("VP0", ErrorKind::Data), // visit_pacer_store(): a trigger discarded a visit
    ("42", ErrorKind::Schema),
    ("3F", ErrorKind::Schema),
    ("28", ErrorKind::Login),
    ("3D", ErrorKind::Login),
];

/// Texts of Supabase's pooler, whose SQLSTATEs do not tell these apart.
const BY_TEXT: &[(&str, ErrorKind)] = &[
    ("EMAXCONN", ErrorKind::Connections),
    ("MaxClientsInSessionMode", ErrorKind::Connections),
    ("max clients reached", ErrorKind::Connections),
    ("Max client connections reached", ErrorKind::Connections),
    ("enant or user not found", ErrorKind::Login),
    ("enant/user", ErrorKind::Login), // "(ENOTFOUND) tenant/user postgres.ref not found"
    ("(ENOTFOUND)", ErrorKind::Login),
    ("ENOIDENTIFIER", ErrorKind::Login), // no tenant in the user name
];

/// The SQLSTATE of every error of pgbouncer itself.
const PGBOUNCER: &str = "08P01";
/// Its texts for a refused login or database, as opposed to a server that it cannot reach.
const BY_TEXT_OF_PGBOUNCER: &[(&str, ErrorKind)] = &[
    ("authentication failed", ErrorKind::Login),
    ("no such user", ErrorKind::Login),
    ("no such database", ErrorKind::Login),
    ("does not exist", ErrorKind::Login),
    ("no more connections allowed", ErrorKind::Connections),
];

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if let Error::Database(database) = &error {
            let kind = kind_of(&database.code().unwrap_or_default(), database.message());
            let server: Option<&PgDatabaseError> = database.try_downcast_ref();
            let context = server.and_then(|error| error.r#where()).unwrap_or_default();
            let kind = if is_of_a_users_function(context) {
                of_a_users_function(kind)
            } else {
                kind
            };
            return Self {
                server: server.map(|error| Box::new(fields(error))),
                ..Self::new(kind, database.message())
            };
        }
        if matches!(error, Error::Configuration(_)) {
            // Its text may contain the URL.
            return Self::new(ErrorKind::Login, UNUSABLE_SETTINGS);
        }
        let kind = if matches!(error, Error::Tls(_)) {
            ErrorKind::Tls
        } else if matches!(error, Error::TypeNotFound { .. }) {
            ErrorKind::Schema // a composite type of ours
        } else {
            ErrorKind::Lost
        };
        Self::new(kind, error.to_string())
    }
}

const UNUSABLE_SETTINGS: &str = "the connection settings are not usable; expected \
    postgres://user:password@host:port/database";

fn fields(error: &PgDatabaseError) -> ServerFields {
    let owned = |field: Option<&str>| field.map(str::to_owned);
    ServerFields {
        sqlstate: error.code().to_owned(),
        detail: owned(error.detail()),
        hint: owned(error.hint()),
        context: owned(error.r#where()),
        schema: owned(error.schema()),
        table: owned(error.table()),
        column: owned(error.column()),
        constraint: owned(error.constraint()),
    }
}

/// Whether the innermost function of a CONTEXT is not one of visit-pacer: a trigger of the user's, or what it calls.
fn is_of_a_users_function(context: &str) -> bool {
    let name = context.lines().find_map(|line| {
        line.strip_prefix("PL/pgSQL function ")
            .or_else(|| line.strip_prefix("SQL function "))
    });
    name.is_some_and(|name| {
        let name = name.trim_start_matches('"');
        let name = name.strip_prefix("public.").unwrap_or(name);
        !name.trim_start_matches('"').starts_with("visit_pacer_")
    })
}

/// What is missing or fails in a user's function concerns the distributions that meet it, not the schema or the database.
const fn of_a_users_function(kind: ErrorKind) -> ErrorKind {
    if matches!(kind, ErrorKind::Schema | ErrorKind::Server) {
        ErrorKind::Data
    } else {
        kind
    }
}

/// The kind of an error that the server or a pooler reports.
fn kind_of(code: &str, message: &str) -> ErrorKind {
    let texts = (BY_TEXT_OF_PGBOUNCER.iter().filter(|_| code == PGBOUNCER)).chain(BY_TEXT);
    let by_text = texts.into_iter().find(|(text, _)| message.contains(text));
    let by_code = || BY_CODE.iter().find(|(class, _)| code.starts_with(class));
    by_text
        .or_else(by_code)
        .map_or(ErrorKind::Server, |(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_connection_and_an_unknown_message_are_lost_answers() {
        let broken = Error::Io(std::io::Error::from(std::io::ErrorKind::ConnectionReset));
        assert_eq!(Failure::from(broken).kind, ErrorKind::Lost);
        let garbled = Error::Protocol("unexpected message".to_owned());
        assert_eq!(Failure::from(garbled).kind, ErrorKind::Lost);
        let unsafe_line = Error::Tls("server does not support TLS".into());
        assert_eq!(Failure::from(unsafe_line).kind, ErrorKind::Tls);
    }

    #[test]
    fn an_error_in_a_users_function_is_told_from_one_of_visit_pacer() {
        for (context, is_users) in [
            (
                "PL/pgSQL function count_visit() line 3 at SQL statement\nSQL statement \"insert into public.store_visits\"\n\
                 PL/pgSQL function public.visit_pacer_store(visit_pacer_batch_row[]) line 40 at SQL statement",
                true,
            ),
            ("SQL function \"tally\" statement 1", true),
            (
                "PL/pgSQL function visit_pacer_store(a) line 4 at RAISE",
                false,
            ),
            (
                "SQL function \"visit_pacer_lock_partners\" statement 1",
                false,
            ),
            ("SQL statement \"SELECT 1 FROM ONLY partners\"", false),
            ("", false),
        ] {
            assert_eq!(is_of_a_users_function(context), is_users, "{context}");
        }
        assert_eq!(of_a_users_function(ErrorKind::Schema), ErrorKind::Data);
        assert_eq!(of_a_users_function(ErrorKind::Timeout), ErrorKind::Timeout);
    }

    #[test]
    fn each_sqlstate_has_its_kind() {
        let rules: [(&[&str], ErrorKind); 14] = [
            (
                &["08000", "08003", "08006", "08P01", "40003", "25P03"],
                ErrorKind::Lost,
            ),
            (
                &["57P01", "57P02", "57P03", "57P05"],
                ErrorKind::ShuttingDown,
            ),
            (&["25006"], ErrorKind::ReadOnly),
            (&["53100"], ErrorKind::DiskFull),
            (&["53200"], ErrorKind::Memory),
            (&["53300"], ErrorKind::Connections),
            (&["57014"], ErrorKind::Timeout),
            (&["55P03", "40P01", "40001"], ErrorKind::Locked),
            (
                &[
                    "22003", "23505", "23503", "23514", "44000", "P0001", "VP001",
                ],
                ErrorKind::Data,
            ),
            (
                &["42P01", "42703", "42501", "42883", "3F000"],
                ErrorKind::Schema,
            ),
            (&["28P01", "28000", "3D000"], ErrorKind::Login),
            (&["26000", "42P05"], ErrorKind::Pooler),
            (
                &["XX000", "XX001", "58030", "0A000", "53000", ""],
                ErrorKind::Server,
            ),
            (&["40000"], ErrorKind::Server),
        ];
        for (codes, kind) in rules {
            for code in codes {
                assert_eq!(kind_of(code, "as it says"), kind, "{code}");
            }
        }
        for (class, _) in BY_CODE {
            let named = rules.iter().flat_map(|(codes, _)| codes.iter());
            let covered = named.into_iter().any(|code| code.starts_with(class));
            assert!(covered || *class == "25P04", "{class} is not covered");
        }
    }

    #[test]
    fn the_text_of_a_pooler_counts_more_than_its_sqlstate() {
        for (text, kind) in [
            (
                "(EMAXCONNSESSION) max clients reached in session mode",
                ErrorKind::Connections,
            ),
            (
                "MaxClientsInSessionMode: max clients reached",
                ErrorKind::Connections,
            ),
            ("Max client connections reached", ErrorKind::Connections),
            ("Tenant or user not found", ErrorKind::Login),
            (
                "(ENOTFOUND) tenant/user postgres.abcd not found",
                ErrorKind::Login,
            ),
            (
                "(ENOIDENTIFIER) no tenant identifier provided (external_id or sni_hostname required)",
                ErrorKind::Login,
            ),
        ] {
            assert_eq!(kind_of("XX000", text), kind, "{text}");
        }
        for (text, kind) in [
            ("SASL authentication failed", ErrorKind::Login),
            ("no such user: me", ErrorKind::Login),
            ("no such database: nowhere", ErrorKind::Login),
            (
                "server login failed: FATAL database \"nowhere\" does not exist",
                ErrorKind::Login,
            ),
            (
                "server login failed: FATAL the database system is starting up",
                ErrorKind::Lost,
            ),
            (
                "no more connections allowed (max_client_conn)",
                ErrorKind::Connections,
            ),
            ("server conn crashed?", ErrorKind::Lost),
            ("pgbouncer cannot connect to server", ErrorKind::Lost),
        ] {
            assert_eq!(kind_of("08P01", text), kind, "{text}");
        }
        let of_a_trigger = kind_of("P0001", "no such user: of a trigger");
        assert_eq!(of_a_trigger, ErrorKind::Data);
    }

    #[test]
    fn an_error_about_settings_never_repeats_them() {
        let error = Error::Configuration("postgres://me:hunter2@db".into());
        assert!(!Failure::from(error).to_string().contains("hunter2"));
    }
}
