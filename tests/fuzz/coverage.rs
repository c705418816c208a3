//! Which code an input reached, by the counters of `-C instrument-coverage`. `tests/fuzz/run` builds
//! with them; without them what a target answers has to do.

#![cfg_attr(not(larder_coverage), expect(dead_code, clippy::unused_self, reason = "nothing is counted"))]

/// Counters that were seen, each with how often, in steps.
#[derive(Default)]
pub struct Coverage {
    seen: Vec<u8>,
}

#[cfg(larder_coverage)]
#[expect(unsafe_code, reason = "the counters are C's")]
mod counters {
    unsafe extern "C" {
        fn __llvm_profile_begin_counters() -> *mut u64;
        fn __llvm_profile_end_counters() -> *mut u64;
    }

    pub fn all() -> &'static mut [u64] {
        // SAFETY: the linker lays the counters of the whole program out between the two. Other threads
        // count in them at the same time, which costs a count at worst.
        unsafe {
            let (begin, end) = (__llvm_profile_begin_counters(), __llvm_profile_end_counters());
            let len = usize::try_from(end.offset_from(begin)).expect("in order");
            std::slice::from_raw_parts_mut(begin, len)
        }
    }
}

impl Coverage {
    /// Before an input.
    pub fn start() {
        #[cfg(larder_coverage)]
        counters::all().fill(0);
    }

    /// After it: whether it reached something new, or something more often by far.
    pub fn is_news(&mut self) -> bool {
        #[cfg(larder_coverage)]
        {
            let counters = counters::all();
            self.seen.resize(counters.len(), 0);
            let mut news = false;
            for (count, seen) in counters.iter().zip(&mut self.seen).filter(|(count, _)| **count > 0) {
                // 1, 2, 3, 4 to 7, 8 to 15, and so on, as of AFL.
                let step = 1 << (64 - count.leading_zeros()).min(8).saturating_sub(1);
                news |= *seen & step == 0;
                *seen |= step;
            }
            news
        }
        #[cfg(not(larder_coverage))]
        false
    }

    /// How many places were reached.
    pub fn places(&self) -> Option<usize> {
        #[cfg(larder_coverage)]
        return Some(self.seen.iter().filter(|seen| **seen > 0).count());
        #[cfg(not(larder_coverage))]
        None
    }
}
