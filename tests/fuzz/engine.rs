//! Runs a target: its corpus, then mutations of it until the time is up.

use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use crate::coverage::Coverage;
use crate::memory;
use crate::mutator::{Mutator, Random};

/// One input may take this long. On a busy machine; a hang takes for ever.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// What a target may need beyond what there was before it.
pub const MEMORY_MAX: usize = 64 << 20;
/// How long a target runs unless `LARDER_FUZZ_SECONDS` says.
const SECONDS: f64 = 0.7;
/// Inputs and bytes that are kept because they reached something new.
const KEPT_MAX: usize = 4096;
const KEPT_LEN_MAX: usize = 8 << 20;

/// One at a time: memory and panics are the whole process's.
static TURN: Mutex<()> = Mutex::new(());
/// What panicked, in whatever thread.
static PANICKED: Mutex<Option<String>> = Mutex::new(None);
/// What runs now, and since when.
static RUNNING: Mutex<Option<(&'static str, Instant, Vec<u8>)>> = Mutex::new(None);

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an input came to: inputs with another outcome are worth keeping.
pub fn outcome(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// The outcome of a sentence: without its numbers, and without what it quotes.
pub fn sentence(text: &str) -> u64 {
    let quote = |c| matches!(c, '`' | '"');
    let said: String =
        text.split(quote).step_by(2).flat_map(str::chars).filter(|c| c.is_alphabetic()).take(200).collect();
    outcome(said)
}

/// A target.
pub struct Target {
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    words: Vec<&'static str>,
    len_max: usize,
}

impl Target {
    /// With the corpus of that name.
    pub fn named(name: &'static str) -> Self {
        let mut seeds = Vec::new();
        for directory in [corpus(name), found(name)] {
            let mut files: Vec<PathBuf> =
                fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
            files.sort();
            seeds.extend(files.iter().filter_map(|file| fs::read(file).ok()));
        }
        Self { name, seeds, words: Vec::new(), len_max: 64 << 10 }
    }

    /// With one input more to start from.
    pub fn seed(mut self, seed: impl Into<Vec<u8>>) -> Self {
        self.seeds.push(seed.into());
        self
    }

    /// With words that inputs are made of, `|` between them.
    pub fn words(mut self, words: &'static str) -> Self {
        self.words = words.split('|').collect();
        self
    }

    /// With inputs up to this length.
    pub fn len_max(mut self, len_max: usize) -> Self {
        self.len_max = len_max;
        self
    }

    /// Runs it.
    ///
    /// # Panics
    /// With where the input lies that it fails on.
    pub fn run(self, mut execute: impl FnMut(&[u8]) -> u64) {
        let _turn = locked(&TURN);
        watch();
        let seconds: Option<f64> = env::var("LARDER_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
        let seed = env::var("LARDER_FUZZ_SEED").ok().and_then(|text| text.parse().ok());
        // For a moment always the same way; for longer, each time another one.
        let by_clock = || std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos() as u64);
        let seed = seed.unwrap_or_else(|| if seconds.is_some() { by_clock() } else { 0 });
        let until = Instant::now() + Duration::from_secs_f64(seconds.unwrap_or(SECONDS));

        let Self { name, seeds, words, len_max } = self;
        assert!(!seeds.is_empty(), "{name} has no corpus");
        let (mut kept, mut kept_len) = (seeds, 0);
        let given = kept.len();
        let mut random = Random::new(seed);
        let (mut coverage, mut outcomes) = (Coverage::default(), std::collections::HashSet::new());
        let (mut executions, mut slowest) = (0_u64, Duration::ZERO);
        let before = memory::now();
        let mut peak = 0;
        let began = Instant::now();
        let mut told = began;
        // Whatever the corpus takes, some mutations are tried.
        while (executions as usize) < given + 10 || Instant::now() < until {
            let at = executions as usize;
            let input = if at < given {
                kept[at].clone()
            } else {
                Mutator { random: &mut random, corpus: &kept, words: &words, len_max }.input()
            };
            *locked(&RUNNING) = Some((name, Instant::now(), input.clone()));
            memory::forget_peak();
            Coverage::start();
            let started = Instant::now();
            let ended = catch_unwind(AssertUnwindSafe(|| execute(&input)));
            let took = started.elapsed();
            let is_news = coverage.is_news();
            *locked(&RUNNING) = None;
            let grown = memory::peak().saturating_sub(before);
            executions += 1;
            slowest = slowest.max(took);
            peak = peak.max(grown);
            let panicked = locked(&PANICKED).take();
            let why = match (&ended, panicked) {
                (_, Some(panic)) => Some(panic),
                (Err(_), None) => Some("it panicked".to_owned()),
                _ if took > PATIENCE => Some(format!("it took {took:?}")),
                _ if grown > MEMORY_MAX => Some(format!("it took {} MiB", grown >> 20)),
                _ => None,
            };
            if let Some(why) = why {
                let file = write(name, "failed", &input);
                panic!("{name}, seed {seed}, execution {executions}: {why}\nthe input: {}", file.display());
            }
            let outcome = ended.unwrap_or_default();
            let is_news = outcomes.insert(outcome) | is_news;
            if is_news && at >= given && kept.len() < KEPT_MAX && kept_len < KEPT_LEN_MAX {
                kept_len += input.len();
                if seconds.is_some() {
                    write(name, "kept", &input);
                }
                kept.push(input);
            }
            if told.elapsed() > Duration::from_mins(1) {
                told = Instant::now();
                println!("{}", figures(name, executions, began.elapsed(), kept.len(), &coverage, slowest, peak));
            }
        }
        println!("{}, seed {seed}", figures(name, executions, began.elapsed(), kept.len(), &coverage, slowest, peak));
    }
}

fn figures(
    name: &str,
    executions: u64,
    took: Duration,
    kept: usize,
    coverage: &Coverage,
    slowest: Duration,
    peak: usize,
) -> String {
    let per_second = executions as f64 / took.as_secs_f64().max(0.001);
    let places = coverage.places().map(|places| format!(", {places} places reached")).unwrap_or_default();
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    format!(
        "{name}: {executions} executions in {:.0} s ({per_second:.0}/s), corpus {kept}{places}, slowest {} ms, peak {:.1} MiB above the start, RSS {} MiB at most",
        took.as_secs_f64(),
        slowest.as_millis(),
        mib(peak),
        resident() >> 10,
    )
}

/// `VmHWM` of this process, in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name)
}

/// What longer runs keep for the next one.
fn found(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz/kept").join(name)
}

fn write(name: &str, kind: &str, input: &[u8]) -> PathBuf {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("fuzz").join(kind).join(name);
    fs::create_dir_all(&directory).expect("a directory");
    let file = directory.join(format!("{:016x}", outcome(input)));
    fs::write(&file, input).expect("a file");
    file
}

/// Hears of panics in all threads, and ends the process when an input hangs.
fn watch() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if locked(&RUNNING).is_some() {
                locked(&PANICKED).get_or_insert_with(|| panic.to_string());
            } else {
                before(panic);
            }
        }));
        thread::spawn(|| {
            loop {
                thread::sleep(Duration::from_secs(1));
                let running = locked(&RUNNING);
                if let Some((name, _, input)) = running.as_ref().filter(|(_, since, _)| since.elapsed() > 2 * PATIENCE)
                {
                    eprintln!("{name} hangs on the input {}", write(name, "failed", input).display());
                    std::process::abort();
                }
            }
        });
    });
}
