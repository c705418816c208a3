//! The daemon's protocol: what can be asked, and the answers as values.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::failure::{self, Failure};
use crate::json::{Value, Writer};
use crate::{http, sys};

/// Where the daemon listens unless somebody says otherwise.
pub const SOCKET: &str = "/run/larder/larder.sock";
/// The daemon says something every 5 s at the latest: six times that is a daemon that hangs.
pub const SILENCE_MAX: Duration = Duration::from_secs(30);

/// A daemon, by its socket. Every call is a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    limits: http::Limits,
}

/// Why there is no answer. The texts are for people and name the socket.
#[derive(Debug)]
pub enum Error {
    /// Nobody accepts connections.
    Unreachable {
        /// The socket.
        socket: PathBuf,
        /// What the kernel says.
        source: io::Error,
    },
    /// The connection ended, or fell silent, before the answer was whole.
    Broken {
        /// The socket.
        socket: PathBuf,
        /// How.
        what: String,
    },
    /// What answers does not speak this protocol.
    Protocol {
        /// The socket.
        socket: PathBuf,
        /// What was wrong.
        what: String,
    },
    /// The daemon says no.
    Refused {
        /// The HTTP status, never 2xx.
        status: u16,
        /// Its reason.
        failure: Failure,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { socket, source } => {
                write!(f, "larder's daemon does not answer at `{}`: {source}", socket.display())
            }
            Self::Broken { socket, what } => write!(f, "larder's daemon at `{}` went away: {what}", socket.display()),
            Self::Protocol { socket, what } => {
                write!(f, "what answers at `{}` does not speak larder's protocol: {what}", socket.display())
            }
            Self::Refused { failure, .. } => f.write_str(&failure.message),
        }
    }
}

impl std::error::Error for Error {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Unreachable { .. } | Error::Broken { .. } => Self::new(failure::UNREACHABLE, message),
            Error::Protocol { .. } => Self::new(failure::DEFECT, message)
                .hint("is the socket another program's, or the daemon of another version?"),
            Error::Refused { failure, .. } => failure,
        }
    }
}

/// Who uses a model that is asked for, so that it is not evicted meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lease {
    /// Nobody: it may be evicted at once.
    None,
    /// This connection, for as long as it is open.
    Connection,
    /// An owner by name, such as `pod:UID`.
    Owner(String),
}

/// What [`Client::ensure`] asks for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The URI.
    pub source: String,
    /// Only files that match one of these globs; all where there are none.
    pub include: Vec<String>,
    /// Not the files that match one of these.
    pub exclude: Vec<String>,
    /// Rather fail than hand out a copy that the origin could not be asked about.
    pub fresh: bool,
    /// Do not wait for the bytes, where the node has a mount: reads wait for them there.
    pub lazy: bool,
    /// Who will use it.
    pub lease: Lease,
}

impl Wish {
    fn to_json(&self) -> String {
        let body = Writer::new()
            .string("source", &self.source)
            .strings("include", &self.include)
            .strings("exclude", &self.exclude)
            .literal("fresh", if self.fresh { "true" } else { "false" });
        // A daemon that is older than the word refuses it.
        let body = if self.lazy { body.literal("lazy", "true") } else { body };
        match &self.lease {
            Lease::None => body.literal("lease", "null"),
            Lease::Connection => body.string("lease", "connection"),
            Lease::Owner(owner) => body.string("lease", owner),
        }
        .finish()
    }
}

impl Client {
    /// The daemon that listens at `socket`. Does nothing yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        let limits = http::Limits { answer_within: SILENCE_MAX, silence_max: SILENCE_MAX };
        Self { socket: socket.into(), limits }
    }

    /// The same daemon, waited for no longer than `limits`.
    #[must_use]
    pub fn limits(self, limits: http::Limits) -> Self {
        Self { limits, ..self }
    }

    /// Where it listens.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Whether somebody listens there; says nothing, and does not wait.
    ///
    /// # Errors
    /// What the kernel says; [`io::ErrorKind::WouldBlock`] where nobody takes connections.
    pub fn reach(&self) -> io::Result<()> {
        sys::connect_now(&self.socket).map(drop)
    }

    /// Sends a request with a JSON body or none.
    ///
    /// # Errors
    /// Every way of [`Error`]; a status other than 2xx is [`Error::Refused`].
    pub fn call(&self, method: &str, path: &str, body: Option<&str>) -> Result<Answer, Error> {
        let stream = sys::connect_now(&self.socket)
            .map_err(|source| Error::Unreachable { socket: self.socket.clone(), source })?;
        let response =
            http::exchange(stream, method, path, body, self.limits).map_err(|error| at(&self.socket, error))?;
        let answer = Answer { socket: self.socket.clone(), status: response.status, body: response.body };
        if (200..300).contains(&answer.status) { Ok(answer) } else { Err(answer.refusal()) }
    }

    /// Asks for a model: `POST /v1/ensure`.
    ///
    /// # Errors
    /// As [`Client::call`]; what goes wrong later comes as an event.
    pub fn ensure(&self, wish: &Wish) -> Result<Events, Error> {
        Ok(self.call("POST", "/v1/ensure", Some(&wish.to_json()))?.events())
    }
}

fn at(socket: &Path, error: http::Error) -> Error {
    let socket = socket.to_owned();
    match error {
        http::Error::Broken(what) => Error::Broken { socket, what },
        http::Error::Protocol(what) => Error::Protocol { socket, what },
    }
}

/// An answer of the daemon, its body still to be read.
#[derive(Debug)]
pub struct Answer {
    socket: PathBuf,
    status: u16,
    body: http::Body,
}

impl Answer {
    /// The HTTP status.
    #[must_use]
    pub const fn status(&self) -> u16 {
        self.status
    }

    /// The whole body as text, at most [`http::BODY_LEN_MAX`] bytes.
    ///
    /// # Errors
    /// [`Error::Broken`] and [`Error::Protocol`].
    pub fn text(self) -> Result<String, Error> {
        self.text_within(http::BODY_LEN_MAX)
    }

    fn text_within(self, len_max: usize) -> Result<String, Error> {
        self.body.text(len_max).map_err(|error| at(&self.socket, error))
    }

    /// The whole body as one JSON value.
    ///
    /// # Errors
    /// [`Error::Broken`] and [`Error::Protocol`].
    pub fn json(self) -> Result<Value, Error> {
        self.json_within(http::BODY_LEN_MAX)
    }

    fn json_within(self, len_max: usize) -> Result<Value, Error> {
        let socket = self.socket.clone();
        let text = self.text_within(len_max)?;
        Value::parse(&text)
            .map_err(|error| Error::Protocol { socket, what: format!("its answer is not JSON: {error}") })
    }

    /// The body line by line, each an event.
    #[must_use]
    pub fn events(self) -> Events {
        Events { socket: self.socket, body: self.body, line: String::new() }
    }

    /// `{"error":{"message":..,"hint":..,"exit_code":n}}` as an error.
    fn refusal(self) -> Error {
        let (socket, status) = (self.socket.clone(), self.status);
        let failure = match self.json_within(http::LINE_LEN_MAX) {
            Ok(body) => body.get("error").and_then(failure_of),
            // The body was cut off: the daemon died over it.
            Err(error @ Error::Broken { .. }) => return error,
            Err(_) => None,
        };
        let failure = failure.unwrap_or_else(|| {
            let message = format!("larder's daemon at `{}` answered HTTP {status} without a reason", socket.display());
            Failure::new(failure::DEFECT, message).hint("is it the daemon of another version?")
        });
        Error::Refused { status, failure }
    }
}

/// A failure in the daemon's words, if that is what `value` is.
fn failure_of(value: &Value) -> Option<Failure> {
    let code = value.get("exit_code").and_then(Value::as_u64).and_then(|code| u8::try_from(code).ok());
    Some(Failure {
        message: value.get("message")?.as_str()?.to_owned(),
        hint: value.get("hint").and_then(Value::as_str).map(str::to_owned),
        exit_code: code.filter(|code| *code != 0).unwrap_or(failure::DEFECT),
    })
}

/// How far a pull is. Bytes, files, and bytes per second; all zero while the origin is asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is named as in the protocol")]
pub struct Progress {
    pub bytes_done: u64,
    pub bytes_total: u64,
    pub bytes_moved: u64,
    pub bytes_per_second: u64,
    pub seconds_left: Option<u64>,
    pub files_done: u64,
    pub files_total: u64,
    pub connections: u64,
    pub retries: u64,
    /// How many wait for the same pull, this one included.
    pub waiters: u64,
}

/// A model that is here, whole and verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ready {
    /// The source as the daemon writes it.
    pub source: String,
    /// The model's digest: 64 hexadecimal digits. While it arrives, the name of its listing.
    pub digest: String,
    /// Whether some of it is still missing.
    pub arriving: bool,
    /// The directory with its files, absolute, as the daemon sees it.
    pub path: PathBuf,
    /// How many files it has.
    pub files: u64,
    /// Bytes of all of them.
    pub bytes_total: u64,
    /// Bytes that came over the network for it.
    pub bytes_moved: u64,
    /// Bytes that were here already.
    pub bytes_here: u64,
    /// How long it took the daemon.
    pub elapsed: Duration,
    /// The lease, if one was asked for and given.
    pub lease: Option<String>,
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// About once a second.
    Progress(Progress),
    /// Something a person should know.
    Warning(String),
    /// The last one, when all went well.
    Ready(Ready),
    /// The last one, when it did not.
    Error(Failure),
    /// One that this version does not know.
    Unknown,
}

impl Event {
    fn parse(line: &str) -> Result<Self, String> {
        let value = Value::parse(line).map_err(|error| format!("an event is not JSON: {error}"))?;
        let kind = value.get("event").and_then(Value::as_str).ok_or("an event has no name")?;
        Ok(match kind {
            "progress" => Self::Progress(progress_of(&value)),
            "warning" => Self::Warning(text_of(&value, "message")?),
            "ready" => Self::Ready(ready_of(&value)?),
            "error" => Self::Error(failure_of(&value).ok_or("an error has no message")?),
            _ => Self::Unknown,
        })
    }
}

fn number_of(value: &Value, name: &str) -> Option<u64> {
    value.get(name).and_then(Value::as_u64)
}

fn text_of(value: &Value, name: &str) -> Result<String, String> {
    let text = value.get(name).and_then(Value::as_str);
    text.map(str::to_owned).ok_or_else(|| format!("an event has no `{name}`"))
}

fn progress_of(value: &Value) -> Progress {
    let number = |name| number_of(value, name).unwrap_or(0);
    Progress {
        bytes_done: number("bytes_done"),
        bytes_total: number("bytes_total"),
        bytes_moved: number("bytes_moved"),
        bytes_per_second: number("bytes_per_second"),
        seconds_left: number_of(value, "seconds_left"),
        files_done: number("files_done"),
        files_total: number("files_total"),
        connections: number("connections"),
        retries: number("retries"),
        waiters: number("waiters"),
    }
}

fn ready_of(value: &Value) -> Result<Ready, String> {
    let needed = |name| number_of(value, name).ok_or_else(|| format!("an event has no `{name}`"));
    let digest = text_of(value, "digest")?;
    if !is_digest(&digest) {
        return Err("the digest of a model has not 64 hexadecimal digits".to_owned());
    }
    let path = text_of(value, "path")?;
    if !path.starts_with('/') || path.contains('\0') || path.split('/').any(|name| name == "..") {
        return Err("the path of a model is not absolute".to_owned());
    }
    Ok(Ready {
        source: text_of(value, "source")?,
        digest,
        arriving: matches!(value.get("arriving"), Some(Value::Bool(true))),
        path: PathBuf::from(path),
        files: needed("files")?,
        bytes_total: needed("bytes_total")?,
        bytes_moved: number_of(value, "bytes_moved").unwrap_or(0),
        bytes_here: number_of(value, "bytes_here").unwrap_or(0),
        elapsed: Duration::from_millis(value.get("seconds").and_then(Value::as_thousandths).unwrap_or(0)),
        lease: value.get("lease").and_then(Value::as_str).map(str::to_owned),
    })
}

/// Whether a name is a digest as larder writes it.
pub(crate) fn is_digest(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The events of an answer, as they come. Dropping it closes the connection, and with it ends a
/// lease that the connection holds.
#[derive(Debug)]
pub struct Events {
    socket: PathBuf,
    body: http::Body,
    line: String,
}

impl Events {
    /// The line that the last event was read from.
    #[must_use]
    pub fn line(&self) -> &str {
        &self.line
    }

    /// True until the daemon closes the connection. Afterwards no event can be read.
    pub fn is_open(&mut self) -> bool {
        self.body.is_open()
    }
}

impl Iterator for Events {
    type Item = Result<Event, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.line.clear();
        loop {
            match self.body.line() {
                Ok(Some(line)) if line.trim_ascii().is_empty() => {}
                Ok(Some(line)) => {
                    self.line.push_str(line.trim_ascii());
                    let event = Event::parse(&self.line);
                    return Some(event.map_err(|what| Error::Protocol { socket: self.socket.clone(), what }));
                }
                Ok(None) => return None,
                Err(error) => return Some(Err(at(&self.socket, error))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_written_as_the_protocol_has_it() {
        let wish = Wish {
            source: "s3://b/\"m\"/".to_owned(),
            include: vec!["*.json".to_owned()],
            exclude: Vec::new(),
            fresh: false,
            lazy: false,
            lease: Lease::Owner("pod:1".to_owned()),
        };
        let expected = r#"{"source":"s3://b/\"m\"/","include":["*.json"],"exclude":[],"fresh":false,"lease":"pod:1"}"#;
        assert_eq!(wish.to_json(), expected);
        let lazy = Wish { lazy: true, ..wish.clone() };
        assert!(lazy.to_json().ends_with(r#""fresh":false,"lazy":true,"lease":"pod:1"}"#));
        let wish = Wish { fresh: true, lease: Lease::Connection, ..wish };
        assert!(wish.to_json().ends_with(r#""fresh":true,"lease":"connection"}"#));
        assert!(Wish { lease: Lease::None, ..wish }.to_json().ends_with(r#""lease":null}"#));
    }

    #[test]
    fn events_are_read_as_the_protocol_has_them() {
        let progress = r#"{"event":"progress","source":"s","bytes_done":1,"bytes_total":2,"bytes_moved":3,"bytes_per_second":4.5,"seconds_left":null,"files_done":6,"files_total":7,"connections":8,"retries":9,"waiters":10,"new":[]}"#;
        let expected = Progress {
            bytes_done: 1,
            bytes_total: 2,
            bytes_moved: 3,
            bytes_per_second: 4,
            seconds_left: None,
            files_done: 6,
            files_total: 7,
            connections: 8,
            retries: 9,
            waiters: 10,
        };
        assert_eq!(Event::parse(progress), Ok(Event::Progress(expected)));
        let error = r#"{"event":"error","message":"no","hint":null,"exit_code":66}"#;
        assert_eq!(Event::parse(error), Ok(Event::Error(Failure::new(66, "no"))));
        assert_eq!(Event::parse(r#"{"event":"warning","message":"w"}"#), Ok(Event::Warning("w".to_owned())));
        assert_eq!(Event::parse(r#"{"event":"later"}"#), Ok(Event::Unknown));
        for bad in ["", "[]", "{}", r#"{"event":1}"#, r#"{"event":"warning"}"#, r#"{"event":"error"}"#] {
            assert!(Event::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_exit_code_is_never_success() {
        for code in ["0", "256", "-1", "\"66\"", "null"] {
            let line = format!(r#"{{"event":"error","message":"no","exit_code":{code}}}"#);
            assert_eq!(Event::parse(&line), Ok(Event::Error(Failure::new(failure::DEFECT, "no"))), "{code}");
        }
    }

    #[test]
    fn a_model_has_an_absolute_path_and_a_digest() {
        let ready = |path: &str, digest: &str| {
            let line = Writer::new()
                .string("event", "ready")
                .string("source", "s")
                .string("digest", digest)
                .string("path", path)
                .literal("files", "2")
                .literal("bytes_total", "3")
                .literal("seconds", "0.25")
                .finish();
            Event::parse(&line)
        };
        let digest = "0f".repeat(32);
        let Ok(Event::Ready(model)) = ready("/a/b", &digest) else { panic!("no model") };
        assert_eq!((model.files, model.bytes_total, model.elapsed), (2, 3, Duration::from_millis(250)));
        for path in ["", "a", "/a/../b", "/..", "/a\0b"] {
            assert!(ready(path, &digest).is_err(), "{path:?}");
        }
        for digest in ["", "0F", &"0F".repeat(32), &"0f".repeat(33)] {
            assert!(ready("/a", digest).is_err(), "{digest:?}");
        }
    }
}
