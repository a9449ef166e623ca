//! Access tokens that the agent signs itself: JWTs (RFC 7519) for one Postgres role, signed with the project's JWT secret
//! (HS256) and short-lived.
//!
//! Invariants: neither the secret nor a token can be printed; a token is renewed after half its lifetime, so that a failed
//! renewal leaves time for another.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::domain::secret::Secret;

/// Default lifetime of a token.
pub const LIFETIME: Duration = Duration::from_mins(10);
/// Default role of a token.
pub const ROLE: &str = "service_role";

/// Signs tokens.
#[derive(Clone)]
pub struct Minter {
    secret: Secret,
    role: String,
    lifetime: Duration,
}

impl Minter {
    /// From the project's JWT secret, for a Postgres role.
    pub fn new(secret: Secret, role: String, lifetime: Duration) -> Self {
        Self {
            secret,
            role,
            lifetime,
        }
    }

    /// The Postgres role of its tokens.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// A new token. Its expiry is by this host's clock, while the server checks it by its own.
    pub fn mint(&self) -> Secret {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let expires_at = now.saturating_add(self.lifetime).as_secs();
        let claims = json!({ "iss": "visit-pacer", "role": self.role, "exp": expires_at });
        let header = json!({ "alg": "HS256", "typ": "JWT" });
        Secret::new(sign(&self.secret, &header, &claims))
    }

    /// When a token is to be replaced, after it was signed.
    pub fn renew_after(&self) -> Duration {
        self.lifetime / 2
    }
}

/// A signed JWT.
pub fn sign(secret: &Secret, header: &Value, claims: &Value) -> String {
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let signed = format!("{}.{}", encode(header), encode(claims));
    let signature = mac(secret, &signed).finalize().into_bytes();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// HMAC with SHA-256 (RFC 2104).
pub fn mac(secret: &Secret, signed: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes())
        .expect("HMAC takes keys of any length");
    mac.update(signed.as_bytes());
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::realtime::ApiKey;

    #[test]
    fn a_token_has_its_role_and_lifetime() {
        let secret = Secret::new("a secret of at least 32 characters, for a test");
        let minter = Minter::new(secret, "visit_pacer".to_owned(), Duration::from_secs(600));
        let before = SystemTime::now().duration_since(UNIX_EPOCH).expect("now");
        let ApiKey::Jwt {
            role: Some(role),
            expires_at: Some(at),
        } = ApiKey::read(&minter.mint())
        else {
            panic!("a JWT with role and exp");
        };
        assert_eq!(role, "visit_pacer");
        let lives = u64::try_from(at).expect("after 1970") - before.as_secs();
        assert!((600..=660).contains(&lives), "{lives}");
        assert_eq!(minter.renew_after(), Duration::from_secs(300));
    }
}
