//! Which files of a listing need no transfer, and why.

use futures::StreamExt as _;

use super::Error;
use super::transfer::Tools;
use super::worker::Wire;
use crate::domain::{Checksum, Digest, Object, Source, Text};
use crate::store::{Equal, Hold, ObjectId, Store};

/// A file whose bytes are here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Have {
    /// Its content.
    pub digest: Digest,
    /// The origin's checksum that was compared, now or when the bytes came.
    pub checked: Option<Checksum>,
    /// The proof, where the bytes came from another object.
    pub equal_by: Option<&'static str>,
}

impl From<Equal> for Have {
    fn from(equal: Equal) -> Self {
        Self { digest: equal.digest, checked: Some(equal.checked), equal_by: Some(equal.proof) }
    }
}

/// A file of the listing with all that is known of it.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The object, with the claims that were asked for.
    pub object: Object,
    /// Its key in the catalog.
    pub id: ObjectId,
    /// Its bytes, if they are here.
    pub have: Option<Have>,
}

/// Requests for checksums in flight at once.
const CLAIMS_AT_ONCE: usize = 16;

/// Looks every object up: by (URI, version, size) first, then by the origin's checksums.
///
/// What is found is held, so that it is still here when the model is published.
pub async fn look_up(tools: &Tools, source: &Source, objects: Vec<Object>) -> Result<Vec<Wanted>, Error> {
    let wire = &tools.wire;
    let origin = Text::from(wire.remote.origin());
    let found = futures::stream::iter(objects)
        .map(|object| {
            let id = ObjectId {
                origin: origin.clone(),
                uri: source.object_uri(&object.key).into(),
                version: object.version.clone(),
                size: object.size,
            };
            look_up_one(tools, id, object)
        })
        .buffered(CLAIMS_AT_ONCE);
    wire.cancel.guard(found.collect::<Vec<Wanted>>()).await
}

async fn look_up_one(tools: &Tools, id: ObjectId, mut object: Object) -> Wanted {
    let (store, hold) = (&tools.store, &tools.hold);
    if let Some(have) = here(store, hold, &id) {
        return Wanted { object, id, have: Some(have) };
    }
    if object.size > 0 && store.has_size(object.size) {
        ask_claims(&tools.wire, &mut object).await;
        if let Some(have) = equal(store, hold, &id, &object) {
            return Wanted { object, id, have: Some(have) };
        }
    }
    Wanted { object, id, have: None }
}

/// The object at exactly this version, if it is here; held from now on.
pub fn here(store: &Store, hold: &Hold, id: &ObjectId) -> Option<Have> {
    let known = store.known(id)?;
    let have = Have { digest: known.digest, checked: known.checked, equal_by: None };
    held(store, hold, have, id.size)
}

/// A blob proven equal to the object; held from now on.
pub fn equal(store: &Store, hold: &Hold, id: &ObjectId, object: &Object) -> Option<Have> {
    held(store, hold, store.equal(id, object)?.into(), id.size)
}

/// Between the look and the hold it may have been evicted.
fn held(store: &Store, hold: &Hold, have: Have, size: u64) -> Option<Have> {
    hold.add(have.digest);
    store.view().has_sized_blob(&have.digest, size).then_some(have)
}

/// Asks the origin for checksums it did not list. Checksums are a help, not a need: a failure
/// here leaves the object without claims, and the transfer itself meets whatever is wrong.
pub async fn ask_claims(wire: &Wire, object: &mut Object) {
    if !object.more_claims {
        return;
    }
    // Whoever asked meets the cancellation again at the next request.
    let Ok(answer) = wire.cancel.guard(wire.remote.claims(object)).await else { return };
    match answer {
        Ok(claims) => {
            object.claims = claims;
            object.more_claims = false;
        }
        Err(error) => tracing::debug!(%error, "the origin gives no checksums"),
    }
}

/// Whether an MD5 that only looks like one was the mismatch: asks the origin once more, because
/// objects encrypted by a key service have ETags of the same shape that are no MD5.
pub async fn md5_stands(wire: &Wire, object: &Object) -> bool {
    if !object.claims.md5_is_etag {
        return true;
    }
    let Ok(asked) = wire.cancel.guard(wire.remote.claims(object)).await else { return true };
    asked.map_or(true, |claims| claims.checksums.iter().any(|sum| object.claims.checksums.contains(sum)))
}
