//! gRPC over a unix socket: which call is which.

use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::Plugin;
use super::authority::Corrected;
use super::message::{Empty, NodeInfo, PluginInfo, ProbeAnswer, Publish, Registered, Registration, Truth, Unpublish};
use super::volume::Asked;
use crate::net::{Patient, Silence, Slot, Slots, Why, accept};
use crate::report::{Exit, Failure};
use crate::telemetry::{Listener, Metrics};

/// kubelet makes one connection for each call, and has as many calls under way as pods that start.
const CONNECTIONS_MAX: usize = 512;
/// Of those, calls that wait for a volume, which may take minutes, and for one to be taken away:
/// neither takes the place of the other.
const PUBLISHES_MAX: usize = 352;
const UNPUBLISHES_MAX: usize = 96;
const REGISTRATIONS_MAX: usize = 32;
/// kubelet calls as soon as it has connected. Others keep a connection for a while.
const SILENCE: Silence = Silence { first: Duration::from_secs(30), between: Duration::from_mins(5) };
/// A client that reads nothing for longer does not want the answer.
const READ_PATIENCE: Duration = Duration::from_mins(1);
/// How long a connection that has been silent may take to end.
const GOODBYE_PATIENCE: Duration = Duration::from_secs(1);
/// Calls of one connection at once. Who has more waits for the first of them.
const STREAMS_MAX: u32 = 16;
/// Bytes of a message: kubelet's are a pod's volume attributes and a Secret.
const MESSAGE_LEN_MAX: usize = 1 << 20;
/// Before a message: whether it is compressed, and its length.
const FRAME_LEN: usize = 5;
/// How long the message of a call may take to arrive.
const MESSAGE_PATIENCE: Duration = Duration::from_secs(10);
/// How long kubelet waits for an answer if it does not say.
const PATIENCE: Duration = Duration::from_mins(2);
/// An answer must be there before kubelet stops waiting for it: what it says becomes the pod's event.
const ANSWER_MARGIN: Duration = Duration::from_secs(5);

/// Connections of kubelet at both sockets, and how many calls of a kind are answered at once.
#[derive(Debug)]
pub struct Tables {
    pub(super) driver: Arc<Slots>,
    pub(super) registration: Arc<Slots>,
    publishes: Semaphore,
    unpublishes: Semaphore,
}

impl Tables {
    /// Nobody is connected yet.
    #[must_use]
    pub fn new(metrics: &Arc<Metrics>) -> Self {
        let slots = |listener, most| Slots::new(listener, most, SILENCE, Arc::clone(metrics));
        Self {
            driver: slots(Listener::Csi, CONNECTIONS_MAX),
            registration: slots(Listener::Registration, REGISTRATIONS_MAX),
            publishes: Semaphore::new(PUBLISHES_MAX),
            unpublishes: Semaphore::new(UNPUBLISHES_MAX),
        }
    }

    /// Those of both sockets.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Slots>> {
        vec![Arc::clone(&self.driver), Arc::clone(&self.registration)]
    }
}

/// Answers kubelet until `closed` changes.
pub(super) async fn serve(
    listener: UnixListener,
    slots: Arc<Slots>,
    plugin: Arc<Plugin>,
    mut closed: watch::Receiver<bool>,
) {
    let stopped = async move { drop(closed.changed().await) };
    accept(listener, slots, stopped, |stream, slot| converse(stream, slot, Arc::clone(&plugin))).await;
}

async fn converse(stream: UnixStream, slot: Slot, plugin: Arc<Plugin>) {
    let slot = Arc::new(slot);
    let stream = Corrected::new(Patient::new(stream, READ_PATIENCE));
    let answer = service_fn(|request| {
        let (plugin, slot) = (Arc::clone(&plugin), Arc::clone(&slot));
        async move { Ok::<_, Infallible>(answer(plugin, slot, request).await) }
    });
    let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    builder.max_concurrent_streams(STREAMS_MAX);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), answer));
    let why = tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection of kubelet ended");
            }
            return;
        }
        why = slot.leaves() => why,
    };
    tracing::debug!(?why, "a connection of kubelet was ended");
    if why == Why::Silent {
        connection.as_mut().graceful_shutdown();
        let _ = tokio::time::timeout(GOODBYE_PATIENCE, connection).await;
    }
}

/// Waits for the message of a call, and answers it.
async fn answer(plugin: Arc<Plugin>, slot: Arc<Slot>, request: Request<Incoming>) -> Response<Body> {
    let patience = patience(request.headers()).saturating_sub(ANSWER_MARGIN);
    let (head, body) = request.into_parts();
    let received = Limited::new(body, FRAME_LEN + MESSAGE_LEN_MAX).collect();
    let message = match tokio::time::timeout(MESSAGE_PATIENCE, received).await {
        Ok(Ok(message)) => Full::new(message.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            return Status::resource_exhausted("the message is longer than any call needs").into_http();
        }
        Ok(Err(_)) => return Status::cancelled("the message was cut off").into_http(),
        Err(_) => return Status::deadline_exceeded("the message of this call did not arrive").into_http(),
    };
    let Some(_work) = slot.work() else {
        return Status::unavailable("there are too many connections: ask again").into_http();
    };
    dispatch(plugin, patience, Request::from_parts(head, message)).await
}

/// Every call that there is.
async fn dispatch(plugin: Arc<Plugin>, patience: Duration, request: Request<Full<Bytes>>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        "/csi.v1.Identity/GetPluginInfo" => {
            unary(request, |_: Empty| async {
                Ok(PluginInfo { name: super::DRIVER.into(), vendor_version: env!("CARGO_PKG_VERSION").into() })
            })
            .await
        }
        // No controller, no stages, no statistics: an empty list says so.
        "/csi.v1.Identity/GetPluginCapabilities" | "/csi.v1.Node/NodeGetCapabilities" => {
            unary(request, |_: Empty| async { Ok(Empty {}) }).await
        }
        "/csi.v1.Identity/Probe" => {
            unary(request, |_: Empty| async { Ok(ProbeAnswer { ready: Some(Truth { value: true }) }) }).await
        }
        "/csi.v1.Node/NodeGetInfo" => {
            unary(request, move |_: Empty| async move { Ok(NodeInfo { node_id: plugin.node.clone() }) }).await
        }
        "/csi.v1.Node/NodePublishVolume" => {
            unary(request, move |call: Publish| async move {
                let volume = call.volume_id.clone();
                // Where too many wait, the work begins all the same, and kubelet asks again.
                let waits = plugin.tables.publishes.try_acquire();
                let patience = if waits.is_ok() { patience } else { Duration::ZERO };
                let published = match Asked::read(call) {
                    Ok(asked) => plugin.publish(asked, patience).await,
                    Err(failure) => Err(failure),
                };
                published.map(|()| Empty {}).map_err(|failure| {
                    tracing::info!(volume, why = failure.message, "kubelet's volume is not there yet");
                    status(&failure)
                })
            })
            .await
        }
        "/csi.v1.Node/NodeUnpublishVolume" => {
            unary(request, move |call: Unpublish| async move {
                let Ok(_waits) = plugin.tables.unpublishes.try_acquire() else {
                    return Err(Status::aborted(format!("{UNPUBLISHES_MAX} volumes are being taken away already")));
                };
                plugin.unpublish(&call.volume_id, &call.target_path).await.map(|()| Empty {}).map_err(|failure| {
                    tracing::warn!(volume = call.volume_id, why = failure.message, "a volume cannot be taken away");
                    status(&failure)
                })
            })
            .await
        }
        "/pluginregistration.Registration/GetInfo" => {
            unary(request, move |_: Empty| async move {
                Ok(Registration {
                    kind: "CSIPlugin".into(),
                    name: super::DRIVER.into(),
                    endpoint: plugin.sockets.driver.display().to_string(),
                    supported_versions: vec!["1.0.0".into()],
                })
            })
            .await
        }
        "/pluginregistration.Registration/NotifyRegistrationStatus" => {
            unary(request, |told: Registered| async move {
                if told.is_registered {
                    tracing::info!(driver = super::DRIVER, "kubelet has registered the CSI driver");
                } else {
                    tracing::error!(driver = super::DRIVER, why = told.error, "kubelet refuses the CSI driver");
                }
                Ok(Empty {})
            })
            .await
        }
        _ => Status::unimplemented(format!("{} {path} is not served", super::DRIVER)).into_http(),
    }
}

/// A call of one message that is answered with one.
async fn unary<Q, A, F, R>(request: Request<Full<Bytes>>, call: F) -> Response<Body>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
    F: FnOnce(Q) -> R + Send + 'static,
    R: Future<Output = Result<A, Status>> + Send + 'static,
{
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<A, Q>::default()).max_decoding_message_size(MESSAGE_LEN_MAX);
    grpc.unary(Once(Some(call)), request).await
}

/// A service of one call, as tonic wants one.
struct Once<F>(Option<F>);

impl<Q, A, F, R> Service<tonic::Request<Q>> for Once<F>
where
    F: FnOnce(Q) -> R,
    R: Future<Output = Result<A, Status>> + Send + 'static,
    A: 'static,
{
    type Response = tonic::Response<A>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<tonic::Response<A>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: tonic::Request<Q>) -> Self::Future {
        match self.0.take() {
            Some(call) => {
                let answer = call(request.into_inner());
                Box::pin(async move { answer.await.map(tonic::Response::new) })
            }
            None => Box::pin(async { Err(Status::internal("a call was made twice")) }),
        }
    }
}

/// How long the caller waits: the header `grpc-timeout`, at most eight digits and a unit
/// (gRPC over HTTP/2, "Requests").
fn patience(headers: &http::HeaderMap) -> Duration {
    let read = || {
        let text = headers.get("grpc-timeout")?.to_str().ok()?;
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
        Some(match unit {
            "H" => Duration::from_secs(number * 3600),
            "M" => Duration::from_secs(number * 60),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        })
    };
    read().unwrap_or(PATIENCE).min(PATIENCE)
}

/// A failure as kubelet hears it, and with it whoever reads the pod's events.
///
/// After some codes kubelet takes it that nothing was mounted (`isFinalError` in its
/// `pkg/volume/csi/csi_mounter.go`); whatever may still be on its way must get another one.
fn status(failure: &Failure) -> Status {
    let code = match failure.exit {
        Exit::Usage => Code::InvalidArgument,
        Exit::Integrity => Code::DataLoss,
        Exit::NotFound => Code::NotFound,
        Exit::Denied => Code::PermissionDenied,
        Exit::Disk => Code::ResourceExhausted,
        Exit::Busy => Code::Aborted,
        Exit::Origin | Exit::Interrupted => Code::Unavailable,
        Exit::Defect | Exit::Done => Code::Internal,
    };
    if failure.exit == Exit::Interrupted {
        return Status::new(code, "larder's daemon on this node restarts: kubelet asks again, what has arrived stays");
    }
    // What is said of flags is for the command line.
    let hint = failure.hint.as_deref().map(|hint| hint.split("; try --").next().unwrap_or(hint));
    let hint = hint.filter(|hint| !hint.contains(" --")).map(|hint| format!(" ({hint})")).unwrap_or_default();
    // kubelets format what they are told once more.
    Status::new(code, format!("{}{hint}", failure.message).replace(" %", " percent"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_patience_is_read() {
        for (text, expected) in [
            ("119999868u", Duration::from_mins(2)),
            ("99999999n", Duration::from_nanos(99_999_999)),
            ("90000m", Duration::from_secs(90)),
            ("30S", Duration::from_secs(30)),
            ("5M", PATIENCE),
            ("1H", PATIENCE),
            ("", PATIENCE),
            ("S", PATIENCE),
            ("-1S", PATIENCE),
            ("1x", PATIENCE),
            ("1\u{e9}", PATIENCE),
        ] {
            let mut headers = http::HeaderMap::new();
            headers.insert("grpc-timeout", http::HeaderValue::from_bytes(text.as_bytes()).expect("a value"));
            assert_eq!(patience(&headers), expected, "{text}");
        }
        assert_eq!(patience(&http::HeaderMap::new()), PATIENCE);
    }

    #[test]
    fn what_goes_on_is_not_final_to_kubelet() {
        let not_final = [Code::Unavailable, Code::ResourceExhausted, Code::Aborted];
        for exit in [Exit::Busy, Exit::Origin, Exit::Interrupted, Exit::Disk] {
            assert!(not_final.contains(&status(&Failure::new(exit, "x")).code()), "{exit:?}");
        }
        for exit in [Exit::Usage, Exit::Denied, Exit::NotFound] {
            let status = status(&Failure::hinted(exit, "this is so", "do that"));
            assert!(!not_final.contains(&status.code()), "{exit:?}");
            assert_eq!(status.message(), "this is so (do that)");
        }
        let full = status(&Failure::new(Exit::Disk, "the high watermark of 80 %, `s3://b/a%20b`"));
        assert_eq!(full.message(), "the high watermark of 80 percent, `s3://b/a%20b`");
    }
}
