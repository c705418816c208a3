//! kubelet's side: gRPC over the sockets that it finds in its directories, with messages written
//! down here once more.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;

/// `csi.v1.NodePublishVolumeRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct Publish {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "4")]
    pub target_path: String,
    #[prost(message, optional, tag = "5")]
    pub capability: Option<Capability>,
    #[prost(bool, tag = "6")]
    pub readonly: bool,
    #[prost(map = "string, string", tag = "7")]
    pub secrets: HashMap<String, String>,
    #[prost(map = "string, string", tag = "8")]
    pub context: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Capability {
    #[prost(message, optional, tag = "2")]
    pub mount: Option<Mount>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    #[prost(string, tag = "1")]
    pub fs_type: String,
}

/// `csi.v1.NodeUnpublishVolumeRequest`.
#[derive(Clone, PartialEq, Message)]
pub struct Unpublish {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "2")]
    pub target_path: String,
}

/// `pluginregistration.PluginInfo`.
#[derive(Clone, PartialEq, Message)]
pub struct Registration {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "3")]
    pub endpoint: String,
    #[prost(string, repeated, tag = "4")]
    pub versions: Vec<String>,
}

/// `csi.v1.NodeGetInfoResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct NodeInfo {
    #[prost(string, tag = "1")]
    pub node_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Empty {}

/// The status of a call that was refused: code and sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub code: u32,
    pub message: String,
}

const UNPUBLISH: &str = "csi.v1.Node/NodeUnpublishVolume";

/// Codes of gRPC.
pub const INVALID_ARGUMENT: u32 = 3;
pub const NOT_FOUND: u32 = 5;
pub const PERMISSION_DENIED: u32 = 7;
pub const ABORTED: u32 = 10;

/// One call on a connection of its own, as kubelet makes them. An error that is no answer panics.
pub fn call<Q: Message, A: Message + Default>(
    socket: &Path,
    method: &str,
    request: &Q,
    patience: Duration,
) -> Result<A, Refused> {
    try_call(socket, method, request, patience).unwrap_or_else(|error| panic!("no answer: {error}"))
}

/// The same; the first error is of a connection that was cut off, as by a restart.
pub fn try_call<Q: Message, A: Message + Default>(
    socket: &Path,
    method: &str,
    request: &Q,
    patience: Duration,
) -> Result<Result<A, Refused>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let cut = |error: &dyn std::fmt::Display| error.to_string();
    runtime.block_on(async {
        let stream = tokio::net::UnixStream::connect(socket).await.map_err(|error| cut(&error))?;
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (mut send, connection) = handshake.map_err(|error| cut(&error))?;
        tokio::spawn(connection);
        let message = request.encode_to_vec();
        let mut body = BytesMut::new();
        body.put_u8(0);
        body.put_u32(u32::try_from(message.len()).expect("short"));
        body.put_slice(&message);
        let request = http::Request::post(format!("http://localhost/{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", format!("{}m", patience.as_millis()))
            .body(Full::<Bytes>::new(body.freeze()))
            .expect("a request");
        let answer = tokio::time::timeout(patience, send.send_request(request)).await.map_err(|error| cut(&error))?;
        let answer = answer.map_err(|error| cut(&error))?;
        let head = answer.headers().clone();
        let body = answer.into_body().collect().await.map_err(|error| cut(&error))?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        let field =
            |name: &str| trailers.get(name).or_else(|| head.get(name)).map(|value| value.to_str().expect("text"));
        let code: u32 = field("grpc-status").expect("a status").parse().expect("a number");
        if code != 0 {
            let message = field("grpc-message").unwrap_or_default();
            let message = percent_encoding::percent_decode_str(message).decode_utf8_lossy().into_owned();
            return Ok(Err(Refused { code, message }));
        }
        let bytes = body.to_bytes();
        Ok(Ok(A::decode(&bytes[5..]).expect("a message")))
    })
}

/// A volume of a pod.
#[derive(Debug, Clone)]
pub struct Volume {
    pub publish: Publish,
    socket: PathBuf,
}

impl Volume {
    /// An inline volume of a pod in kubelet's directory, with these attributes. Its pod has begun.
    pub fn new(kubelet: &Path, pod: &str, attributes: &[(&str, &str)]) -> Self {
        let parent = kubelet.join("pods").join(pod).join("volumes/kubernetes.io~csi/model");
        std::fs::create_dir_all(&parent).expect("a directory");
        let of_kubelet = [
            ("csi.storage.k8s.io/pod.uid", pod),
            ("csi.storage.k8s.io/pod.namespace", "team"),
            ("csi.storage.k8s.io/pod.name", "server-0"),
            ("csi.storage.k8s.io/serviceAccount.name", "serving"),
            ("csi.storage.k8s.io/ephemeral", "true"),
        ];
        let publish = Publish {
            volume_id: format!("csi-{pod}"),
            target_path: parent.join("mount").display().to_string(),
            capability: Some(Capability { mount: Some(Mount::default()) }),
            readonly: true,
            secrets: HashMap::new(),
            context: of_kubelet.iter().chain(attributes).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        };
        Self { publish, socket: kubelet.join("plugins/csi.larder.dev/csi.sock") }
    }

    /// Where its model is.
    pub fn target(&self) -> PathBuf {
        self.publish.target_path.clone().into()
    }

    /// `NodePublishVolume`; waits as long as kubelet does.
    pub fn publish(&self) -> Result<(), Refused> {
        self.publish_within(Duration::from_mins(2))
    }

    pub fn publish_within(&self, patience: Duration) -> Result<(), Refused> {
        call::<_, Empty>(&self.socket, "csi.v1.Node/NodePublishVolume", &self.publish, patience).map(drop)
    }

    /// The same, of a daemon that may be killed meanwhile.
    pub fn try_publish_within(&self, patience: Duration) -> Result<(), String> {
        try_call::<_, Empty>(&self.socket, "csi.v1.Node/NodePublishVolume", &self.publish, patience)?
            .map(drop)
            .map_err(|refused| format!("{}: {}", refused.code, refused.message))
    }

    /// `NodeUnpublishVolume`.
    pub fn unpublish(&self) -> Result<(), Refused> {
        call::<_, Empty>(&self.socket, UNPUBLISH, &self.ending(), Duration::from_mins(2)).map(drop)
    }

    /// The same, of a daemon that may be killed meanwhile.
    pub fn try_unpublish(&self) -> Result<(), String> {
        try_call::<_, Empty>(&self.socket, UNPUBLISH, &self.ending(), Duration::from_mins(2))?
            .map(drop)
            .map_err(|refused| format!("{}: {}", refused.code, refused.message))
    }

    fn ending(&self) -> Unpublish {
        let Publish { volume_id, target_path, .. } = self.publish.clone();
        Unpublish { volume_id, target_path }
    }
}
