//! What an administrator changes: pins, removal, leases that are ended by hand.

use std::sync::Arc;

use super::in_pods;
use super::named::{self, Name};
use super::{Cache, blocking};
use crate::domain::Digest;
use crate::report::{Exit, Failure};

/// Who pins by hand.
pub const HOLDER: &str = "user";

impl Cache {
    /// Pins or unpins every model of that name; what they are called.
    ///
    /// # Errors
    /// [`Exit::NotFound`]; the disk's.
    pub async fn set_pinned(self: &Arc<Self>, name: Name, pinned: bool) -> Result<Vec<String>, Failure> {
        let cache = Arc::clone(self);
        blocking(move || {
            let store = cache.store();
            let found = named::matching(store.view(), &name)?;
            let mut names = Vec::new();
            for kept in found {
                let Some(key) = named::pin_key(&kept) else { continue };
                let mut book = cache.residency.book();
                if pinned {
                    book.pin(store, &key, HOLDER)?;
                } else {
                    // By hand is by whoever has the last word: also what the list pinned.
                    book.unpin(store, &key, None)?;
                }
                names.push(named::name_of(&kept, name.usual()));
            }
            Ok(names)
        })
        .await
    }

    /// Removes models that nobody uses, wants kept or waits for; bytes freed.
    ///
    /// # Errors
    /// [`Exit::NotFound`]; [`Exit::Busy`] names who keeps it, and then nothing is removed.
    pub async fn remove(self: &Arc<Self>, names: Vec<Name>) -> Result<u64, Failure> {
        let cache = Arc::clone(self);
        blocking(move || {
            let (store, residency) = (cache.store(), &cache.residency);
            residency.see_pods(in_pods::PATIENCE);
            let (mut records, mut manifests) = (Vec::new(), Vec::new());
            let (mut listings, mut leaving) = (Vec::new(), Vec::new());
            let (ids, refused) = {
                // Looked up under the lock: a source that is not moving cannot move on to another
                // model before it is gone.
                let mut book = residency.book();
                for name in &names {
                    for kept in named::matching(store.view(), name)? {
                        manifests.extend(kept.manifest.map(|digest| (name, digest)));
                        listings.extend(kept.record.iter().map(|record| (name, record.listing())));
                        records.extend(kept.record.map(|record| (name, record.id())));
                    }
                }
                let ids: Vec<String> = records.iter().map(|(_, id)| id.clone()).collect();
                let moving = records.iter().find(|(_, id)| residency.is_moving(id));
                let mut refused = moving.map(|(name, _)| in_use(&name.shown(), "somebody waits for it"));
                if let Some((name, _)) = records.iter().find(|(_, id)| book.is_pinned(id)) {
                    refused = refused.or_else(|| Some(in_use(&name.shown(), "it is pinned")));
                }
                if let Some((name, listing)) = listings.iter().find(|(_, listing)| book.is_used(listing)) {
                    let place = book.in_pods.place(listing);
                    let why = place.as_deref().unwrap_or("somebody reads it while it arrives");
                    refused = refused.or_else(|| Some(in_use(&name.shown(), why)));
                }
                for (name, digest) in &manifests {
                    if refused.is_none() && !leaving.contains(digest) {
                        let manifest = store.view().manifest(digest);
                        let blobs: Vec<Digest> =
                            manifest.map_or_else(|_| Vec::new(), |m| m.files().iter().map(|f| f.digest).collect());
                        if book.begin_leaving(*digest, &ids, &blobs) {
                            leaving.push(*digest);
                        } else {
                            let users = book.users(digest);
                            let place = book.in_pods.place(digest).filter(|_| users.is_empty());
                            let who = if let Some(place) = place {
                                place
                            } else if users.is_empty() && blobs.iter().any(|blob| book.is_used(blob)) {
                                "a file of it is open".into()
                            } else if users.is_empty() {
                                "it is pinned".into()
                            } else {
                                format!("{} uses it", users.join(", "))
                            };
                            refused = Some(in_use(&name.shown(), &who));
                        }
                    }
                }
                if refused.is_some() {
                    leaving.iter().for_each(|digest| book.end_leaving(digest));
                }
                (ids, refused)
            };
            if let Some(failure) = refused {
                return Err(failure);
            }
            let marked = residency.leaving(&leaving);
            residency.herald(&ids);
            residency.forget_known();
            let freed = store.forget(&ids, &leaving);
            drop(marked);
            let mut book = residency.book();
            for id in &ids {
                book.unpin(store, id, None)?;
            }
            drop(book);
            residency.changed();
            Ok(freed?)
        })
        .await
    }

    /// Ends a lease by its id, or all of an owner, by hand; how many that were.
    ///
    /// # Errors
    /// The disk's.
    pub async fn release(self: &Arc<Self>, name: String) -> Result<usize, Failure> {
        let cache = Arc::clone(self);
        blocking(move || Ok(cache.residency.release(|id, lease| lease.is_called(id, &name))?)).await
    }

    /// Syncs everything that is not synced yet.
    ///
    /// # Errors
    /// The disk's.
    pub async fn settle(self: &Arc<Self>, all: bool) -> Result<u64, Failure> {
        let cache = Arc::clone(self);
        blocking(move || Ok(cache.store().settle(all)?)).await
    }
}

fn in_use(name: &str, why: &str) -> Failure {
    Failure::hinted(
        Exit::Busy,
        format!("`{name}` stays: {why}"),
        "it can go when its pods have ended; `larder unpin` takes a pin back, `larder status` shows who uses what",
    )
}
