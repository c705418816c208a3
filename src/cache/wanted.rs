//! The list of what to have before anybody asks: each entry is brought, and tried again until it
//! is here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;

use super::ensure::{LeaseWish, Wish};
use super::event::Event;
use super::{Cache, blocking};
use crate::domain::Source;
use crate::fetch::Selection;
use crate::report::Failure;

/// Who pins what the list says is to be pinned.
const HOLDER: &str = "prefetch list";
/// The first wait after a failure; each is twice the one before.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// No wait is longer.
const PAUSE_MAX: Duration = Duration::from_mins(5);

/// One entry of the list.
#[derive(Debug, Clone)]
pub struct Want {
    /// The source.
    pub source: Source,
    /// Which of its files.
    pub selection: Selection,
    /// Never evict it.
    pub pin: bool,
}

impl Want {
    fn wish(&self) -> Wish {
        Wish::new(self.source.clone(), self.selection.clone(), false, LeaseWish::None)
    }
}

/// How an entry stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedState {
    /// The source.
    pub source: String,
    /// Whether it is pinned.
    pub pin: bool,
    /// Where it is.
    pub state: Progressing,
    /// Why it failed, or what it warns of.
    pub message: Option<String>,
}

/// Where an entry of the list is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progressing {
    /// Not begun.
    Waiting,
    /// On its way.
    Moving,
    /// Here.
    Ready,
    /// Failed; tried again later.
    Failed,
}

#[derive(Debug)]
struct Entry {
    state: WantedState,
    task: AbortHandle,
}

/// The list as it stands.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    entries: Mutex<HashMap<String, Entry>>,
}

impl Wanted {
    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, key: &str, state: Progressing, message: Option<String>) {
        if let Some(entry) = self.entries().get_mut(key) {
            entry.state.state = state;
            entry.state.message = message;
        }
    }
}

impl Cache {
    /// Makes the list what `wants` says: new entries are brought, those that are gone are neither
    /// brought nor pinned by it any more. What is here stays until room is wanted.
    ///
    /// # Errors
    /// When pins cannot be written down.
    pub async fn reconcile(self: &Arc<Self>, wants: Vec<Want>) -> Result<(), Failure> {
        let wants: HashMap<String, Want> = wants.into_iter().map(|want| (want.wish().record_id(), want)).collect();
        let pins: Vec<String> = wants.iter().filter(|(_, want)| want.pin).map(|(key, _)| key.clone()).collect();
        let cache = Arc::clone(self);
        blocking(move || {
            let (residency, mut book) = (&cache.residency, cache.residency.book());
            for key in book.pinned_by(HOLDER).into_iter().filter(|key| !pins.contains(key)) {
                book.unpin(&residency.store, &key, Some(HOLDER))?;
            }
            for key in pins {
                book.pin(&residency.store, &key, HOLDER)?;
            }
            Ok(())
        })
        .await?;
        let mut entries = self.wanted.entries();
        entries.retain(|key, entry| {
            let stays = wants.contains_key(key);
            if !stays {
                entry.task.abort();
            }
            stays
        });
        for (key, want) in wants {
            if let Some(entry) = entries.get_mut(&key) {
                entry.state.pin = want.pin;
                continue;
            }
            let source = want.source.to_string();
            let state = WantedState { source, pin: want.pin, state: Progressing::Waiting, message: None };
            let (cache, own) = (Arc::clone(self), key.clone());
            let task = tokio::spawn(async move { cache.bring(&own, &want).await }).abort_handle();
            entries.insert(key, Entry { state, task });
        }
        Ok(())
    }

    async fn bring(self: Arc<Self>, key: &str, want: &Want) {
        let mut pause = PAUSE_MIN;
        loop {
            self.wanted.set(key, Progressing::Moving, None);
            let mut warning = None;
            let ensured = self
                .ensure(&want.wish(), &mut |event| {
                    if let Event::Warning { message } = event {
                        warning = Some(message);
                    }
                })
                .await;
            match ensured {
                Ok(_) => return self.wanted.set(key, Progressing::Ready, warning),
                Err(failure) => {
                    tracing::warn!(source = %want.source, error = %failure.message, "an entry of the prefetch list failed: it is tried again");
                    self.wanted.set(key, Progressing::Failed, Some(failure.message));
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    pub(super) fn wanted_states(&self) -> Vec<WantedState> {
        let mut states: Vec<WantedState> = self.wanted.entries().values().map(|entry| entry.state.clone()).collect();
        states.sort_by(|a, b| a.source.cmp(&b.source));
        states
    }
}
