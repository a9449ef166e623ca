//! The demo's Realtime server as a client sees it: sockets, joins, rows, faults. What is expected was observed on a real server. The
//! client is in `bench.rs`; the exact text of the frames is tested beside the code.

mod bench;
mod broadcast;

use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use serde_json::json;
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::{
    connect_async,
    tungstenite::{Error as SocketError, Message, client::IntoClientRequest},
};
use visit_pacer::{
    demo::{
        jwt,
        realtime_server::{Deafness, EventFault, RealtimeServer, Refusal, Severance},
    },
    domain::secret::Secret,
};

use self::bench::{Bench, Client, NEVER, PATIENCE, options, secret, service_key};
use crate::harness::server::database;
use crate::harness::{find, wait_until};

/// Status and body of a refused connect.
async fn refusal(url: &str) -> (u16, String) {
    match connect_async(url).await {
        Err(SocketError::Http(response)) => {
            let body = response.body().clone().unwrap_or_default();
            (
                response.status().as_u16(),
                String::from_utf8(body).expect("text"),
            )
        }
        Err(error) => panic!("expected an HTTP refusal of {url}, found {error}"),
        Ok(_) => panic!("expected an HTTP refusal of {url}, found a socket"),
    }
}

#[tokio::test]
async fn connects_are_refused_in_the_real_servers_words() {
    let mut server = RealtimeServer::start(options("postgres://127.0.0.1:1/none"))
        .await
        .expect("a start");
    let base = format!("ws://{}", server.addr());
    let socket = format!("{base}/socket/websocket?vsn=1.0.0");
    let error = |message: &str| (401, json!({ "error": message }).to_string());
    let with_key = |key: &str| format!("{socket}&apikey={key}");
    let forged = jwt::mint(&Secret::new("another"), "service_role", NEVER);
    let expired = jwt::mint(&secret(), "service_role", 1);

    assert_eq!(refusal(&socket).await, error("API key is missing"));
    for key in ["", "abc"] {
        assert_eq!(
            refusal(&with_key(key)).await,
            error("The token provided is not a valid JWT")
        );
    }
    assert_eq!(
        refusal(&with_key(&forged)).await,
        error("Failed to validate JWT signature")
    );
    assert_eq!(
        refusal(&with_key(&expired)).await,
        error("Token has expired")
    );
    let key = service_key();
    let version = format!("{base}/socket/websocket?vsn=3.0.0&apikey={key}");
    assert_eq!(refusal(&version).await, (403, String::new()));
    let path = format!("{base}/socket?apikey={key}");
    assert_eq!(refusal(&path).await, (404, "Not Found".to_owned()));
    server.stop().await;
}

#[tokio::test]
async fn both_paths_header_keys_and_opaque_keys_are_accepted() {
    let mut options = options("postgres://127.0.0.1:1/none");
    options.extra_keys = vec![Secret::new("sb_secret_of_this_test")];
    let mut server = RealtimeServer::start(options).await.expect("a start");
    let base = format!("ws://{}", server.addr());
    for path in [
        "/realtime/v1/websocket",
        "/socket/websocket",
        "/socket/websocket/",
    ] {
        for key in [service_key(), "sb_secret_of_this_test".to_owned()] {
            connect_async(format!("{base}{path}?apikey={key}"))
                .await
                .expect("accepted in the query");
            let mut request = format!("{base}{path}")
                .into_client_request()
                .expect("a request");
            request
                .headers_mut()
                .insert("x-api-key", key.parse().expect("a header"));
            connect_async(request)
                .await
                .expect("accepted in the header");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn rows_of_a_transaction_arrive_in_order_and_transactions_in_commit_order() {
    let mut bench = Bench::start().await;
    let mut client = bench.subscribed().await;
    bench
        .sql("insert into rows select generate_series(1, 500)")
        .await;
    bench
        .sql("begin; insert into rows values (501); insert into rows values (502); commit")
        .await;
    bench
        .sql("begin; insert into rows values (999); rollback")
        .await;
    bench.sql("insert into rows values (503)").await;
    assert_eq!(client.changed_ids(503).await, (1..=503).collect::<Vec<_>>());
    bench.server.stop().await;
}

#[tokio::test]
async fn one_large_transaction_arrives_whole() {
    let mut bench = Bench::start().await;
    let mut client = bench.subscribed().await;
    bench
        .sql("insert into rows select generate_series(1, 20000)")
        .await;
    assert_eq!(
        client.changed_ids(20_000).await,
        (1..=20_000).collect::<Vec<_>>()
    );
    assert_eq!(bench.server.faults().delivered("rows"), 20_000);
    bench.server.stop().await;
}

#[tokio::test]
async fn each_edit_arrives_without_waiting_for_the_next_one() {
    let mut bench = Bench::start().await;
    let mut client = bench.subscribed().await;
    for id in 0..20 {
        bench.sql(&format!("insert into rows values ({id})")).await;
        assert_eq!(client.changed_ids(1).await, [id]);
    }
    bench.server.stop().await;
}

#[tokio::test]
async fn a_subscription_to_a_table_that_is_not_published_fails_as_a_whole() {
    let mut bench = Bench::start().await;
    let good = json!({"event": "*", "schema": "public", "table": "rows"});
    for bad in [
        json!({"table": "unpublished"}),
        json!({"table": "no_such"}),
        json!({"schema": "no"}),
    ] {
        let mut client = bench.connect().await;
        assert_eq!(client.join(&json!([good, bad])).await["status"], "ok");
        let system = client.event("system").await;
        assert_eq!(
            (&system["status"], &system["extension"]),
            (&json!("error"), &json!("postgres_changes"))
        );
        let message = system["message"].as_str().expect("a message");
        assert!(
            message.starts_with("Unable to subscribe to changes with given parameters. Please"),
            "{message}"
        );
        bench
            .sql("insert into rows values (1); delete from rows")
            .await;
        client.heartbeat().await;
    }
    assert_eq!(bench.server.faults().delivered("rows"), 0);
    bench.server.stop().await;
}

#[tokio::test]
async fn a_role_that_does_not_exist_is_reported_after_the_join() {
    let mut bench = Bench::start().await;
    let key = jwt::mint(&secret(), "nosuchrole", NEVER);
    let mut client = Client::connect_with(&bench.server, &key).await;
    assert_eq!(
        client.join(&json!([{"table": "rows"}])).await["status"],
        "ok"
    );
    let message = client.event("system").await["message"].to_string();
    assert!(
        message.contains(r#"ERROR 42704 (undefined_object) role \"nosuchrole\" does not exist"#),
        "{message}"
    );
    bench.server.stop().await;
}

#[tokio::test]
async fn each_binding_that_matches_is_named_and_others_are_not() {
    let mut bench = Bench::start().await;
    let mut client = bench.connect().await;
    let bindings = json!([
        {"event": "INSERT", "table": "rows"},
        {"event": "*", "table": "rows"},
        {"event": "delete", "table": "rows"},
    ]);
    let reply = client.join(&bindings).await;
    let id = |index: usize| {
        reply["response"]["postgres_changes"][index]["id"]
            .as_u64()
            .expect("an id")
    };
    client.event("system").await;
    bench.sql("insert into rows values (1)").await;
    let mut expected = [id(0), id(1)];
    expected.sort_unstable();
    assert_eq!(
        client.event("postgres_changes").await["ids"],
        json!(expected)
    );
    bench
        .sql("truncate rows; insert into rows values (2); delete from rows")
        .await;
    client.event("postgres_changes").await;
    let mut expected = [id(1), id(2)];
    expected.sort_unstable();
    let deleted = client.event("postgres_changes").await;
    assert_eq!(deleted["ids"], json!(expected));
    assert_eq!(
        deleted["data"]["old_record"],
        json!({ "id": 2 }),
        "a TRUNCATE is not sent"
    );
    bench.server.stop().await;
}

#[tokio::test]
async fn a_subscriber_does_not_notice_a_lost_connection_to_postgres() {
    let mut bench = Bench::start().await;
    let mut client = bench.subscribed().await;
    bench.cut_postgres().await;
    // What is committed before the new slot exists is lost, so rows are written until one arrives.
    let mut id = 0;
    let first = find("a row", PATIENCE, async || {
        id += 1;
        bench.sql(&format!("insert into rows values ({id})")).await;
        client.socket.next().now_or_never()
    })
    .await;
    let first = first.expect("the socket is open").expect("a frame");
    assert!(
        first.to_text().expect("text").contains("postgres_changes"),
        "{first}"
    );
    bench.server.stop().await;
}

#[tokio::test]
async fn a_join_while_postgres_is_unavailable_is_answered_with_an_error() {
    let mut server = RealtimeServer::start(options("postgres://127.0.0.1:1/none"))
        .await
        .expect("a start");
    let mut client = Client::connect(&server).await;
    assert_eq!(
        client.join(&json!([{"table": "rows"}])).await["status"],
        "ok"
    );
    let system = client.event("system").await;
    assert_eq!(system["status"], "error");
    assert_eq!(
        system["message"],
        "Realtime was unable to connect to the project database"
    );
    client.heartbeat().await;
    server.stop().await;
}

#[tokio::test]
async fn a_publication_that_is_created_later_is_noticed() {
    let database_url = database().await;
    let mut server = RealtimeServer::start(options(&database_url))
        .await
        .expect("a start");
    let mut client = Client::connect(&server).await;
    let mut postgres = PgConnection::connect(&database_url)
        .await
        .expect("a connection");
    client.join(&json!([{"table": "rows"}])).await;
    let message = client.event("system").await["message"].to_string();
    assert!(
        message.contains("Please check Realtime is enabled"),
        "{message}"
    );
    let publish = "create table rows (id bigint primary key);
                   create publication supabase_realtime for table rows";
    sqlx::raw_sql(publish)
        .execute(&mut postgres)
        .await
        .expect("the statements run");
    wait_until("the publication is noticed", PATIENCE, async || {
        client
            .send(&json!([null, "l", "realtime:t", "phx_leave", {}]))
            .await;
        client.event("phx_reply").await;
        client.event("phx_close").await;
        client.join(&json!([{"table": "rows"}])).await;
        client.event("system").await["status"] == "ok"
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn subscribers_are_notified_when_the_published_tables_change() {
    let mut bench = Bench::start_with(|options| {
        options.limits.publication_check = Duration::from_millis(50);
    })
    .await;
    let mut client = bench.subscribed().await;
    bench
        .sql("alter publication supabase_realtime add table unpublished")
        .await;
    assert_eq!(client.event("system").await["status"], "ok");
    bench
        .sql("alter publication supabase_realtime drop table rows")
        .await;
    assert_eq!(client.event("system").await["status"], "error");
    bench.server.stop().await;
}

#[tokio::test]
async fn a_stop_closes_with_1012_and_the_port_serves_again_after_a_start() {
    let mut bench = Bench::start().await;
    let mut client = bench.subscribed().await;
    bench.server.stop().await;
    assert_eq!(client.close_code().await, Some(1012));
    assert_eq!(bench.server.faults().subscribers(), 0);
    connect_async(bench.server.url())
        .await
        .expect_err("no listener");
    bench.server.start_again().await.expect("the port is free");
    let mut client = bench.subscribed().await;
    bench.sql("insert into rows values (1)").await;
    assert_eq!(client.changed_ids(1).await, [1]);
    bench.server.stop().await;
}

#[tokio::test]
async fn a_kill_breaks_connections_without_a_close_frame() {
    let mut bench = Bench::start().await;
    let mut client = bench.subscribed().await;
    bench.server.kill().await;
    assert_eq!(client.close_code().await, None);
}

#[tokio::test]
async fn a_dropped_server_closes_its_clients_and_drops_its_slot() {
    let bench = Bench::start().await;
    let mut client = bench.subscribed().await;
    let Bench {
        server,
        mut postgres,
    } = bench;
    drop(server);
    assert_eq!(client.close_code().await, None);
    wait_until("the slot is dropped", PATIENCE, async || {
        sqlx::query_scalar(
            "select count(*) = 0 from pg_replication_slots where database = current_database()",
        )
        .fetch_one(&mut postgres)
        .await
        .expect("an answer")
    })
    .await;
}

#[tokio::test]
async fn connections_can_be_dropped_either_way_and_connects_refused() {
    let mut bench = Bench::start().await;
    let faults = bench.server.faults().clone();
    let mut client = bench.subscribed().await;
    faults.drop_connections(Severance::Restart);
    assert_eq!(client.close_code().await, Some(1012));
    let mut client = bench.subscribed().await;
    faults.drop_connections(Severance::Abrupt);
    assert_eq!(client.close_code().await, None);

    faults.refuse_connects(Some(Refusal::Reset));
    assert!(!matches!(
        connect_async(bench.server.url()).await,
        Ok(_) | Err(SocketError::Http(_))
    ));
    let message = "Too many connected users".to_owned();
    faults.refuse_connects(Some(Refusal::Http {
        status: 429,
        message,
    }));
    let refused = (429, r#"{"error":"Too many connected users"}"#.to_owned());
    assert_eq!(refusal(&bench.server.url()).await, refused);
    faults.refuse_connects(None);
    bench.subscribed().await;
    bench.server.stop().await;
}

#[tokio::test]
async fn a_deaf_channel_answers_heartbeats_and_receives_events_after_a_rejoin() {
    let mut bench = Bench::start().await;
    let mut client = bench.subscribed().await;
    let mut counts = bench.server.faults().watch();
    bench.server.faults().set_deafness(Deafness::UntilRejoin);
    bench.sql("insert into rows values (1)").await;
    let read = counts.wait_for(|counts| counts.read.get("rows") == Some(&1));
    drop(
        timeout(PATIENCE, read)
            .await
            .expect("the row is read")
            .expect("the server is there"),
    );
    client.heartbeat().await;
    let mut client = bench.subscribed().await;
    bench.sql("insert into rows values (2)").await;
    assert_eq!(client.changed_ids(1).await, [2]);
    assert_eq!(bench.server.faults().delivered("rows"), 1);
    bench.server.stop().await;
}

#[tokio::test]
async fn events_can_be_lost_duplicated_delayed_and_reordered() {
    let mut bench = Bench::start().await;
    let faults = bench.server.faults().clone();
    let mut client = bench.subscribed().await;
    faults.set_events(EventFault::Duplicate);
    bench.sql("insert into rows values (1)").await;
    assert_eq!(client.changed_ids(2).await, [1, 1]);
    faults.set_events(EventFault::Reorder);
    bench.sql("insert into rows values (2), (3), (4)").await;
    assert_eq!(client.changed_ids(3).await, [3, 2, 4]);
    let delay = Duration::from_millis(300);
    faults.set_events(EventFault::Delay(delay));
    let sent_at = Instant::now();
    bench.sql("insert into rows values (5)").await;
    assert_eq!(client.changed_ids(1).await, [5]);
    assert!(sent_at.elapsed() >= delay);
    faults.set_events(EventFault::Drop);
    let mut counts = faults.watch();
    bench.sql("insert into rows values (6)").await;
    let read = counts.wait_for(|counts| counts.read.get("rows") == Some(&6));
    drop(
        timeout(PATIENCE, read)
            .await
            .expect("the row is read")
            .expect("the server is there"),
    );
    faults.set_events(EventFault::None);
    bench.sql("insert into rows values (7)").await;
    assert_eq!(client.changed_ids(1).await, [7]);
    bench.server.stop().await;
}

#[tokio::test]
async fn an_idle_client_is_closed_with_1000_and_one_that_sends_pings_is_not() {
    let mut bench = Bench::start_with(|options| {
        options.limits.idle_timeout = Duration::from_secs(5);
    })
    .await;
    let mut idle = bench.connect().await;
    let mut pinging = bench.connect().await;
    let closed = find("the idle client is closed", PATIENCE, async || {
        pinging.ping().await;
        idle.close_code().now_or_never()
    })
    .await;
    assert_eq!(closed, Some(1000));
    pinging.heartbeat().await;
    bench.server.stop().await;
}

#[tokio::test]
async fn a_frame_beyond_five_megabytes_is_answered_with_1009() {
    let mut bench = Bench::start().await;
    let mut client = bench.connect().await;
    // The server may close before all has been written.
    client
        .socket
        .send(Message::text("x".repeat(6_000_000)))
        .await
        .ok();
    assert_eq!(client.close_code().await, Some(1009));
    bench.server.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_dropped_and_others_are_not_delayed() {
    let mut bench = Bench::start_with(|options| {
        options.limits.send_timeout = Duration::from_millis(500);
    })
    .await;
    let mut stalled = bench.subscribed().await;
    let mut reading = bench.subscribed().await;
    let mut counts = bench.server.faults().watch();
    for id in 0..200 {
        bench
            .sql(&format!(
                "insert into rows values ({id}, 0, true, repeat('x', 100000))"
            ))
            .await;
        assert_eq!(reading.changed_ids(1).await, [id]);
    }
    let dropped = counts.wait_for(|counts| counts.subscribers == 1);
    drop(
        timeout(PATIENCE, dropped)
            .await
            .expect("it is dropped")
            .expect("the server is there"),
    );
    assert_eq!(stalled.close_code().await, None);
    bench.server.stop().await;
}

#[tokio::test]
async fn an_expired_token_closes_the_channel_and_not_the_socket() {
    let mut bench = Bench::start().await;
    let mut client = bench.connect().await;
    let now: i64 = sqlx::query_scalar("select extract(epoch from clock_timestamp())::bigint")
        .fetch_one(&mut bench.postgres)
        .await
        .expect("the time");
    let token = jwt::mint(&secret(), "service_role", now + 5);
    let config = json!({ "postgres_changes": [{"table": "rows"}] });
    let join = json!({ "config": config, "access_token": token });
    client
        .send(&json!(["1", "1", "realtime:t", "phx_join", join]))
        .await;
    assert_eq!(client.event("phx_reply").await["status"], "ok");
    assert_eq!(client.event("system").await["status"], "ok");
    let expired = client.event("system").await;
    assert_eq!(expired["extension"], "system");
    let message = expired["message"].as_str().expect("a message");
    assert!(message.starts_with("Token has expired "), "{message}");
    client.event("phx_close").await;
    client.heartbeat().await;
    client.subscribe(&json!({"table": "rows"})).await;
    bench.server.stop().await;
}

#[tokio::test]
async fn a_role_sees_what_its_rights_allow_and_row_security_leaves_deletes() {
    let mut bench = Bench::start().await;
    let role = format!("reader_{:016x}", rand::random::<u64>());
    bench.sql(&format!("create role {role}")).await;
    let key = jwt::mint(&secret(), &role, NEVER);
    let binding = json!({"table": "rows"});

    let mut client = Client::connect_with(&bench.server, &key).await;
    client.subscribe(&binding).await;
    bench.sql("insert into rows values (1)").await;
    let hidden = client.change().await;
    assert_eq!(hidden["errors"], json!(["Error 401: Unauthorized"]));
    assert_eq!(hidden["record"], json!({}));

    bench.sql(&format!("grant select on rows to {role}")).await;
    let mut client = Client::connect_with(&bench.server, &key).await;
    client.subscribe(&binding).await;
    bench.sql("insert into rows values (2)").await;
    assert_eq!(client.changed_ids(1).await, [2]);

    bench
        .sql("alter table rows enable row level security")
        .await;
    let mut client = Client::connect_with(&bench.server, &key).await;
    client.subscribe(&binding).await;
    bench
        .sql("insert into rows values (3); delete from rows where id = 3")
        .await;
    let deleted = client.change().await;
    assert_eq!(
        (&deleted["type"], &deleted["old_record"]),
        (&json!("DELETE"), &json!({"id": 3}))
    );

    bench
        .sql(&format!("drop owned by {role}; drop role {role}"))
        .await;
    bench.server.stop().await;
}
