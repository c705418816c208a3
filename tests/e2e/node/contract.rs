//! `openapi.json` says what the running daemon does, no more and no less.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use larder::control::{self, Rights};
use larder_origins::{Checksums, Fault};
use serde_json::{Value, json};

use super::{Node, damage, http, schema};
use crate::mount::{mounting, slow_origin};
use crate::support::origin_with_model;

/// How long the daemon waits for a head, or for a body.
const DAEMON_PATIENCE: Duration = Duration::from_secs(10);
const BODY_LEN_MAX: usize = 64 << 10;

/// The file, and what was seen of it.
struct Contract {
    document: Value,
    answered: BTreeSet<String>,
}

impl Contract {
    fn new() -> Self {
        let document = serde_json::from_str(control::OPENAPI).expect("JSON");
        Self { document, answered: BTreeSet::new() }
    }

    /// Method, path and socket of every call.
    fn calls(&self) -> Vec<(String, String, String)> {
        let mut calls = Vec::new();
        for (path, methods) in self.document["paths"].as_object().expect("paths") {
            for (method, call) in methods.as_object().expect("methods").iter().filter(|(name, _)| *name != "servers") {
                let socket = call["x-larder-socket"].as_str().expect("each call says where it is taken");
                calls.push((method.to_uppercase(), path.clone(), socket.to_owned()));
            }
        }
        calls
    }

    fn call(&self, method: &str, path: &str) -> &Value {
        let path = path.split('?').next().expect("a path");
        &self.document["paths"][path][method.to_lowercase()]
    }

    /// Asks, and holds status, type and body to the file. The body, or the last event of it.
    #[track_caller]
    fn ask(&mut self, socket: &Path, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let text = (method == "POST").then(|| body.to_string());
        let answer = http::ask(socket, method, path, text.as_ref().map(String::as_bytes)).expect("an answer");
        let (status, kind) = (answer.status, answer.header("content-type").expect("a type").to_owned());
        let values: Vec<Value> =
            if kind == "application/x-ndjson" { answer.events().collect() } else { vec![answer.json()] };
        let at = format!("{method} {path} {status}");
        let mut response = &self.call(method, path)["responses"][status.to_string()];
        if let Some(reference) = response["$ref"].as_str() {
            response = self.document.pointer(&reference[1..]).expect("a response");
        }
        let schema = response["content"][&kind]["schema"].clone();
        assert!(schema.is_object(), "{at} {kind} is not in the file: {values:?}");
        for value in &values {
            schema::check(&self.document, &schema, value).unwrap_or_else(|told| panic!("{at}: {told}"));
            let event = value["event"].as_str().unwrap_or_default();
            self.answered.insert(format!("{method} {} {status} {event}", path.split('?').next().expect("a path")));
        }
        (status, values.last().cloned().expect("an answer"))
    }

    #[track_caller]
    fn ok(&mut self, socket: &Path, method: &str, path: &str, body: &Value) -> Value {
        let (status, value) = self.ask(socket, method, path, body);
        assert_eq!(status, 200, "{method} {path}: {value}");
        value
    }

    #[track_caller]
    fn refused(&mut self, socket: &Path, method: &str, path: &str, body: &Value, expected: (u16, u64)) -> String {
        let (status, value) = self.ask(socket, method, path, body);
        let error = &value["error"];
        assert_eq!((status, error["exit_code"].as_u64()), (expected.0, Some(expected.1)), "{method} {path}: {value}");
        error["message"].as_str().expect("a message").to_owned()
    }
}

#[test]
fn every_call_is_in_the_file_and_every_call_of_the_file_answers() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let mut node = Node::at(&origin);
    let listen = node.listen();
    node.start();
    let mut contract = Contract::new();
    let given = contract.ok(&node.socket(), "GET", "/v1/openapi.json", &Value::Null);
    assert_eq!(given, contract.document);

    let of_server: BTreeSet<_> = control::calls()
        .map(|(method, path, rights)| {
            let socket = if rights == Rights::Admin { "admin" } else { "use" };
            (method.to_owned(), path.to_owned(), socket.to_owned())
        })
        .collect();
    let (scrapes, of_file): (Vec<_>, Vec<_>) =
        contract.calls().into_iter().partition(|(.., socket)| socket == "listen");
    assert_eq!(of_file.iter().cloned().collect::<BTreeSet<_>>(), of_server);

    for (method, path, socket) in of_file {
        // With nothing in it, a request is wrong or finds nothing: but the call is there.
        for at in [node.socket(), node.admin_socket()] {
            let (status, value) = contract.ask(&at, &method, &path, &json!({}));
            let may = socket == "use" || at == node.admin_socket();
            assert_eq!(status == 403, !may, "{method} {path}: {status} {value}");
            let other = if method == "GET" { "POST" } else { "GET" };
            let answer = http::ask(&at, other, &path, None).expect("an answer");
            assert_eq!((answer.status, answer.header("allow")), (405, Some(method.as_str())), "{other} {path}");
            let told = answer.json();
            assert_eq!(told["error"]["message"], format!("`{path}` takes {method}"));
        }
    }
    for (method, path, _) in scrapes {
        let answer = http::ask_tcp(&listen, &method, &path).expect("an answer");
        let kind = answer.header("content-type").and_then(|kind| kind.split(';').next());
        let of_file = contract.call(&method, &path)["responses"][answer.status.to_string()]["content"].as_object();
        assert_eq!(
            kind,
            of_file.and_then(|kinds| kinds.keys().next()).map(String::as_str),
            "{path}: {}",
            answer.status
        );
    }
    for path in ["/", "/v1", "/v1/ensure/", "/v1/Models", "/v2/models", "/metrics"] {
        let (status, told) = node.ask("GET", path, None);
        assert_eq!((status, &told["error"]["exit_code"]), (404, &json!(64)), "{path}: {told}");
    }
}

/// One life of a model, with every kind of answer.
#[test]
fn every_answer_is_as_the_file_has_it() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    origin.misbehave_on_reads(|_, _| Some(Fault::Slow(3 << 20)));
    let mut node = Node::at(&origin);
    node.set_list("[[prefetch]]\nsource = \"s3://models/absent/\"");
    node.begin_pod("p-1");
    node.start();
    let (pods, admin) = (node.socket(), node.admin_socket());
    let mut contract = Contract::new();
    let source = "s3://models/m/";
    let ensure =
        |lease: &str| json!({"source": source, "include": ["*"], "lease": lease, "progress_ms": 100, "sync": true});

    let named = json!({"models": [source], "include": ["*"]});
    let pulling = std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            let mut contract = Contract::new();
            let ready = contract.ok(&pods, "POST", "/v1/ensure", &ensure("pod:p-1"));
            (contract.answered, ready)
        });
        node.until("a pull that moves", |status| {
            status["moving"][0]["files"].as_array().is_some_and(|f| !f.is_empty())
        });
        contract.ok(&pods, "GET", "/v1/status", &Value::Null);
        contract.ok(&pods, "GET", "/v1/models", &Value::Null);
        let partial = contract.ok(&pods, "GET", &format!("/v1/model?name={source}&include=*"), &Value::Null);
        assert_eq!(partial["state"], "partial");
        let told = contract.refused(&admin, "POST", "/v1/remove", &named, (409, 75));
        assert!(told.contains("somebody waits for it"), "{told}");
        first.join().expect("a caller")
    });
    contract.answered.extend(pulling.0);
    let ready = pulling.1;
    assert_eq!((&ready["event"], &ready["bytes_moved"]), (&json!("ready"), &json!(model.len())));
    origin.behave();

    let digest = ready["digest"].as_str().expect("a digest").to_owned();
    let status = contract.ok(&pods, "GET", "/v1/status", &Value::Null);
    assert_eq!(status["leases"][0]["owner"], "pod:p-1");
    let shown = contract.ok(&pods, "GET", &format!("/v1/model?name={}", &digest[..6]), &Value::Null);
    assert_eq!((&shown["path"], &shown["leases"]), (&ready["path"], &json!(1)));
    contract.refused(&pods, "GET", "/v1/model?name=s3%3A%2F%2Fmodels%2Fother", &Value::Null, (404, 66));
    contract.refused(&pods, "GET", "/v1/model?name=", &Value::Null, (400, 64));
    contract.refused(&pods, "POST", "/v1/ensure", &json!({"source": "file:///etc"}), (403, 77));
    for wrong in [
        json!({"source": "nothing"}),
        json!({"source": source, "progress_ms": 1}),
        json!({"source": source, "lease": "pod:../x"}),
        json!({"source": source, "include": ["["]}),
        json!({"source": source, "include": vec!["*"; 257]}),
    ] {
        contract.refused(&pods, "POST", "/v1/ensure", &wrong, (400, 64));
    }
    // Found wrong only on the way, so it is the last event.
    let failed = contract.ok(&pods, "POST", "/v1/ensure", &json!({"source": "s3://models/absent/"}));
    assert_eq!((&failed["event"], &failed["exit_code"]), (&json!("error"), &json!(66)));

    contract.ok(&admin, "POST", "/v1/pin", &json!({"model": source, "include": ["*"]}));
    contract.refused(&admin, "POST", "/v1/pin", &json!({"model": source}), (404, 66));
    contract.refused(&admin, "POST", "/v1/pin", &json!({"model": "s3://models/other/"}), (404, 66));
    contract.ok(&admin, "POST", "/v1/unpin", &json!({"model": digest[..8]}));

    contract.ok(&admin, "POST", "/v1/verify", &json!({}));
    damage(&Path::new(ready["path"].as_str().expect("a path")).join("model-00002-of-00003.safetensors"));
    let verified = contract.ok(&admin, "POST", "/v1/verify", &json!({"model": source, "include": ["*"]}));
    assert_eq!((&verified["event"], &verified["damaged"]), (&json!("verified"), &json!(1)), "{verified}");
    let repaired = contract.ok(&admin, "POST", "/v1/verify", &json!({"model": null, "repair": true}));
    assert_eq!((&repaired["event"], &repaired["exit_code"]), (&json!("repaired"), &json!(0)), "{repaired}");
    let told = contract.ok(&admin, "POST", "/v1/verify", &json!({"model": "s3://models/other/"}));
    assert_eq!((&told["event"], &told["exit_code"]), (&json!("error"), &json!(66)));

    // Everything again with the origin gone: a warning, and then the model.
    node.set("recheck", "\"0s\"");
    node.restart();
    drop(origin);
    let stale = contract.ok(&pods, "POST", "/v1/ensure", &ensure("pod:p-1"));
    assert_eq!((&stale["event"], &stale["bytes_moved"]), (&json!("ready"), &json!(0)));
    let lease = stale["lease"].as_str().expect("a lease").to_owned();
    let told = contract.refused(&admin, "POST", "/v1/remove", &named, (409, 75));
    assert!(told.contains("pod:p-1"), "{told}");
    assert_eq!(contract.ok(&admin, "POST", "/v1/release", &json!({"lease": lease}))["released"], true);
    assert_eq!(contract.ok(&admin, "POST", "/v1/release", &json!({"lease": lease}))["released"], false);
    let removed = contract.ok(&admin, "POST", "/v1/remove", &named);
    assert_eq!(removed["removed"], json!([source]));
    assert!(removed["bytes_freed"].as_u64() >= Some(model.len()), "{removed}");
    contract.refused(&admin, "POST", "/v1/remove", &named, (404, 66));

    for seen in [
        "POST /v1/ensure 200 progress",
        "POST /v1/ensure 200 warning",
        "POST /v1/ensure 200 ready",
        "POST /v1/ensure 200 error",
        "POST /v1/verify 200 damaged",
        "POST /v1/verify 200 verified",
        "POST /v1/verify 200 done",
        "POST /v1/verify 200 repaired",
        "POST /v1/verify 200 error",
        "GET /v1/model 404 ",
        "POST /v1/remove 409 ",
    ] {
        assert!(contract.answered.contains(seen), "{seen} was not seen: {:#?}", contract.answered);
    }
}

/// With a mount there are answers that are not there without.
#[test]
fn a_mount_and_what_arrives_in_it_are_as_the_file_has_them() {
    let origin = slow_origin(&vec![7; 4 << 20], 1 << 20);
    let Some(mut node) = mounting(&origin) else { return };
    node.start();
    let mut contract = Contract::new();
    let wish = |lazy: bool| json!({"source": "s3://models/m/", "lazy": lazy, "lease": "process:1"});
    let arriving = contract.ok(&node.socket(), "POST", "/v1/ensure", &wish(true));
    assert_eq!((&arriving["event"], &arriving["arriving"]), (&json!("ready"), &json!(true)), "{arriving}");
    let status = contract.ok(&node.socket(), "GET", "/v1/status", &Value::Null);
    assert_eq!((&status["totals"]["lazy"], &status["mount"]["directory"]), (&json!(1), &arriving["root"]), "{status}");
    assert_eq!(status["leases"][0]["digest"], arriving["digest"], "{status}");
    let whole = contract.ok(&node.socket(), "POST", "/v1/ensure", &wish(false));
    assert_eq!((&whole["event"], &whole["arriving"]), (&json!("ready"), &json!(false)), "{whole}");
    assert_ne!(whole["digest"], arriving["digest"]);
}

#[test]
fn a_request_with_a_field_too_many_is_refused_and_named() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let node = Node::started(&origin);
    let mut contract = Contract::new();
    let bodies = [
        ("/v1/ensure", json!({"source": "s3://models/m/"})),
        ("/v1/pin", json!({"model": "s3://models/m/"})),
        ("/v1/unpin", json!({"model": "s3://models/m/"})),
        ("/v1/remove", json!({"models": ["s3://models/m/"]})),
        ("/v1/verify", json!({})),
        ("/v1/release", json!({"lease": "x"})),
    ];
    let with_body = contract.calls().into_iter().filter(|(method, ..)| method == "POST").count();
    assert_eq!(bodies.len(), with_body, "every call that takes a body");
    for (path, mut body) in bodies {
        let schema = contract.call("POST", path)["requestBody"]["content"]["application/json"]["schema"].clone();
        schema::check(&contract.document, &schema, &body).expect("the file takes what the test sends");
        body["surprise"] = json!(1);
        let told = contract.refused(&node.admin_socket(), "POST", path, &body, (400, 64));
        assert!(told.contains("unknown field `surprise`"), "{path}: {told}");
        for wrong in [json!([]), json!("text"), Value::Null] {
            contract.refused(&node.admin_socket(), "POST", path, &wrong, (400, 64));
        }
        let answer = http::ask(&node.admin_socket(), "POST", path, None).expect("an answer");
        assert_eq!(answer.status, 400, "{path} without a body");
    }
    assert_eq!(origin.seen().len(), 0, "nothing was done");
}

#[test]
fn a_body_beyond_64_kib_is_refused() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let node = Node::started(&origin);
    for (len, expected) in [(BODY_LEN_MAX, 400), (BODY_LEN_MAX + 1, 413), (4 << 20, 413)] {
        let body = vec![b' '; len];
        let answer = http::ask(&node.socket(), "POST", "/v1/ensure", Some(&body)).expect("an answer");
        assert_eq!(answer.status, expected, "{len} bytes");
        assert_eq!(answer.json()["error"]["exit_code"], 64);
    }
}

#[test]
fn a_head_beyond_16_kib_is_refused() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let node = Node::started(&origin);
    let path = format!("/v1/model?name={}", "x".repeat(20 << 10));
    // Closed with or without a word: there is no request that could be answered.
    if let Ok(answer) = http::ask(&node.socket(), "GET", &path, None) {
        assert!(matches!(answer.status, 414 | 431), "{}", answer.status);
    }
    node.status();
}

/// Neither a caller that does not say what it wants nor one that does not finish is waited for.
#[test]
fn a_caller_that_dawdles_is_shown_out() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let node = Node::started(&origin);
    let dawdle = |head: &'static str| {
        let mut stream = UnixStream::connect(node.socket()).expect("a connection");
        std::thread::spawn(move || {
            stream.set_read_timeout(Some(3 * DAEMON_PATIENCE)).expect("a timeout");
            stream.write_all(head.as_bytes()).expect("sent");
            let (started, mut told) = (Instant::now(), Vec::new());
            stream.read_to_end(&mut told).expect("closed in time");
            (started.elapsed(), String::from_utf8(told).expect("text"))
        })
    };
    let callers = [
        dawdle(""),
        dawdle("GET /v1/status HTTP/1.1\r\nHost: larder\r\n"),
        dawdle("POST /v1/ensure HTTP/1.1\r\nHost: larder\r\nContent-Length: 100\r\n\r\n{"),
    ];
    let [silent, half, body] = callers.map(|caller| caller.join().expect("a caller"));
    for (elapsed, told) in [&silent, &half, &body] {
        assert!(*elapsed >= DAEMON_PATIENCE / 2 && *elapsed < 2 * DAEMON_PATIENCE, "{elapsed:?}: {told}");
    }
    assert!(body.1.starts_with("HTTP/1.1 400") && body.1.contains("no whole request within 10 s"), "{}", body.1);
}

#[test]
fn a_connection_is_for_one_request() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let node = Node::started(&origin);
    let mut stream = UnixStream::connect(node.socket()).expect("a connection");
    stream.set_read_timeout(Some(DAEMON_PATIENCE)).expect("a timeout");
    let request = "GET /v1/models HTTP/1.1\r\nHost: larder\r\n\r\n";
    stream.write_all(request.repeat(2).as_bytes()).expect("sent");
    let mut told = String::new();
    stream.read_to_string(&mut told).expect("closed");
    assert_eq!(told.matches("HTTP/1.1 200").count(), 1, "{told}");
    assert!(told.contains("connection: close"), "{told}");
}
