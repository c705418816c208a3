//! Which call is which, and what each answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::Serialize;
use serde_json::json;

use super::answer::{self, Body, Lines, Outbox};
use super::api::{Api, Phase, Rights};
use super::gates::Kind;
use super::request::{self, EnsureBody, ModelBody, ReleaseBody, RemoveBody, Unread, VerifyBody};
use super::{OPENAPI, verify};
use crate::cache::named::Verb;
use crate::cache::{self, Event, LeaseWish, Moving, Ready, Wish};
use crate::report::{Exit, Failure};
use crate::telemetry;

/// How often a caller that waits for the disk hears that it still does.
const SETTLING_INTERVAL: Duration = Duration::from_secs(5);

/// Every call: method, path, and what it takes to make it.
pub const CALLS: &[(Method, &str, Rights)] = &[
    (Method::POST, "/v1/ensure", Rights::Use),
    (Method::GET, "/v1/models", Rights::Use),
    (Method::GET, "/v1/model", Rights::Use),
    (Method::GET, "/v1/status", Rights::Use),
    (Method::GET, "/v1/openapi.json", Rights::Use),
    (Method::POST, "/v1/pin", Rights::Admin),
    (Method::POST, "/v1/unpin", Rights::Admin),
    (Method::POST, "/v1/remove", Rights::Admin),
    (Method::POST, "/v1/verify", Rights::Admin),
    (Method::POST, "/v1/release", Rights::Admin),
];

/// Answers one request, and counts it.
pub async fn answer(api: &Arc<Api>, rights: Rights, request: Request<Incoming>) -> Response<Body> {
    let response = dispatch(api, rights, request).await;
    let socket = match rights {
        Rights::Use => telemetry::Socket::Use,
        Rights::Admin => telemetry::Socket::Admin,
    };
    api.metrics.control_request(socket, response.status().as_u16());
    response
}

/// What a call takes a place of.
fn kind(path: &str) -> Kind {
    match path {
        "/v1/ensure" | "/v1/verify" => Kind::Stream,
        "/v1/status" => Kind::Status,
        "/v1/models" | "/v1/model" | "/v1/openapi.json" => Kind::Look,
        _ => Kind::Change,
    }
}

async fn dispatch(api: &Arc<Api>, rights: Rights, request: Request<Incoming>) -> Response<Body> {
    if let Err(refused) = check(rights, request.method(), request.uri().path()) {
        return *refused.0;
    }
    if *request.method() == Method::POST && api.phase() == Phase::Stopping {
        let failure = Failure::hinted(Exit::Interrupted, "larder's daemon is stopping", "ask again in a moment");
        return answer::refusal(StatusCode::SERVICE_UNAVAILABLE, &failure);
    }
    let path = request.uri().path().to_owned();
    let entered = match api.tables.gates(rights).enter(kind(&path)) {
        Ok(entered) => entered,
        Err(full) => return *full,
    };
    let answered = match path.as_str() {
        "/v1/ensure" => ensure(api, rights, request).await,
        "/v1/models" => models(api).await,
        "/v1/model" => model(api, request.uri().query().unwrap_or_default()).await,
        "/v1/status" => status(api).await,
        "/v1/pin" => set_pinned(api, request, true).await,
        "/v1/unpin" => set_pinned(api, request, false).await,
        "/v1/remove" => remove(api, request).await,
        "/v1/verify" => hash_again(api, request).await,
        "/v1/release" => release(api, request).await,
        _ => Ok(answer::text(StatusCode::OK, "application/json", OPENAPI)),
    };
    answer::with(answered.unwrap_or_else(|refused| *refused.0), entered)
}

/// Whether there is such a call, and whether it may be made here.
fn check(rights: Rights, method: &Method, path: &str) -> Result<(), Refused> {
    let of_path: Vec<_> = CALLS.iter().filter(|(_, known, _)| *known == path).collect();
    let refuse = |status, failure: Failure| Err(Refused::with(status, &failure));
    if of_path.is_empty() {
        let failure = Failure::hinted(Exit::Usage, format!("no call is named `{path}`"), "/v1/openapi.json lists them");
        return refuse(StatusCode::NOT_FOUND, failure);
    }
    let Some((.., needed)) = of_path.iter().find(|(known, ..)| known == method) else {
        let methods: Vec<&str> = of_path.iter().map(|(method, ..)| method.as_str()).collect();
        let failure = Failure::new(Exit::Usage, format!("`{path}` takes {}", methods.join(" or ")));
        let refusal = answer::refusal(StatusCode::METHOD_NOT_ALLOWED, &failure);
        return Err(Refused(Box::new(answer::not_allowed(refusal, &methods))));
    };
    if *needed == Rights::Admin && rights == Rights::Use {
        let failure = Failure::hinted(
            Exit::Denied,
            format!("`{path}` changes what others use, and is not taken at this socket"),
            "ask at the socket that the setting `admin_socket` names",
        );
        return refuse(StatusCode::FORBIDDEN, failure);
    }
    Ok(())
}

/// Boxed, because it is large and rare.
struct Refused(Box<Response<Body>>);

impl Refused {
    fn with(status: StatusCode, failure: &Failure) -> Self {
        Self(Box::new(answer::refusal(status, failure)))
    }
}

impl From<Failure> for Refused {
    fn from(failure: Failure) -> Self {
        Self::with(answer::status_of(failure.exit), &failure)
    }
}

type Answered = Result<Response<Body>, Refused>;

async fn read<T: serde::de::DeserializeOwned>(request: Request<Incoming>) -> Result<T, Refused> {
    match request::read(request.into_body()).await {
        Ok(body) => Ok(body),
        Err(Unread::TooLong) => {
            let failure = Failure::new(Exit::Usage, "the request is longer than any call needs");
            Err(Refused::with(StatusCode::PAYLOAD_TOO_LARGE, &failure))
        }
        Err(Unread::Wrong(failure)) => Err(failure.into()),
    }
}

async fn ensure(api: &Arc<Api>, rights: Rights, request: Request<Incoming>) -> Answered {
    let body: EnsureBody = read(request).await?;
    let wish = body.wish(api, rights)?;
    let (lines, response) = answer::lines();
    let api = Arc::clone(api);
    tokio::spawn(async move {
        tokio::select! {
            // Whoever goes away leaves the flight, and gives back its lease.
            () = lines.reader_gone() => {}
            () = give(&api, &wish, body.sync, &lines) => {}
        }
    });
    Ok(response)
}

async fn give(api: &Arc<Api>, wish: &Wish, sync: bool, lines: &Lines) {
    let granted = async {
        let mut outbox = Outbox::new(lines.clone());
        let tell = &mut |event: Event| outbox.say(&event, !matches!(event, Event::Progress(_)));
        let granted = api.cache.ensure(wish, tell).await;
        outbox.flush().await;
        let granted = granted?;
        if sync {
            settle(api, &granted.ready, lines).await?;
        }
        Ok::<_, Failure>(granted)
    };
    match granted.await {
        Ok(granted) => {
            lines.send(&Event::Ready(granted.ready.clone())).await;
            if wish.lease == LeaseWish::Caller {
                let mut phase = api.phase.clone();
                tokio::select! {
                    () = lines.reader_gone() => {}
                    // The one who waits asks the next daemon.
                    _ = phase.wait_for(|phase| *phase == Phase::Stopping) => {}
                }
            }
        }
        Err(failure) => {
            let Failure { message, hint, exit } = failure;
            lines.send(&Event::Error { message, hint, exit_code: exit as u8 }).await;
        }
    }
}

/// Waits for the disk, and says that it still does.
async fn settle(api: &Arc<Api>, ready: &Ready, lines: &Lines) -> Result<(), Failure> {
    let moving = Moving {
        source: ready.source.clone(),
        bytes_done: ready.bytes_total,
        bytes_total: ready.bytes_total,
        bytes_moved: ready.bytes_moved,
        ..Moving::default()
    };
    let settled = api.cache.settle(true);
    tokio::pin!(settled);
    loop {
        tokio::select! {
            settled = &mut settled => return settled.map(|_| ()),
            () = tokio::time::sleep(SETTLING_INTERVAL) => lines.send(&Event::Progress(moving.clone())).await,
        }
    }
}

async fn models(api: &Arc<Api>) -> Answered {
    let cache = Arc::clone(&api.cache);
    let look = || async move {
        let listed = cache.list().await?;
        encoded(&Listed { models: &listed })
    };
    Ok(answer::written(api.shared.models.get(look).await?))
}

async fn model(api: &Arc<Api>, query: &str) -> Answered {
    let values = |name: &str| -> Option<Vec<String>> {
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let values = pairs.filter(|(key, _)| *key == name).map(|(_, value)| value);
        values.map(|value| Some(percent_encoding::percent_decode_str(value).decode_utf8().ok()?.into_owned())).collect()
    };
    let read = || {
        let name = values("name")?.into_iter().next().filter(|name| !name.is_empty())?;
        Some((name, values("include")?, values("exclude")?, values("endpoint_url")?.into_iter().next()))
    };
    let Some((name, include, exclude, endpoint_url)) = read() else {
        let want = "want /v1/model?name=SOURCE, with include=GLOB and exclude=GLOB where it was pulled with globs, or 6 or more digits of a digest as the name";
        return Err(Failure::new(Exit::Usage, want).into());
    };
    let own = api.cache.endpoints();
    let name = request::name(Verb::Inspect, &name, own, endpoint_url.as_deref(), &include, &exclude)?;
    let shown = api.cache.show(name).await?;
    Ok(answer::json(StatusCode::OK, &shown))
}

async fn status(api: &Arc<Api>) -> Answered {
    let looked = Arc::clone(api);
    let look = || async move {
        let api = Arc::clone(&looked);
        encoded(&looked.looks.status(move || looked_at(&api)).await??)
    };
    Ok(answer::written(api.shared.status.get(look).await?))
}

fn looked_at(api: &Api) -> Result<serde_json::Value, Failure> {
    let status = api.cache.status()?;
    let mut value = serde_json::to_value(&status).unwrap_or_default();
    if let Some(object) = value.as_object_mut() {
        object.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        object.insert("pid".into(), std::process::id().into());
        object.insert("state".into(), api.phase().as_str().into());
        object.insert("started".into(), api.started.into());
        object.insert("store".into(), api.cache.store().view().directory().display().to_string().into());
        object.insert("socket".into(), api.socket.display().to_string().into());
    }
    Ok(value)
}

#[derive(Serialize)]
struct Listed<'a> {
    models: &'a [cache::listing::Listed],
}

fn encoded<T: Serialize>(value: &T) -> Result<Bytes, Failure> {
    serde_json::to_vec(value).map(Into::into).map_err(|error| Failure::new(Exit::Defect, error.to_string()))
}

async fn set_pinned(api: &Arc<Api>, request: Request<Incoming>, pinned: bool) -> Answered {
    let body: ModelBody = read(request).await?;
    let name = body.name(if pinned { Verb::Pin } else { Verb::Unpin }, api.cache.endpoints())?;
    let models = api.cache.set_pinned(name, pinned).await?;
    Ok(answer::json(StatusCode::OK, &json!({"models": models, "pinned": pinned})))
}

async fn remove(api: &Arc<Api>, request: Request<Incoming>) -> Answered {
    let body: RemoveBody = read(request).await?;
    let freed = api.cache.remove(body.names(api.cache.endpoints())?).await?;
    Ok(answer::json(StatusCode::OK, &json!({"removed": body.models(), "bytes_freed": freed})))
}

async fn hash_again(api: &Arc<Api>, request: Request<Incoming>) -> Answered {
    let body: VerifyBody = read(request).await?;
    Ok(verify::answer(api, body.name(api.cache.endpoints())?, body.repair))
}

async fn release(api: &Arc<Api>, request: Request<Incoming>) -> Answered {
    let ReleaseBody { lease } = read(request).await?;
    let leases = api.cache.release(lease).await?;
    Ok(answer::json(StatusCode::OK, &json!({ "released": leases > 0, "leases": leases })))
}
