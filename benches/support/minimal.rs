//! The least that a pull can do: receive into a buffer, BLAKE3, `pwrite`. A few threads with a
//! connection each, no TLS, no signatures, no resume, no checks, and the hash is thrown away.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Measured here on two cores: fewer leave the network idle, more only switch.
const THREADS: usize = 4;
const PART_LEN: u64 = 64 << 20;
const BUFFER_LEN: usize = 512 << 10;

/// The argument with which a bench calls itself for this side.
pub const FLAG: &str = "--minimal-loop";

/// `--minimal-loop HOST:PORT TARGET KEY SIZE [KEY SIZE]...`
pub fn main(args: &[String]) {
    let (host, target) = (&args[0], PathBuf::from(&args[1]));
    let mut parts = Vec::new();
    for pair in args[2..].chunks(2) {
        let (key, size) = (pair[0].clone(), pair[1].parse::<u64>().expect("a size"));
        let path = target.join(key.replace('/', "_"));
        let file = std::sync::Arc::new(File::create(&path).expect("a file"));
        if size > 0 {
            rustix::fs::fallocate(&*file, rustix::fs::FallocateFlags::empty(), 0, size).expect("room");
        }
        let mut start = 0;
        while start < size {
            let end = (start + PART_LEN).min(size);
            parts.push((key.clone(), std::sync::Arc::clone(&file), start, end));
            start = end;
        }
    }
    let next = AtomicUsize::new(0);
    let digests = Mutex::new(0_u64);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let mut socket = TcpStream::connect(host).expect("a server");
                let mut buffer = vec![0; BUFFER_LEN];
                while let Some((key, file, start, end)) = parts.get(next.fetch_add(1, Relaxed)) {
                    let digest = part(&mut socket, host, key, file, *start..*end, &mut buffer);
                    *digests.lock().expect("no panic") ^= u64::from(digest.as_bytes()[0]);
                }
            });
        }
    });
    println!("{}", digests.into_inner().expect("no panic"));
}

fn part(
    socket: &mut TcpStream,
    host: &str,
    key: &str,
    file: &File,
    range: std::ops::Range<u64>,
    buffer: &mut [u8],
) -> blake3::Hash {
    let (first, last) = (range.start, range.end - 1);
    write!(socket, "GET /{key} HTTP/1.1\r\nHost: {host}\r\nRange: bytes={first}-{last}\r\n\r\n").expect("sent");
    let mut len = 0;
    let head_end = loop {
        len += socket.read(&mut buffer[len..]).expect("an answer");
        if let Some(at) = buffer[..len].windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
    };
    assert!(buffer.starts_with(b"HTTP/1.1 206"), "{}", String::from_utf8_lossy(&buffer[..head_end]));
    let mut hasher = blake3::Hasher::new();
    let mut offset = range.start;
    let mut take = |bytes: &[u8]| {
        hasher.update(bytes);
        file.write_all_at(bytes, offset).expect("written");
        offset += bytes.len() as u64;
        offset
    };
    let mut at = take(&buffer[head_end..len]);
    while at < range.end {
        let read = socket.read(buffer).expect("the body");
        assert!(read > 0, "the body ended early");
        at = take(&buffer[..read]);
    }
    hasher.finalize()
}

/// The command that runs this loop over what lies under `root/bucket`.
pub fn command(url: &str, target: &Path, files: &[(String, u64)]) -> std::process::Command {
    let mut command = std::process::Command::new(std::env::current_exe().expect("this program"));
    command.arg(FLAG).arg(url.trim_start_matches("http://")).arg(target);
    for (key, size) in files {
        command.arg(key).arg(size.to_string());
    }
    command
}
