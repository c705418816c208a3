//! As little HTTP/1.1 as it takes to ask the daemon, so that a test says every byte it sends.

use std::io::{BufRead as _, BufReader, Read};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// No answer takes longer to say its next word.
const PATIENCE: Duration = Duration::from_mins(1);

/// An answer, its body still to be read. Dropped, it closes the connection.
pub struct Answer {
    pub status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    body: Box<dyn Read + Send>,
}

/// Asks at a unix socket and reads the head of the answer.
pub fn ask(socket: &Path, method: &str, path: &str, body: Option<&[u8]>) -> std::io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    send(&mut stream, method, path, body)?;
    Answer::read(stream)
}

/// Asks over TCP.
pub fn ask_tcp(address: &str, method: &str, path: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    send(&mut stream, method, path, None)?;
    Answer::read(stream)
}

fn send(stream: &mut impl std::io::Write, method: &str, path: &str, body: Option<&[u8]>) -> std::io::Result<()> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: larder\r\n");
    if let Some(body) = body {
        head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    // A server that has heard enough answers before it has read everything, and closes.
    match stream.write_all(body.unwrap_or_default()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

impl Answer {
    /// Reads the head of an answer.
    pub fn read(stream: impl Read + Send + 'static) -> std::io::Result<Self> {
        let mut reader = BufReader::new(stream);
        let broken = || std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "no whole head of an answer");
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok()).ok_or_else(broken)?;
        let mut headers = Vec::new();
        loop {
            line.clear();
            if reader.read_line(&mut line)? == 0 {
                return Err(broken());
            }
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let named = |wanted: &str| headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
        let body: Box<dyn Read + Send> = if named("transfer-encoding") == Some("chunked") {
            Box::new(Chunked { reader, left: 0, ended: false })
        } else {
            let len = named("content-length").and_then(|value| value.parse().ok()).unwrap_or(0);
            Box::new(reader.take(len))
        };
        Ok(Self { status, headers, body })
    }

    /// A header by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The whole body.
    #[track_caller]
    pub fn text(mut self) -> String {
        let mut text = String::new();
        self.body.read_to_string(&mut text).expect("a whole body");
        text
    }

    /// The whole body as JSON; `null` where there is none.
    #[track_caller]
    pub fn json(self) -> Value {
        let text = self.text();
        if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"))
        }
    }

    /// The body line by line.
    pub fn events(self) -> Events {
        Events { lines: BufReader::new(self.body) }
    }
}

/// The events of an answer as they come. Dropped, it closes the connection.
pub struct Events {
    lines: BufReader<Box<dyn Read + Send>>,
}

impl Iterator for Events {
    type Item = Value;

    /// The next event; none when the answer has ended or broken off.
    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"))),
        }
    }
}

/// A body in chunks, as RFC 9112 section 7.1 has it. An end without the last chunk is an error.
struct Chunked<R> {
    reader: BufReader<R>,
    left: usize,
    ended: bool,
}

impl<R: Read> Read for Chunked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 && !self.ended {
            let broken = || std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "a body without its end");
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            if line == "\r\n" {
                line.clear();
                self.reader.read_line(&mut line)?;
            }
            self.left = usize::from_str_radix(line.trim_end(), 16).map_err(|_| broken())?;
            self.ended = self.left == 0;
        }
        if self.ended {
            return Ok(0);
        }
        let most = self.left.min(buffer.len());
        let len = self.reader.read(&mut buffer[..most])?;
        self.left -= len;
        Ok(len)
    }
}
