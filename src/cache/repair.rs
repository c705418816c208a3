//! Bringing again what was found damaged.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;

use super::blocking;
use super::named::typed_of;
use super::verify::{Tell, VerifyEvent};
use crate::domain::{Digest, Source};
use crate::fetch::Selection;
use crate::remote::Endpoints;
use crate::report::{Exit, Failure, text};
use crate::store::{SourceRecord, Store};

/// What was found wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Damage {
    /// Blobs that are damaged or missing.
    pub blobs: HashSet<Digest>,
    /// Manifests that are damaged or missing.
    pub manifests: HashSet<Digest>,
}

impl Damage {
    /// Whether nothing is.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.blobs.is_empty() && self.manifests.is_empty()
    }

    /// Whether pulling this source again would mend something that is still amiss.
    fn is_in(&self, store: &Store, record: &SourceRecord) -> bool {
        let manifest = record.manifest.filter(|digest| self.manifests.contains(digest));
        manifest.is_some_and(|digest| store.view().manifest(&digest).is_err())
            || record.files.iter().filter_map(|file| file.digest).any(|digest| self.lacks(store, &digest))
    }

    /// Whether this blob was damaged and has not come again.
    fn lacks(&self, store: &Store, blob: &Digest) -> bool {
        self.blobs.contains(blob) && !store.view().has_blob(blob)
    }
}

/// `2 files and 1 manifest`.
#[must_use]
pub fn counted(files: usize, manifests: usize) -> String {
    let counts = [(files, "file"), (manifests, "manifest")];
    let told = counts.iter().filter(|(count, _)| *count > 0).map(|(count, noun)| text::count(*count, noun));
    told.collect::<Vec<_>>().join(" and ")
}

/// Whoever can pull a source again.
pub trait Puller: Sync {
    /// The servers that it pulls from.
    fn endpoints(&self) -> &Endpoints;

    /// Pulls it whole; `tell` hears how far it is.
    ///
    /// # Errors
    /// In words. [`Exit::Interrupted`] ends the repair, others do not.
    fn pull(
        &self,
        source: &Source,
        selection: &Selection,
        tell: Tell<'_>,
    ) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Has the damaged blobs handed out by nobody, and pulls every source that had one of them, or whose manifest is damaged: publishing writes it
/// anew. One that fails does not keep the others from coming; the first failure decides the code.
///
/// # Errors
/// The disk's.
pub async fn repair(
    store: &Arc<Store>,
    damage: &Damage,
    puller: &impl Puller,
    tell: Tell<'_>,
) -> Result<Exit, Failure> {
    let mut records = condemn(store, damage).await?;
    // What others cannot bring may come with these.
    records.sort_by_key(|record| !puller.endpoints().are(&record.origin));
    let mut exit = Exit::Done;
    for record in records {
        let (at, known, asked) = (Arc::clone(store), damage.clone(), record.clone());
        // What one source brings may be all that the next one lacked.
        if !blocking(move || Ok(known.is_in(&at, &asked))).await? {
            continue;
        }
        let source = Source::parse(&record.source)?;
        let selection = Selection::new(&record.include, &record.exclude)?;
        let pulled = match elsewhere(&record, puller.endpoints()) {
            Some(failure) => Err(failure),
            None => puller.pull(&source, &selection, tell).await,
        };
        if let Err(failure) = pulled {
            tell(VerifyEvent::from(&failure));
            if exit == Exit::Done || failure.exit == Exit::Interrupted {
                exit = failure.exit;
            }
            if failure.exit == Exit::Interrupted {
                break;
            }
        }
    }
    let (at, known) = (Arc::clone(store), damage.clone());
    let lost = blocking(move || {
        // Models that share the blobs, and are not named by a source any more, show their files again.
        at.heed()?;
        if !known.manifests.is_empty() {
            at.rebuild_trees()?;
        }
        lost(&at, &known)
    })
    .await?;
    if exit == Exit::Done && !lost.is_empty() {
        exit = Exit::Integrity;
    }
    lost.into_iter().for_each(|(digest, files)| tell(VerifyEvent::NotRepairable { digest, files }));
    tell(VerifyEvent::Repaired {
        damaged: damage.blobs.len(),
        damaged_manifests: damage.manifests.len(),
        exit_code: exit as u8,
    });
    Ok(exit)
}

/// Why a source cannot be brought again from these servers: where it did not come from them, what they
/// have under its name is another model.
pub(super) fn elsewhere(record: &SourceRecord, endpoints: &Endpoints) -> Option<Failure> {
    let url = record.endpoint_url().filter(|_| !endpoints.are(&record.origin))?;
    Some(Failure::hinted(
        Exit::Usage,
        format!("`{}` came from `{url}`, and is not fetched again from another server", record.source),
        format!("`larder verify {} --repair` fetches it, where no daemon owns the store", typed_of(record, None)),
    ))
}

/// Has the damaged blobs handed out by nobody; the sources that are here, but for unfinished ones,
/// which meet the damage when their pull goes on.
async fn condemn(store: &Arc<Store>, damage: &Damage) -> Result<Vec<SourceRecord>, Failure> {
    let (store, blobs) = (Arc::clone(store), damage.blobs.clone());
    blocking(move || {
        // Most are, by whoever found them.
        for digest in blobs.iter().filter(|digest| store.view().has_blob(digest)) {
            store.condemn(digest)?;
        }
        let records = store.view().kept()?.into_iter().filter_map(|kept| kept.record);
        Ok(records.filter(|record| record.manifest.is_some()).collect())
    })
    .await
}

/// The models that stay damaged because no source leads to them, and how many files each lacks; 0
/// is for a manifest.
fn lost(store: &Store, damage: &Damage) -> Result<Vec<(Digest, usize)>, Failure> {
    let mut lost = Vec::new();
    let unnamed = store.view().kept()?.into_iter().filter(|kept| kept.record.is_none());
    for digest in unnamed.filter_map(|kept| kept.manifest) {
        match store.view().manifest(&digest) {
            Err(_) if damage.manifests.contains(&digest) => lost.push((digest, 0)),
            Ok(manifest) => match manifest.files().iter().filter(|file| damage.lacks(store, &file.digest)).count() {
                0 => {}
                files => lost.push((digest, files)),
            },
            Err(_) => {}
        }
    }
    Ok(lost)
}
