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
mod mounted;
mod notes;
mod publish;
mod rpc;
mod volume;

use std::io;
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
use crate::net::Slots;
use crate::report::Failure;
use crate::store;

use keeper::Keeper;
pub use mounted::mounts;
use notes::Notes;
use publish::Works;
pub use rpc::Tables;
pub use volume::Pod;

/// The driver's name, as pods and the `CSIDriver` object have it.
pub const DRIVER: &str = "csi.larder.dev";
/// Between two tries to have the sockets made.
const LISTEN_PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked whether kubelet can still find the sockets.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
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
    tables: Arc<Tables>,
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
        tables: Arc<Tables>,
    ) -> Result<Arc<Self>, store::Error> {
        let notes = Notes::open(cache.store())?;
        let sockets = Sockets::below(kubelet);
        Ok(Arc::new(Self {
            cache,
            keeper: Keeper::new(keeper),
            node,
            sockets,
            tables,
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
            // kubelet calls the driver as soon as it has found it.
            let mut driver = self.open(&self.sockets.driver, &self.tables.driver).await;
            let mut registration = self.open(&self.sockets.registration, &self.tables.registration).await;
            self.listening.send_replace(true);
            self.remount().await;
            self.take_strays().await;
            loop {
                tokio::select! {
                    _ = mounts.changed() => break,
                    () = tokio::time::sleep(LOOK_INTERVAL) => {}
                }
                self.look(&mut driver).await;
                self.look(&mut registration).await;
            }
        }
    }

    /// Serves at a socket of kubelet's directory, made by the keeper, which is asked until it is there.
    async fn open(self: &Arc<Self>, path: &Path, slots: &Arc<Slots>) -> Door {
        let mut told = false;
        loop {
            match self.listen(path).await {
                Ok(socket) => return self.serve(path, slots, socket),
                Err(error) if !told => {
                    told = true;
                    tracing::warn!(error, socket = %path.display(), "no socket for kubelet yet, so no pod gets a CSI volume: it is tried again");
                }
                Err(_) => {}
            }
            tokio::time::sleep(LISTEN_PAUSE).await;
        }
    }

    async fn listen(&self, path: &Path) -> Result<Socket, String> {
        let made = self.keeper.listen(path.to_owned()).await.map_err(|failure| failure.message)?;
        Socket::new(made).map_err(|error| error.to_string())
    }

    fn serve(self: &Arc<Self>, path: &Path, slots: &Arc<Slots>, socket: Socket) -> Door {
        tracing::info!(socket = %path.display(), "kubelet may call");
        let (closing, closed) = watch::channel(false);
        let Socket { listener, number } = socket;
        tokio::spawn(rpc::serve(listener, Arc::clone(slots), Arc::clone(self), closed));
        Door { path: path.to_owned(), slots: Arc::clone(slots), number, _closing: closing }
    }

    /// Serves another socket where this one has lost its name: the keeper knows, and makes it. kubelet
    /// finds it as it found the first, and registers the driver again.
    async fn look(self: &Arc<Self>, door: &mut Door) {
        // Without a keeper there is another one soon, and then all of it anew.
        let Ok(socket) = self.listen(&door.path).await else { return };
        if socket.number != door.number {
            tracing::warn!(socket = %door.path.display(), "kubelet's socket had been removed: it is made again");
            *door = self.serve(&door.path, &door.slots, socket);
        }
    }

    async fn sweep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            self.sweep_once().await;
            self.take_strays().await;
        }
    }
}

/// A socket that is served, until this is dropped. Who is connected stays so.
struct Door {
    path: PathBuf,
    slots: Arc<Slots>,
    number: u64,
    _closing: watch::Sender<bool>,
}

/// A listening socket.
struct Socket {
    listener: UnixListener,
    /// Of the socket itself, whoever has it open.
    number: u64,
}

impl Socket {
    fn new(socket: OwnedFd) -> io::Result<Self> {
        let number = rustix::fs::fstat(&socket)?.st_ino;
        let listener = std::os::unix::net::UnixListener::from(socket);
        listener.set_nonblocking(true)?;
        Ok(Self { listener: UnixListener::from_std(listener)?, number })
    }
}
