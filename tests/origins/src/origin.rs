//! An origin that misbehaves on command: one bucket behind an S3 or a GCS front.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::bucket::{Bucket, Stored};
use crate::fault::Fault;
use crate::gcs;
use crate::http::{Answer, Request, Server, Site};

/// Keys of one page of a listing.
const PAGE_LEN: usize = 1000;
/// The one bucket's name.
pub const BUCKET: &str = "models";

/// Whose protocol is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Front {
    S3,
    Gcs,
}

/// One request as the origin saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub request: Request,
    /// Status of the answer.
    pub status: u16,
    /// Whether it asks for an object's bytes.
    pub is_read: bool,
}

/// Decides which answers are spoiled.
pub type Rule = dyn Fn(&Request) -> Option<Fault> + Send + Sync;

struct State {
    bucket: Bucket,
    rule: Mutex<Arc<Rule>>,
    seen: Mutex<Vec<Seen>>,
    sent: AtomicU64,
    page_len: AtomicU64,
    front: Front,
    in_flight: AtomicU64,
    in_flight_max: AtomicU64,
}

/// The server. Ends with the value.
pub struct Origin {
    server: Server,
    state: Arc<State>,
}

impl Origin {
    /// Starts it on a port of its own.
    pub fn start(front: Front) -> io::Result<Self> {
        let state = Arc::new(State {
            bucket: Bucket::default(),
            rule: Mutex::new(Arc::new(|_: &Request| None)),
            seen: Mutex::default(),
            sent: AtomicU64::new(0),
            page_len: AtomicU64::new(PAGE_LEN as u64),
            front,
            in_flight: AtomicU64::new(0),
            in_flight_max: AtomicU64::new(0),
        });
        let server = Server::start(Arc::clone(&state) as _)?;
        Ok(Self { server, state })
    }

    #[must_use]
    pub fn url(&self) -> String {
        self.server.url()
    }

    #[must_use]
    pub fn bucket(&self) -> &Bucket {
        &self.state.bucket
    }

    /// From now on, what the rule says goes wrong.
    pub fn misbehave(&self, rule: impl Fn(&Request) -> Option<Fault> + Send + Sync + 'static) {
        *lock(&self.state.rule) = Arc::new(rule);
    }

    /// Spoils reads of objects only: `rule` gets the number of the read (from 0) and the request.
    pub fn misbehave_on_reads(&self, rule: impl Fn(u64, &Request) -> Option<Fault> + Send + Sync + 'static) {
        let reads = AtomicU64::new(0);
        self.misbehave(move |request| if is_read(request) { rule(reads.fetch_add(1, Relaxed), request) } else { None });
    }

    pub fn behave(&self) {
        self.misbehave(|_| None);
    }

    /// Bytes of bodies sent so far, of listings too.
    #[must_use]
    pub fn bytes_sent(&self) -> u64 {
        self.state.sent.load(Relaxed)
    }

    /// Requests so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        lock(&self.state.seen).clone()
    }

    /// Reads of objects so far.
    #[must_use]
    pub fn reads(&self) -> usize {
        lock(&self.state.seen).iter().filter(|seen| seen.is_read).count()
    }

    /// The most requests that were answered at the same time.
    #[must_use]
    pub fn in_flight_max(&self) -> u64 {
        self.state.in_flight_max.load(Relaxed)
    }

    pub fn forget_seen(&self) {
        lock(&self.state.seen).clear();
        self.state.sent.store(0, Relaxed);
        self.state.in_flight_max.store(0, Relaxed);
    }

    /// Keys per page of a listing.
    pub fn set_page_len(&self, keys: u64) {
        self.state.page_len.store(keys, Relaxed);
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a request asks for an object's bytes.
fn is_read(request: &Request) -> bool {
    let listing = request.query("list-type").is_some() || request.path.ends_with("/o");
    request.method == "GET"
        && !listing
        && (request.query("alt") == Some("media") || request.path.matches('/').count() >= 2)
}

impl Site for State {
    fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Relaxed);
    }

    fn ended(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    fn answer(&self, request: &Request) -> Answer {
        let in_flight = self.in_flight.fetch_add(1, Relaxed) + 1;
        self.in_flight_max.fetch_max(in_flight, Relaxed);
        let page_len = usize::try_from(self.page_len.load(Relaxed)).unwrap_or(PAGE_LEN);
        let rule = Arc::clone(&lock(&self.rule));
        let fault = rule(request);
        let answer = match self.front {
            Front::S3 => s3(&self.bucket, request, page_len),
            Front::Gcs => gcs::answer(&self.bucket, request, page_len),
        };
        let answer = match fault {
            Some(fault) => fault.spoil(answer),
            None => answer,
        };
        let seen = Seen { request: request.clone(), status: answer.status, is_read: is_read(request) };
        lock(&self.seen).push(seen);
        answer
    }
}

fn refuse(status: u16, code: &str, message: &str) -> Answer {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    Answer::new(status, body).with("Content-Type", "application/xml")
}

/// ListObjectsV2, GetObject and HeadObject as the S3 API reference describes them, path style.
fn s3(bucket: &Bucket, request: &Request, page_len: usize) -> Answer {
    let rest = request.path.strip_prefix('/').unwrap_or(&request.path);
    let (name, key) = rest.split_once('/').unwrap_or((rest, ""));
    if name != BUCKET {
        return refuse(404, "NoSuchBucket", "The specified bucket does not exist");
    }
    if key.is_empty() {
        return list(bucket, request, page_len);
    }
    let Some(stored) = bucket.get(key) else {
        return refuse(404, "NoSuchKey", "The specified key does not exist.");
    };
    if request.header("if-match").is_some_and(|wanted| wanted != stored.etag) {
        return refuse(412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold");
    }
    let mut answer = read(request, &stored);
    if !stored.etag.is_empty() {
        answer = answer.with("ETag", &stored.etag);
    }
    // As S3 does: stored checksums are told only when asked for, and not with a range.
    if request.header("x-amz-checksum-mode").is_some_and(|mode| mode.eq_ignore_ascii_case("enabled"))
        && request.range().is_none()
    {
        let mut any = false;
        for (name, value) in [("crc64nvme", &stored.crc64nvme), ("crc32c", &stored.crc32c), ("sha256", &stored.sha256)]
        {
            if let Some(value) = value {
                answer = answer.with(&format!("x-amz-checksum-{name}"), value);
                any = true;
            }
        }
        if any {
            answer = answer.with("x-amz-checksum-type", "FULL_OBJECT");
        }
    }
    answer
}

/// The object, or the range of it that was asked for.
pub fn read(request: &Request, stored: &Stored) -> Answer {
    let total = stored.bytes.len();
    let answer = Answer { body: Arc::clone(&stored.bytes), ..Answer::default() }
        .with("Last-Modified", "Mon, 02 Nov 2026 10:00:00 GMT")
        .with("Content-Type", "application/octet-stream")
        .with("Accept-Ranges", "bytes");
    match request.range() {
        None => Answer { status: 200, ..answer },
        Some((first, last)) => {
            let (first, end) = (usize::try_from(first).unwrap_or(total), usize::try_from(last).unwrap_or(total) + 1);
            if first >= total {
                return refuse(416, "InvalidRange", "The requested range is not satisfiable");
            }
            let end = end.min(total);
            let answer = answer.with("Content-Range", format!("bytes {first}-{}/{total}", end - 1));
            Answer { status: 206, range: Some(first..end), ..answer }
        }
    }
}

fn list(bucket: &Bucket, request: &Request, page_len: usize) -> Answer {
    let prefix = request.query("prefix").unwrap_or("");
    let after = request.query("continuation-token");
    let mut keys = bucket.page(prefix, after, page_len + 1);
    let next = (keys.len() > page_len).then(|| keys[page_len - 1].0.clone());
    keys.truncate(page_len);
    let mut xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>{BUCKET}</Name><Prefix>{}</Prefix><KeyCount>{}</KeyCount><MaxKeys>{page_len}</MaxKeys><IsTruncated>{}</IsTruncated>",
        escape(prefix),
        keys.len(),
        next.is_some()
    );
    if let Some(next) = next {
        xml.push_str(&format!("<NextContinuationToken>{}</NextContinuationToken>", escape(&next)));
    }
    for (key, stored) in keys {
        let etag =
            if stored.etag.is_empty() { String::new() } else { format!("<ETag>{}</ETag>", escape(&stored.etag)) };
        let algorithms: String =
            [("CRC64NVME", &stored.crc64nvme), ("CRC32C", &stored.crc32c), ("SHA256", &stored.sha256)]
                .iter()
                .filter(|(_, value)| value.is_some())
                .map(|(name, _)| {
                    format!("<ChecksumAlgorithm>{name}</ChecksumAlgorithm><ChecksumType>FULL_OBJECT</ChecksumType>")
                })
                .collect();
        xml.push_str(&format!(
            "<Contents><Key>{}</Key><LastModified>2026-11-02T10:00:00.000Z</LastModified>{etag}{algorithms}<Size>{}</Size><StorageClass>STANDARD</StorageClass></Contents>",
            escape(&key),
            stored.bytes.len()
        ));
    }
    xml.push_str("</ListBucketResult>");
    Answer::new(200, xml).with("Content-Type", "application/xml")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
