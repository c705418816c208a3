//! Verifying and repairing in a store that others use meanwhile.

use std::sync::Arc;

use super::ensure::{LeaseWish, Wish};
use super::named::Name;
use super::repair::{Damage, Puller, repair};
use super::verify::{Tell, VerifyEvent, verify};
use super::{Cache, lock};
use crate::domain::{Digest, Source};
use crate::fetch::{Cancel, Selection};
use crate::remote::Endpoints;
use crate::report::Failure;
use crate::telemetry::Where;

struct Again(Arc<Cache>);

impl Puller for Again {
    fn endpoints(&self) -> &Endpoints {
        self.0.endpoints()
    }

    async fn pull(&self, source: &Source, selection: &Selection, tell: Tell<'_>) -> Result<(), Failure> {
        let wish = Wish::new(source.clone(), selection.clone(), true, LeaseWish::None);
        let granted = self.0.ensure(&wish, &mut |event| tell(VerifyEvent::from(event))).await?;
        tell(VerifyEvent::Done(granted.ready));
        Ok(())
    }
}

impl Cache {
    /// Hashes models again, all where there is no name, and brings what is damaged if asked to.
    /// Dropped half-way, it stops within a chunk.
    ///
    /// # Errors
    /// Nothing of that name; the disk's.
    pub async fn verify(self: &Arc<Self>, name: Option<Name>, mends: bool, tell: Tell<'_>) -> Result<(), Failure> {
        let _asking = mends.then(|| self.healing.ask());
        let damage = verify(self.store(), name, self.endpoints(), &Cancel::default(), tell).await?;
        for _ in &damage.blobs {
            self.metrics.verification_failure(Where::Scrub);
        }
        if !damage.is_none() {
            // Also where nobody asks for it.
            self.healing.wake.notify_one();
        }
        if mends && !damage.is_none() {
            self.mend(&damage, tell).await?;
        }
        Ok(())
    }

    /// Brings every source that names damaged blobs again.
    pub(super) async fn mend(self: &Arc<Self>, damage: &Damage, tell: Tell<'_>) -> Result<(), Failure> {
        let is_here = |digest: &&Digest| self.store().view().has_blob(digest);
        lock(&self.healing.lacking).extend(damage.blobs.iter().filter(|digest| !is_here(digest)));
        let repaired = repair(self.store(), damage, &Again(Arc::clone(self)), tell).await;
        // Others may repair the same at the same time: it is counted once.
        for digest in damage.blobs.iter().filter(is_here) {
            if lock(&self.healing.lacking).remove(digest) {
                self.metrics.repaired();
            }
        }
        repaired.map(drop)
    }
}
