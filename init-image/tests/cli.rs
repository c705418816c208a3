//! The binary against a daemon made of a few lines: a real unix socket, real connections, and
//! every answer, good or hostile, byte by byte. `LARDER_INIT` names another binary to test, such
//! as the static one of the image.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A pod, a node and a daemon's socket in one temporary directory.
struct Scene {
    root: PathBuf,
}

impl Scene {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("larder-init-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let root = std::env::temp_dir().join(name);
        fs::create_dir_all(&root).expect("a directory");
        Self { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("sock")
    }

    /// A model of five files in the node's directory.
    fn model(&self) -> PathBuf {
        let model = self.path("node/models").join("ab".repeat(32));
        for (name, text) in FILES {
            let path = model.join(name);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, text).expect("a file");
        }
        model
    }

    /// The binary with these arguments, the socket of this scene and a pod's UID.
    fn command(&self, arguments: &[&str]) -> Command {
        let binary = std::env::var_os("LARDER_INIT").unwrap_or_else(|| env!("CARGO_BIN_EXE_larder-init").into());
        let mut command = Command::new(binary);
        command
            .env_clear()
            .env("LARDER_SOCKET", self.socket())
            .env("LARDER_POD_UID", "uid-1")
            .args(arguments)
            .current_dir(&self.root)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().expect("it runs"))
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

const FILES: &[(&str, &str)] = &[
    ("config.json", "{}"),
    ("empty", ""),
    ("tokenizer/a.json", "[1]"),
    ("tokenizer/deep/er/b.txt", "bb"),
    ("weights.safetensors", "0123456789"),
];
const FILES_LEN: u64 = 2 + 3 + 2 + 10;

#[derive(Debug)]
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Self { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    #[track_caller]
    fn ends(self, code: i32, stderr: &str) -> Self {
        assert!(self.code == code && self.stderr.contains(stderr), "{code} {stderr:?}: {self:?}");
        self
    }
}

/// What the daemon does with one connection, its request already read.
type Script = Box<dyn Fn(&mut UnixStream) + Send>;

/// Plays one script a connection; the last one again for all that follow.
struct Daemon {
    requests: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    socket: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    fn start(socket: PathBuf, scripts: Vec<Script>) -> Self {
        let listener = UnixListener::bind(&socket).expect("a socket");
        let requests = Arc::new(Mutex::new(Vec::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (seen, stopped) = (Arc::clone(&requests), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for (index, stream) in listener.incoming().enumerate() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let mut stream = stream.expect("a connection");
                seen.lock().expect("not poisoned").push(read_request(&mut stream));
                scripts[index.min(scripts.len() - 1)](&mut stream);
            }
        });
        Self { requests, stop, socket, thread: Some(thread) }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("not poisoned").clone()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(&self.socket);
        let _ = fs::remove_file(&self.socket);
        let result = self.thread.take().expect("a thread").join();
        assert!(result.is_ok() || std::thread::panicking(), "the daemon's script failed");
    }
}

/// Head and body of a request that says how long it is.
fn read_request(stream: &mut UnixStream) -> String {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).expect("a request");
        request.push(byte[0]);
    }
    let head = String::from_utf8(request).expect("UTF-8");
    let length =
        head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).map_or(0, |n| n.parse().expect("n"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a body");
    head + &String::from_utf8(body).expect("UTF-8")
}

const HEAD: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
const END: &str = "0\r\n\r\n";

fn chunk(line: &str) -> String {
    format!("{:x}\r\n{line}\n\r\n", line.len() + 1)
}

/// Writes what it can: a client that has seen enough closes.
fn say(stream: &mut UnixStream, text: &str) {
    let _ = stream.write_all(text.as_bytes());
}

/// A whole answer of these events.
fn events(lines: &[String]) -> Script {
    raw(format!("{HEAD}{}{END}", lines.iter().map(|line| chunk(line)).collect::<String>()).into_bytes())
}

/// These bytes, then the end of the connection.
fn raw(bytes: Vec<u8>) -> Script {
    Box::new(move |stream| {
        let _ = stream.write_all(&bytes);
    })
}

fn progress(done: u64, total: u64) -> String {
    format!(
        r#"{{"event":"progress","source":"s3://b/m/","bytes_done":{done},"bytes_total":{total},"bytes_moved":{done},"bytes_per_second":1048576,"seconds_left":3,"files_done":0,"files_total":5,"connections":4,"retries":0,"waiters":1}}"#
    )
}

fn ready_with(model: &Path, lease: &str, files: u64) -> String {
    format!(
        r#"{{"event":"ready","source":"s3://b/m/","digest":"{}","path":"{}","files":{files},"bytes_total":{FILES_LEN},"bytes_moved":0,"bytes_here":{FILES_LEN},"seconds":1.5e-4,"lease":{lease}}}"#,
        "ab".repeat(32),
        model.display(),
    )
}

fn ready(model: &Path) -> String {
    ready_with(model, "\"lease-1\"", FILES.len() as u64)
}

fn error(message: &str, hint: &str, code: u64) -> String {
    format!(r#"{{"event":"error","message":"{message}","hint":{hint},"exit_code":{code}}}"#)
}

#[track_caller]
fn has_the_model(directory: &Path) {
    for (name, text) in FILES {
        assert_eq!(&fs::read_to_string(directory.join(name)).expect(name), text, "{name}");
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

const PAIR: [&str; 2] = ["s3://b/m/", "dest"];

#[test]
fn a_warm_start_is_one_line() {
    let scene = Scene::new();
    let model = scene.model();
    let daemon = Daemon::start(scene.socket(), vec![events(&[progress(0, 0), ready(&model)])]);
    let ran = scene.run(&["--include", "*.json", "--exclude=\"x\"", "--fresh", "s3://b/m/", "dest"]).ends(0, "");
    assert_eq!(ran.stdout, "");
    let line = ran.stderr.strip_suffix('\n').expect("a line");
    assert!(
        line.starts_with("s3://b/m/: 5 files (17 B), 0 B moved, 0.") && line.ends_with(" s, linked at dest"),
        "{line}"
    );
    assert!(!line.contains('\n'), "{line}");
    assert_eq!(fs::read_link(scene.path("dest")).expect("a link"), model);
    has_the_model(&scene.path("dest"));
    let requests = daemon.requests();
    let body = r#"{"source":"s3://b/m/","include":["*.json"],"exclude":["\"x\""],"fresh":true,"lease":"pod:uid-1"}"#;
    assert!(requests.len() == 1 && requests[0].starts_with("POST /v1/ensure HTTP/1.1\r\n"), "{requests:?}");
    assert!(requests[0].contains("\r\nConnection: close\r\n") && requests[0].ends_with(body), "{requests:?}");
}

#[test]
fn a_cold_start_says_how_far_it_is() {
    let scene = Scene::new();
    let model = scene.model();
    let answer = ready(&model);
    let script: Script = Box::new(move |stream| {
        say(stream, HEAD);
        for done in 0..12 {
            say(stream, &chunk(&progress(done << 20, 12 << 20)));
            std::thread::sleep(Duration::from_millis(200));
        }
        say(stream, &(chunk(&answer) + END));
    });
    let _daemon = Daemon::start(scene.socket(), vec![script]);
    let ran = scene.run(&PAIR).ends(0, "");
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert_eq!(lines.len(), 2, "{ran:?}");
    assert!(lines[0].contains(" MiB of 12.0 MiB ("), "{ran:?}");
    assert!(lines[0].ends_with(" %), 1.0 MiB/s, 3.0 s left, 0 of 5 files, 4 connections"), "{ran:?}");
}

#[test]
fn quiet_and_json() {
    let scene = Scene::new();
    let model = scene.model();
    let lines = [progress(1, 2), r#"{"event":"warning","message":"stale"}"#.to_owned(), ready(&model)];
    let _daemon = Daemon::start(scene.socket(), vec![events(&lines), events(&lines), events(&lines)]);
    let ran = scene.run(&["-q", "s3://b/m/", "dest"]).ends(0, "");
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));
    let ran = scene.run(&["--json", "s3://b/m/", "dest"]).ends(0, "");
    assert_eq!(ran.stdout, lines.join("\n") + "\n");
    assert_eq!(ran.stderr, "warning: stale\n");
    scene.run(&PAIR).ends(0, "warning: stale\ns3://b/m/: 5 files");
}

#[test]
fn what_the_daemon_says_is_what_the_user_reads() {
    let scene = Scene::new();
    let lines =
        [error("no object under `s3://b/m/`", "\"look\"", 66), error("disk full", "null", 74), error("x", "null", 0)];
    let scripts = lines.iter().chain([&lines[0]]).map(|line| events(std::slice::from_ref(line))).collect();
    let _daemon = Daemon::start(scene.socket(), scripts);
    let ran = scene.run(&PAIR).ends(66, "");
    assert_eq!(ran.stderr, "error: no object under `s3://b/m/`\n  hint: look\n");
    let ran = scene.run(&PAIR).ends(74, "");
    assert_eq!(ran.stderr, "error: disk full\n");
    scene.run(&PAIR).ends(70, "error: x\n");
    let ran = scene.run(&["--json", "s3://b/m/", "dest"]).ends(66, "error: no object");
    assert_eq!(ran.stdout, lines[0].clone() + "\n", "the daemon's event, once");
    assert!(!scene.path("dest").exists());
}

#[test]
fn a_refusal_is_read_in_every_framing() {
    let scene = Scene::new();
    let body = r#"{"error":{"message":"`x` is no source","hint":null,"exit_code":64}}"#;
    let answers = [
        format!("HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n{body}", body.len()),
        format!("HTTP/1.1 400 Bad Request\r\n\r\n{body}"),
        format!("HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n{}{END}", chunk(body)),
        "HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno\n".to_owned(),
        "HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n".to_owned(),
    ];
    let _daemon = Daemon::start(scene.socket(), answers.map(|answer| raw(answer.into_bytes())).into());
    for _ in 0..3 {
        scene.run(&PAIR).ends(64, "error: `x` is no source\n");
    }
    scene.run(&PAIR).ends(70, "answered HTTP 404 without a reason");
    let ran = scene.run(&["--json", "s3://b/m/", "dest"]).ends(70, "answered HTTP 500 without a reason");
    assert!(ran.stdout.starts_with(r#"{"event":"error","message":"larder's daemon"#), "{ran:?}");
}

#[test]
fn a_connection_that_breaks_is_asked_again() {
    let scene = Scene::new();
    let model = scene.model();
    let start = chunk(&progress(1, 2));
    let scripts = vec![
        // Killed before, in the middle of, and after the head, a chunk and an event.
        raw(Vec::new()),
        raw(b"HTTP/1.1 200 O".to_vec()),
        raw(HEAD.as_bytes().to_vec()),
        raw(format!("{HEAD}{start}").into_bytes()),
        raw(format!("{HEAD}{}", &start[..start.len() / 2]).into_bytes()),
        // An answer without a last word, a daemon that starts, one that stops.
        events(&[progress(1, 2)]),
        raw(b"HTTP/1.1 503 Starting\r\nContent-Length: 0\r\n\r\n".to_vec()),
        events(&[error("interrupted", "null", 130)]),
        events(&[ready(&model)]),
    ];
    let daemon = Daemon::start(scene.socket(), scripts);
    let ran = scene.run(&PAIR).ends(0, "linked at dest");
    assert_eq!(daemon.requests().len(), 9, "{ran:?}");
    has_the_model(&scene.path("dest"));
}

#[test]
fn many_survive_a_daemon_that_is_killed_and_comes_back() {
    const CLIENTS: usize = 64;
    let scene = Scene::new();
    let model = scene.model();
    let first = Daemon::start(scene.socket(), vec![raw(format!("{HEAD}{}", chunk(&progress(1, 2))).into_bytes())]);
    let children: Vec<Child> = (0..CLIENTS)
        .map(|index| scene.command(&["s3://b/m/", &format!("dest-{index}")]).spawn().expect("it runs"))
        .collect();
    let deadline = Instant::now() + Duration::from_secs(5);
    while first.requests().len() < CLIENTS && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(first);
    let _second = Daemon::start(scene.socket(), vec![raw(HEAD.into()), raw(Vec::new()), events(&[ready(&model)])]);
    for (index, child) in children.into_iter().enumerate() {
        Ran::of(child.wait_with_output().expect("it ends")).ends(0, "linked at");
        has_the_model(&scene.path(&format!("dest-{index}")));
    }
}

#[test]
fn the_socket_may_come_later() {
    let scene = Scene::new();
    let model = scene.model();
    let child = scene.command(&PAIR).spawn().expect("it runs");
    std::thread::sleep(Duration::from_millis(400));
    let _daemon = Daemon::start(scene.socket(), vec![events(&[ready(&model)])]);
    Ran::of(child.wait_with_output().expect("it ends")).ends(0, "linked at dest");
}

#[test]
fn the_timeout_ends_the_waiting() {
    let scene = Scene::new();
    let began = Instant::now();
    let ran = scene.run(&["--timeout=1", "s3://b/m/", "dest"]).ends(69, "");
    assert!((1..4).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    let socket = scene.socket();
    let expected =
        format!("error: gave up after 1 s: larder's daemon does not answer at `{}`: No such file", socket.display());
    assert!(ran.stderr.starts_with(&expected), "{ran:?}");
    assert!(
        ran.stderr.contains("\n  hint: is larder's DaemonSet running on this node, and is the hostPath directory `")
    );
    // A socket that nobody listens on, and one whose daemon says nothing.
    drop(UnixListener::bind(&socket).expect("a socket"));
    scene.run(&["--timeout=0", "s3://b/m/", "dest"]).ends(69, "Connection refused");
    fs::remove_file(&socket).expect("removed");
    let silent: Script = Box::new(|stream| {
        let _ = stream.read(&mut [0]);
    });
    let _daemon = Daemon::start(socket, vec![silent]);
    scene.run(&["--timeout=1", "s3://b/m/", "dest"]).ends(69, "said nothing for too long");
    let long = format!("/{}", "x".repeat(200));
    scene.run(&["--socket", &long, "s3://b/m/", "dest"]).ends(64, "at most 107 bytes");
}

#[test]
fn a_stop_is_obeyed() {
    let scene = Scene::new();
    for signal in ["-TERM", "-INT"] {
        let child = scene.command(&PAIR).spawn().expect("it runs");
        std::thread::sleep(Duration::from_millis(200));
        let killed = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill");
        assert!(killed.success());
        // An exit, not a death by signal: process 1 of a container only ends so.
        Ran::of(child.wait_with_output().expect("it ends")).ends(130, "");
    }
}

#[test]
fn chunks_and_writes_end_anywhere() {
    let scene = Scene::new();
    let model = scene.model();
    let warning = r#"{"event":"warning","message":"caf\u00e9 \ud83d\ude00 é"}"#;
    let body = format!("{warning}\n\n{}\n", ready(&model));
    let one_byte_each: Vec<u8> =
        body.bytes().flat_map(|byte| [b"1;ext=1\r\n".as_slice(), &[byte], b"\r\n"].concat()).collect();
    let dripping = [HEAD.as_bytes(), &one_byte_each, b"0\r\nTrailer: x\r\n\r\n"].concat();
    let script: Script = Box::new(move |stream| {
        for piece in dripping.chunks(7) {
            let _ = stream.write_all(piece);
            std::thread::sleep(Duration::from_micros(50));
        }
    });
    let until_close = raw(format!("HTTP/1.1 200 OK\r\n\r\n{body}").into_bytes());
    let by_length = raw(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes());
    let _daemon = Daemon::start(scene.socket(), vec![script, until_close, by_length]);
    for _ in 0..3 {
        scene.run(&PAIR).ends(0, "warning: caf\u{e9} \u{1F600} \u{e9}\ns3://b/m/: 5 files");
    }
}

#[test]
fn links_are_placed_in_all_three_forms() {
    let scene = Scene::new();
    let model = scene.model();
    let _daemon = Daemon::start(scene.socket(), vec![events(&[ready(&model)])]);
    // Absent, and a link of an earlier call.
    symlink(scene.path("node/models").join("cd".repeat(32)), scene.path("earlier")).expect("a link");
    for dest in ["new/absent", "earlier", "earlier/"] {
        scene.run(&["s3://b/m/", dest]).ends(0, "");
        assert_eq!(fs::read_link(scene.path(dest.trim_end_matches('/'))).expect("a link"), model);
    }
    // An empty directory, twice.
    fs::create_dir(scene.path("mounted")).expect("a directory");
    for _ in 0..2 {
        scene.run(&["s3://b/m/", "mounted"]).ends(0, "");
        assert_eq!(names(&scene.path("mounted")), ["config.json", "empty", "tokenizer", "weights.safetensors"]);
        assert_eq!(fs::read_link(scene.path("mounted/tokenizer")).expect("a link"), model.join("tokenizer"));
        has_the_model(&scene.path("mounted"));
    }
    // Anything else.
    fs::create_dir(scene.path("taken")).expect("a directory");
    fs::write(scene.path("taken/mine"), "mine").expect("a file");
    symlink("/etc", scene.path("other-link")).expect("a link");
    for (dest, named) in [("taken", "taken/mine"), ("taken/mine", "taken/mine"), ("other-link", "other-link")] {
        scene.run(&["s3://b/m/", dest]).ends(64, &format!("`{named}` was not put there by larder-init\n  hint: "));
    }
    assert_eq!(fs::read_to_string(scene.path("taken/mine")).expect("a file"), "mine");
    assert_eq!(names(&scene.root), ["earlier", "mounted", "new", "node", "other-link", "sock", "taken"]);
}

#[test]
fn a_copy_is_held_by_its_connection_and_equal_to_the_byte() {
    let scene = Scene::new();
    let model = scene.model();
    let answer = ready(&model);
    let dest = scene.path("dest");
    let script: Script = Box::new(move |stream| {
        say(stream, &(HEAD.to_owned() + &chunk(&answer)));
        // Nothing follows until the client closes; by then every file has its name.
        assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
        has_the_model(&dest);
    });
    let daemon = Daemon::start(scene.socket(), vec![script]);
    for _ in 0..2 {
        let ran = scene.command(&["--copy", "s3://b/m/", "dest"]).env_remove("LARDER_POD_UID").output();
        let ran = Ran::of(ran.expect("it runs")).ends(0, "");
        assert!(!ran.stderr.contains("warning"), "{ran:?}");
        assert!(ran.stderr.ends_with("copied at dest\n") || ran.stderr.ends_with("reflinked at dest\n"), "{ran:?}");
        assert_eq!(names(&scene.path("dest")), ["config.json", "empty", "tokenizer", "weights.safetensors"]);
        assert!(fs::symlink_metadata(scene.path("dest/weights.safetensors")).expect("a file").is_file());
    }
    assert!(daemon.requests().iter().all(|request| request.ends_with(r#""lease":"connection"}"#)));
}

#[test]
fn a_model_that_goes_away_under_a_copy_is_asked_for_again() {
    let scene = Scene::new();
    let model = scene.model();
    let promised = FILES.len() as u64 + 1;
    let late = model.join("late");
    let line = ready_with(&model, "null", promised);
    let heal = line.clone();
    let scripts: Vec<Script> = vec![
        events(std::slice::from_ref(&line)),
        Box::new(move |stream| {
            fs::write(&late, "").expect("a file");
            say(stream, &(HEAD.to_owned() + &chunk(&heal)));
        }),
    ];
    let daemon = Daemon::start(scene.socket(), scripts);
    scene.run(&["--copy", "s3://b/m/", "dest"]).ends(0, "6 files");
    assert_eq!(daemon.requests().len(), 2);
    fs::remove_file(model.join("late")).expect("removed");
    drop(daemon);
    // It never heals: a few attempts, and nothing is left behind.
    let daemon = Daemon::start(scene.socket(), vec![events(&[line])]);
    scene.run(&["--copy", "s3://b/m/", "other"]).ends(74, "5 of 6 files and 17 of 17 bytes came");
    assert_eq!(daemon.requests().len(), 4);
    assert!(!scene.path("other").exists());
}

#[test]
fn the_model_root_is_rewritten() {
    let scene = Scene::new();
    let model = scene.model();
    let on_the_node = Path::new("/var/lib/larder/models").join("ab".repeat(32));
    let _daemon = Daemon::start(scene.socket(), vec![events(&[ready(&on_the_node)])]);
    let root = format!("/var/lib/larder={}", scene.path("node").display());
    scene.run(&["--model-root", &root, "s3://b/m/", "dest"]).ends(0, "");
    assert_eq!(fs::read_link(scene.path("dest")).expect("a link"), model);
    let ran = scene.command(&["s3://b/m/", "dest"]).env("LARDER_MODEL_ROOT", &root).output().expect("it runs");
    Ran::of(ran).ends(0, "");
    // Not mounted, or mounted elsewhere.
    let ran = scene.run(&["s3://b/m/", "dest"]).ends(64, "but not in this container at `/var/lib/larder/models/abab");
    assert!(
        ran.stderr.contains("hint: mount the hostPath directory `/var/lib/larder/models`, or one above"),
        "{ran:?}"
    );
    let ran = scene.run(&["--model-root=/var/lib/larder=/nowhere", "s3://b/m/", "dest"]).ends(64, "`/nowhere/models/");
    assert!(ran.stderr.contains("hint: mount the hostPath directory `/var/lib/larder` at `/nowhere`"), "{ran:?}");
    let ran = scene.run(&["--model-root=/else=/nowhere", "s3://b/m/", "dest"]).ends(64, "/var/lib/larder/models");
    assert!(ran.stderr.contains("is not below `/else`"), "{ran:?}");
}

#[test]
fn without_a_pod_uid_there_is_a_warning_and_no_lease() {
    let scene = Scene::new();
    let model = scene.model();
    let daemon = Daemon::start(scene.socket(), vec![events(&[ready_with(&model, "null", 5)])]);
    let ran = scene.command(&PAIR).env_remove("LARDER_POD_UID").output().expect("it runs");
    let ran = Ran::of(ran).ends(0, "warning: the model may be evicted while this pod uses it: set LARDER_POD_UID");
    assert_eq!(ran.stderr.lines().count(), 2, "{ran:?}");
    assert!(daemon.requests()[0].ends_with(r#""lease":null}"#));
    scene.run(&PAIR).ends(0, "warning: the daemon gave no lease");
}

#[test]
fn pairs_are_placed_one_after_another() {
    let scene = Scene::new();
    let model = scene.model();
    let good = events(&[ready(&model)]);
    let daemon =
        Daemon::start(scene.socket(), vec![good, events(&[ready(&model)]), events(&[error("no", "null", 77)])]);
    let ran = scene.run(&["s3://b/one/", "a", "s3://b/two/", "b"]).ends(0, "s3://b/one/: 5 files");
    assert!(ran.stderr.contains("s3://b/two/: 5 files"), "{ran:?}");
    has_the_model(&scene.path("a"));
    has_the_model(&scene.path("b"));
    assert!(daemon.requests()[1].contains("s3://b/two/"));
    scene.run(&["s3://b/one/", "c", "s3://b/two/", "d"]).ends(77, "error: no\n");
    assert!(!scene.path("c").exists() && !scene.path("d").exists());
}

#[test]
fn the_environment_is_enough() {
    let scene = Scene::new();
    let model = scene.model();
    let _daemon = Daemon::start(scene.socket(), vec![events(&[ready(&model)])]);
    let ran = scene.command(&[]).env("LARDER_SOURCE", "s3://b/m/").env("LARDER_DEST", "dest").output();
    Ran::of(ran.expect("it runs")).ends(0, "linked at dest");
    let help = scene.run(&["--help"]).ends(0, "");
    assert!(help.stdout.starts_with("Leaves models") && help.stdout.contains("Exit codes:"), "{help:?}");
    assert!(scene.run(&["--version"]).ends(0, "").stdout.starts_with("larder-init "));
    scene.run(&["one"]).ends(64, "error: no DEST was given for `one`\n  hint: `larder-init --help`");
}

#[test]
fn a_hostile_server_ends_in_an_error_within_bounds() {
    let scene = Scene::new();
    let endless = |start: &'static str, piece: &'static [u8]| -> Script {
        Box::new(move |stream| {
            say(stream, start);
            let block = piece.repeat(1 + (1 << 16) / piece.len());
            while stream.write_all(&block).is_ok() {}
        })
    };
    let scripts = vec![
        endless("HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        endless("HTTP/1.1 200 OK\r\nX: ", b"y"),
        endless("", b"\n"),
        endless("HTTP/1.1 200 OK\r\n\r\n", b"x"),
        endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1"),
        endless("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"X: y\r\n"),
        endless("HTTP/1.1 400 No\r\n\r\n", b"x"),
        raw(b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe\n".to_vec()),
        raw(format!("{HEAD}3\r\nabcdef\r\n").into_bytes()),
        raw(format!("{HEAD}-3\r\nabc\r\n").into_bytes()),
        raw(format!("{HEAD}ffffffffffffffffffff\r\nabc\r\n").into_bytes()),
        raw(format!("HTTP/1.1 200 OK\r\n\r\n{}\n", "[".repeat(100_000)).into_bytes()),
        raw(b"HTTP/1.1 200 OK\r\n\r\n{\"event\":\"ready\"}\n".to_vec()),
        raw(b"220 smtp.example.org ESMTP\r\n".to_vec()),
    ];
    let count = scripts.len();
    let daemon = Daemon::start(scene.socket(), scripts);
    for index in 0..count {
        let ran = scene.run(&PAIR);
        assert!(ran.code == 70 && ran.stderr.starts_with("error: "), "{index}: {ran:?}");
        assert!(ran.stderr.len() < 1000, "{index}");
        assert!(!scene.path("dest").exists(), "{index}");
    }
    // A path that leads out of where models are, or nowhere.
    drop(daemon);
    let bad = ["/a/../../etc", "relative", ""].map(|path| events(&[ready(Path::new(path))]));
    let _daemon = Daemon::start(scene.socket(), bad.into());
    for _ in 0..3 {
        scene.run(&PAIR).ends(70, "the path of a model is not absolute");
    }
}
