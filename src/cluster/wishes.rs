//! Makes what the `CachedModel`s ask of this node the cache's second list.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::core::DeserializeGuard;
use tokio::sync::watch;

use super::asked::{self, Asked};
use super::attempts::chance;
use super::objects::CachedModel;
use super::{Own, Settings};
use crate::cache::{Cache, List, Want};
use crate::domain::Source;
use crate::fetch::Selection;

/// A model that turns up while daemons run reaches all of them in the same moment. Each begins
/// somewhere in this time, or the origin would see a thousand listings and first parts at once. Those
/// that a daemon finds at its start are not delayed: daemons start one after another.
const SPREAD: Duration = Duration::from_secs(10);
/// After the disk did not take what is pinned.
const PAUSE: Duration = Duration::from_secs(30);

/// Objects that could be read, and why others could not.
pub type Models = BTreeMap<String, Result<CachedModel, String>>;

/// What a list of objects says.
pub fn models(objects: &BTreeMap<String, DeserializeGuard<CachedModel>>) -> Models {
    let read = |guard: &DeserializeGuard<CachedModel>| {
        guard.0.clone().map_err(|invalid| format!("larder cannot read it: {}", invalid.error))
    };
    objects.iter().map(|(name, guard)| (name.clone(), read(guard))).collect()
}

/// What is asked of a node with these labels.
fn asked_of(own: &Own, models: &Models, settings: &Settings, cache: &Cache) -> Vec<Asked> {
    let record_id = |source: &Source, selection: &Selection| cache.record_id(source, selection);
    let mut asked = Vec::new();
    for (name, model) in models {
        match model {
            Ok(model) if !asked::selects(&model.spec.node_selector, &own.labels) => {}
            Ok(model) => asked.push(asked::read(name, Ok(&model.spec), &*settings.allows, &record_id)),
            // Whom it is meant for is not known either.
            Err(why) => asked.push(asked::read(name, Err(why.clone()), &*settings.allows, &record_id)),
        }
    }
    asked
}

/// Follows node and objects, and says what is asked once the cache knows of it.
pub async fn follow(
    settings: &Settings,
    cache: &Arc<Cache>,
    mut own: watch::Receiver<Option<Arc<Own>>>,
    mut models: watch::Receiver<Option<Arc<Models>>>,
    tell: watch::Sender<Option<Arc<Vec<Asked>>>>,
) {
    loop {
        let both = (own.borrow_and_update().clone(), models.borrow_and_update().clone());
        let is_done = match both {
            // Until both are known whole, what an earlier life pinned stays pinned.
            (Some(own), Some(models)) => take_up(cache, asked_of(&own, &models, settings, cache), &tell).await,
            _ => true,
        };
        tokio::select! {
            changed = own.changed() => if changed.is_err() { return },
            changed = models.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(PAUSE), if !is_done => {}
        }
    }
}

async fn take_up(cache: &Arc<Cache>, asked: Vec<Asked>, tell: &watch::Sender<Option<Arc<Vec<Asked>>>>) -> bool {
    let before = tell.borrow().clone();
    if before.as_ref().is_some_and(|before| **before == asked) {
        return true;
    }
    let wants: Vec<Want> = asked
        .iter()
        .filter_map(|asked| {
            let after = if before.is_some() { SPREAD.mul_f64(chance()) } else { Duration::ZERO };
            asked.model.as_ref().ok()?.want(after)
        })
        .collect();
    tracing::info!(models = asked.len(), "what the CachedModels of the cluster ask of this node");
    if let Err(failure) = cache.reconcile(List::Cluster, wants).await {
        tracing::error!("the CachedModels of the cluster could not be taken up: {}", failure.message);
        return false;
    }
    for asked in &asked {
        if let Err(why) = &asked.model {
            tracing::warn!(model = asked.name, "a CachedModel cannot be had: {why}");
        }
    }
    tell.send_replace(Some(Arc::new(asked)));
    true
}
