//! Larder's daemon, as the command line asks it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use larder_init::client::{self, Client};
use larder_init::http::Limits;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;

use crate::fetch::{Cancel, Error};
use crate::report::{Exit, Failure};

/// A daemon takes the store a moment before it listens.
const START_PATIENCE: Duration = Duration::from_secs(5);
const START_PAUSE: Duration = Duration::from_millis(50);
/// Deleting a large model, or waiting for a slow disk, is silent meanwhile. Whether it hangs, another
/// question tells.
pub const PATIENCE: Duration = Duration::from_mins(10);
/// How long it may be silent until it is asked something that costs it nothing, and how long that may
/// take: it says how far it is every few seconds.
const SILENCE_MAX: Duration = Duration::from_secs(10);
const ALIVE_WITHIN: Duration = Duration::from_secs(20);
/// Between two tries to ask it that.
const ALIVE_PAUSE: Duration = Duration::from_millis(500);
/// Events that wait to be shown. The daemon waits when they are not.
const EVENTS_WAITING_MAX: usize = 64;

/// The daemon that owns a store.
#[derive(Debug, Clone)]
pub struct Peer {
    client: Client,
    store: PathBuf,
    /// Its pid and command, where they are known.
    name: Option<String>,
}

impl Peer {
    /// The daemon that owns `store` and takes changes at `socket`.
    pub fn new(store: &Path, socket: &Path) -> Self {
        let limits = Limits { answer_within: PATIENCE, silence_max: PATIENCE };
        Self { client: Client::new(socket).limits(limits), store: store.to_owned(), name: None }
    }

    /// The same, whose lock says which process it is.
    pub fn named(self, name: String) -> Self {
        Self { name: Some(name), ..self }
    }

    /// The store that it owns.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// Whether somebody listens there, or refuses this user: not a socket that was left behind.
    pub fn is_there(&self) -> bool {
        use io::ErrorKind::{PermissionDenied, WouldBlock};
        self.client.reach().map_or_else(|error| matches!(error.kind(), PermissionDenied | WouldBlock), |()| true)
    }

    /// What comes of a question. A daemon that is slow is waited for as long as it answers another; one
    /// that hangs is not.
    async fn heard<T>(&self, cancel: &Cancel, answer: impl Future<Output = T>) -> Result<Result<T, Failure>, Error> {
        let patient = async {
            let mut answer = std::pin::pin!(answer);
            loop {
                if let Ok(heard) = tokio::time::timeout(SILENCE_MAX, &mut answer).await {
                    return Ok(heard);
                }
                tokio::select! {
                    biased;
                    heard = &mut answer => return Ok(heard),
                    alive = self.prove_alive() => alive?,
                }
            }
        };
        cancel.guard(patient).await
    }

    async fn prove_alive(&self) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            let left = ALIVE_WITHIN.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Err(self.hangs());
            }
            let client = self.client.clone().limits(Limits { answer_within: left, silence_max: left });
            let asked = tokio::task::spawn_blocking(move || client.call("GET", "/v1/openapi.json", None).map(drop));
            match asked.await {
                // A connection that nobody takes, and one that was closed: by a daemon that goes, perhaps.
                Ok(Err(client::Error::Broken { .. })) => {}
                Ok(Err(client::Error::Unreachable { source, .. })) if source.kind() == io::ErrorKind::WouldBlock => {}
                _ => return Ok(()),
            }
            tokio::time::sleep(ALIVE_PAUSE).await;
        }
    }

    fn hangs(&self) -> Failure {
        let name = self.name.as_ref().map(|name| format!(", {name},")).unwrap_or_default();
        let message = format!(
            "larder's daemon{name} does not answer at `{}`: not a word within {} s, so it is stopped or hangs",
            self.client.socket().display(),
            (SILENCE_MAX + ALIVE_WITHIN).as_secs()
        );
        Failure::hinted(
            Exit::Origin,
            message,
            "look at its log, and restart it or let it go on (SIGCONT): the same command goes on from there",
        )
    }

    /// Sends a request, once more while the daemon starts.
    fn call(&self, path: &str, body: &Value) -> Result<client::Answer, Failure> {
        let started = Instant::now();
        loop {
            match self.client.call("POST", path, Some(&body.to_string())) {
                Ok(answer) => return Ok(answer),
                Err(client::Error::Unreachable { source, .. })
                    if is_starting(&source) && started.elapsed() < START_PATIENCE =>
                {
                    std::thread::sleep(START_PAUSE);
                }
                Err(error) => return Err(self.failure(error)),
            }
        }
    }

    fn failure(&self, error: client::Error) -> Failure {
        match &error {
            client::Error::Unreachable { source, socket } if source.kind() == io::ErrorKind::PermissionDenied => {
                Failure::hinted(
                    Exit::Denied,
                    format!(
                        "larder's daemon owns the store `{}`, and its socket `{}` refuses this user",
                        self.store.display(),
                        socket.display()
                    ),
                    "run this as root, or as the user that the daemon runs as",
                )
            }
            _ => failure_of(error),
        }
    }

    /// One question, one answer.
    ///
    /// # Errors
    /// The daemon's own, and everything that keeps it from answering; [`Exit::Interrupted`].
    pub async fn ask<T: DeserializeOwned>(
        &self,
        path: &'static str,
        body: Value,
        cancel: &Cancel,
    ) -> Result<T, Failure> {
        let peer = self.clone();
        let asked =
            tokio::task::spawn_blocking(move || peer.call(path, &body)?.text().map_err(|error| peer.failure(error)));
        let interrupted = |_| Failure::interrupted("the daemon may do what it was asked for all the same");
        let text = self
            .heard(cancel, asked)
            .await
            .map_err(interrupted)??
            .map_err(|panic| Failure::new(Exit::Defect, panic.to_string()))??;
        serde_json::from_str(&text).map_err(|error| self.other_version(&error))
    }

    fn other_version(&self, error: &serde_json::Error) -> Failure {
        Failure::hinted(
            Exit::Defect,
            format!(
                "larder's daemon at `{}` says what this larder does not know: {error}",
                self.client.socket().display()
            ),
            "are they of one version? `larder status` and `larder --version` tell",
        )
    }

    /// One question, and an answer that takes time: `each` hears what comes, and answers `Some` when
    /// that was the last. `cancel` ends it at once, and with the connection our interest.
    ///
    /// # Errors
    /// As [`Peer::ask`]; an answer that ends before its last event; [`Exit::Interrupted`].
    pub async fn events<T: DeserializeOwned + Send + 'static, R>(
        &self,
        path: &'static str,
        body: Value,
        cancel: &Cancel,
        mut each: impl FnMut(T) -> Option<R>,
    ) -> Result<R, Failure> {
        let (sender, mut receiver) = mpsc::channel::<Result<T, Failure>>(EVENTS_WAITING_MAX);
        let peer = self.clone();
        // Not waited for: what it reads on is of no use to anybody, and ends with the process.
        tokio::task::spawn_blocking(move || peer.read(path, &body, &sender));
        while let Some(event) = self.heard(cancel, receiver.recv()).await?? {
            if let Some(last) = each(event?) {
                return Ok(last);
            }
        }
        let message =
            format!("larder's daemon at `{}` went away in the middle of its answer", self.client.socket().display());
        Err(Failure::hinted(Exit::Origin, message, AGAIN))
    }

    fn read<T: DeserializeOwned>(&self, path: &str, body: &Value, sender: &mpsc::Sender<Result<T, Failure>>) {
        let mut events = match self.call(path, body) {
            Ok(answer) => answer.events(),
            Err(failure) => return drop(sender.blocking_send(Err(failure))),
        };
        while let Some(event) = events.next() {
            let event = match (event, serde_json::from_str(events.line())) {
                (Err(error), _) => Err(self.failure(error)),
                (Ok(_), Ok(event)) => Ok(event),
                // Of a later version, which says nothing new that must be known.
                (Ok(client::Event::Unknown), Err(_)) => continue,
                (Ok(_), Err(error)) => Err(self.other_version(&error)),
            };
            let ends = event.is_err();
            if sender.blocking_send(event).is_err() || ends {
                return;
            }
        }
    }
}

/// What to do when the daemon stops or is restarted.
const AGAIN: &str = "what has arrived stays: the same command goes on from there";

/// Nobody listens, or not yet.
fn is_starting(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// What keeps a daemon from answering, in our words.
pub fn failure_of(error: client::Error) -> Failure {
    let broken = matches!(error, client::Error::Broken { .. });
    let larder_init::Failure { message, hint, exit_code } = error.into();
    let hint = hint.or_else(|| broken.then(|| AGAIN.to_owned()));
    of_daemon(message, hint, exit_code)
}

/// A failure as the daemon tells it. Nobody interrupted this process: there it is the daemon that
/// stops.
pub fn of_daemon(message: String, hint: Option<String>, exit_code: u8) -> Failure {
    match exit_of(exit_code) {
        Exit::Interrupted => Failure::hinted(Exit::Origin, "larder's daemon is stopping", AGAIN),
        exit => Failure { message, hint, exit },
    }
}

/// An exit code that somebody else told. One that we do not know is a defect.
pub fn exit_of(code: u8) -> Exit {
    const ALL: [Exit; 10] = [
        Exit::Done,
        Exit::Usage,
        Exit::Integrity,
        Exit::NotFound,
        Exit::Origin,
        Exit::Defect,
        Exit::Disk,
        Exit::Busy,
        Exit::Denied,
        Exit::Interrupted,
    ];
    ALL.into_iter().find(|exit| *exit as u8 == code).unwrap_or(Exit::Defect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_stops_is_no_interrupt_of_ours() {
        let stopping = of_daemon("interrupted".into(), None, 130);
        assert_eq!((stopping.exit, stopping.message.as_str()), (Exit::Origin, "larder's daemon is stopping"));
        let other = of_daemon("no".into(), Some("why".into()), 66);
        assert_eq!((other.exit, other.hint.as_deref()), (Exit::NotFound, Some("why")));
        assert_eq!(exit_of(1), Exit::Defect);
    }

    #[test]
    fn a_socket_that_was_left_behind_is_nobody() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sock");
        let peer = Peer::new(directory.path(), &path);
        assert!(!peer.is_there());
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
        assert!(peer.is_there());
        drop(listener);
        assert!(path.exists() && !peer.is_there());
    }
}
