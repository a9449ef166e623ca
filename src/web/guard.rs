//! Access control: the checks that every request passes before a handler sees it, and the headers of every answer.
//!
//! In this order: the name in `Host` is one of ours (a page of another origin may have its name resolve to this agent: DNS
//! rebinding), a request that changes something comes from our own page or from no page at all, and where a token is configured
//! the request carries it, as `Authorization: Bearer` or as the cookie of a login. A refusal states what is missing, never what
//! would be right.
//!
//! Only failed logins are throttled ([`LoginThrottle`]), not wrong `Authorization` headers: those come from programs, whose token
//! has 16 characters or more, and behind a proxy, where all clients share one address, anybody could lock everybody out.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Response};
use tokio::time::Instant;

use super::login_throttle::LoginThrottle;
use super::token::{self, COOKIE_SECONDS};
use crate::domain::secret::Secret;

/// The cookie of a login.
const COOKIE: &str = "visit_pacer";

/// The dashboard would be open to other machines without a token: exit code 78.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "--listen {0} can be reached from other machines, and no token is set; set VISIT_PACER_TOKEN (16 characters or more, \
     such as the output of `openssl rand -hex 16`), or listen on 127.0.0.1"
)]
pub struct Exposed(SocketAddr);

/// Who may see the pages, and edit there.
pub struct Access {
    /// Required, where there is one.
    pub token: Option<Secret>,
    /// Accepted names in `Host`, besides `localhost` and IP addresses.
    pub allowed_hosts: Vec<String>,
    /// `/metrics` needs no token.
    pub metrics_open: bool,
    /// The pages accept no edits.
    pub read_only: bool,
    throttle: Mutex<LoginThrottle>,
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
            throttle: Mutex::new(LoginThrottle::new(Instant::now())),
        }
    }

    /// Checks that the pages may be served at this address: without a token only at a loopback address.
    pub fn allows(&self, address: SocketAddr) -> Result<(), Exposed> {
        if self.token.is_none() && !address.ip().is_loopback() {
            return Err(Exposed(address));
        }
        Ok(())
    }

    fn is_allowed_host(&self, host: &str) -> bool {
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

    fn admits(&self, headers: &HeaderMap, now: u64) -> bool {
        let Some(token) = &self.token else {
            return true;
        };
        let bearer = text(headers, &header::AUTHORIZATION)
            .and_then(|value| value.strip_prefix("Bearer "))
            .is_some_and(|given| token::is_token(token, given));
        bearer || cookie(headers).is_some_and(|given| token::is_cookie(token, now, given))
    }

    fn throttle(&self) -> MutexGuard<'_, LoginThrottle> {
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Seconds since 1970, by this machine's clock: a login must work while the database is unavailable.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

/// The middleware around every page.
pub async fn guard(State(access): State<Arc<Access>>, request: Request, next: Next) -> Response {
    let refusal = refusal(&access, &request, now());
    let path = request.uri().path();
    let (home, page) = (path == "/", matches!(path, "/" | "/login" | "/logout"));
    let mut response = match refusal {
        None => next.run(request).await,
        Some(StatusCode::UNAUTHORIZED) if home => to("/login", None),
        Some(status) if page => refused(status, reason(status)),
        Some(status) => (status, reason(status)).into_response(),
    };
    harden(response.headers_mut());
    response
}

fn refusal(access: &Access, request: &Request, now: u64) -> Option<StatusCode> {
    let headers = request.headers();
    let host = text(headers, &header::HOST);
    if !host.is_some_and(|host| access.is_allowed_host(host)) {
        return Some(StatusCode::MISDIRECTED_REQUEST);
    }
    let changes = !matches!(*request.method(), Method::GET | Method::HEAD);
    if changes && !is_same_origin(headers, host.unwrap_or_default()) {
        return Some(StatusCode::FORBIDDEN);
    }
    let path = request.uri().path();
    (!access.is_open(path) && !access.admits(headers, now)).then_some(StatusCode::UNAUTHORIZED)
}

/// Browsers state where a request comes from; without these headers the client is no browser.
///
/// Both a sandboxed frame and our own page behind a privacy extension send `Origin: null`. `Sec-Fetch-Site`, which no page can
/// set, tells them apart: the frame is `cross-site`.
fn is_same_origin(headers: &HeaderMap, host: &str) -> bool {
    let site = text(headers, &HeaderName::from_static("sec-fetch-site"));
    let origin = text(headers, &header::ORIGIN);
    let same_host = |origin: &str| origin.split_once("://").is_some_and(|(_, at)| at == host);
    if origin == Some("null") {
        return site == Some("same-origin");
    }
    site.is_none_or(|site| matches!(site, "same-origin" | "none")) && origin.is_none_or(same_host)
}

fn reason(status: StatusCode) -> &'static str {
    match status {
        StatusCode::MISDIRECTED_REQUEST => {
            "the name in Host is not allowed; add it with --allowed-host\n"
        }
        StatusCode::FORBIDDEN => "a page of another origin may not change anything\n",
        _ => "the token is required: log in at /login, or send it as Authorization: Bearer\n",
    }
}

/// A page that states why something is refused.
fn refused(status: StatusCode, why: &'static str) -> Response {
    let page = include_str!("assets/refused.html");
    (status, Html(page.replace("{why}", why.trim_end()))).into_response()
}

fn harden(headers: &mut HeaderMap) {
    const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                          form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        // With `no-referrer` a browser sends `Origin: null` from our own login form.
        (header::REFERRER_POLICY, "same-origin"),
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
pub async fn log_in(
    State(access): State<Arc<Access>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    body: Bytes,
) -> Response {
    let Some(token) = &access.token else {
        return to("/", None);
    };
    if !access.throttle().allow(peer.ip(), Instant::now()) {
        let words = "too many failed logins; try again in a minute\n";
        return refused(StatusCode::TOO_MANY_REQUESTS, words);
    }
    let mut fields = url::form_urlencoded::parse(&body);
    let given = fields.find(|(name, _)| name == "token");
    if !given.is_some_and(|(_, given)| token::is_token(token, given.trim())) {
        access.throttle().count(peer.ip());
        return to("/login?refused", None);
    }
    let cookie = format!(
        "{COOKIE}={}; Path=/; Max-Age={COOKIE_SECONDS}; HttpOnly; SameSite=Strict",
        token::cookie(token, now())
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

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

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
    fn assert_refusal(access: &Access, headers: &[(&str, &str)], expected: Option<StatusCode>) {
        assert_eq!(
            refusal(access, &request("POST", "/api/pause", headers), NOW),
            expected
        );
    }

    #[test]
    fn only_allowed_hosts_are_served() {
        let access = access(None);
        for name in [
            "localhost:8787",
            "127.0.0.1:8787",
            "[::1]:8787",
            "10.0.0.7",
            "Pacer.Example.test",
        ] {
            assert_refusal(&access, &[("host", name)], None);
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
            assert_refusal(&access, &[("host", name)], no);
        }
        assert_refusal(&access, &[], Some(StatusCode::MISDIRECTED_REQUEST));
    }

    #[test]
    fn only_our_own_page_and_clients_that_are_no_browser_may_change_anything() {
        let access = access(None);
        let host = ("host", "localhost:8787");
        assert_refusal(&access, &[host, ("origin", "http://localhost:8787")], None);
        assert_refusal(&access, &[host, ("sec-fetch-site", "same-origin")], None);
        for other in [
            ("origin", "http://evil.test"),
            ("origin", "http://localhost:9999"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            assert_refusal(&access, &[host, other], Some(StatusCode::FORBIDDEN));
        }
        let null = ("origin", "null");
        assert_refusal(
            &access,
            &[host, null, ("sec-fetch-site", "same-origin")],
            None,
        );
        for site in ["cross-site", "same-site", "none"] {
            let no = Some(StatusCode::FORBIDDEN);
            assert_refusal(&access, &[host, null, ("sec-fetch-site", site)], no);
        }
    }

    #[test]
    fn a_configured_token_is_required_as_bearer_or_as_the_cookie_of_a_login() {
        let access = access(Some("a token of our own"));
        let host = ("host", "localhost");
        let no = Some(StatusCode::UNAUTHORIZED);
        assert_refusal(&access, &[host], no);
        assert_refusal(&access, &[host, ("authorization", "Bearer another")], no);
        assert_refusal(
            &access,
            &[host, ("authorization", "a token of our own")],
            no,
        );
        assert_refusal(&access, &[host, ("cookie", "visit_pacer=")], no);
        assert_refusal(&access, &[host, ("cookie", "visit_pacer=YWJj")], no);
        assert_refusal(
            &access,
            &[host, ("authorization", "Bearer a token of our own")],
            None,
        );
        let token = access.token.as_ref().unwrap();
        for (issued, expected) in [(NOW, None), (NOW - COOKIE_SECONDS, no)] {
            let cookie = format!("a=b; visit_pacer={}", token::cookie(token, issued));
            assert_refusal(&access, &[host, ("cookie", &cookie)], expected);
        }
        for open in ["/healthz", "/readyz", "/login", "/assets/app.js"] {
            assert_eq!(
                refusal(&access, &request("GET", open, &[host]), NOW),
                None,
                "{open}"
            );
        }
        for closed in [
            "/",
            "/api/snapshot",
            "/api/events",
            "/metrics",
            "/assets",
            "/healthz/x",
        ] {
            assert_eq!(
                refusal(&access, &request("GET", closed, &[host]), NOW),
                no,
                "{closed}"
            );
        }
    }

    #[test]
    fn an_address_that_other_machines_reach_needs_a_token() {
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
