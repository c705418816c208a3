//! `larder verify`.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;

use super::args::Verify;
use super::console::Console;
use super::{models, prefetch};
use crate::domain::{ChunkIndex, Digest, Grid, Source};
use crate::fetch::{Cancel, Selection};
use crate::report::text;
use crate::report::{Exit, Failure};
use crate::store::{self, Kept, SourceRecord, Store};

/// Damaged ranges of one file that are told to people.
const RANGES_TOLD_MAX: usize = 8;

struct Blob {
    size: u64,
    /// `source: path`, for each model that has it.
    names: Vec<String>,
}

/// What there is to hash.
#[derive(Default)]
struct Plan {
    blobs: BTreeMap<Digest, Blob>,
    /// Manifests that are missing or not what their name says, with the models they stand for.
    manifests: BTreeMap<Digest, (store::Error, Vec<String>)>,
    /// Sources that are here only in part.
    unfinished: usize,
}

/// What was found wrong.
#[derive(Default)]
struct Damage {
    blobs: HashSet<Digest>,
    manifests: HashSet<Digest>,
}

impl Damage {
    fn is_none(&self) -> bool {
        self.blobs.is_empty() && self.manifests.is_empty()
    }

    /// `2 files and 1 manifest`.
    fn counted(&self) -> String {
        let counts = [(self.blobs.len(), "file"), (self.manifests.len(), "manifest")];
        let told = counts.iter().filter(|(count, _)| *count > 0).map(|(count, noun)| text::count(*count, noun));
        told.collect::<Vec<_>>().join(" and ")
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

/// Hashes every blob of the chosen models once; reports what is wrong, and repairs it if asked.
pub async fn run(console: Console, directory: &Path, args: &Verify, cancel: &Cancel) -> Result<Exit, Failure> {
    let store = Arc::new(models::own(directory)?);
    prefetch::tell_recovered(console, store.recovered());
    let kept = match &args.model {
        Some(name) => models::matching(store.view(), name)?,
        None => store.view().kept()?,
    };
    let plan = plan(&store, &kept);
    let mut damage = Damage::default();
    for (digest, (error, names)) in &plan.manifests {
        damage.manifests.insert(*digest);
        tell_manifest(console, digest, error, names);
    }
    for (digest, blob) in &plan.blobs {
        let found = scrub(&store, *digest, blob.size, cancel).await?;
        if !found.is_right() {
            damage.blobs.insert(*digest);
            tell_damage(console, digest, blob, &found);
        }
    }
    tell(console, &plan, &damage);
    if damage.is_none() {
        return Ok(Exit::Done);
    }
    if !args.repair {
        let name = args.model.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        console.note(&format!("  hint: `larder verify --repair{name}` fetches it again"));
        return Ok(Exit::Integrity);
    }
    repair(console, &store, &damage, args, cancel).await
}

/// The blobs of the chosen models. Those of a model without a manifest are known by its source.
fn plan(store: &Store, kept: &[Kept]) -> Plan {
    let mut plan = Plan::default();
    for kept in kept {
        let Some(digest) = kept.manifest else {
            plan.unfinished += 1;
            continue;
        };
        let name = name_of(kept, &digest);
        let mut add = |digest: Digest, size: u64, path: &dyn std::fmt::Display| {
            let blob = plan.blobs.entry(digest).or_insert_with(|| Blob { size, names: Vec::new() });
            blob.names.push(format!("{name}: {path}"));
        };
        match store.view().manifest(&digest) {
            Ok(manifest) => manifest.files().iter().for_each(|file| add(file.digest, file.size, &file.path)),
            Err(error) => {
                for file in kept.record.iter().flat_map(|record| &record.files) {
                    if let Some(digest) = file.digest {
                        add(digest, file.size, &file.path);
                    }
                }
                plan.manifests.entry(digest).or_insert_with(|| (error, Vec::new())).1.push(name);
            }
        }
    }
    plan
}

fn name_of(kept: &Kept, digest: &Digest) -> String {
    kept.record.as_ref().map_or_else(|| digest.short(), |record| record.source.clone())
}

/// What is under a blob's name.
enum Found {
    /// The blob, but for these chunks.
    Bad(Vec<ChunkIndex>),
    OtherSize(u64),
    Nothing,
}

impl Found {
    fn is_right(&self) -> bool {
        matches!(self, Self::Bad(chunks) if chunks.is_empty())
    }

    /// The bytes that are bad, neighbours joined.
    fn ranges(&self, size: u64) -> Vec<(u64, u64)> {
        let chunks = match self {
            Self::Bad(chunks) => chunks,
            Self::OtherSize(_) => return vec![(0, size)],
            Self::Nothing => return Vec::new(),
        };
        let grid = Grid::of_size(size);
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for range in chunks.iter().map(|chunk| grid.chunk_range(*chunk)) {
            match ranges.last_mut() {
                Some((_, end)) if *end == range.start => *end = range.end,
                _ => ranges.push((range.start, range.end)),
            }
        }
        ranges
    }
}

async fn scrub(store: &Arc<Store>, digest: Digest, size: u64, cancel: &Cancel) -> Result<Found, Failure> {
    if !store.view().has_blob(&digest) {
        return Ok(Found::Nothing);
    }
    let len = store.view().blob_len(&digest);
    if len != size {
        return Ok(Found::OtherSize(len));
    }
    let (store, watched) = (Arc::clone(store), cancel.clone());
    let scrubbed = tokio::task::spawn_blocking(move || store.scrub(&digest, &mut |_| !watched.is_cancelled())).await;
    match scrubbed.map_err(|panic| Failure::new(Exit::Defect, panic.to_string()))?? {
        Some(bad) => Ok(Found::Bad(bad)),
        None => Err(Failure::interrupted("nothing was changed: the same command starts anew")),
    }
}

fn tell_manifest(console: Console, digest: &Digest, error: &store::Error, names: &[String]) {
    let missing = matches!(error, store::Error::Absent(_));
    if console.json {
        let event = json!({"event": "damaged_manifest", "digest": digest, "models": names, "missing": missing});
        console.event(&event);
        return;
    }
    let what = match error {
        store::Error::Absent(_) => "is missing".to_owned(),
        store::Error::Damaged { .. } => "is damaged".to_owned(),
        other => format!("cannot be read: {other}"),
    };
    for name in names {
        console.result(&format!("{name}: its manifest {what}"));
    }
}

fn tell_damage(console: Console, digest: &Digest, blob: &Blob, found: &Found) {
    let ranges = found.ranges(blob.size);
    if console.json {
        console.event(&json!({"event": "damaged", "digest": digest, "files": blob.names, "missing": matches!(found, Found::Nothing), "ranges": ranges}));
        return;
    }
    let what = match found {
        Found::Nothing => "missing".to_owned(),
        Found::OtherSize(size) => format!("damaged: {size} bytes long instead of {}", blob.size),
        Found::Bad(_) => {
            let more = if ranges.len() > RANGES_TOLD_MAX { " and more" } else { "" };
            let told = ranges.iter().take(RANGES_TOLD_MAX).map(|(a, b)| format!("{a}-{b}"));
            format!("damaged in bytes {}{more}", told.collect::<Vec<_>>().join(", "))
        }
    };
    for name in &blob.names {
        console.result(&format!("{name} is {what}"));
    }
}

fn tell(console: Console, plan: &Plan, damage: &Damage) {
    let total: u64 = plan.blobs.values().map(|blob| blob.size).fold(0, u64::saturating_add);
    if console.json {
        console.event(&json!({
            "event": "verified",
            "blobs": plan.blobs.len(),
            "bytes": total,
            "damaged": damage.blobs.len(),
            "damaged_manifests": damage.manifests.len(),
            "unfinished": plan.unfinished,
        }));
    }
    let verdict = if damage.is_none() {
        "nothing is damaged".to_owned()
    } else {
        format!("{} damaged or missing", damage.counted())
    };
    let mut clauses =
        vec![format!("{} ({}) hashed again", text::count(plan.blobs.len(), "file"), text::bytes(total)), verdict];
    if plan.unfinished > 0 {
        clauses.push(format!("{} here only in part and left out", text::count(plan.unfinished, "source")));
    }
    console.result(&text::lines("", "  ", &clauses).join("\n"));
}

/// Takes the damaged blobs out and pulls every source that had one of them, or whose manifest is
/// damaged: publishing writes it anew.
async fn repair(
    console: Console,
    store: &Arc<Store>,
    damage: &Damage,
    args: &Verify,
    cancel: &Cancel,
) -> Result<Exit, Failure> {
    for digest in &damage.blobs {
        store.withdraw(digest)?;
    }
    let mut exit = Exit::Done;
    for record in store.view().kept()?.into_iter().filter_map(|kept| kept.record) {
        // What one source brings may be all that the next one lacked; an unfinished one meets it
        // when its pull goes on.
        if record.manifest.is_none() || !damage.is_in(store, &record) {
            continue;
        }
        let source = Source::parse(&record.source)?;
        let selection = Selection::new(&record.include, &record.exclude)?;
        let pulled = Box::pin(prefetch::pull(console, store, &source, selection, &args.origin, cancel)).await;
        if let Err(failure) = pulled {
            console.failure(&failure);
            if exit == Exit::Done || failure.exit == Exit::Interrupted {
                exit = failure.exit;
            }
            if failure.exit == Exit::Interrupted {
                break;
            }
        }
    }
    // Models that share the blobs, and are not named by a source any more, show their files again.
    store.rebuild_trees()?;
    let lost = tell_lost(console, store, damage)?;
    match (exit, lost) {
        (Exit::Done, 0) => console.result(&format!("{} repaired", damage.counted())),
        (Exit::Done, _) => exit = Exit::Integrity,
        _ => {}
    }
    Ok(exit)
}

/// Names the models that stay damaged because no source leads to them; their number.
fn tell_lost(console: Console, store: &Store, damage: &Damage) -> Result<usize, Failure> {
    let mut lost = 0;
    for digest in store.view().kept()?.into_iter().filter(|kept| kept.record.is_none()).filter_map(|kept| kept.manifest)
    {
        let what = match store.view().manifest(&digest) {
            Err(_) if damage.manifests.contains(&digest) => "manifest".to_owned(),
            Ok(manifest) => match manifest.files().iter().filter(|file| damage.lacks(store, &file.digest)).count() {
                0 => continue,
                1 => "file".to_owned(),
                files => format!("{files} files"),
            },
            Err(_) => continue,
        };
        lost += 1;
        if console.json {
            console.event(&json!({"event": "not_repairable", "digest": digest}));
        }
        let name = digest.short();
        console.result(&format!(
            "{name}: its {what} cannot be fetched again, because no source names this model now;\n  `larder rm {name}` removes it"
        ));
    }
    Ok(lost)
}
