//! The payload of a `postgres_changes` event, shaped as the real server shapes it.
//!
//! Owns the conversion of Postgres' text values to JSON: numbers keep their digits, timestamps become ISO 8601, JSON is
//! embedded, arrays are parsed. Who receives an event is decided in `changes.rs`.
//!
//! Invariant: the output is valid JSON whatever text a value holds.

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use crate::demo::pgoutput::{OldTuple, RowOperation, TupleValue, WalRow};

/// Rows with more text than this arrive without their large values.
const MAX_ROW_BYTES: usize = 1_048_576;

/// The largest value, in bytes, that is kept of a row that is too large.
const MAX_KEPT_BYTES: usize = 64;

/// Postgres arrays have at most this many dimensions.
const MAX_ARRAY_DEPTH: usize = 6;

/// A published table, as the catalogue describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedTable {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// Its published columns, in order.
    pub columns: Vec<PublishedColumn>,
}

/// A column of a [`PublishedTable`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedColumn {
    /// Its name.
    pub name: String,
    /// The name of its type in `pg_type`.
    pub type_name: String,
    /// How its values look in JSON.
    pub form: JsonForm,
    /// Whether it is part of the primary key.
    pub in_primary_key: bool,
    /// Whether it is part of the replica identity.
    pub in_identity: bool,
}

/// How the values of a type look in JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JsonForm {
    /// A bare number; NaN and the infinities become null.
    Number,
    /// `true` or `false`.
    Boolean,
    /// Embedded as it is.
    Json,
    /// ISO 8601 without a zone.
    Timestamp,
    /// ISO 8601 with `+00:00`.
    TimestampTz,
    /// Hexadecimal digits without the `\x`.
    Bytes,
    /// The first character only: what the real server makes of `char(n)`.
    FirstCharacter,
    /// A string.
    Text,
    /// A JSON array of these.
    Array(Box<JsonForm>),
}

/// A committed change of one row.
#[derive(Debug, Clone, Copy)]
pub struct RowChange<'a> {
    /// The table.
    pub table: &'a PublishedTable,
    /// The change.
    pub row: &'a WalRow<'a>,
    /// When the transaction was committed.
    pub committed_at: DateTime<Utc>,
}

#[derive(Serialize)]
struct Data<'a> {
    table: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<Record<'a>>,
    columns: Vec<ColumnName<'a>>,
    errors: Option<[&'static str; 1]>,
    schema: &'a str,
    commit_timestamp: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    old_record: Option<Record<'a>>,
}

#[derive(Serialize)]
struct ColumnName<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    type_name: &'a str,
}

/// The present values of a row; a value of none is null.
#[derive(Default)]
struct Record<'a>(Vec<(&'a PublishedColumn, Option<&'a str>)>);

impl<'a> RowChange<'a> {
    /// The value of `column` in the new row. None when it is absent or null.
    pub fn value(&self, column: &str) -> Option<&'a str> {
        let mut values = self.record()?.0.into_iter();
        values.find(|(known, _)| known.name == column)?.1
    }

    /// The `data` of the event, as JSON text, for a role that may or may not read the table.
    pub fn data(&self, authorized: bool) -> String {
        let is_delete = self.row.operation == RowOperation::Delete;
        let data = if !self.table.columns.iter().any(|c| c.in_primary_key) {
            self.refused("Error 400: Bad Request, no primary key")
        } else if !authorized && !is_delete {
            self.refused("Error 401: Unauthorized")
        } else {
            self.shown(authorized)
        };
        serde_json::to_string(&data).expect("strings and raw JSON always serialise")
    }

    fn refused(&self, error: &'static str) -> Data<'a> {
        Data {
            table: &self.table.name,
            kind: self.row.operation.name(),
            record: Some(Record::default()),
            columns: Vec::new(),
            errors: Some([error]),
            schema: &self.table.schema,
            commit_timestamp: None,
            old_record: None,
        }
    }

    fn shown(&self, authorized: bool) -> Data<'a> {
        let mut records = [self.record(), self.old_record()];
        let values = records.iter().flatten().flat_map(|record| &record.0);
        let bytes: usize = values.filter_map(|(_, value)| *value).map(str::len).sum();
        let too_large = authorized && bytes > MAX_ROW_BYTES;
        for record in records.iter_mut().flatten() {
            record.0.retain(|(_, value)| {
                authorized && !(too_large && value.is_some_and(|v| v.len() > MAX_KEPT_BYTES))
            });
        }
        let [record, old_record] = records;
        let columns = self.table.columns.iter().filter(|_| authorized);
        Data {
            columns: columns
                .map(|column| ColumnName {
                    name: &column.name,
                    type_name: &column.type_name,
                })
                .collect(),
            record,
            old_record,
            errors: too_large.then_some(["Error 413: Payload Too Large"]),
            commit_timestamp: Some(to_milliseconds(self.committed_at)),
            ..self.refused("")
        }
    }

    /// The row after the change. An out-of-line value that was not touched is taken from the old
    /// row where that is known, else absent.
    fn record(&self) -> Option<Record<'a>> {
        let whole_old = match &self.row.old {
            Some(OldTuple::Full(old)) => Some(old),
            _ => None,
        };
        let present = self.table.columns.iter().zip(self.row.new.as_ref()?);
        let values = present.enumerate().filter_map(|(index, (column, value))| {
            let value = match value {
                TupleValue::UnchangedToast => whole_old?.get(index)?,
                value => value,
            };
            known(column, value)
        });
        Some(Record(values.collect()))
    }

    /// The row before the change: whole under full replica identity, else its key, which an update
    /// that did not change it takes from the new row.
    fn old_record(&self) -> Option<Record<'a>> {
        type Kept = fn(&PublishedColumn) -> bool;
        let (tuple, is_kept): (_, Kept) = match (&self.row.old, &self.row.new) {
            (Some(OldTuple::Full(old)), _) => (old, |_| true),
            (Some(OldTuple::Key(old)), _) => (old, |column| column.in_identity),
            (None, Some(new)) if self.row.operation == RowOperation::Update => {
                (new, |column| column.in_primary_key)
            }
            (None, _) => return None,
        };
        let columns = self.table.columns.iter().zip(tuple);
        let kept = columns.filter(|(column, _)| is_kept(column));
        let values = kept.filter_map(|(column, value)| known(column, value));
        Some(Record(values.collect()))
    }
}

/// A column with its value, unless the value was not sent.
fn known<'a>(
    column: &'a PublishedColumn,
    value: &TupleValue<'a>,
) -> Option<(&'a PublishedColumn, Option<&'a str>)> {
    match value {
        TupleValue::Null => Some((column, None)),
        TupleValue::Text(text) => Some((column, Some(*text))),
        TupleValue::UnchangedToast => None,
    }
}

impl Serialize for Record<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            self.0.iter().map(|(column, value)| {
                (&column.name, value.and_then(|text| column.form.json(text)))
            }),
        )
    }
}

impl JsonForm {
    /// The form of the values of a type, by its name in `pg_type`.
    pub fn of(type_name: &str) -> Self {
        match type_name {
            "int2" | "int4" | "int8" | "numeric" | "float4" | "float8" => Self::Number,
            "bool" => Self::Boolean,
            "json" | "jsonb" => Self::Json,
            "timestamp" => Self::Timestamp,
            "timestamptz" => Self::TimestampTz,
            "bytea" => Self::Bytes,
            "bpchar" => Self::FirstCharacter,
            _ => Self::Text,
        }
    }

    /// The JSON of a value of this form; none is null.
    fn json(&self, text: &str) -> Option<Box<RawValue>> {
        match self {
            Self::Number => RawValue::from_string(text.to_owned()).ok(),
            Self::Boolean => Some(raw(&(text == "t"))),
            Self::Json => RawValue::from_string(text.to_owned())
                .ok()
                .or_else(|| Some(raw(&text))),
            Self::Timestamp => Some(raw(&iso(text))),
            Self::TimestampTz => Some(raw(&with_zone_minutes(&iso(text)))),
            Self::Bytes => Some(raw(&text.strip_prefix("\\x").unwrap_or(text))),
            Self::FirstCharacter => Some(raw(&text.chars().next().map(String::from))),
            Self::Text => Some(raw(&text)),
            Self::Array(element) => {
                let array = ArrayReader { rest: text }.array(element, 0);
                Some(array.unwrap_or_else(|| raw(&text)))
            }
        }
    }
}

/// `2026-11-22 14:59:31.5+00` with a `T`; `infinity` stays as it is.
fn iso(text: &str) -> String {
    text.replacen(
        ' ',
        "T",
        usize::from(text.starts_with(|first: char| first.is_ascii_digit())),
    )
}

/// Postgres prints the zone of the session, UTC, as `+00`.
fn with_zone_minutes(text: &str) -> String {
    match text.split_once("+00") {
        Some((time, era)) if era.is_empty() || era == " BC" => format!("{time}+00:00{era}"),
        _ => text.to_owned(),
    }
}

/// The commit time as events carry it, rounded to milliseconds.
fn to_milliseconds(time: DateTime<Utc>) -> String {
    let rounded = time
        .checked_add_signed(TimeDelta::microseconds(500))
        .unwrap_or(time);
    rounded.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

fn raw(value: &impl Serialize) -> Box<RawValue> {
    serde_json::value::to_raw_value(value).expect("strings and raw JSON always serialise")
}

/// Reads Postgres' text form of an array: `{1,NULL,"a \"b\""}`, nested for more dimensions.
struct ArrayReader<'a> {
    rest: &'a str,
}

impl ArrayReader<'_> {
    /// The whole text as one array, or none when it is not of that form.
    fn array(mut self, element: &JsonForm, depth: usize) -> Option<Box<RawValue>> {
        if self.rest.starts_with('[') {
            self.rest = self.rest.split_once('=')?.1; // bounds that do not start at 1
        }
        let array = self.dimension(element, depth)?;
        self.rest.is_empty().then_some(array)
    }

    fn dimension(&mut self, element: &JsonForm, depth: usize) -> Option<Box<RawValue>> {
        if depth == MAX_ARRAY_DEPTH || !self.skip('{') {
            return None;
        }
        let mut items: Vec<Option<Box<RawValue>>> = Vec::new();
        while !self.skip('}') {
            items.push(match self.rest.chars().next()? {
                '{' => Some(self.dimension(element, depth + 1)?),
                '"' => element.json(&self.quoted()?),
                _ => {
                    let (item, rest) = self.rest.split_at(self.rest.find([',', '}'])?);
                    self.rest = rest;
                    if item == "NULL" {
                        None
                    } else {
                        element.json(item)
                    }
                }
            });
            if !self.skip(',') && !self.rest.starts_with('}') {
                return None;
            }
        }
        Some(raw(&items))
    }

    fn quoted(&mut self) -> Option<String> {
        let mut text = String::new();
        let mut characters = self.rest.strip_prefix('"')?.chars();
        loop {
            match characters.next()? {
                '"' => break,
                '\\' => text.push(characters.next()?),
                character => text.push(character),
            }
        }
        self.rest = characters.as_str();
        Some(text)
    }

    fn skip(&mut self, character: char) -> bool {
        self.rest
            .strip_prefix(character)
            .map(|rest| self.rest = rest)
            .is_some()
    }
}

#[cfg(test)]
mod tests;
