//! What is served over TCP: metrics and health, nothing that changes anything or names a model.

use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;

use super::answer::{self, Body};
use super::api::{Api, Phase};
use crate::telemetry::CONTENT_TYPE;

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
            Phase::Recovering | Phase::Serving => answer::text(StatusCode::OK, PLAIN, "ready\n"),
        },
        _ => answer::text(StatusCode::NOT_FOUND, PLAIN, "/metrics, /healthz and /readyz are here\n"),
    }
}

async fn metrics(api: &Arc<Api>) -> Response<Body> {
    let cache = Arc::clone(&api.cache);
    let looked = Arc::clone(api);
    let look = || async move { Ok(looked.looks.status(move || cache.scrape()).await??.into()) };
    match api.shared.metrics.get(look).await {
        Ok(text) => answer::text(StatusCode::OK, CONTENT_TYPE, text),
        Err(failure) => answer::text(StatusCode::INTERNAL_SERVER_ERROR, PLAIN, format!("{}\n", failure.message)),
    }
}

/// Healthy while the disk answers: a daemon that hangs on a dead disk helps nobody.
async fn health(api: &Arc<Api>) -> Response<Body> {
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
