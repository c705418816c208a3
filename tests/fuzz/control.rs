//! What anybody in a pod says to the daemon's socket, read by the server that reads it on a node.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use larder::cache::{Cache, Pods, Settings, Watermarks};
use larder::control::{self, Api, Phase, Rights};
use larder::remote::Options;
use larder::report::text;
use larder::store::Store;
use larder::telemetry::Metrics;
use tokio::runtime::Runtime;
use tokio::sync::watch;

use crate::engine::{Target, outcome};

/// What may be asked for: nothing is there.
const NOWHERE: &str = "file:///larder-fuzz-nowhere/";

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// A cache with nothing in it.
pub fn cache(directory: &Path) -> Arc<Cache> {
    let settings = Settings {
        waits_for_room: true,
        watermarks: Watermarks { high: 99, low: 98 },
        recheck: Duration::from_secs(10),
        pods: Pods::Directory(directory.join("pods")),
        origin: Options::default(),
    };
    let store = Store::open_unproven(directory, None).expect("a store");
    Cache::open(Arc::new(store), settings, Arc::new(Metrics::new("0"))).expect("a cache")
}

#[test]
fn control() {
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = runtime();
    let _entered = runtime.enter();
    let (_phase, phase) = watch::channel(Phase::Serving);
    let metrics = Arc::new(Metrics::new("0"));
    let api = Arc::new(Api {
        cache: cache(&directory.path().join("store")),
        tables: control::Tables::new(&metrics),
        kubelet: Vec::new(),
        metrics,
        allows: Box::new(|_, source| source.to_string().starts_with(NOWHERE)),
        phase,
        started: text::unix(SystemTime::now()),
        socket: "/run/larder/larder.sock".into(),
        looks: control::Looks::default(),
        shared: control::SharedAnswers::default(),
    });
    let (_stopping, stop) = watch::channel(false);
    let socket = directory.path().join("sock");
    let listener = control::bind(&socket, 0o600, 0o700).expect("a socket");
    runtime.spawn(control::serve(listener, Rights::Admin, api, stop));

    let post = |path: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: larder\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let words = "Content-Length: |Transfer-Encoding: chunked\r\n|\r\n\r\n|\"source\":|\"include\":[|\"exclude\":[|\"lease\":\"pod:|\"progress_ms\":|\"lazy\":true|\"sync\":true|/v1/model?source=|/v1/verify|/v1/remove|file:///larder-fuzz-nowhere/x|GET |Expect: 100-continue\r\n";
    Target::named("control")
        .seed(post("/v1/ensure", r#"{"source":"file:///larder-fuzz-nowhere/m","include":["*.json"],"exclude":[],"lease":"pod:5d0c-1","progress_ms":100}"#))
        .seed(post("/v1/remove", r#"{"models":["s3://b/m/","0123456789ab"]}"#))
        .seed(post("/v1/pin", r#"{"model":"s3://b/m/"}"#))
        .seed(post("/v1/verify", r#"{"model":null,"repair":true}"#))
        .seed(post("/v1/release", r#"{"lease":"volume:x:y"}"#))
        .words(words)
        .run(|input| {
            let mut stream = UnixStream::connect(&socket).expect("a daemon");
            // Half the inputs have their body's length put right, or few bodies would be read.
            let fixed = fixed_length(input);
            stream.set_read_timeout(Some(Duration::from_secs(15))).expect("a timeout");
            let _ = stream.write_all(&fixed);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            match stream.read_to_end(&mut answer) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the connection does not end"),
                _ => {}
            }
            let text = String::from_utf8_lossy(&answer);
            let status = text.split(' ').nth(1).unwrap_or_default().to_owned();
            assert_ne!(status, "500", "{text}");
            let what = text.split("\"message\":\"").nth(1).unwrap_or_default();
            let what: String = what.split('`').step_by(2).flat_map(str::chars).filter(|c| c.is_alphabetic()).take(60).collect();
            outcome((status, what))
        });
}

/// The same with the right `Content-Length`, for every other input.
fn fixed_length(input: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(input);
    let Some((head, body)) = text.split_once("\r\n\r\n").filter(|_| input.len().is_multiple_of(2)) else {
        return input.to_vec();
    };
    let Some((before, after)) = head.split_once("Content-Length: ") else { return input.to_vec() };
    let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
    format!("{before}Content-Length: {}{rest}\r\n\r\n{body}", body.len()).into_bytes()
}
