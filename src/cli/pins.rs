//! `larder pin` and `larder unpin`.

use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use super::args::{NameFlags, Turn};
use super::console::Console;
use super::names::Names;
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
    flags: &NameFlags,
    pinned: bool,
    turn: Turn,
    cancel: &Cancel,
) -> Result<Exit, Failure> {
    let common = Names::of(flags).await;
    // What is no name is refused before anything is changed.
    for name in names {
        common.name(verb(pinned), name)?;
    }
    let owner = owner::own(&Claim { directory, turn, console, cancel }).await?;
    let mut models = Vec::new();
    for name in names {
        models.extend(match &owner {
            Owner::Us(store) => set_in(store, name, &common, pinned)?,
            Owner::Daemon(peer) => ask(peer, name, &common, pinned, cancel).await?,
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
pub fn set_in(store: &Store, name: &str, common: &Names, pinned: bool) -> Result<Vec<String>, Failure> {
    let name: Name = common.name(verb(pinned), name)?;
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
        models.push(named::name_of(&kept, name.usual()));
    }
    Ok(models)
}

const fn verb(pinned: bool) -> Verb {
    if pinned { Verb::Pin } else { Verb::Unpin }
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
    common: &Names,
    pinned: bool,
    cancel: &Cancel,
) -> Result<Vec<String>, Failure> {
    let path = if pinned { "/v1/pin" } else { "/v1/unpin" };
    let mut body = common.body(&[name])?;
    body["model"] = json!(name);
    let answer: Answer = peer.ask(path, body, cancel).await?;
    Ok(answer.models)
}
