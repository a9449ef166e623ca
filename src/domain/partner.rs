//! A partner's id, opaque: the user's tables may have ids of type uuid, bigint, integer or text.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use compact_str::CompactString;
use serde::{Serialize, Serializer};
use uuid::Uuid;

/// An id as PostgreSQL writes it as text. A UUID, the usual case, takes no allocation.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum PartnerId {
    /// Of type uuid.
    Uuid(Uuid),
    /// Of another type, or a text that is no UUID in its canonical form.
    Text(CompactString),
}

impl From<&str> for PartnerId {
    fn from(text: &str) -> Self {
        let mut buffer = Uuid::encode_buffer();
        match Uuid::try_parse(text) {
            Ok(id) if *id.hyphenated().encode_lower(&mut buffer) == *text => Self::Uuid(id),
            Ok(_) | Err(_) => Self::Text(text.into()),
        }
    }
}

impl From<Uuid> for PartnerId {
    fn from(id: Uuid) -> Self {
        Self::Uuid(id)
    }
}

impl FromStr for PartnerId {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(text.into())
    }
}

impl fmt::Display for PartnerId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uuid(id) => id.fmt(formatter),
            Self::Text(text) => text.fmt(formatter),
        }
    }
}

impl Serialize for PartnerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_keeps_its_text_whatever_its_type() {
        for (text, is_uuid) in [
            ("e2731c06-58b4-4f37-96c7-f721af43263c", true),
            ("E2731C06-58B4-4F37-96C7-F721AF43263C", false),
            ("e2731c0658b44f3796c7f721af43263c", false),
            ("42", false),
            ("ckv2x8m1q0000qzrmn831i7rn", false),
            ("", false),
        ] {
            let id = PartnerId::from(text);
            assert_eq!(id.to_string(), text);
            assert_eq!(matches!(id, PartnerId::Uuid(_)), is_uuid, "{text}");
        }
    }
}
