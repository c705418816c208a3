//! The messages of the two protocols that kubelet speaks to a plugin, as far as a node plugin
//! without stages, expansion and statistics needs them. Fields that are not read are left out: what
//! is not known is skipped.
//!
//! Numbers are those of `csi.proto` of the Container Storage Interface, version 1, and of kubelet's
//! `pluginregistration/v1/api.proto`.

use std::collections::HashMap;
use std::fmt;

use prost::Message;

/// An empty message, of any name.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Empty {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PluginInfo {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub vendor_version: String,
}

/// `google.protobuf.BoolValue`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Truth {
    #[prost(bool, tag = "1")]
    pub value: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ProbeAnswer {
    #[prost(message, optional, tag = "1")]
    pub ready: Option<Truth>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct NodeInfo {
    #[prost(string, tag = "1")]
    pub node_id: String,
}

/// `VolumeCapability`. The access type is one of the two, so it is read like two optional fields.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Capability {
    #[prost(message, optional, tag = "1")]
    pub block: Option<Empty>,
    #[prost(message, optional, tag = "2")]
    pub mount: Option<Empty>,
}

/// `NodePublishVolumeRequest`.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct Publish {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "4")]
    pub target_path: String,
    #[prost(message, optional, tag = "5")]
    pub capability: Option<Capability>,
    #[prost(bool, tag = "6")]
    pub read_only: bool,
    #[prost(map = "string, string", tag = "7")]
    pub secrets: HashMap<String, String>,
    #[prost(map = "string, string", tag = "8")]
    pub context: HashMap<String, String>,
}

impl fmt::Debug for Publish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publish").field("volume_id", &self.volume_id).finish_non_exhaustive()
    }
}

/// `NodeUnpublishVolumeRequest`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Unpublish {
    #[prost(string, tag = "1")]
    pub volume_id: String,
    #[prost(string, tag = "2")]
    pub target_path: String,
}

/// `pluginregistration.PluginInfo`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Registration {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, tag = "3")]
    pub endpoint: String,
    #[prost(string, repeated, tag = "4")]
    pub supported_versions: Vec<String>,
}

/// `pluginregistration.RegistrationStatus`.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Registered {
    #[prost(bool, tag = "1")]
    pub is_registered: bool,
    #[prost(string, tag = "2")]
    pub error: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes as kubelet sends them, with fields in them that are not read here.
    #[test]
    fn a_publish_is_read_and_shows_no_secret() {
        let mut bytes = Vec::new();
        let mut field = |number: u8, value: &[u8]| {
            bytes.push(number << 3 | 2);
            bytes.push(u8::try_from(value.len()).expect("short"));
            bytes.extend(value);
        };
        let entry = |key: &str, value: &str| {
            let mut bytes = vec![0x0a, u8::try_from(key.len()).expect("short")];
            bytes.extend(key.as_bytes());
            bytes.extend([0x12, u8::try_from(value.len()).expect("short")]);
            bytes.extend(value.as_bytes());
            bytes
        };
        field(1, b"csi-1");
        field(2, &entry("publish", "context"));
        field(3, b"/staging");
        field(4, b"/target");
        // mount { fs_type: "ext4" }, access_mode { mode: SINGLE_NODE_WRITER }
        field(5, &[0x12, 6, 0x0a, 4, b'e', b'x', b't', b'4', 0x1a, 2, 0x08, 1]);
        field(7, &entry("AWS_SECRET_ACCESS_KEY", "S3CR3T"));
        field(8, &entry("source", "s3://b/k/"));
        bytes.extend([6 << 3, 1]);
        let read = Publish::decode(&bytes[..]).expect("a message");
        assert_eq!((read.volume_id.as_str(), read.target_path.as_str(), read.read_only), ("csi-1", "/target", true));
        let capability = read.capability.as_ref().expect("a capability");
        assert!(capability.mount.is_some() && capability.block.is_none());
        assert_eq!(read.context["source"], "s3://b/k/");
        assert_eq!(read.secrets["AWS_SECRET_ACCESS_KEY"], "S3CR3T");
        assert!(!format!("{read:?}").contains("S3CR3T"));
    }
}
