//! Against an API server of a few lines, over a real socket; and against a real one where the
//! environment names a node of it: `LARDER_TEST_NODE=node1 KUBECONFIG=... cargo test --lib cluster::tests`.

#![expect(clippy::disallowed_methods, reason = "what `tokio::test` makes of a test enters a runtime")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::fake::{Fake, until};
use super::*;
use crate::cache::Endpoints;
use crate::cache::cache_in;
use crate::cache::named::{At, Name, Verb};

const NODE: &str = "/api/v1/nodes/n1";
const MODELS: &str = "/apis/larder.dev/v1alpha1/cachedmodels";
const NODE_CACHE: &str = "/apis/larder.dev/v1alpha1/nodecaches/n1";

/// A model by its source.
fn named(source: &str) -> Name {
    Name::parse(Verb::Rm, source, &At::usual(&Endpoints::default()), &[], &[]).expect("a name")
}

/// A daemon's part of it, and where its models come from.
struct Daemon {
    directory: TempDir,
    cache: Arc<Cache>,
    metrics: Arc<Metrics>,
    pods: Pods,
    task: JoinHandle<()>,
}

impl Daemon {
    fn start(client: Client, node: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["a", "b"] {
            let model = directory.path().join(name);
            std::fs::create_dir(&model).expect("a directory");
            std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("LICENSE"), model.join("weights.bin"))
                .expect("a file");
        }
        let cache = cache_in(directory.path());
        cache.set_proven();
        let metrics = Arc::new(Metrics::new("1"));
        let settings = Settings {
            node: node.to_owned(),
            allows: Arc::new(|source| source.to_string().starts_with("file://")),
            serving: watch::Sender::new(true).subscribe(),
            metrics: Arc::clone(&metrics),
        };
        let (pods, work) = Pods::new();
        let task = tokio::spawn(follow_at(client, settings, Arc::clone(&cache), work));
        Self { directory, cache, metrics, pods, task }
    }

    fn source(&self, name: &str) -> String {
        format!("file://{}/{name}/", self.directory.path().display())
    }

    fn counts(&self, series: &str) -> bool {
        self.metrics.render(&crate::telemetry::Gauges::default()).contains(series)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn node() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "n1", "uid": "u1", "labels": {"gpu": "h100", "models.larder.dev/old": "1"}},
        "spec": {"taints": [
            {"key": "larder.dev/not-ready", "effect": "NoSchedule"},
            {"key": "nvidia.com/gpu", "effect": "NoSchedule", "value": "present"},
        ]},
    })
}

fn model(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "larder.dev/v1alpha1", "kind": "CachedModel", "metadata": {"name": name}, "spec": spec})
}

fn labels(fake: &Fake) -> BTreeSet<String> {
    let node = fake.get(NODE).expect("a node");
    node["metadata"]["labels"].as_object().expect("labels").keys().cloned().collect()
}

fn are(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_has_what_is_asked_of_it_and_says_so() {
    let (fake, client) = Fake::start().await;
    fake.put(NODE, Some(node()));
    let daemon = Daemon::start(client, "n1");
    let put = |name: &str, spec: Value| fake.put(&format!("{MODELS}/{name}"), Some(model(name, &spec)));
    put("a", json!({"source": daemon.source("a"), "nodeSelector": {"gpu": "h100"}}));
    put("elsewhere", json!({"source": daemon.source("b"), "nodeSelector": {"gpu": "none"}}));
    put("refused", json!({"source": "s3://models/a/"}));
    put("unreadable", json!({"source": 1}));
    let told = |fake: &Fake| fake.get(NODE_CACHE).unwrap_or_default()["status"].clone();
    until("the labels", async || labels(&fake) == are(&["gpu", "models.larder.dev/a"])).await;
    until("the status", async || told(&fake)["ready"] == 1).await;
    let status = told(&fake);
    let states: Vec<_> = status["models"]
        .as_array()
        .expect("models")
        .iter()
        .map(|m| (m["name"].as_str(), m["state"].as_str()))
        .collect();
    let state = |name, state| (Some(name), Some(state));
    assert_eq!(states, [state("a", "Ready"), state("refused", "Failed"), state("unreadable", "Failed")], "{status}");
    assert_eq!(status["wanted"], 3);
    let label = fake.get(NODE).expect("a node")["metadata"]["labels"]["models.larder.dev/a"].clone();
    let digest = status["models"][0]["digest"].as_str().expect("a digest");
    assert_eq!(label, digest[..16]);
    assert_eq!(fake.get(NODE_CACHE).expect("it")["metadata"]["ownerReferences"][0]["uid"], "u1");
    let taints = fake.get(NODE).expect("a node")["spec"]["taints"].clone();
    assert_eq!(taints, json!([{"key": "nvidia.com/gpu", "effect": "NoSchedule", "value": "present"}]));
    assert!(daemon.counts("larder_cluster_up 1"));
    assert!(daemon.counts("larder_cluster_writes_total{kind=\"taint\",outcome=\"done\"} 1"));

    // The label is gone before the model is.
    let patches = fake.count(&format!("PATCH {NODE}"));
    daemon.cache.remove(vec![named(&daemon.source("a"))]).await.expect("removed");
    assert_eq!(labels(&fake), are(&["gpu"]));
    assert_eq!(fake.count(&format!("PATCH {NODE}")), patches + 1);
    let standing = daemon.cache.standings(List::Cluster).expect("standings");
    assert_eq!(standing[0].state, crate::cache::Progressing::Evicted);

    // It is pinned: then it comes again, and the label with it.
    put("a", json!({"source": daemon.source("a"), "pin": true}));
    until("the label", async || labels(&fake) == are(&["gpu", "models.larder.dev/a"])).await;
    fake.put(&format!("{MODELS}/a"), None);
    until("no label", async || labels(&fake) == are(&["gpu"])).await;
    assert!(daemon.cache.standings(List::Cluster).expect("standings").is_empty());
    assert!(daemon.cache.status().expect("a status").pins == 0, "what is not asked for any more is not pinned");
    // Ready, evicted, asked again and gone: however much happened, it was told at most twice.
    assert!(fake.count(&format!("PATCH {NODE_CACHE}/status")) <= 4, "{:?}", fake.seen);
}

/// Whatever is refused, the rest goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_part_is_refused_by_itself() {
    let (fake, client) = Fake::start().await;
    fake.put(NODE, Some(node()));
    fake.refuse(&[("/apis/larder.dev/v1alpha1/nodecaches", 403)]);
    let daemon = Daemon::start(client, "n1");
    fake.put(&format!("{MODELS}/a"), Some(model("a", &json!({"source": daemon.source("a")}))));
    until("the labels", async || labels(&fake) == are(&["gpu", "models.larder.dev/a"])).await;
    until("one try", async || daemon.counts("larder_cluster_writes_total{kind=\"status\",outcome=\"refused\"} 1"))
        .await;
    assert_eq!(fake.get(NODE_CACHE), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_definitions_the_taint_goes_and_labels_stay() {
    let (fake, client) = Fake::start().await;
    fake.put(NODE, Some(node()));
    fake.refuse(&[("/apis/larder.dev", 404)]);
    let daemon = Daemon::start(client, "n1");
    until("no taint of ours", async || fake.get(NODE).expect("a node")["spec"]["taints"][0]["key"] == "nvidia.com/gpu")
        .await;
    assert_eq!(labels(&fake), are(&["gpu", "models.larder.dev/old"]), "what is asked is not known");
    assert_eq!(fake.count(&format!("GET {MODELS}")), 1, "not asked again in a hurry");
    assert!(daemon.counts("larder_cluster_up 0"));
}

/// What an earlier life pinned stays pinned until the list is known.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_is_away_takes_nothing() {
    let (fake, client) = Fake::start().await;
    fake.refuse(&[("/", 503)]);
    let daemon = Daemon::start(client, "n1");
    let source = Source::parse(&daemon.source("a")).expect("a source");
    let selection = crate::fetch::Selection::default();
    let want = crate::cache::Want { source, selection, pin: true, after: Duration::ZERO };
    daemon.cache.reconcile(List::Cluster, vec![want]).await.expect("pinned");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(daemon.cache.status().expect("a status").pins, 1);
    assert!(daemon.counts("larder_cluster_up 0"));
    assert!(Fake::count(&fake, &format!("GET {MODELS}")) <= 4);

    fake.refuse(&[]);
    fake.put(NODE, Some(node()));
    until("the list is known, and empty", async || daemon.cache.status().expect("a status").pins == 0).await;
}

/// On a real node, with the definitions applied. It cleans up behind itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_api_server_takes_it() {
    let Ok(name) = std::env::var("LARDER_TEST_NODE") else { return };
    let client = connect().await.expect("a client");
    let nodes: Api<Node> = Api::all(client.clone());
    let models: Api<CachedModel> = Api::all(client.clone());
    let caches: Api<NodeCache> = Api::all(client.clone());
    let taints = nodes.get(&name).await.expect("a node").spec.and_then(|spec| spec.taints).unwrap_or_default();
    let patch = |patch: Value| {
        let (nodes, name) = (nodes.clone(), name.clone());
        async move { nodes.patch(&name, &PatchParams::default(), &Patch::Strategic(patch)).await.expect("patched") }
    };
    patch(json!({
        "metadata": {"labels": {"models.larder.dev/old": "1"}},
        "spec": {"taints": [{"key": STARTUP_TAINT, "effect": "NoSchedule"}, {"key": "other", "effect": "PreferNoSchedule"}]},
    }))
    .await;
    let daemon = Daemon::start(client, &name);
    let spec = CachedModelSpec { source: daemon.source("a"), ..CachedModelSpec::default() };
    models.create(&kube::api::PostParams::default(), &CachedModel::new("larder-test", spec)).await.expect("created");
    let labels = async || nodes.get(&name).await.expect("a node").metadata.labels.unwrap_or_default();
    let has = async |name: &str| labels().await.contains_key(&key_of(name));
    until("the labels", async || has("larder-test").await && !has("old").await).await;
    until("no taint", async || {
        let taints = nodes.get(&name).await.expect("a node").spec.and_then(|spec| spec.taints).unwrap_or_default();
        taints.iter().all(|taint| taint.key != STARTUP_TAINT) && taints.iter().any(|taint| taint.key == "other")
    })
    .await;
    until("the status", async || {
        let status = caches.get(&name).await.ok().and_then(|cache| cache.status).unwrap_or_default();
        status.models.iter().any(|model| model.name == "larder-test" && model.state == ModelState::Ready)
    })
    .await;
    daemon.cache.remove(vec![named(&daemon.source("a"))]).await.expect("removed");
    assert!(!has("larder-test").await);
    models.delete("larder-test", &DeleteParams::default()).await.expect("deleted");
    until("nothing asked", async || daemon.cache.standings(List::Cluster).expect("standings").is_empty()).await;
    drop(daemon);
    caches.delete(&name, &DeleteParams::default()).await.expect("deleted");
    patch(json!({"spec": {"taints": taints}})).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_told_and_asked_for_by_name() {
    let (fake, client) = Fake::start().await;
    fake.put(NODE, Some(node()));
    let daemon = Daemon::start(client, "n1");
    let put = |name: &str, metadata: Value| {
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata});
        fake.put(&format!("/api/v1/namespaces/team/pods/{name}"), Some(pod));
    };
    put("here", json!({"name": "here", "uid": "u1"}));
    put("going", json!({"name": "going", "uid": "u1", "deletionTimestamp": "2026-01-01T00:00:00Z"}));
    put("another", json!({"name": "another", "uid": "u2"}));
    let of = |name: &str| PodRef { namespace: "team".into(), name: name.into(), uid: "u1".into() };
    for (name, ended) in [("here", false), ("going", true), ("another", true), ("gone", true)] {
        assert_eq!(daemon.pods.has_ended(of(name)).await, Some(ended), "{name}");
    }
    daemon.pods.tell(of("here"), "PullingModel", "half of it".into());
    let told = || fake.below("/api/v1/namespaces/team/events/");
    until("the event", async || told().len() == 1).await;
    let event = &told()[0];
    assert_eq!((&event["involvedObject"]["uid"], &event["message"]), (&json!("u1"), &json!("half of it")));
    assert_eq!(event["source"]["host"], "n1");
    until("it is counted", async || daemon.counts("larder_cluster_writes_total{kind=\"event\",outcome=\"done\"} 1"))
        .await;
    // Who may not is told so once, and keeps nobody waiting.
    fake.refuse(&[("/api/v1/namespaces/team", 403)]);
    let posts = || fake.count("POST /api/v1/namespaces/team/events");
    for _ in 0..20 {
        daemon.pods.tell(of("here"), "PullingModel", "all of it".into());
        assert_eq!(daemon.pods.has_ended(of("here")).await, None);
        // The first goes out beside the question, and is refused.
        until("it is refused", async || posts() == 2).await;
    }
    assert_eq!(posts(), 2);
    assert_eq!(told().len(), 1);
}
