//! The proofs of knowing the token: the token itself, or the cookie of a login.
//!
//! A cookie is `ISSUED.CODE`: the second since 1970 in which it was issued, and its HMAC-SHA256 (RFC 2104) under the token. It
//! reveals nothing of the token and ends after [`COOKIE_SECONDS`], or with the token. Comparisons take constant time. Pure: the
//! caller has the clock.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::domain::secret::Secret;

/// How long a login lasts.
pub const COOKIE_SECONDS: u64 = 12 * 3600;
/// Tolerated difference between the clocks of two agents that serve one host name, in seconds.
const SKEW: u64 = 60;

/// The value of a cookie that is issued at `now`, in seconds since 1970.
pub fn cookie(token: &Secret, now: u64) -> String {
    let code = code(token, &issued_at(now)).finalize().into_bytes();
    format!("{now}.{}", URL_SAFE_NO_PAD.encode(code))
}

/// Whether `given` is a cookie that is valid at `now`, in seconds since 1970.
pub fn is_cookie(token: &Secret, now: u64, given: &str) -> bool {
    let Some((issued, signature)) = given.split_once('.') else {
        return false;
    };
    let (Ok(issued), Ok(signature)) = (issued.parse::<u64>(), URL_SAFE_NO_PAD.decode(signature))
    else {
        return false;
    };
    let is_ours = code(token, &issued_at(issued))
        .verify_slice(&signature)
        .is_ok();
    is_ours && issued <= now.saturating_add(SKEW) && now < issued.saturating_add(COOKIE_SECONDS)
}

/// Whether `given` is the token.
pub fn is_token(token: &Secret, given: &str) -> bool {
    let given = code(token, given).finalize().into_bytes();
    code(token, token.expose()).verify_slice(&given).is_ok()
}

fn issued_at(second: u64) -> String {
    format!("visit_pacer login {second}")
}

/// A code that only a holder of the token can compute.
fn code(token: &Secret, of: &str) -> Hmac<Sha256> {
    let mut code =
        Hmac::new_from_slice(token.expose().as_bytes()).expect("HMAC takes keys of any length");
    code.update(of.as_bytes());
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn token() -> Secret {
        Secret::new("a token of our own")
    }

    #[test]
    fn a_cookie_is_valid_from_its_login_until_its_end() {
        let cookie = cookie(&token(), NOW);
        for (age, good) in [
            (0, true),
            (COOKIE_SECONDS - 1, true),
            (COOKIE_SECONDS, false),
        ] {
            assert_eq!(is_cookie(&token(), NOW + age, &cookie), good, "{age}");
        }
        assert!(is_cookie(&token(), NOW - SKEW, &cookie));
        assert!(
            !is_cookie(&token(), NOW - SKEW - 1, &cookie),
            "not issued yet"
        );
    }

    #[test]
    fn a_cookie_cannot_be_forged_or_extended() {
        let cookie = cookie(&token(), NOW);
        let (_, code) = cookie.split_once('.').unwrap();
        assert!(!is_cookie(&Secret::new("another token"), NOW, &cookie));
        for forged in [
            "",
            ".",
            "1800000000",
            "1800000000.",
            "1800000000.YWJj",
            &format!("{}.{code}", NOW + 1),
            &format!("{}.{code}", u64::MAX),
            &format!("-1.{code}"),
            &format!("{cookie}A"),
            &format!(".{cookie}"),
            code,
        ] {
            assert!(!is_cookie(&token(), NOW, forged), "{forged}");
        }
    }

    #[test]
    fn only_the_token_is_the_token_and_a_cookie_reveals_nothing_of_it() {
        assert!(is_token(&token(), "a token of our own"));
        for other in [
            "",
            "a token of our ow",
            "a token of our own ",
            "A token of our own",
        ] {
            assert!(!is_token(&token(), other), "{other}");
        }
        assert!(!cookie(&token(), NOW).contains("token"));
    }
}
