//! What an event of `postgres_changes` tells: that a row changed, and which.
//!
//! Reads the row's id and its version, nothing else: events carry no order, may be cut short, and
//! lack columns, so the row itself is read from the database. Tolerant of absent and odd fields:
//! what cannot be read makes the change damaged, never an error.

use serde_json::Value;
use uuid::Uuid;

/// A table that is followed. Also the binding of a join: every event of the table, unfiltered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// The schema, such as `public`.
    pub schema: String,
    /// The table's name in the schema.
    pub name: String,
}

impl Table {
    /// The table `name` of the schema `schema`.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            schema: schema.into(),
            name: name.into(),
        }
    }
}

/// What happened to the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// The row is new.
    Insert,
    /// The row was edited.
    Update,
    /// The row is gone.
    Delete,
    /// A kind that this client does not know.
    Other,
}

/// A row changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The table of the row, one of those that were joined for.
    pub table: Table,
    /// What happened.
    pub kind: ChangeKind,
    /// The row's id, where the event names a UUID.
    pub id: Option<Uuid>,
    /// The row's `config_version` after the change, where the event carries it; never on a delete.
    pub config_version: Option<i64>,
    /// Why the event does not tell enough (the server's own errors, an id that is missing): a full
    /// sync is due. `None` on a sound event.
    pub damage: Option<String>,
}

impl Change {
    /// Reads the payload of a `postgres_changes` frame; `None` when not even the table can be told.
    pub fn read(payload: &Value) -> Option<Self> {
        let data = payload.get("data")?;
        let table = Table::new(data.get("schema")?.as_str()?, data.get("table")?.as_str()?);
        let kind = match data.get("type").and_then(Value::as_str) {
            Some("INSERT") => ChangeKind::Insert,
            Some("UPDATE") => ChangeKind::Update,
            Some("DELETE") => ChangeKind::Delete,
            Some(_) | None => ChangeKind::Other,
        };
        let id = ["record", "old_record"]
            .iter()
            .find_map(|row| row_id(data.get(row)?));
        let config_version = data
            .get("record")
            .and_then(|row| row.get("config_version"))
            .and_then(Value::as_i64);
        let damage = server_errors(data.get("errors")).or_else(|| {
            id.is_none()
                .then(|| "the event has no id that is a UUID".to_owned())
        });
        Some(Self {
            table,
            kind,
            id,
            config_version,
            damage,
        })
    }
}

fn row_id(row: &Value) -> Option<Uuid> {
    row.get("id")?.as_str()?.parse().ok()
}

/// The errors of an event in one line, such as `Error 413: Payload Too Large`.
fn server_errors(errors: Option<&Value>) -> Option<String> {
    match errors? {
        Value::Null => None,
        Value::Array(list) if list.is_empty() => None,
        Value::Array(list) => Some(list.iter().map(plain_text).collect::<Vec<_>>().join(", ")),
        other @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => {
            Some(plain_text(other))
        }
    }
}

fn plain_text(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ID: &str = "11111111-1111-1111-1111-111111111111";

    fn read(data: &str) -> Change {
        let data: Value = serde_json::from_str(data).expect("test data is JSON");
        Change::read(&json!({ "data": data, "ids": [43_093_599] })).expect("the table is named")
    }

    #[test]
    fn an_update_tells_the_id_and_the_version_to_its_last_digit() {
        let change = read(&format!(
            r#"{{"schema":"public","table":"visit_distribution","type":"UPDATE","errors":null,
                "record":{{"id":"{ID}","visits_per_unit":1234.50,
                           "config_version":9223372036854775807}},
                "old_record":{{"id":"{ID}"}},"commit_timestamp":"2026-11-22T14:59:32.975Z"}}"#
        ));
        assert_eq!(
            change,
            Change {
                table: Table::new("public", "visit_distribution"),
                kind: ChangeKind::Update,
                id: ID.parse().ok(),
                config_version: Some(i64::MAX),
                damage: None,
            }
        );
    }

    #[test]
    fn a_delete_tells_the_id_of_the_old_row_and_no_version() {
        let change = read(&format!(
            r#"{{"schema":"public","table":"visit_distribution","type":"DELETE","errors":null,
                "old_record":{{"id":"{ID}","config_version":7}}}}"#
        ));
        assert_eq!(change.kind, ChangeKind::Delete);
        assert_eq!(change.id, ID.parse().ok());
        assert_eq!(change.config_version, None);
        assert_eq!(change.damage, None);
    }

    #[test]
    fn an_event_that_was_cut_short_is_damaged_in_the_words_of_the_server() {
        let change = read(&format!(
            r#"{{"schema":"public","table":"visit_distribution","type":"INSERT",
                "record":{{"id":"{ID}"}},"errors":["Error 413: Payload Too Large"]}}"#
        ));
        assert_eq!(change.id, ID.parse().ok());
        assert_eq!(
            change.damage.as_deref(),
            Some("Error 413: Payload Too Large")
        );
    }

    #[test]
    fn an_event_without_a_readable_id_is_damaged() {
        for record in ["{}", r#"{"id":7}"#, r#"{"id":"x"}"#, "null", "[]", "3"] {
            let change = read(&format!(
                r#"{{"schema":"public","table":"t","type":"INSERT","record":{record},"errors":[]}}"#
            ));
            assert_eq!(change.id, None, "{record}");
            assert!(change.damage.is_some(), "{record}");
        }
    }

    #[test]
    fn a_kind_of_the_future_is_a_change_all_the_same() {
        let change = read(&format!(
            r#"{{"schema":"public","table":"t","type":"TRUNCATE","record":{{"id":"{ID}"}}}}"#
        ));
        assert_eq!((change.kind, change.damage), (ChangeKind::Other, None));
    }

    #[test]
    fn a_payload_that_does_not_name_its_table_is_no_change() {
        for payload in [
            json!(null),
            json!({}),
            json!({ "data": [] }),
            json!({ "data": { "table": "t" } }),
        ] {
            assert_eq!(Change::read(&payload), None, "{payload}");
        }
    }
}
