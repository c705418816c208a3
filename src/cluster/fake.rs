//! An API server of a few lines: objects by path, lists, watches, and the three kinds of patches. It
//! speaks what a real one speaks over a real socket, and can refuse.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::{StreamExt as _, stream};
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;

type Body = UnsyncBoxBody<Bytes, Infallible>;

#[derive(Debug)]
pub struct Fake {
    objects: Mutex<BTreeMap<String, Value>>,
    /// Everything that happened; a resource version is a place in it.
    history: Mutex<Vec<(String, Value)>>,
    news: watch::Sender<()>,
    /// Paths that begin so are answered with this status.
    refused: Mutex<Vec<(String, u16)>>,
    /// Method and path of every request.
    pub seen: Mutex<Vec<String>>,
}

impl Fake {
    pub async fn start() -> (Arc<Self>, Client) {
        let fake = Arc::new(Self {
            objects: Mutex::default(),
            history: Mutex::default(),
            news: watch::Sender::new(()),
            refused: Mutex::default(),
            seen: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let address = listener.local_addr().expect("an address");
        let own = Arc::clone(&fake);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let fake = Arc::clone(&own);
                let answer = service_fn(move |request| {
                    let fake = Arc::clone(&fake);
                    async move { Ok::<_, Infallible>(fake.answer(request).await) }
                });
                let connection =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
                tokio::spawn(async move { drop(connection.await) });
            }
        });
        let config = Config::new(format!("http://{address}").parse().expect("a URI"));
        (fake, super::client_of(config).expect("a client"))
    }

    fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
        mutex.lock().expect("no panic")
    }

    pub fn refuse(&self, paths: &[(&str, u16)]) {
        *Self::lock(&self.refused) = paths.iter().map(|(path, status)| ((*path).to_owned(), *status)).collect();
    }

    pub fn get(&self, path: &str) -> Option<Value> {
        Self::lock(&self.objects).get(path).cloned()
    }

    /// All objects whose paths begin so.
    pub fn below(&self, start: &str) -> Vec<Value> {
        let objects = Self::lock(&self.objects);
        objects.iter().filter(|(path, _)| path.starts_with(start)).map(|(_, object)| object.clone()).collect()
    }

    pub fn count(&self, method_and_path: &str) -> usize {
        Self::lock(&self.seen).iter().filter(|seen| *seen == method_and_path).count()
    }

    /// Puts an object there, or takes it away, and tells those who watch.
    pub fn put(&self, path: &str, object: Option<Value>) -> Value {
        let mut history = Self::lock(&self.history);
        let mut objects = Self::lock(&self.objects);
        let before = objects.remove(path);
        let kind = match (&before, &object) {
            (_, None) => "DELETED",
            (None, _) => "ADDED",
            _ => "MODIFIED",
        };
        let is_kept = object.is_some();
        let mut object = object.or(before).expect("something to tell of");
        object["metadata"]["resourceVersion"] = json!((history.len() + 1).to_string());
        if is_kept {
            objects.insert(path.to_owned(), object.clone());
        }
        history.push((path.to_owned(), json!({"type": kind, "object": object})));
        self.news.send_replace(());
        object
    }

    async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let (path, query) = (head.uri.path().to_owned(), head.uri.query().unwrap_or_default().to_owned());
        Self::lock(&self.seen).push(format!("{} {path}", head.method));
        let refused =
            Self::lock(&self.refused).iter().find(|(start, _)| path.starts_with(start)).map(|(_, code)| *code);
        if let Some(code) = refused {
            return failure(code);
        }
        let is_list = path.ends_with("/nodes") || path.ends_with("/cachedmodels");
        let body: Value = serde_json::from_slice(&body.collect().await.expect("a body").to_bytes()).unwrap_or_default();
        let patch = head.headers.get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        match head.method {
            Method::GET if query.contains("watch=true") => {
                let (_, from) = query.split_once("resourceVersion=").expect("a version");
                let from: usize = from.split('&').next().expect("text").parse().expect("a place");
                let start = format!("{path}/");
                let state = (Arc::clone(self), self.news.subscribe(), from);
                let news = stream::unfold(state, move |(fake, mut news, mut at)| {
                    let start = start.clone();
                    async move {
                        loop {
                            news.borrow_and_update();
                            let next = Self::lock(&fake.history).get(at).cloned();
                            at += usize::from(next.is_some());
                            match next {
                                Some((path, event)) if path.starts_with(&start) => {
                                    let line = Bytes::from(format!("{event}\n"));
                                    return Some((Ok(Frame::data(line)), (fake, news, at)));
                                }
                                Some(_) => {}
                                None => news.changed().await.ok()?,
                            }
                        }
                    }
                });
                Response::new(BodyExt::boxed_unsync(StreamBody::new(news.boxed())))
            }
            Method::GET if is_list => {
                let start = format!("{path}/");
                let (history, objects) = (Self::lock(&self.history), Self::lock(&self.objects));
                let items: Vec<&Value> = objects
                    .range(start.clone()..)
                    .take_while(|(at, _)| at.starts_with(&start))
                    .map(|(_, item)| item)
                    .collect();
                let version = history.len().to_string();
                given(
                    &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": version}, "items": items}),
                )
            }
            Method::GET => self.get(&path).map_or_else(|| failure(404), |object| given(&object)),
            Method::POST => {
                let name = body["metadata"]["name"].as_str().expect("a name");
                given(&self.put(&format!("{path}/{name}"), Some(body.clone())))
            }
            Method::PATCH => {
                let path = path.trim_end_matches("/status").to_owned();
                let before = self.get(&path);
                let after = match (patch, before) {
                    ("application/json-patch+json", Some(object)) => json_patch(object, &body),
                    ("application/merge-patch+json", Some(object)) => Some(merge(object, &body)),
                    ("application/apply-patch+yaml", before) => Some(merge(before.unwrap_or_else(|| json!({})), &body)),
                    _ => return failure(404),
                };
                after.map_or_else(|| failure(422), |after| given(&self.put(&path, Some(after))))
            }
            _ => failure(405),
        }
    }
}

fn given(value: &Value) -> Response<Body> {
    Response::new(BodyExt::boxed_unsync(Full::new(Bytes::from(value.to_string()))))
}

fn failure(code: u16) -> Response<Body> {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": "refused", "reason": if code == 404 { "NotFound" } else { "Refused" }, "code": code});
    let mut response = given(&status);
    *response.status_mut() = http::StatusCode::from_u16(code).expect("a status");
    response
}

fn merge(mut object: Value, patch: &Value) -> Value {
    let Some(changes) = patch.as_object() else { return patch.clone() };
    if !object.is_object() {
        object = json!({});
    }
    for (key, change) in changes {
        if change.is_null() {
            object.as_object_mut().expect("an object").remove(key);
        } else {
            object[key] = merge(object[key].take(), change);
        }
    }
    object
}

/// `test`, and `remove` of an element.
fn json_patch(mut object: Value, steps: &Value) -> Option<Value> {
    for step in steps.as_array()? {
        let path = step["path"].as_str()?;
        match step["op"].as_str()? {
            "test" if object.pointer(path)? == &step["value"] => {}
            "remove" => {
                let (list, at) = path.rsplit_once('/')?;
                object.pointer_mut(list)?.as_array_mut()?.remove(at.parse().ok()?);
            }
            _ => return None,
        }
    }
    Some(object)
}

/// Waits until something is so.
pub async fn until(what: &str, is_so: impl AsyncFn() -> bool) {
    let started = std::time::Instant::now();
    while !is_so().await {
        assert!(started.elapsed() < Duration::from_secs(30), "never so: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
