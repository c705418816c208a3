//! What the pods of `tests/kubernetes/story` run: an S3 server, and a reader that compares every
//! byte. Both say how they are over HTTP, which any cluster passes on to its pods.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use larder_origins::{Noise, S3Server, SampleModel};
use serde_json::{Value, json};

const USAGE: &str = "\
Usage: larder-test-pod origin PER_SECOND NAME:SEED:SHARDS:MIB...
       larder-test-pod read DIR SEED SHARDS MIB

origin  serves S3 at :9000 and its counters at :9001; each NAME is s3://models/NAME/, and of
        names that begin with `slow` a connection gets PER_SECOND bytes a second
read    reads DIR until the end, comparing every byte; how it goes is at :8080
";
const S3_PORT: u16 = 9000;
const COUNTERS_PORT: u16 = 9001;
const READER_PORT: u16 = 8080;
/// Bytes of one read: some pages, so that many places of a file are looked at.
const READ_LEN: u64 = 64 << 10;
const READ_PAUSE: Duration = Duration::from_millis(2);
/// Errors that are told one by one.
const ERRORS_MAX: usize = 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["origin", per_second, models @ ..] => origin(per_second, models),
        ["read", directory, seed, shards, mib] => read(Path::new(directory), &[seed, shards, mib]),
        _ => {
            print!("{USAGE}");
            return ExitCode::from(64);
        }
    };
    let Err(error) = result;
    eprintln!("larder-test-pod: {error}");
    ExitCode::FAILURE
}

type Endless = Result<std::convert::Infallible, Box<dyn std::error::Error>>;

fn model(numbers: &[&str]) -> Result<SampleModel, Box<dyn std::error::Error>> {
    let [seed, shards, mib] = numbers else { return Err("want SEED, SHARDS and MIB".into()) };
    Ok(SampleModel::new(seed.parse()?, shards.parse()?, mib.parse::<usize>()? << 20))
}

fn origin(per_second: &str, models: &[&str]) -> Endless {
    let server = S3Server::start_at(SocketAddr::from((Ipv4Addr::UNSPECIFIED, S3_PORT)))?;
    server.slow_down("slow", per_second.parse()?);
    let mut sizes = BTreeMap::new();
    for text in models {
        let words: Vec<&str> = text.split(':').collect();
        let [name, numbers @ ..] = words.as_slice() else { return Err(USAGE.into()) };
        let model = model(numbers)?;
        for (path, bytes) in &model.files {
            server.put("models", &format!("{name}/{path}"), bytes)?;
        }
        sizes.insert((*name).to_owned(), model.len());
    }
    println!("serving {sizes:?}");
    serve(COUNTERS_PORT, || (200, json!({"bytes_sent": server.bytes_sent(), "gets": server.gets(), "models": sizes})))
}

#[derive(Debug, Default)]
struct Seen {
    reads: u64,
    opens: u64,
    errors: u64,
    told: Vec<String>,
    /// The longest that an open and a read took.
    slowest: Duration,
    first_byte: Option<f64>,
    whole: Option<f64>,
}

fn read(directory: &Path, numbers: &[&str]) -> Endless {
    let model = model(numbers)?;
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let (reading, directory) = (Arc::clone(&seen), directory.to_owned());
    std::thread::spawn(move || {
        let started = Instant::now();
        whole(&directory, &model, &reading, started);
        let mut noise = Noise::new(1);
        let held = hold(&directory, &model);
        loop {
            look(&directory, &model, &held, &reading, &mut noise);
            std::thread::sleep(READ_PAUSE);
        }
    });
    serve(READER_PORT, || {
        let seen = lock(&seen);
        let status = if seen.whole.is_some() { 200 } else { 503 };
        let told = json!({
            "reads": seen.reads, "opens": seen.opens, "errors": seen.errors, "told": seen.told,
            "slowest_ms": u64::try_from(seen.slowest.as_millis()).unwrap_or(u64::MAX),
            "first_byte_s": seen.first_byte, "whole_s": seen.whole,
        });
        (status, told)
    })
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn wrong(seen: &Mutex<Seen>, what: &str) {
    let mut seen = lock(seen);
    seen.errors += 1;
    if seen.told.len() < ERRORS_MAX {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |age| age.as_secs());
        println!("{now}: {what}");
        seen.told.push(format!("{now}: {what}"));
    }
}

/// Reads everything once, in the order of names.
fn whole(directory: &Path, model: &SampleModel, seen: &Mutex<Seen>, started: Instant) {
    for (path, right) in &model.files {
        let mut bytes = Vec::new();
        match File::open(directory.join(path)).and_then(|mut file| file.read_to_end(&mut bytes)) {
            Ok(_) if bytes == *right => {
                lock(seen).first_byte.get_or_insert(started.elapsed().as_secs_f64());
            }
            Ok(_) => wrong(seen, &format!("{path}: wrong bytes")),
            Err(error) => wrong(seen, &format!("{path}: {error}")),
        }
    }
    let written = File::options().write(true).create(true).truncate(false).open(directory.join("written"));
    if written.is_ok() {
        wrong(seen, "the model can be written to");
    }
    lock(seen).whole = Some(started.elapsed().as_secs_f64());
}

/// Files that stay open.
fn hold(directory: &Path, model: &SampleModel) -> BTreeMap<PathBuf, File> {
    let open = |path: &String| Some((PathBuf::from(path), File::open(directory.join(path)).ok()?));
    model.files.keys().filter_map(open).collect()
}

/// Reads somewhere: of a file that has been open for long, or of one that is opened now.
fn look(directory: &Path, model: &SampleModel, held: &BTreeMap<PathBuf, File>, seen: &Mutex<Seen>, noise: &mut Noise) {
    let files = model.files.len() as u64;
    let at = usize::try_from(noise.below(files)).unwrap_or_default();
    let Some((path, right)) = model.files.iter().nth(at).filter(|(_, right)| !right.is_empty()) else { return };
    let from = noise.below(right.len() as u64);
    let to = (from + READ_LEN).min(right.len() as u64);
    let range = usize::try_from(from).unwrap_or_default()..usize::try_from(to).unwrap_or_default();
    let mut bytes = vec![0; range.len()];
    let is_new = noise.below(2) == 0;
    let began = Instant::now();
    let read = match held.get(Path::new(path)).filter(|_| !is_new) {
        Some(file) => file.read_exact_at(&mut bytes, from),
        None => File::open(directory.join(path)).and_then(|file| file.read_exact_at(&mut bytes, from)),
    };
    let took = began.elapsed();
    match read {
        Ok(()) if bytes == right[range.clone()] => {}
        Ok(()) => wrong(seen, &format!("{path} at {from}: wrong bytes")),
        Err(error) => {
            wrong(seen, &format!("{path} at {from}, opened {}: {error}", if is_new { "now" } else { "before" }));
        }
    }
    let mut seen = lock(seen);
    seen.reads += 1;
    seen.opens += u64::from(is_new);
    seen.slowest = seen.slowest.max(took);
}

/// Answers every request with what `told` says.
fn serve(port: u16, told: impl Fn() -> (u16, Value)) -> Endless {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    loop {
        let (stream, _) = listener.accept()?;
        // Who breaks off is not waited for.
        let _ = answer(&stream, &told);
    }
}

fn answer(mut stream: &TcpStream, told: &impl Fn() -> (u16, Value)) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.set_write_timeout(Some(Duration::from_secs(5)))?;
    let mut lines = BufReader::new(stream.take(16 << 10)).lines();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let (status, body) = told();
    let body = body.to_string();
    write!(
        stream,
        "HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}
