//! What can be told of an API key without asking anybody: its kind, its role, until when it is good.
//!
//! The signature of a JWT is not verified; the server does that.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::domain::secret::Secret;

/// A key, without the key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Key {
    /// `sb_secret_…`
    Secret,
    /// `sb_publishable_…`
    Publishable,
    /// A JWT.
    Jwt {
        /// Its `role`.
        role: Option<String>,
        /// Its `exp`, in seconds since the Unix epoch.
        expires_at: Option<i64>,
    },
    /// A JWT that we make ourselves, anew before it expires.
    Minted {
        /// Its `role`.
        role: String,
    },
    /// Nothing that Supabase gives out.
    Unknown,
}

impl Key {
    /// Reads a key.
    pub fn read(key: &Secret) -> Self {
        let text = key.expose();
        if text.starts_with("sb_secret_") {
            return Self::Secret;
        }
        if text.starts_with("sb_publishable_") {
            return Self::Publishable;
        }
        claims(text).map_or(Self::Unknown, |claims| Self::Jwt {
            role: claims
                .get("role")
                .and_then(Value::as_str)
                .map(str::to_owned),
            expires_at: claims.get("exp").and_then(Value::as_i64),
        })
    }
}

/// The claims of a JWT: the middle one of three parts (RFC 7519).
fn claims(text: &str) -> Option<Value> {
    let mut parts = text.split('.');
    let (_header, claims, _signature) = (parts.next()?, parts.next()?, parts.next()?);
    let claims = URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok()?;
    serde_json::from_slice(&claims)
        .ok()
        .filter(Value::is_object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(claims: &str) -> Key {
        let claims = URL_SAFE_NO_PAD.encode(claims);
        Key::read(&Secret::new(format!("e30.{claims}.c2ln")))
    }

    #[test]
    fn the_kinds_of_keys_are_told_apart() {
        assert_eq!(Key::read(&Secret::new("sb_secret_abc")), Key::Secret);
        assert_eq!(
            Key::read(&Secret::new("sb_publishable_abc")),
            Key::Publishable
        );
        assert_eq!(
            jwt(r#"{"role":"service_role","exp":4102444800}"#),
            Key::Jwt {
                role: Some("service_role".to_owned()),
                expires_at: Some(4_102_444_800)
            }
        );
        assert_eq!(
            jwt("{}"),
            Key::Jwt {
                role: None,
                expires_at: None
            }
        );
    }

    #[test]
    fn what_is_no_key_is_unknown() {
        for text in [
            "",
            "a.b",
            "a.b.c",
            "e30.W10.c2ln",
            "e30.é.c",
            "..",
            "password",
        ] {
            assert_eq!(Key::read(&Secret::new(text)), Key::Unknown, "{text:?}");
        }
    }
}
