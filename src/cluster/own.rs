//! The own Node: what is known of it, and what is written to it.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt as _};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::asked::Asked;
use super::attempts::{Attempts, Trouble};
use super::herald::{Answer, Crier};
use super::labels::{self, Changes, LABEL_COUNT_MAX};
use super::{MANAGER, standings, taint, written};
use crate::cache::{Cache, Standing};
use crate::domain::Digest;
use crate::telemetry::{Metrics, Write};

/// What to do where the own Node may not be changed.
const REMEDY: &str =
    "take daemonset/components/node-labels, which lets larder patch nodes, or do without labels and taint";
/// A model may come back by another's doing, which nothing tells of.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);
/// Between two writes of labels; an eviction does not wait for it.
const GAP: Duration = Duration::from_secs(1);
/// How long labels of an earlier life stand unexamined while the node cannot give anything out.
const UP_PATIENCE: Duration = Duration::from_secs(30);

/// What matters of a Node.
#[derive(Debug, Clone, PartialEq)]
pub struct Own {
    /// Its uid.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
}

impl From<&Node> for Own {
    fn from(node: &Node) -> Self {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
        Self { uid: node.uid().unwrap_or_default(), labels: node.labels().clone(), taints }
    }
}

/// The own Node as it was last seen.
pub type Known = watch::Sender<Option<Arc<Own>>>;

/// Notes what was seen; wakes nobody where it is nothing new: a Node changes every few minutes.
pub fn seen(known: &Known, node: Option<&Node>) {
    let own = node.map(|node| Arc::new(Own::from(node)));
    known.send_if_modified(|before| {
        let is_new = *before != own;
        *before = own;
        is_new
    });
}

/// Takes the startup taint away whenever it is there, from the moment on when larder serves.
pub async fn untaint(client: &Client, node: &str, known: &Known, metrics: &Metrics) {
    let mut attempts = Attempts::new("taking the startup taint off the own Node", REMEDY);
    let mut own = known.subscribe();
    loop {
        let patch = own.borrow_and_update().as_ref().and_then(|own| taint::removal(&own.taints));
        let pause = match patch {
            None => None,
            Some(patch) => match written(metrics, Write::Taint, patch_json(client, node, &patch)).await {
                Ok(node) => {
                    attempts.worked();
                    tracing::info!(taint = taint::KEY, "the startup taint is taken off the node");
                    seen(known, Some(&node));
                    None
                }
                Err(error) => Some(attempts.failed(Trouble::of(&error), &error)),
            },
        };
        // After a failure not even news make it come sooner: a Node that changes often would be a storm.
        match pause {
            Some(pause) => tokio::time::sleep(pause).await,
            None if own.changed().await.is_err() => return,
            None => {}
        }
    }
}

/// kube has JSON patches only together with another crate.
async fn patch_json(client: &Client, node: &str, patch: &serde_json::Value) -> kube::Result<Node> {
    let request = http::Request::patch(format!("/api/v1/nodes/{node}?fieldManager={MANAGER}"))
        .header(http::header::CONTENT_TYPE, "application/json-patch+json")
        .body(patch.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}

/// Writes the labels of what is ready, and takes them away before it goes.
pub struct Labelling<'a> {
    /// Of the API server.
    pub client: &'a Client,
    /// The own Node.
    pub node: &'a str,
    /// As it was last seen.
    pub known: &'a Known,
    /// What there is.
    pub cache: &'a Arc<Cache>,
    /// Who says what is about to go.
    pub crier: &'a Crier,
    /// Counts writes.
    pub metrics: &'a Metrics,
}

impl Labelling<'_> {
    /// Goes on for as long as it is polled.
    pub async fn run(
        &self,
        mut asked: watch::Receiver<Option<Arc<Vec<Asked>>>>,
        mut evictions: mpsc::Receiver<Answer>,
    ) {
        // Until then nothing is ready, and what an earlier life said is likely to be right.
        let _ = tokio::time::timeout(UP_PATIENCE, self.cache.up()).await;
        let mut attempts = Attempts::new("labelling the own Node", REMEDY);
        let (mut own, mut changes) = (self.known.subscribe(), self.cache.changes());
        let (mut not_before, mut is_cut) = (Instant::now(), false);
        let mut answer: Option<Answer> = None;
        loop {
            own.borrow_and_update();
            changes.borrow_and_update();
            let known = (self.known.borrow().clone(), asked.borrow_and_update().clone());
            let (mut is_right, mut next) = (true, Instant::now() + LOOK_INTERVAL);
            if let (Some(own), Some(asked)) = known
                && (answer.is_some() || Instant::now() >= not_before)
            {
                match self.make_right(&own, &asked, &mut is_cut).await {
                    Ok(false) => {}
                    Ok(true) => {
                        attempts.worked();
                        not_before = Instant::now() + GAP;
                        next = not_before;
                    }
                    Err(error) => {
                        is_right = false;
                        not_before = Instant::now() + attempts.failed(Trouble::of(&error), &error);
                        next = not_before;
                    }
                }
            } else if Instant::now() < not_before {
                next = not_before;
            }
            if let Some(answer) = answer.take().filter(|_| is_right) {
                // Whoever has lost patience hears nothing.
                let _ = answer.send(());
            }
            // What changes while it is not yet time is seen then.
            let may = Instant::now() >= not_before;
            tokio::select! {
                biased;
                leaving = evictions.recv() => answer = leaving,
                changed = own.changed(), if may => if changed.is_err() { return },
                changed = asked.changed(), if may => if changed.is_err() { return },
                changed = changes.changed(), if may => if changed.is_err() { return },
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    /// Whether anything was wrong.
    async fn make_right(&self, own: &Own, asked: &[Asked], is_cut: &mut bool) -> kube::Result<bool> {
        let Some(standings) = standings(self.cache).await else { return Ok(false) };
        let ready = ready(asked, &standings);
        if ready.len() > LABEL_COUNT_MAX && !*is_cut {
            tracing::warn!(models = ready.len(), "the first {LABEL_COUNT_MAX} by name are labels of this node");
        }
        *is_cut = ready.len() > LABEL_COUNT_MAX;
        let digests = ready.iter().map(|(name, (digest, _))| (name.clone(), *digest)).collect();
        let changes = labels::changes(&own.labels, &labels::labels_of(&digests));
        // Before they are written: what is evicted meanwhile waits for its turn.
        self.crier.set_labelled(ready.into_values().map(|(_, record_id)| record_id).collect::<HashSet<String>>());
        if changes.is_empty() {
            return Ok(false);
        }
        let node = written(self.metrics, Write::Labels, self.write(&changes)).await?;
        let (set, gone): (Vec<_>, Vec<_>) = changes.iter().partition(|(_, value)| value.is_some());
        tracing::info!(set = set.len(), removed = gone.len(), "the labels of this node say what is ready");
        seen(self.known, Some(&node));
        Ok(true)
    }

    async fn write(&self, changes: &Changes) -> kube::Result<Node> {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let patch = Patch::Merge(json!({"metadata": {"labels": changes}}));
        nodes
            .patch(self.node, &PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() }, &patch)
            .await
    }
}

/// The models that are ready, with the id of their record, by the names of their objects.
fn ready(asked: &[Asked], standings: &[Standing]) -> BTreeMap<String, (Digest, String)> {
    let ready = asked.iter().filter_map(|asked| {
        let record_id = &asked.model.as_ref().ok()?.record_id;
        let standing = standings.iter().find(|standing| standing.record_id == *record_id)?;
        Some((asked.name.clone(), (standing.digest?, record_id.clone())))
    });
    ready.collect()
}
