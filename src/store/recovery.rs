//! What opening a store makes of what an earlier life left in it.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use super::error::AtPath as _;
use super::unreadable::Met;
use super::{Error, Layout, damage, fsx, models, sealed, trees};
use crate::domain::Digest;

/// A partial that nobody went on with for this long is room for something else.
const PARTIAL_AGE_MAX: Duration = Duration::from_hours(14 * 24);

/// What recovery found and did, to be told to the user where it matters.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// Blobs of another boot that were hashed again and are right.
    pub proven: Vec<Digest>,
    /// Blobs of another boot that were not what their name says: removed.
    pub dropped: Vec<Digest>,
    /// Documents that could not be read: removed.
    pub unreadable: Vec<PathBuf>,
    /// Lines of the catalog that failed their check.
    pub catalog_lines_dropped: usize,
    /// Partials removed because nobody went on with them for two weeks.
    pub partials_expired: usize,
}

impl Recovered {
    /// Whether anything was lost that a user would want to know.
    #[must_use]
    pub fn lost_something(&self) -> bool {
        !self.dropped.is_empty() || !self.unreadable.is_empty() || self.catalog_lines_dropped > 0
    }
}

/// Whether blobs of another boot wait to be hashed.
pub(super) fn is_needed(layout: &Layout) -> bool {
    fsx::names(&layout.fresh_of_all_boots()).is_ok_and(|names| names.iter().any(|name| name != layout.boot().as_str()))
}

/// Brings the store into a state where everything visible is true, but for what waits to be proven.
/// The caller holds the lock.
pub(super) fn recover(layout: &Layout, met: &Met) -> Result<Recovered, Error> {
    let mut recovered = Recovered::default();
    clear_scratch(layout)?;
    expire_partials(layout, &mut recovered)?;
    let mut ids = HashSet::new();
    models::each_source(layout, met, &mut |source, _| {
        ids.insert(source.id());
    })?;
    for path in met.to_remove() {
        match fsx::remove_if_there(&path) {
            Ok(()) => met.removed(&path),
            // It is passed over as long as it is there.
            Err(error) => tracing::warn!(path = %path.display(), %error, "a damaged document stays"),
        }
        recovered.unreadable.push(path);
    }
    let sources = layout.sources();
    let named = fsx::names(&sources).at("list", &sources)?;
    if named.iter().any(|name| name.strip_suffix(".json").is_some_and(|id| !ids.contains(id))) {
        models::rename_sources(layout)?;
    }
    Ok(recovered)
}

/// Whether a blob waits to be proven.
pub(super) fn is_unproven(layout: &Layout, digest: &Digest) -> bool {
    let all = layout.fresh_of_all_boots();
    let others = fsx::names(&all).unwrap_or_default().into_iter().filter(|boot| boot != layout.boot().as_str());
    others.into_iter().any(|boot| all.join(boot).join(digest.to_string()).exists())
}

fn clear_scratch(layout: &Layout) -> Result<(), Error> {
    let scratch = layout.scratch();
    for name in fsx::names(&scratch).at("list", &scratch)? {
        let path = scratch.join(name);
        let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { fsx::remove_if_there(&path) };
        removed.at("remove", &path)?;
    }
    Ok(())
}

/// Hashes what was never synced in another boot. Until then no look-up finds those blobs, because
/// their directory is not this boot's.
pub(super) fn prove_fresh_of_other_boots(layout: &Layout, recovered: &mut Recovered) -> Result<(), Error> {
    let all = layout.fresh_of_all_boots();
    for boot in fsx::names(&all).at("list", &all)? {
        if boot == layout.boot().as_str() {
            continue;
        }
        let directory = all.join(&boot);
        for name in fsx::names(&directory).at("list", &directory)? {
            let path = directory.join(&name);
            let Ok(digest) = name.parse::<Digest>() else {
                fsx::remove_if_there(&path).at("remove", &path)?;
                continue;
            };
            let hashed = sealed::scrub(layout, &path, &digest, &mut |_| true)?;
            if let Some((copy, _)) = hashed.filter(|(_, bad)| bad.is_empty()) {
                // Whatever was known of it, it is right.
                damage::clear(layout, &digest, Some(copy))?;
                // Into this boot's directory first: settling knows only that one.
                std::fs::rename(&path, layout.fresh_blob(&digest)).at("rename", &path)?;
                sealed::sync(layout, &digest)?;
                sealed::settle(layout, &digest)?;
                recovered.proven.push(digest);
            } else {
                tracing::warn!(%digest, "a blob that was never synced did not survive the last boot: dropped");
                // Whoever fetches it again puts it back into every tree. A full disk takes no mark, and then
                // the trees are looked at when the store is next served.
                let _ = damage::mark(layout, &digest, None);
                fsx::remove_if_there(&path).at("remove", &path)?;
                fsx::remove_if_there(&layout.values(&digest)).at("remove", layout.values(&digest))?;
                recovered.dropped.push(digest);
            }
        }
        std::fs::remove_dir_all(&directory).at("remove", &directory)?;
    }
    Ok(())
}

fn expire_partials(layout: &Layout, recovered: &mut Recovered) -> Result<(), Error> {
    let partials = layout.partials();
    for name in fsx::names(&partials).at("list", &partials)? {
        let path = partials.join(&name);
        // Not by the time of its bytes: one that was about to be sealed has that of all files.
        let expired = fsx::unchanged_for(&path).is_some_and(|age| age > PARTIAL_AGE_MAX);
        // Bytes without a journal prove nothing.
        let orphaned = name.strip_suffix(".bytes").is_some_and(|id| !layout.partial_journal(id).exists());
        if expired || orphaned {
            fsx::remove_if_there(&path).at("remove", &path)?;
            recovered.partials_expired += usize::from(name.strip_suffix(".bytes").is_some());
        }
    }
    Ok(())
}

/// After another boot a tree may lack names, and may name bytes that were dropped: every tree
/// that is not whole, or has a blob that was fresh, is made what its manifest says, as far as the
/// blobs are here. The directories stay: somebody may have them.
pub(super) fn rebuild_trees(layout: &Layout, recovered: &mut Recovered) -> Result<(), Error> {
    let touched: HashSet<Digest> = recovered.proven.iter().chain(&recovered.dropped).copied().collect();
    for digest in models::all_manifests(layout)? {
        match models::read_manifest(layout, &digest) {
            Ok(manifest)
                if manifest.files().iter().any(|file| touched.contains(&file.digest))
                    || !trees::is_complete(layout, &manifest, &digest) =>
            {
                trees::mend(layout, &manifest, &digest, None)?;
            }
            Ok(_) => {}
            // What the disk does not give now it may give later; what it gives wrong goes. Its tree
            // stays for those who have it, until the model is pulled again or let go.
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(_) => {
                let path = layout.manifest(&digest);
                fsx::remove_if_there(&path).at("remove", &path)?;
                recovered.unreadable.push(path);
            }
        }
    }
    Ok(())
}
