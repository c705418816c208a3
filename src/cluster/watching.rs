//! Keeps a copy of the objects of one kind: listed, then watched, for as long as the process lives.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use futures::StreamExt as _;
use kube::api::{Api, ListParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

use super::attempts::{Attempts, Trouble};

/// Objects of one page of a list.
const PAGE_LEN: u32 = 100;
/// Objects that are kept of one kind; the rest is not seen.
const KEPT_MAX: usize = 1_024;
/// How long one step of a list may take.
const LIST_PATIENCE: Duration = Duration::from_secs(30);
/// A watch that has been silent for so long after it was cut off works again: it has connected.
const QUIET: Duration = Duration::from_secs(30);

/// What is followed.
pub struct Watched<K> {
    /// Where it is.
    pub api: Api<K>,
    /// Only the objects whose fields are these; empty for all.
    pub fields: String,
    /// What to say when it fails.
    pub attempts: Attempts,
}

/// Follows objects for as long as it is polled. `works` hears whether what was asked last worked,
/// `tell` all objects by name, once they are listed and at every change.
pub async fn follow<K>(watched: Watched<K>, works: impl Fn(bool), mut tell: impl FnMut(&BTreeMap<String, K>))
where
    K: Resource + Clone + DeserializeOwned + fmt::Debug + Send + 'static,
    K::DynamicType: Default,
{
    let Watched { api, fields, mut attempts } = watched;
    // The most recent list, not what an API server remembers: pins hang on it, and what an object
    // had in an earlier list must not come back.
    let config = watcher::Config::default().page_size(PAGE_LEN).fields(&fields);
    let one = ListParams::default().limit(1).fields(&fields);
    let mut kept = BTreeMap::new();
    loop {
        // Asked for by itself first: kube complains of every list that is refused, and one complaint
        // is enough.
        let asked = tokio::time::timeout(LIST_PATIENCE, api.list(&one)).await;
        let refused = match asked {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some((Trouble::of(&error), error.to_string())),
            Err(_) => Some((Trouble::Other, "no answer".to_owned())),
        };
        if let Some((trouble, why)) = refused {
            works(false);
            tokio::time::sleep(attempts.failed(trouble, &why)).await;
            continue;
        }
        let mut events = std::pin::pin!(watcher(api.clone(), config.clone()));
        let mut coming = BTreeMap::new();
        let mut stage = Stage::Listing;
        loop {
            let next = match stage {
                Stage::Listing => tokio::time::timeout(LIST_PATIENCE, events.next()).await,
                Stage::CutOff => tokio::time::timeout(QUIET, events.next()).await,
                Stage::Watching => Ok(events.next().await),
            };
            let (trouble, why) = match next {
                Ok(Some(Ok(event))) => {
                    match take(&mut kept, &mut coming, event) {
                        Taken::Listing => stage = Stage::Listing,
                        Taken::Changed => {
                            stage = Stage::Watching;
                            attempts.worked();
                            works(true);
                            tell(&kept);
                        }
                    }
                    continue;
                }
                // With a list from before, silence is how a watch works.
                Err(_) if stage == Stage::CutOff => {
                    stage = Stage::Watching;
                    attempts.worked();
                    works(true);
                    continue;
                }
                Ok(Some(Err(error))) => (Some(trouble_of(&error)), error.to_string()),
                Ok(None) | Err(_) => (None, "no answer".to_owned()),
            };
            works(false);
            tokio::time::sleep(attempts.failed(trouble.unwrap_or(Trouble::Other), &why)).await;
            // What is cut off goes on where it was; what is refused, or answers nothing, is begun anew.
            if trouble != Some(Trouble::Other) {
                break;
            }
            stage = Stage::CutOff;
        }
    }
}

/// What the next event is waited for as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The next of a list.
    Listing,
    /// News, for as long as it takes: the watcher sees by itself when the connection is dead.
    Watching,
    /// News of a watch that was cut off.
    CutOff,
}

enum Taken {
    /// A list is on its way.
    Listing,
    /// What is kept has changed, or was listed anew.
    Changed,
}

fn take<K>(kept: &mut BTreeMap<String, K>, coming: &mut BTreeMap<String, K>, event: Event<K>) -> Taken
where
    K: Resource + Clone,
{
    match event {
        Event::Init => {
            coming.clear();
            return Taken::Listing;
        }
        Event::InitApply(object) => {
            put(coming, object);
            return Taken::Listing;
        }
        Event::InitDone => *kept = std::mem::take(coming),
        Event::Apply(object) => put(kept, object),
        Event::Delete(object) => drop(kept.remove(&object.name_any())),
    }
    Taken::Changed
}

fn put<K: Resource>(objects: &mut BTreeMap<String, K>, object: K) {
    let name = object.name_any();
    if objects.len() < KEPT_MAX || objects.contains_key(&name) {
        objects.insert(name, object);
    } else {
        tracing::warn!(name, "beyond {KEPT_MAX} objects of a kind the rest is not seen");
    }
}

fn trouble_of(error: &watcher::Error) -> Trouble {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => Trouble::of(error),
        watcher::Error::WatchError(status) => Trouble::of(&kube::Error::Api(status.clone())),
        watcher::Error::NoResourceVersion => Trouble::Other,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;

    use super::*;

    fn node(name: &str) -> Node {
        let mut node = Node::default();
        node.metadata.name = Some(name.to_owned());
        node
    }

    /// Until a new list is whole, the old one counts.
    #[test]
    fn a_list_counts_when_it_is_whole() {
        let (mut kept, mut coming) = (BTreeMap::new(), BTreeMap::new());
        let mut names = |event: Event<Node>| -> Option<Vec<String>> {
            let taken = take(&mut kept, &mut coming, event);
            matches!(taken, Taken::Changed).then(|| kept.keys().cloned().collect())
        };
        assert_eq!(names(Event::Init), None);
        assert_eq!(names(Event::InitApply(node("a"))), None);
        assert_eq!(names(Event::InitDone), Some(vec!["a".to_owned()]));
        assert_eq!(names(Event::Apply(node("b"))), Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!(names(Event::Init), None);
        assert_eq!(names(Event::InitApply(node("c"))), None);
        // Cut off, and begun again.
        assert_eq!(names(Event::Init), None);
        assert_eq!(names(Event::InitApply(node("b"))), None);
        assert_eq!(names(Event::InitDone), Some(vec!["b".to_owned()]));
        assert_eq!(names(Event::Delete(node("b"))), Some(vec![]));
    }

    #[test]
    fn there_are_no_more_than_can_be_kept() {
        let mut objects = BTreeMap::new();
        (0..KEPT_MAX + 10).for_each(|at| put(&mut objects, node(&format!("n{at}"))));
        put(&mut objects, node("n0"));
        assert_eq!(objects.len(), KEPT_MAX);
    }
}
