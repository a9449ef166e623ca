//! Payloads against those that the real server sent for the same rows.

use serde_json::Value as Json;

use super::*;

fn column(name: &str, type_name: &str) -> PublishedColumn {
    let form = match type_name.strip_prefix('_') {
        Some(element) => JsonForm::Array(Box::new(JsonForm::of(element))),
        None => JsonForm::of(type_name),
    };
    let key = name == "id";
    PublishedColumn {
        name: name.to_owned(),
        type_name: type_name.to_owned(),
        form,
        in_primary_key: key,
        in_identity: key,
    }
}

fn table(columns: &[(&str, &str)]) -> PublishedTable {
    PublishedTable {
        schema: "public".to_owned(),
        name: "vd".to_owned(),
        columns: columns
            .iter()
            .map(|(name, type_name)| column(name, type_name))
            .collect(),
    }
}

fn time(text: &str) -> DateTime<Utc> {
    DateTime::parse_from_rfc3339(text).expect("a time").to_utc()
}

/// The data of a change, for a role that may read the table or not.
fn data(
    (table, authorized): (&PublishedTable, bool),
    operation: RowOperation,
    new: Option<&[TupleValue<'_>]>,
    old: Option<OldTuple<'_>>,
) -> String {
    let row = WalRow {
        relation: 1,
        operation,
        old,
        new: new.map(<[_]>::to_vec),
    };
    let change = RowChange {
        table,
        row: &row,
        committed_at: DateTime::UNIX_EPOCH,
    };
    change.data(authorized)
}

/// The JSON that a value of a type becomes.
fn shown(type_name: &str, text: &str) -> String {
    let table = table(&[("id", "int8"), ("v", type_name)]);
    let new = [TupleValue::Text("1"), TupleValue::Text(text)];
    let data = data((&table, true), RowOperation::Insert, Some(&new), None);
    let record = data.split_once(r#""v":"#).expect("the value").1;
    record
        .split_once(r#"},"columns""#)
        .expect("the end of the record")
        .0
        .to_owned()
}

#[test]
fn numbers_are_bare_and_keep_their_digits() {
    assert_eq!(shown("numeric", "1234.50"), "1234.50");
    assert_eq!(
        shown("numeric", "12345678901234567890.123456789"),
        "12345678901234567890.123456789"
    );
    assert_eq!(shown("int8", "9223372036854775807"), "9223372036854775807");
    assert_eq!(shown("float4", "1.1"), "1.1");
    assert_eq!(shown("float8", "1e+20"), "1e+20");
    for (type_name, text) in [
        ("numeric", "NaN"),
        ("float8", "Infinity"),
        ("float8", "-Infinity"),
    ] {
        assert_eq!(shown(type_name, text), "null");
    }
}

#[test]
fn times_are_iso_8601() {
    assert_eq!(
        shown("timestamptz", "2026-11-22 14:59:42.40977+00"),
        r#""2026-11-22T14:59:42.40977+00:00""#
    );
    assert_eq!(
        shown("timestamptz", "2030-01-01 00:00:00+00"),
        r#""2030-01-01T00:00:00+00:00""#
    );
    assert_eq!(
        shown("timestamptz", "0044-03-15 00:00:00+00 BC"),
        r#""0044-03-15T00:00:00+00:00 BC""#
    );
    assert_eq!(shown("timestamptz", "infinity"), r#""infinity""#);
    assert_eq!(
        shown("timestamp", "2024-02-29 12:34:56.123456"),
        r#""2024-02-29T12:34:56.123456""#
    );
    assert_eq!(shown("date", "-infinity"), r#""-infinity""#);
    assert_eq!(shown("timetz", "12:34:56+02"), r#""12:34:56+02""#);
}

#[test]
fn other_types_look_as_the_real_server_makes_them() {
    assert_eq!(shown("bool", "t"), "true");
    assert_eq!(shown("bool", "f"), "false");
    assert_eq!(shown("text", "te\"xt€\n"), r#""te\"xt€\n""#);
    assert_eq!(shown("bpchar", "ch   "), r#""c""#);
    assert_eq!(shown("bytea", "\\xdeadbeef"), r#""deadbeef""#);
    assert_eq!(shown("interval", "1 day 02:03:04"), r#""1 day 02:03:04""#);
    assert_eq!(shown("json", r#"{"a": 1.0}"#), r#"{"a": 1.0}"#);
    assert_eq!(shown("inet", "10.0.0.1"), r#""10.0.0.1""#);
}

#[test]
fn arrays_are_json_arrays_of_any_depth() {
    assert_eq!(shown("_int4", "{1,NULL,3}"), "[1,null,3]");
    assert_eq!(shown("_int4", "{}"), "[]");
    assert_eq!(shown("_int4", "{{1,2},{3,4}}"), "[[1,2],[3,4]]");
    assert_eq!(shown("_int4", "[0:1]={7,8}"), "[7,8]");
    assert_eq!(
        shown("_text", r#"{a,"b c",NULL,"NULL","q\"\\"}"#),
        r#"["a","b c",null,"NULL","q\"\\"]"#
    );
    assert_eq!(shown("_bool", "{t,f}"), "[true,false]");
}

#[test]
fn an_array_that_cannot_be_read_is_a_string() {
    for text in ["{1,2", "{1}x", "1", "{{{{{{{1}}}}}}}", "{1;2", "{\"a"] {
        assert_eq!(
            shown("_int4", text),
            format!("{}", Json::from(text)),
            "{text}"
        );
    }
}

#[test]
fn an_insert_has_the_recorded_shape() {
    let table = table(&[
        ("id", "uuid"),
        ("total_visits", "int8"),
        ("end_time", "timestamptz"),
    ]);
    let new = [
        TupleValue::Text("11111111-1111-1111-1111-111111111111"),
        TupleValue::Text("5"),
        TupleValue::Null,
    ];
    let row = WalRow {
        relation: 1,
        operation: RowOperation::Insert,
        old: None,
        new: Some(new.to_vec()),
    };
    let change = RowChange {
        table: &table,
        row: &row,
        committed_at: time("2026-11-22T14:59:31.768979Z"),
    };
    assert_eq!(
        change.data(true),
        r#"{"table":"vd","type":"INSERT","record":{"id":"11111111-1111-1111-1111-111111111111","total_visits":5,"end_time":null},"columns":[{"name":"id","type":"uuid"},{"name":"total_visits","type":"int8"},{"name":"end_time","type":"timestamptz"}],"errors":null,"schema":"public","commit_timestamp":"2026-11-22T14:59:31.769Z"}"#
    );
    assert_eq!(change.value("total_visits"), Some("5"));
    assert_eq!(change.value("end_time"), None);
}

#[test]
fn an_update_has_the_key_as_it_was_before() {
    let table = table(&[("id", "int8"), ("n", "int4")]);
    let new = [TupleValue::Text("2"), TupleValue::Text("0")];
    let moved = OldTuple::Key(vec![TupleValue::Text("1"), TupleValue::Null]);
    for (old, key) in [(None, 2), (Some(moved), 1)] {
        let data = data((&table, true), RowOperation::Update, Some(&new), old);
        let end = format!(r#","old_record":{{"id":{key}}}}}"#);
        assert!(data.ends_with(&end), "{data}");
    }
}

#[test]
fn full_replica_identity_has_the_whole_old_row_and_fills_untouched_values() {
    let table = table(&[("id", "int8"), ("body", "text"), ("n", "int4")]);
    let new = [
        TupleValue::Text("1"),
        TupleValue::UnchangedToast,
        TupleValue::Text("2"),
    ];
    let old = OldTuple::Full(vec![
        TupleValue::Text("1"),
        TupleValue::Text("long"),
        TupleValue::Null,
    ]);
    let full = data((&table, true), RowOperation::Update, Some(&new), Some(old));
    assert!(
        full.contains(r#""record":{"id":1,"body":"long","n":2}"#),
        "{full}"
    );
    assert!(
        full.contains(r#""old_record":{"id":1,"body":"long","n":null}"#),
        "{full}"
    );
    let default = data((&table, true), RowOperation::Update, Some(&new), None);
    assert!(
        default.contains(r#""record":{"id":1,"n":2},"columns":[{"name":"id""#),
        "{default}"
    );
    assert!(
        default.contains(r#"{"name":"body","type":"text"}"#),
        "{default}"
    );
}

#[test]
fn a_delete_has_no_record() {
    let table = table(&[("id", "int8"), ("n", "int4")]);
    let old = OldTuple::Key(vec![TupleValue::Text("1"), TupleValue::Null]);
    let data = data((&table, true), RowOperation::Delete, None, Some(old));
    let data: Json = serde_json::from_str(&data).expect("JSON");
    assert_eq!(data.get("record"), None);
    assert_eq!(data["old_record"], serde_json::json!({ "id": 1 }));
}

#[test]
fn a_row_that_is_too_large_keeps_its_small_values_only() {
    let table = table(&[("id", "int8"), ("body", "text")]);
    let body = "a".repeat(MAX_ROW_BYTES);
    let new = [TupleValue::Text("1"), TupleValue::Text(&body)];
    let data = data((&table, true), RowOperation::Insert, Some(&new), None);
    let data: Json = serde_json::from_str(&data).expect("JSON");
    assert_eq!(data["record"], serde_json::json!({ "id": 1 }));
    assert_eq!(
        data["errors"],
        serde_json::json!(["Error 413: Payload Too Large"])
    );
    assert_eq!(data["columns"].as_array().map(Vec::len), Some(2));
}

#[test]
fn without_key_or_right_the_row_is_hidden() {
    let mut table = table(&[("id", "int8"), ("n", "int4")]);
    let new = [TupleValue::Text("1"), TupleValue::Text("2")];
    let old = OldTuple::Key(vec![TupleValue::Text("1"), TupleValue::Null]);
    assert_eq!(
        data((&table, false), RowOperation::Insert, Some(&new), None),
        r#"{"table":"vd","type":"INSERT","record":{},"columns":[],"errors":["Error 401: Unauthorized"],"schema":"public","commit_timestamp":null}"#
    );
    assert_eq!(
        data((&table, false), RowOperation::Delete, None, Some(old)),
        r#"{"table":"vd","type":"DELETE","columns":[],"errors":null,"schema":"public","commit_timestamp":"1970-01-01T00:00:00.000Z","old_record":{}}"#
    );
    table.columns[0].in_primary_key = false;
    assert_eq!(
        data((&table, false), RowOperation::Insert, Some(&new), None),
        r#"{"table":"vd","type":"INSERT","record":{},"columns":[],"errors":["Error 400: Bad Request, no primary key"],"schema":"public","commit_timestamp":null}"#
    );
}
