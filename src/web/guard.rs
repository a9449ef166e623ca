//! Who may: the checks that every request passes before a handler sees it, and the headers that every answer has.
//!
//! In this order: the name in `Host` is one of ours (a page of another origin may have its name point here: DNS rebinding),
//! a request that changes something comes from our own page or from no page at all, and where there is a token the request
//! has it, as `Authorization: Bearer` or as the cookie that a login gave. Whoever cannot pass is told what is missing, never
//! what would be right.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tokio::time::Instant;

use crate::domain::secret::Secret;

/// The cookie of a login.
const COOKIE: &str = "visit_pacer";
/// A login is good for so long.
const COOKIE_SECONDS: u32 = 12 * 3600;
/// Logins that may fail in [`LOGINS_WITHIN`].
const LOGINS_MAX: u32 = 10;
/// See [`LOGINS_MAX`].
const LOGINS_WITHIN: Duration = Duration::from_secs(60);

/// The pages would be open to everybody: exit code 78.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "--listen {0} can be reached from other machines, and there is no token; set VISIT_PACER_TOKEN (16 characters or more, \
     such as `openssl rand -hex 16` gives), or listen on 127.0.0.1"
)]
pub struct Exposed(SocketAddr);

/// What is asked of who comes.
pub struct Access {
    /// Asked for, where there is one.
    pub token: Option<Secret>,
    /// Names in `Host` that are ours, beside `localhost` and addresses.
    pub allowed_hosts: Vec<String>,
    /// `/metrics` needs no token.
    pub metrics_open: bool,
    /// Nobody edits anything here.
    pub read_only: bool,
    logins: Mutex<Logins>,
}

struct Logins {
    since: Instant,
    failed: u32,
}

impl Access {
    /// With or without a token.
    pub fn new(
        token: Option<Secret>,
        allowed_hosts: Vec<String>,
        metrics_open: bool,
        read_only: bool,
    ) -> Self {
        Self {
            token,
            allowed_hosts,
            metrics_open,
            read_only,
            logins: Mutex::new(Logins {
                since: Instant::now(),
                failed: 0,
            }),
        }
    }

    /// Whether the pages may be served at this address: only this machine reaches a loopback address.
    pub fn allows(&self, address: SocketAddr) -> Result<(), Exposed> {
        if self.token.is_none() && !address.ip().is_loopback() {
            return Err(Exposed(address));
        }
        Ok(())
    }

    fn is_our_name(&self, host: &str) -> bool {
        let Ok(authority) = host.parse::<Authority>() else {
            return false;
        };
        let name = authority.host();
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        name.eq_ignore_ascii_case("localhost")
            || bare.parse::<IpAddr>().is_ok()
            || self
                .allowed_hosts
                .iter()
                .any(|allowed| allowed.eq_ignore_ascii_case(name))
    }

    fn is_open(&self, path: &str) -> bool {
        matches!(path, "/healthz" | "/readyz" | "/login")
            || path.starts_with("/assets/")
            || (path == "/metrics" && self.metrics_open)
    }

    fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else {
            return true;
        };
        let bearer = text(headers, &header::AUTHORIZATION)
            .and_then(|value| value.strip_prefix("Bearer "))
            .is_some_and(|given| same(given, token));
        bearer || cookie(headers).is_some_and(|given| signs(token, given))
    }

    /// Whether another login may be tried now.
    fn may_log_in(&self) -> bool {
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        if logins.since.elapsed() > LOGINS_WITHIN {
            logins.since = Instant::now();
            logins.failed = 0;
        }
        logins.failed < LOGINS_MAX
    }

    fn failed_to_log_in(&self) {
        let mut logins = self.logins.lock().unwrap_or_else(PoisonError::into_inner);
        logins.failed += 1;
    }
}

/// The one way in.
pub async fn guard(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    let refused = refusal(&access, &request);
    let page = request.uri().path() == "/";
    let mut response = match refused {
        None => next.run(request).await,
        Some(StatusCode::UNAUTHORIZED) if page => {
            (StatusCode::SEE_OTHER, [(header::LOCATION, "/login")]).into_response()
        }
        Some(status) => (status, reason(status)).into_response(),
    };
    harden(response.headers_mut());
    response
}

fn refusal(access: &Access, request: &Request) -> Option<StatusCode> {
    let headers = request.headers();
    let host = text(headers, &header::HOST);
    if !host.is_some_and(|host| access.is_our_name(host)) {
        return Some(StatusCode::MISDIRECTED_REQUEST);
    }
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    if changes && !is_same_origin(headers, host.unwrap_or_default()) {
        return Some(StatusCode::FORBIDDEN);
    }
    let path = request.uri().path();
    (!access.is_open(path) && !access.admits(headers)).then_some(StatusCode::UNAUTHORIZED)
}

/// A browser says where a request comes from; what is no browser has no page that could be another's.
fn is_same_origin(headers: &HeaderMap, host: &str) -> bool {
    let site = text(headers, &HeaderName::from_static("sec-fetch-site"));
    let origin = text(headers, &header::ORIGIN);
    let same_host = |origin: &str| origin.split_once("://").is_some_and(|(_, at)| at == host);
    site.is_none_or(|site| matches!(site, "same-origin" | "none")) && origin.is_none_or(same_host)
}

fn reason(status: StatusCode) -> &'static str {
    match status {
        StatusCode::MISDIRECTED_REQUEST => {
            "the name in Host is not one of this agent's; add it with --allowed-host\n"
        }
        StatusCode::FORBIDDEN => "a page of another origin may not change anything here\n",
        _ => "this needs the token: log in at /login, or send it as Authorization: Bearer\n",
    }
}

fn harden(headers: &mut HeaderMap) {
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                          form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
}

/// `POST /login`, with the field `token` of a form.
pub async fn log_in(State(access): State<Arc<Access>>, body: Bytes) -> Response {
    let Some(token) = &access.token else {
        return to("/", None);
    };
    if !access.may_log_in() {
        let words = "too many logins failed; try again in a minute\n";
        return (StatusCode::TOO_MANY_REQUESTS, words).into_response();
    }
    let mut fields = url::form_urlencoded::parse(&body);
    let given = fields.find(|(name, _)| name == "token");
    if !given.is_some_and(|(_, given)| same(given.trim(), token)) {
        access.failed_to_log_in();
        return to("/login?refused", None);
    }
    let cookie = format!(
        "{COOKIE}={}; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Strict",
        signature(token)
    );
    to("/", Some(cookie))
}

/// `POST /logout`
pub async fn log_out() -> Response {
    to(
        "/login",
        Some(format!(
            "{COOKIE}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict"
        )),
    )
}

fn to(place: &'static str, cookie: Option<String>) -> Response {
    let mut response = (StatusCode::SEE_OTHER, [(header::LOCATION, place)]).into_response();
    let cookie = cookie.and_then(|cookie| HeaderValue::from_str(&cookie).ok());
    if let Some(cookie) = cookie {
        response.headers_mut().insert(header::SET_COOKIE, cookie);
    }
    response
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let all = headers.get_all(header::COOKIE).iter();
    all.filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == COOKIE).then_some(value))
}

/// A code that only who has the token can make: what a login gives in its place.
fn code(token: &Secret, of: &[u8]) -> Hmac<Sha256> {
    let mut code =
        Hmac::new_from_slice(token.expose().as_bytes()).expect("HMAC takes keys of any length");
    code.update(of);
    code
}

fn signature(token: &Secret) -> String {
    URL_SAFE_NO_PAD.encode(code(token, COOKIE.as_bytes()).finalize().into_bytes())
}

/// In a time that tells nothing of where two texts differ.
fn signs(token: &Secret, given: &str) -> bool {
    let given = URL_SAFE_NO_PAD.decode(given).unwrap_or_default();
    code(token, COOKIE.as_bytes()).verify_slice(&given).is_ok()
}

fn same(given: &str, token: &Secret) -> bool {
    let given = code(token, given.as_bytes()).finalize().into_bytes();
    let right = code(token, token.expose().as_bytes());
    right.verify_slice(&given).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(token: Option<&str>) -> Access {
        let token = token.map(Secret::new);
        Access::new(token, vec!["pacer.example.test".to_owned()], false, false)
    }

    fn request(method: &str, path: &str, headers: &[(&str, &str)]) -> Request {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(axum::body::Body::empty()).unwrap()
    }

    #[track_caller]
    fn refused(access: &Access, headers: &[(&str, &str)], expected: Option<StatusCode>) {
        assert_eq!(
            refusal(access, &request("POST", "/api/pause", headers)),
            expected
        );
    }

    #[test]
    fn only_names_that_are_ours_are_answered_to() {
        let access = access(None);
        for name in [
            "localhost:8787",
            "127.0.0.1:8787",
            "[::1]:8787",
            "10.0.0.7",
            "Pacer.Example.test",
        ] {
            refused(&access, &[("host", name)], None);
        }
        for name in [
            "evil.test",
            "localhost.evil.test",
            "127.0.0.1.evil.test",
            "",
            "@",
            "a@b",
        ] {
            let no = Some(StatusCode::MISDIRECTED_REQUEST);
            refused(&access, &[("host", name)], no);
        }
        refused(&access, &[], Some(StatusCode::MISDIRECTED_REQUEST));
    }

    #[test]
    fn only_our_own_page_and_what_is_no_page_may_change_anything() {
        let access = access(None);
        let host = ("host", "localhost:8787");
        refused(&access, &[host, ("origin", "http://localhost:8787")], None);
        refused(&access, &[host, ("sec-fetch-site", "same-origin")], None);
        for other in [
            ("origin", "http://evil.test"),
            ("origin", "http://localhost:9999"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            refused(&access, &[host, other], Some(StatusCode::FORBIDDEN));
        }
    }

    #[test]
    fn a_token_is_asked_for_where_there_is_one_and_taken_as_bearer_or_as_the_cookie_of_a_login() {
        let access = access(Some("a token of our own"));
        let host = ("host", "localhost");
        let no = Some(StatusCode::UNAUTHORIZED);
        refused(&access, &[host], no);
        refused(&access, &[host, ("authorization", "Bearer another")], no);
        refused(
            &access,
            &[host, ("authorization", "a token of our own")],
            no,
        );
        refused(&access, &[host, ("cookie", "visit_pacer=")], no);
        refused(&access, &[host, ("cookie", "visit_pacer=YWJj")], no);
        refused(
            &access,
            &[host, ("authorization", "Bearer a token of our own")],
            None,
        );
        let cookie = format!(
            "a=b; visit_pacer={}",
            signature(access.token.as_ref().unwrap())
        );
        refused(&access, &[host, ("cookie", &cookie)], None);
        for open in ["/healthz", "/readyz", "/login", "/assets/app.js"] {
            assert_eq!(
                refusal(&access, &request("GET", open, &[host])),
                None,
                "{open}"
            );
        }
        for closed in [
            "/",
            "/api/board",
            "/api/events",
            "/metrics",
            "/assets",
            "/healthz/x",
        ] {
            assert_eq!(
                refusal(&access, &request("GET", closed, &[host])),
                no,
                "{closed}"
            );
        }
    }

    #[test]
    fn an_address_that_others_reach_needs_a_token() {
        let everywhere: SocketAddr = "0.0.0.0:8787".parse().unwrap();
        let here: SocketAddr = "127.0.0.1:8787".parse().unwrap();
        let why = access(None)
            .allows(everywhere)
            .expect_err("refused")
            .to_string();
        assert!(why.contains("VISIT_PACER_TOKEN"), "{why}");
        assert_eq!(access(None).allows(here), Ok(()));
        assert_eq!(
            access(Some("a token of our own")).allows(everywhere),
            Ok(())
        );
    }
}
