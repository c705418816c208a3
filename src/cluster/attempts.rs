//! When something that failed at the API server is tried again, and how often that is complained of.

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// The first wait after a failure; each is twice the one before.
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// No wait is longer.
const PAUSE_MAX: Duration = Duration::from_mins(5);
/// What is not allowed or not defined is not so a second later either: somebody has to apply it.
const PAUSE_REFUSED: Duration = Duration::from_mins(5);
/// A connection cut or two is every API server's upgrade.
const FAILURES_TOLD: u32 = 3;

/// What kind of failure it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// The service account may not.
    Forbidden,
    /// There is no such kind, or no such object.
    Missing,
    /// Everything that passes by itself.
    Other,
}

impl Trouble {
    /// The kind of an answer.
    #[must_use]
    pub fn of(error: &kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 403 => Self::Forbidden,
            kube::Error::Api(status) if status.code == 404 => Self::Missing,
            _ => Self::Other,
        }
    }
}

/// One thing that is asked of the API server again and again.
#[derive(Debug)]
pub struct Attempts {
    /// What it is, as the middle of a sentence.
    what: &'static str,
    /// What to apply where it is refused.
    remedy: &'static str,
    failures: u32,
    told: Option<Trouble>,
}

impl Attempts {
    /// Nothing was tried yet.
    #[must_use]
    pub const fn new(what: &'static str, remedy: &'static str) -> Self {
        Self { what, remedy, failures: 0, told: None }
    }

    /// It worked.
    pub fn worked(&mut self) {
        if self.told.take().is_some() {
            tracing::info!("{} works", self.what);
        }
        self.failures = 0;
    }

    /// It failed; how long to wait.
    pub fn failed(&mut self, trouble: Trouble, why: &dyn fmt::Display) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let is_due = trouble != Trouble::Other || self.failures >= FAILURES_TOLD;
        if is_due && self.told != Some(trouble) {
            self.told = Some(trouble);
            if trouble == Trouble::Other {
                tracing::warn!(error = %why, "{} does not work: it is tried again", self.what);
            } else {
                tracing::warn!(
                    error = %why,
                    "{} is not to be had: {}. It is tried again every five minutes; everything else goes on",
                    self.what,
                    self.remedy
                );
            }
        } else {
            tracing::debug!(error = %why, "{} does not work", self.what);
        }
        pause(trouble, self.failures, chance())
    }
}

/// How long to wait after so many failures. `chance` is from 0 to 1: a thousand daemons that lose the
/// same API server do not come back together.
fn pause(trouble: Trouble, failures: u32, chance: f64) -> Duration {
    match trouble {
        Trouble::Other => {
            let doubled = PAUSE_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16));
            doubled.min(PAUSE_MAX).mul_f64(0.5 + 0.5 * chance)
        }
        _ => around(PAUSE_REFUSED, chance),
    }
}

/// A time within 20 % of another. `chance` is from 0 to 1.
#[must_use]
pub fn around(time: Duration, chance: f64) -> Duration {
    time.mul_f64(0.8 + 0.4 * chance)
}

/// Any number from 0 to 1, unlike that of other nodes and of the last time.
#[must_use]
pub fn chance() -> f64 {
    let random = u32::try_from(RandomState::new().hash_one(0) >> 32).unwrap_or_default();
    f64::from(random) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_end_growing() {
        let longest = |failures| pause(Trouble::Other, failures, 1.0).as_secs();
        assert_eq!([1, 2, 3, 9, 10, u32::MAX].map(longest), [1, 2, 4, 256, 300, 300]);
        assert_eq!(pause(Trouble::Other, 10, 0.0).as_secs(), 150);
        assert_eq!(pause(Trouble::Forbidden, 1, 0.5), PAUSE_REFUSED);
        assert_eq!(pause(Trouble::Missing, 7, 0.0).as_secs(), 240);
    }

    #[test]
    fn chances_differ_and_stay_in_their_range() {
        let chances: Vec<f64> = (0..100).map(|_| chance()).collect();
        assert!(chances.iter().all(|chance| (0.0..=1.0).contains(chance)));
        assert!(chances.windows(2).any(|pair| (pair[0] - pair[1]).abs() > 0.01));
    }

    #[test]
    fn what_works_begins_anew() {
        let mut attempts = Attempts::new("it", "apply it");
        for _ in 0..20 {
            attempts.failed(Trouble::Other, &"away");
        }
        attempts.worked();
        assert!(attempts.failed(Trouble::Other, &"away") <= PAUSE_MIN);
        assert_eq!(attempts.told, None, "one failure is nothing to say");
        attempts.failed(Trouble::Forbidden, &"no");
        assert_eq!(attempts.told, Some(Trouble::Forbidden));
    }
}
