//! HTTP/1.1 over a unix socket: one request a connection, answers of any framing.
//!
//! Everything an answer can be too long or too slow in has a limit here. Knows nothing of what is
//! asked for.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Status line and header fields together; also a chunk's size line, and all trailer fields.
pub const HEAD_LEN_MAX: usize = 16 << 10;
/// One line of a streamed body.
pub const LINE_LEN_MAX: usize = 1 << 20;
/// A body that is read whole.
pub const BODY_LEN_MAX: usize = 64 << 20;
/// What one read may bring: an event is a few hundred bytes.
const BUFFER_LEN: usize = 8 << 10;
/// Reads of [`BUFFER_LEN`] that empty a socket buffer of the kernel's default size, and some.
const READS_MAX: usize = 64;

/// Why there is no answer, or no more of it.
#[derive(Debug)]
pub enum Error {
    /// The other side went away, or says nothing. Asking again may help.
    Broken(String),
    /// What came is not HTTP, or larger than anything the daemon sends. Asking again is no use.
    Protocol(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Broken(what) | Self::Protocol(what)) = self;
        f.write_str(what)
    }
}

impl std::error::Error for Error {}

fn broken(what: &str) -> Error {
    Error::Broken(what.to_owned())
}

fn protocol(what: &str) -> Error {
    Error::Protocol(what.to_owned())
}

/// How long to wait.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// From the request to the end of the answer's head.
    pub answer_within: Duration,
    /// For the next line of a body, or the next piece of one that is read whole.
    pub silence_max: Duration,
}

/// An answer, its body still to be read.
#[derive(Debug)]
pub struct Response {
    /// The status code, 100 to 999.
    pub status: u16,
    /// The rest.
    pub body: Body,
}

/// Sends one request and reads the head of its answer.
///
/// # Errors
/// [`Error::Broken`] when the other side closes or falls silent, [`Error::Protocol`] when it
/// does not speak HTTP. A `method` or `path` that is no token is refused as the latter.
pub fn exchange(
    stream: UnixStream,
    method: &str,
    path: &str,
    body: Option<&str>,
    limits: Limits,
) -> Result<Response, Error> {
    let deadline = Instant::now() + limits.answer_within;
    send(&stream, method, path, body, limits.answer_within)?;
    let mut reader = Reader { stream, buffer: vec![0; BUFFER_LEN], start: 0, end: 0 };
    let (status, framing) = read_head(&mut reader, deadline)?;
    Ok(Response { status, body: Body { reader, framing, line: Vec::new(), silence_max: limits.silence_max } })
}

fn send(mut stream: &UnixStream, method: &str, path: &str, body: Option<&str>, within: Duration) -> Result<(), Error> {
    if method.is_empty() || !path.starts_with('/') || !method.bytes().chain(path.bytes()).all(|b| b.is_ascii_graphic())
    {
        return Err(protocol("the request's method or path has characters that no request line can have"));
    }
    let mut request = String::with_capacity(256 + body.map_or(0, str::len));
    for part in [method, " ", path, " HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n"] {
        request.push_str(part);
    }
    if let Some(body) = body {
        request.push_str("Content-Type: application/json\r\nContent-Length: ");
        request.push_str(&body.len().to_string());
        request.push_str("\r\n\r\n");
        request.push_str(body);
    } else {
        request.push_str("\r\n");
    }
    let sent = stream.set_write_timeout(Some(within.max(Duration::from_millis(1))));
    sent.and_then(|()| stream.write_all(request.as_bytes())).map_err(|error| Error::Broken(error.to_string()))
}

/// Bytes from the socket, as they come.
#[derive(Debug)]
struct Reader {
    stream: UnixStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Reader {
    fn buffered(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// Waits until something is buffered. False at the end.
    fn fill(&mut self, deadline: Instant) -> Result<bool, Error> {
        while self.start == self.end {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(broken("it said nothing for too long"));
            }
            // A timeout below a microsecond would mean none at all.
            let left = left.max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).map_err(|error| Error::Broken(error.to_string()))?;
            match self.stream.read(&mut self.buffer) {
                Ok(0) => return Ok(false),
                Ok(count) => (self.start, self.end) = (0, count),
                // The deadline decides.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(Error::Broken(error.to_string())),
            }
        }
        Ok(true)
    }

    /// One line without its end. `budget` is what all lines of this kind may still have.
    fn line(&mut self, budget: &mut usize, deadline: Instant) -> Result<Vec<u8>, Error> {
        let mut line = Vec::new();
        loop {
            if !self.fill(deadline)? {
                return Err(broken("it closed the connection before its answer was whole"));
            }
            let found = self.buffered().iter().position(|byte| *byte == b'\n');
            let count = found.map_or(self.end - self.start, |at| at + 1);
            *budget = budget.checked_sub(count).ok_or_else(|| protocol("the head of its answer is too long"))?;
            line.extend_from_slice(&self.buffered()[..count]);
            self.start += count;
            if found.is_some() {
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return Ok(line);
            }
        }
    }
}

/// Where the body ends.
#[derive(Debug)]
enum Framing {
    /// After this many more bytes.
    Length(u64),
    /// Where the chunks end; this many bytes are left of the current one. Before the first chunk
    /// there is no line end to skip.
    Chunks { left: u64, is_first: bool },
    /// Where the connection does.
    Close,
    /// It has ended.
    Ended,
}

fn read_head(reader: &mut Reader, deadline: Instant) -> Result<(u16, Framing), Error> {
    let mut budget = HEAD_LEN_MAX;
    let status = parse_status(&reader.line(&mut budget, deadline)?)?;
    let mut length = None;
    let mut is_chunked = false;
    loop {
        let line = reader.line(&mut budget, deadline)?;
        if line.is_empty() {
            break;
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (name, value) = line.split_at(colon.ok_or_else(|| protocol("its answer has a header without a colon"))?);
        let value = value[1..].trim_ascii();
        if name.eq_ignore_ascii_case(b"content-length") {
            let new = decimal(value).ok_or_else(|| protocol("its answer has a length that is no number"))?;
            if length.is_some_and(|old| old != new) {
                return Err(protocol("its answer has two lengths"));
            }
            length = Some(new);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(protocol("its answer has an unknown transfer encoding"));
            }
            is_chunked = true;
        }
    }
    let framing = match length {
        _ if status == 204 || status == 304 => Framing::Ended,
        _ if is_chunked => Framing::Chunks { left: 0, is_first: true },
        Some(length) => Framing::Length(length),
        None => Framing::Close,
    };
    Ok((status, framing))
}

/// The code of `HTTP/1.1 200 OK`.
fn parse_status(line: &[u8]) -> Result<u16, Error> {
    let [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0' | b'1', b' ', code @ ..] = line else {
        return Err(protocol("its answer is not HTTP/1.1"));
    };
    let (digits, rest) = code.split_at_checked(3).unwrap_or((&[], &[]));
    match decimal(digits) {
        Some(status @ 100..=999) if matches!(rest, [] | [b' ', ..]) => Ok(status as u16),
        _ => Err(protocol("its answer has no status code")),
    }
}

fn decimal(digits: &[u8]) -> Option<u64> {
    // 18 digits always fit.
    if digits.is_empty() || digits.len() > 18 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0')))
}

/// The size in a chunk's first line, extensions ignored.
fn chunk_size(line: &[u8]) -> Option<u64> {
    let digits = line.split(|byte| *byte == b';').next()?.trim_ascii();
    if digits.is_empty() || digits.len() > 15 {
        return None;
    }
    digits.iter().try_fold(0, |size, digit| Some(size * 16 + u64::from(char::from(*digit).to_digit(16)?)))
}

/// The body of an answer.
#[derive(Debug)]
pub struct Body {
    reader: Reader,
    framing: Framing,
    line: Vec<u8>,
    silence_max: Duration,
}

impl Body {
    /// How many bytes of the body are buffered; 0 only at its end.
    fn available(&mut self, deadline: Instant) -> Result<usize, Error> {
        if let Framing::Chunks { left: 0, is_first } = self.framing {
            self.next_chunk(is_first, deadline)?;
        }
        let left = match self.framing {
            Framing::Ended | Framing::Length(0) => return Ok(0),
            Framing::Length(left) | Framing::Chunks { left, .. } => left,
            Framing::Close => u64::MAX,
        };
        if !self.reader.fill(deadline)? {
            if !matches!(self.framing, Framing::Close) {
                return Err(broken("it closed the connection before its answer was whole"));
            }
            return Ok(0);
        }
        let buffered = self.reader.buffered().len();
        Ok(usize::try_from(left).map_or(buffered, |left| left.min(buffered)))
    }

    fn next_chunk(&mut self, is_first: bool, deadline: Instant) -> Result<(), Error> {
        let mut budget = HEAD_LEN_MAX;
        if !is_first && !self.reader.line(&mut budget, deadline)?.is_empty() {
            return Err(protocol("its answer has a chunk longer than its size"));
        }
        let size = chunk_size(&self.reader.line(&mut budget, deadline)?);
        let left = size.ok_or_else(|| protocol("its answer has a chunk without a size"))?;
        self.framing = Framing::Chunks { left, is_first: false };
        if left == 0 {
            // Trailer fields, which mean nothing here, up to an empty line.
            while !self.reader.line(&mut budget, deadline)?.is_empty() {}
            self.framing = Framing::Ended;
        }
        Ok(())
    }

    fn consume(&mut self, count: usize) {
        self.reader.start += count;
        if let Framing::Length(left) | Framing::Chunks { left, .. } = &mut self.framing {
            *left -= count as u64;
        }
    }

    /// The next line without its end, or `None` at the end of the body.
    ///
    /// # Errors
    /// [`Error::Broken`] when the connection ends first, or no whole line comes within the
    /// silence allowed; [`Error::Protocol`] for a line longer than [`LINE_LEN_MAX`], and for one
    /// that is not UTF-8.
    pub fn line(&mut self) -> Result<Option<&str>, Error> {
        let deadline = Instant::now() + self.silence_max;
        self.line.clear();
        loop {
            let count = self.available(deadline)?;
            if count == 0 {
                if self.line.is_empty() {
                    return Ok(None);
                }
                if matches!(self.framing, Framing::Close) {
                    // Nothing says that this is all of the line.
                    return Err(broken("it closed the connection in the middle of a line"));
                }
                break;
            }
            let piece = &self.reader.buffered()[..count];
            let found = piece.iter().position(|byte| *byte == b'\n');
            let taken = found.map_or(count, |at| at + 1);
            if self.line.len() + taken > LINE_LEN_MAX {
                return Err(protocol("its answer has a line that is too long"));
            }
            self.line.extend_from_slice(&piece[..taken]);
            self.consume(taken);
            if found.is_some() {
                self.line.pop();
                break;
            }
        }
        match std::str::from_utf8(&self.line) {
            Ok(line) => Ok(Some(line)),
            Err(_) => Err(protocol("its answer is not UTF-8")),
        }
    }

    /// The rest of the body, at most `len_max` bytes of it.
    ///
    /// # Errors
    /// As [`Body::line`], with this limit.
    pub fn text(mut self, len_max: usize) -> Result<String, Error> {
        let mut bytes = Vec::new();
        loop {
            let count = self.available(Instant::now() + self.silence_max)?;
            if count == 0 {
                break;
            }
            if bytes.len() + count > len_max {
                return Err(protocol("its answer is too long"));
            }
            bytes.extend_from_slice(&self.reader.buffered()[..count]);
            self.consume(count);
        }
        String::from_utf8(bytes).map_err(|_| protocol("its answer is not UTF-8"))
    }

    /// True until the other side closes the connection. Throws away what it has sent since, so
    /// nothing more can be read afterwards.
    pub fn is_open(&mut self) -> bool {
        if self.reader.stream.set_nonblocking(true).is_err() {
            return false;
        }
        for _ in 0..READS_MAX {
            match self.reader.stream.read(&mut self.reader.buffer) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUICK: Limits = Limits { answer_within: Duration::from_millis(200), silence_max: Duration::from_millis(200) };

    /// What comes of a server that writes `answer` and, if so told, closes.
    fn serve(answer: &[u8], closes: bool) -> (Result<Response, Error>, Option<UnixStream>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer).unwrap();
        theirs.shutdown(std::net::Shutdown::Read).unwrap_or_default();
        let kept = (!closes).then(|| theirs.try_clone().unwrap());
        // The request is in nobody's way: it fits the socket's buffer.
        let (ours_to_write, _reader) = UnixStream::pair().unwrap();
        send(&ours_to_write, "GET", "/", None, QUICK.answer_within).unwrap();
        drop(theirs);
        let mut reader = Reader { stream: ours, buffer: vec![0; BUFFER_LEN], start: 0, end: 0 };
        let response = read_head(&mut reader, Instant::now() + QUICK.answer_within).map(|(status, framing)| Response {
            status,
            body: Body { reader, framing, line: Vec::new(), silence_max: QUICK.silence_max },
        });
        (response, kept)
    }

    fn text(answer: &[u8]) -> Result<(u16, String), Error> {
        let response = serve(answer, true).0?;
        Ok((response.status, response.body.text(BODY_LEN_MAX)?))
    }

    #[test]
    fn every_framing_is_read() {
        for (answer, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd", (200, "abc")),
            ("HTTP/1.0 404\r\n\r\nabc", (404, "abc")),
            ("HTTP/1.1 204 No\r\nContent-Length: 3\r\n\r\n", (204, "")),
            (
                "HTTP/1.1 200 \r\nTransfer-Encoding: Chunked\r\n\r\n3\r\nabc\r\n02;x=y\r\nde\r\n0\r\n\r\n",
                (200, "abcde"),
            ),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nA: b\r\nC: d\r\n\r\n", (200, "")),
            ("HTTP/1.1 200 OK\nContent-Length:0\n\n", (200, "")),
        ] {
            let (status, body) = text(answer.as_bytes()).expect(answer);
            assert_eq!((status, body.as_str()), expected, "{answer:?}");
        }
    }

    #[test]
    fn what_ends_early_is_broken() {
        for answer in [
            "",
            "HTTP/1.1 200 OK\r\nContent-Le",
            "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
        ] {
            assert!(matches!(text(answer.as_bytes()), Err(Error::Broken(_))), "{answer:?}");
        }
    }

    #[test]
    fn what_is_not_http_is_refused() {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        for answer in [
            "SSH-2.0-OpenSSH\r\n".to_owned(),
            "HTTP/2 200 OK\r\n\r\n".to_owned(),
            "HTTP/1.1 2000 OK\r\n\r\n".to_owned(),
            "HTTP/1.1 20\r\n\r\n".to_owned(),
            "HTTP/1.1 099 OK\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\nno colon\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_owned(),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n".to_owned(),
            format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(HEAD_LEN_MAX)),
            format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(HEAD_LEN_MAX / 6)),
            format!("{chunked}\r\n"),
            format!("{chunked}-1\r\n"),
            format!("{chunked}+1\r\na\r\n"),
            format!("{chunked}xyz\r\n"),
            format!("{chunked}ffffffffffffffff\r\n"),
            format!("{chunked}2\r\nabc\r\n0\r\n\r\n"),
            format!("{chunked}{}\r\n", "1".repeat(HEAD_LEN_MAX)),
            format!("{chunked}0\r\n{}", "X: y\r\n".repeat(HEAD_LEN_MAX / 6 + 1)),
        ] {
            let shown = &answer[..answer.len().min(80)];
            let result = text(answer.as_bytes());
            assert!(matches!(result, Err(Error::Protocol(_))), "{shown:?}: {result:?}");
        }
        assert!(matches!(text(b"HTTP/1.1 200 OK\r\n\r\n\xff"), Err(Error::Protocol(_))));
    }

    #[test]
    fn lines_come_whole_however_they_are_cut() {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunks: String = "one\n\ntwo \u{e9}\nthree\nlast"
            .as_bytes()
            .iter()
            // A chunk for every byte: lines, characters and chunks never end together.
            .map(|byte| format!("1\r\n{}\r\n", char::from(*byte)))
            .collect();
        let mut answer = head.as_bytes().to_vec();
        // `char::from` makes two bytes of one above 127: write those back as single bytes.
        answer.extend(chunks.chars().map(|c| c as u8));
        answer.extend_from_slice(b"0\r\n\r\n");
        let mut body = serve(&answer, true).0.unwrap().body;
        for expected in ["one", "", "two \u{e9}", "three", "last"] {
            assert_eq!(body.line().unwrap(), Some(expected));
        }
        assert_eq!(body.line().unwrap(), None);
        assert_eq!(body.line().unwrap(), None);
    }

    #[test]
    fn a_cut_line_without_framing_is_broken() {
        let mut body = serve(b"HTTP/1.1 200 OK\r\n\r\none\ntw", true).0.unwrap().body;
        assert_eq!(body.line().unwrap(), Some("one"));
        assert!(matches!(body.line(), Err(Error::Broken(_))));
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let writer = std::thread::spawn(move || {
            let _ = theirs.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
            while theirs.write_all(&[b'x'; 1 << 13]).is_ok() {}
        });
        let mut body = exchange(ours, "GET", "/", None, QUICK).unwrap().body;
        assert!(matches!(body.line(), Err(Error::Protocol(_))));
        drop(body);
        writer.join().unwrap();
    }

    #[test]
    fn silence_is_broken_in_time() {
        let began = Instant::now();
        let (response, kept) = serve(b"HTTP/1.1 20", false);
        assert!(matches!(response, Err(Error::Broken(_))));
        let (response, kept_too) = serve(b"HTTP/1.1 200 OK\r\n\r\none\ntw", false);
        let mut body = response.unwrap().body;
        assert_eq!(body.line().unwrap(), Some("one"));
        assert!(matches!(body.line(), Err(Error::Broken(_))));
        assert!(began.elapsed() < Duration::from_secs(2));
        drop((kept, kept_too));
    }

    #[test]
    fn a_held_connection_is_told_from_a_closed_one() {
        let (response, kept) = serve(b"HTTP/1.1 200 OK\r\n\r\none\n", false);
        let mut body = response.unwrap().body;
        assert_eq!(body.line().unwrap(), Some("one"));
        assert!(body.is_open());
        drop(kept);
        assert!(!body.is_open());
    }

    #[test]
    fn a_request_line_cannot_be_forged() {
        for (method, path) in [("", "/"), ("GET", ""), ("GET", "x"), ("GET", "/ HTTP/1.1\r\nA: b"), ("G T", "/")] {
            let (ours, _theirs) = UnixStream::pair().unwrap();
            assert!(
                matches!(exchange(ours, method, path, None, QUICK), Err(Error::Protocol(_))),
                "{method:?} {path:?}"
            );
        }
    }
}
