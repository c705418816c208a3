//! What is served over TCP: metrics and health, nothing that changes anything or names a model.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::runtime::Handle;

use super::answer::{self, Body};
use super::api::{Api, Phase};
use crate::net::Slots;
use crate::telemetry::CONTENT_TYPE;

/// How long all connections of kubelet may be at work while it makes others.
const KUBELET_PATIENCE: Duration = Duration::from_mins(1);
const PLAIN: &str = "text/plain; charset=utf-8";

/// Answers a scrape or a probe.
pub async fn answer(api: &Arc<Api>, request: Request<Incoming>) -> Response<Body> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let refusal = answer::text(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET\n");
        return answer::not_allowed(refusal, &["GET", "HEAD"]);
    }
    match request.uri().path() {
        "/metrics" => metrics(api).await,
        "/healthz" => health(api).await,
        "/readyz" => match api.phase() {
            Phase::Stopping => answer::text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, "stopping\n"),
            // Whoever asks for a model would be made to wait for a path in the mount.
            Phase::Recovering | Phase::Serving if api.cache.mount_status().is_some_and(|mount| !mount.is_up()) => {
                answer::text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, "the mount is not up yet\n")
            }
            Phase::Recovering | Phase::Serving => match full(api) {
                Some(full) => answer::text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, full),
                None => answer::text(StatusCode::OK, PLAIN, "ready\n"),
            },
        },
        _ => answer::text(StatusCode::NOT_FOUND, PLAIN, "/metrics, /healthz and /readyz are here\n"),
    }
}

async fn metrics(api: &Arc<Api>) -> Response<Body> {
    let Ok(_entered) = api.tables.metrics.try_acquire() else {
        return answer::text(
            StatusCode::SERVICE_UNAVAILABLE,
            PLAIN,
            "too many scrapes wait for their answer already\n",
        );
    };
    api.metrics.tasks(Handle::current().metrics().num_alive_tasks());
    let cache = Arc::clone(&api.cache);
    let looked = Arc::clone(api);
    let look = || async move { Ok(looked.looks.status(move || cache.scrape()).await??.into()) };
    match api.shared.metrics.get(look).await {
        Ok(text) => answer::text(StatusCode::OK, CONTENT_TYPE, text),
        Err(failure) => answer::text(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{}\n", failure.message)),
    }
}

/// Healthy while the disk answers, and kubelet is not turned away for good: a daemon that hangs
/// helps nobody.
async fn health(api: &Arc<Api>) -> Response<Body> {
    let deaf = api.kubelet.iter().find(|slots| slots.turns_away_for().is_some_and(|since| since > KUBELET_PATIENCE));
    if let Some(slots) = deaf {
        let since = KUBELET_PATIENCE.as_secs();
        let problem = format!("kubelet has been turned away for {since} s{}\n", at_work(slots));
        return answer::text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, problem);
    }
    let cache = Arc::clone(&api.cache);
    match api.looks.health(move || cache.store().space()).await {
        // No reason to start it again: it serves what is here, and another start would not do better.
        Ok(Ok(_)) => match api.cache.store().unwritable() {
            Some(why) => answer::text(StatusCode::OK, PLAIN, format!("read-only: {why}\n")),
            None => answer::text(StatusCode::OK, PLAIN, "healthy\n"),
        },
        Ok(Err(error)) => answer::text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{error}\n")),
        Err(failure) => answer::text(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("{}\n", failure.message)),
    }
}

/// Which listener has no place for another connection.
fn full(api: &Api) -> Option<String> {
    let mut all = api.tables.sockets().into_iter().chain(&api.kubelet);
    all.find(|slots| slots.is_full()).map(|slots| format!("nobody else can connect{}\n", at_work(slots)))
}

fn at_work(slots: &Slots) -> String {
    format!(": all {} connections of the listener `{}` are at work", slots.most(), slots.listener().as_str())
}
