//! Follows the prefetch list: a mounted `ConfigMap` changes under the daemon, and only its list of
//! models counts without a restart.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::cache::{Cache, List, Want};
use crate::config::{Config, Loaded, Refused};
use crate::fetch::Selection;

/// kubelet brings a changed `ConfigMap` within a minute; a look costs one small read.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Brings what the list names, now and whenever it changes.
pub async fn follow(cache: Arc<Cache>, loaded: Loaded) {
    reconcile(&cache, &loaded).await;
    let Some(file) = loaded.file.clone() else { return };
    let mut seen = content(&file);
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let now = content(&file);
        if now == seen || now.is_none() {
            continue;
        }
        seen = now;
        let store = loaded.config.store.clone();
        match Config::load(Some(&file), Some(&store), &|name| std::env::var(name).ok()) {
            Ok(changed) => {
                let others = |config: &Config| Config { prefetch: Vec::new(), ..config.clone() };
                if others(&changed.config) != others(&loaded.config) {
                    tracing::warn!(file = %file.display(), "settings beside the prefetch list have changed: they count from the next start on");
                }
                tracing::info!(file = %file.display(), models = changed.config.prefetch.len(), "the prefetch list has changed");
                reconcile(&cache, &changed).await;
            }
            Err(failure) => {
                tracing::error!(file = %file.display(), "the changed settings are wrong, the list stays as it was: {}", failure.message);
            }
        }
    }
}

fn content(file: &Path) -> Option<blake3::Hash> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(file).ok()?.take(crate::config::FILE_LEN_MAX + 1).read_to_end(&mut bytes).ok()?;
    Some(blake3::hash(&bytes))
}

async fn reconcile(cache: &Arc<Cache>, loaded: &Loaded) {
    let wants = loaded.config.prefetch.iter().filter_map(|entry| {
        // The globs were checked with the settings.
        let selection = Selection::new(&entry.include, &entry.exclude).ok()?;
        Some(Want { source: entry.source.clone(), selection, pin: entry.pin, after: Duration::ZERO })
    });
    for Refused { source, why } in &loaded.refused {
        tracing::error!(source, "an entry of the prefetch list is wrong and left out: {why}");
    }
    cache.refuse(List::Settings, loaded.refused.iter().map(|entry| (entry.source.clone(), entry.why.clone())));
    if let Err(failure) = cache.reconcile(List::Settings, wants.collect()).await {
        tracing::error!("the prefetch list could not be taken up: {}", failure.message);
    }
}
