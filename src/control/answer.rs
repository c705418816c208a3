//! Answers: one JSON value, or events line by line.

use std::convert::Infallible;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use serde::Serialize;
use tokio::sync::mpsc;

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
    /// Sends a line that may be dropped when the reader is slow.
    pub fn offer<T: Serialize>(&self, event: &T) {
        let _ = self.sender.try_send(line(event));
    }

    /// Sends a line that must arrive, if the reader is there.
    pub async fn send<T: Serialize>(&self, event: &T) {
        let _ = self.sender.send(line(event)).await;
    }

    /// Waits until the reader has gone.
    pub async fn reader_gone(&self) {
        self.sender.closed().await;
    }
}

fn line<T: Serialize>(event: &T) -> Bytes {
    let mut text = serde_json::to_vec(event).unwrap_or_default();
    text.push(b'\n');
    text.into()
}
