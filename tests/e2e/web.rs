//! Single files over HTTP: what holds a range to its version, and what a query string means.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larder_origins::{Checksums, Fault, Front, Noise, Origin};

use crate::support::{Larder, read_tree};

/// Two parts and a rest.
const LEN: usize = 20 << 20;
const MONDAY: &str = "Mon, 02 Nov 2026 10:00:00 GMT";
const TUESDAY: &str = "Tue, 03 Nov 2026 10:00:00 GMT";

/// One request to a [`Site`].
#[derive(Debug, Clone)]
struct Asked {
    method: String,
    /// Path and query as sent.
    target: String,
    /// Names in lower case.
    headers: BTreeMap<String, String>,
}

impl Asked {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn is_read(&self) -> bool {
        self.method == "GET" && self.header("range").is_some_and(|range| range != "bytes=0-0")
    }
}

/// One answer of it.
#[derive(Default)]
struct Told {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Told {
    fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// A file or the range of it that was asked for, with these headers.
    fn file(asked: &Asked, bytes: &[u8], headers: &[(&'static str, &str)]) -> Self {
        let mut told = Self::status(200);
        told.headers.extend(headers.iter().map(|(name, value)| (*name, (*value).to_owned())));
        let range = asked.header("range").and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        if let Some((first, last)) = range {
            let (first, last): (usize, usize) = (first.parse().expect("a byte"), last.parse().expect("a byte"));
            told.status = 206;
            told.headers.push(("Content-Range", format!("bytes {first}-{last}/{}", bytes.len())));
            told.body = bytes[first..=last].to_vec();
        } else {
            told.body = bytes.to_vec();
        }
        told
    }
}

type Rule = dyn Fn(&Asked) -> Told + Send + Sync;

/// A server whose every header is the test's: [`Origin`] always sends a `Last-Modified`.
struct Site {
    address: std::net::SocketAddr,
    seen: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
}

impl Site {
    fn start(rule: impl Fn(&Asked) -> Told + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let (seen, stop): (Arc<Mutex<Vec<Asked>>>, Arc<AtomicBool>) = Default::default();
        let site = Self { address, seen: Arc::clone(&seen), stop: Arc::clone(&stop) };
        let rule: Arc<Rule> = Arc::new(rule);
        std::thread::spawn(move || {
            for socket in listener.incoming().map_while(Result::ok) {
                if stop.load(Relaxed) {
                    return;
                }
                let (rule, seen) = (Arc::clone(&rule), Arc::clone(&seen));
                // A peer that goes away is this server's everyday life.
                std::thread::spawn(move || answer(&socket, &*rule, &seen).ok());
            }
        });
        site
    }

    fn url(&self, target: &str) -> String {
        format!("http://{}/{target}", self.address)
    }

    fn seen(&self) -> Vec<Asked> {
        self.seen.lock().expect("no panic").clone()
    }

    fn reads(&self) -> Vec<Asked> {
        self.seen().into_iter().filter(Asked::is_read).collect()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // Wakes the accept.
        let _ = TcpStream::connect(self.address);
    }
}

/// One request and its answer: connections are not kept.
fn answer(mut socket: &TcpStream, rule: &Rule, seen: &Mutex<Vec<Asked>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(socket).lines();
    let Some(first) = lines.next().transpose()? else { return Ok(()) };
    let mut words = first.split(' ').map(str::to_owned);
    let mut word = || words.next().unwrap_or_default();
    let mut asked = Asked { method: word(), target: word(), headers: BTreeMap::new() };
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        asked.headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    seen.lock().expect("no panic").push(asked.clone());
    let told = rule(&asked);
    let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\nContent-Length: ", told.status);
    head.push_str(&told.body.len().to_string());
    for (name, value) in &told.headers {
        head.push_str(&format!("\r\n{name}: {value}"));
    }
    head.push_str("\r\n\r\n");
    socket.write_all(head.as_bytes())?;
    if asked.method != "HEAD" {
        socket.write_all(&told.body)?;
    }
    socket.shutdown(std::net::Shutdown::Write)
}

fn larder() -> Larder {
    Larder::new::<&str, &str>([])
}

fn one_file(name: &str, bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    BTreeMap::from([(name.to_owned(), bytes.to_vec())])
}

#[test]
fn a_server_that_names_no_version_is_refused() {
    for validators in [&[][..], &[("ETag", "W/\"weak\"")], &[("ETag", "\"\"")], &[("Last-Modified", "lately")]] {
        let site = Site::start(|asked| Told::file(asked, &[7; 100], validators));
        let told = larder().fails(64, &["prefetch", &site.url("w.bin")]);
        assert!(told.contains("neither a strong ETag nor a Last-Modified"), "{validators:?}: {told}");
        assert!(told.contains("would mix its versions: serve it from one that sends either"), "{told}");
        assert!(site.reads().is_empty(), "refused before a byte moves");
    }
}

/// What HEAD leaves out, or what is refused to it, a GET of one byte brings.
#[test]
fn a_version_that_only_get_tells_is_enough() {
    let bytes = Noise::new(40).bytes(LEN);
    for refuse in [true, false] {
        let sent = bytes.clone();
        let site = Site::start(move |asked| match asked.method.as_str() {
            "HEAD" if refuse => Told::status(403),
            "HEAD" => Told::file(asked, &sent, &[]),
            _ => Told::file(asked, &sent, &[("ETag", "\"one\"")]),
        });
        let larder = larder();
        let url = site.url("w.bin");
        larder.prefetch(&url);
        larder.holds(&url, &one_file("w.bin", &bytes));
        assert!(site.reads().iter().all(|read| read.header("if-match") == Some("\"one\"")));
    }
}

#[test]
fn the_time_of_the_last_change_pins_every_range() {
    let bytes = Noise::new(41).bytes(LEN);
    let sent = bytes.clone();
    let site = Site::start(move |asked| Told::file(asked, &sent, &[("Last-Modified", MONDAY), ("ETag", "W/\"w\"")]));
    let (larder, url) = (larder(), site.url("w.bin"));
    larder.prefetch(&url);
    larder.holds(&url, &one_file("w.bin", &bytes));
    let reads = site.reads();
    assert!(reads.len() >= 2, "{} reads", reads.len());
    assert!(reads.iter().all(|read| read.header("if-unmodified-since") == Some(MONDAY)), "{reads:?}");
    assert!(reads.iter().all(|read| read.header("if-match").is_none()), "{reads:?}");
    assert_eq!(larder.prefetch(&url)["bytes_moved"], 0, "known by its time");
}

/// A file that is replaced after the first range, on servers that heed the condition and on
/// servers that do not: one of the two versions comes, never a mixture.
#[test]
fn a_file_replaced_mid_pull_is_never_mixed() {
    let versions = [42, 43].map(|seed| Noise::new(seed).bytes(LEN));
    let validators: [[(&str, &str); 2]; 2] =
        [[("Last-Modified", MONDAY), ("Last-Modified", TUESDAY)], [("ETag", "\"one\""), ("ETag", "\"two\"")]];
    for validators in validators {
        for heeds in [true, false] {
            let reads = AtomicUsize::new(0);
            let sent = versions.clone();
            let site = Site::start(move |asked| {
                if asked.is_read() {
                    reads.fetch_add(1, Relaxed);
                }
                let now = usize::from(reads.load(Relaxed) > 1);
                let validator = validators[now];
                let condition = asked.header("if-match").or_else(|| asked.header("if-unmodified-since"));
                if heeds && condition.is_some_and(|condition| condition != validator.1) {
                    return Told::status(412);
                }
                Told::file(asked, &sent[now], &[validator])
            });
            let (larder, url) = (larder(), site.url("w.bin"));
            larder.prefetch(&url);
            larder.holds(&url, &one_file("w.bin", &versions[1]));
        }
    }
}

/// Ranges that stop saying which version they are of are not taken on trust.
#[test]
fn ranges_without_the_validator_are_not_used() {
    let site = Site::start(|asked| {
        let validators: &[_] = if asked.method == "HEAD" { &[("ETag", "\"one\"")] } else { &[] };
        Told::file(asked, &[7; 1000], validators)
    });
    let told = larder().fails(69, &["prefetch", &site.url("w.bin")]);
    assert!(told.contains("nothing says which version it is of"), "{told}");
}

/// An S3 server that lists no ETags is held to the time of the last change.
#[test]
fn an_s3_object_without_an_etag_is_held_to_its_time() {
    let versions = [44, 45].map(|seed| Noise::new(seed).bytes(LEN));
    let (reads, sent) = (AtomicUsize::new(0), versions.clone());
    let site = Site::start(move |asked| {
        if asked.is_read() {
            reads.fetch_add(1, Relaxed);
        }
        let now = usize::from(reads.load(Relaxed) > 1);
        if asked.target.contains("list-type=2") {
            let day = ["2026-11-02", "2026-11-03"][now];
            let body = format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult><Name>b</Name><IsTruncated>false</IsTruncated><Contents><Key>m/w.bin</Key><LastModified>{day}T10:00:00.000Z</LastModified><Size>{LEN}</Size></Contents></ListBucketResult>"
            );
            return Told { body: body.into_bytes(), ..Told::status(200) };
        }
        Told::file(asked, &sent[now], &[("Last-Modified", [MONDAY, TUESDAY][now])])
    });
    let larder = Larder::new([
        ("AWS_ENDPOINT_URL", site.url("")),
        ("AWS_ACCESS_KEY_ID", "key".into()),
        ("AWS_SECRET_ACCESS_KEY", "secret".into()),
        ("AWS_REGION", "us-east-1".into()),
    ]);
    larder.prefetch("s3://b/m");
    larder.holds("s3://b/m", &one_file("w.bin", &versions[1]));
}

/// Two objects of one path, with the same ETag and size: nothing but the query tells them apart.
#[test]
fn a_query_names_another_object_and_is_kept_nowhere() {
    let site = Site::start(|asked| {
        let id = asked.target.contains("id=2");
        Told::file(asked, &[u8::from(id); 1000], &[("ETag", "\"same\"")])
    });
    let larder = larder();
    let (one, two) = (site.url("get?id=1&token=S3CR3T"), site.url("get?id=2&token=S3CR3T"));
    larder.prefetch(&one);
    assert_eq!(larder.prefetch(&two)["bytes_moved"], 1000, "another object");
    larder.holds(&one, &one_file("get", &[0; 1000]));
    larder.holds(&two, &one_file("get", &[1; 1000]));

    // What `ls` shows names it everywhere.
    let listed = larder.ok(&["ls", "--json"]);
    assert!(!listed.stdout.contains("S3CR3T") && !listed.stdout.contains("id="), "{listed:?}");
    let shown: Vec<String> =
        listed.events().iter().map(|line| line["source"].as_str().expect("a source").to_owned()).collect();
    assert_eq!(shown.len(), 2, "{shown:?}");
    for name in &shown {
        assert!(name.starts_with(&site.url("get?query-")), "{name}");
        let inspected = larder.ok(&["inspect", "--json", name]).last_event();
        assert_eq!(inspected["source"], *name);
        assert_eq!(inspected["files"][0]["uri"], *name);
    }
    let kept = shown.iter().map(|name| larder.files(name)["get"][0]).collect::<Vec<_>>();
    assert!(kept == [0, 1] || kept == [1, 0], "{kept:?}");

    // The same query in another order is the same source; the shown one cannot be asked for.
    assert_eq!(larder.prefetch(&site.url("get?token=S3CR3T&id=1#top"))["bytes_moved"], 0);
    let told = larder.fails(64, &["prefetch", &shown[0]]);
    assert!(told.contains("larder keeps no query of a URL because it may hold a secret: give the whole URL"), "{told}");

    for (name, bytes) in read_tree(&larder.store()) {
        assert!(!bytes.windows(6).any(|text| text == b"S3CR3T"), "{name} has the query in it");
    }
}

/// A presigned URL is signed anew for every pull.
#[test]
fn signatures_do_not_make_another_source() {
    let origin = Origin::start(Front::S3).expect("an origin");
    origin.bucket().put("m/w.bin", Noise::new(46).bytes(1 << 20), Checksums::single_part());
    let larder = larder();
    let signed = |by: &str| {
        format!(
            "{}/models/m/w.bin?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={by}&X-Amz-Expires=60&X-Amz-Signature=S3CR3T{by}",
            origin.url()
        )
    };
    assert_eq!(larder.prefetch(&signed("1"))["bytes_moved"], 1 << 20);
    assert_eq!(larder.prefetch(&signed("2"))["bytes_moved"], 0);
    let listed = larder.ok(&["ls", "--json"]);
    assert_eq!(listed.events().len(), 1, "{listed:?}");
    assert_eq!(listed.last_event()["source"], format!("{}/models/m/w.bin", origin.url()));
    let sent = origin.seen().into_iter().filter(|seen| seen.request.query("X-Amz-Signature").is_some()).count();
    assert_eq!(sent, origin.seen().len(), "every request carries its signature");
}

/// A server that accepts and says nothing costs half a minute, not for ever.
#[test]
fn a_silent_server_has_an_end() {
    let origin = Origin::start(Front::S3).expect("an origin");
    let bytes = Noise::new(47).bytes(1 << 20);
    origin.bucket().put("m/w.bin", bytes.clone(), Checksums::single_part());
    let silent = AtomicBool::new(true);
    origin.misbehave(move |_| silent.swap(false, Relaxed).then_some(Fault::Late(Duration::from_secs(45))));
    let (larder, url) = (larder(), format!("{}/models/m/w.bin", origin.url()));
    let ran = larder.ok(&["prefetch", "-vv", &url]);
    assert!(ran.stderr.contains("no answer within 30 s"), "{ran:?}");
    larder.holds(&url, &one_file("w.bin", &bytes));
}
