//! What an API key itself says: its kind, role and expiry. The signature of a JWT is not verified; the server does that.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::domain::secret::Secret;

/// An API key by its kind, without the secret.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ApiKey {
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
    /// A JWT that the agent signs itself and renews before it expires.
    Minted {
        /// Its `role`.
        role: String,
    },
    /// None of the kinds that Supabase issues.
    Unknown,
}

impl ApiKey {
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

    fn jwt(claims: &str) -> ApiKey {
        let claims = URL_SAFE_NO_PAD.encode(claims);
        ApiKey::read(&Secret::new(format!("e30.{claims}.c2ln")))
    }

    #[test]
    fn the_kinds_of_keys_are_distinguished() {
        assert_eq!(ApiKey::read(&Secret::new("sb_secret_abc")), ApiKey::Secret);
        assert_eq!(
            ApiKey::read(&Secret::new("sb_publishable_abc")),
            ApiKey::Publishable
        );
        assert_eq!(
            jwt(r#"{"role":"service_role","exp":4102444800}"#),
            ApiKey::Jwt {
                role: Some("service_role".to_owned()),
                expires_at: Some(4_102_444_800)
            }
        );
        assert_eq!(
            jwt("{}"),
            ApiKey::Jwt {
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
            assert_eq!(
                ApiKey::read(&Secret::new(text)),
                ApiKey::Unknown,
                "{text:?}"
            );
        }
    }
}
