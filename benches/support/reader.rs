//! A process that reads one file in one way, and says what that cost it.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use larder_init::Client;
use larder_init::client::{Event, Lease, Ready, Wish};
use larder_origins::Noise;

use super::measure::own_cpu;

/// The argument with which a bench calls itself for a reader.
pub const FLAG: &str = "--reader";
/// Pages of the page cache and of memory here.
const PAGE_LEN: usize = 4096;

/// What a reader says.
#[derive(Debug, Clone, Copy)]
pub struct Taken {
    pub wall: Duration,
    pub cpu: Duration,
    /// Bytes read, or times that something was done.
    pub amount: u64,
    /// Bytes that came from the disk for it.
    pub from_disk: u64,
}

/// Starts a reader: `operation` on `path`, and what that needs to know.
fn command(operation: &str, path: &Path, arguments: &[String]) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this bench"));
    command.arg(FLAG).arg(operation).arg(path).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// Runs a reader to its end.
pub fn read(operation: &str, path: &Path, arguments: &[String]) -> Taken {
    read_and(operation, path, arguments, || ()).0
}

/// The same, and looks at something in the moment in which it has read.
pub fn read_and<T>(operation: &str, path: &Path, arguments: &[String], look: impl FnOnce() -> T) -> (Taken, T) {
    let mut reader = command(operation, path, arguments).spawn().expect("a reader");
    let mut line = String::new();
    BufReader::new(reader.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    let seen = look();
    let status = reader.wait().expect("a reader");
    assert!(status.success(), "{operation} of {} ended with {status}", path.display());
    (Taken::parse(line.trim_end()), seen)
}

impl Taken {
    fn parse(line: &str) -> Self {
        let numbers: Vec<u64> = line.split(' ').map(|word| word.parse().expect("a number")).collect();
        let [wall, cpu, amount, from_disk] = numbers[..] else { panic!("{line}") };
        Self { wall: Duration::from_nanos(wall), cpu: Duration::from_nanos(cpu), amount, from_disk }
    }

    /// Amount per second.
    pub fn rate(&self) -> f64 {
        self.amount as f64 / self.wall.as_secs_f64()
    }

    /// CPU-seconds per unit of the amount.
    pub fn cpu_each(&self) -> f64 {
        self.cpu.as_secs_f64() / self.amount as f64
    }
}

/// Measures something that returns how much it did, and says so.
fn measured(act: impl FnOnce() -> u64) {
    let (disk, cpu, started) = (from_disk(), own_cpu(), Instant::now());
    let amount = act();
    let (wall, cpu) = (started.elapsed(), own_cpu().saturating_sub(cpu));
    println!("{} {} {amount} {}", wall.as_nanos(), cpu.as_nanos(), from_disk() - disk);
    std::io::stdout().flush().expect("told");
}

/// What the disk gave this process (`read_bytes` in proc(5)).
fn from_disk() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").expect("procfs");
    let line = io.lines().find_map(|line| line.strip_prefix("read_bytes: ")).expect("a count");
    line.parse().expect("a number")
}

/// The reader itself.
pub fn main(args: &[String]) {
    let (operation, path) = (args[0].as_str(), PathBuf::from(&args[1]));
    let number = |at: usize| args.get(at).and_then(|text| text.parse::<usize>().ok()).expect("a number");
    match operation {
        // Block length.
        "read" => {
            let mut buffer = vec![1; number(2)];
            measured(|| sequentially(&File::open(&path).expect("a file"), &mut buffer));
        }
        // How many times.
        "touch" => measured(|| (0..number(2)).map(|_| touch(&path)).sum()),
        // Block length, and how many.
        "random" | "random advised" => {
            let (len, count) = (number(2), number(3));
            let file = File::open(&path).expect("a file");
            if operation == "random advised" {
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).expect("advice");
            }
            let blocks = file.metadata().expect("a file").len() / len as u64;
            let mut noise = Noise::new(len as u64);
            let places: Vec<u64> = (0..count).map(|_| noise.below(blocks) * len as u64).collect();
            let mut buffer = vec![1; len];
            measured(|| {
                places.iter().for_each(|place| file.read_exact_at(&mut buffer, *place).expect("bytes"));
                (len * count) as u64
            });
        }
        // Threads, and how many times in each.
        "open" => {
            let (threads, count) = (number(2), number(3));
            measured(|| {
                std::thread::scope(|scope| {
                    for _ in 0..threads {
                        scope.spawn(|| (0..count).for_each(|_| drop(File::open(&path).expect("a file"))));
                    }
                });
                (threads * count) as u64
            });
        }
        "stat" => {
            let count = number(2);
            measured(|| {
                (0..count).for_each(|_| assert!(std::fs::metadata(&path).is_ok()));
                count as u64
            });
        }
        // At a socket: a source, the name of a file in it, and the digest of that.
        "ensure" => measured(|| ask(&path, &args[2], false).bytes_total),
        "arriving" => arriving(&path, &args[2], &args[3], &args[4]),
        "header" => header(&path, &args[2], &args[3]),
        other => panic!("`{other}` is no operation"),
    }
}

fn sequentially(file: &File, buffer: &mut [u8]) -> u64 {
    let mut file = file;
    let mut all = 0;
    loop {
        match file.read(buffer).expect("bytes") {
            0 => return all,
            read => all += read as u64,
        }
    }
}

fn map(path: &Path) -> memmap2::Mmap {
    let file = File::open(path).expect("a file");
    #[expect(unsafe_code, reason = "a map is what loaders make")]
    // SAFETY: nobody changes a file of the store.
    let map = unsafe { memmap2::Mmap::map(&file).expect("a map") };
    map
}

/// One byte of each page.
fn touch(path: &Path) -> u64 {
    let map = map(path);
    let sum: u64 = map.iter().step_by(PAGE_LEN).map(|byte| u64::from(*byte)).sum();
    std::hint::black_box(sum);
    map.len() as u64
}

/// How much of a file is in the page cache, from 0 to 1.
pub fn resident(path: &Path) -> f64 {
    let map = map(path);
    let mut pages = vec![0_u8; map.len().div_ceil(PAGE_LEN)];
    #[expect(unsafe_code, reason = "neither std nor rustix has mincore")]
    // SAFETY: the range is the map's, and there is a byte for each of its pages.
    let asked = unsafe { libc::mincore(map.as_ptr().cast_mut().cast(), map.len(), pages.as_mut_ptr()) };
    assert_eq!(asked, 0, "mincore: {}", std::io::Error::last_os_error());
    pages.iter().filter(|page| **page & 1 == 1).count() as f64 / pages.len() as f64
}

/// Takes a file out of the page cache.
pub fn evict(path: &Path) {
    let file = File::open(path).expect("a file");
    rustix::fs::fdatasync(&file).expect("synced");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advice");
}

fn ask(socket: &Path, source: &str, lazy: bool) -> Ready {
    let wish = Wish {
        source: source.to_owned(),
        include: Vec::new(),
        exclude: Vec::new(),
        fresh: false,
        lazy,
        lease: Lease::Owner(format!("process:{}", std::process::id())),
    };
    for event in Client::new(socket).ensure(&wish).expect("an answer") {
        match event.expect("an event") {
            Event::Ready(ready) => return ready,
            Event::Error(failure) => panic!("{}", failure.message),
            _ => {}
        }
    }
    panic!("the daemon closes without a word")
}

/// Asks, does not wait, and reads from the first to the last byte. Then, no longer measured, reads
/// the same pages again: they must have the digest.
fn arriving(socket: &Path, source: &str, name: &str, digest: &str) {
    let mut buffer = vec![1; 1 << 20];
    let mut opened = None;
    measured(|| {
        let ready = ask(socket, source, true);
        let file = opened.insert(File::open(ready.path.join(name)).expect("a file"));
        sequentially(file, &mut buffer)
    });
    let (file, mut hasher, mut at) = (opened.expect("a file"), blake3::Hasher::new(), 0);
    loop {
        let read = file.read_at(&mut buffer, at).expect("bytes");
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        at += read as u64;
    }
    assert_eq!(hasher.finalize().to_hex().as_str(), digest, "what was read is wrong");
}

/// Asks, does not wait, and reads the header of a safetensors file as loaders do.
fn header(socket: &Path, source: &str, name: &str) {
    measured(|| {
        let ready = ask(socket, source, true);
        let file = File::open(ready.path.join(name)).expect("a file");
        let mut len = [0; 8];
        file.read_exact_at(&mut len, 0).expect("the length");
        let mut text = vec![0; usize::try_from(u64::from_le_bytes(len)).expect("a length")];
        file.read_exact_at(&mut text, 8).expect("the header");
        assert!(text.starts_with(b"{"), "that is no header");
        text.len() as u64 + 8
    });
}
