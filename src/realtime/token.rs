//! A token of our own making: a JWT (RFC 7519) signed with the project's JWT secret (HS256), for one Postgres role and a few
//! minutes.
//!
//! Owns the form of the token and how long one lives. Does not own when a new one is sent: that is the feed's.
//!
//! Invariants: neither the secret nor a token can be printed; a token is renewed after half its life, so that a renewal that
//! fails leaves time for another.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::domain::secret::Secret;

/// How long a token is good for, unless told otherwise.
pub const LIFETIME: Duration = Duration::from_mins(10);
/// Whose token it is, unless told otherwise.
pub const ROLE: &str = "service_role";

/// Makes tokens.
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

    /// The role that its tokens act as.
    pub fn role(&self) -> &str {
        &self.role
    }

    /// A token that is good from now on, by this host's clock: the server checks it by its own.
    pub fn mint(&self) -> Secret {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let expires_at = now.saturating_add(self.lifetime).as_secs();
        let claims = json!({ "iss": "visit-pacer", "role": self.role, "exp": expires_at });
        let header = json!({ "alg": "HS256", "typ": "JWT" });
        Secret::new(sign(&self.secret, &header, &claims))
    }

    /// After how long the next token is due.
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

/// The code that authenticates a text: HMAC with SHA-256 (RFC 2104).
pub fn mac(secret: &Secret, signed: &str) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes())
        .expect("HMAC takes keys of any length");
    mac.update(signed.as_bytes());
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::realtime::Key;

    #[test]
    fn a_token_is_for_its_role_and_ends_when_it_is_told_to() {
        let secret = Secret::new("a secret of at least 32 characters, for a test");
        let minter = Minter::new(secret, "visit_pacer".to_owned(), Duration::from_secs(600));
        let before = SystemTime::now().duration_since(UNIX_EPOCH).expect("now");
        let Key::Jwt {
            role: Some(role),
            expires_at: Some(at),
        } = Key::read(&minter.mint())
        else {
            panic!("a JWT with role and exp");
        };
        assert_eq!(role, "visit_pacer");
        let lives = u64::try_from(at).expect("after 1970") - before.as_secs();
        assert!((600..=660).contains(&lives), "{lives}");
        assert_eq!(minter.renew_after(), Duration::from_secs(300));
    }
}
