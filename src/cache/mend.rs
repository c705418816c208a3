//! Verifying and repairing in a store that others use meanwhile.

use std::sync::Arc;

use super::Cache;
use super::ensure::{LeaseWish, Wish};
use super::repair::{Damage, Puller, repair};
use super::verify::{Tell, VerifyEvent, verify};
use crate::domain::Source;
use crate::fetch::{Cancel, Selection};
use crate::report::Failure;
use crate::telemetry::Where;

struct Again(Arc<Cache>);

impl Puller for Again {
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
    pub async fn verify(self: &Arc<Self>, name: Option<&str>, mends: bool, tell: Tell<'_>) -> Result<(), Failure> {
        let damage = verify(self.store(), name, &Cancel::default(), tell).await?;
        for _ in &damage.blobs {
            self.metrics.verification_failure(Where::Scrub);
        }
        if mends && !damage.is_none() {
            self.mend(&damage, tell).await?;
        }
        Ok(())
    }

    /// Takes damaged blobs out and brings every source that names them.
    pub(super) async fn mend(self: &Arc<Self>, damage: &Damage, tell: Tell<'_>) -> Result<(), Failure> {
        let forget = || self.residency.forget_known();
        repair(self.store(), damage, &forget, &Again(Arc::clone(self)), tell).await?;
        for digest in &damage.blobs {
            if self.store().view().has_blob(digest) {
                self.metrics.repaired();
            }
        }
        Ok(())
    }
}
