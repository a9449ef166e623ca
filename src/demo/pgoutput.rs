//! Decodes the messages of Postgres' `pgoutput` plugin, logical replication protocol version 1.
//!
//! Owns the wire format and nothing else: it keeps no state between messages, asks no catalogue and
//! knows no JSON. The format is that of the Postgres manual, "Logical Replication Message Formats".
//!
//! Invariants: input is never trusted. Every read is bounded, no byte sequence panics or allocates
//! more than a small multiple of its own length, and a message is decoded to its last byte or
//! refused.

use std::str;

use chrono::{DateTime, TimeDelta, Utc};
use thiserror::Error;

/// Seconds from the Unix epoch to 2000-01-01, the epoch of Postgres timestamps.
const POSTGRES_EPOCH_SECONDS: i64 = 946_684_800;

/// One message of the stream, borrowing its text from the bytes it was decoded from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// A transaction begins; its changes follow in the order they were made.
    Begin {
        /// Position of the commit record.
        final_lsn: u64,
        /// When the transaction was committed.
        committed_at: DateTime<Utc>,
        /// The transaction.
        xid: u32,
    },
    /// The transaction ends.
    Commit {
        /// Position of the commit record.
        commit_lsn: u64,
        /// Position after the transaction.
        end_lsn: u64,
        /// When the transaction was committed.
        committed_at: DateTime<Utc>,
    },
    /// The transaction came from another server.
    Origin {
        /// Position of the commit on the other server.
        commit_lsn: u64,
        /// Name of the origin.
        name: &'a str,
    },
    /// The shape of a table, sent before its first change.
    Relation(Relation),
    /// A type that is not built in.
    Type {
        /// Oid of the type.
        oid: u32,
        /// Its schema.
        namespace: &'a str,
        /// Its name.
        name: &'a str,
    },
    /// A row was inserted.
    Insert {
        /// Oid of the table.
        relation: u32,
        /// The row.
        new: Tuple<'a>,
    },
    /// A row was updated.
    Update {
        /// Oid of the table.
        relation: u32,
        /// What is known of the row before, if anything.
        old: Option<OldTuple<'a>>,
        /// The row after.
        new: Tuple<'a>,
    },
    /// A row was deleted.
    Delete {
        /// Oid of the table.
        relation: u32,
        /// What is known of the row.
        old: OldTuple<'a>,
    },
    /// Tables were truncated.
    Truncate {
        /// Oids of the tables.
        relations: Vec<u32>,
    },
}

/// The shape of a published table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// Oid of the table.
    pub oid: u32,
    /// Its schema.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What an update or delete tells of the old row.
    pub identity: ReplicaIdentity,
    /// The published columns, in order.
    pub columns: Vec<Column>,
}

/// A column of a [`Relation`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Whether the column is part of the replica identity.
    pub in_identity: bool,
    /// Its name.
    pub name: String,
    /// Oid of its type.
    pub type_oid: u32,
}

/// A table's `REPLICA IDENTITY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicaIdentity {
    /// The primary key.
    Default,
    /// Nothing.
    Nothing,
    /// The whole row.
    Full,
    /// The columns of one unique index.
    Index,
}

/// The values of one row, in the order of the relation's columns.
pub type Tuple<'a> = Vec<Value<'a>>;

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
pub enum Value<'a> {
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

/// Decodes one message.
///
/// # Errors
/// When `bytes` is not exactly one message of protocol version 1.
pub fn decode(bytes: &[u8]) -> Result<Message<'_>, DecodeError> {
    let mut reader = Reader { rest: bytes };
    let message = match reader.u8("message tag")? {
        b'B' => Message::Begin {
            final_lsn: reader.u64("begin")?,
            committed_at: reader.time("begin")?,
            xid: reader.u32("begin")?,
        },
        b'C' => {
            reader.u8("commit flags")?;
            Message::Commit {
                commit_lsn: reader.u64("commit")?,
                end_lsn: reader.u64("commit")?,
                committed_at: reader.time("commit")?,
            }
        }
        b'O' => Message::Origin {
            commit_lsn: reader.u64("origin")?,
            name: reader.text("origin")?,
        },
        b'R' => Message::Relation(reader.relation()?),
        b'Y' => Message::Type {
            oid: reader.u32("type")?,
            namespace: reader.text("type")?,
            name: reader.text("type")?,
        },
        b'I' => {
            let relation = reader.u32("insert")?;
            reader.expect(b'N', "insert")?;
            Message::Insert {
                relation,
                new: reader.tuple()?,
            }
        }
        b'U' => reader.update()?,
        b'D' => {
            let relation = reader.u32("delete")?;
            let tag = reader.u8("delete")?;
            Message::Delete {
                relation,
                old: reader.old_tuple(tag, "delete")?,
            }
        }
        b'T' => reader.truncate()?,
        tag => {
            return Err(DecodeError::UnknownTag {
                what: "message",
                tag,
            });
        }
    };
    match reader.rest.len() {
        0 => Ok(message),
        left => Err(DecodeError::TrailingBytes(left)),
    }
}

/// The bytes of one message that are still to be read.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
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

    fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        self.array(what).map(u64::from_be_bytes)
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

    fn expect(&mut self, tag: u8, what: &'static str) -> Result<(), DecodeError> {
        match self.u8(what)? {
            found if found == tag => Ok(()),
            found => Err(DecodeError::UnknownTag { what, tag: found }),
        }
    }

    fn relation(&mut self) -> Result<Relation, DecodeError> {
        let oid = self.u32("relation")?;
        let namespace = match self.text("relation")? {
            "" => "pg_catalog",
            namespace => namespace,
        };
        let name = self.text("relation")?;
        let identity = match self.u8("relation")? {
            b'd' => ReplicaIdentity::Default,
            b'n' => ReplicaIdentity::Nothing,
            b'f' => ReplicaIdentity::Full,
            b'i' => ReplicaIdentity::Index,
            tag => {
                return Err(DecodeError::UnknownTag {
                    what: "replica identity",
                    tag,
                });
            }
        };
        let count = self.u16("relation")?;
        let columns = (0..count)
            .map(|_| self.column())
            .collect::<Result<_, _>>()?;
        Ok(Relation {
            oid,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity,
            columns,
        })
    }

    fn column(&mut self) -> Result<Column, DecodeError> {
        let flags = self.u8("column")?;
        let name = self.text("column")?.to_owned();
        let type_oid = self.u32("column")?;
        self.u32("column type modifier")?;
        Ok(Column {
            in_identity: flags & 1 == 1,
            name,
            type_oid,
        })
    }

    fn update(&mut self) -> Result<Message<'a>, DecodeError> {
        let relation = self.u32("update")?;
        let old = match self.u8("update")? {
            b'N' => None,
            tag => {
                let old = self.old_tuple(tag, "update")?;
                self.expect(b'N', "update")?;
                Some(old)
            }
        };
        Ok(Message::Update {
            relation,
            old,
            new: self.tuple()?,
        })
    }

    fn old_tuple(&mut self, tag: u8, what: &'static str) -> Result<OldTuple<'a>, DecodeError> {
        match tag {
            b'K' => self.tuple().map(OldTuple::Key),
            b'O' => self.tuple().map(OldTuple::Full),
            tag => Err(DecodeError::UnknownTag { what, tag }),
        }
    }

    fn tuple(&mut self) -> Result<Tuple<'a>, DecodeError> {
        let count = self.u16("tuple")?;
        (0..count).map(|_| self.value()).collect()
    }

    fn value(&mut self) -> Result<Value<'a>, DecodeError> {
        match self.u8("value")? {
            b'n' => Ok(Value::Null),
            b'u' => Ok(Value::UnchangedToast),
            b't' => {
                let length = self.u32("value")?;
                let length =
                    usize::try_from(length).map_err(|_| DecodeError::Truncated("value"))?;
                let text = self.bytes(length, "value")?;
                str::from_utf8(text)
                    .map(Value::Text)
                    .map_err(|_| DecodeError::NotUtf8("value"))
            }
            tag => Err(DecodeError::UnknownTag { what: "value", tag }),
        }
    }

    fn truncate(&mut self) -> Result<Message<'a>, DecodeError> {
        let count = self.u32("truncate")?;
        self.u8("truncate options")?;
        let relations = (0..count)
            .map(|_| self.u32("truncate"))
            .collect::<Result<_, _>>()?;
        Ok(Message::Truncate { relations })
    }
}

#[cfg(test)]
mod tests;
