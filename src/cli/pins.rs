//! `larder pin` and `larder unpin`.

use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use super::args::{Globs, Turn};
use super::console::Console;
use super::owner::{self, Claim, Owner};
use super::peer::Peer;
use crate::cache::named::{self, Name, Verb};
use crate::cache::{Book, HOLDER};
use crate::fetch::Cancel;
use crate::report::{Exit, Failure};
use crate::store::Store;

/// Pins or unpins models, whoever owns the store.
pub async fn run(
    console: Console,
    directory: &Path,
    names: &[String],
    globs: &Globs,
    pinned: bool,
    turn: Turn,
    cancel: &Cancel,
) -> Result<Exit, Failure> {
    let owner = owner::own(&Claim { directory, turn, console, cancel }).await?;
    let mut models = Vec::new();
    for name in names {
        models.extend(match &owner {
            Owner::Us(store) => set_in(store, name, globs, pinned)?,
            Owner::Daemon(peer) => ask(peer, name, globs, pinned, cancel).await?,
        });
    }
    if console.json {
        console.event(&json!({"models": models, "pinned": pinned}));
    }
    let verb = if pinned { "pinned" } else { "unpinned" };
    console.result(&format!("{verb} {}", models.join(", ")));
    Ok(Exit::Done)
}

/// Pins or unpins everything of that name in a store that this process owns; what it is called.
/// Unpinning takes back every pin, whoever set it: whoever does it by hand has the last word.
///
/// # Errors
/// Nothing of that name; the disk's.
pub fn set_in(store: &Store, name: &str, globs: &Globs, pinned: bool) -> Result<Vec<String>, Failure> {
    let name: Name = globs.name(if pinned { Verb::Pin } else { Verb::Unpin }, name)?;
    let found = named::matching(store.view(), &name)?;
    let mut book = Book::open(store)?;
    let mut models = Vec::new();
    for kept in found {
        let Some(key) = named::pin_key(&kept) else { continue };
        if pinned {
            book.pin(store, &key, HOLDER)?;
        } else {
            book.unpin(store, &key, None)?;
        }
        models.push(named::name_of(&kept));
    }
    Ok(models)
}

#[derive(Deserialize)]
struct Answer {
    models: Vec<String>,
}

/// The same through the daemon.
///
/// # Errors
/// The daemon's, and what keeps it from answering.
pub async fn ask(
    peer: &Peer,
    name: &str,
    globs: &Globs,
    pinned: bool,
    cancel: &Cancel,
) -> Result<Vec<String>, Failure> {
    let path = if pinned { "/v1/pin" } else { "/v1/unpin" };
    let answer: Answer =
        peer.ask(path, json!({"model": name, "include": globs.include, "exclude": globs.exclude}), cancel).await?;
    Ok(answer.models)
}
