//! Who hears what goes: readers outside the file system keep things that must go along.

use crate::domain::Digest;

/// Hears of names that are gone, on the thread that took them away and while it may hold locks of
/// the store: it must not wait for anything that could wait for the store.
pub trait Observer: Send + Sync + std::fmt::Debug {
    /// A blob has no name any more. Its bytes are free once nobody has it open.
    fn blob_went(&self, digest: &Digest);
    /// A model's tree is gone.
    fn model_went(&self, digest: &Digest);
    /// A model's tree lacks a file, or has it again.
    fn model_changed(&self, digest: &Digest);
}
