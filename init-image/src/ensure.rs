//! Asking for a model until there is an answer: over a daemon that is not there yet, restarts, or
//! is killed half-way. The daemon resumes the pull; what is needed here is to ask again.

use std::io;
use std::time::{Duration, Instant};

use crate::client::{self, Client, Event, Events, Ready, Wish};
use crate::failure::{self, Failure};
use crate::http;

/// The first wait before asking again; each wait is twice the one before.
pub const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// No wait is longer.
pub const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// The daemon answers at once, if only that it works on it.
const HEAD_MAX: Duration = Duration::from_secs(15);
/// A daemon that says something every 5 s is none that hangs, however little is left of the timeout.
const SILENCE_MIN: Duration = Duration::from_secs(10);
/// How long a socket may refuse this user before that is the answer: a daemon that just started
/// sets the mode of its socket a moment after it made it.
const DENIED_MAX: Duration = Duration::from_secs(2);

/// What happens meanwhile.
#[derive(Debug)]
pub enum News<'a> {
    /// The daemon said something; `line` is how.
    Event {
        /// What.
        event: &'a Event,
        /// The line it was read from.
        line: &'a str,
    },
    /// There is no daemon, or it went away.
    Waiting {
        /// One sentence.
        why: &'a str,
    },
}

/// A model, and the connection that may hold its lease.
#[derive(Debug)]
pub struct Granted {
    /// The model.
    pub ready: Ready,
    events: Events,
}

impl Granted {
    /// Whether a lease of kind [`client::Lease::Connection`] still holds.
    pub fn is_held(&mut self) -> bool {
        self.events.is_open()
    }
}

/// One model being asked for.
#[derive(Debug)]
pub struct Ensure {
    client: Client,
    wish: Wish,
    timeout: Duration,
    /// Time without a word from a daemon since the pull last got further.
    lost: Duration,
    backoff: Duration,
    denied_since: Option<Instant>,
    bytes_done_max: u64,
}

/// How one connection ended.
enum Ending {
    Granted(Box<Granted>),
    Failed(Failure),
    /// Ask again, because of this.
    Again(String),
}

impl Ensure {
    /// Asks for nothing yet. `timeout` is how long to go without a daemon in all, starting anew
    /// whenever the pull has got further; a pull that takes long is not cut off.
    #[must_use]
    pub const fn new(client: Client, wish: Wish, timeout: Duration) -> Self {
        Self {
            client,
            wish,
            timeout,
            lost: Duration::ZERO,
            backoff: BACKOFF_MIN,
            denied_since: None,
            bytes_done_max: 0,
        }
    }

    /// Asks, and again where the daemon went away, and tells what happens. Can be called again
    /// when the model was gone before it could be used.
    ///
    /// # Errors
    /// What the daemon says; no daemon until the timeout; something else at the socket.
    pub fn run(&mut self, tell: &mut dyn FnMut(News<'_>)) -> Result<Granted, Failure> {
        loop {
            let why = match self.attempt(tell) {
                Ending::Granted(granted) => return Ok(*granted),
                Ending::Failed(failure) => return Err(failure),
                Ending::Again(why) => why,
            };
            let left = self.timeout.saturating_sub(self.lost);
            if left.is_zero() {
                return Err(self.gave_up(&why));
            }
            tell(News::Waiting { why: &why });
            let pause = self.backoff.min(left);
            std::thread::sleep(pause);
            self.lost += pause;
            self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        }
    }

    fn attempt(&mut self, tell: &mut dyn FnMut(News<'_>)) -> Ending {
        let mut last_word = Instant::now();
        let ending = self.converse(&mut last_word, tell);
        // Only silence counts against the timeout; a daemon at work does not.
        self.lost += last_word.elapsed();
        ending
    }

    /// One connection. Notes in `last_word` when the daemon last said something.
    fn converse(&mut self, last_word: &mut Instant, tell: &mut dyn FnMut(News<'_>)) -> Ending {
        // A daemon that accepts and says nothing must not outlast the timeout.
        let left = self.timeout.saturating_sub(self.lost).max(Duration::from_secs(1));
        let limits = http::Limits {
            answer_within: HEAD_MAX.min(left),
            silence_max: client::SILENCE_MAX.min(left.max(SILENCE_MIN)),
        };
        let mut events = match self.client.clone().limits(limits).ensure(&self.wish) {
            Ok(events) => events,
            Err(error) => return self.judge(error),
        };
        self.denied_since = None;
        while let Some(event) = events.next() {
            let event = match event {
                Ok(event) => event,
                Err(error) => return self.judge(error),
            };
            *last_word = Instant::now();
            if let Event::Error(failure) = &event
                && failure.exit_code == failure::INTERRUPTED
            {
                // Nobody interrupted this process: the daemon is being stopped.
                return Ending::Again("larder's daemon is stopping".to_owned());
            }
            tell(News::Event { event: &event, line: events.line() });
            match event {
                Event::Progress(progress) if progress.bytes_done > self.bytes_done_max => {
                    self.bytes_done_max = progress.bytes_done;
                    self.got_on();
                }
                Event::Ready(ready) => {
                    self.got_on();
                    return Ending::Granted(Box::new(Granted { ready, events }));
                }
                Event::Error(failure) => return Ending::Failed(failure),
                Event::Progress(_) | Event::Warning(_) | Event::Unknown => {}
            }
        }
        Ending::Again(format!(
            "larder's daemon at `{}` went away: its answer has no end",
            self.client.socket().display()
        ))
    }

    const fn got_on(&mut self) {
        self.lost = Duration::ZERO;
        self.backoff = BACKOFF_MIN;
    }

    /// Whether asking again can help.
    fn judge(&mut self, error: client::Error) -> Ending {
        let why = error.to_string();
        match error {
            client::Error::Unreachable { source, .. } => match source.kind() {
                io::ErrorKind::InvalidInput => Ending::Failed(Failure::new(failure::USAGE, why)),
                io::ErrorKind::PermissionDenied => {
                    if self.denied_since.get_or_insert_with(Instant::now).elapsed() < DENIED_MAX {
                        return Ending::Again(why);
                    }
                    let hint = "run this container as a user or group that may write to the socket (securityContext)";
                    Ending::Failed(Failure::new(failure::USAGE, why).hint(hint))
                }
                _ => Ending::Again(why),
            },
            // 429 and 503: too many requests, or a daemon that starts or stops.
            client::Error::Broken { .. } | client::Error::Refused { status: 429 | 503, .. } => Ending::Again(why),
            error @ (client::Error::Protocol { .. } | client::Error::Refused { .. }) => Ending::Failed(error.into()),
        }
    }

    fn gave_up(&self, why: &str) -> Failure {
        let socket = self.client.socket();
        let directory = socket.parent().unwrap_or(socket).display();
        Failure::new(failure::UNREACHABLE, format!("gave up after {} s: {why}", self.timeout.as_secs())).hint(format!(
            "is larder's DaemonSet running on this node, and is the hostPath directory `{directory}` mounted here?"
        ))
    }
}
