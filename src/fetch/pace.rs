//! How long to wait for a slow answer: judged by what answers took lately, not by a fixed minute.
//!
//! Pure: a decaying histogram of waits in powers of two of a millisecond.

use std::time::Duration;

const BUCKETS: usize = 20;
/// Samples before the histogram is believed.
const SAMPLES_MIN: u32 = 32;
/// The histogram is halved at this many samples, so that the recent ones decide.
const SAMPLES_MAX: u32 = 1024;

/// Recent waits of one kind, and the wait that is too long.
#[derive(Debug, Clone)]
pub struct Pace {
    buckets: [u32; BUCKETS],
    count: u32,
    floor: Duration,
    ceiling: Duration,
}

impl Pace {
    /// Waits below `floor` are never too long, waits above `ceiling` always are.
    #[must_use]
    pub const fn new(floor: Duration, ceiling: Duration) -> Self {
        Self { buckets: [0; BUCKETS], count: 0, floor, ceiling }
    }

    /// Learns one wait that ended well.
    pub fn learn(&mut self, wait: Duration) {
        let millis = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let bucket = (64 - millis.leading_zeros()) as usize;
        self.buckets[bucket.min(BUCKETS - 1)] += 1;
        self.count += 1;
        if self.count >= SAMPLES_MAX {
            self.buckets.iter_mut().for_each(|bucket| *bucket /= 2);
            self.count = self.buckets.iter().sum();
        }
    }

    /// The wait that is always too long.
    #[must_use]
    pub const fn ceiling(&self) -> Duration {
        self.ceiling
    }

    /// The wait beyond which an answer counts as stalled: eight times what 98 of 100 took.
    #[must_use]
    pub fn too_long(&self) -> Duration {
        if self.count < SAMPLES_MIN {
            return self.ceiling;
        }
        let mut rest = self.count / 50;
        let slow = (0..BUCKETS).rev().find(|&at| {
            let here = self.buckets[at];
            let found = here > rest;
            rest = rest.saturating_sub(here);
            found
        });
        let millis = slow.map_or(1, |bucket| 1_u64 << bucket);
        Duration::from_millis(millis * 8).clamp(self.floor, self.ceiling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace::new(Duration::from_millis(400), Duration::from_secs(15))
    }

    #[test]
    fn knows_nothing_at_first() {
        assert_eq!(pace().too_long(), Duration::from_secs(15));
    }

    #[test]
    fn follows_what_is_usual() {
        let mut fast = pace();
        let mut slow = pace();
        for _ in 0..500 {
            fast.learn(Duration::from_millis(3));
            slow.learn(Duration::from_millis(300));
        }
        assert_eq!(fast.too_long(), Duration::from_millis(400));
        assert_eq!(slow.too_long(), Duration::from_millis(512 * 8));
        // A few outliers do not make patience, a new normal does.
        fast.learn(Duration::from_secs(5));
        assert_eq!(fast.too_long(), Duration::from_millis(400));
        for _ in 0..2000 {
            fast.learn(Duration::from_millis(300));
        }
        assert_eq!(fast.too_long(), Duration::from_millis(512 * 8));
    }
}
