//! Broadcasts from the database, over real sockets: who may join a private topic, both formats of a message, and replays.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_tungstenite::{connect_async, tungstenite::Message};
use visit_pacer::demo::jwt;

use super::bench::{Bench, Client, NEVER, PATIENCE, secret, service_key};
use crate::harness::wait_until;

/// A usual policy.
const POLICY: &str = "create policy readers on realtime.messages for select to authenticated
    using (realtime.topic() = 't' and extension = 'broadcast')";

/// Joins the private topic `t`. Returns the payload of the reply.
async fn join(client: &mut Client, broadcast: Value) -> Value {
    let config = json!({ "config": { "broadcast": broadcast, "private": true } });
    client
        .send(&json!(["1", "1", "realtime:t", "phx_join", config]))
        .await;
    client.event("phx_reply").await
}

/// A client that has joined the private topic `t`.
async fn joined(bench: &Bench) -> Client {
    let mut client = bench.connect().await;
    let reply = join(&mut client, json!({ "replication_ready": true })).await;
    assert_eq!(reply["status"], "ok", "{reply}");
    let system = client.event("system").await;
    assert_eq!(system["message"], "Replication connection established");
    client
}

/// Event, meta and payload of the next frame, which is binary.
async fn broadcast(client: &mut Client) -> (String, Value, Value) {
    let message = client.message().await.expect("an open socket");
    let Ok(Message::Binary(bytes)) = message else {
        panic!("expected a binary frame, found {message:?}");
    };
    let [4, topic, event, meta, 1] = bytes[..5] else {
        panic!("expected the head of a broadcast, found {bytes:?}");
    };
    let text = String::from_utf8(bytes[5..].to_vec()).expect("text");
    let (topic, rest) = text.split_at(topic.into());
    let (event, rest) = rest.split_at(event.into());
    let (meta, payload) = rest.split_at(meta.into());
    assert_eq!(topic, "realtime:t");
    let json = |text| serde_json::from_str(text).expect("JSON");
    (event.to_owned(), json(meta), json(payload))
}

async fn send(bench: &mut Bench, k: u32) {
    let send = format!("select realtime.send('{{\"k\": {k}}}', 'sent', 't', true)");
    bench.sql(&send).await;
}

#[tokio::test]
async fn a_private_topic_is_joined_by_service_role_and_by_roles_with_a_policy() {
    let mut bench = Bench::with_messages(|_| {}).await;
    let key = jwt::mint(&secret(), "authenticated", NEVER);
    let mut client = Client::connect_with(&bench.server, &key).await;
    let refused = join(&mut client, json!({})).await;
    assert_eq!(
        refused["response"]["reason"],
        "Unauthorized: You do not have permissions to read from this Channel topic: t"
    );
    bench.sql(POLICY).await;
    assert_eq!(join(&mut client, json!({})).await["status"], "ok");
    let other = json!({ "config": { "private": true } });
    client
        .send(&json!(["2", "2", "realtime:other", "phx_join", other]))
        .await;
    assert_eq!(client.event("phx_reply").await["status"], "error");
    let nobody = jwt::mint(&secret(), "no such role", NEVER);
    let mut nobody = Client::connect_with(&bench.server, &nobody).await;
    assert_eq!(join(&mut nobody, json!({})).await["status"], "error");

    let mut service = joined(&bench).await;
    send(&mut bench, 1).await;
    for client in [&mut client, &mut service] {
        assert_eq!(broadcast(client).await.2["k"], 1);
    }
    let stored: i64 = sqlx::query_scalar("select count(*) from realtime.messages")
        .fetch_one(&mut bench.postgres)
        .await
        .expect("a count");
    assert_eq!(stored, 1, "checking the policies stores no message");
    bench.server.stop().await;
}

#[tokio::test]
async fn a_message_is_a_binary_frame_in_the_second_version_and_text_in_the_first() {
    let mut bench = Bench::with_messages(|_| {}).await;
    let mut second = joined(&bench).await;
    let url = format!("{}?vsn=1.0.0&apikey={}", bench.server.url(), service_key());
    let (socket, _) = connect_async(url)
        .await
        .expect("the server accepts the key");
    let mut first = Client::over(socket);
    first
        .send(
            &json!({ "topic": "realtime:t", "event": "phx_join", "ref": "1",
            "payload": { "config": { "private": true } } }),
        )
        .await;
    let text = async |client: &mut Client| -> Value {
        let message = client.message().await.expect("an open socket");
        let message = message.expect("a frame");
        serde_json::from_str(message.to_text().expect("text")).expect("JSON")
    };
    assert_eq!(text(&mut first).await["payload"]["status"], "ok");
    send(&mut bench, 7).await;
    let (event, meta, payload) = broadcast(&mut second).await;
    assert_eq!((&*event, &payload["k"]), ("sent", &json!(7)));
    assert_eq!(meta["id"], payload["id"]);
    let expected = json!({ "ref": null, "topic": "realtime:t", "event": "broadcast",
        "payload": { "type": "broadcast", "event": event, "meta": meta, "payload": payload } });
    assert_eq!(text(&mut first).await, expected);
    bench.server.stop().await;
}

#[tokio::test]
async fn only_what_was_committed_to_the_same_topic_is_sent_in_order() {
    let mut bench = Bench::with_messages(|_| {}).await;
    let mut client = joined(&bench).await;
    for unheard in [
        "begin; select realtime.send('{}', 'x', 't', true); rollback",
        "select realtime.send('{}', 'x', 't', false)",
        "select realtime.send('{}', 'x', 'other', true)",
        "delete from realtime.messages",
    ] {
        bench.sql(unheard).await;
    }
    bench
        .sql("select realtime.send(jsonb_build_object('k', k), 'x', 't', true) from generate_series(1, 50) k")
        .await;
    for k in 1..=50 {
        assert_eq!(broadcast(&mut client).await.2["k"], k);
    }
    bench.server.stop().await;
}

#[tokio::test]
async fn stored_messages_are_replayed_since_a_moment_and_up_to_a_limit() {
    let mut bench = Bench::with_messages(|_| {}).await;
    for (k, minutes) in [(1, 30), (2, 20), (3, 10), (4, 0)] {
        send(&mut bench, k).await;
        let age = format!(
            "update realtime.messages set inserted_at = inserted_at - interval '{minutes} minutes' where payload ->> 'k' = '{k}'"
        );
        bench.sql(&age).await;
    }
    let now: i64 = sqlx::query_scalar("select (extract(epoch from now()) * 1000)::bigint")
        .fetch_one(&mut bench.postgres)
        .await
        .expect("the time");
    let since = now - 25 * 60_000;
    for (limit, expected) in [(25, vec![2, 3, 4]), (2, vec![3, 4])] {
        let mut client = bench.connect().await;
        let replay =
            json!({ "replay": { "since": since, "limit": limit }, "replication_ready": true });
        assert_eq!(join(&mut client, replay).await["status"], "ok");
        for k in expected {
            let (_, meta, payload) = broadcast(&mut client).await;
            assert_eq!(
                (&meta["replayed"], &payload["k"]),
                (&json!(true), &json!(k))
            );
        }
        client.event("system").await;
        send(&mut bench, 5).await;
        let (_, meta, payload) = broadcast(&mut client).await;
        assert_eq!(
            (&meta["replayed"], &payload["k"]),
            (&Value::Null, &json!(5))
        );
        bench
            .sql("delete from realtime.messages where payload ->> 'k' = '5'")
            .await;
    }
    bench.server.stop().await;
}

#[tokio::test]
async fn messages_older_than_three_days_are_deleted_at_the_start_and_then_each_day() {
    let mut bench = Bench::with_messages(|options| {
        options.limits.cleaning = Duration::from_millis(200);
    })
    .await;
    for _ in 0..2 {
        bench
            .sql(
                "insert into realtime.messages (topic, extension, inserted_at)
                 select 't', 'broadcast', now() at time zone 'utc' - age from unnest(array[interval '73 hours', '71 hours']) age",
            )
            .await;
        wait_until("the older one is gone", PATIENCE, async || {
            let old: i64 = sqlx::query_scalar(
                "select count(*) from realtime.messages where inserted_at < now() at time zone 'utc' - interval '3 days'",
            )
            .fetch_one(&mut bench.postgres)
            .await
            .expect("a count");
            old == 0
        })
        .await;
    }
    let kept: i64 = sqlx::query_scalar("select count(*) from realtime.messages")
        .fetch_one(&mut bench.postgres)
        .await
        .expect("a count");
    assert_eq!(kept, 2);
    bench.server.stop().await;
}
