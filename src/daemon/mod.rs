//! The daemon: builds everything, serves until it is told to stop, and goes in time.

mod housekeeping;
mod limits;
mod log;
mod pods;
pub mod runtime;
mod stop;
mod turn;
mod wants;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use larder_keeper::Errands;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::cache::{Cache, Endpoints, Pods, Settings, Watermarks};
use crate::cluster;
use crate::config::{Caller, Config, Loaded, MountAt};
use crate::control::{self, Api, Phase, Rights};
use crate::csi;
use crate::domain::Source;
use crate::mount::{Mounts, Unmount};
use crate::remote;
use crate::report::{Exit, Failure, named, text};
use crate::telemetry::Metrics;

use stop::Stop;

/// Threads that wait for the disk: those of pulls, and enough beside them that a question is
/// answered while all of those wait.
const BLOCKING_THREADS_MAX: usize = 64;
/// Threads of pulls that wait for the network: hashing and writing happen elsewhere.
const ASYNC_THREADS_MAX: usize = 4;
/// Threads that answer.
const SERVING_THREADS: usize = 2;
/// Of the time to stop, what is left for ending the process itself.
const STOP_MARGIN: Duration = Duration::from_millis(500);
/// How long a keeper that starts at the same time may take.
const KEEPER_PATIENCE: Duration = Duration::from_secs(30);
/// How long a mount of our own may take until it answers.
const MOUNT_PATIENCE: Duration = Duration::from_secs(5);
/// How often it is asked whether everything has ended.
const STOP_INTERVAL: Duration = Duration::from_millis(20);

/// Runs until SIGTERM or SIGINT. `serving` is called once everything is there for others to use, a
/// mount of its own among it.
///
/// # Errors
/// Whatever keeps it from starting: a store in use, sockets that cannot be made.
pub fn run(loaded: &Loaded, serving: impl FnOnce()) -> Result<Exit, Failure> {
    let started = Instant::now();
    let config = &loaded.config;
    log::start(&config.log, config.log_format);
    limits::settle();
    let stop = Stop::listen(config.stop_within)?;
    if matches!(config.mount, Some(MountAt::Keeper(_))) {
        wait_for_directories(config);
    }
    let Some(store) = turn::own(config, &stop)?.map(Arc::new) else { return Ok(Exit::Done) };
    if let Some(why) = store.unwritable() {
        tracing::error!("the store is read-only, {why}: what is here is given out, and nothing is pulled or evicted");
    }
    let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION")));
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let runtime = |name, threads| runtime::start(name, threads, BLOCKING_THREADS_MAX);
    // Pulls wait for the disk and for origins, and have what they may fill to themselves.
    let (pulls, runtime) = (runtime("pull", cores.clamp(2, ASYNC_THREADS_MAX))?, runtime("serve", SERVING_THREADS)?);
    #[expect(clippy::disallowed_methods, reason = "the daemon's entries into the runtime")]
    let served = {
        // Once for all its life: a name means the same model until it ends.
        let endpoints = runtime.block_on(Endpoints::resolve(config.endpoint_url.as_deref()));
        let cache = Cache::open(store, settings(config, endpoints), Arc::clone(&metrics))?;
        cache.set_pulls(pulls.handle().clone());
        runtime.block_on(serve(loaded, &cache, pulls.handle(), metrics, stop, started, serving))
    };
    if let (Ok(exit), Some(MountAt::Keeper(_))) = (&served, &config.mount) {
        // Without winding anything up: a read that waits would be answered with an error, and the
        // next daemon can answer it.
        std::process::exit(*exit as i32);
    }
    // Whatever still waits for the disk is work that may be cut off anywhere.
    runtime.shutdown_background();
    pulls.shutdown_background();
    served
}

/// On a new node the keeper starts beside this daemon, and gives it its directories, which are root's
/// before. What is still wrong after that, opening them will tell.
fn wait_for_directories(config: &Config) {
    use rustix::fs::{Access, access};
    let given = || {
        let parents = [&config.socket, &config.admin_socket].map(|socket| socket.parent());
        let mut all = parents.into_iter().flatten().chain([config.store.as_path()]);
        all.all(|directory| access(directory, Access::WRITE_OK) != Err(rustix::io::Errno::ACCESS))
    };
    let began = Instant::now();
    while !given() && began.elapsed() < KEEPER_PATIENCE {
        std::thread::sleep(STOP_INTERVAL);
    }
}

fn settings(config: &Config, endpoints: Endpoints) -> Settings {
    Settings {
        waits_for_room: true,
        watermarks: Watermarks { high: config.high_watermark, low: config.low_watermark },
        recheck: config.recheck,
        pods: pods(config),
        origin: remote::Options {
            anonymous: config.anonymous,
            requester_pays: config.requester_pays,
            region: config.region.clone(),
            endpoints,
            keys: None,
        },
    }
}

/// The daemon that has a keeper may look into none of kubelet's directories, and asks it.
fn pods(config: &Config) -> Pods {
    let pods = config.kubelet_dir.join("pods");
    let Some(MountAt::Keeper(socket)) = &config.mount else { return Pods::Directory(pods) };
    let keeper = Errands::new(socket);
    let asked = keeper.clone();
    let there = Box::new(move |uid: &str, patience| asked.within(patience).there(pods.join(uid)).ok());
    Pods::Asked { there, mounts: Box::new(move || csi::mounts(&keeper)) }
}

async fn serve(
    loaded: &Loaded,
    cache: &Arc<Cache>,
    pulls: &Handle,
    metrics: Arc<Metrics>,
    stop: Stop,
    started: Instant,
    serving: impl FnOnce(),
) -> Result<Exit, Failure> {
    let config = &loaded.config;
    let admin = control::bind(&config.admin_socket, 0o600, 0o700)?;
    let pods = control::bind(&config.socket, 0o666, 0o755)?;
    let scrapes = match config.listen {
        Some(address) => Some(TcpListener::bind(address).await.map_err(|error| {
            let hint = "name another address in the setting `listen`, or \"\" for none";
            Failure::hinted(Exit::Usage, format!("cannot listen at {address}: {error}"), hint)
        })?),
        None => None,
    };
    let (phase, phases) = watch::channel(Phase::Recovering);
    let allowed = config.clone();
    let cluster_metrics = Arc::clone(&metrics);
    let kubelet = Arc::new(csi::Tables::new(&cluster_metrics));
    let api = Arc::new(Api {
        cache: Arc::clone(cache),
        metrics,
        allows: Box::new(move |rights, source| match rights {
            Rights::Use => allowed.lets(Caller::Unnamed, source),
            Rights::Admin => allowed.allows(source),
        }),
        phase: phases,
        started: text::unix(SystemTime::now()),
        socket: config.socket.clone(),
        looks: control::Looks::default(),
        shared: control::SharedAnswers::default(),
        tables: control::Tables::new(&cluster_metrics),
        kubelet: kubelet.all(),
    });
    let (mounts, unmount) = mount(config, cache, pulls)?.unzip();
    let (closing, closed) = watch::channel(false);
    tokio::spawn(named("socket", control::serve(pods, Rights::Use, Arc::clone(&api), closed.clone())));
    tokio::spawn(named("admin_socket", control::serve(admin, Rights::Admin, Arc::clone(&api), closed.clone())));
    if let Some(scrapes) = scrapes {
        tokio::spawn(named("listen", control::serve_scrapes(scrapes, api, closed)));
    }
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        store = %config.store.display(),
        socket = %config.socket.display(),
        milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        "serving"
    );
    tell_recovered(cache.store().recovered());
    let phase = Arc::new(phase);
    let stop_scrub = Arc::new(AtomicBool::new(false));
    tokio::spawn(named("prove", prove(Arc::clone(cache), Arc::clone(&phase))));
    tokio::spawn(named("housekeeping", housekeeping::run(Arc::clone(cache))));
    tokio::spawn(named("heal", Arc::clone(cache).heal()));
    tokio::spawn(named("scrub", Arc::clone(cache).scrub(config.scrub_rate, Arc::clone(&stop_scrub))));
    tokio::spawn(named("prefetch", wants::follow(Arc::clone(cache), loaded.clone())));
    if let Err(failure) = cache.resume_arriving().await {
        tracing::warn!(error = %failure.message, "models that pods read while they arrive are fetched when they are read");
    }

    if let Some(node) = &config.node {
        let (pods, work) = cluster::Pods::new();
        let pods = Arc::new(pods::Told(pods));
        let of_mounts = |mounts: &Arc<Mounts>| serve_kubelet(config, node, cache, mounts, pods, &kubelet);
        let plugin = mounts.as_ref().map(of_mounts).transpose()?.flatten();
        // Where there is nothing to wait for, the node serves as soon as the cache does.
        let serving = plugin.map_or_else(|| watch::channel(true).1, |plugin| plugin.listening());
        let (node, allowed) = (node.clone(), config.clone());
        let allows = Arc::new(move |source: &Source| allowed.allows(source));
        let settings = cluster::Settings { node, allows, serving, metrics: cluster_metrics };
        tokio::spawn(named("cluster", cluster::follow(settings, Arc::clone(cache), work)));
    }

    let answers = match &config.mount {
        Some(MountAt::Directory(directory)) => answers(directory.clone()).await,
        _ => true,
    };
    if answers {
        serving();
    }
    let deadline = stop.asked().await;
    tracing::info!("stopping: what is on its way stays resumable");
    phase.send_replace(Phase::Stopping);
    closing.send_replace(true);
    stop_scrub.store(true, Ordering::Relaxed);
    cache.interrupt();
    while !cache.is_idle() && Instant::now() + STOP_MARGIN < deadline {
        tokio::time::sleep(STOP_INTERVAL).await;
    }
    // The last lines to those who wait are on their way through the sockets.
    tokio::time::sleep(STOP_INTERVAL).await;
    for socket in [&config.socket, &config.admin_socket] {
        let _ = std::fs::remove_file(socket);
    }
    if let Some(unmount) = unmount.flatten() {
        unmount.unmount();
    }
    tracing::info!("stopped");
    Ok(Exit::Done)
}

/// Is the CSI driver of the node, where there is a keeper for what only root may do.
fn serve_kubelet(
    config: &Config,
    node: &str,
    cache: &Arc<Cache>,
    mounts: &Mounts,
    pods: Arc<dyn csi::Cluster>,
    tables: &Arc<csi::Tables>,
) -> Result<Option<Arc<csi::Plugin>>, Failure> {
    let Some(MountAt::Keeper(socket)) = &config.mount else {
        tracing::warn!("there are no CSI volumes on this node: they need the setting `mount` to name a keeper");
        return Ok(None);
    };
    let rules = config.clone();
    let policy = move |pod: &csi::Pod, source: &Source| {
        let csi::Pod { namespace, service_account, .. } = pod;
        if rules.lets(Caller::Pod { namespace, service_account }, source) {
            return Ok(());
        }
        Err(Failure::hinted(
            Exit::Denied,
            format!("service account `{service_account}` of namespace `{namespace}` may not ask for `{source}`"),
            "the settings `sources` and `policy` of larder's daemon say who may",
        ))
    };
    let keeper = Errands::new(socket);
    let node = node.to_owned();
    let (policy, tables) = (Box::new(policy), Arc::clone(tables));
    let plugin = csi::Plugin::new(Arc::clone(cache), keeper, node, &config.kubelet_dir, policy, pods, tables)?;
    tokio::spawn(named("csi", Arc::clone(&plugin).run(mounts.count())));
    Ok(Some(plugin))
}

/// The mounts, and how to end one of our own.
type Mounting = (Arc<Mounts>, Option<Unmount>);

/// Mounts, or follows the keeper that does.
fn mount(config: &Config, cache: &Arc<Cache>, pulls: &Handle) -> Result<Option<Mounting>, Failure> {
    let Some(at) = &config.mount else { return Ok(None) };
    let mounts = Mounts::new(cache, pulls.clone(), config.read_timeout)
        .map_err(|error| Failure::new(Exit::Defect, format!("cannot serve a mount: {error}")))?;
    match at {
        MountAt::Directory(directory) => match mounts.mount(directory) {
            Ok(unmount) => Ok(Some((mounts, Some(unmount)))),
            Err(error) => Err(Failure::hinted(
                Exit::Usage,
                format!("cannot mount at `{}`: {error}", directory.display()),
                "mounting needs root, or fusermount3 of the package fuse3; with larder-keeper it needs neither: set `mount` to \"keeper:SOCKET\"",
            )),
        },
        MountAt::Keeper(socket) => {
            let (socket, followed) = (socket.clone(), Arc::clone(&mounts));
            std::thread::Builder::new()
                .name("keeper".into())
                .spawn(move || followed.follow(&socket))
                .map_err(|error| Failure::new(Exit::Defect, format!("cannot follow the keeper: {error}")))?;
            Ok(Some((mounts, None)))
        }
    }
}

/// Whether a mount of our own answers this user.
async fn answers(directory: PathBuf) -> bool {
    let asked = tokio::task::spawn_blocking(move || std::fs::read_dir(directory).map(drop));
    let problem = match tokio::time::timeout(MOUNT_PATIENCE, asked).await {
        Ok(Ok(Ok(()))) => return true,
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(panic)) => panic.to_string(),
        Err(late) => late.to_string(),
    };
    tracing::error!("the mount is made and cannot be read: {problem}");
    false
}

/// Hashes what another boot left unproven, while everything else is served.
async fn prove(cache: Arc<Cache>, phase: Arc<watch::Sender<Phase>>) {
    let proving = Arc::clone(&cache);
    match tokio::task::spawn_blocking(move || proving.store().prove()).await {
        Ok(Ok(recovered)) => tell_recovered(&recovered),
        Ok(Err(error)) => {
            tracing::error!(%error, "what the last boot left cannot be proven: it is fetched again when asked for");
        }
        Err(panic) => tracing::error!(%panic, "proving what the last boot left failed"),
    }
    cache.set_proven();
    phase.send_if_modified(|phase| {
        let recovering = *phase == Phase::Recovering;
        if recovering {
            *phase = Phase::Serving;
        }
        recovering
    });
}

fn tell_recovered(recovered: &crate::store::Recovered) {
    if recovered.lost_something() {
        tracing::warn!(
            blobs = recovered.dropped.len(),
            documents = recovered.unreadable.len(),
            catalog_lines = recovered.catalog_lines_dropped,
            "the last boot or crash cost some of the store: it is fetched again when asked for"
        );
    }
    if !recovered.proven.is_empty() {
        tracing::info!(blobs = recovered.proven.len(), "what was not synced before the last boot ended is right");
    }
}
