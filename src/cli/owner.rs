//! Who changes a store: this process, or the daemon that owns it.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::args::{Origin, Retry, Turn};
use super::console::Console;
use super::peer::Peer;
use crate::fetch::{Cancel, RETRY_FOR};
use crate::report::{Exit, Failure, text};
use crate::store::{self, Store};

/// How often it is tried to own a store that another process owns.
const TURN_INTERVAL: Duration = Duration::from_millis(100);

/// How a command comes to own a store.
pub struct Claim<'a> {
    /// Where the store is.
    pub directory: &'a Path,
    /// Whether it waits for its turn.
    pub turn: Turn,
    /// Who hears that it waits.
    pub console: Console,
    /// Ends the wait.
    pub cancel: &'a Cancel,
}

/// Whoever owns the store.
pub enum Owner {
    /// This process, from now on.
    Us(Arc<Store>),
    /// A daemon, which is to be asked.
    Daemon(Peer),
}

/// Owns the store, or finds the daemon that does. Makes one where there is none. While another command
/// owns it, it waits for that one's end, and says so.
///
/// # Errors
/// As [`Store::open`]; [`Exit::Interrupted`].
pub async fn own_or_make(claim: &Claim<'_>) -> Result<Owner, Failure> {
    let directory = claim.directory;
    let mut told = None;
    loop {
        match Store::open(directory) {
            Ok(store) => return Ok(Owner::Us(Arc::new(store))),
            Err(store::Error::Busy { socket: Some(socket), owner, .. }) => {
                return Ok(Owner::Daemon(Peer::new(directory, &socket).named(owner)));
            }
            // Its lock ends with it, so a wait for it ends too.
            Err(store::Error::Busy { owner, .. }) if !claim.turn.no_wait => {
                if told.as_ref() != Some(&owner) {
                    claim.tell_waiting(&owner);
                    told = Some(owner);
                }
                claim.cancel.guard(tokio::time::sleep(TURN_INTERVAL)).await?;
            }
            Err(error) => {
                return match of_another_user(directory, &error) {
                    Some(peer) => Ok(Owner::Daemon(peer)),
                    None => Err(error.into()),
                };
            }
        }
    }
}

impl Claim<'_> {
    fn tell_waiting(&self, owner: &str) {
        let store = self.directory.display().to_string();
        if self.console.json {
            self.console.event(&json!({"event": "waiting", "store": store, "owner": owner}));
        } else {
            self.console.note(&format!("waiting for {owner}, which owns the store `{store}`"));
        }
    }
}

/// The same for changing what is in it: a store that is not there is an error, and stays so.
///
/// # Errors
/// [`Exit::NotFound`]; as [`own_or_make`].
pub async fn own(claim: &Claim<'_>) -> Result<Owner, Failure> {
    let directory = claim.directory;
    // What holds something else is refused by the store, in its own words.
    let is_ours_to_make = match std::fs::read_dir(directory) {
        Ok(mut entries) => entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == "lost+found")),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if is_ours_to_make {
        return Err(no_store(directory));
    }
    own_or_make(claim).await
}

/// The daemon of a store that this user may not even lock.
fn of_another_user(directory: &Path, error: &store::Error) -> Option<Peer> {
    let store::Error::Io { source, .. } = error else { return None };
    if !matches!(source.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) {
        return None;
    }
    Some(Peer::new(directory, &Store::last_socket(directory)?)).filter(Peer::is_there)
}

/// There is no store, and this command makes none.
pub fn no_store(directory: &Path) -> Failure {
    Failure::hinted(
        Exit::NotFound,
        format!("there is no store in `{}`", directory.display()),
        "check --store and LARDER_STORE; the first `larder prefetch` makes a store",
    )
}

/// Refuses flags that only mean something where this process asks the origin. A server that is a part of
/// a name is none of them: the daemon says whether it is its own.
///
/// # Errors
/// [`Exit::Usage`].
pub fn refuse_origin_flags(peer: &Peer, origin: &Origin, is_named: bool, retry: Retry) -> Result<(), Failure> {
    if retry.retry_for.is_some() {
        return Err(Failure::hinted(
            Exit::Usage,
            format!(
                "--retry-for is of no use here: larder's daemon owns the store `{}`, and waits for origins itself",
                peer.store().display()
            ),
            format!("it asks for {}; the same command goes on from there", text::duration(RETRY_FOR)),
        ));
    }
    let Origin { anonymous, requester_pays, region, endpoint_url } = origin;
    let flags = [
        (*anonymous, "anonymous"),
        (*requester_pays, "requester-pays"),
        (region.is_some(), "region"),
        (endpoint_url.is_some() && !is_named, "endpoint-url"),
    ];
    let Some((_, flag)) = flags.into_iter().find(|(given, _)| *given) else { return Ok(()) };
    Err(Failure::hinted(
        Exit::Usage,
        format!(
            "--{flag} is of no use here: larder's daemon owns the store `{}`, and decides how origins are reached",
            peer.store().display()
        ),
        format!("set `{}` in the daemon's configuration, or name another store with --store", flag.replace('-', "_")),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_that_the_daemon_decides_is_refused_by_name() {
        let peer = Peer::new(Path::new("/s"), Path::new("/sock"));
        let none = Origin { anonymous: false, requester_pays: false, region: None, endpoint_url: None };
        refuse_origin_flags(&peer, &none, false, Retry { retry_for: None }).expect("no flag");
        let retry = Retry { retry_for: None };
        let other = Origin { endpoint_url: Some("http://x".into()), ..none };
        refuse_origin_flags(&peer, &other, true, retry).expect("a part of a name");
        let failure = refuse_origin_flags(&peer, &other, false, retry);
        let failure = failure.expect_err("a flag");
        assert_eq!(failure.exit, Exit::Usage);
        insta::assert_snapshot!(format!("{}\n{}", failure.message, failure.hint.expect("a hint")), @"
        --endpoint-url is of no use here: larder's daemon owns the store `/s`, and decides how origins are reached
        set `endpoint_url` in the daemon's configuration, or name another store with --store
        ");
    }
}
