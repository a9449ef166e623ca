//! JSON Web Tokens of the demo's Realtime server: HS256 only, the `role` and `exp` claims only.
//!
//! Owns the claims of the demo's keys and their verification; [`crate::realtime::token`] signs. Other algorithms, `nbf`, `aud`
//! and key rotation are not supported.
//!
//! Invariant: nothing of a token is used before its signature has been verified.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use hmac::Mac as _;
use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;

use crate::domain::secret::Secret;
use crate::realtime::token::{mac, sign};

/// The claims of a valid token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// The Postgres role that the bearer acts as.
    pub role: String,
    /// When the token stops being valid, in seconds since the Unix epoch.
    pub expires_at: i64,
}

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum JwtError {
    /// Not three parts of base64url with JSON in them, or not HS256.
    #[error("The token provided is not a valid JWT")]
    Malformed,
    /// Signed with another secret, or changed since.
    #[error("Failed to validate JWT signature")]
    Signature,
    /// `role` or `exp` is absent.
    #[error("Fields `role` and `exp` are required in JWT")]
    MissingClaims,
    /// It has expired.
    #[error("Token has expired {seconds_ago} seconds ago")]
    Expired {
        /// Seconds since the token expired.
        seconds_ago: i64,
    },
}

#[derive(Deserialize)]
struct Header {
    alg: String,
}

/// A token for `role` that is valid until `expires_at` (seconds since the Unix epoch).
pub fn mint(secret: &Secret, role: &str, expires_at: i64) -> String {
    let header = json!({ "alg": "HS256", "typ": "JWT" });
    let claims = json!({ "iss": "visit-pacer-demo", "role": role, "exp": expires_at });
    sign(secret, &header, &claims)
}

/// Verifies `token` at `now` (seconds since the Unix epoch).
///
/// # Errors
/// When the token is malformed, signed with another secret, without `role` or `exp`, or expired, in this order.
pub fn verify(secret: &Secret, token: &str, now: i64) -> Result<Claims, JwtError> {
    let (signed, signature) = token.rsplit_once('.').ok_or(JwtError::Malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(JwtError::Malformed)?;
    let header: Header = decode(header)?;
    let claims: Value = decode(claims)?;
    let signature = URL_SAFE_NO_PAD
        .decode(signature)
        .map_err(|_| JwtError::Malformed)?;
    if header.alg != "HS256" {
        return Err(JwtError::Malformed);
    }
    mac(secret, signed)
        .verify_slice(&signature)
        .map_err(|_| JwtError::Signature)?;
    let role = claims
        .get("role")
        .and_then(Value::as_str)
        .ok_or(JwtError::MissingClaims)?;
    let expires_at = claims
        .get("exp")
        .and_then(Value::as_i64)
        .ok_or(JwtError::MissingClaims)?;
    if expires_at <= now {
        return Err(JwtError::Expired {
            seconds_ago: now.saturating_sub(expires_at),
        });
    }
    Ok(Claims {
        role: role.to_owned(),
        expires_at,
    })
}

fn decode<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, JwtError> {
    let bytes = URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| JwtError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| JwtError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn secret() -> Secret {
        Secret::new("a secret of the demo, at least 32 characters long")
    }

    #[test]
    fn a_minted_token_is_valid_until_the_second_it_expires() {
        let token = mint(&secret(), "service_role", NOW + 60);
        let claims = Claims {
            role: "service_role".to_owned(),
            expires_at: NOW + 60,
        };
        assert_eq!(verify(&secret(), &token, NOW), Ok(claims.clone()));
        assert_eq!(verify(&secret(), &token, NOW + 59), Ok(claims));
        let expired = |seconds_ago| Err(JwtError::Expired { seconds_ago });
        assert_eq!(verify(&secret(), &token, NOW + 60), expired(0));
        assert_eq!(verify(&secret(), &token, NOW + 65), expired(5));
    }

    #[test]
    fn a_token_made_by_another_implementation_is_understood() {
        // HS256 over {"alg":"HS256","typ":"JWT"} and the claims below, made with OpenSSL.
        let token = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.\
            eyJyb2xlIjoiYW5vbiIsImV4cCI6MjAwMDAwMDAwMH0.uUY0e2VK9RvBIi3GqOvRDICDSlp8_9lcbY-sX9UnUPQ";
        let secret = Secret::new("super-secret-jwt-token-with-at-least-32-characters-long");
        let claims = Claims {
            role: "anon".to_owned(),
            expires_at: 2_000_000_000,
        };
        assert_eq!(verify(&secret, token, NOW), Ok(claims));
    }

    #[test]
    fn a_token_of_another_secret_or_with_changed_claims_is_refused() {
        let token = mint(&Secret::new("another"), "service_role", NOW + 60);
        assert_eq!(verify(&secret(), &token, NOW), Err(JwtError::Signature));
        let anon = mint(&secret(), "anon", NOW + 60);
        let claims = token.split('.').nth(1).expect("three parts");
        let mut parts: Vec<&str> = anon.split('.').collect();
        parts[1] = claims;
        assert_eq!(
            verify(&secret(), &parts.join("."), NOW),
            Err(JwtError::Signature)
        );
    }

    #[test]
    fn a_token_without_role_or_exp_is_refused() {
        let header = json!({ "alg": "HS256" });
        for claims in [json!({ "exp": NOW + 60 }), json!({ "role": "anon" })] {
            let token = sign(&secret(), &header, &claims);
            assert_eq!(verify(&secret(), &token, NOW), Err(JwtError::MissingClaims));
        }
    }

    #[test]
    fn an_unsigned_token_is_refused() {
        let claims = json!({ "role": "service_role", "exp": NOW + 60 });
        let token = sign(&secret(), &json!({ "alg": "none" }), &claims);
        assert_eq!(verify(&secret(), &token, NOW), Err(JwtError::Malformed));
    }

    #[test]
    fn what_is_no_token_is_malformed() {
        for text in [
            "",
            "abc",
            "a.b",
            "a.b.c",
            "..",
            "e30.e30.",
            "sb_secret_abc",
            "é.é.é",
        ] {
            assert_eq!(
                verify(&secret(), text, NOW),
                Err(JwtError::Malformed),
                "{text}"
            );
        }
    }
}
