//! A small HTTP/1.1 server: a thread per connection, and full power over the socket, because
//! resets, silences and short bodies are what it is for.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The head of a request is at most this long.
const HEAD_LEN_MAX: u64 = 64 << 10;
const BODY_LEN_MAX: usize = 1 << 20;
const WRITE_LEN: usize = 256 << 10;
/// Bytes that one answer has a shared link for.
const LINK_LEN: usize = 64 << 10;
const LINK_LATE_MAX: Duration = Duration::from_millis(20);

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// Percent-decoded, with its leading `/`.
    pub path: String,
    /// Percent-decoded pairs.
    pub query: Vec<(String, String)>,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    #[must_use]
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// First and last byte of a `Range: bytes=a-b`.
    #[must_use]
    pub fn range(&self) -> Option<(u64, u64)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// What happens to a body on its way.
#[derive(Debug, Clone, Copy, Default)]
pub enum Way {
    #[default]
    Whole,
    /// RST after that many bytes.
    Reset(u64),
    /// FIN after that many bytes.
    End(u64),
    /// Silence after that many bytes.
    Stall(u64),
    /// That many bytes per second.
    Slow(u64),
}

/// A link of a limited rate that all answers which are given it share, first come, first served.
#[derive(Debug)]
pub struct Link {
    per_second: u64,
    free_at: Mutex<Instant>,
}

impl Link {
    /// One that carries that many bytes per second.
    #[must_use]
    pub fn new(per_second: u64) -> Self {
        Self { per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Waits for as long as these bytes take after those that are on their way.
    fn carry(&self, bytes: u64) {
        let done_at = {
            let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
            let takes = Duration::from_micros(bytes * 1_000_000 / self.per_second.max(1));
            // Whoever woke up late is not slower for it.
            let earliest = Instant::now().checked_sub(LINK_LATE_MAX).unwrap_or(*free_at);
            *free_at = (*free_at).max(earliest) + takes;
            *free_at
        };
        thread::sleep(done_at.saturating_duration_since(Instant::now()));
    }
}

/// One answer.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Arc<Vec<u8>>,
    /// The part of `body` that is sent; all of it where none is given.
    pub range: Option<std::ops::Range<usize>>,
    /// Before the head is sent.
    pub delay: Duration,
    pub way: Way,
    /// What its bytes are carried by.
    pub link: Option<Arc<Link>>,
    /// Index into the sent bytes of one bit to flip.
    pub flip: Option<u64>,
}

impl Answer {
    #[must_use]
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, body: Arc::new(body.into()), ..Self::default() }
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    fn bytes(&self) -> &[u8] {
        match &self.range {
            Some(range) => &self.body[range.clone()],
            None => &self.body,
        }
    }
}

/// What stands behind a server.
pub trait Site: Send + Sync {
    fn answer(&self, request: &Request) -> Answer;
    /// That many more bytes of a body were sent.
    fn sent(&self, _bytes: u64) {}
    /// An answer has ended, well or not.
    fn ended(&self) {}
}

/// A listening server, ended by drop.
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    accepting: Option<thread::JoinHandle<()>>,
}

impl Server {
    pub fn start(site: Arc<dyn Site>) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let accepting = thread::spawn(move || {
            for socket in listener.incoming() {
                if stopping.load(Relaxed) {
                    return;
                }
                let Ok(socket) = socket else { continue };
                let (site, stop) = (Arc::clone(&site), Arc::clone(&stopping));
                thread::spawn(move || {
                    // A peer that goes away is this server's everyday life.
                    let _ = connection(&socket, &*site, &stop);
                });
            }
        });
        Ok(Self { address, stop, accepting: Some(accepting) })
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        // Wakes the accept.
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn connection(socket: &TcpStream, site: &dyn Site, stop: &AtomicBool) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut reader = BufReader::new(socket.try_clone()?);
    while let Some(request) = read_request(&mut reader)? {
        if stop.load(Relaxed) {
            return Ok(());
        }
        let answer = site.answer(&request);
        thread::sleep(answer.delay);
        let keep = write_answer(socket, &request, &answer, site, stop);
        site.ended();
        if !keep? {
            return Ok(());
        }
    }
    Ok(())
}

fn read_request(reader: &mut BufReader<TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    let mut head = reader.take(HEAD_LEN_MAX);
    if head.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "not an HTTP request");
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().ok_or_else(bad)?.to_owned(), words.next().ok_or_else(bad)?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if head.read_line(&mut line)? == 0 {
            return Err(bad());
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(bad)?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length").map_or(Ok(0), |(_, v)| v.parse::<usize>());
    let length = length.map_err(|_| bad())?;
    if length > BODY_LEN_MAX {
        return Err(bad());
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    // A proxy's client sends the absolute form.
    let target =
        target.strip_prefix("http://").map_or(target.as_str(), |rest| rest.find('/').map_or("/", |at| &rest[at..]));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decode(&name.replace('+', " ")), decode(&value.replace('+', " ")))
    });
    Ok(Some(Request { method, path: decode(path), query: query.collect(), headers, body }))
}

/// Percent-decoding.
#[must_use]
pub fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code =
            tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|h| u8::from_str_radix(h, 16).ok());
        match code {
            Some(code) if first == b'%' => {
                bytes.push(code);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn write_answer(
    mut socket: &TcpStream,
    request: &Request,
    answer: &Answer,
    site: &dyn Site,
    stop: &AtomicBool,
) -> io::Result<bool> {
    let body = answer.bytes();
    let mut head = format!("HTTP/1.1 {} {}\r\n", answer.status, reason(answer.status));
    if !answer.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    socket.write_all(head.as_bytes())?;
    if request.method == "HEAD" || answer.status == 304 {
        return Ok(true);
    }
    let len = body.len() as u64;
    let until = match answer.way {
        Way::Whole | Way::Slow(_) => len,
        Way::Reset(at) | Way::End(at) | Way::Stall(at) => at.min(len),
    };
    let started = Instant::now();
    let mut done = 0_u64;
    while done < until {
        let step = match answer.way {
            Way::Slow(rate) => usize::try_from(rate / 50).unwrap_or(1).clamp(1, WRITE_LEN),
            _ if answer.link.is_some() => LINK_LEN,
            _ => WRITE_LEN,
        };
        let (from, to) = (usize_of(done), usize_of(until).min(usize_of(done) + step));
        if let Some(link) = &answer.link {
            link.carry((to - from) as u64);
        }
        match answer.flip.map(usize_of) {
            Some(at) if (from..to).contains(&at) => {
                let mut wrong = body[from..to].to_vec();
                wrong[at - from] ^= 0x10;
                socket.write_all(&wrong)?;
            }
            _ => socket.write_all(&body[from..to])?,
        }
        site.sent((to - from) as u64);
        done = to as u64;
        if let Way::Slow(rate) = answer.way {
            let due = Duration::from_micros(done * 1_000_000 / rate.max(1));
            thread::sleep(due.saturating_sub(started.elapsed()));
        }
        if stop.load(Relaxed) {
            return Ok(false);
        }
    }
    match answer.way {
        Way::Whole | Way::Slow(_) => return Ok(true),
        Way::Reset(_) => rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO))?,
        Way::End(_) => socket.shutdown(Shutdown::Both)?,
        Way::Stall(_) => {
            // Silent until the peer gives up, or the server ends.
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            let mut byte = [0];
            while !stop.load(Relaxed) {
                match socket.read(&mut byte) {
                    Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                    Ok(0) | Err(_) => break,
                    Ok(_) => {}
                }
            }
        }
    }
    Ok(false)
}

fn usize_of(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        404 => "Not Found",
        503 => "Service Unavailable",
        _ => "Status",
    }
}
