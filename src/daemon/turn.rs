//! The daemon's turn at a store that another process owns.

use std::thread;
use std::time::{Duration, Instant};

use super::stop::Stop;
use crate::config::Config;
use crate::report::Failure;
use crate::store::{self, Store};

/// How often it is tried to own it.
const INTERVAL: Duration = Duration::from_millis(100);

/// Owns the store, or returns none where it is told to stop before that. A command that owns it is
/// waited for, as its lock ends with it. So is a daemon that may be on its way out, for
/// `stop_within`.
///
/// # Errors
/// As [`Store::open_as_it_is`].
pub fn own(config: &Config, stop: &Stop) -> Result<Option<Store>, Failure> {
    let began = Instant::now();
    let mut told = None;
    loop {
        let (owner, is_daemon) = match Store::open_as_it_is(&config.store, Some(&config.admin_socket)) {
            Err(store::Error::Busy { owner, socket, .. })
                if socket.is_none() || began.elapsed() < config.stop_within =>
            {
                (owner, socket.is_some())
            }
            other => return Ok(Some(other?)),
        };
        if stop.is_asked() {
            return Ok(None);
        }
        if told.as_ref() != Some(&owner) {
            let store = config.store.display();
            let how_long = if is_daemon { "no longer than `stop_within`" } else { "until it ends" };
            tracing::warn!("waiting for {owner}, which owns the store `{store}`: {how_long}");
            told = Some(owner);
        }
        thread::sleep(INTERVAL);
    }
}
