//! A door to the parsers of this layer, for `tests/fuzz` alone.

use std::io;
use std::sync::Arc;

use prost::Message as _;
use tokio::net::UnixListener;
use tokio::sync::watch;

use super::authority::Corrector;
use super::message::{Publish, Unpublish};
use super::volume::{self, Asked};
use super::{Plugin, rpc};

/// What a client of HTTP/2 sends, put right, and what is wrong with the rest.
pub fn put_right(bytes: &[u8]) -> (io::Result<()>, Vec<u8>) {
    let mut right = Vec::new();
    (Corrector::new().take(bytes, &mut right), right)
}

/// Reads a `NodePublishVolumeRequest`. `None` if it is none; else the owner of the volume or what is
/// wrong with it.
///
/// # Panics
/// When what was read does not read again as the same.
#[must_use]
pub fn publish(bytes: &[u8]) -> Option<Result<String, String>> {
    let call = Publish::decode(bytes).ok()?;
    assert_eq!(Publish::decode(&*call.encode_to_vec()).ok().as_ref(), Some(&call), "a message changes");
    Some(Asked::read(call).map(|asked| asked.owner().to_string()).map_err(|failure| failure.message))
}

/// Reads a `NodeUnpublishVolumeRequest`. `None` if it is none; else whether it names a volume and a
/// place.
#[must_use]
pub fn unpublish(bytes: &[u8]) -> Option<bool> {
    let call = Unpublish::decode(bytes).ok()?;
    let target = volume::target(&call.target_path);
    Some(target.is_ok_and(|target| volume::id(&call.volume_id, &target).is_ok()))
}

/// Answers kubelet at a listener for ever.
pub async fn serve(listener: UnixListener, plugin: Arc<Plugin>) {
    let (_closing, closed) = watch::channel(false);
    rpc::serve(listener, Arc::clone(&plugin.tables.driver), plugin, closed).await;
}
