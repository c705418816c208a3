//! What `larder-init` and the command line read of a daemon: HTTP, JSON, lines of progress.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use larder_init::Client;
use larder_init::client::{Event, Lease, Wish};
use larder_init::http::{self, BODY_LEN_MAX, Limits, exchange};
use larder_init::json::{Value, Writer};

use crate::engine::{Target, outcome, sentence};

const QUICK: Limits = Limits { answer_within: Duration::from_secs(5), silence_max: Duration::from_secs(5) };
const WORDS: &str = "HTTP/1.1 200 OK\r\n|Content-Length: |Transfer-Encoding: chunked\r\n|\r\n\r\n|\r\n|0\r\n\r\n|5\r\n|ffffffffffffffff\r\n|;a=b|HTTP/1.0 |204 |304 ";

/// What was read: the status and the body, by lines or in one piece.
fn read(pieces: Vec<Vec<u8>>, by_lines: bool) -> Result<(u16, Vec<String>), http::Error> {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair");
    let server = thread::spawn(move || {
        let mut request = [0; 1024];
        let _ = theirs.read(&mut request);
        for piece in pieces {
            if theirs.write_all(&piece).is_err() {
                return;
            }
        }
    });
    let read = || {
        let response = exchange(ours, "GET", "/", None, QUICK)?;
        let (status, mut body) = (response.status, response.body);
        if !by_lines {
            return Ok((status, vec![body.text(BODY_LEN_MAX)?]));
        }
        let mut lines = Vec::new();
        while let Some(line) = body.line()? {
            lines.push(line.to_owned());
        }
        Ok((status, lines))
    };
    let read = read();
    server.join().expect("a server");
    read
}

/// An answer means the same in whatever pieces it comes.
#[test]
fn http() {
    Target::named("http").words(WORDS).run(|input| {
        let (by_lines, bytes) = (input.first().is_some_and(|first| first % 2 == 0), input.get(1..).unwrap_or_default());
        let whole = read(vec![bytes.to_vec()], by_lines);
        let middle = bytes.len() / 2;
        let pieces = vec![bytes[..middle].to_vec(), bytes[middle..].to_vec()];
        let apart = read(pieces, by_lines);
        match (whole, apart) {
            (Ok(whole), Ok(apart)) => {
                assert_eq!(whole, apart);
                outcome((whole.0, whole.1.len().min(4)))
            }
            (Err(whole), Err(apart)) => {
                assert_eq!(whole.to_string(), apart.to_string());
                sentence(&whole.to_string())
            }
            (whole, apart) => panic!("whole {whole:?}, in pieces {apart:?}"),
        }
    });
}

/// Takes what serde takes, and as that; but for depth, and for numbers that no float holds.
#[test]
fn json() {
    let words = "{|}|[|]|:|,|\"|\\u|\\ud83d\\ude00|true|false|null|1e400|-0|0.1E+2";
    Target::named("json").words(words).run(|input| {
        let text = String::from_utf8_lossy(input);
        let (ours, theirs) = (Value::parse(&text), serde_json::from_str::<serde_json::Value>(&text));
        match (ours, theirs) {
            (Ok(ours), Ok(theirs)) => {
                let _ = (ours.as_u64(), ours.as_thousandths());
                same(&ours, &theirs);
                outcome(std::mem::discriminant(&ours))
            }
            (Err(error), Ok(_)) => {
                assert_eq!(error.what, "too deep", "{text:?}");
                outcome(error.what)
            }
            (Ok(_), Err(error)) => {
                assert!(error.to_string().contains("number out of range"), "{text:?}: {error}");
                outcome("out of range")
            }
            (Err(error), Err(_)) => outcome(error.what),
        }
    });
}

fn same(ours: &Value, theirs: &serde_json::Value) {
    match (ours, theirs) {
        (Value::Null, serde_json::Value::Null) | (Value::Number(_), serde_json::Value::Number(_)) => {}
        (Value::Bool(ours), serde_json::Value::Bool(theirs)) => assert_eq!(ours, theirs),
        (Value::String(ours), serde_json::Value::String(theirs)) => {
            assert_eq!(ours, theirs);
            let written = Writer::new().string("s", ours).finish();
            assert_eq!(Value::parse(&written).expect("JSON").get("s").and_then(Value::as_str), Some(ours.as_str()));
        }
        (Value::Array(ours), serde_json::Value::Array(theirs)) => {
            assert_eq!(ours.len(), theirs.len());
            ours.iter().zip(theirs).for_each(|(ours, theirs)| same(ours, theirs));
        }
        // Of members with one name, here the first counts and there the last.
        (Value::Object(ours), serde_json::Value::Object(theirs)) => {
            assert!(ours.iter().all(|(name, _)| theirs.contains_key(name)));
        }
        (ours, theirs) => panic!("{ours:?} is {theirs:?}"),
    }
}

/// A daemon's answer to `ensure`, head and all.
#[test]
fn events() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("sock");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let client = Client::new(&socket).limits(QUICK);
    let wish = Wish {
        source: "s3://b/m/".to_owned(),
        include: Vec::new(),
        exclude: Vec::new(),
        fresh: false,
        lazy: false,
        lease: Lease::Connection,
    };
    let words = "{\"event\":\"progress\"|{\"event\":\"ready\"|{\"event\":\"error\"|{\"event\":\"warning\"|\"message\":|\"path\":\"/|\"digest\":|\"lease\":|\"exit_code\":|\"bytes_total\":|\"seconds\":|\n|HTTP/1.1 503 x\r\n\r\n|{\"error\":{";
    Target::named("events").words(words).run(|input| {
        let answer =
            if input.starts_with(b"HTTP") { input.to_vec() } else { [b"HTTP/1.1 200 OK\r\n\r\n", input].concat() };
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = listener.accept().expect("a client");
                let mut request = [0; 4096];
                let _ = stream.read(&mut request);
                let _ = stream.write_all(&answer);
            });
            let events = match client.ensure(&wish) {
                Ok(events) => events,
                Err(error) => return sentence(&error.to_string()),
            };
            let mut kinds = Vec::new();
            for event in events {
                match event {
                    Ok(Event::Ready(ready)) => {
                        assert!(ready.path.is_absolute() && ready.digest.len() == 64, "{ready:?}");
                        kinds.push(1);
                    }
                    Ok(Event::Progress(_)) => kinds.push(2),
                    Ok(Event::Warning(_)) => kinds.push(3),
                    Ok(Event::Error(failure)) => {
                        assert_ne!(failure.exit_code, 0, "a failure that ends well");
                        kinds.push(4);
                    }
                    Ok(Event::Unknown) => kinds.push(5),
                    Err(error) => return sentence(&error.to_string()),
                }
            }
            kinds.dedup();
            kinds.truncate(5);
            outcome(kinds)
        })
    });
}
