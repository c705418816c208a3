//! `kill -9` of the daemon again and again, and nobody who reads notices more than a pause.
//!
//! The readers are threads of the test, those of mapped files too: a page that could not be read
//! would be a SIGBUS and the end of the whole test process.
//!
//! `LARDER_KILLS` sets how often; with `LARDER_OTHER`, another binary of the daemon takes turns with
//! the one under test.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use larder_origins::{Checksums, Fault, Front, Noise, Origin, SampleModel};
use serde_json::{Value, json};

use super::kept::Kept;
use super::root;
use crate::node::{PATIENCE, http};
use crate::support::upload;

/// Kills where nobody says how many.
const KILLS: u64 = 40;
/// Of what arrives meanwhile. Large enough to arrive for many kills.
const ARRIVING_LEN: usize = 32 << 20;
/// So slowly, on each connection: some of it arrives between two kills.
const PER_SECOND: u64 = 4 << 20;

/// What all readers share.
struct Load {
    stop: AtomicBool,
    running: AtomicU64,
    operations: AtomicU64,
    /// How long each open and read of a whole file took.
    times: Mutex<Vec<Duration>>,
}

impl Load {
    /// Does something until told to stop; a failure stops everybody.
    fn keep_doing(&self, seed: u64, mut what: impl FnMut(&mut Noise)) {
        let mut random = Noise::new(seed);
        let done = catch_unwind(AssertUnwindSafe(|| {
            while !self.stop.load(Relaxed) {
                what(&mut random);
                self.operations.fetch_add(1, Relaxed);
            }
        }));
        self.stop.store(true, Relaxed);
        self.running.fetch_sub(1, Relaxed);
        if let Err(panic) = done {
            resume_unwind(panic);
        }
    }
}

/// A complete model and its bytes.
struct Sealed {
    directory: PathBuf,
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Sealed {
    fn pick(&self, random: &mut Noise) -> &(PathBuf, Vec<u8>) {
        &self.files[random.below(self.files.len() as u64) as usize]
    }
}

/// What arrives now.
struct Arriving {
    number: u64,
    path: PathBuf,
    whole: Vec<u8>,
}

/// Reads some bytes somewhere; they must be right.
#[track_caller]
fn assert_some(file: &File, whole: &[u8], random: &mut Noise) {
    let at = random.below(whole.len() as u64) as usize;
    let len = (random.below(100_000) as usize + 1).min(whole.len() - at);
    let mut buffer = vec![0; len];
    file.read_exact_at(&mut buffer, at as u64).unwrap_or_else(|error| panic!("{len} bytes at {at}: {error}"));
    assert!(buffer == whole[at..at + len], "{len} bytes at {at} are wrong");
}

fn mapped(file: &File) -> memmap2::Mmap {
    #[expect(unsafe_code, reason = "a map is what loaders make")]
    // SAFETY: nothing changes the file.
    unsafe { memmap2::Mmap::map(file) }.expect("a map")
}

fn opened(path: &Path) -> File {
    File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Asks a daemon that may be away for a while; its last event, or its whole answer.
fn ask_until(socket: &Path, method: &str, path: &str, body: Option<&Value>, stop: &AtomicBool) -> Option<Value> {
    let body = body.map(ToString::to_string);
    while !stop.load(Relaxed) {
        let asked = catch_unwind(|| {
            let answer = http::ask(socket, method, path, body.as_ref().map(String::as_bytes)).ok()?;
            answer.events().last()
        });
        match asked {
            Ok(Some(answer)) if !answer.is_null() => return Some(answer),
            // Killed in the middle of a word.
            _ => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    None
}

/// Begins to pull another slow model, and lets a pod in at once.
fn arrive(origin: &Origin, socket: &Path, number: u64, stop: &AtomicBool) -> Option<Arriving> {
    let whole = Noise::new(1000 + number).bytes(ARRIVING_LEN);
    origin.bucket().put(&format!("a{number}/model.safetensors"), whole.clone(), Checksums::none());
    let wish = json!({"source": format!("s3://models/a{number}/"), "lazy": true, "lease": "pod:p"});
    loop {
        let answer = ask_until(socket, "POST", "/v1/ensure", Some(&wish), stop)?;
        if answer["event"] == "ready" {
            let directory = PathBuf::from(answer["path"].as_str().expect("a path"));
            return Some(Arriving { number, path: directory.join("model.safetensors"), whole });
        }
        assert_ne!(answer["event"], "error", "{answer}");
    }
}

/// What they all do.
struct Readers<'a> {
    load: &'a Load,
    sealed: &'a Sealed,
    mount: &'a Path,
    arriving: &'a RwLock<Arc<Arriving>>,
}

impl Readers<'_> {
    fn newest(&self) -> Arc<Arriving> {
        Arc::clone(&self.arriving.read().expect("not poisoned"))
    }

    fn read_whole_files(&self) {
        self.load.keep_doing(1, |random| {
            let (path, bytes) = self.sealed.pick(random);
            let asked = Instant::now();
            let read = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            self.load.times.lock().expect("not poisoned").push(asked.elapsed());
            assert!(read == *bytes, "{} is wrong", path.display());
        });
    }

    fn look_around(&self) {
        let names = |directory: &Path| -> Vec<_> {
            let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
            entries.map(|entry| entry.expect("an entry").file_name()).collect()
        };
        let (sealed, directory) = (self.sealed, &self.sealed.directory);
        let top: BTreeSet<_> =
            sealed.files.iter().filter_map(|(path, _)| path.strip_prefix(directory).ok()?.iter().next()).collect();
        let link = self.mount.join("sources/s3/models/m@");
        self.load.keep_doing(2, |random| {
            let (path, bytes) = sealed.pick(random);
            let stat = fs::metadata(path).unwrap_or_else(|error| panic!("stat: {error}"));
            assert_eq!((stat.len(), stat.mode() & 0o7777), (bytes.len() as u64, 0o444));
            let listed = names(directory);
            assert_eq!(listed.iter().map(OsString::as_os_str).collect::<BTreeSet<_>>(), top, "the model's directory");
            assert!(names(self.mount).iter().any(|name| Some(name.as_os_str()) == directory.file_name()));
            assert!(!names(&self.mount.join("arriving")).is_empty(), "a model arrives all the time");
            assert_eq!(fs::canonicalize(&link).expect("a link"), *directory);
            for above in [directory, self.mount] {
                let absent = above.join(format!("absent-{}", random.below(1000)));
                assert_eq!(fs::metadata(absent).expect_err("absent").kind(), ErrorKind::NotFound);
            }
        });
    }

    fn read_at_random(&self) {
        let mut files: Vec<_> = self.sealed.files.iter().map(|(path, bytes)| (opened(path), path, bytes)).collect();
        self.load.keep_doing(3, |random| {
            let which = random.below(files.len() as u64) as usize;
            let (file, path, bytes) = &mut files[which];
            assert_some(file, bytes, random);
            if random.below(50) == 0 {
                *file = opened(path);
            }
        });
    }

    fn touch_a_map(&self) {
        let (path, bytes) = self.sealed.files.iter().max_by_key(|(_, bytes)| bytes.len()).expect("a file");
        let mut map = mapped(&opened(path));
        self.load.keep_doing(4, |random| {
            for _ in 0..200 {
                let at = random.below(bytes.len() as u64) as usize;
                assert_eq!(map[at], bytes[at], "the byte at {at} of the map");
            }
            map = mapped(&opened(path));
            std::thread::sleep(Duration::from_millis(1));
        });
    }

    fn read_what_arrives(&self) {
        let mut one = self.newest();
        let mut file = opened(&one.path);
        self.load.keep_doing(5, |random| {
            assert_some(&file, &one.whole, random);
            if random.below(4) == 0 {
                one = self.newest();
                file = opened(&one.path);
            }
        });
    }

    fn touch_a_map_of_what_arrives(&self) {
        let mut one = self.newest();
        let mut map = mapped(&opened(&one.path));
        self.load.keep_doing(6, |random| {
            let at = random.below(one.whole.len() as u64) as usize;
            assert_eq!(map[at], one.whole[at], "the byte at {at} of the map of what arrives");
            if self.newest().number != one.number {
                one = self.newest();
                map = mapped(&opened(&one.path));
            }
        });
    }

    /// A small model comes and goes: what the kernel knows of it goes too.
    fn pull_and_remove(&self, socket: &Path, admin: &Path) {
        let source = "s3://models/c/";
        self.load.keep_doing(8, |_| {
            let wish = json!({"source": source});
            let Some(ready) = ask_until(socket, "POST", "/v1/ensure", Some(&wish), &self.load.stop) else { return };
            if ready["event"] != "ready" {
                assert_ne!(ready["event"], "error", "{ready}");
                return;
            }
            let file = Path::new(ready["path"].as_str().expect("a path")).join("config.json");
            assert_eq!(fs::read(&file).expect("a file that was never removed"), b"{}");
            let removal = json!({"models": [source]});
            if ask_until(admin, "POST", "/v1/remove", Some(&removal), &self.load.stop).is_none() {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        });
    }

    /// When all of it is here, the next model begins to arrive.
    fn bring_the_next(&self, origin: &Origin, socket: &Path) {
        self.load.keep_doing(7, |_| {
            std::thread::sleep(Duration::from_millis(100));
            let number = self.newest().number;
            let Some(answer) = ask_until(socket, "GET", "/v1/models", None, &self.load.stop) else { return };
            let is_here =
                |model: &Value| model["source"] == format!("s3://models/a{number}/") && model["state"] == "complete";
            if !answer["models"].as_array().is_some_and(|models| models.iter().any(is_here)) {
                return;
            }
            let Some(next) = arrive(origin, socket, number + 1, &self.load.stop) else { return };
            *self.arriving.write().expect("not poisoned") = Arc::new(next);
            origin.bucket().remove(&format!("a{number}/model.safetensors"));
        });
    }
}

#[test]
fn a_daemon_that_is_killed_again_and_again_costs_no_reader_an_error() {
    let kills = std::env::var("LARDER_KILLS").map_or(KILLS, |kills| kills.parse().expect("a number"));
    let other = std::env::var_os("LARDER_OTHER").map(PathBuf::from);
    let origin = Origin::start(Front::S3).expect("an origin");
    let mut model = SampleModel::new(5, 3, 1 << 20);
    model.files.retain(|_, bytes| !bytes.is_empty());
    upload(origin.bucket(), "m/", &model, Checksums::multipart());
    origin.bucket().put("c/config.json", b"{}".to_vec(), Checksums::none());
    origin.misbehave_on_reads(|_, request| request.path.contains("/a").then_some(Fault::Slow(PER_SECOND)));
    let Some(mut kept) = Kept::started(&origin) else { return };
    kept.node.begin_pod("p");
    let ready = kept.node.ready(&json!({"source": "s3://models/m/", "lease": "pod:p"}));
    let directory = PathBuf::from(ready["path"].as_str().expect("a path"));
    let files = model.files.iter().map(|(path, bytes)| (directory.join(path), bytes.clone())).collect();
    let sealed = Sealed { directory, files };
    let mount = root(&kept.node);
    let (socket, admin) = (kept.node.socket(), kept.node.admin_socket());
    let load = Load {
        stop: AtomicBool::new(false),
        running: AtomicU64::new(0),
        operations: AtomicU64::new(0),
        times: Mutex::default(),
    };
    let first = arrive(&origin, &socket, 0, &load.stop).expect("a model that arrives");
    let arriving = RwLock::new(Arc::new(first));
    let mut downs = Vec::new();
    let began = Instant::now();
    let readers = Readers { load: &load, sealed: &sealed, mount: &mount, arriving: &arriving };
    let workers: [&(dyn Fn() + Sync); 8] = [
        &|| readers.read_whole_files(),
        &|| readers.look_around(),
        &|| readers.read_at_random(),
        &|| readers.touch_a_map(),
        &|| readers.read_what_arrives(),
        &|| readers.touch_a_map_of_what_arrives(),
        &|| readers.bring_the_next(&origin, &socket),
        &|| readers.pull_and_remove(&socket, &admin),
    ];
    load.running.store(workers.len() as u64, Relaxed);
    std::thread::scope(|scope| {
        for worker in workers {
            scope.spawn(worker);
        }
        let driven = catch_unwind(AssertUnwindSafe(|| {
            let mut random = Noise::new(2026);
            for kill in 0..kills {
                std::thread::sleep(Duration::from_millis(100 + random.below(400)));
                if load.stop.load(Relaxed) {
                    return;
                }
                let killed = Instant::now();
                kept.node.kill();
                if let Some(other) = &other {
                    kept.run(if kill % 2 == 0 { other } else { Path::new(env!("CARGO_BIN_EXE_larder")) });
                }
                kept.node.start();
                downs.push(killed.elapsed());
            }
            load.stop.store(true, Relaxed);
            let stopped = Instant::now();
            while load.running.load(Relaxed) > 0 {
                assert!(stopped.elapsed() < PATIENCE, "readers hang\n{}", kept.logs());
                std::thread::sleep(Duration::from_millis(5));
            }
        }));
        load.stop.store(true, Relaxed);
        if let Err(panic) = driven {
            // Or those who wait would wait for ever.
            kept.end();
            resume_unwind(panic);
        }
    });
    let spread = |mut times: Vec<Duration>| {
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        format!("half within {:?}, 99 of 100 within {:?}, at most {:?}", at(50), at(99), at(100))
    };
    let times = std::mem::take(&mut *load.times.lock().expect("not poisoned"));
    assert!(times.len() as u64 > kills, "{} files were read", times.len());
    eprintln!(
        "{kills} kills{} in {:?} under {} operations, no error; {} models arrived\n  open and read of a file ({} times): {}\n  kill to answering: {}",
        other.as_ref().map(|other| format!(", every second start by {}", other.display())).unwrap_or_default(),
        began.elapsed(),
        load.operations.load(Relaxed),
        arriving.read().expect("not poisoned").number,
        times.len(),
        spread(times),
        spread(downs),
    );
    let log = kept.node.log();
    assert!(!log.contains("a reader of the mount got an error"), "{log}");
    // Every open was noted once, and every close: nothing is in use any more.
    let node = &kept.node;
    node.end_pod("p");
    node.until("the leases end with the pod", |status| status["leases"].as_array().is_some_and(Vec::is_empty));
    super::until_removed(node, "s3://models/m/");
}
