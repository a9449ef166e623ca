//! Events of `postgres_changes`: which row changed.
//!
//! Reads only the id and the version: events have no order, may be truncated and lack columns, so the row itself is read
//! from the database. A field that cannot be read makes the change damaged; it is never an error.

use serde_json::Value;
use uuid::Uuid;

/// A table whose events are subscribed to, all of them: an UPDATE that leaves a filter is never delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FollowedTable {
    /// The schema, such as `public`.
    pub schema: String,
    /// The table's name in the schema.
    pub name: String,
}

impl FollowedTable {
    /// The table `name` of the schema `schema`.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            schema: schema.into(),
            name: name.into(),
        }
    }
}

/// A row changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The row's table.
    pub table: FollowedTable,
    /// The row's id, if the event has one that is a UUID.
    pub id: Option<Uuid>,
    /// The row's `config_version` after the change, if the event has it; never for a delete.
    pub config_version: Option<i64>,
    /// Why the event does not identify the row (errors of the server, a missing id): a full sync is due.
    pub damage: Option<String>,
}

impl Change {
    /// Reads the payload of a `postgres_changes` frame; `None` if it does not even name its table.
    pub fn read(payload: &Value) -> Option<Self> {
        let data = payload.get("data")?;
        let table = FollowedTable::new(data.get("schema")?.as_str()?, data.get("table")?.as_str()?);
        let id = ["record", "old_record"]
            .iter()
            .find_map(|row| row_id(data.get(row)?));
        let config_version = data
            .get("record")
            .and_then(|row| row.get("config_version"))
            .and_then(Value::as_i64);
        let damage = server_errors(data.get("errors")).or_else(|| {
            id.is_none()
                .then(|| "event without a UUID as id".to_owned())
        });
        Some(Self {
            table,
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
    fn an_update_has_the_id_and_the_version_to_its_last_digit() {
        let change = read(&format!(
            r#"{{"schema":"public","table":"visit_distribution","type":"UPDATE","errors":null,
                "record":{{"id":"{ID}","visits_per_unit":1234.50,
                           "config_version":9223372036854775807}},
                "old_record":{{"id":"{ID}"}},"commit_timestamp":"2026-11-22T14:59:32.975Z"}}"#
        ));
        assert_eq!(
            change,
            Change {
                table: FollowedTable::new("public", "visit_distribution"),
                id: ID.parse().ok(),
                config_version: Some(i64::MAX),
                damage: None,
            }
        );
    }

    #[test]
    fn a_delete_has_the_id_of_the_old_row_and_no_version() {
        let change = read(&format!(
            r#"{{"schema":"public","table":"visit_distribution","type":"DELETE","errors":null,
                "old_record":{{"id":"{ID}","config_version":7}}}}"#
        ));
        assert_eq!(change.id, ID.parse().ok());
        assert_eq!(change.config_version, None);
        assert_eq!(change.damage, None);
    }

    #[test]
    fn a_truncated_event_is_damaged_with_the_message_of_the_server() {
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
    fn an_event_of_an_unknown_type_is_a_change() {
        let change = read(&format!(
            r#"{{"schema":"public","table":"t","type":"TRUNCATE","record":{{"id":"{ID}"}}}}"#
        ));
        assert_eq!((change.id, change.damage), (ID.parse().ok(), None));
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
