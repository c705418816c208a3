//! Connections: one request each, with limits on number and patience.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use super::answer::{self, Body};
use super::api::{Api, Rights};
use super::bind::Bound;
use super::gates::Gates;
use super::{routes, scrape};
use crate::net::{Patient, Silence, Slot, Slots, accept};
use crate::report::{Exit, Failure};
use crate::telemetry::{Listener, Metrics};

/// A caller that takes longer to say what it wants is not one.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// A caller that reads nothing for longer does not want the answer.
const READ_PATIENCE: Duration = Duration::from_mins(2);
/// More pods than a node has, each waiting for some models.
const CONNECTIONS_USE_MAX: usize = 2048;
/// People and pipelines.
const CONNECTIONS_ADMIN_MAX: usize = 128;
/// Scrapes and probes.
const CONNECTIONS_SCRAPE_MAX: usize = 32;
/// Of those, scrapes: probes have the others.
const SCRAPES_MAX: usize = 8;
/// Bytes of a request's head.
const HEAD_LEN_MAX: usize = 16 << 10;

/// Connections of every listener here.
#[derive(Debug)]
pub struct Tables {
    uses: Arc<Slots>,
    admin: Arc<Slots>,
    scrapes: Arc<Slots>,
    use_gates: Gates,
    admin_gates: Gates,
    /// Of those who scrape, how many wait for metrics.
    pub(super) metrics: Semaphore,
}

impl Tables {
    /// Nobody is connected yet.
    #[must_use]
    pub fn new(metrics: &Arc<Metrics>) -> Self {
        let silence = Silence { first: HEAD_PATIENCE, between: READ_PATIENCE };
        let slots = |listener, most| Slots::new(listener, most, silence, Arc::clone(metrics));
        Self {
            uses: slots(Listener::Use, CONNECTIONS_USE_MAX),
            admin: slots(Listener::Admin, CONNECTIONS_ADMIN_MAX),
            scrapes: slots(Listener::Scrape, CONNECTIONS_SCRAPE_MAX),
            use_gates: Gates::new(Rights::Use),
            admin_gates: Gates::new(Rights::Admin),
            metrics: Semaphore::new(SCRAPES_MAX),
        }
    }

    const fn of(&self, rights: Rights) -> &Arc<Slots> {
        match rights {
            Rights::Use => &self.uses,
            Rights::Admin => &self.admin,
        }
    }

    pub(super) const fn gates(&self, rights: Rights) -> &Gates {
        match rights {
            Rights::Use => &self.use_gates,
            Rights::Admin => &self.admin_gates,
        }
    }

    /// Those of the two sockets.
    pub(super) const fn sockets(&self) -> [&Arc<Slots>; 2] {
        [&self.uses, &self.admin]
    }
}

/// Answers at a unix socket until `stop` says true. Connections that are open then go on.
pub async fn serve(listener: Bound, rights: Rights, api: Arc<Api>, mut stop: watch::Receiver<bool>) {
    let slots = Arc::clone(api.tables.of(rights));
    let stopped = async move { drop(stop.wait_for(|stop| *stop).await) };
    accept(listener, slots, stopped, |stream, slot| {
        let api = Arc::clone(&api);
        async move { converse(stream, slot, |request| routes::answer(&api, rights, request)).await }
    })
    .await;
}

/// Answers scrapes and probes over TCP, and nothing else.
pub async fn serve_scrapes(listener: TcpListener, api: Arc<Api>, mut stop: watch::Receiver<bool>) {
    let slots = Arc::clone(&api.tables.scrapes);
    let stopped = async move { drop(stop.wait_for(|stop| *stop).await) };
    accept(listener, slots, stopped, |stream, slot| {
        let api = Arc::clone(&api);
        async move { converse(stream, slot, |request| scrape::answer(&api, request)).await }
    })
    .await;
}

/// One connection, one request.
async fn converse<S, F, A>(stream: S, slot: Slot, answer: A)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>>,
{
    let service = service_fn(|request| {
        let (work, answer) = (slot.work(), answer(request));
        async move {
            let Some(work) = work else { return Ok(leaving()) };
            Ok::<_, Infallible>(answer::with(answer.await, work))
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_LEN_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(Patient::new(stream, READ_PATIENCE)), service);
    tokio::select! {
        ended = pin!(connection) => if let Err(error) = ended {
            // Whoever went away, or never spoke HTTP, cannot be told.
            tracing::debug!(%error, "a connection ended early");
        },
        why = slot.leaves() => tracing::debug!(?why, "a connection was ended"),
    }
}

fn leaving() -> Response<Body> {
    let failure = Failure::hinted(Exit::Busy, "there are too many connections", "ask again in a moment");
    answer::refusal(StatusCode::SERVICE_UNAVAILABLE, &failure)
}
