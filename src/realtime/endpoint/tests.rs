use super::*;

const JWT: &str = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoic2VydmljZV9yb2xlIn0.c2lnbmF0dXJl";
const SECRET_KEY: &str = "sb_secret_0123456789";

fn endpoint(url: &str, key: &str) -> Endpoint {
    Endpoint::new(url, Secret::new(key)).expect("a valid endpoint")
}

fn refusal(url: &str, key: &str) -> EndpointError {
    Endpoint::new(url, Secret::new(key))
        .err()
        .expect("an error")
}

#[test]
fn the_address_of_realtime_follows_from_the_address_of_the_project() {
    for (project, realtime) in [
        (
            "https://abc.supabase.co",
            "wss://abc.supabase.co/realtime/v1/websocket",
        ),
        (
            "https://abc.supabase.co/",
            "wss://abc.supabase.co/realtime/v1/websocket",
        ),
        (
            "http://127.0.0.1:54321",
            "ws://127.0.0.1:54321/realtime/v1/websocket",
        ),
        (
            " http://[::1]:8000/base/ ",
            "ws://[::1]:8000/base/realtime/v1/websocket",
        ),
    ] {
        let url = websocket_url(project).map(String::from);
        assert_eq!(url, Ok(realtime.to_owned()), "{project}");
    }
}

#[test]
fn an_address_that_is_none_is_refused_without_being_repeated() {
    for wrong in [
        "",
        "abc.supabase.co",
        "ftp://hush",
        "postgres://u:hush@h/db",
        "data:,hush",
    ] {
        let error = websocket_url(wrong).expect_err(wrong);
        assert!(!error.to_string().contains("hush"), "{error}");
        let error = refusal(wrong, JWT);
        assert!(!error.to_string().contains("hush"), "{error}");
    }
}

#[test]
fn a_key_that_cannot_be_sent_is_refused_without_being_repeated() {
    for wrong in ["", "two words", "line\nbreak", "schlüssel"] {
        let error = refusal("ws://h", wrong);
        assert_eq!(error, EndpointError::Key, "{wrong:?}");
    }
}

#[test]
fn the_upgrade_carries_the_key_in_the_header_and_in_the_query() {
    let endpoint = endpoint("https://h/socket/websocket?apikey=old&vsn=1.0.0&log=1", JWT);
    let request = endpoint.request().expect("a request");
    let query = format!("log=1&apikey={JWT}&vsn=2.0.0");
    assert_eq!(request.uri().scheme_str(), Some("wss"));
    assert_eq!(request.uri().path(), "/socket/websocket");
    assert_eq!(request.uri().query(), Some(query.as_str()));
    let header = request.headers().get("x-api-key");
    assert_eq!(header.and_then(|key| key.to_str().ok()), Some(JWT));
}

#[test]
fn an_endpoint_shows_itself_without_user_query_and_key() {
    let endpoint = endpoint("wss://user:hush@h:4000/socket/websocket?token=hush", JWT);
    assert_eq!(endpoint.to_string(), "wss://h:4000/socket/websocket");
}

#[test]
fn a_token_is_sent_with_the_join_only_where_the_key_is_one() {
    let token = |key| {
        endpoint("ws://h", key)
            .access_token()
            .map(|key| key.expose().to_owned())
    };
    assert_eq!(token(JWT).as_deref(), Some(JWT));
    assert_eq!(token(SECRET_KEY), None);
    assert_eq!(token("sb_secret_a.b.c"), None);
    assert_eq!(token("opaque"), None);
}

#[test]
fn an_sb_key_without_tls_goes_into_the_query_alone_where_the_local_gateway_exchanges_it() {
    for (url, header) in [("ws://127.0.0.1:54321", false), ("wss://h", true)] {
        let request = endpoint(url, SECRET_KEY).request().expect("a request");
        assert_eq!(request.headers().contains_key("x-api-key"), header, "{url}");
        let query = request.uri().query().unwrap_or_default();
        assert!(query.contains(&format!("apikey={SECRET_KEY}")), "{query}");
    }
}

#[test]
fn a_token_of_our_own_opens_the_socket_only_where_there_is_no_key() {
    let minter = || {
        Minter::new(
            Secret::new("a secret of at least 32 characters, for a test"),
            "visit_pacer".to_owned(),
            Duration::from_secs(60),
        )
    };
    let role = |key: &str| match ApiKey::read(&Secret::new(key)) {
        ApiKey::Jwt { role, .. } => role,
        _ => None,
    };
    let ours = Some("visit_pacer".to_owned());
    let alone = Endpoint::with_tokens("wss://h", minter()).expect("an endpoint");
    let beside = endpoint("wss://h", SECRET_KEY).with_join_tokens(minter());
    for (endpoint, opens) in [(&alone, ours.clone()), (&beside, None)] {
        let request = endpoint.request().expect("a request");
        let header = request.headers().get("x-api-key").expect("a key");
        assert_eq!(role(header.to_str().expect("text")), opens);
        let token = endpoint.access_token().expect("a token");
        assert_eq!(role(token.expose()), ours);
        assert_eq!(endpoint.renew_after(), Some(Duration::from_secs(30)));
    }
}

#[test]
fn keys_and_tokens_are_blotted_out_of_any_text() {
    let endpoint = endpoint("wss://h", SECRET_KEY);
    let text = format!("at ?apikey={SECRET_KEY}&t={JWT}&vsn=2.0.0: no {JWT}");
    assert_eq!(
        endpoint.redact(&text),
        "at ?apikey=[key]&t=[token]&vsn=2.0.0: no [token]"
    );
}
