//! Clients of the driver that end as clients do: in the middle of a call, with bytes that they have not
//! read, or never. None of it may cost the daemon anything for good, or another client its call.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use larder_origins::{Checksums, Origin};

use super::kubelet::{self, NodeInfo, call};
use super::{begun, sockets, until};
use crate::mount::Kept;
use crate::node::{PATIENCE, http};
use crate::support::{origin_with_model, program, skipped};

/// What the daemon has of what clients can make it take.
#[derive(Debug, Clone, Copy)]
struct Held {
    descriptors: usize,
    tasks: u64,
    rss: u64,
}

/// A node whose daemon serves kubelet, and says what it holds.
struct Watched {
    kept: Kept,
    address: String,
}

impl Watched {
    fn start(origin: &Origin) -> Option<Self> {
        let mut kept = Kept::at(origin)?;
        let address = kept.node.listen();
        let node = Self { kept: begun(kept, &[]), address };
        let is_ready =
            |_: &Kept| http::ask_tcp(&node.address, "GET", "/readyz").is_ok_and(|answer| answer.status == 200);
        until(&node.kept, "the node is ready", is_ready);
        Some(node)
    }

    fn driver(&self) -> PathBuf {
        sockets(&self.kept)[1].clone()
    }

    /// The sum of a metric's series.
    fn metric(&self, name: &str) -> u64 {
        let text = http::ask_tcp(&self.address, "GET", "/metrics").expect("an answer").text();
        let of_metric = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        let value = |line: &str| line.rsplit_once(' ').and_then(|(_, value)| value.parse::<u64>().ok());
        text.lines().filter(of_metric).map(|line| value(line).expect("a number")).sum()
    }

    fn held(&self) -> Held {
        let pid = self.kept.node.pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a line");
        Held {
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").count(),
            tasks: self.metric("larder_tasks"),
            rss: rss.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10,
        }
    }

    /// What is held once everybody has gone: the scrape that asks is the one that is there.
    fn settled(&self) -> Held {
        until(&self.kept, "no connection is left", |_| self.metric("larder_connections") == 1);
        // A task ends a moment after its connection.
        std::thread::sleep(Duration::from_millis(200));
        self.held()
    }

    /// What clients do leaves nothing, but for memory that the allocator keeps.
    #[track_caller]
    fn leaves_nothing(&self, what: &str, mut clients: impl FnMut(usize), count: usize) {
        // What is made once, and kept for the next ones.
        clients(count.div_ceil(10).max(3));
        let before = self.settled();
        let began = Instant::now();
        clients(count);
        let took = began.elapsed();
        let after = self.settled();
        eprintln!("{what}: {:.1} s\n  before {before:?}\n  after  {after:?}", took.as_secs_f64());
        assert!(after.descriptors <= before.descriptors + 4, "{what}: {before:?}, then {after:?}");
        assert!(after.tasks <= before.tasks + 4, "{what}: {before:?}, then {after:?}");
        assert!(after.rss <= before.rss + (4 << 20), "{what}: {before:?}, then {after:?}");
        self.answers();
    }

    #[track_caller]
    fn answers(&self) {
        let none = kubelet::Empty {};
        let node: NodeInfo = call(&self.driver(), "csi.v1.Node/NodeGetInfo", &none, PATIENCE).expect("an answer");
        assert_eq!(node.node_id, "node-7");
    }
}

/// As often as the environment says; the gate makes do with a few.
fn times(variable: &str, gate: usize) -> usize {
    std::env::var(variable).ok().map_or(gate, |value| value.parse().expect("a number"))
}

/// The bytes of one call as Go's gRPC sends them, after which nothing more is to come.
fn call_of_go(method: &str, authority: &str) -> Vec<u8> {
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let [.., high, low] = payload.len().to_be_bytes();
        [&[0, high, low, kind, flags, 0, 0, 0, stream][..], payload].concat()
    };
    let string = |text: &str| [&[u8::try_from(text.len()).expect("short")][..], text.as_bytes()].concat();
    // :method POST, :scheme http, then literals that are remembered.
    let mut fields = vec![0x83, 0x86];
    for (name, value) in [(0x44, method), (0x41, authority), (0x5f, "application/grpc")] {
        fields.push(name);
        fields.extend(string(value));
    }
    for (name, value) in [("te", "trailers"), ("grpc-timeout", "119999868u")] {
        fields.push(0x40);
        fields.extend([string(name), string(value)].concat());
    }
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frame(1, 4, 1, &fields));
    bytes.extend(frame(0, 1, 1, &[0; 5]));
    bytes
}

/// How a client ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It closes with bytes that it has not read: the daemon's next read is `ECONNRESET`.
    Unread,
    /// It closes at once.
    Closed,
    /// It says that it is done, and reads what there is.
    Half,
}

/// A client that says so many bytes and ends.
fn client(socket: &Path, said: &[u8], end: End) {
    let mut stream = UnixStream::connect(socket).expect("the driver listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // One that was ended already has said enough.
    let _ = stream.write_all(said);
    match end {
        End::Closed => {}
        // The daemon's settings are there, and some of them stay unread.
        End::Unread => drop(stream.read_exact(&mut [0])),
        End::Half => {
            stream.shutdown(Shutdown::Write).expect("half closed");
            let _ = stream.read_to_end(&mut Vec::new());
        }
    }
}

/// `grpc-go` before 1.34 closed with unread bytes in seven calls of a hundred, and kubelet makes a
/// connection for each.
#[test]
fn connections_that_end_anyhow_leave_nothing() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let Some(node) = Watched::start(&origin) else { return };
    let socket = node.driver();
    let whole = call_of_go("/csi.v1.Node/NodeGetInfo", "/var/lib/kubelet/plugins/csi.larder.dev/csi.sock");
    // Each end at every point of a call, at least once.
    let count = times("LARDER_CSI_RESETS", 3 * whole.len()).div_ceil(3);
    for end in [End::Unread, End::Closed, End::Half] {
        let clients = |count: usize| {
            (0..count).for_each(|number| client(&socket, &whole[..=number % whole.len()], end));
        };
        node.leaves_nothing(&format!("{count} connections, {end:?}"), clients, count);
    }
}

#[test]
fn grpcs_c_core_gets_through_and_leaves_nothing() {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools/bin/python");
    if !Command::new(&python).args(["-c", "import grpc"]).output().is_ok_and(|ran| ran.status.success()) {
        skipped("grpcio", "`tests/run` installs it");
        return;
    }
    let (origin, _) = origin_with_model(Checksums::multipart());
    let Some(node) = Watched::start(&origin) else { return };
    let socket = node.driver().display().to_string();
    let calls = times("LARDER_CSI_CALLS", 300) / 3 * 3;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/csi/calls.py");
    let run = |calls: usize, per_channel: &str, authority: Option<&str>| {
        let mut command = Command::new(&python);
        command.arg(&script).args([socket.as_str(), &calls.to_string(), per_channel, "3"]).args(authority);
        let answered = String::from_utf8(program(&mut command).stdout).expect("text");
        assert_eq!(answered.trim(), calls.to_string(), "{authority:?}\n{}", node.kept.logs());
    };
    let encoded = socket.replace('/', "%2F");
    for authority in [None, Some("localhost"), Some(socket.as_str()), Some(&encoded), Some("a")] {
        run(36, "12", authority);
    }
    let clients = |calls: usize| run(calls / 3 * 3, "10", Some(&encoded));
    node.leaves_nothing(&format!("{calls} calls by the C core"), clients, calls);
}

/// Clients that say nothing, or not enough, are in nobody's way.
#[test]
fn a_full_table_is_no_reason_to_turn_a_call_away() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let Some(node) = Watched::start(&origin) else { return };
    let whole = call_of_go("/csi.v1.Node/NodeGetInfo", "localhost");
    // From saying nothing to saying all but the last byte.
    let stuck: Vec<UnixStream> = (0..600)
        .map(|number| {
            let mut stream = UnixStream::connect(node.driver()).expect("the driver listens");
            stream.write_all(&whole[..number * 7 % whole.len()]).expect("said");
            stream
        })
        .collect();
    node.answers();
    assert!(node.metric("larder_connections_cut_total") > 0);
    assert!(node.kept.node.log().contains("too many connections"), "{}", node.kept.node.log());
    for path in ["/healthz", "/readyz"] {
        let answer = http::ask_tcp(&node.address, "GET", path).expect("an answer");
        let status = answer.status;
        assert_eq!(status, 200, "{path}: {}", answer.text());
    }
    drop(stuck);
    node.settled();
}

/// The same for whoever scrapes and probes.
#[test]
fn probes_are_answered_whoever_else_connects() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let Some(node) = Watched::start(&origin) else { return };
    let _silent: Vec<_> = (0..100).map(|_| std::net::TcpStream::connect(&node.address).expect("it listens")).collect();
    for path in ["/healthz", "/readyz", "/metrics"] {
        let answer = http::ask_tcp(&node.address, "GET", path).expect("an answer");
        let status = answer.status;
        assert_eq!(status, 200, "{path}: {}", answer.text());
    }
}

/// Something cleans up in kubelet's directories, or in those of the daemon: nothing has ended, so
/// everything must be found again.
#[test]
fn sockets_that_are_removed_are_made_again() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let Some(node) = Watched::start(&origin) else { return };
    let own = [node.kept.node.socket(), node.kept.node.admin_socket()];
    let [registration, driver] = sockets(&node.kept);
    own.iter().chain([&registration]).for_each(|socket| std::fs::remove_file(socket).expect("removed"));
    std::fs::remove_dir_all(driver.parent().expect("a directory")).expect("removed");
    let found = |socket: &PathBuf| UnixStream::connect(socket).is_ok();
    until(&node.kept, "all sockets are there again", |_| own.iter().chain([&registration, &driver]).all(found));
    node.answers();
    let none = kubelet::Empty {};
    let info: kubelet::Registration =
        call(&registration, "pluginregistration.Registration/GetInfo", &none, PATIENCE).expect("an answer");
    assert_eq!(info.name, "csi.larder.dev");
    node.kept.node.status();
}
