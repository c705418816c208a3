//! A cache beside a model of it, through tens of thousands of random steps: real files on a small
//! file system, a real origin on loopback, crashes, reboots, damage, pressure and callers that go
//! away half-way.
//!
//! What must hold after every step:
//!
//! - An answer names a model that its source was at some moment between the question and the
//!   answer; where a window allows it, what the source was when it was last asked; where a warning
//!   says so, what it was when it last answered. Its directory has exactly those bytes.
//! - Leased and pinned models stay, whole. Others go only when room is wanted, the one used longest
//!   ago first, or when they are removed, and then nothing of them is left that others do not share.
//! - No blob has other bytes than its name says, but for those in which the test turned a bit.
//! - What the status counts is what lies on the disk.
//! - Nothing is refused where there was room, and a refusal evicts nothing.
//! - A start finds everything as it was before a crash, and leaves nothing in `scratch/`.
//! - No step takes long, and nothing goes on in the background that nobody waits for.
//! - Nothing panics, also where nobody hears of it.
//!
//! `LARDER_STEPS` says how many steps there are, about, `LARDER_SEED` where to begin, and
//! `LARDER_STEPS_TOLD` tells of each. Seeds of cases that failed are kept in
//! `main.proptest-regressions` and tried first.

mod acts;
mod audit;
mod disk;
mod known;
mod life;
mod stage;
mod step;
mod walk;
mod world;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use proptest::test_runner::{Config, FileFailurePersistence, RngSeed, TestCaseError, TestRunner};

use disk::Disk;
use stage::{Checked, Stage};
use step::{Case, PODS};
use world::World;

/// Steps in all, about: a minute and a half of two busy cores. More are for whoever changes the
/// cache: `LARDER_STEPS=50000`.
const STEPS: usize = 13_000;
/// Steps of one case, at most; half of it on average.
const CASE_LEN_MAX: usize = 400;
/// MiB of the file system that has the store.
const DISK_LEN: u32 = 10;
/// No step may take longer.
const STEP_PATIENCE: Duration = Duration::from_secs(20);

/// Panics in this process so far, whichever thread it was.
static PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static HOOKED: Once = Once::new();
    HOOKED.call_once(|| {
        let told = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Relaxed);
            told(panic);
        }));
    });
}

/// Whether every step is told of as it is taken, and a failure not shortened.
fn is_told() -> bool {
    std::env::var_os("LARDER_STEPS_TOLD").is_some()
}

/// Where cases happen, one after the other.
struct Place {
    disk: Disk,
    world: RefCell<World>,
    kubelet: tempfile::TempDir,
    steps: Cell<usize>,
    longest: Cell<Duration>,
}

impl Place {
    fn new() -> Self {
        Self {
            disk: Disk::new(DISK_LEN),
            world: RefCell::new(World::new()),
            kubelet: tempfile::Builder::new().prefix("larder-kubelet-").tempdir().expect("a directory under /tmp"),
            steps: Cell::new(0),
            longest: Cell::new(Duration::ZERO),
        }
    }

    fn run(&self, case: &Case) -> Checked {
        count_panics();
        let panics = PANICS.load(Relaxed);
        let mut world = self.world.borrow_mut();
        world.reset();
        self.disk.clear();
        for pod in 0..PODS {
            std::fs::create_dir_all(self.kubelet.path().join("pods").join(life::pod(pod))).expect("a directory");
        }
        let mut stage = Stage {
            disk: &self.disk,
            world: &mut world,
            kubelet: self.kubelet.path(),
            recheck: if case.remembers { Duration::from_hours(1) } else { Duration::ZERO },
            life: None,
            held: Vec::new(),
            leases: BTreeMap::new(),
            pins: BTreeSet::new(),
            answered: BTreeMap::new(),
            unsure: BTreeSet::new(),
            spoiled: HashMap::new(),
            condemned: BTreeSet::new(),
            verified_meanwhile: false,
            broken: BTreeSet::new(),
            last: None,
            models: HashMap::new(),
            was_full: false,
            waits: case.waits,
        };
        stage.begin()?;
        stage.prove()?;
        for (at, step) in case.steps.iter().enumerate() {
            let started = Instant::now();
            let taken = stage.take(step);
            let took = started.elapsed();
            if is_told() {
                eprintln!("{at} {took:?} {step:?}");
                if let Some(life) = stage.life.as_ref() {
                    eprintln!("   {:?} {:?}", life.cache().status().map(|status| status.disk), self.disk.space());
                }
            }
            self.steps.set(self.steps.get() + 1);
            self.longest.set(self.longest.get().max(took));
            taken.map_err(|why| format!("step {at}, {step:?}: {why}"))?;
            stage::check!(took < STEP_PATIENCE, "step {at}, {step:?} took {took:?}");
            stage::check!(PANICS.load(Relaxed) == panics, "step {at}, {step:?}: something panicked");
        }
        stage.audit(false).map_err(|why| format!("at the end: {why}"))
    }
}

#[test]
fn the_cache_keeps_its_promises_through_any_steps() {
    let wanted = std::env::var("LARDER_STEPS").ok().and_then(|steps| steps.parse().ok()).unwrap_or(STEPS);
    let seed = std::env::var("LARDER_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let cases = u32::try_from((2 * wanted).div_ceil(CASE_LEN_MAX)).expect("a number of cases");
    let seeds = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/property/main.proptest-regressions");
    let mut runner = TestRunner::new(Config {
        cases,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(seeds))),
        max_shrink_time: 300_000,
        max_shrink_iters: if is_told() { 0 } else { 2_000 },
        // Whoever runs this twice sees the same twice; `LARDER_SEED` looks elsewhere.
        rng_seed: RngSeed::Fixed(seed),
        ..Config::default()
    });
    let (place, started) = (Place::new(), Instant::now());
    // While a failure is shortened, most attempts leave out what was left out already.
    let failed: RefCell<Option<(String, String)>> = RefCell::default();
    let ran = runner.run(&step::case(CASE_LEN_MAX), |case| {
        let text = format!("{case:?}");
        if let Some((_, why)) = failed.borrow().as_ref().filter(|(known, _)| *known == text) {
            return Err(TestCaseError::fail(why.clone()));
        }
        place.run(&case).map_err(|why| {
            *failed.borrow_mut() = Some((text, why.clone()));
            TestCaseError::fail(why)
        })
    });
    let (steps, took) = (place.steps.get(), started.elapsed());
    eprintln!(
        "{steps} steps in {took:.1?}, {:.2} ms each, the longest {:.1?}",
        took.as_secs_f64() * 1000.0 / steps.max(1) as f64,
        place.longest.get()
    );
    if let Err(error) = ran {
        panic!("{error}");
    }
}
