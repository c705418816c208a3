//! Writes the own `NodeCache`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;

use super::asked::Asked;
use super::attempts::{Attempts, Trouble, chance};
use super::objects::{GROUP, NodeCache, NodeCacheStatus, VERSION};
use super::own::{Known, Own};
use super::told::{self, Rhythm, Space};
use super::{MANAGER, REMEDY, standings, written};
use crate::cache::Cache;
use crate::telemetry::{Metrics, Write};

/// How far models are is looked at this often, if nothing else happens.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// However much happens, it is looked at no more often.
const LOOK_GAP: Duration = Duration::from_secs(1);
/// How long a daemon that has just started says nothing, so that it does not say "waiting" of all it has.
const UP_PATIENCE: Duration = Duration::from_secs(30);

/// Says how the node's models stand.
pub struct Telling<'a> {
    /// Of the API server.
    pub client: &'a Client,
    /// The own Node, whose name the object has.
    pub node: &'a str,
    /// As it was last seen.
    pub known: &'a Known,
    /// What there is.
    pub cache: &'a Arc<Cache>,
    /// Counts writes.
    pub metrics: &'a Metrics,
}

impl Telling<'_> {
    /// Goes on for as long as it is polled.
    pub async fn run(&self, mut asked: watch::Receiver<Option<Arc<Vec<Asked>>>>) {
        let _ = tokio::time::timeout(UP_PATIENCE, self.cache.up()).await;
        let mut attempts = Attempts::new("writing the NodeCache of this node", REMEDY);
        let (mut changes, mut own) = (self.cache.changes(), self.known.subscribe());
        let (mut rhythm, mut luck) = (Rhythm::default(), chance());
        // The uid of the Node that the object was made for, and what it said then.
        let mut made: Option<String> = None;
        let mut before = NodeCacheStatus::default();
        loop {
            changes.borrow_and_update();
            let known = (own.borrow_and_update().clone(), asked.borrow_and_update().clone());
            let mut pause = LOOK_INTERVAL;
            if let (Some(own), Some(asked)) = known {
                let worked = self.tell(&own, &asked, &mut made, &mut before, &mut rhythm, &mut luck).await;
                match worked {
                    Ok(Some(wait)) => pause = wait.min(LOOK_INTERVAL),
                    Ok(None) => attempts.worked(),
                    Err(error) => {
                        let trouble = Trouble::of(&error);
                        if trouble == Trouble::Missing {
                            // Somebody has deleted it: it is made again.
                            made = None;
                        }
                        tokio::time::sleep(attempts.failed(trouble, &error)).await;
                        continue;
                    }
                }
            }
            tokio::time::sleep(LOOK_GAP).await;
            tokio::select! {
                changed = own.changed() => if changed.is_err() { return },
                changed = asked.changed() => if changed.is_err() { return },
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Writes what is to be said, or says how long that has time; `None` where it was written.
    async fn tell(
        &self,
        own: &Own,
        asked: &[Asked],
        made: &mut Option<String>,
        before: &mut NodeCacheStatus,
        rhythm: &mut Rhythm,
        luck: &mut f64,
    ) -> kube::Result<Option<Duration>> {
        if made.as_ref() != Some(&own.uid) {
            let object = written(self.metrics, Write::Status, self.make(own)).await?;
            if let Some(status) = object.status.filter(|_| rhythm.last().is_none()) {
                *before = status;
            }
            *made = Some(own.uid.clone());
        }
        let Some((standings, space)) = self.look().await else { return Ok(Some(LOOK_INTERVAL)) };
        let time = Time(Timestamp::try_from(SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH));
        let status = told::status(asked, &standings, space, before, &time);
        // Also what is not written yet: a state begins when it is seen.
        before.clone_from(&status);
        let now = std::time::Instant::now();
        let due = rhythm.due(&status, now, *luck);
        if due > now {
            return Ok(Some(due - now));
        }
        written(self.metrics, Write::Status, self.write(&status)).await?;
        rhythm.wrote(status, std::time::Instant::now());
        *luck = chance();
        Ok(None)
    }

    async fn look(&self) -> Option<(Vec<crate::cache::Standing>, Space)> {
        let standings = standings(self.cache).await?;
        let cache = Arc::clone(self.cache);
        let space = tokio::task::spawn_blocking(move || cache.space()).await.ok()?.ok()?;
        Some((standings, Space { free: space.free, total: space.total }))
    }

    fn api(&self) -> Api<NodeCache> {
        Api::all(self.client.clone())
    }

    /// Makes the object, or finds it. It goes with its Node.
    async fn make(&self, own: &Own) -> kube::Result<NodeCache> {
        let owner = json!({"apiVersion": "v1", "kind": "Node", "name": self.node, "uid": own.uid});
        let object = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "NodeCache",
            "metadata": {"name": self.node, "ownerReferences": [owner]},
        });
        self.api().patch(self.node, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object)).await
    }

    async fn write(&self, status: &NodeCacheStatus) -> kube::Result<NodeCache> {
        let object = json!({
            "apiVersion": format!("{GROUP}/{VERSION}"),
            "kind": "NodeCache",
            "metadata": {"name": self.node},
            "status": status,
        });
        self.api().patch_status(self.node, &PatchParams::apply(MANAGER).force(), &Patch::Apply(object)).await
    }
}
