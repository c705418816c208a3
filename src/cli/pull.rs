//! One pull by this process.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::args::{Origin, Retry};
use super::watch::INTERVAL;
use crate::cache::{Event, Moving, Puller, Rate, Ready, Tell, VerifyEvent};
use crate::domain::Source;
use crate::fetch::{Cancel, Engine, Listed, Progress, Pull, RETRY_FOR, Selection};
use crate::remote::{self, Endpoints};
use crate::report::Failure;
use crate::store::Store;

/// Pulls into a store that this process owns.
pub struct LocalPull<'a> {
    pub store: &'a Arc<Store>,
    pub origin: &'a Origin,
    /// The servers of buckets.
    pub endpoints: Endpoints,
    pub retry: Retry,
    pub cancel: &'a Cancel,
}

impl LocalPull<'_> {
    fn engine(&self) -> Engine {
        let retry_for = self.retry.retry_for.unwrap_or(RETRY_FOR);
        Engine::of_store(Arc::clone(self.store)).with_retry_for(retry_for)
    }

    /// Pulls one source; `tell` hears ten times a second how far it is.
    ///
    /// # Errors
    /// In words.
    pub async fn run(
        &self,
        source: &Source,
        selection: &Selection,
        tell: &mut (dyn FnMut(Event) + Send),
    ) -> Result<Ready, Failure> {
        let options = remote::Options {
            anonymous: self.origin.anonymous,
            requester_pays: self.origin.requester_pays,
            region: self.origin.region.clone(),
            endpoints: self.endpoints.clone(),
            keys: None,
        };
        let progress = Arc::new(Progress::default());
        let pull = Pull {
            engine: Arc::new(self.engine()),
            remote: self.cancel.guard(Box::pin(remote::open(source, &options))).await??,
            source: source.clone(),
            selection: selection.clone(),
            progress: Arc::clone(&progress),
            cancel: self.cancel.clone(),
            listed: Listed::new(None),
        };
        let (name, started, mut rate) = (source.to_string(), Instant::now(), Rate::default());
        let mut pulling = Box::pin(pull.run());
        loop {
            tokio::select! {
                biased;
                outcome = &mut pulling => return Ok(Ready::of(&name, &outcome?, &progress)),
                () = tokio::time::sleep(INTERVAL) => {
                    let per_second = rate.per_second(progress.bytes_moved.load(Relaxed));
                    tell(Event::Progress(Moving::of(&name, &progress, per_second, 1, started.elapsed())));
                }
            }
        }
    }
}

impl Puller for LocalPull<'_> {
    fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    async fn pull(&self, source: &Source, selection: &Selection, tell: Tell<'_>) -> Result<(), Failure> {
        let ready = self.run(source, selection, &mut |event| tell(event.into())).await?;
        tell(VerifyEvent::Done(ready));
        Ok(())
    }
}
