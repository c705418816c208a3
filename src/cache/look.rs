//! What is kept, with who uses it.

use std::sync::Arc;

use super::listing::{self, Detailed, Listed};
use super::named::Name;
use super::{Cache, blocking};
use crate::report::Failure;

impl Cache {
    /// Everything that is kept.
    ///
    /// # Errors
    /// The disk's.
    pub async fn list(self: &Arc<Self>) -> Result<Vec<Listed>, Failure> {
        let cache = Arc::clone(self);
        blocking(move || {
            let mut listed = listing::list(cache.store().view())?;
            listed.iter_mut().for_each(|listed| cache.count_users(listed));
            Ok(listed)
        })
        .await
    }

    /// One model with its files.
    ///
    /// # Errors
    /// Nothing of that name; the disk's.
    pub async fn show(self: &Arc<Self>, name: Name) -> Result<Detailed, Failure> {
        let cache = Arc::clone(self);
        blocking(move || {
            let mut detailed = Detailed::named(cache.store().view(), &name)?;
            cache.count_users(&mut detailed.listed);
            Ok(detailed)
        })
        .await
    }

    fn count_users(&self, listed: &mut Listed) {
        let book = self.residency.book();
        let users = listed.digest.map_or(0, |digest| book.leases().filter(|(_, lease)| lease.digest == digest).count());
        listed.leases = Some(u32::try_from(users).unwrap_or(u32::MAX));
    }
}
