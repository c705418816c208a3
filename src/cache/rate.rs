//! How fast bytes come, smoothed over a few seconds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The rate is an average over about this long.
const WINDOW: Duration = Duration::from_secs(5);

/// Bytes per second.
#[derive(Debug)]
pub struct Rate {
    samples: VecDeque<(Instant, u64)>,
}

impl Default for Rate {
    fn default() -> Self {
        Self { samples: [(Instant::now(), 0)].into() }
    }
}

impl Rate {
    /// Notes how many bytes came until now, and says how many come per second. Asked a hundred times
    /// a second it keeps some hundreds of samples.
    pub fn per_second(&mut self, bytes: u64) -> u64 {
        self.at(Instant::now(), bytes)
    }

    fn at(&mut self, now: Instant, bytes: u64) -> u64 {
        self.samples.push_back((now, bytes));
        while self.samples.len() > 2 && now.duration_since(self.samples[0].0) > WINDOW {
            self.samples.pop_front();
        }
        let (since, before) = self.samples[0];
        let millis = u64::try_from(now.duration_since(since).as_millis()).unwrap_or(u64::MAX).max(1);
        bytes.saturating_sub(before).saturating_mul(1000) / millis
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_long_past_does_not_count() {
        let mut rate = Rate::default();
        let start = rate.samples[0].0;
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(rate.at(at(1), 1000), 1000);
        assert_eq!(rate.at(at(2), 1000), 500);
        for second in 3..=10 {
            rate.at(at(second), 1000);
        }
        assert_eq!(rate.at(at(11), 1000), 0);
        assert_eq!(rate.at(at(12), 6000), 1000);
    }
}
