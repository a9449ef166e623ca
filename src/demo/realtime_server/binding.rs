//! What a client asks of `postgres_changes`: bindings, their ids and their filters.
//!
//! Owns the reading of a binding's parameters and the test of a row against its filters. Whether
//! the table and its columns exist is the database's to say, in `slot.rs`.
//!
//! Invariants: equal parameters give equal ids, in every process; a value that is absent or null
//! passes no filter.

use std::{cmp::Ordering, fmt};

use serde_json::{Map, Value};

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
    /// The kind of change that is asked for; none is every kind.
    pub kind: Option<ChangeKind>,
    /// A `LIKE` pattern of schemas, or `*`.
    pub schema: String,
    /// A `LIKE` pattern of tables, or `*`.
    pub table: String,
    /// All of these must hold.
    pub filters: Vec<Filter>,
    /// The columns that are asked for beside the key; none is all of them.
    pub select: Option<Vec<String>>,
}

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was inserted.
    Insert,
    /// It was updated.
    Update,
    /// It was deleted.
    Delete,
}

/// `column=operator.value`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// The column whose value is compared.
    pub column: String,
    /// How it is compared.
    pub operator: Operator,
    /// With what: one value, or those of the list for [`Operator::In`].
    pub operands: Vec<String>,
}

/// How a filter compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    /// Equal.
    Eq,
    /// Not equal.
    Neq,
    /// Less.
    Lt,
    /// Less or equal.
    Lte,
    /// Greater.
    Gt,
    /// Greater or equal.
    Gte,
    /// Equal to one of a list.
    In,
}

/// A filter whose operands the database has put into the text form of the column's type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    /// The filter.
    pub filter: Filter,
    /// Whether the column holds numbers; other types are compared by their text.
    pub numeric: bool,
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

    /// What the binding asks for.
    ///
    /// # Errors
    /// With the message that the real server puts into its `system` event.
    pub fn target(&self) -> Result<Target, String> {
        let text = |name: &str| self.params.get(name).and_then(Value::as_str);
        if text("schema").is_none() && text("table").is_none() {
            return Err(format!(
                "No subscription params provided. Please provide at least a `schema` or `table` \
                 to subscribe to: {}",
                inspect_map(&self.params)
            ));
        }
        let select = self
            .params
            .get("select")
            .and_then(Value::as_array)
            .map(|columns| {
                columns
                    .iter()
                    .filter_map(Value::as_str)
                    .map(ToOwned::to_owned)
                    .collect()
            });
        Ok(Target {
            id: self.id,
            kind: text("event").and_then(ChangeKind::named),
            schema: text("schema").unwrap_or("public").to_owned(),
            table: text("table").unwrap_or("*").to_owned(),
            filters: parse_filters(text("filter").unwrap_or_default())?,
            select,
        })
    }
}

/// The form in which the real server names a binding in its messages.
impl fmt::Display for Target {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let filters: Vec<String> = self.filters.iter().map(inspect_filter).collect();
        let select = self.select.as_ref().map(|columns| inspect_list(columns));
        write!(
            formatter,
            "[event: {}, schema: {}, table: {}, filters: [{}], select: {}]",
            self.kind.map_or("*", ChangeKind::name),
            self.schema,
            self.table,
            filters.join(", "),
            select.as_deref().unwrap_or("nil"),
        )
    }
}

impl ChangeKind {
    /// The name that events carry.
    pub fn name(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }

    fn named(name: &str) -> Option<Self> {
        [Self::Insert, Self::Update, Self::Delete]
            .into_iter()
            .find(|kind| kind.name().eq_ignore_ascii_case(name))
    }
}

impl Operator {
    const ALL: [(Self, &str); 7] = [
        (Self::Eq, "eq"),
        (Self::Neq, "neq"),
        (Self::Lt, "lt"),
        (Self::Lte, "lte"),
        (Self::Gt, "gt"),
        (Self::Gte, "gte"),
        (Self::In, "in"),
    ];

    fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|(_, known)| *known == name)
            .map(|(operator, _)| operator)
    }

    fn name(self) -> &'static str {
        Self::ALL
            .into_iter()
            .find(|(known, _)| *known == self)
            .map_or("", |(_, name)| name)
    }
}

impl Test {
    /// Whether a row passes whose column holds `value`; none is absent or null.
    pub fn passes(&self, value: Option<&str>) -> bool {
        let Some(value) = value else { return false };
        self.filter.operands.iter().any(|operand| {
            let ordering = if self.numeric {
                compare_numbers(value, operand)
            } else {
                Some(value.cmp(operand))
            };
            let Some(ordering) = ordering else {
                return false;
            };
            match self.filter.operator {
                Operator::Eq | Operator::In => ordering.is_eq(),
                Operator::Neq => ordering.is_ne(),
                Operator::Lt => ordering.is_lt(),
                Operator::Lte => ordering.is_le(),
                Operator::Gt => ordering.is_gt(),
                Operator::Gte => ordering.is_ge(),
            }
        })
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

fn parse_filters(text: &str) -> Result<Vec<Filter>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    split_outside_parentheses(text)
        .into_iter()
        .map(parse_filter)
        .collect()
}

fn parse_filter(text: &str) -> Result<Filter, String> {
    let refused = |parts: &[&str]| {
        let parts: Vec<String> = parts.iter().map(|part| (*part).to_owned()).collect();
        format!("Error parsing `filter` params: {}", inspect_list(&parts))
    };
    let (column, rest) = text.split_once('=').ok_or_else(|| refused(&[text]))?;
    let (name, value) = rest.split_once('.').ok_or_else(|| refused(&[rest]))?;
    let operator = Operator::named(name).ok_or_else(|| refused(&[name, value]))?;
    let operands = match operator {
        Operator::In => value
            .strip_prefix('(')
            .and_then(|list| list.strip_suffix(')'))
            .ok_or_else(|| refused(&[name, value]))?
            .split(',')
            .map(ToOwned::to_owned)
            .collect(),
        _ => vec![value.to_owned()],
    };
    Ok(Filter {
        column: column.to_owned(),
        operator,
        operands,
    })
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    text.split(move |character| {
        match character {
            '(' => depth = depth.saturating_add(1),
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        character == ',' && depth == 0
    })
    .collect()
}

/// Compares two numbers as Postgres prints them: decimals exactly, others as floating point.
fn compare_numbers(left: &str, right: &str) -> Option<Ordering> {
    match (Decimal::parse(left), Decimal::parse(right)) {
        (Some(left), Some(right)) => Some(left.compare(&right)),
        _ => left
            .parse::<f64>()
            .ok()?
            .partial_cmp(&right.parse::<f64>().ok()?),
    }
}

/// A decimal without leading zeros before the point or trailing zeros after it.
struct Decimal<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
}

impl<'a> Decimal<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() || !(whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit())
        {
            return None;
        }
        let whole = whole.trim_start_matches('0');
        let fraction = fraction.trim_end_matches('0');
        let zero = whole.is_empty() && fraction.is_empty();
        Some(Self {
            negative: text.starts_with('-') && !zero,
            whole,
            fraction,
        })
    }

    fn compare(&self, other: &Self) -> Ordering {
        let magnitude = |decimal: &Self| (decimal.whole.len(), decimal.whole, decimal.fraction);
        match (self.negative, other.negative) {
            (false, false) => magnitude(self).cmp(&magnitude(other)),
            (true, true) => magnitude(other).cmp(&magnitude(self)),
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
        }
    }
}

fn inspect_filter(filter: &Filter) -> String {
    let value = match filter.operator {
        Operator::In => format!("{{{}}}", filter.operands.join(",")),
        _ => filter.operands.join(","),
    };
    format!(
        "{{{:?}, {:?}, {value:?}, false}}",
        filter.column,
        filter.operator.name()
    )
}

fn inspect_list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| format!("{item:?}")).collect();
    format!("[{}]", items.join(", "))
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

    fn test(filter: &str, numeric: bool) -> Test {
        let filter = parse_filter(filter).expect("a filter");
        Test { filter, numeric }
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
        let kind = |event: &str| {
            binding(&json!({"event": event, "table": "t"}))
                .target()
                .expect("a target")
                .kind
        };
        assert_eq!(kind("update"), Some(ChangeKind::Update));
        assert_eq!(kind("DELETE"), Some(ChangeKind::Delete));
        assert_eq!(kind("*"), None);
        assert_eq!(kind("FOO"), None);
    }

    #[test]
    fn a_target_is_named_as_the_real_server_names_it() {
        let target = |params: &Value| binding(params).target().expect("a target").to_string();
        assert_eq!(
            target(&json!({"event": "*", "schema": "public", "table": "no_such"})),
            "[event: *, schema: public, table: no_such, filters: [], select: nil]"
        );
        assert_eq!(
            target(&json!({"schema": "public", "table": "t", "filter": "nope=eq.true"})),
            r#"[event: *, schema: public, table: t, filters: [{"nope", "eq", "true", false}], select: nil]"#
        );
        assert_eq!(
            target(&json!({"schema": "mj"})),
            "[event: *, schema: mj, table: *, filters: [], select: nil]"
        );
    }

    #[test]
    fn what_cannot_be_understood_is_refused_in_the_real_servers_words() {
        let refusal = |params: &Value| binding(params).target().expect_err("refused");
        let filter = |filter: &str| refusal(&json!({"table": "t", "filter": filter}));
        assert_eq!(
            filter("is_active"),
            r#"Error parsing `filter` params: ["is_active"]"#
        );
        assert_eq!(
            filter("is_active=foo.true"),
            r#"Error parsing `filter` params: ["foo", "true"]"#
        );
        assert_eq!(
            refusal(&json!({})),
            "No subscription params provided. Please provide at least a `schema` or `table` to \
             subscribe to: %{}"
        );
    }

    #[test]
    fn several_filters_are_split_at_commas_outside_lists() {
        let target = binding(&json!({"table": "t", "filter": "a=eq.true,b=in.(1,2),c=gt.0"}))
            .target()
            .expect("a target");
        let columns: Vec<_> = target
            .filters
            .iter()
            .map(|filter| filter.column.as_str())
            .collect();
        assert_eq!(columns, ["a", "b", "c"]);
        assert_eq!(target.filters[1].operands, ["1", "2"]);
    }

    #[test]
    fn numbers_are_compared_exactly() {
        let big = "9007199254740993";
        assert!(test("n=gt.9007199254740992", true).passes(Some(big)));
        assert!(test("n=eq.1.5", true).passes(Some("1.50")));
        assert!(test("n=lt.-1", true).passes(Some("-10")));
        assert!(test("n=lte.0", true).passes(Some("-0.00")));
        assert!(test("n=gte.9", true).passes(Some("10")));
        assert!(!test("n=lt.0.10", true).passes(Some("0.1")));
        assert!(test("n=lt.1e+20", true).passes(Some("5")));
        assert!(!test("n=eq.1", true).passes(Some("NaN")));
    }

    #[test]
    fn other_types_are_compared_by_their_text() {
        assert!(test("b=eq.t", false).passes(Some("t")));
        assert!(test("b=neq.t", false).passes(Some("f")));
        assert!(test("s=in.(a,b)", false).passes(Some("b")));
        assert!(!test("s=in.(a,b)", false).passes(Some("c")));
        let earlier = "2026-11-22 14:59:31+00";
        assert!(
            test("t=gt.2026-11-22 14:59:31+00", false).passes(Some("2026-11-22 14:59:31.5+00"))
        );
        assert!(!test("t=gt.2026-11-22 14:59:31+00", false).passes(Some(earlier)));
    }

    #[test]
    fn an_absent_or_null_value_passes_no_filter() {
        for filter in ["c=eq.1", "c=neq.1", "c=in.(1)"] {
            assert!(!test(filter, true).passes(None), "{filter}");
        }
    }
}
