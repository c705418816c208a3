//! A node whose disk is too small for what is asked of it, and which others fill as well.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use larder_origins::{Checksums, Front, Noise, Origin};
use serde_json::{Value, json};

use crate::node::{Node, http, quoted};
use crate::support::skipped;

pub const MIB: u64 = 1 << 20;
/// What is written beside blobs: manifests, source documents, journals, and the file system's own.
pub const SMALL_CHANGE: u64 = 3 * MIB;

/// Which file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tmpfs,
    /// On a file, by way of a loop device.
    Ext4,
    /// The same with so many inodes, rounded up to whole groups of them.
    FewInodes(u64),
}

/// A mounted file system, unmounted with the value.
pub struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    /// Mounts an empty one below the node's directory, and puts the store on it. Nothing, with a
    /// printed reason, where this machine cannot.
    pub fn of(node: &mut Node, kind: Kind, mebibytes: u64, test: &str) -> Option<Self> {
        let disk = Self::at(node, node.path("disk"), kind, mebibytes, test)?;
        node.set("store", &quoted(&disk.at.join("store")));
        Some(disk)
    }

    /// The same where the store is, for a keeper that knows no other place.
    pub fn at_store(node: &Node, kind: Kind, mebibytes: u64, test: &str) -> Option<Self> {
        Self::at(node, node.store(), kind, mebibytes, test)
    }

    fn at(node: &Node, at: PathBuf, kind: Kind, mebibytes: u64, test: &str) -> Option<Self> {
        fs::create_dir_all(&at).expect("a directory");
        let done = match kind {
            Kind::Tmpfs => {
                ran(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "larder"]).arg(&at))
            }
            Kind::Ext4 | Kind::FewInodes(_) => {
                let image = node.path("image");
                File::create(&image).and_then(|file| file.set_len(mebibytes * MIB)).expect("a file");
                let mut mkfs = Command::new("mkfs.ext4");
                if let Kind::FewInodes(inodes) = kind {
                    mkfs.args(["-N", &inodes.to_string()]);
                }
                ran(mkfs.args(["-q", "-F"]).arg(&image))
                    && ran(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at))
            }
        };
        if !done {
            skipped(test, &format!("no {kind:?} can be mounted here"));
            return None;
        }
        Some(Self { at })
    }

    /// Bytes in use of those that an unprivileged user could ever write, and all of these.
    pub fn used(&self) -> (u64, u64) {
        let stat = rustix::fs::statvfs(&self.at).expect("a file system");
        let total = (stat.f_blocks - (stat.f_bfree - stat.f_bavail)) * stat.f_frsize;
        (total - stat.f_bavail * stat.f_frsize, total)
    }

    /// Inodes that are free.
    fn free_inodes(&self) -> u64 {
        rustix::fs::statvfs(&self.at).expect("a file system").f_favail
    }

    fn high(&self) -> u64 {
        self.used().1 * 80 / 100
    }

    /// What others write there: a file of that many bytes, or of as many as there is room for.
    pub fn fill(&self, bytes: u64) {
        // A store lets nobody else stand beside it but this directory.
        let others = self.at.join("lost+found");
        fs::create_dir_all(&others).expect("a directory");
        let mut file = File::create(others.join("others")).expect("a file");
        let block = vec![7; 1 << 16];
        let _ = (0..bytes.div_ceil(1 << 16)).try_for_each(|_| file.write_all(&block));
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, as the daemon may still have it open.
        ran(Command::new("umount").arg("-l").arg(&self.at));
    }
}

fn ran(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// A model of two files, `mebibytes` in all.
pub fn put(origin: &Origin, number: u64, mebibytes: u64) {
    let part = usize::try_from(mebibytes * MIB / 2).expect("a length");
    for file in 0..2 {
        let bytes = Noise::new(number * 2 + file).bytes(part);
        origin.bucket().put(&format!("m{number}/w-{file}.safetensors"), bytes, Checksums::multipart());
    }
}

fn take_away(origin: &Origin, number: u64) {
    (0..2).for_each(|file| origin.bucket().remove(&format!("m{number}/w-{file}.safetensors")));
}

pub fn source(number: u64) -> String {
    format!("s3://models/m{number}/")
}

/// The file of a model that is ready has the bytes of its number.
#[track_caller]
pub fn is_right(ready: &Value, number: u64, mebibytes: u64) {
    let part = usize::try_from(mebibytes * MIB / 2).expect("a length");
    for file in 0..2 {
        let path = Path::new(ready["path"].as_str().expect("a path")).join(format!("w-{file}.safetensors"));
        assert!(fs::read(&path).expect("a file") == Noise::new(number * 2 + file).bytes(part), "`{}`", path.display());
    }
}

/// The refusal names every figure that the decision was made of.
#[track_caller]
fn is_refusal(event: &Value) {
    let message = event["message"].as_str().expect("a message");
    assert_eq!((&event["event"], &event["exit_code"]), (&json!("error"), &json!(74)), "{event}");
    for word in
        ["not enough room", " needed", " free below the high watermark of 80 %", " evictable", " pinned", " in use"]
    {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
    let hint = event["hint"].as_str().expect("a hint");
    assert!(hint.contains("larder status"), "{hint}");
}

/// Either the refusal, or what the disk itself said.
#[track_caller]
fn is_about_room(event: &Value) {
    if !event["message"].as_str().is_some_and(|message| message.contains("No space left on device")) {
        is_refusal(event);
    }
    assert_eq!(event["exit_code"], 74, "{event}");
}

fn listed(node: &Node) -> Vec<Value> {
    let mut models = node.ask("GET", "/v1/models", None).1["models"].as_array().expect("models").clone();
    models.retain(|model| model["state"] != "partial");
    models
}

pub fn has(node: &Node, number: u64) -> bool {
    listed(node).iter().any(|model| model["source"] == source(number) && model["state"] == "complete")
}

/// Says so when it is dropped.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// How much was in use at most while `work` ran.
fn most_used(disk: &SmallDisk, work: impl FnOnce()) -> u64 {
    let (most, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Relaxed) {
                most.fetch_max(disk.used().0, Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        // Also when the work panics, or the scope would wait for ever.
        let _ends = Ends(&ended);
        work();
    });
    most.load(Relaxed)
}

/// A stream of models three times the size of the disk, from three callers at once.
fn stream(kind: Kind, test: &str) {
    const MODEL: u64 = 20;
    const MODELS: u64 = 30;
    let origin = Origin::start(Front::S3).expect("an origin");
    let mut node = Node::at(&origin);
    let Some(disk) = SmallDisk::of(&mut node, kind, 200, test) else { return };
    node.start();
    node.begin_pod("user");
    for number in [100, 101] {
        put(&origin, number, MODEL);
    }
    let leased = node.ready(&json!({"source": source(100), "lease": "pod:user"}));
    node.ready(&json!({"source": source(101)}));
    let (status, told) = node.ask_admin("POST", "/v1/pin", Some(&json!({"model": source(101)})));
    assert_eq!(status, 200, "{told}");
    let next = AtomicU64::new(0);
    let most = most_used(&disk, || {
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Relaxed);
                        if number >= MODELS {
                            return;
                        }
                        put(&origin, number, MODEL);
                        let ready = node.ready(&json!({"source": source(number)}));
                        assert_eq!(ready["bytes_moved"], MODEL * MIB, "{ready}");
                        take_away(&origin, number);
                    }
                });
            }
        });
    });
    let high = disk.high();
    eprintln!("{kind:?}: {most} of {high} bytes below the high mark were in use at most");
    assert!(most <= high + SMALL_CHANGE, "{most} bytes were in use, the high mark is {high}");
    let status = node.status();
    let evictions = status["totals"]["evictions"].as_u64().expect("a count");
    assert!(evictions >= MODELS - 8, "{evictions} of {MODELS} models were evicted");
    assert!(has(&node, 100) && has(&node, 101), "{:?}", listed(&node));
    is_right(&leased, 100, MODEL);
    // What is counted is what is there, once what was evicted last has been deleted.
    node.until("what is counted is what is there", |status| {
        let (used, size) = disk.used();
        status["disk"]["free"] == size - used
    });
}

#[test]
fn a_stream_of_models_stays_below_the_mark_on_tmpfs() {
    stream(Kind::Tmpfs, "a_stream_of_models_stays_below_the_mark_on_tmpfs");
}

#[test]
fn a_stream_of_models_stays_below_the_mark_on_ext4() {
    stream(Kind::Ext4, "a_stream_of_models_stays_below_the_mark_on_ext4");
}

#[test]
fn what_cannot_fit_is_refused_before_a_byte_moves_and_evicts_nothing() {
    let test = "what_cannot_fit_is_refused_before_a_byte_moves_and_evicts_nothing";
    let origin = Origin::start(Front::S3).expect("an origin");
    let mut node = Node::at(&origin);
    let Some(disk) = SmallDisk::of(&mut node, Kind::Tmpfs, 64, test) else { return };
    node.start();
    node.begin_pod("user");
    (0..5).for_each(|number| put(&origin, number, 8));
    node.ready(&json!({"source": source(0), "lease": "pod:user"}));
    node.ready(&json!({"source": source(1)}));
    node.ask_admin("POST", "/v1/pin", Some(&json!({"model": source(1)})));
    (2..5).for_each(|number| drop(node.ready(&json!({"source": source(number)}))));

    // Larger than the disk, and then only larger than what may go and what is free together.
    for (number, mebibytes) in [(10, 80), (11, 40)] {
        put(&origin, number, mebibytes);
        let (before, reads) = (listed(&node), origin.reads());
        let events = node.ensure(&json!({"source": source(number)}));
        let refusal = events.last().expect("an event");
        is_refusal(refusal);
        let message = refusal["message"].as_str().expect("a message");
        let figures = format!("{mebibytes}.0 MiB needed");
        assert!(message.contains(&figures), "no `{figures}` in: {message}");
        assert!(message.contains("24.0 MiB evictable, 8.0 MiB pinned, 8.0 MiB in use"), "{message}");
        assert_eq!(origin.reads(), reads, "something moved");
        let sources = |models: &[Value]| models.iter().map(|model| model["source"].clone()).collect::<Vec<_>>();
        assert_eq!(sources(&listed(&node)), sources(&before), "something went, or came");
        assert_eq!(node.status()["totals"]["evictions"], 0);
    }
    // And what fits comes, when enough goes for it.
    put(&origin, 12, 20);
    is_right(&node.ready(&json!({"source": source(12)})), 12, 20);
    assert!(has(&node, 0) && has(&node, 1) && has(&node, 12), "{:?}", listed(&node));
    assert!(disk.used().0 <= disk.high() + SMALL_CHANGE);
}

/// Everything that callers met while others filled the disk.
#[derive(Debug, Default)]
struct Met {
    ready: AtomicU64,
    refused: AtomicU64,
    slowest: Mutex<Duration>,
}

/// A model of so many tiny files, a hundred in each directory.
fn put_many(origin: &Origin, number: u64, files: u64) {
    for file in 0..files {
        let key = format!("m{number}/{}/{file}.json", file / 100);
        origin.bucket().put(&key, format!("{number} {file}"), Checksums::single_part());
    }
}

#[test]
fn inodes_are_room_too() {
    const FILES: u64 = 300;
    let origin = Origin::start(Front::S3).expect("an origin");
    let mut node = Node::at(&origin);
    let Some(disk) = SmallDisk::of(&mut node, Kind::FewInodes(1_600), 32, "inodes_are_room_too") else { return };
    node.start();
    node.begin_pod("user");
    let free = disk.free_inodes();
    (0..4).for_each(|number| put_many(&origin, number, FILES));
    node.ready(&json!({"source": source(0), "lease": "pod:user"}));
    let status = node.status();
    let inodes = &status["disk"]["inodes"];
    assert_eq!(inodes["free"], disk.free_inodes(), "{status}");
    assert!(inodes["leased"].as_u64().expect("a count") >= FILES && inodes["store"] == inodes["leased"], "{status}");
    // Each takes what the one before it had, though there are bytes enough for all.
    for number in 1..4 {
        let ready = node.ready(&json!({"source": source(number)}));
        assert_eq!(ready["files"], FILES, "{ready}");
    }
    assert!(has(&node, 0) && has(&node, 3) && !has(&node, 1), "{:?}", listed(&node));

    // What cannot fit is refused before a file is made, by name.
    let files = free + 100;
    put_many(&origin, 10, files);
    let reads = origin.reads();
    let events = node.ensure(&json!({"source": source(10)}));
    let message = events.last().expect("an event")["message"].as_str().expect("a message").to_owned();
    assert!(message.starts_with("not enough inodes in "), "{message}");
    for word in [" needed", " free below the high watermark of 90 %", " evictable", " pinned", " in use"] {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
    assert_eq!(origin.reads(), reads, "something moved");
    assert!(has(&node, 0) && has(&node, 3), "{:?}", listed(&node));
    // The command line, which evicts nothing, says the same.
    let mut larder = crate::support::Larder::at(&origin);
    larder.set("LARDER_STORE", disk.at.join("other").display().to_string());
    let told = larder.fails(74, &["prefetch", &source(10)]);
    assert!(told.contains("not enough inodes in "), "{told}");

    // Others make files: beyond the mark, what may go goes without anybody asking.
    let evictions = || node.status()["totals"]["evictions"].as_u64().expect("a count");
    let (before, left) = (evictions(), disk.free_inodes());
    let others = disk.at.join("others");
    fs::create_dir(&others).expect("a directory");
    (0..left - left / 8).for_each(|file| drop(File::create(others.join(file.to_string())).expect("a file")));
    let began = Instant::now();
    while evictions() == before {
        assert!(began.elapsed() < Duration::from_secs(30), "nothing was evicted\n{}", node.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(has(&node, 0), "{:?}", listed(&node));
}

#[test]
fn others_may_fill_the_disk_at_any_moment() {
    const MODEL: u64 = 8;
    const MODELS: u64 = 8;
    /// No caller waits longer, whatever the disk does.
    const PATIENCE: Duration = Duration::from_secs(20);
    let test = "others_may_fill_the_disk_at_any_moment";
    let origin = Origin::start(Front::S3).expect("an origin");
    let mut node = Node::at(&origin);
    node.set("recheck", "\"0s\"");
    let Some(disk) = SmallDisk::of(&mut node, Kind::Tmpfs, 64, test) else { return };
    (0..MODELS).for_each(|number| put(&origin, number, MODEL));
    node.start();
    let (ended, met, asked) = (AtomicBool::new(false), Met::default(), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = Noise::new(5);
            let until = Instant::now() + Duration::from_secs(15);
            while Instant::now() < until {
                disk.fill(random.below(80) * MIB);
                std::thread::sleep(Duration::from_millis(random.below(400)));
            }
            ended.store(true, Relaxed);
        });
        for caller in 0..3 {
            let (node, met, ended) = (&node, &met, &ended);
            scope.spawn(move || {
                let mut random = Noise::new(100 + caller);
                while !ended.load(Relaxed) {
                    let number = random.below(MODELS);
                    let started = Instant::now();
                    // The connection is let go of when the answer was read.
                    let mut events = node.ensuring(&json!({"source": source(number), "lease": "connection"}));
                    let last = events.find(|event| event["event"] == "ready" || event["event"] == "error");
                    let (took, last) = (started.elapsed(), last.expect("an answer"));
                    assert!(took < PATIENCE, "{took:?} until {last}");
                    let mut slowest = met.slowest.lock().expect("not poisoned");
                    *slowest = took.max(*slowest);
                    drop(slowest);
                    if last["event"] == "ready" {
                        is_right(&last, number, MODEL);
                        met.ready.fetch_add(1, Relaxed);
                    } else {
                        is_about_room(&last);
                        met.refused.fetch_add(1, Relaxed);
                    }
                }
            });
        }
        scope.spawn(|| {
            let mut times = Vec::new();
            while !ended.load(Relaxed) {
                let started = Instant::now();
                let answer = http::ask(&node.socket(), "GET", "/v1/status", None).expect("an answer");
                assert_eq!(answer.status, 200);
                answer.text();
                times.push(started.elapsed());
                std::thread::sleep(Duration::from_millis(10));
            }
            *asked.lock().expect("not poisoned") = times;
        });
    });
    let mut times = asked.into_inner().expect("not poisoned");
    times.sort_unstable();
    let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    eprintln!("{met:?}; {} looks at the status: half within {p50:?}, 99 of 100 within {p99:?}", times.len());
    assert!(met.ready.load(Relaxed) > 0 && met.refused.load(Relaxed) > 0, "{met:?}");
    let allowed = if cfg!(debug_assertions) { Duration::from_secs(1) } else { Duration::from_millis(100) };
    assert!(p99 < allowed, "99 of 100 within {p99:?}");

    // Space returns, and with it everything.
    disk.fill(0);
    let started = Instant::now();
    for number in 0..MODELS {
        loop {
            let events = node.ensure(&json!({"source": source(number)}));
            let last = events.last().expect("an event");
            if last["event"] == "ready" {
                is_right(last, number, MODEL);
                break;
            }
            // Until the daemon has looked at the disk again.
            is_about_room(last);
            assert!(started.elapsed() < PATIENCE, "{last}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    let status = node.status();
    assert_eq!(
        (&status["leases"], &status["disk"]["reserved"], &status["moving"]),
        (&json!([]), &json!(0), &json!([])),
        "{status}"
    );
    let left: Vec<_> = fs::read_dir(disk.at.join("store/v1/scratch")).expect("a directory").collect();
    assert!(left.is_empty(), "{left:?}");
    let verifying = http::ask(&node.admin_socket(), "POST", "/v1/verify", Some(b"{}")).expect("an answer");
    let verified = verifying.events().last().expect("an event");
    assert_eq!((&verified["event"], &verified["damaged"]), (&json!("verified"), &json!(0)), "{verified}");
}

#[test]
fn who_reads_an_evicted_model_reads_on_and_its_space_is_not_called_free() {
    const MODEL: u64 = 16;
    let test = "who_reads_an_evicted_model_reads_on_and_its_space_is_not_called_free";
    let origin = Origin::start(Front::S3).expect("an origin");
    let mut node = Node::at(&origin);
    let Some(disk) = SmallDisk::of(&mut node, Kind::Tmpfs, 100, test) else { return };
    node.start();
    (0..6).for_each(|number| put(&origin, number, MODEL));
    let first = node.ready(&json!({"source": source(0)}));
    let path = Path::new(first["path"].as_str().expect("a path")).join("w-0.safetensors");
    let mut reader = File::open(&path).expect("a file");
    let mut bytes = vec![0; 1000];
    reader.read_exact(&mut bytes).expect("bytes");
    let mut before = disk.used().0;
    for number in 1..6 {
        node.ready(&json!({"source": source(number)}));
        if !has(&node, 0) {
            break;
        }
        before = disk.used().0;
    }
    assert!(!has(&node, 0) && !path.exists(), "{:?}", listed(&node));
    let (status, (used, total)) = (node.status(), disk.used());
    assert_eq!(status["disk"]["free"], total - used, "{status}");
    // What the evictions freed, by the disk's own word: one model came, and the rest of the
    // difference went. Half of the first did not, as it is being read.
    let evicted = status["totals"]["bytes_evicted"].as_u64().expect("bytes");
    let freed = before + MODEL * MIB - used;
    assert!(evicted.abs_diff(freed) < SMALL_CHANGE, "{evicted} bytes are said to be evicted, {freed} went");
    let models = status["totals"]["evictions"].as_u64().expect("a count") * MODEL * MIB;
    assert!(
        models.abs_diff(evicted + MODEL * MIB / 2) < SMALL_CHANGE,
        "{models} bytes of models went, {evicted} of the disk"
    );

    reader.read_to_end(&mut bytes).expect("bytes");
    assert!(bytes == Noise::new(0).bytes(usize::try_from(MODEL * MIB / 2).expect("a length")), "other bytes");
    drop(reader);
    let returned = used - disk.used().0;
    assert!(returned.abs_diff(MODEL * MIB / 2) < SMALL_CHANGE, "{returned} bytes came back");
}
