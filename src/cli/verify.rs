//! `larder verify`.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::args::Verify;
use super::console::Console;
use super::exit::{Exit, Failure};
use super::{models, prefetch, text};
use crate::domain::{ChunkIndex, Digest, Grid, Source};
use crate::fetch::{Cancel, Selection};
use crate::store::{Kept, SourceRecord, Store};

struct Blob {
    size: u64,
    /// `source: path`, for each model that has it.
    names: Vec<String>,
}

/// Hashes every blob of the chosen models once; reports what is wrong, and repairs it if asked.
pub async fn run(console: Console, directory: &Path, args: &Verify, cancel: &Cancel) -> Result<Exit, Failure> {
    let store = Arc::new(Store::open(directory)?);
    prefetch::tell_recovered(console, store.recovered());
    let kept = match &args.model {
        Some(name) => models::matching(store.view(), name)?,
        None => store.view().kept()?,
    };
    let blobs = blobs_of(&store, &kept)?;
    let total: u64 = blobs.values().map(|blob| blob.size).sum();
    let mut damaged: HashSet<Digest> = HashSet::new();
    for (digest, blob) in &blobs {
        let bad = scrub(&store, *digest, cancel).await?;
        if bad.as_ref().is_none_or(|bad| !bad.is_empty()) {
            damaged.insert(*digest);
            tell_damage(console, digest, blob, bad.as_deref());
        }
    }
    if console.json {
        console.event(&json!({"event": "verified", "blobs": blobs.len(), "bytes": total, "damaged": damaged.len()}));
    }
    console.result(&format!(
        "{} ({}) hashed again, {} damaged or missing",
        text::count(blobs.len(), "file"),
        text::bytes(total),
        damaged.len()
    ));
    if damaged.is_empty() {
        return Ok(Exit::Done);
    }
    if !args.repair {
        console.note("  hint: `larder verify --repair` fetches them again");
        return Ok(Exit::Integrity);
    }
    repair(console, &store, &damaged, args, cancel).await
}

fn blobs_of(store: &Store, kept: &[Kept]) -> Result<BTreeMap<Digest, Blob>, Failure> {
    let mut blobs: BTreeMap<Digest, Blob> = BTreeMap::new();
    for kept in kept {
        let Some(digest) = kept.manifest else { continue };
        let name = kept.record.as_ref().map_or_else(|| digest.short(), |record| record.source.clone());
        for file in store.view().manifest(&digest)?.files() {
            let blob = blobs.entry(file.digest).or_insert_with(|| Blob { size: file.size, names: Vec::new() });
            blob.names.push(format!("{name}: {}", file.path));
        }
    }
    Ok(blobs)
}

/// The bad chunks; `None` for a blob that is not there at all.
async fn scrub(store: &Arc<Store>, digest: Digest, cancel: &Cancel) -> Result<Option<Vec<ChunkIndex>>, Failure> {
    if !store.view().has_blob(&digest) {
        return Ok(None);
    }
    let (store, watched) = (Arc::clone(store), cancel.clone());
    let scrubbed = tokio::task::spawn_blocking(move || store.scrub(&digest, &mut |_| !watched.is_cancelled())).await;
    match scrubbed.map_err(|panic| Failure::new(Exit::Defect, panic.to_string()))?? {
        Some(bad) => Ok(Some(bad)),
        None => Err(Failure::new(Exit::Interrupted, "interrupted")),
    }
}

fn tell_damage(console: Console, digest: &Digest, blob: &Blob, bad: Option<&[ChunkIndex]>) {
    let grid = Grid::of_size(blob.size);
    let ranges: Vec<(u64, u64)> =
        bad.unwrap_or_default().iter().map(|index| grid.chunk_range(*index)).map(|r| (r.start, r.end)).collect();
    if console.json {
        console.event(&json!({"event": "damaged", "digest": digest, "files": blob.names, "missing": bad.is_none(), "ranges": ranges}));
        return;
    }
    let what = match bad {
        None => "missing".to_owned(),
        Some(_) => format!(
            "damaged in bytes {}",
            ranges.iter().take(8).map(|(a, b)| format!("{a}-{b}")).collect::<Vec<_>>().join(", ")
        ),
    };
    for name in &blob.names {
        console.result(&format!("{name} is {what}"));
    }
}

/// Takes the damaged blobs out and pulls every source that had one of them.
async fn repair(
    console: Console,
    store: &Arc<Store>,
    damaged: &HashSet<Digest>,
    args: &Verify,
    cancel: &Cancel,
) -> Result<Exit, Failure> {
    let affected: Vec<SourceRecord> = (store.view().kept()?.into_iter())
        .filter_map(|kept| kept.record)
        .filter(|record| record.files.iter().any(|file| file.digest.is_some_and(|digest| damaged.contains(&digest))))
        .collect();
    for digest in damaged {
        store.withdraw(digest)?;
    }
    let mut exit = Exit::Done;
    for record in &affected {
        let source = Source::parse(&record.source)?;
        let selection = Selection::new(&record.include, &record.exclude)?;
        let pulled = Box::pin(prefetch::pull(console, store, &source, selection, &args.origin, cancel)).await;
        if let Err(failure) = pulled {
            console.failure(&failure);
            exit = failure.exit;
        }
    }
    // Models that share the blobs, and are not named by a source any more, show their files again.
    store.rebuild_trees()?;
    let still: Vec<_> = damaged.iter().filter(|digest| !store.view().has_blob(digest)).collect();
    if exit == Exit::Done && !still.is_empty() {
        console.result(&format!(
            "{} could not be had again: the origin has other versions now",
            text::count(still.len(), "file")
        ));
        exit = Exit::Integrity;
    }
    Ok(exit)
}
