//! `larder prefetch`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::args::{Origin, Prefetch};
use super::console::Console;
use super::exit::{Exit, Failure};
use super::{text, watch};
use crate::domain::Source;
use crate::fetch::{Cancel, Outcome, Progress, Pull, Selection};
use crate::remote;
use crate::store::{Recovered, Store};

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
        store: Arc::clone(store),
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
    let verified: Vec<String> = outcome.verified.iter().map(|(by, files)| format!("{by} of {files}")).collect();
    let equal: usize = outcome.equal_by.values().sum();
    let equal = if equal == 0 {
        String::new()
    } else {
        let by: Vec<&str> = outcome.equal_by.keys().copied().collect();
        format!(", {} proven equal to what was here by {}", text::count(equal, "file"), by.join(" and "))
    };
    console.result(&format!(
        "{source}: {} ({}), {} moved, {} already here, {} ({}), checked against the origin's {}{equal}{}",
        text::count(outcome.files, "file"),
        text::bytes(outcome.bytes_total),
        text::bytes(outcome.bytes_moved),
        text::bytes(here),
        text::duration(outcome.elapsed),
        text::rate(outcome.bytes_moved, outcome.elapsed),
        verified.join(", "),
        watch::trouble(progress),
    ));
}
