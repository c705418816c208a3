//! `larder prefetch`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::args::{Origin, Prefetch};
use super::console::Console;
use super::watch;
use crate::domain::Source;
use crate::fetch::{Cancel, Engine, Outcome, Progress, Pull, Selection};
use crate::remote;
use crate::report::text;
use crate::report::{Exit, Failure};
use crate::store::{Recovered, Store};

/// How a pull counts files for which it had no checksum of the origin's.
const BLAKE3_ONLY: &str = "BLAKE3 only";

/// Pulls every source; one that fails does not keep the others from coming. The first failure
/// decides the exit code.
pub async fn run(console: Console, directory: &Path, args: &Prefetch, cancel: &Cancel) -> Result<Exit, Failure> {
    let sources: Result<Vec<Source>, _> = args.sources.iter().map(|source| Source::parse(source)).collect();
    let sources = sources?;
    let selection = Selection::new(&args.include, &args.exclude)?;
    let store = Arc::new(Store::open(directory)?);
    tell_recovered(console, store.recovered());
    let settling = settle_in_background(&store);
    let mut exit = Exit::Done;
    for source in &sources {
        let pulled = Box::pin(pull(console, &store, source, selection.clone(), &args.origin, cancel)).await;
        if let Err(failure) = pulled {
            console.failure(&failure);
            if exit == Exit::Done {
                exit = failure.exit;
            }
            if failure.exit == Exit::Interrupted {
                break;
            }
        }
    }
    if args.sync && exit == Exit::Done {
        console.note("waiting for the disk");
        // Blobs of the past that settle meanwhile must not be settled twice at once.
        let _ = settling.await;
        let store = Arc::clone(&store);
        let settled = tokio::task::spawn_blocking(move || store.settle(true)).await;
        settled.map_err(|panic| Failure::new(Exit::Defect, panic.to_string()))??;
    }
    Ok(exit)
}

/// Blobs of earlier calls that the kernel has written by now get their durable place. Cut off at
/// any point it leaves them where they are.
fn settle_in_background(store: &Arc<Store>) -> tokio::task::JoinHandle<()> {
    let store = Arc::clone(store);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = store.settle(false) {
            tracing::warn!(%error, "settling blobs of an earlier call failed");
        }
    })
}

pub(super) fn tell_recovered(console: Console, recovered: &Recovered) {
    if recovered.lost_something() {
        console.note(&format!(
            "the last boot or crash cost {}, {} and {}: they are fetched again when asked for",
            text::count(recovered.dropped.len(), "blob"),
            text::count(recovered.unreadable.len(), "document"),
            text::count(recovered.catalog_lines_dropped, "catalog line"),
        ));
    }
}

/// Pulls one source and tells how it went.
pub(super) async fn pull(
    console: Console,
    store: &Arc<Store>,
    source: &Source,
    selection: Selection,
    origin: &Origin,
    cancel: &Cancel,
) -> Result<Outcome, Failure> {
    let options = remote::Options {
        anonymous: origin.anonymous,
        requester_pays: origin.requester_pays,
        region: origin.region.clone(),
        endpoint: origin.endpoint_url.clone(),
    };
    let progress = Arc::new(Progress::default());
    let pull = Pull {
        engine: Arc::new(Engine::of_store(Arc::clone(store))),
        remote: cancel.guard(Box::pin(remote::open(source, &options))).await??,
        source: source.clone(),
        selection,
        progress: Arc::clone(&progress),
        cancel: cancel.clone(),
    };
    let name = source.to_string();
    let outcome = tokio::select! {
        outcome = pull.run() => outcome?,
        () = watch::watch(console, &name, Arc::clone(&progress)) => return Err(Failure::new(Exit::Defect, "the display ended before the pull")),
    };
    tell(console, &name, &outcome, &progress);
    Ok(outcome)
}

fn tell(console: Console, source: &str, outcome: &Outcome, progress: &Progress) {
    let here = outcome.bytes_total.saturating_sub(outcome.bytes_moved);
    if console.json {
        console.event(&serde_json::json!({
            "event": "done",
            "source": source,
            "digest": outcome.manifest,
            "path": outcome.tree,
            "files": outcome.files,
            "bytes_total": outcome.bytes_total,
            "bytes_moved": outcome.bytes_moved,
            "bytes_here": here,
            "seconds": outcome.elapsed.as_secs_f64(),
            "verified": outcome.verified,
            "equal_by": outcome.equal_by,
            "retries": progress.retries.load(Relaxed),
            "throttled": progress.throttled.load(Relaxed),
            "stalls": progress.stalls.load(Relaxed),
            "mismatches": progress.mismatches.load(Relaxed),
        }));
        return;
    }
    let mut lines = text::lines("", "  ", &amounts(source, outcome, progress));
    lines.extend(text::lines("  ", "  ", &proofs(outcome)));
    lines.push(format!("  {}", absolute(&outcome.tree).display()));
    console.result(&lines.join("\n"));
}

/// A path that is right in any directory.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// How much there is, how much of it moved, and what that took.
fn amounts(source: &str, outcome: &Outcome, progress: &Progress) -> Vec<String> {
    let (total, moved) = (text::bytes(outcome.bytes_total), text::bytes(outcome.bytes_moved));
    let elapsed = text::duration(outcome.elapsed);
    let took = format!("in {elapsed} ({})", text::rate(outcome.bytes_moved, outcome.elapsed));
    let mut clauses = match outcome.bytes_moved {
        0 => vec![format!("{source}: {total}"), format!("nothing had to move ({elapsed})")],
        bytes if bytes < outcome.bytes_total => vec![format!("{source}: {moved} of {total} moved {took}")],
        bytes if bytes == outcome.bytes_total => vec![format!("{source}: {moved} moved {took}")],
        // Files that changed at the origin, or did not match their checksum, came more than once.
        _ => vec![format!("{source}: {total}"), format!("{moved} moved for it {took}")],
    };
    clauses.extend(watch::trouble(progress));
    clauses
}

/// What the bytes were compared with, and when: on their way here, by this call or an earlier one.
fn proofs(outcome: &Outcome) -> Vec<String> {
    let equal: usize = outcome.equal_by.values().sum();
    let mut clauses = Vec::new();
    if equal > 0 {
        let by: Vec<&str> = outcome.equal_by.keys().copied().collect();
        let all = if equal == outcome.files && equal > 1 { "all " } else { "" };
        clauses.push(format!(
            "{all}{} proven equal to what was here by {}",
            text::count(equal, "file"),
            by.join(" or ")
        ));
    }
    let without = outcome.verified.get(BLAKE3_ONLY).copied().unwrap_or(0);
    let compared: Vec<(&str, usize)> =
        outcome.verified.iter().filter(|(by, _)| **by != BLAKE3_ONLY).map(|(by, files)| (*by, *files)).collect();
    // What an equal file was compared with is part of its proof.
    if !compared.is_empty() && equal < outcome.files {
        let they = if outcome.files - without == 1 { "it" } else { "they" };
        let (when, now) = match outcome.bytes_moved {
            0 => ("when", ", not now"),
            moved if moved == outcome.bytes_total => ("as", ""),
            _ => ("when", ""),
        };
        let files = text::count(outcome.files - without, "file");
        let subject = match (without, outcome.files) {
            (0, 1) => format!("{files}, "),
            (0, all) if equal > 0 => format!("all {all} "),
            (0, _) => format!("{files}, all "),
            _ => format!("{files} "),
        };
        let by = match &compared[..] {
            [(by, _)] => (*by).to_owned(),
            several => several.iter().map(|(by, files)| format!("{by} ({files})")).collect::<Vec<_>>().join(" and "),
        };
        clauses.push(format!("{subject}checked against the origin's {by} {when} {they} came{now}"));
    }
    let digests = if without == 1 { "its BLAKE3 digest is" } else { "BLAKE3 digests are" };
    if without > 0 {
        clauses.push(format!("the origin keeps no checksum for {} ({digests} recorded)", text::count(without, "file")));
    }
    clauses
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::domain::Digest;

    #[track_caller]
    fn told(
        files: usize,
        moved: u64,
        verified: &[(&'static str, usize)],
        equal_by: &[(&'static str, usize)],
    ) -> String {
        let outcome = Outcome {
            manifest: Digest::of(b""),
            tree: PathBuf::new(),
            files,
            bytes_total: 90 << 20,
            bytes_moved: moved << 20,
            equal_by: equal_by.iter().copied().collect::<BTreeMap<_, _>>(),
            verified: verified.iter().copied().collect::<BTreeMap<_, _>>(),
            markers: 0,
            elapsed: Duration::from_millis(if moved == 0 { 34 } else { 1500 }),
        };
        let mut lines = text::lines("", "  ", &amounts("s3://models/llama/", &outcome, &Progress::default()));
        lines.extend(text::lines("  ", "  ", &proofs(&outcome)));
        assert!(lines.iter().all(|line| line.len() <= 80), "{lines:#?}");
        lines.join("\n")
    }

    #[test]
    fn a_result_reads_well_at_80_columns() {
        insta::assert_snapshot!(told(9, 90, &[("CRC64NVME", 9)], &[]), @"
        s3://models/llama/: 90.0 MiB moved in 1.5 s (60.0 MiB/s)
          9 files, all checked against the origin's CRC64NVME as they came
        ");
        insta::assert_snapshot!(told(9, 0, &[("CRC64NVME", 9)], &[]), @"
        s3://models/llama/: 90.0 MiB, nothing had to move (34 ms)
          9 files, all checked against the origin's CRC64NVME when they came, not now
        ");
        insta::assert_snapshot!(told(9, 40, &[("CRC64NVME", 9)], &[]), @"
        s3://models/llama/: 40.0 MiB of 90.0 MiB moved in 1.5 s (26.7 MiB/s)
          9 files, all checked against the origin's CRC64NVME when they came
        ");
        insta::assert_snapshot!(told(9, 95, &[("CRC32C", 9)], &[]), @"
        s3://models/llama/: 90.0 MiB, 95.0 MiB moved for it in 1.5 s (63.3 MiB/s)
          9 files, all checked against the origin's CRC32C when they came
        ");
        insta::assert_snapshot!(told(1, 90, &[("MD5", 1)], &[]), @"
        s3://models/llama/: 90.0 MiB moved in 1.5 s (60.0 MiB/s)
          1 file, checked against the origin's MD5 as it came
        ");
        insta::assert_snapshot!(told(9, 90, &[(BLAKE3_ONLY, 9)], &[]), @"
        s3://models/llama/: 90.0 MiB moved in 1.5 s (60.0 MiB/s)
          the origin keeps no checksum for 9 files (BLAKE3 digests are recorded)
        ");
        insta::assert_snapshot!(told(9, 0, &[(BLAKE3_ONLY, 9)], &[]), @"
        s3://models/llama/: 90.0 MiB, nothing had to move (34 ms)
          the origin keeps no checksum for 9 files (BLAKE3 digests are recorded)
        ");
        insta::assert_snapshot!(told(9, 90, &[("CRC64NVME", 5), ("MD5", 3), (BLAKE3_ONLY, 1)], &[]), @"
        s3://models/llama/: 90.0 MiB moved in 1.5 s (60.0 MiB/s)
          8 files checked against the origin's CRC64NVME (5) and MD5 (3) as they came,
          the origin keeps no checksum for 1 file (its BLAKE3 digest is recorded)
        ");
        insta::assert_snapshot!(told(9, 0, &[("CRC64NVME", 9)], &[("ETag and CRC", 9)]), @"
        s3://models/llama/: 90.0 MiB, nothing had to move (34 ms)
          all 9 files proven equal to what was here by ETag and CRC
        ");
        insta::assert_snapshot!(told(9, 10, &[("CRC64NVME", 9)], &[("SHA-256", 8)]), @"
        s3://models/llama/: 10.0 MiB of 90.0 MiB moved in 1.5 s (6.7 MiB/s)
          8 files proven equal to what was here by SHA-256,
          all 9 checked against the origin's CRC64NVME when they came
        ");
    }
}
