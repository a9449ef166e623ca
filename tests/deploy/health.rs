//! `visit-pacer health`, as the health check of a container runs it.

use nix::sys::signal::Signal;

use crate::harness::proxy::Proxy;
use crate::harness::{Agent, Outcome, Place};

async fn health(place: &Place, agent: &Agent, more: &[&str]) -> Outcome {
    let address = agent.address().to_string();
    let mut arguments = vec!["health", "--listen", &address];
    arguments.extend(more);
    place.command(&arguments).await
}

#[tokio::test]
async fn a_health_check_distinguishes_a_running_loop_from_a_ready_agent() {
    let place = Place::new().await;
    let proxy = Proxy::to(place.port(), 2).await;
    proxy.admit(false);
    let mut agent = place.start_agent_at(&proxy.url(&place.url)).await;

    let alive = health(&place, &agent, &[]).await;
    assert_eq!(alive.code, Some(0), "healthy without a database: {alive:?}");
    let unready = health(&place, &agent, &["--ready"]).await;
    assert_eq!(unready.code, Some(1), "{unready:?}");
    assert!(
        unready.said.contains("503") && unready.said.contains("waiting for the database"),
        "{unready:?}"
    );
    proxy.admit(true);
    agent.ready().await;
    assert_eq!(health(&place, &agent, &["--ready"]).await.code, Some(0));

    agent.signal(Signal::SIGSTOP);
    let frozen = health(&place, &agent, &[]).await;
    agent.signal(Signal::SIGCONT);
    assert_eq!(frozen.code, Some(1), "{frozen:?}");

    assert!(agent.terminate().await.success());
    let gone = health(&place, &agent, &[]).await;
    assert_eq!(gone.code, Some(1), "{gone:?}");
    assert!(
        gone.said.contains("no answer from http://127.0.0.1:"),
        "{gone:?}"
    );
}
