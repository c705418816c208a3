//! What origins answer: listings of S3 and GCS, and whatever else has that form.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use larder::domain::{Source, check_paths};
use larder::remote::{self, Endpoints, Options};

use crate::engine::{Target, outcome, sentence};

/// A server whose answers are given, head and all.
struct Server {
    url: String,
    answer: Arc<Mutex<Vec<u8>>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let answer = Arc::new(Mutex::new(Vec::new()));
        let given = Arc::clone(&answer);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let answer = given.lock().unwrap_or_else(PoisonError::into_inner).clone();
                // Whoever goes away has had enough.
                let _ = converse(stream, &answer);
            }
        });
        Self { url, answer }
    }

    fn answer(&self, answer: Vec<u8>) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = answer;
    }
}

fn converse(mut stream: TcpStream, answer: &[u8]) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            count => head.extend_from_slice(&buffer[..count]),
        }
    }
    stream.write_all(answer)
}

/// An answer that is a body alone, unless it says that it is more.
fn whole(kind: &str, input: &[u8]) -> Vec<u8> {
    if input.starts_with(b"HTTP/1.1 2") || input.starts_with(b"HTTP/1.1 4") {
        return input.to_vec();
    }
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        input.len()
    );
    [head.as_bytes(), input].concat()
}

fn list(target: Target, source: &str, kind: &str) {
    let server = Server::start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let source = Source::parse(source).expect("a source");
    let options = Options { anonymous: true, endpoints: Endpoints::at(&server.url), ..Options::default() };
    let remote = runtime.block_on(remote::open(&source, &options)).expect("an origin");
    target.run(|input| {
        server.answer(whole(kind, input));
        runtime.block_on(async {
            // The SDK tries a broken answer again, at leisure.
            let listed = tokio::time::timeout(Duration::from_millis(250), remote.list()).await;
            match listed {
                Ok(Ok(listing)) => {
                    check_paths(listing.objects.iter().map(|object| &object.path)).expect("paths of one tree");
                    outcome((listing.objects.len().min(4), listing.markers.min(2)))
                }
                Ok(Err(error)) => sentence(&error.to_string()),
                Err(_) => outcome("tried again"),
            }
        })
    });
}

#[test]
fn s3() {
    let words = "<Contents>|</Contents>|<Key>|</Key>|<Size>|</Size>|<ETag>&quot;|<IsTruncated>true</IsTruncated>|<NextContinuationToken>x</NextContinuationToken>|<LastModified>|&#0;|&lt;|<![CDATA[|]]>|<!DOCTYPE|<?xml|HTTP/1.1 403 x\r\n|<Error><Code>";
    list(Target::named("s3").words(words), "s3://b/m/", "application/xml");
}

#[test]
fn gcs() {
    let words = "\"items\":[|{\"name\":\"m/|\"size\":\"|\"generation\":\"|\"nextPageToken\":\"x\"|\"crc32c\":|\"md5Hash\":|\"contentEncoding\":\"gzip\"|HTTP/1.1 403 x\r\n|{\"error\":{|-1";
    list(Target::named("gcs").words(words), "gs://b/m/", "application/json");
}
