//! The CSI node plugin: models as inline volumes of pods, by kubelet's own word.
//!
//! A complete model is mounted into the pod as what it is, a directory of ordinary files, read
//! only: what a pod has there needs no daemon, no keeper and no FUSE any more. Only a model that is
//! read while it arrives comes out of the mount. Sockets and mounts in kubelet's directories are
//! root's to make, so [`larder_keeper::Errands`] makes them.
//!
//! `rpc` is the protocol, `authority` what kubelet gets wrong in it, `volume` what a pod may ask for,
//! `publish` how it gets it, `end` how it goes, `notes` what is noted of it, `keeper` who mounts it.

mod authority;
mod end;
#[doc(hidden)]
pub mod fuzzing;
mod keeper;
mod message;
mod notes;
mod publish;
mod rpc;
mod volume;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use larder_keeper::Errands;
use tokio::net::UnixListener;
use tokio::sync::watch;

use crate::cache::Cache;
use crate::domain::Source;
use crate::lanes::Lane;
use crate::report::Failure;
use crate::store;

use keeper::Keeper;
use notes::Notes;
use publish::Works;
pub use volume::Pod;

/// The driver's name, as pods and the `CSIDriver` object have it.
pub const DRIVER: &str = "csi.larder.dev";
/// Between two tries to have the sockets made.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);
/// How often volumes are looked for whose pods are gone.
const SWEEP_INTERVAL: Duration = Duration::from_mins(10);
/// Looks at the store at once, and those that wait.
const DISK_MAX: usize = 4;
const WAITING_MAX: usize = 1_024;

/// What a cluster is told of its pods, and says of them.
#[async_trait]
pub trait Cluster: Send + Sync {
    /// An event of a pod. Waits for nothing, and may come to nothing.
    fn tell(&self, pod: &Pod, reason: &'static str, message: String);

    /// Whether the pod is deleted, or about to be; `None` where nobody can say so in a few seconds.
    async fn has_ended(&self, pod: &Pod) -> Option<bool>;
}

/// Where there is no cluster.
#[derive(Debug)]
pub struct NoCluster;

#[async_trait]
impl Cluster for NoCluster {
    fn tell(&self, _: &Pod, _: &'static str, _: String) {}

    async fn has_ended(&self, _: &Pod) -> Option<bool> {
        None
    }
}

/// Whether a pod may have a source; why not.
pub type Policy = Box<dyn Fn(&Pod, &Source) -> Result<(), Failure> + Send + Sync>;

/// The plugin of a node.
pub struct Plugin {
    cache: Arc<Cache>,
    keeper: Keeper,
    node: String,
    sockets: Sockets,
    allows: Policy,
    cluster: Arc<dyn Cluster>,
    notes: Notes,
    works: Works,
    /// Where the store is looked at.
    disk: Lane,
    listening: watch::Sender<bool>,
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Where kubelet looks for plugins.
#[derive(Debug)]
struct Sockets {
    /// Where it calls this one.
    driver: PathBuf,
    /// Where it finds out about it.
    registration: PathBuf,
}

impl Sockets {
    fn below(kubelet: &Path) -> Self {
        Self {
            driver: kubelet.join("plugins").join(DRIVER).join("csi.sock"),
            registration: kubelet.join("plugins_registry").join(format!("{DRIVER}-reg.sock")),
        }
    }
}

impl Plugin {
    /// Takes charge of the volumes of an earlier life. Blocking.
    ///
    /// # Errors
    /// [`store::Error::Io`].
    pub fn new(
        cache: Arc<Cache>,
        keeper: Errands,
        node: String,
        kubelet: &Path,
        allows: Policy,
        cluster: Arc<dyn Cluster>,
    ) -> Result<Arc<Self>, store::Error> {
        let notes = Notes::open(cache.store())?;
        let sockets = Sockets::below(kubelet);
        Ok(Arc::new(Self {
            cache,
            keeper: Keeper::new(keeper),
            node,
            sockets,
            allows,
            cluster,
            notes,
            works: Works::default(),
            disk: Lane::new("csi-disk", DISK_MAX, WAITING_MAX),
            listening: watch::Sender::new(false),
        }))
    }

    /// Whether kubelet may call.
    #[must_use]
    pub fn listening(&self) -> watch::Receiver<bool> {
        self.listening.subscribe()
    }

    /// Serves kubelet for as long as the process lives. `mounts` counts the keeper's mounts: with
    /// each there is a new keeper, or none was there before, so the sockets are made again, and
    /// what pods have out of an older mount is put out of the new one.
    pub async fn run(self: Arc<Self>, mut mounts: watch::Receiver<u64>) {
        tokio::spawn(Arc::clone(&self).sweep());
        // The sender lives as long as the mounts, which live as long as the process.
        while mounts.wait_for(|count| *count > 0).await.is_ok() {
            mounts.mark_unchanged();
            let (closing, closed) = watch::channel(false);
            // kubelet calls the driver as soon as it has found it.
            for path in [&self.sockets.driver, &self.sockets.registration] {
                let listener = self.listen(path).await;
                tokio::spawn(rpc::serve(listener, Arc::clone(&self), closed.clone()));
            }
            self.listening.send_replace(true);
            self.remount().await;
            let _ = mounts.changed().await;
            closing.send_replace(true);
        }
    }

    /// A socket of kubelet's directory, made by the keeper, which is asked until it is there.
    async fn listen(&self, path: &Path) -> UnixListener {
        let mut told = false;
        loop {
            let made = self.keeper.listen(path.to_owned()).await.map_err(|failure| failure.message);
            match made.and_then(|socket| listener(socket).map_err(|error| error.to_string())) {
                Ok(listener) => {
                    tracing::info!(socket = %path.display(), "kubelet may call");
                    return listener;
                }
                Err(error) if !told => {
                    told = true;
                    tracing::warn!(error, socket = %path.display(), "no socket for kubelet yet, so no pod gets a CSI volume: it is tried again");
                }
                Err(_) => {}
            }
            tokio::time::sleep(LISTEN_PAUSE).await;
        }
    }

    async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            self.sweep_once().await;
        }
    }
}

fn listener(socket: OwnedFd) -> std::io::Result<UnixListener> {
    let listener = std::os::unix::net::UnixListener::from(socket);
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}
