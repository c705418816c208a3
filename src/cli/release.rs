//! `larder release`.

use std::path::Path;

use serde::Deserialize;
use serde_json::json;

use super::args::Turn;
use super::console::Console;
use super::owner::{self, Claim, Owner};
use crate::cache::{Book, Lease};
use crate::fetch::Cancel;
use crate::report::{Exit, Failure, text};

#[derive(Deserialize)]
struct Released {
    leases: usize,
}

/// Ends leases by their ids or owners, whoever owns the store.
pub async fn run(
    console: Console,
    directory: &Path,
    names: &[String],
    turn: Turn,
    cancel: &Cancel,
) -> Result<Exit, Failure> {
    let owner = owner::own(&Claim { directory, turn, console, cancel }).await?;
    let mut leases = 0;
    for name in names {
        let ended = match &owner {
            // Those that a daemon left behind.
            Owner::Us(store) => Book::open(store)?.release(store, |id, lease: &Lease| lease.is_called(id, name))?.len(),
            Owner::Daemon(peer) => {
                let Released { leases } = peer.ask("/v1/release", json!({ "lease": name }), cancel).await?;
                leases
            }
        };
        if ended == 0 {
            return Err(Failure::hinted(
                Exit::NotFound,
                format!("no lease is called `{name}`, and no owner of one"),
                "`larder status` shows the leases and who has them",
            ));
        }
        leases += ended;
    }
    if console.json {
        console.event(&json!({"released": names, "leases": leases}));
    }
    console.result(&format!("ended {}", text::count(leases, "lease")));
    Ok(Exit::Done)
}
