//! How many requests at once: found by measuring, never configured.
//!
//! Pure: told what a stretch of time brought, it answers with a limit. It starts modest, grows
//! while growing brings more, goes back when it does not, and gives way when the origin asks.

/// What one tick saw.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sample {
    /// Work done, in bytes per second; a small file counts for more than its bytes.
    pub goodput: f64,
    /// Whether the limit was in use: an idle pull teaches nothing.
    pub saturated: bool,
    /// Requests answered with "slow down" in the tick.
    pub throttled: u32,
    /// Requests finished in the tick, well or badly.
    pub requests: u32,
}

const LIMIT_START: u32 = 4;
/// The most connections to one origin: with 1 MiB of slices each, memory stays below 96 MiB.
pub const LIMIT_MAX: u32 = 64;
/// Growth must bring this much to be kept.
const GAIN_MIN: f64 = 1.06;
/// Ticks over which a step is judged: the first after a change is still mixed.
const TICKS_TO_SETTLE: u32 = 2;
/// Ticks to rest after growth stopped paying, before trying once more.
const TICKS_TO_REST: u32 = 20;

/// The controller.
#[derive(Debug, Clone)]
pub struct Concurrency {
    limit: u32,
    /// The limit and goodput before the step being judged.
    before: Option<(u32, f64)>,
    wait: u32,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self { limit: LIMIT_START, before: None, wait: TICKS_TO_SETTLE }
    }
}

impl Concurrency {
    /// Requests that may be in flight now.
    #[must_use]
    pub const fn limit(&self) -> u32 {
        self.limit
    }

    /// Learns from one tick.
    pub fn learn(&mut self, sample: Sample) {
        // One refusal in twenty is noise of a large service; more is a request to slow down.
        if sample.throttled > 0 && sample.throttled * 20 > sample.requests {
            self.limit = (self.limit / 2).max(1);
            self.before = None;
            self.wait = TICKS_TO_REST;
            return;
        }
        if !sample.saturated {
            return;
        }
        if self.wait > 0 {
            self.wait -= 1;
            return;
        }
        match self.before.take() {
            Some((limit, goodput)) if sample.goodput < goodput * GAIN_MIN => {
                self.limit = limit;
                self.wait = TICKS_TO_REST;
            }
            _ => {
                self.before = Some((self.limit, sample.goodput));
                let next = self.limit + (self.limit / 2).max(1);
                // A last step too small to pay could never be judged right: it is joined to this.
                self.limit = if next + next / 8 >= LIMIT_MAX { LIMIT_MAX } else { next };
                self.wait = TICKS_TO_SETTLE;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the controller against an origin whose goodput is a function of the limit.
    fn settle(goodput: impl Fn(u32) -> f64) -> u32 {
        let mut concurrency = Concurrency::default();
        let mut seen = Vec::new();
        for _ in 0..200 {
            let limit = concurrency.limit();
            concurrency.learn(Sample { goodput: goodput(limit), saturated: true, throttled: 0, requests: limit });
            seen.push(limit);
        }
        seen.sort_unstable();
        seen[seen.len() / 2]
    }

    #[test]
    fn grows_where_each_connection_is_slow() {
        assert_eq!(settle(|limit| f64::from(limit) * 1e7), LIMIT_MAX);
    }

    #[test]
    fn stays_modest_where_the_machine_is_the_limit() {
        assert_eq!(settle(|_| 1e9), LIMIT_START);
    }

    #[test]
    fn stops_near_the_knee() {
        let limit = settle(|limit| f64::from(limit.min(20)) * 5e7);
        assert!((13..=30).contains(&limit), "{limit}");
    }

    #[test]
    fn gives_way_when_asked_and_comes_back() {
        let mut concurrency = Concurrency::default();
        concurrency.learn(Sample { goodput: 1e8, saturated: true, throttled: 4, requests: 8 });
        assert_eq!(concurrency.limit(), 2);
        for tick in 0..100 {
            concurrency.learn(Sample {
                goodput: 1e8 * f64::from(concurrency.limit()),
                saturated: true,
                throttled: 0,
                requests: tick,
            });
        }
        assert!(concurrency.limit() > 8);
    }

    #[test]
    fn one_refusal_in_a_hundred_changes_nothing() {
        let mut concurrency = Concurrency::default();
        concurrency.learn(Sample { goodput: 1e8, saturated: true, throttled: 1, requests: 100 });
        assert_eq!(concurrency.limit(), LIMIT_START);
    }
}
