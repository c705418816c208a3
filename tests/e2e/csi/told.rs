//! What a cluster is told of a pod that waits, and the end of one that kubelet does not tell of: an API
//! server of a few lines, which knows pods and takes events.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use serde_json::Value;

use super::*;

#[derive(Default)]
struct ApiServer {
    is_deleted: AtomicBool,
    events: Mutex<Vec<Value>>,
}

impl ApiServer {
    /// And the file that says where it is.
    fn start(kept: &Kept) -> (Arc<Self>, std::path::PathBuf) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = format!("http://{}", listener.local_addr().expect("an address"));
        let api = Arc::new(Self::default());
        let answering = Arc::clone(&api);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let api = Arc::clone(&answering);
                std::thread::spawn(move || drop(api.answer(stream)));
            }
        });
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        });
        let path = kept.node.path("kubeconfig");
        fs::write(&path, config.to_string()).expect("a file");
        (api, path)
    }

    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let (mut line, mut len) = (String::new(), 0);
        reader.read_line(&mut line)?;
        loop {
            let mut field = String::new();
            reader.read_line(&mut field)?;
            let field = field.trim().to_ascii_lowercase();
            if let Some(value) = field.strip_prefix("content-length:") {
                len = value.trim().parse().expect("a number");
            }
            if field.is_empty() {
                break;
            }
        }
        let mut body = vec![0; len];
        reader.read_exact(&mut body)?;
        let (status, answer) = match line.split(' ').collect::<Vec<_>>()[..] {
            ["GET", path, ..] if path.starts_with("/api/v1/namespaces/team/pods/server-0") => {
                let mut metadata = json!({"name": "server-0", "namespace": "team", "uid": "p1"});
                if self.is_deleted.load(Relaxed) {
                    metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                }
                (200, json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata}))
            }
            ["POST", path, ..] if path.starts_with("/api/v1/namespaces/team/events") => {
                let event: Value = serde_json::from_slice(&body).expect("JSON");
                self.events.lock().expect("no panic").push(event.clone());
                (201, event)
            }
            _ => {
                (404, json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "message": "", "code": 404}))
            }
        };
        let answer = answer.to_string();
        let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {}", answer.len());
        write!(stream, "{head}\r\nconnection: close\r\n\r\n{answer}")
    }

    fn messages(&self) -> Vec<String> {
        let events = self.events.lock().expect("no panic");
        events.iter().map(|event| event["message"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

/// kubelet has its call under way meanwhile, and keeps the pod's directory until that has ended.
#[test]
fn a_pod_that_waits_hears_of_it_at_once_and_is_not_waited_for_once_it_is_deleted() {
    let whole = safetensors("w", 8, 64 << 20);
    let origin = slow_origin(&whole, 256 << 10);
    let Some(mut kept) = Kept::at(&origin) else { return };
    let (api, config) = ApiServer::start(&kept);
    kept.node.set_variable("KUBECONFIG", config.display().to_string());
    let kept = begun(kept, &[]);
    let volume = volume(&kept, "p1", &[("source", "s3://models/m/")]);
    std::thread::scope(|scope| {
        let publishing = scope.spawn(|| volume.publish());
        until(&kept, "the pod has an event", |_| !api.messages().is_empty());
        let messages = api.messages();
        assert!(messages[0].contains("`s3://models/m/` is "), "{messages:?}");
        let event = api.events.lock().expect("no panic")[0].clone();
        assert_eq!((&event["involvedObject"]["uid"], &event["reason"]), (&json!("p1"), &json!("PullingModel")));
        assert_eq!(event["source"]["host"], "node-7");
        kept.node.until("a pull", |status| status["moving"].as_array().is_some_and(|flights| flights.len() == 1));
        api.is_deleted.store(true, Relaxed);
        let deleted = Instant::now();
        let refused = publishing.join().expect("no panic").expect_err("nobody wants it");
        assert!(deleted.elapsed() < Duration::from_secs(20), "{:?}", deleted.elapsed());
        assert_eq!(refused.code, ABORTED, "not final: kubelet takes the volume away: {refused:?}");
        kept.node.until("no pull", |status| status["moving"].as_array().is_some_and(Vec::is_empty));
    });
    assert!(origin.bytes_sent() < whole.len() as u64, "it was pulled to its end");
    volume.unpublish().expect("taken away");
    assert_eq!(owners(&kept), [""; 0]);
}
