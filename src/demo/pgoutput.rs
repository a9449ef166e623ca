//! Decodes the messages of PostgreSQL's `pgoutput` plugin, logical replication protocol version 1.
//!
//! Owns the wire format: it keeps no state between messages and asks no catalogue. The format is described in the PostgreSQL
//! manual, "Logical Replication Message Formats". Only what the Realtime server uses is decoded: transaction starts, relations
//! and rows.
//!
//! Invariants: input is never trusted. Every read is bounded, no byte sequence panics or allocates more than a small multiple
//! of its own length, and a decoded message is read to its last byte or refused.

use std::str;

use chrono::{DateTime, TimeDelta, Utc};
use thiserror::Error;

/// Seconds from the Unix epoch to 2000-01-01, the epoch of Postgres timestamps.
const POSTGRES_EPOCH_SECONDS: i64 = 946_684_800;

/// One message of the stream, borrowing its text from the bytes it was decoded from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalMessage<'a> {
    /// A transaction begins; its changes follow in the order they were made.
    Begin {
        /// When the transaction was committed.
        committed_at: DateTime<Utc>,
    },
    /// The columns of a table, sent before its first change.
    Relation(Relation),
    /// A row was inserted, updated or deleted.
    Row(WalRow<'a>),
    /// A commit, an origin, a type or a TRUNCATE, which is not decoded.
    Ignored,
}

/// The columns of a published table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Oid of the table.
    pub oid: u32,
    /// Its schema.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The published columns, in order.
    pub columns: Vec<RelationColumn>,
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationColumn {
    /// Whether the column is part of the replica identity.
    pub in_identity: bool,
    /// Its name.
    pub name: String,
    /// Oid of its type.
    pub type_oid: u32,
}

/// A change of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalRow<'a> {
    /// Oid of the table.
    pub relation: u32,
    /// What happened to the row.
    pub operation: RowOperation,
    /// What is known of the row before the change.
    pub old: Option<OldTuple<'a>>,
    /// The row after the change; none for a delete.
    pub new: Option<Tuple<'a>>,
}

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowOperation {
    /// It was inserted.
    Insert,
    /// It was updated.
    Update,
    /// It was deleted.
    Delete,
}

/// The values of one row, in the order of the relation's columns.
pub type Tuple<'a> = Vec<TupleValue<'a>>;

/// What is known of a row as it was before its change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// Only the columns of the replica identity are set; the others read as null.
    Key(Tuple<'a>),
    /// The whole row.
    Full(Tuple<'a>),
}

/// One value of a [`Tuple`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TupleValue<'a> {
    /// SQL null.
    Null,
    /// An out-of-line value that the update did not touch, and that is not sent.
    UnchangedToast,
    /// The text form of the value.
    Text(&'a str),
}

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("pgoutput message ends inside {0}; expected more bytes")]
    Truncated(&'static str),
    /// Bytes are left over.
    #[error("pgoutput message has {0} bytes after its end; is it of protocol version 1?")]
    TrailingBytes(usize),
    /// A tag that protocol version 1 does not have.
    #[error("pgoutput {what} has the tag {tag:#04x}, which protocol version 1 does not know")]
    UnknownTag {
        /// What the tag stands before.
        what: &'static str,
        /// The tag.
        tag: u8,
    },
    /// Text that is not UTF-8.
    #[error("pgoutput {0} is not UTF-8; expected a session with client_encoding UTF8")]
    NotUtf8(&'static str),
    /// A time beyond what the calendar holds.
    #[error("pgoutput commit time {0} microseconds from 2000-01-01 is out of range")]
    TimeOutOfRange(i64),
}

impl RowOperation {
    /// The name that SQL and Realtime events use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
        }
    }
}

/// Decodes one message.
///
/// # Errors
/// When `bytes` is not exactly one message of protocol version 1.
pub fn decode(bytes: &[u8]) -> Result<WalMessage<'_>, DecodeError> {
    let mut reader = WalReader { rest: bytes };
    let message = match reader.u8("message tag")? {
        b'B' => {
            reader.array::<8>("begin")?; // the position of the commit
            let committed_at = reader.time("begin")?;
            reader.u32("begin")?; // the transaction's number
            WalMessage::Begin { committed_at }
        }
        b'R' => WalMessage::Relation(reader.relation()?),
        b'I' => WalMessage::Row(reader.row(RowOperation::Insert, "insert")?),
        b'U' => WalMessage::Row(reader.row(RowOperation::Update, "update")?),
        b'D' => WalMessage::Row(reader.row(RowOperation::Delete, "delete")?),
        b'C' | b'O' | b'Y' | b'T' => return Ok(WalMessage::Ignored),
        tag => return Err(unknown_tag("message", tag)),
    };
    match reader.rest.len() {
        0 => Ok(message),
        left => Err(DecodeError::TrailingBytes(left)),
    }
}

fn unknown_tag(what: &'static str, tag: u8) -> DecodeError {
    DecodeError::UnknownTag { what, tag }
}

/// The bytes of one message that are still to be read.
struct WalReader<'a> {
    rest: &'a [u8],
}

impl<'a> WalReader<'a> {
    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(DecodeError::Truncated(what))?;
        self.rest = rest;
        Ok(*head)
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.array(what).map(u8::from_be_bytes)
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        self.array(what).map(u16::from_be_bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.array(what).map(u32::from_be_bytes)
    }

    fn bytes(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let split = self
            .rest
            .split_at_checked(length)
            .ok_or(DecodeError::Truncated(what))?;
        self.rest = split.1;
        Ok(split.0)
    }

    fn time(&mut self, what: &'static str) -> Result<DateTime<Utc>, DecodeError> {
        let micros = self.array(what).map(i64::from_be_bytes)?;
        DateTime::from_timestamp(POSTGRES_EPOCH_SECONDS, 0)
            .and_then(|epoch| epoch.checked_add_signed(TimeDelta::microseconds(micros)))
            .ok_or(DecodeError::TimeOutOfRange(micros))
    }

    /// A string that ends with a zero byte.
    fn text(&mut self, what: &'static str) -> Result<&'a str, DecodeError> {
        let end = self.rest.iter().position(|byte| *byte == 0);
        let text = self.bytes(end.ok_or(DecodeError::Truncated(what))?, what)?;
        self.u8(what)?;
        str::from_utf8(text).map_err(|_| DecodeError::NotUtf8(what))
    }

    fn relation(&mut self) -> Result<Relation, DecodeError> {
        let oid = self.u32("relation")?;
        let namespace = match self.text("relation")? {
            "" => "pg_catalog",
            namespace => namespace,
        };
        let name = self.text("relation")?;
        self.u8("relation")?; // the replica identity, which each column repeats
        let count = self.u16("relation")?;
        let columns = (0..count)
            .map(|_| self.column())
            .collect::<Result<_, _>>()?;
        Ok(Relation {
            oid,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            columns,
        })
    }

    fn column(&mut self) -> Result<RelationColumn, DecodeError> {
        let flags = self.u8("column")?;
        let name = self.text("column")?.to_owned();
        let type_oid = self.u32("column")?;
        self.u32("column type modifier")?;
        Ok(RelationColumn {
            in_identity: flags & 1 == 1,
            name,
            type_oid,
        })
    }

    /// An insert has a new tuple, a delete an old one; an update has a new one, and before it an old one where that is known.
    fn row(
        &mut self,
        operation: RowOperation,
        what: &'static str,
    ) -> Result<WalRow<'a>, DecodeError> {
        let relation = self.u32(what)?;
        let (mut old, mut new) = (None, None);
        match (operation, self.u8(what)?) {
            (RowOperation::Insert | RowOperation::Update, b'N') => new = Some(self.tuple()?),
            (RowOperation::Update | RowOperation::Delete, b'K') => {
                old = Some(OldTuple::Key(self.tuple()?));
            }
            (RowOperation::Update | RowOperation::Delete, b'O') => {
                old = Some(OldTuple::Full(self.tuple()?));
            }
            (_, tag) => return Err(unknown_tag(what, tag)),
        }
        if operation == RowOperation::Update && new.is_none() {
            match self.u8(what)? {
                b'N' => new = Some(self.tuple()?),
                tag => return Err(unknown_tag(what, tag)),
            }
        }
        Ok(WalRow {
            relation,
            operation,
            old,
            new,
        })
    }

    fn tuple(&mut self) -> Result<Tuple<'a>, DecodeError> {
        let count = self.u16("tuple")?;
        (0..count).map(|_| self.value()).collect()
    }

    fn value(&mut self) -> Result<TupleValue<'a>, DecodeError> {
        match self.u8("value")? {
            b'n' => Ok(TupleValue::Null),
            b'u' => Ok(TupleValue::UnchangedToast),
            b't' => {
                let length = usize::try_from(self.u32("value")?)
                    .map_err(|_| DecodeError::Truncated("value"))?;
                str::from_utf8(self.bytes(length, "value")?)
                    .map(TupleValue::Text)
                    .map_err(|_| DecodeError::NotUtf8("value"))
            }
            tag => Err(unknown_tag("value", tag)),
        }
    }
}

#[cfg(test)]
mod tests;
