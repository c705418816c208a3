//! `larder prefetch`.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::args::Prefetch;
use super::console::Console;
use super::names::Names;
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
    let names = Names::new(args.globs(), args.origin.endpoint_url.as_deref()).await;
    match owner::own_or_make(&Claim { directory, turn: args.turn, console, cancel }).await? {
        Owner::Us(store) => {
            tell_recovered(console, store.recovered());
            let settling = settle_in_background(&store);
            let (origin, endpoints, retry) = (&args.origin, names.endpoints(), args.retry);
            let pull = LocalPull { store: &store, origin, endpoints, retry, cancel };
            let exit = all(console, args, async |at: usize| {
                let mut watch = Watch::new(console);
                let tell = &mut |event| show(console, &mut watch, &event);
                let pulled = Box::pin(pull.run(&sources[at], &selection, tell)).await;
                drop(watch);
                summary::tell(console, &pulled?);
                if args.pin {
                    tell_pinned(console, &pins::set_in(&store, &args.sources[at], &names, true)?);
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
            let is_named = sources.iter().any(|source| names.endpoints().named_for(source).is_some());
            owner::refuse_origin_flags(&peer, &args.origin, is_named, args.retry)?;
            let exit = all(console, args, async |at: usize| {
                let brought = ensure(console, &peer, wish(args, &names, at)?, cancel).await;
                summary::tell(console, &brought.map_err(|failure| of_another_server(&peer, args, failure))?);
                if args.pin {
                    tell_pinned(console, &pins::ask(&peer, &args.sources[at], &names, true, cancel).await?);
                }
                Ok(())
            })
            .await;
            if args.sync && exit == Exit::Done {
                console.note("waiting for the disk");
                sync(&peer, wish(args, &names, args.sources.len() - 1)?, cancel).await?;
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
fn wish(args: &Prefetch, names: &Names, at: usize) -> Result<Value, Failure> {
    let mut body = names.body(&[&args.sources[at]])?;
    body["source"] = json!(args.sources[at]);
    body["fresh"] = true.into();
    body["progress_ms"] = u64::try_from(REMOTE_INTERVAL.as_millis()).unwrap_or(u64::MAX).into();
    Ok(body)
}

async fn ensure(console: Console, peer: &Peer, wish: Value, cancel: &Cancel) -> Result<Ready, Failure> {
    let mut watch = Watch::new(console);
    let heard = peer.events("/v1/ensure", wish, cancel, |event| {
        show(console, &mut watch, &event);
        ended(event)
    });
    heard.await?
}

/// A daemon brings nothing from another server than its own: says which flag asked for that.
fn of_another_server(peer: &Peer, args: &Prefetch, failure: Failure) -> Failure {
    if failure.exit != Exit::Usage || args.origin.endpoint_url.is_none() {
        return failure;
    }
    let store = peer.store().display();
    let message =
        format!("--endpoint-url is of no use here: larder's daemon owns the store `{store}`: {}", failure.message);
    Failure { message, ..failure }
}

fn ended(event: Event) -> Option<Result<Ready, Failure>> {
    match event {
        Event::Ready(ready) => Some(Ok(ready)),
        Event::Error { message, hint, exit_code } => Some(Err(peer::of_daemon(message, hint, exit_code))),
        Event::Progress(_) | Event::Warning { .. } => None,
    }
}

/// Everything in the store is synced at once, so asking for the last source once more will do.
async fn sync(peer: &Peer, mut body: Value, cancel: &Cancel) -> Result<(), Failure> {
    body["fresh"] = false.into();
    body["sync"] = true.into();
    peer.events("/v1/ensure", body, cancel, ended).await?.map(drop)
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
