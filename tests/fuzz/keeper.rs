//! What keeper and daemon say to each other, at both ends, and what the kernel tells the keeper.

use std::fs;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use larder_keeper::protocol::{self, VERSION, join};
use larder_keeper::{Errands, Keeper};
use rustix::mount::{UnmountFlags, unmount};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept, bind, connect, listen, socket_with};

use crate::engine::{MEMORY_MAX, Target, outcome, sentence};

#[path = "../../daemonset/keeper/src/mountinfo.rs"]
#[expect(dead_code, reason = "the keeper's, for its parser")]
mod mountinfo;

const PATIENCE: Duration = Duration::from_secs(30);
const TERMS: [&[u8]; 6] = [b"7", b"7", b"45", b"6000000000", b"131072", b"1048576"];

/// A message, and whether a descriptor comes with it.
type Answer = (Vec<u8>, bool);

fn socket() -> OwnedFd {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("a socket")
}

fn hello() -> Vec<u8> {
    let version = VERSION.to_string();
    join(&[&[b"ok", version.as_bytes(), b"0.1.0", b"/mnt"][..], &TERMS].concat())
}

/// The daemon's end: whatever a keeper answers is an answer or an error.
#[test]
fn answers() {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path().join("sock");
    let listener = socket();
    bind(&listener, &SocketAddrUnix::new(&at).expect("short")).expect("a name");
    listen(&listener, 16).expect("a listener");
    // Answers in order, each with or without a descriptor.
    let given: Arc<Mutex<Vec<Answer>>> = Arc::default();
    let answers = Arc::clone(&given);
    std::thread::spawn(move || {
        let null = File::open("/dev/null").expect("a device");
        while let Ok(daemon) = accept(&listener) {
            while let Ok(Some(_)) = protocol::receive(&daemon) {
                let mut answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
                if answers.is_empty() {
                    break;
                }
                let (answer, has_descriptor) = answers.remove(0);
                let _ = protocol::send(&daemon, &answer, has_descriptor.then(|| null.as_fd()));
            }
        }
    });
    let seed = |call: u8, fields: &[&[u8]]| [&[call][..], &join(fields)].concat();
    let keys: Vec<&[u8]> = vec![b"ok", b"1", b"2", b"18446744073709551615", b"4294967295"];
    let refused: Vec<&[u8]> = vec![b"error", b"2", b"cannot reach it"];
    let adopted = [&[b"ok".as_slice()][..], &TERMS].concat();
    Target::named("answers")
        .seed([&[0x80][..], &hello()].concat())
        .seed(seed(1, &[b"ok", b"17"]))
        .seed(seed(3, &keys))
        .seed(seed(0x84, &adopted))
        .seed(seed(5, &refused))
        .seed(seed(6, &[b"ok", b"1"]))
        .seed(seed(0x87, &[b"ok"]))
        .words("ok|error|1|0|7|45|ffffffffffffffff")
        .len_max(protocol::MESSAGE_LEN_MAX + 200)
        .run(|input| {
            let Some((call, answer)) = input.split_first() else { return 0 };
            let (call, has_descriptor, errands) = (call & 0x7f, call & 0x80 != 0, Errands::new(&at));
            let answers = |answers: &[(&[u8], bool)]| {
                let answers = answers.iter().map(|(answer, descriptor)| (answer.to_vec(), *descriptor)).collect();
                *given.lock().unwrap_or_else(PoisonError::into_inner) = answers;
            };
            let error = match call {
                0 => {
                    answers(&[(answer, has_descriptor)]);
                    Keeper::connect(&at, Duration::ZERO).err()
                }
                1..=5 => {
                    answers(&[(&hello(), true), (answer, has_descriptor)]);
                    let (keeper, _) = Keeper::connect(&at, PATIENCE).expect("a keeper");
                    match call {
                        1 => keeper.back(7, 1, File::open("/dev/null").expect("a device")).err(),
                        2 => keeper.unback(7, 1).err(),
                        3 => keeper.keys(7, None).err(),
                        4 => keeper.adopted(None).err(),
                        _ => keeper.remember(7, 1, 2).err(),
                    }
                }
                _ => {
                    answers(&[(answer, has_descriptor)]);
                    match call % 4 {
                        0 => errands.there("/pods/x").err(),
                        1 => errands.unbind("/pods/x").err(),
                        2 => errands.publish("model", "/pods/x").err(),
                        _ => errands.listen("/plugins/x").err(),
                    }
                }
            };
            outcome((call, error.map(|error| (error.kind(), larder_keeper::client::refusal(&error).is_some()))))
        });
}

/// The keeper itself, with directories of its own.
struct Real {
    directory: tempfile::TempDir,
    keeper: Child,
}

impl Real {
    /// `None`, and a line that says so, where there cannot be one.
    fn start() -> Option<Self> {
        if !rustix::process::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("skipped: needs root and /dev/fuse");
            return None;
        }
        let directory = tempfile::Builder::new().prefix("larder-fuzz-").tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        for name in ["mount", "pods/x", "plugins", "models/whole"] {
            fs::create_dir_all(path(name)).expect("a directory");
        }
        let log = File::create(path("log")).expect("a log");
        let mut command = Command::new(built());
        command.env_clear().arg("--mount").arg(path("mount/models")).arg("--socket").arg(path("sock"));
        command.arg("--bind-below").arg(path("pods")).arg("--listen-below").arg(path("plugins"));
        command.arg("--models").arg(path("models")).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let keeper = command.spawn().expect("larder-keeper starts");
        let mut real = Self { directory, keeper };
        let began = Instant::now();
        while real.ask(&[b"hello", VERSION.to_string().as_bytes()]).is_none() {
            let ended = real.keeper.try_wait().expect("a child");
            assert!(ended.is_none() && began.elapsed() < PATIENCE, "no keeper: {ended:?}\n{}", real.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        Some(real)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn connect(&self) -> Option<OwnedFd> {
        let daemon = socket();
        set_socket_timeout(&daemon, Timeout::Recv, Some(PATIENCE)).expect("a timeout");
        connect(&daemon, &SocketAddrUnix::new(self.path("sock")).expect("short")).ok().map(|()| daemon)
    }

    /// The answer to one request on a connection of its own.
    fn ask(&self, fields: &[&[u8]]) -> Option<Vec<u8>> {
        let daemon = self.connect()?;
        protocol::send(&daemon, &join(fields), None).ok()?;
        protocol::receive(&daemon).ok().flatten().map(|packet| packet.bytes)
    }

    /// A line of `/proc/PID/status`, in KiB.
    fn memory(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.keeper.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
    }

    fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.keeper.id())).map_or(0, Iterator::count)
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
        // Names that no text can hold are among them.
        let points: Vec<PathBuf> = mountinfo::table()
            .iter()
            .flat_map(|table| mountinfo::entries(table))
            .map(|(_, entry)| entry.point)
            .collect();
        for point in points.iter().rev().filter(|point| point.starts_with(self.directory.path())) {
            let _ = unmount(point, UnmountFlags::DETACH);
        }
    }
}

/// The keeper's binary, built in a directory of its own.
fn built() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("larder-keeper");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.env_remove("RUSTC_WORKSPACE_WRAPPER").current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.args(["build", "--quiet", "--locked", "-p", "larder-keeper", "--target-dir"]).arg(&target);
    let status = cargo.status().expect("cargo");
    assert!(status.success(), "cargo: {:?}", status.signal());
    target.join("debug/larder-keeper")
}

/// The keeper's end: every packet is answered, or the connection ends, and the next one is heard.
#[test]
fn requests() {
    let Some(mut real) = Real::start() else { return };
    let version = VERSION.to_string();
    let below = |name: &str| real.path(name).display().to_string();
    let packets = |packets: &[&[&[u8]]]| {
        packets.iter().flat_map(|fields| [join(fields), b"\n".to_vec()]).flatten().collect::<Vec<u8>>()
    };
    let (pod, plugin) = (below("pods/x/mount"), below("plugins/sock"));
    let (pod, plugin) = (pod.as_bytes(), plugin.as_bytes());
    let before = (real.memory(), real.descriptors());
    let target = Target::named("requests")
        .seed(packets(&[
            &[b"hello", version.as_bytes()],
            &[b"keys", b"1", b""],
            &[b"unback", b"1", b"2"],
            &[b"adopted", b""],
        ]))
        .seed(packets(&[&[b"there", pod], &[b"publish", b"whole", pod], &[b"unbind", pod]]))
        .seed(packets(&[&[b"listen", plugin], &[b"unlisten", plugin], &[b"remember", b"1", b"2", b"3"]]))
        .words("hello|there|publish|unbind|listen|unlisten|keys|back|adopt|\0|\n|/../|whole")
        .len_max(protocol::MESSAGE_LEN_MAX + 200);
    target.run(|input| {
        let Some(daemon) = real.connect() else { panic!("nobody listens\n{}", real.log()) };
        let mut heard = Vec::new();
        for packet in input.split(|byte| *byte == b'\n').filter(|packet| !packet.is_empty()).take(16) {
            // It would wait for a daemon that answers FUSE.
            if packet.starts_with(b"bind\0") {
                continue;
            }
            if protocol::send(&daemon, packet, None).is_err() {
                break;
            }
            match protocol::receive(&daemon) {
                Ok(Some(answer)) => heard.push(sentence(&String::from_utf8_lossy(&answer.bytes).replace('\0', " "))),
                Ok(None) => break,
                Err(errno) => {
                    assert_ne!(errno, rustix::io::Errno::AGAIN, "no answer to {packet:?}");
                    break;
                }
            }
        }
        drop(daemon);
        let ended = real.keeper.try_wait().expect("a child");
        assert!(ended.is_none(), "the keeper ended: {ended:?}\n{}", real.log());
        outcome(heard)
    });
    assert!(!real.log().contains("panicked"), "{}", real.log());
    let began = Instant::now();
    // Connections that are over are forgotten soon.
    while real.descriptors() > before.1 + 4 && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
    }
    let after = (real.memory(), real.descriptors());
    println!(
        "requests: keeper {} KiB at most, {} before; descriptors {}, {} before",
        after.0, before.0, after.1, before.1
    );
    assert!(after.0 < before.0 + (MEMORY_MAX >> 10) && after.1 <= before.1 + 4, "{before:?} {after:?}");
}

/// The table of mounts has names in it that anybody chose.
#[test]
fn mounts() {
    let seed = "36 35 0:45 / /m\\040a rw,noatime master:1 shared:7 - fuse.larder larder ro";
    Target::named("mounts")
        .seed(seed)
        .seed(fs::read("/proc/self/mountinfo").expect("mountinfo"))
        .words("\\040|\\134| - |//deleted| ")
        .run(|input| {
            let read: Vec<_> = input.split(|byte| *byte == b'\n').filter_map(mountinfo::parse).collect();
            for (_, entry) in &read {
                let point = entry.point.as_os_str().as_encoded_bytes();
                assert!(!point.contains(&b' ') || input.windows(2).any(|pair| pair == b"\\0"), "{entry:?}");
            }
            outcome((read.len().min(4), read.first().map(|(_, entry)| entry.kind.len().min(3))))
        });
}
