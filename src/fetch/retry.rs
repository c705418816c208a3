//! When to ask again, and when to stop asking. Pure.

use std::time::{Duration, Instant};

use super::Error;
use crate::remote;

/// Attempts in a row without a byte of progress, at an origin that this pull never reached, or whose
/// answers are wrong.
const ATTEMPTS_MAX: u32 = 9;
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(8);
/// The longest that a server's `Retry-After` is believed.
const RETRY_AFTER_MAX: Duration = Duration::from_mins(1);
/// How long an origin may be away that this pull has reached before, unless somebody says otherwise:
/// one that is restarted, or a network that is mended.
pub const RETRY_FOR: Duration = Duration::from_mins(5);

/// The patience of one request: pauses double, and any progress makes it new.
#[derive(Debug)]
pub struct Patience {
    /// For an origin that was reached before.
    retry_for: Duration,
    attempts: u32,
    /// Of them, those whose answer was wrong: waiting mends none of these.
    wrong: u32,
    since: Option<Instant>,
    seed: u64,
}

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Again {
    /// How long to pause before the next attempt.
    pub pause: Duration,
    /// How long it is tried again from now on.
    pub left: Duration,
}

impl Patience {
    /// Fresh patience; `seed` spreads the pauses of many requests.
    #[must_use]
    pub const fn new(retry_for: Duration, seed: u64) -> Self {
        Self { retry_for, attempts: 0, wrong: 0, since: None, seed }
    }

    /// Bytes came: the budget is whole again.
    pub const fn progress(&mut self) {
        self.attempts = 0;
        self.wrong = 0;
        self.since = None;
    }

    /// After a failure: when to ask again. `reached` says whether the origin has answered this pull
    /// before: then it is away, else it may never have been there.
    ///
    /// # Errors
    /// The error itself when it is final; [`Error::GaveUp`] when the budget is gone.
    pub fn after(&mut self, error: remote::Error, now: Instant, reached: bool) -> Result<Again, Error> {
        if !error.is_retryable() {
            return Err(error.into());
        }
        let elapsed = now.duration_since(*self.since.get_or_insert(now));
        self.attempts += 1;
        self.wrong += u32::from(matches!(error, remote::Error::BadAnswer { .. }));
        let counted = if reached { self.wrong } else { self.attempts };
        let left = self.retry_for.saturating_sub(elapsed);
        if counted >= ATTEMPTS_MAX || left.is_zero() {
            return Err(Error::GaveUp { attempts: self.attempts, elapsed, last: error });
        }
        let pause = PAUSE_FIRST.saturating_mul(2_u32.saturating_pow(self.attempts - 1)).min(PAUSE_MAX);
        // Between half and whole: requests that failed together come back apart.
        self.seed = self.seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let pause = pause / 2 + pause / 2 * u32::try_from(self.seed >> 40).unwrap_or(0) / (1 << 24);
        let pause = error.retry_after().map_or(pause, |asked| asked.min(RETRY_AFTER_MAX).max(pause));
        // The last attempt comes when the time is up, and not later.
        Ok(Again { pause: pause.min(left), left })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slow_down(retry_after: Option<Duration>) -> remote::Error {
        remote::Error::Throttled { uri: "s3://b/k".into(), detail: "503".into(), retry_after }
    }

    fn away() -> remote::Error {
        remote::Error::Unavailable { uri: "s3://b/k".into(), detail: "connection refused".into() }
    }

    /// Asks until it gives up, with a clock that moves by the pauses alone: the pauses, and the error.
    fn ask(patience: &mut Patience, reached: bool, error: impl Fn() -> remote::Error) -> (Vec<Duration>, Error) {
        let (mut now, mut pauses) = (Instant::now(), Vec::new());
        loop {
            match patience.after(error(), now, reached) {
                Ok(again) => {
                    now += again.pause;
                    pauses.push(again.pause);
                }
                Err(error) => return (pauses, error),
            }
        }
    }

    #[test]
    fn pauses_grow_and_end_soon_where_the_origin_was_never_reached() {
        let (pauses, end) = ask(&mut Patience::new(RETRY_FOR, 1), false, || slow_down(None));
        assert_eq!(pauses.len(), 8);
        assert!(pauses.last() > pauses.first());
        assert!(pauses.iter().all(|pause| *pause <= PAUSE_MAX));
        assert!(end.to_string().contains("gave up after 9 attempts in "), "{end}");
    }

    #[test]
    fn an_origin_that_was_reached_is_waited_for_as_long_as_said() {
        for minutes in [1, 5, 60] {
            let retry_for = Duration::from_mins(minutes);
            let (pauses, end) = ask(&mut Patience::new(retry_for, 1), true, away);
            let waited: Duration = pauses.iter().sum();
            assert_eq!(waited, retry_for);
            assert!(pauses.len() as u64 > minutes * 60 / 8 && pauses.iter().all(|pause| *pause <= PAUSE_MAX));
            assert!(end.to_string().contains(&format!("attempts in {} s", minutes * 60)), "{end}");
        }
        let mut patience = Patience::new(Duration::from_mins(1), 1);
        let now = Instant::now();
        let left = |patience: &mut Patience, after: u64| {
            let again = patience.after(away(), now + Duration::from_secs(after), true).expect("goes on");
            again.left.as_secs()
        };
        assert_eq!([0, 20, 59].map(|after| left(&mut patience, after)), [60, 40, 1]);
        patience.progress();
        assert_eq!(left(&mut patience, 100), 60);
    }

    #[test]
    fn no_patience_is_one_attempt() {
        for reached in [false, true] {
            let (pauses, end) = ask(&mut Patience::new(Duration::ZERO, 1), reached, away);
            assert!(pauses.is_empty() && end.to_string().contains("1 attempts in 0 s"), "{end}");
        }
    }

    #[test]
    fn wrong_answers_are_not_mended_by_waiting() {
        let wrong = || remote::Error::BadAnswer { uri: "s3://b/k".into(), detail: "another range".into() };
        let (pauses, _) = ask(&mut Patience::new(RETRY_FOR, 1), true, wrong);
        assert_eq!(pauses.len(), 8);
    }

    #[test]
    fn progress_and_retry_after() {
        let mut patience = Patience::new(RETRY_FOR, 1);
        for _ in 0..100 {
            let again = patience.after(slow_down(Some(Duration::from_secs(3))), Instant::now(), false);
            assert_eq!(again.expect("goes on").pause, Duration::from_secs(3));
            patience.progress();
        }
        assert!(patience.after(remote::Error::Changed { uri: "x".into() }, Instant::now(), true).is_err());
    }
}
