//! Who changes a store: this process, or the daemon that owns it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::args::Origin;
use super::peer::Peer;
use crate::report::{Exit, Failure};
use crate::store::{self, Store};

/// Whoever owns the store.
pub enum Owner {
    /// This process, from now on.
    Us(Arc<Store>),
    /// A daemon, which is to be asked.
    Daemon(Peer),
}

/// Owns the store, or finds the daemon that does. Makes one where there is none.
///
/// # Errors
/// As [`Store::open`].
pub fn own_or_make(directory: &Path) -> Result<Owner, Failure> {
    match Store::open(directory) {
        Ok(store) => Ok(Owner::Us(Arc::new(store))),
        Err(store::Error::Busy { socket: Some(socket), .. }) => Ok(Owner::Daemon(Peer::new(directory, &socket))),
        Err(error) => match of_another_user(directory, &error) {
            Some(peer) => Ok(Owner::Daemon(peer)),
            None => Err(error.into()),
        },
    }
}

/// The same for changing what is in it: a store that is not there is an error, and stays so.
///
/// # Errors
/// [`Exit::NotFound`]; as [`Store::open`].
pub fn own(directory: &Path) -> Result<Owner, Failure> {
    // What holds something else is refused by the store, in its own words.
    let is_ours_to_make = match std::fs::read_dir(directory) {
        Ok(mut entries) => entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == "lost+found")),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    if is_ours_to_make {
        return Err(no_store(directory));
    }
    own_or_make(directory)
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

/// Refuses flags that only mean something where this process asks the origin.
///
/// # Errors
/// [`Exit::Usage`].
pub fn refuse_origin_flags(peer: &Peer, origin: &Origin) -> Result<(), Failure> {
    let Origin { anonymous, requester_pays, region, endpoint_url } = origin;
    let flags = [
        (*anonymous, "anonymous"),
        (*requester_pays, "requester-pays"),
        (region.is_some(), "region"),
        (endpoint_url.is_some(), "endpoint-url"),
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
        refuse_origin_flags(&peer, &none).expect("no flag");
        let failure = refuse_origin_flags(&peer, &Origin { endpoint_url: Some("http://x".into()), ..none });
        let failure = failure.expect_err("a flag");
        assert_eq!(failure.exit, Exit::Usage);
        insta::assert_snapshot!(format!("{}\n{}", failure.message, failure.hint.expect("a hint")), @"
        --endpoint-url is of no use here: larder's daemon owns the store `/s`, and decides how origins are reached
        set `endpoint_url` in the daemon's configuration, or name another store with --store
        ");
    }
}
