//! One life of the process that owns a store.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use larder::cache::{Cache, Endpoints, Event, Granted, LeaseWish, Owner, Pods, Settings, Watermarks, Wish};
use larder::remote;
use larder::report::Failure;
use larder::store::Store;
use larder::telemetry::Metrics;
use tokio::runtime::Runtime;

use crate::step::{Ask, Cut, Lease};
use crate::world::{World, selection};

pub const HIGH: u8 = 70;
pub const LOW: u8 = 50;
/// What winds down does so within this time, and a pull that found no origin tries again.
const PATIENCE: Duration = Duration::from_secs(15);

/// A cache and the threads under it.
pub struct Life {
    runtime: Runtime,
    cache: Arc<Cache>,
    /// Who holds the store when nothing happens.
    store_holders: usize,
    residency_holders: usize,
}

/// What became of an ask.
pub struct Answer {
    /// Nothing where the caller went away.
    pub result: Option<Result<Granted, Failure>>,
    /// Warnings that the origin gave no answer.
    pub stale_warnings: usize,
}

impl Life {
    /// Opens the store as a daemon does. What another boot left is not proven yet.
    pub fn begin(store: &Path, kubelet: &Path, endpoint: &str, recheck: Duration) -> Result<Self, String> {
        let started = Instant::now();
        let store = loop {
            // Threads of the life before may still be at work: the kernel waits for those of a
            // process that is killed.
            match Store::open_unproven(store, None) {
                Ok(store) => break store,
                Err(larder::store::Error::Busy { .. }) if started.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_micros(200));
                }
                Err(error) => return Err(format!("the store does not open: {error}")),
            }
        };
        let settings = Settings {
            // A thousand refusals, of which none is waited for by anybody else.
            waits_for_room: false,
            watermarks: Watermarks { high: HIGH, low: LOW },
            recheck,
            pods: Pods::Directory(kubelet.join("pods")),
            origin: remote::Options {
                anonymous: true,
                requester_pays: false,
                region: Some("us-east-1".to_owned()),
                endpoints: Endpoints::at(endpoint),
                keys: None,
            },
        };
        let cache =
            Cache::open(Arc::new(store), settings, Arc::new(Metrics::new("test"))).map_err(|e| e.to_string())?;
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).max_blocking_threads(16).enable_all().build().expect("a runtime");
        let store_holders = Arc::strong_count(cache.store());
        let residency_holders = Arc::strong_count(cache.residency());
        Ok(Self { runtime, cache, store_holders, residency_holders })
    }

    pub const fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    pub const fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Waits until nothing is on its way and nothing winds down; `held` leases of callers are out.
    pub fn quiesce(&self, held: usize) -> Result<(), String> {
        let started = Instant::now();
        loop {
            let (caches, stores) = (Arc::strong_count(&self.cache), Arc::strong_count(self.cache.store()));
            let callers = Arc::strong_count(self.cache.residency()).checked_sub(self.residency_holders);
            if caches == 1 && callers == Some(held) && stores == self.store_holders {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(format!(
                    "something never ends: {caches} hold the cache, {stores} the store, {callers:?} callers"
                ));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Ends without a goodbye: whatever is on its way stops where it waits.
    pub fn crash(self) {
        self.runtime.shutdown_background();
    }
}

/// The wish of an ask.
pub fn wish(world: &World, ask: &Ask) -> Wish {
    let lease = match ask.lease {
        Lease::None => LeaseWish::None,
        Lease::Caller => LeaseWish::Caller,
        other => LeaseWish::Owner(owner(other).expect("an owner")),
    };
    Wish::new(world.source(ask.wish), selection(ask.wish), ask.fresh, lease)
}

/// Who a lease is of, where that outlives a call.
pub fn owner(lease: Lease) -> Option<Owner> {
    let name = match lease {
        Lease::None | Lease::Caller => return None,
        Lease::Pod(number) => format!("pod:{}", pod(number)),
        Lease::Process => format!("process:{}", std::process::id()),
    };
    Some(Owner::parse(&name).expect("an owner"))
}

pub fn pod(number: u8) -> String {
    format!("pod-{number}")
}

/// Asks, and goes away when `cut` says so.
pub async fn ask(cache: Arc<Cache>, wish: Wish, cut: Cut) -> Answer {
    let mut stale_warnings = 0;
    let mut tell = |event| {
        stale_warnings += usize::from(matches!(event, Event::Warning { message } if message.contains("last answered")));
    };
    let ensured = cache.ensure(&wish, &mut tell);
    let result = match cut {
        Cut::Never => Some(ensured.await),
        Cut::Polls(polls) => polled(ensured, polls).await,
        Cut::Millis(millis) => tokio::time::timeout(Duration::from_millis(millis.into()), ensured).await.ok(),
    };
    Answer { result, stale_warnings }
}

async fn polled<F: Future>(future: F, mut polls: u8) -> Option<F::Output> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if polls == 0 => Poll::Ready(None),
        Poll::Pending => {
            polls -= 1;
            Poll::Pending
        }
    })
    .await
}
