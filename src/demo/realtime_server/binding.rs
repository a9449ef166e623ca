//! What a client subscribes to with `postgres_changes`: bindings and their ids.
//!
//! Owns the reading of a binding's parameters. Whether the table exists is decided in `slot.rs`. Filters and column selections
//! are not implemented and refused by name, since the agent subscribes to every change of whole rows.
//!
//! Invariant: equal parameters give equal ids, in every process.

use std::fmt;

use serde_json::{Map, Value};

use crate::demo::pgoutput::RowOperation;

/// Ids are below this, as those of Erlang's `phash2` are.
const ID_RANGE: u32 = 1 << 27;

/// The parameters of one binding, as the client sent them.
#[derive(Debug, Clone, PartialEq)]
pub struct Binding {
    /// What events will carry in `ids` when they match.
    pub id: u32,
    params: Map<String, Value>,
}

/// A binding that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The id of the binding.
    pub id: u32,
    /// The requested operation; none is every operation.
    pub operation: Option<RowOperation>,
    /// A `LIKE` pattern of schemas, or `*`.
    pub schema: String,
    /// A `LIKE` pattern of tables, or `*`.
    pub table: String,
}

impl Binding {
    /// Takes the parameters of one binding.
    pub fn new(params: Map<String, Value>) -> Self {
        Self {
            id: stable_hash(&params),
            params,
        }
    }

    /// The binding as a join reply lists it, as JSON text.
    pub fn described(&self) -> String {
        let params = Value::Object(self.params.clone()).to_string();
        match params.strip_prefix('{') {
            Some("}") | None => format!(r#"{{"id":{}}}"#, self.id),
            Some(rest) => format!(r#"{{"id":{},{rest}"#, self.id),
        }
    }

    /// What the binding subscribes to.
    ///
    /// # Errors
    /// With the message for the client's `system` event.
    pub fn target(&self) -> Result<Target, String> {
        let text = |name: &str| self.params.get(name).and_then(Value::as_str);
        if text("schema").is_none() && text("table").is_none() {
            return Err(format!(
                "No subscription params provided. Please provide at least a `schema` or `table` \
                 to subscribe to: {}",
                inspect_map(&self.params)
            ));
        }
        if text("filter").is_some_and(|filter| !filter.is_empty()) {
            return Err(unsupported("filter"));
        }
        if self.params.contains_key("select") {
            return Err(unsupported("select"));
        }
        let operations = [
            RowOperation::Insert,
            RowOperation::Update,
            RowOperation::Delete,
        ];
        Ok(Target {
            id: self.id,
            operation: text("event").and_then(|event| {
                let mut named = operations.into_iter();
                named.find(|operation| operation.name().eq_ignore_ascii_case(event))
            }),
            schema: text("schema").unwrap_or("public").to_owned(),
            table: text("table").unwrap_or("*").to_owned(),
        })
    }
}

/// The message for what the real server has and this one does not.
pub fn unsupported(what: &str) -> String {
    format!(
        "NotSupported: this development server has changes and broadcasts from the database only, not `{what}`"
    )
}

/// The form in which the real server names a binding in its messages.
impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "[event: {}, schema: {}, table: {}, filters: [], select: nil]",
            self.operation.map_or("*", RowOperation::name),
            self.schema,
            self.table,
        )
    }
}

/// FNV-1a over the parameters' JSON, whose keys are sorted.
fn stable_hash(params: &Map<String, Value>) -> u32 {
    let text = Value::Object(params.clone()).to_string();
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    (hash ^ (hash >> 27)) % ID_RANGE
}

fn inspect_map(map: &Map<String, Value>) -> String {
    let entries: Vec<String> = map
        .iter()
        .map(|(key, value)| format!("{key:?} => {value}"))
        .collect();
    format!("%{{{}}}", entries.join(", "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn binding(params: &Value) -> Binding {
        Binding::new(params.as_object().expect("an object").clone())
    }

    #[test]
    fn equal_parameters_give_the_same_id_always() {
        let one =
            binding(&json!({"event": "*", "schema": "public", "table": "visit_distribution"}));
        let same =
            binding(&json!({"table": "visit_distribution", "schema": "public", "event": "*"}));
        let other = binding(&json!({"event": "INSERT", "schema": "public", "table": "t"}));
        assert_eq!(one.id, same.id);
        assert_ne!(one.id, other.id);
        assert_eq!(
            one.id, 30_325_631,
            "a changed hash would be seen by clients that compare ids"
        );
    }

    #[test]
    fn a_join_reply_lists_the_binding_after_its_id() {
        let binding = binding(&json!({"schema": "public", "event": "*", "table": "t"}));
        let expected = format!(
            r#"{{"id":{},"event":"*","schema":"public","table":"t"}}"#,
            binding.id
        );
        assert_eq!(binding.described(), expected);
        let empty = Binding::new(Map::new());
        assert_eq!(empty.described(), format!(r#"{{"id":{}}}"#, empty.id));
    }

    #[test]
    fn event_names_are_read_in_any_case_and_unknown_ones_mean_every_change() {
        let operation = |event: &str| {
            binding(&json!({"event": event, "table": "t"}))
                .target()
                .expect("a target")
                .operation
        };
        assert_eq!(operation("update"), Some(RowOperation::Update));
        assert_eq!(operation("DELETE"), Some(RowOperation::Delete));
        assert_eq!(operation("*"), None);
        assert_eq!(operation("FOO"), None);
    }

    #[test]
    fn a_target_is_named_as_the_real_server_names_it() {
        let target = |params: &Value| binding(params).target().expect("a target").to_string();
        assert_eq!(
            target(&json!({"event": "*", "schema": "public", "table": "no_such", "filter": ""})),
            "[event: *, schema: public, table: no_such, filters: [], select: nil]"
        );
        assert_eq!(
            target(&json!({"schema": "mj"})),
            "[event: *, schema: mj, table: *, filters: [], select: nil]"
        );
    }

    #[test]
    fn what_is_not_understood_or_not_supported_is_refused() {
        let refusal = |params: &Value| binding(params).target().expect_err("refused");
        assert_eq!(
            refusal(&json!({})),
            "No subscription params provided. Please provide at least a `schema` or `table` to \
             subscribe to: %{}"
        );
        let filtered = refusal(&json!({"table": "t", "filter": "is_active=eq.true"}));
        assert!(filtered.ends_with("only, not `filter`"), "{filtered}");
        let selected = refusal(&json!({"table": "t", "select": ["id"]}));
        assert!(selected.ends_with("only, not `select`"), "{selected}");
    }
}
