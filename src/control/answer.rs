//! Answers: one JSON value, or events line by line.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, SizeHint};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use crate::report::{Exit, Failure};

/// Lines that wait for a slow reader. Progress beyond is dropped: the next line says more.
const LINES_WAITING_MAX: usize = 64;

/// The body of every answer.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// One JSON value.
pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Response<Body> {
    let text = serde_json::to_vec(value).unwrap_or_default();
    with_type(status, "application/json", Full::new(Bytes::from(text)).boxed_unsync())
}

/// JSON that is written already.
pub fn written(text: Bytes) -> Response<Body> {
    with_type(StatusCode::OK, "application/json", Full::new(text).boxed_unsync())
}

/// Text as it is.
pub fn text(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response<Body> {
    with_type(status, kind, Full::new(text.into()).boxed_unsync())
}

/// A refusal in the words of the contract.
pub fn refusal(status: StatusCode, failure: &Failure) -> Response<Body> {
    json(
        status,
        &serde_json::json!({"error": {
            "message": failure.message, "hint": failure.hint, "exit_code": failure.exit as u8,
        }}),
    )
}

/// Says which methods a path takes, as an answer 405 must.
pub fn not_allowed(mut response: Response<Body>, methods: &[&str]) -> Response<Body> {
    if let Ok(value) = header::HeaderValue::from_str(&methods.join(", ")) {
        response.headers_mut().insert(header::ALLOW, value);
    }
    response
}

/// The status that goes with an exit code.
pub const fn status_of(exit: Exit) -> StatusCode {
    match exit {
        Exit::Done => StatusCode::OK,
        Exit::Usage => StatusCode::BAD_REQUEST,
        Exit::NotFound => StatusCode::NOT_FOUND,
        Exit::Denied => StatusCode::FORBIDDEN,
        Exit::Busy => StatusCode::CONFLICT,
        Exit::Interrupted => StatusCode::SERVICE_UNAVAILABLE,
        Exit::Origin => StatusCode::BAD_GATEWAY,
        Exit::Disk => StatusCode::INSUFFICIENT_STORAGE,
        Exit::Integrity | Exit::Defect => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn with_type(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

/// The answer, which has `guard` for as long as its body is read.
pub fn with<G: Send + Unpin + 'static>(response: Response<Body>, guard: G) -> Response<Body> {
    response.map(|body| Guarded { body, _guard: guard }.boxed_unsync())
}

struct Guarded<G> {
    body: Body,
    _guard: G,
}

impl<G: Unpin> hyper::body::Body for Guarded<G> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The sending side of an answer that takes time.
#[derive(Debug, Clone)]
pub struct Lines {
    sender: mpsc::Sender<Bytes>,
}

/// An answer whose head goes out at once, and the place where its lines go in.
pub fn lines() -> (Lines, Response<Body>) {
    let (sender, receiver) = mpsc::channel(LINES_WAITING_MAX);
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|line: Bytes| (line, receiver))
    });
    let body = StreamBody::new(stream.map(|line| Ok::<_, Infallible>(Frame::data(line)))).boxed_unsync();
    (Lines { sender }, with_type(StatusCode::OK, "application/x-ndjson", body))
}

impl Lines {
    /// Sends a line that must arrive, if the reader is there.
    pub async fn send<T: Serialize>(&self, event: &T) {
        let _ = self.sender.send(line(event)).await;
    }

    /// Waits until the reader has gone.
    pub async fn reader_gone(&self) {
        self.sender.closed().await;
    }
}

/// Lines from where nobody can wait for a slow reader. Those that matter are kept until there is
/// room; progress is not.
#[derive(Debug)]
pub struct Outbox {
    lines: Lines,
    kept: VecDeque<Bytes>,
}

impl Outbox {
    /// An empty one.
    pub const fn new(lines: Lines) -> Self {
        Self { lines, kept: VecDeque::new() }
    }

    /// Sends a line, or keeps it, or drops it where it does not matter.
    pub fn say<T: Serialize>(&mut self, event: &T, matters: bool) {
        while let Some(first) = self.kept.pop_front() {
            if let Err(TrySendError::Full(first)) = self.lines.sender.try_send(first) {
                self.kept.push_front(first);
                break;
            }
        }
        let line = line(event);
        if !self.kept.is_empty() {
            if matters {
                self.kept.push_back(line);
            }
        } else if let Err(TrySendError::Full(line)) = self.lines.sender.try_send(line)
            && matters
        {
            self.kept.push_back(line);
        }
    }

    /// Sends what was kept.
    pub async fn flush(&mut self) {
        for line in self.kept.drain(..) {
            let _ = self.lines.sender.send(line).await;
        }
    }
}

fn line<T: Serialize>(event: &T) -> Bytes {
    let mut text = serde_json::to_vec(event).unwrap_or_default();
    text.push(b'\n');
    text.into()
}
