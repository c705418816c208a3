//! `larder prefetch`.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::args::Prefetch;
use super::console::Console;
use super::owner::{self, Claim, Owner};
use super::peer::{self, Peer};
use super::pull::LocalPull;
use super::watch::{REMOTE_INTERVAL, Watch};
use super::{pins, summary};
use crate::cache::{Event, Ready};
use crate::domain::Source;
use crate::fetch::{Cancel, Selection};
use crate::report::text;
use crate::report::{Exit, Failure};
use crate::store::{Recovered, Store};

/// Brings every source; one that fails does not keep the others from coming. The first failure
/// decides the exit code.
pub async fn run(console: Console, directory: &Path, args: &Prefetch, cancel: &Cancel) -> Result<Exit, Failure> {
    let sources: Result<Vec<Source>, _> = args.sources.iter().map(|source| Source::parse(source)).collect();
    let sources = sources?;
    let selection = Selection::new(&args.include, &args.exclude)?;
    match owner::own_or_make(&Claim { directory, turn: args.turn, console, cancel }).await? {
        Owner::Us(store) => {
            tell_recovered(console, store.recovered());
            let settling = settle_in_background(&store);
            let pull = LocalPull { store: &store, origin: &args.origin, retry: args.retry, cancel };
            let exit = all(console, args, async |at: usize| {
                let mut watch = Watch::new(console);
                let tell = &mut |event| show(console, &mut watch, &event);
                let pulled = Box::pin(pull.run(&sources[at], &selection, tell)).await;
                drop(watch);
                summary::tell(console, &pulled?);
                if args.pin {
                    tell_pinned(console, &pins::set_in(&store, &args.sources[at], &args.globs(), true)?);
                }
                Ok(())
            })
            .await;
            if args.sync && exit == Exit::Done {
                console.note("waiting for the disk");
                // Blobs of the past that settle meanwhile must not be settled twice at once.
                let _ = settling.await;
                let settled = tokio::task::spawn_blocking(move || store.settle(true)).await;
                settled.map_err(|panic| Failure::new(Exit::Defect, panic.to_string()))??;
            }
            Ok(exit)
        }
        Owner::Daemon(peer) => {
            owner::refuse_origin_flags(&peer, &args.origin, args.retry)?;
            let exit = all(console, args, async |at: usize| {
                summary::tell(console, &ensure(console, &peer, args, at, cancel).await?);
                if args.pin {
                    tell_pinned(console, &pins::ask(&peer, &args.sources[at], &args.globs(), true, cancel).await?);
                }
                Ok(())
            })
            .await;
            if args.sync && exit == Exit::Done {
                console.note("waiting for the disk");
                sync(&peer, args, cancel).await?;
            }
            Ok(exit)
        }
    }
}

/// Brings source by source, by its place among the arguments.
async fn all(console: Console, args: &Prefetch, bring: impl AsyncFn(usize) -> Result<(), Failure>) -> Exit {
    let mut exit = Exit::Done;
    for at in 0..args.sources.len() {
        if let Err(failure) = bring(at).await {
            console.failure(&failure);
            if exit == Exit::Done {
                exit = failure.exit;
            }
            if failure.exit == Exit::Interrupted {
                break;
            }
        }
    }
    exit
}

/// Shows what happens meanwhile.
fn show(console: Console, watch: &mut Watch, event: &Event) {
    match event {
        Event::Progress(moving) => watch.show(moving),
        Event::Warning { message } if console.json => console.event(&json!({"event": "warning", "message": message})),
        Event::Warning { message } => console.note(&format!("warning: {message}")),
        Event::Ready(_) | Event::Error { .. } => {}
    }
}

/// What a daemon is asked for: as a pull by this process would, it asks the origin each time. The
/// source is as it was typed, because what is shown of it may lack a signature.
fn wish(args: &Prefetch, at: usize) -> Value {
    json!({
        "source": args.sources[at],
        "include": args.include,
        "exclude": args.exclude,
        "fresh": true,
        "lease": null,
        "progress_ms": u64::try_from(REMOTE_INTERVAL.as_millis()).unwrap_or(u64::MAX),
    })
}

async fn ensure(console: Console, peer: &Peer, args: &Prefetch, at: usize, cancel: &Cancel) -> Result<Ready, Failure> {
    let mut watch = Watch::new(console);
    let heard = peer.events("/v1/ensure", wish(args, at), cancel, |event| {
        show(console, &mut watch, &event);
        ended(event)
    });
    heard.await?
}

fn ended(event: Event) -> Option<Result<Ready, Failure>> {
    match event {
        Event::Ready(ready) => Some(Ok(ready)),
        Event::Error { message, hint, exit_code } => Some(Err(peer::of_daemon(message, hint, exit_code))),
        Event::Progress(_) | Event::Warning { .. } => None,
    }
}

/// Everything in the store is synced at once, so asking for the last source once more will do.
async fn sync(peer: &Peer, args: &Prefetch, cancel: &Cancel) -> Result<(), Failure> {
    let mut body = wish(args, args.sources.len() - 1);
    body["fresh"] = false.into();
    body["sync"] = true.into();
    peer.patient().events("/v1/ensure", body, cancel, ended).await?.map(drop)
}

fn tell_pinned(console: Console, models: &[String]) {
    if console.json {
        console.event(&json!({"event": "pinned", "models": models}));
    } else {
        console.result(&format!("  pinned {}", models.join(", ")));
    }
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
