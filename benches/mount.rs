//! The mount against the file itself: what a reader pays for it, and what it gains by not waiting.
//!
//! `cargo bench --bench mount [-- sealed|shared|arriving|opens]`, as root. `LARDER_BENCH_ROUNDS` (7),
//! `LARDER_BENCH_GIB` is the file (1), `LARDER_BENCH_MIB_PER_S` the link to the origin (128), which
//! must be what a pull waits for, not the processor. Each reader is a process of its own.

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_origins::{Checksums, Fault, Front, Link, Noise, Origin};
use support::daemon::Daemon;
use support::measure::median;
use support::reader::{self, Taken, evict, read, read_and, resident};
use support::{aws_environment, clear, setting, workspace};

const SOURCE: &str = "s3://models/m/";
const FILE: &str = "model.safetensors";
const MIB: f64 = (1 << 20) as f64;
const GIB: f64 = (1 << 30) as f64;
/// A mount is there soon after the socket is.
const MOUNTED_WITHIN: Duration = Duration::from_secs(10);
/// Tensors of the file: a header as large models have one.
const TENSORS: usize = 400;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if args.first().is_some_and(|flag| flag == reader::FLAG) {
        return reader::main(&args[1..]);
    }
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
        return println!("SKIPPED: mounting needs root and /dev/fuse");
    }
    let wanted = |name: &str| args.is_empty() || args.iter().any(|arg| arg == name);
    let rounds = setting("LARDER_BENCH_ROUNDS", 7);
    if ["sealed", "shared", "opens"].into_iter().any(wanted) {
        let work = workspace("mount");
        let origin = origin(&file());
        let node = Node::start(&work.path().join("node"), &origin);
        let ensured = read("ensure", &node.daemon.socket(), &[SOURCE.to_owned()]);
        drop(origin);
        let files = node.files();
        println!(
            "one file of {:.2} GiB, medians of {rounds} rounds in turn, load {}\n",
            ensured.amount as f64 / GIB,
            load()
        );
        if wanted("sealed") {
            sealed(&node, &files, rounds);
        }
        if wanted("opens") {
            opens(&node, &files, rounds);
        }
        if wanted("shared") {
            shared(&files, rounds);
        }
    }
    if wanted("arriving") {
        arriving(rounds);
    }
}

/// A node with a mount of its own. Dropped, everything of it is gone but its directory.
struct Node {
    daemon: Daemon,
    mount: PathBuf,
}

/// One file, twice.
struct Files {
    native: PathBuf,
    mount: PathBuf,
}

impl Node {
    fn start(directory: &Path, origin: &Origin) -> Self {
        clear(directory);
        let mount = directory.join("mnt");
        let mut daemon = Daemon::new(directory, aws_environment(&origin.url()));
        daemon.set(&format!("mount = {:?}", mount.display().to_string()));
        daemon.start();
        let node = Self { daemon, mount };
        let started = Instant::now();
        while !node.is_mounted() {
            assert!(started.elapsed() < MOUNTED_WITHIN, "there is no mount");
            std::thread::sleep(Duration::from_millis(1));
        }
        node
    }

    fn is_mounted(&self) -> bool {
        let table = std::fs::read_to_string("/proc/self/mountinfo").expect("procfs");
        table.contains(&format!(" {} ", self.mount.display()))
    }

    /// The file, once it is here.
    fn files(&self) -> Files {
        let mount = self.mount.join("sources/s3/models/m@");
        let model = std::fs::canonicalize(mount).expect("a model");
        let native = self.daemon.store().join("v1/models").join(model.file_name().expect("a digest")).join(FILE);
        Files { native, mount: model.join(FILE) }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.daemon.stop();
        if self.is_mounted() {
            let _ = rustix::mount::unmount(&self.mount, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// A safetensors file with a header of the usual length.
fn file() -> Vec<u8> {
    let len = usize::try_from(setting("LARDER_BENCH_GIB", 1) << 30).expect("fits");
    let each = len / TENSORS / 2 * 2;
    let tensors = (0..TENSORS).map(|number| {
        let name = format!("model.layers.{}.mlp.gate_up_proj.{number}.weight", number / 8);
        let tensor = serde_json::json!({
            "dtype": "BF16", "shape": [each / 2], "data_offsets": [number * each, (number + 1) * each],
        });
        (name, tensor)
    });
    let header = serde_json::Value::Object(tensors.collect()).to_string();
    let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend(Noise::new(1).bytes(each * TENSORS));
    file
}

fn origin(file: &[u8]) -> Origin {
    let origin = Origin::start(Front::S3).expect("an origin");
    origin.bucket().put(&format!("m/{FILE}"), file, Checksums::multipart());
    origin
}

fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").expect("procfs");
    load.split(' ').next().unwrap_or_default().to_owned()
}

fn words(numbers: &[usize]) -> Vec<String> {
    numbers.iter().map(ToString::to_string).collect()
}

/// What one side took over the rounds, and the daemon meanwhile.
#[derive(Default)]
struct Takings {
    taken: Vec<Taken>,
    daemon: Duration,
}

impl Takings {
    fn rate(&self) -> f64 {
        median(self.taken.iter().map(Taken::rate).collect())
    }

    fn cpu_each(&self) -> f64 {
        median(self.taken.iter().map(Taken::cpu_each).collect())
    }
}

/// Runs a reader on both files in turn: native, mount.
fn in_turn(
    node: &Node,
    files: &Files,
    rounds: u64,
    operation: &str,
    arguments: &[String],
    before: impl Fn(),
) -> [Takings; 2] {
    let mut takings = [Takings::default(), Takings::default()];
    for round in 0..rounds {
        for side in [usize::from(round % 2 == 1), usize::from(round % 2 == 0)] {
            before();
            let (_, cpu) = node.daemon.cost();
            let taken = read(operation, [&files.native, &files.mount][side], arguments);
            takings[side].taken.push(taken);
            takings[side].daemon += node.daemon.cost().1.saturating_sub(cpu);
        }
    }
    takings
}

/// The middle of the rounds' own ratios: what was slow in a round was so for both.
fn paired([native, mount]: &[Takings; 2]) -> f64 {
    median(native.taken.iter().zip(&mount.taken).map(|(native, mount)| mount.rate() / native.rate()).collect())
}

fn sealed(node: &Node, files: &Files, rounds: u64) {
    let len = usize::try_from(files.native.metadata().expect("a file").len()).expect("fits");
    // Cold, a part of the file does.
    let whole = |block: usize| len / block;
    let part = |block: usize| (len / 32 / block).max(1);
    for hot in [true, false] {
        let random = |block: usize| vec![block, if hot { whole(block) / 2 } else { part(block) }];
        // A page that is there is touched fast: more of them, or there is nothing to measure.
        let touches = if hot { 16 } else { 1 };
        let cases = [
            ("read 1 MiB", "read", vec![1 << 20]),
            ("read 128 KiB", "read", vec![128 << 10]),
            ("map, touch each page", "touch", vec![touches]),
            ("random 4 KiB", "random", random(4 << 10)),
            ("random 64 KiB", "random", random(64 << 10)),
            ("random 4 KiB, advised", "random advised", random(4 << 10)),
            ("random 64 KiB, advised", "random advised", random(64 << 10)),
        ];
        if hot {
            read("read", &files.native, &words(&[1 << 20]));
        }
        // Advice is about what has to be fetched.
        for (name, operation, arguments) in
            cases.into_iter().filter(|(_, operation, _)| !hot || *operation != "random advised")
        {
            let takings = in_turn(node, files, rounds, operation, &words(&arguments), || {
                if !hot {
                    evict(&files.native);
                }
            });
            let [native, mount] = &takings;
            let all: u64 = mount.taken.iter().map(|taken| taken.amount).sum();
            println!(
                "  {} {name:<23} native {:>6.0} MiB/s {:.3} CPU-s/GiB, mount {:>6.0} MiB/s {:.3} CPU-s/GiB, ratio {:.2} speed (in pairs {:.2}) {:.2} CPU, daemon {:.3} CPU-s/GiB",
                if hot { "hot " } else { "cold" },
                native.rate() / MIB,
                native.cpu_each() * GIB,
                mount.rate() / MIB,
                mount.cpu_each() * GIB,
                mount.rate() / native.rate(),
                paired(&takings),
                mount.cpu_each() / native.cpu_each(),
                mount.daemon.as_secs_f64() / all as f64 * GIB,
            );
        }
    }
    println!("  load {}\n", load());
}

fn opens(node: &Node, files: &Files, rounds: u64) {
    let cases: [(&str, &str, &[usize]); 3] = [
        ("stat", "stat", &[100_000]),
        ("open and close, 1 thread", "open", &[1, 10_000]),
        ("open and close, 4 threads", "open", &[4, 5_000]),
    ];
    for (name, operation, arguments) in cases {
        let takings = in_turn(node, files, rounds, operation, &words(arguments), || ());
        let [native, mount] = &takings;
        let all: u64 = mount.taken.iter().map(|taken| taken.amount).sum();
        println!(
            "  {name:<26} native {:>8.0}/s {:>5.2} µs CPU, mount {:>8.0}/s {:>5.2} µs CPU, ratio {:.3} speed (in pairs {:.3}), daemon {:.2} µs CPU each",
            native.rate(),
            native.cpu_each() * 1e6,
            mount.rate(),
            mount.cpu_each() * 1e6,
            mount.rate() / native.rate(),
            paired(&takings),
            mount.daemon.as_secs_f64() / all as f64 * 1e6,
        );
    }
    println!("  load {}\n", load());
}

/// Bytes of all files in the page cache of this machine (`Cached` in proc(5)).
fn cached() -> f64 {
    let table = std::fs::read_to_string("/proc/meminfo").expect("procfs");
    let line = table.lines().find_map(|line| line.strip_prefix("Cached:")).expect("a count");
    line.trim().trim_end_matches(" kB").parse::<f64>().expect("KiB") * 1024.0
}

/// Two pods read the same file, and the node has it in memory once.
fn shared(files: &Files, rounds: u64) {
    let len = files.native.metadata().expect("a file").len() as f64;
    let mut seen: [Vec<f64>; 7] = Default::default();
    for _ in 0..rounds {
        evict(&files.native);
        let before = resident(&files.native);
        let at_first = cached();
        let first = read("read", &files.mount, &words(&[1 << 20]));
        let after_one = cached();
        let second = read("read", &files.mount, &words(&[1 << 20]));
        let native = read("read", &files.native, &words(&[1 << 20]));
        let after_all = cached();
        let now = [
            before,
            resident(&files.native),
            first.from_disk as f64 / len,
            second.from_disk as f64 / len,
            native.from_disk as f64 / len,
            (after_one - at_first) / len,
            (after_all - after_one) / len,
        ];
        seen.iter_mut().zip(now).for_each(|(all, now)| all.push(now));
    }
    let [before, resident, first, second, native, one, more] = seen.map(median);
    println!(
        "  pages of the blob in the page cache: {:.1} % before, {:.1} % after one read through the mount",
        before * 100.0,
        resident * 100.0
    );
    println!(
        "  from the disk, of the file: first reader {first:.3}, second {second:.3}, one of the blob itself {native:.3}"
    );
    println!(
        "  the page cache of the machine grew by {one:.2} of the file with the first reader, by {more:.2} with the other two; load {}\n",
        load()
    );
}

/// A reader that does not wait for the pull against the pull alone.
fn arriving(rounds: u64) {
    let work = workspace("arriving");
    let whole = file();
    let (len, digest) = (whole.len() as f64, blake3::hash(&whole).to_hex().to_string());
    let origin = origin(&whole);
    drop(whole);
    let per_second = setting("LARDER_BENCH_MIB_PER_S", 128) << 20;
    let link = Arc::new(Link::new(per_second));
    origin.misbehave_on_reads(move |_, _| Some(Fault::Shared(Arc::clone(&link))));
    let place = work.path().join("node");
    println!(
        "{:.2} GiB over {} MiB/s, which takes {:.2} s, medians of {rounds} rounds in turn, load {}",
        len / GIB,
        per_second >> 20,
        len / per_second as f64,
        load()
    );
    let name = [SOURCE, FILE, &digest].map(str::to_owned);

    // Alone, and with a reader.
    let mut takings = [Takings::default(), Takings::default()];
    for round in 0..rounds {
        for side in [usize::from(round % 2 == 1), usize::from(round % 2 == 0)] {
            let node = Node::start(&place, &origin);
            let (taken, (_, cpu)) =
                read_and(["ensure", "arriving"][side], &node.daemon.socket(), &name, || node.daemon.cost());
            takings[side].taken.push(taken);
            takings[side].daemon += cpu;
        }
    }
    for (what, side) in ["pull and wait", "read while it arrives"].into_iter().zip(&takings) {
        println!(
            "  {what:<23} {:>6.2} s, {:.3} CPU-s/GiB of the reader, {:.3} of the daemon",
            median(side.taken.iter().map(|taken| taken.wall.as_secs_f64()).collect()),
            side.cpu_each() * GIB,
            side.daemon.as_secs_f64() / (len * rounds as f64) * GIB,
        );
    }
    let ratio = takings[0].rate() / takings[1].rate();
    println!("  ratio: {ratio:.3} wall (in pairs {:.3}); load {}\n", 1.0 / paired(&takings), load());

    let (mut share, mut wall, mut header) = (Vec::new(), Vec::new(), 0);
    for _ in 0..rounds {
        let node = Node::start(&place, &origin);
        origin.forget_seen();
        let (taken, sent) = read_and("header", &node.daemon.socket(), &name, || origin.bytes_sent());
        share.push(sent as f64 / len);
        wall.push(taken.wall.as_secs_f64() * 1e3);
        header = taken.amount;
    }
    let worst = share.iter().copied().fold(0.0, f64::max);
    println!(
        "  a header of {header} bytes is read after {:.0} ms and {:.2} % of the file (worst {:.2} %); load {}\n",
        median(wall),
        median(share) * 100.0,
        worst * 100.0,
        load()
    );
    clear(&place);
}
