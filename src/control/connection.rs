//! Listeners and their connections: one request each, with limits on number and patience.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};

use super::answer::{self, Body};
use super::api::{Api, Rights};
use super::{routes, scrape};
use crate::report::{Exit, Failure};

/// A caller that takes longer to say what it wants is not one.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
/// More pods than a node has, each waiting for some models.
const CONNECTIONS_USE_MAX: usize = 2048;
/// People and pipelines.
const CONNECTIONS_ADMIN_MAX: usize = 128;
/// Scrapes and probes.
const CONNECTIONS_SCRAPE_MAX: usize = 32;
/// After a failure to accept, such as no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of a request's head.
const HEAD_LEN_MAX: usize = 16 << 10;

/// Answers at a unix socket until `stop` says true. Connections that are open then go on.
pub async fn serve(listener: UnixListener, rights: Rights, api: Arc<Api>, mut stop: watch::Receiver<bool>) {
    let most = match rights {
        Rights::Use => CONNECTIONS_USE_MAX,
        Rights::Admin => CONNECTIONS_ADMIN_MAX,
    };
    let slots = Arc::new(Semaphore::new(most));
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (api, slot) = (Arc::clone(&api), Arc::clone(&slots).try_acquire_owned());
                tokio::spawn(async move {
                    match slot {
                        Ok(_slot) => converse(stream, |request| routes::answer(&api, rights, request)).await,
                        Err(_) => converse(stream, async |_| too_many(most)).await,
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers scrapes and probes over TCP, and nothing else.
pub async fn serve_scrapes(listener: TcpListener, api: Arc<Api>, mut stop: watch::Receiver<bool>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_SCRAPE_MAX));
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (api, slot) = (Arc::clone(&api), Arc::clone(&slots).try_acquire_owned());
                tokio::spawn(async move {
                    match slot {
                        Ok(_slot) => converse(stream, |request| scrape::answer(&api, request)).await,
                        Err(_) => converse(stream, async |_| too_many(CONNECTIONS_SCRAPE_MAX)).await,
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection, one request.
async fn converse<S, F, A>(stream: S, answer: A)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>) -> F,
    F: Future<Output = Response<Body>>,
{
    let service = service_fn(|request| {
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .max_buf_size(HEAD_LEN_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        // Whoever went away, or never spoke HTTP, cannot be told.
        tracing::debug!(%error, "a connection ended early");
    }
}

fn too_many(most: usize) -> Response<Body> {
    let message = format!("there are {most} open calls already");
    let failure = Failure::hinted(Exit::Busy, message, "ask again in a moment");
    answer::refusal(StatusCode::SERVICE_UNAVAILABLE, &failure)
}
