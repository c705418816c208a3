//! What the cluster asks of this node, and what it is told.
//!
//! Each daemon follows the `CachedModel` objects and its own Node, and does its own node's part:
//! nobody decides for others, and nothing is kept elsewhere. What is ready it says by labels of the
//! Node, for the scheduler, and in its `NodeCache`, for people.
//!
//! An API server that is away for ever costs what the cluster would have said, and nothing else: all
//! of this runs beside the cache, waits for nobody, and nobody waits for it but an eviction, which
//! gives a label two seconds to go.
//!
//! Without the own Node nothing is asked: its labels say which objects are meant for it. Without the
//! `CachedModel`s labels stay as they are, for the same reason for which pins do: what is asked is not
//! known. Everything that is refused is complained of once, by itself, and tried again.

mod asked;
mod attempts;
#[cfg(test)]
mod fake;
mod herald;
mod labels;
mod node_cache;
mod objects;
mod own;
mod pods;
mod taint;
#[cfg(test)]
mod tests;
mod told;
mod watching;
mod wishes;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::core::DeserializeGuard;
use kube::{Api, Client, Config};
use tokio::sync::watch;

use crate::cache::{Cache, List, Standing};
use crate::domain::Source;
use crate::telemetry::{Metrics, Write, Written};

use asked::Asked;
use attempts::{Attempts, Trouble, chance};
use herald::Crier;
use own::{Known, Own};
use watching::Watched;

pub use labels::{LABEL_COUNT_MAX, PREFIX, key_of};
pub use objects::{
    CachedModel, CachedModelSpec, GROUP, ModelState, ModelStatus, NodeCache, NodeCacheStatus, VERSION, definitions,
};
pub use pods::{PodRef, PodWork, Pods};
pub use taint::KEY as STARTUP_TAINT;

/// Who writes, as the API server notes it.
const MANAGER: &str = "larder";
/// What to do where something is refused.
const REMEDY: &str = "apply daemonset/base, which has the CustomResourceDefinitions and the ClusterRole";
/// A thousand daemons of one rollout do not ask in the same moment.
const START_SPREAD: Duration = Duration::from_secs(5);
/// How long one write may take.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// How long connecting may take.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// What the daemon says of itself.
#[derive(Clone)]
pub struct Settings {
    /// The name of the own Node.
    pub node: String,
    /// Whether a source may be asked for.
    pub allows: Arc<dyn Fn(&Source) -> bool + Send + Sync>,
    /// True once pods can be served; the cache's own readiness is waited for besides.
    pub serving: watch::Receiver<bool>,
    /// Counts.
    pub metrics: Arc<Metrics>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Follows the cluster that this process runs in, for as long as it is polled.
pub async fn follow(settings: Settings, cache: Arc<Cache>, pods: PodWork) {
    tokio::time::sleep(START_SPREAD.mul_f64(chance())).await;
    let mut attempts = Attempts::new("finding the API server of the cluster", "run it as a pod with a service account");
    let client = loop {
        match connect().await {
            Ok(client) => break client,
            Err(why) => tokio::time::sleep(attempts.failed(Trouble::Missing, &why)).await,
        }
    };
    Box::pin(follow_at(client, settings, cache, pods)).await;
}

async fn connect() -> Result<Client, String> {
    client_of(Config::infer().await.map_err(|error| error.to_string())?)
}

fn client_of(mut config: Config) -> Result<Client, String> {
    config.connect_timeout = Some(CONNECT_PATIENCE);
    // When to try again is decided here, for all daemons of a cluster.
    config.default_retry = false;
    Client::try_from(config).map_err(|error| error.to_string())
}

/// Follows the cluster of that API server.
async fn follow_at(client: Client, settings: Settings, cache: Arc<Cache>, pods: PodWork) {
    let (node, metrics) = (settings.node.as_str(), &*settings.metrics);
    let (known, models) = (Known::new(None), watch::Sender::new(None));
    let asked: watch::Sender<Option<Arc<Vec<Asked>>>> = watch::Sender::new(None);
    let (crier, evictions) = Crier::new();
    let crier = Arc::new(crier);
    cache.set_herald(Arc::clone(&crier) as _);
    let works = [AtomicBool::new(false), AtomicBool::new(false)];
    let works = |which: usize| {
        let (works, metrics) = (&works, metrics);
        move |now: bool| {
            works[which].store(now, Relaxed);
            metrics.cluster_up(works.iter().all(|works| works.load(Relaxed)));
        }
    };
    let own_node = Watched {
        api: Api::<Node>::all(client.clone()),
        fields: format!("metadata.name={node}"),
        attempts: Attempts::new("following the own Node", REMEDY),
    };
    let cached_models = Watched {
        api: Api::<DeserializeGuard<CachedModel>>::all(client.clone()),
        fields: String::new(),
        attempts: Attempts::new("following the CachedModels", REMEDY),
    };
    let labelling = own::Labelling { client: &client, node, known: &known, cache: &cache, crier: &crier, metrics };
    let telling = node_cache::Telling { client: &client, node, known: &known, cache: &cache, metrics };
    tokio::join!(
        watching::follow(own_node, works(0), |nodes| {
            if !nodes.contains_key(node) {
                tracing::warn!(node, "the cluster has no Node of that name: the setting `node` names the own one");
            }
            own::seen(&known, nodes.get(node));
        }),
        watching::follow(cached_models, works(1), |objects| {
            models.send_replace(Some(Arc::new(wishes::models(objects))));
        }),
        wishes::follow(&settings, &cache, known.subscribe(), models.subscribe(), asked.clone()),
        labelling.run(asked.subscribe(), evictions),
        telling.run(asked.subscribe()),
        pods.run(&client, node, metrics),
        async {
            let mut serving = settings.serving.clone();
            // A daemon that ends before it serves leaves the taint where it is.
            if serving.wait_for(|serving| *serving).await.is_ok() {
                cache.up().await;
                own::untaint(&client, node, &known, metrics).await;
            }
        },
    );
}

/// How the cluster's list stands; `None` where the disk does not say.
async fn standings(cache: &Arc<Cache>) -> Option<Vec<Standing>> {
    let cache = Arc::clone(cache);
    match tokio::task::spawn_blocking(move || cache.standings(List::Cluster)).await {
        Ok(Ok(standings)) => Some(standings),
        Ok(Err(error)) => {
            tracing::debug!(%error, "what is ready cannot be looked up");
            None
        }
        Err(_) => None,
    }
}

/// Waits for a write, not for ever, and counts it.
async fn written<T>(metrics: &Metrics, what: Write, write: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    let result = match tokio::time::timeout(WRITE_PATIENCE, write).await {
        Ok(result) => result,
        Err(elapsed) => Err(kube::Error::Service(elapsed.into())),
    };
    let written = match result.as_ref().map_err(Trouble::of) {
        Ok(_) => Written::Done,
        Err(Trouble::Forbidden | Trouble::Missing) => Written::Refused,
        Err(Trouble::Other) => Written::Failed,
    };
    metrics.cluster_write(what, written);
    result
}
