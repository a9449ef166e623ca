//! The files for Docker, Fly.io and Kubernetes: checked by hadolint and the schemas of Compose and Kubernetes, and against each other.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;
use tokio::process::Command;

use crate::peers::python_environment;
use crate::tidy::{files, root, text};

/// Manifests that `kubectl apply -k` applies.
const MANIFESTS: &[&str] = &[
    "namespace.yaml",
    "deployment.yaml",
    "service.yaml",
    "poddisruptionbudget.yaml",
    "networkpolicy.yaml",
];
/// Where the agent listens in a container.
const PORT: i64 = 8787;

/// Runs a tool in the root of the repository. Returns its output; fails if it finds an error.
async fn tool(name: &str, arguments: &[&str]) -> String {
    let list = root().join("tests/deploy/requirements.txt");
    let tools = python_environment("deploy-tools", &list).await;
    let mut command = Command::new(tools.join(name));
    command.args(arguments).current_dir(root());
    let output = command.output().await.expect("the tool runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    said
}

/// A YAML or TOML file.
pub async fn parsed(path: &str) -> Value {
    const TO_JSON: &str = "import json, sys, tomllib, yaml; path = sys.argv[1]; \
        load = tomllib.load if path.endswith('.toml') else yaml.safe_load; \
        print(json.dumps(load(open(path, 'rb'))))";
    let json = tool("python", &["-c", TO_JSON, path]).await;
    serde_json::from_str(&json).expect("JSON")
}

async fn manifest(name: &str) -> Value {
    parsed(&format!("deploy/kubernetes/{name}")).await
}

#[tokio::test]
async fn hadolint_finds_no_error_in_the_dockerfile() {
    tool("hadolint", &["deploy/docker/Dockerfile"]).await;
}

#[tokio::test]
async fn the_compose_file_is_valid_and_the_container_cannot_write() {
    let path = "deploy/docker/compose.yaml";
    tool(
        "check-jsonschema",
        &["--builtin-schema", "vendor.compose-spec", path],
    )
    .await;
    let service = &parsed(path).await["services"]["visit-pacer"];
    assert_eq!(service["read_only"], true);
    assert_eq!(service["cap_drop"], serde_json::json!(["ALL"]));
    assert_eq!(service["volumes"], Value::Null);
    assert_eq!(
        service["ports"],
        serde_json::json!([format!("127.0.0.1:{PORT}:{PORT}")]),
        "only this machine reaches it"
    );
}

#[tokio::test]
async fn the_manifests_are_valid_and_agree_with_each_other() {
    let paths: Vec<String> = MANIFESTS
        .iter()
        .map(|name| format!("deploy/kubernetes/{name}"))
        .collect();
    let mut arguments = vec!["--strict"];
    arguments.extend(paths.iter().map(String::as_str));
    tool("kubernetes-validate", &arguments).await;

    let kustomization = manifest("kustomization.yaml").await;
    assert_eq!(kustomization["resources"], serde_json::json!(MANIFESTS));

    let deployment = manifest("deployment.yaml").await;
    let pod = &deployment["spec"]["template"];
    let labels = &pod["metadata"]["labels"];
    let budget = manifest("poddisruptionbudget.yaml").await;
    let service = manifest("service.yaml").await;
    let policy = manifest("networkpolicy.yaml").await;
    let monitor = manifest("monitoring/servicemonitor.yaml").await;
    for selector in [
        &deployment["spec"]["selector"]["matchLabels"],
        &budget["spec"]["selector"]["matchLabels"],
        &service["spec"]["selector"],
        &policy["spec"]["podSelector"]["matchLabels"],
    ] {
        assert_eq!(selector, labels, "all select the same pods");
    }
    assert_eq!(
        monitor["spec"]["selector"]["matchLabels"],
        service["metadata"]["labels"]
    );

    let container = &pod["spec"]["containers"][0];
    assert_eq!(container["ports"][0]["containerPort"], PORT);
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        assert_eq!(container[probe]["httpGet"]["path"], path, "{probe}");
    }
    let replicas = deployment["spec"]["replicas"].as_i64();
    assert!(
        replicas > budget["spec"]["minAvailable"].as_i64(),
        "a node can be drained"
    );
    let out: BTreeSet<i64> = policy["spec"]["egress"]
        .as_array()
        .expect("rules")
        .iter()
        .flat_map(|rule| rule["ports"].as_array().expect("ports"))
        .filter_map(|port| port["port"].as_i64())
        .collect();
    assert_eq!(out, BTreeSet::from([53, 443, 5432, 6543]));
}

#[tokio::test]
async fn the_pods_satisfy_the_restricted_pod_security_standard() {
    let namespace = manifest("namespace.yaml").await;
    let enforced = &namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"];
    assert_eq!(enforced, "restricted");
    let pod = &manifest("deployment.yaml").await["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(
        pod["securityContext"]["seccompProfile"]["type"],
        "RuntimeDefault"
    );
    assert_eq!(pod["automountServiceAccountToken"], false);
    let container = &pod["containers"][0]["securityContext"];
    assert_eq!(container["allowPrivilegeEscalation"], false);
    assert_eq!(container["readOnlyRootFilesystem"], true);
    assert_eq!(
        container["capabilities"],
        serde_json::json!({ "drop": ["ALL"] })
    );
    let kinds: Vec<&String> = pod["volumes"]
        .as_array()
        .expect("volumes")
        .iter()
        .flat_map(|volume| volume.as_object().expect("a volume").keys())
        .filter(|key| *key != "name")
        .collect();
    assert_eq!(kinds, ["secret"], "no writable volume");
}

#[tokio::test]
async fn on_fly_one_machine_is_always_on_and_no_port_is_public() {
    let fly = parsed("deploy/fly/fly.toml").await;
    for public in ["services", "http_service"] {
        assert_eq!(fly[public], Value::Null, "{public}");
    }
    for (check, path) in [("alive", "/healthz"), ("ready", "/readyz")] {
        assert_eq!(fly["checks"][check]["port"], PORT, "{check}");
        assert_eq!(fly["checks"][check]["path"], path, "{check}");
    }
    let listen = fly["env"]["VISIT_PACER_LISTEN"].as_str().expect("text");
    assert_eq!(listen, format!("[::]:{PORT}"));
    for file in ["dockerfile", "ignorefile"] {
        let path = fly["build"][file].as_str().expect("a path");
        assert!(root().join("deploy/fly").join(path).exists(), "{path}");
    }
}

#[test]
fn the_build_context_has_every_file_that_the_program_includes() {
    let ignore = text("deploy/docker/Dockerfile.dockerignore");
    let admitted: Vec<PathBuf> = ignore
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .map(|path| root().join(path))
        .collect();
    let mut included = 0;
    for source in files("src", &["rs"]) {
        let text = text(&source);
        let folder = root().join(source.parent().expect("a folder"));
        for (_, path) in ["include_str!(\"", "include_bytes!(\""]
            .into_iter()
            .flat_map(|call| text.match_indices(call).map(move |(at, _)| at + call.len()))
            .filter_map(|from| {
                text.get(from..)?
                    .split_once('"')
                    .map(|(path, _)| (from, path))
            })
        {
            let path = folder.join(path).canonicalize().expect("an existing file");
            let known = admitted.iter().any(|admitted| path.starts_with(admitted));
            assert!(known, "{} is not in the image's context", path.display());
            included += 1;
        }
    }
    assert!(included > 3, "the program includes files");
    assert!(admitted.contains(&root().join("migrations")));
}
