//! When to ask again, and when to stop asking.

use std::time::{Duration, Instant};

use super::Error;
use crate::remote;

/// Attempts in a row without a byte of progress.
const ATTEMPTS_MAX: u32 = 9;
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// The longest that a server's `Retry-After` is believed.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(1);

/// The patience of one request: pauses double, and any progress makes it new.
#[derive(Debug)]
pub struct Patience {
    attempts: u32,
    since: Option<Instant>,
    seed: u64,
}

impl Patience {
    /// Fresh patience; `seed` spreads the pauses of many requests.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { attempts: 0, since: None, seed }
    }

    /// Bytes came: the budget is whole again.
    pub const fn progress(&mut self) {
        self.attempts = 0;
        self.since = None;
    }

    /// After a failure: how long to pause before the next attempt.
    ///
    /// # Errors
    /// The error itself when it is final; [`Error::GaveUp`] when the budget is gone.
    pub fn after(&mut self, error: remote::Error, now: Instant) -> Result<Duration, Error> {
        if !error.is_retryable() {
            return Err(error.into());
        }
        let since = *self.since.get_or_insert(now);
        self.attempts += 1;
        if self.attempts >= ATTEMPTS_MAX {
            return Err(Error::GaveUp { attempts: self.attempts, elapsed: now.duration_since(since), last: error });
        }
        let pause = (PAUSE_FIRST * 2_u32.pow(self.attempts - 1)).min(PAUSE_MAX);
        // Between half and whole: requests that failed together come back apart.
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let pause = pause / 2 + pause / 2 * u32::try_from(self.seed >> 40).unwrap_or(0) / (1 << 24);
        Ok(error.retry_after().map_or(pause, |asked| asked.min(RETRY_AFTER_MAX).max(pause)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow_down(retry_after: Option<Duration>) -> remote::Error {
        remote::Error::Throttled { uri: "s3://b/k".into(), detail: "503".into(), retry_after }
    }

    #[test]
    fn pauses_grow_and_end() {
        let mut patience = Patience::new(1);
        let now = Instant::now();
        let pauses: Vec<Duration> =
            (1..ATTEMPTS_MAX).map(|_| patience.after(slow_down(None), now).expect("goes on")).collect();
        assert!(pauses.last() > pauses.first());
        assert!(pauses.iter().all(|pause| *pause <= PAUSE_MAX));
        let end = patience.after(slow_down(None), now + Duration::from_secs(9)).expect_err("ends");
        assert!(end.to_string().contains("9 attempts in 9 s"), "{end}");
    }

    #[test]
    fn progress_and_retry_after() {
        let mut patience = Patience::new(1);
        for _ in 0..100 {
            let pause = patience.after(slow_down(Some(Duration::from_secs(3))), Instant::now()).expect("goes on");
            assert_eq!(pause, Duration::from_secs(3));
            patience.progress();
        }
        assert!(patience.after(remote::Error::Changed { uri: "x".into() }, Instant::now()).is_err());
    }
}
