//! The lists of what to have before anybody asks: each entry is brought, and tried again until it
//! is here.
//!
//! What is on two lists is brought once and shown under both; either can let go of it alone. What
//! was here and has been evicted since is not brought again by itself: room was wanted more, and two
//! models would push each other out for ever. It comes when somebody asks for it, or is pinned.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;

use super::ensure::{LeaseWish, Wish};
use super::event::Event;
use super::residency::Resident;
use super::{Cache, blocking};
use crate::domain::{Digest, Source};
use crate::fetch::Selection;
use crate::report::{Failure, named};
use crate::store;

/// The first wait after a failure; each is twice the one before.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// No wait is longer.
const PAUSE_MAX: Duration = Duration::from_mins(5);

/// Said of an entry that was here and is not any more.
const EVICTED: &str = "it was here and has been evicted or removed since: it comes when it is asked for, or pinned";

/// Said of an entry that is here, while nothing can be given out.
const NOT_UP: &str = "it is here; the node cannot give it out yet";

/// Who says what to have. Each list pins for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum List {
    /// `prefetch` of the settings.
    #[default]
    Settings,
    /// The `CachedModel` objects of the cluster.
    Cluster,
}

impl List {
    /// Who pins what this list says is to be pinned. Written down in the store: it stays as it is.
    const fn holder(self) -> &'static str {
        match self {
            Self::Settings => "prefetch list",
            Self::Cluster => "cached models",
        }
    }
}

/// One entry of a list.
#[derive(Debug, Clone)]
pub struct Want {
    /// The source.
    pub source: Source,
    /// Which of its files.
    pub selection: Selection,
    /// Never evict it.
    pub pin: bool,
    /// How long to wait before it is brought, unless it is here: many nodes hear of a new model in
    /// the same moment.
    pub after: Duration,
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
    /// Which list it is on.
    #[serde(default)]
    pub list: List,
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
    /// Was here, and has been evicted or removed since.
    Evicted,
}

/// An entry of a list, and what is here of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The id of its source and selection in the store.
    pub record_id: String,
    /// Where it is. Ready where it is here, also while the origin is asked whether it has changed.
    pub state: Progressing,
    /// Why it failed, or what it warns of.
    pub message: Option<String>,
    /// The model, where it is ready.
    pub digest: Option<Digest>,
    /// Bytes here.
    pub bytes_done: u64,
    /// Bytes of all files; 0 until they are known.
    pub bytes_total: u64,
}

#[derive(Debug)]
struct Entry {
    source: String,
    /// The lists it is on, and whether they pin it.
    lists: BTreeMap<List, bool>,
    state: Progressing,
    message: Option<String>,
    task: AbortHandle,
}

/// The lists as they stand.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    entries: Mutex<HashMap<String, Entry>>,
    /// Entries that mean nothing.
    refused: Mutex<Vec<WantedState>>,
}

impl Wanted {
    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a record is on a list.
    pub fn is_listed(&self, key: &str) -> bool {
        self.entries().contains_key(key)
    }

    fn set(&self, key: &str, state: Progressing, message: Option<String>) {
        if let Some(entry) = self.entries().get_mut(key) {
            (entry.state, entry.message) = (state, message);
        }
    }
}

impl Cache {
    /// Makes a list what `wants` says: new entries are brought, those that are gone are neither
    /// brought nor pinned by it any more. What is here stays until room is wanted.
    ///
    /// # Errors
    /// When pins cannot be written down.
    pub async fn reconcile(self: &Arc<Self>, list: List, wants: Vec<Want>) -> Result<(), Failure> {
        let wants: HashMap<String, Want> =
            wants.into_iter().map(|want| (self.record_id(&want.source, &want.selection), want)).collect();
        let pins: Vec<String> = wants.iter().filter(|(_, want)| want.pin).map(|(key, _)| key.clone()).collect();
        let cache = Arc::clone(self);
        blocking(move || {
            let (residency, mut book, holder) = (&cache.residency, cache.residency.book(), list.holder());
            for key in book.pinned_by(holder).into_iter().filter(|key| !pins.contains(key)) {
                book.unpin(&residency.store, &key, Some(holder))?;
            }
            for key in pins {
                book.pin(&residency.store, &key, holder)?;
            }
            Ok(())
        })
        .await?;
        let mut entries = self.wanted.entries();
        entries.retain(|key, entry| {
            if !wants.contains_key(key) {
                entry.lists.remove(&list);
            }
            if entry.lists.is_empty() {
                entry.task.abort();
            }
            !entry.lists.is_empty()
        });
        for (key, want) in wants {
            let known = entries.remove(&key);
            let mut lists = known.as_ref().map(|entry| entry.lists.clone()).unwrap_or_default();
            let before = lists.insert(list, want.pin);
            // What has been brought once, and perhaps evicted since, is asked for again.
            let anew = before.is_none() || (want.pin && before == Some(false));
            let entry = match known {
                Some(entry) if !(anew && entry.task.is_finished()) => Entry { lists, ..entry },
                _ => {
                    let source = want.source.to_string();
                    let (cache, own) = (Arc::clone(self), key.clone());
                    let task =
                        tokio::spawn(named("wanted", async move { cache.bring(&own, &want).await })).abort_handle();
                    Entry { source, lists, state: Progressing::Waiting, message: None, task }
                }
            };
            entries.insert(key, entry);
        }
        drop(entries);
        self.residency.changed();
        Ok(())
    }

    /// Shows the entries of a list that cannot be meant, with why, in place of those before.
    pub fn refuse(&self, list: List, entries: impl Iterator<Item = (String, String)>) {
        let mut refused = super::lock(&self.wanted.refused);
        refused.retain(|entry| entry.list != list);
        let failed =
            |(source, why)| WantedState { source, list, pin: false, state: Progressing::Failed, message: Some(why) };
        refused.extend(entries.map(failed));
    }

    fn stands(&self, key: &str, state: Progressing, message: Option<String>) {
        self.wanted.set(key, state, message);
        self.residency.changed();
    }

    async fn bring(self: Arc<Self>, key: &str, want: &Want) {
        if !want.after.is_zero() {
            let (cache, own) = (Arc::clone(&self), key.to_owned());
            let here = blocking(move || Ok(cache.residency.resident(&own)?)).await;
            if !matches!(here, Ok(Some(_))) {
                tokio::time::sleep(want.after).await;
            }
        }
        let mut pause = PAUSE_MIN;
        loop {
            self.stands(key, Progressing::Moving, None);
            let mut warning = None;
            let ensured = self
                .ensure(&want.wish(), &mut |event| {
                    if let Event::Warning { message } = event {
                        warning = Some(message);
                    }
                })
                .await;
            match ensured {
                Ok(_) => return self.stands(key, Progressing::Ready, warning),
                Err(failure) => {
                    tracing::warn!(source = %want.source, error = %failure.message, "an entry of the prefetch list failed: it is tried again");
                    self.stands(key, Progressing::Failed, Some(failure.message));
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// The entries of all lists, for people. Blocking.
    pub(super) fn wanted_states(&self) -> Result<Vec<WantedState>, store::Error> {
        let known: Vec<_> = {
            let entries = self.wanted.entries();
            let known = |(key, entry): (&String, &Entry)| {
                (key.clone(), entry.source.clone(), entry.lists.clone(), entry.state, entry.message.clone())
            };
            entries.iter().map(known).collect()
        };
        let mut states = super::lock(&self.wanted.refused).clone();
        for (key, source, lists, state, message) in known {
            let (state, message) = if state == Progressing::Ready && self.resident_and_staying(&key)?.is_none() {
                self.gone(&key)
            } else {
                (state, message)
            };
            states.extend(lists.into_iter().map(|(list, pin)| WantedState {
                source: source.clone(),
                list,
                pin,
                state,
                message: message.clone(),
            }));
        }
        states.sort_by(|a, b| (&a.source, a.list).cmp(&(&b.source, b.list)));
        Ok(states)
    }

    /// How the entries of one list stand. Blocking.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn standings(&self, list: List) -> Result<Vec<Standing>, store::Error> {
        let known: Vec<_> = {
            let entries = self.wanted.entries();
            let own = entries.iter().filter(|(_, entry)| entry.lists.contains_key(&list));
            own.map(|(key, entry)| (key.clone(), entry.state, entry.message.clone())).collect()
        };
        let mut standings = Vec::new();
        for (record_id, state, message) in known {
            let resident = self.resident_and_staying(&record_id)?;
            let is_kept = state != Progressing::Failed && resident.is_some();
            let (state, message) = match state {
                Progressing::Failed => (state, message),
                _ if is_kept && self.is_up() => (Progressing::Ready, message),
                _ if is_kept => (Progressing::Waiting, Some(NOT_UP.to_owned())),
                Progressing::Ready => self.gone(&record_id),
                _ => (state, message),
            };
            let here = resident.filter(|_| state == Progressing::Ready);
            let bytes = here.as_ref().map_or(0, |resident| resident.bytes);
            let (bytes_done, bytes_total) = match self.board.flight(&record_id) {
                Some(flight) if here.is_none() => {
                    let moving = flight.moving();
                    (moving.bytes_done, moving.bytes_total)
                }
                _ => (bytes, bytes),
            };
            let digest = here.map(|resident| resident.digest);
            standings.push(Standing { record_id, state, message, digest, bytes_done, bytes_total });
        }
        Ok(standings)
    }

    /// The complete model of a source, unless it is being evicted.
    fn resident_and_staying(&self, key: &str) -> Result<Option<Arc<Resident>>, store::Error> {
        let resident = self.residency.resident(key)?;
        Ok(resident.filter(|resident| !self.residency.book().is_leaving(&resident.digest)))
    }

    /// How an entry stands that was here.
    fn gone(&self, key: &str) -> (Progressing, Option<String>) {
        match self.board.flight(key) {
            // Somebody else asked for it.
            Some(_) => (Progressing::Moving, None),
            None => (Progressing::Evicted, Some(EVICTED.to_owned())),
        }
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what `tokio::test` makes of a test enters a runtime")]
mod tests {
    use std::path::Path;

    use tempfile::TempDir;

    use super::super::cache_in;
    use super::super::named::{At, Name, Verb};
    use super::*;
    use crate::remote::Endpoints;

    fn models(names: &[&str]) -> (TempDir, Arc<Cache>) {
        let directory = tempfile::tempdir().expect("a directory");
        for name in names {
            let model = directory.path().join(name);
            std::fs::create_dir(&model).expect("a directory");
            let license = Path::new(env!("CARGO_MANIFEST_DIR")).join("LICENSE");
            std::fs::copy(license, model.join("weights.bin")).expect("a file");
        }
        let cache = cache_in(directory.path());
        cache.set_proven();
        (directory, cache)
    }

    fn named(source: &str) -> Name {
        Name::parse(Verb::Rm, source, &At::usual(&Endpoints::default()), &[], &[]).expect("a name")
    }

    fn want(directory: &TempDir, name: &str, pin: bool, after: Duration) -> Want {
        let source = format!("file://{}/{name}/", directory.path().display());
        Want { source: Source::parse(&source).expect("a source"), selection: Selection::default(), pin, after }
    }

    fn states(cache: &Cache) -> Vec<(List, bool, Progressing)> {
        let states = cache.wanted_states().expect("states");
        states.into_iter().map(|wanted| (wanted.list, wanted.pin, wanted.state)).collect()
    }

    async fn until(cache: &Cache, expected: &[(List, bool, Progressing)]) {
        let mut changes = cache.changes();
        tokio::time::timeout(Duration::from_secs(20), async {
            while states(cache) != expected {
                changes.changed().await.expect("the cache lives");
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{:?}", states(cache)));
    }

    #[tokio::test]
    async fn what_is_on_two_lists_comes_once_and_stays_with_either() {
        use Progressing::{Evicted, Ready};
        let (directory, cache) = models(&["a"]);
        let wants = |pin| vec![want(&directory, "a", pin, Duration::ZERO)];
        cache.reconcile(List::Settings, wants(true)).await.expect("taken");
        cache.reconcile(List::Cluster, wants(false)).await.expect("taken");
        until(&cache, &[(List::Settings, true, Ready), (List::Cluster, false, Ready)]).await;
        assert_eq!(cache.metrics.totals().pulls, 1);

        cache.reconcile(List::Cluster, wants(true)).await.expect("taken");
        cache.reconcile(List::Settings, Vec::new()).await.expect("taken");
        until(&cache, &[(List::Cluster, true, Ready)]).await;
        let wanted = want(&directory, "a", true, Duration::ZERO);
        let key = cache.record_id(&wanted.source, &wanted.selection);
        assert_eq!(cache.residency.book().pinned_by("cached models"), std::slice::from_ref(&key));
        assert!(cache.residency.book().pinned_by("prefetch list").is_empty());

        // What is gone stays gone, until it is pinned again.
        cache.reconcile(List::Cluster, wants(false)).await.expect("taken");
        cache.remove(vec![named(&format!("file://{}/a/", directory.path().display()))]).await.expect("removed");
        until(&cache, &[(List::Cluster, false, Evicted)]).await;
        cache.reconcile(List::Cluster, wants(false)).await.expect("taken");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(states(&cache), [(List::Cluster, false, Evicted)]);
        let standing = cache.standings(List::Cluster).expect("standings").remove(0);
        assert_eq!((standing.record_id, standing.state, standing.digest), (key, Evicted, None));
        cache.reconcile(List::Cluster, wants(true)).await.expect("taken");
        until(&cache, &[(List::Cluster, true, Ready)]).await;
    }

    #[tokio::test]
    async fn what_is_here_does_not_wait() {
        use Progressing::{Ready, Waiting};
        let (directory, cache) = models(&["a", "b"]);
        cache.reconcile(List::Settings, vec![want(&directory, "a", false, Duration::ZERO)]).await.expect("taken");
        until(&cache, &[(List::Settings, false, Ready)]).await;
        cache.reconcile(List::Settings, Vec::new()).await.expect("taken");
        let late = Duration::from_hours(1);
        let wants = vec![want(&directory, "a", false, late), want(&directory, "b", false, late)];
        cache.reconcile(List::Cluster, wants).await.expect("taken");
        until(&cache, &[(List::Cluster, false, Ready), (List::Cluster, false, Waiting)]).await;
    }
}
