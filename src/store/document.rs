//! Documents that may be long: one checked line (see [`super::record`]), written and read as a
//! stream, so that neither takes memory for its text.
//!
//! The writer holds the bound that the reader demands.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::fsx;
use super::record::CHECK_LEN;

/// A source document or a manifest larger than this is neither written nor read: 100,000 files are
/// about 40 MiB.
pub(super) const LEN_MAX: u64 = 128 << 20;
const BUFFER_LEN: usize = 64 << 10;
/// Up to here a document is read whole: that is several times as fast.
const WHOLE_LEN_MAX: u64 = 4 << 20;

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("longer than {LEN_MAX} bytes, which is never read back"))
}

/// Passes bytes on, counts and hashes them, and stops at the bound.
struct Hashing<T> {
    inner: T,
    hasher: blake3::Hasher,
    len: u64,
    len_max: u64,
}

impl<T> Hashing<T> {
    fn new(inner: T, len_max: u64) -> Self {
        Self { inner, hasher: blake3::Hasher::new(), len: 0, len_max }
    }

    fn count(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.len += bytes.len() as u64;
        self.hasher.update(bytes);
        if self.len > self.len_max { Err(too_long()) } else { Ok(()) }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.count(&bytes[..written])?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count(&buffer[..read])?;
        Ok(read)
    }
}

/// What a value is as a document, without writing it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Form {
    /// Bytes of the payload.
    pub len: u64,
    /// Their digest.
    hash: blake3::Hash,
}

/// Measures a value.
///
/// # Errors
/// [`io::ErrorKind::FileTooLarge`] for one that is never read back.
pub(super) fn measure<T: Serialize>(value: &T) -> io::Result<Form> {
    measure_within(value, LEN_MAX)
}

fn measure_within<T: Serialize>(value: &T, len_max: u64) -> io::Result<Form> {
    let mut sink = BufWriter::with_capacity(BUFFER_LEN, Hashing::new(io::sink(), len_max));
    serde_json::to_writer(&mut sink, value)?;
    let hashing = sink.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(Form { len: hashing.len, hash: hashing.hasher.finalize() })
}

/// Writes a document in place of an older one, by way of a scratch file. As [`fsx::replace`].
///
/// # Errors
/// The disk's; [`io::ErrorKind::FileTooLarge`], and then the older one stays.
pub(super) fn replace<T: Serialize>(scratch: &Path, path: &Path, value: &T) -> io::Result<()> {
    replace_within(scratch, path, value, LEN_MAX)
}

fn replace_within<T: Serialize>(scratch: &Path, path: &Path, value: &T, len_max: u64) -> io::Result<()> {
    fsx::replace_by(scratch, path, false, |file| {
        // The check is known at the end, and stands at the beginning.
        file.write_all(&[b'0'; CHECK_LEN])?;
        file.write_all(b" ")?;
        let mut payload = BufWriter::with_capacity(BUFFER_LEN, Hashing::new(&mut *file, len_max));
        serde_json::to_writer(&mut payload, value)?;
        let hash = payload.into_inner().map_err(io::IntoInnerError::into_error)?.hasher.finalize();
        file.write_all(b"\n")?;
        file.write_all_at(&hash.to_hex().as_bytes()[..CHECK_LEN], 0)
    })
}

/// Reads a document back, and what form it had.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] where the check or the form is wrong, or it is longer than any
/// that is written; the disk's.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> io::Result<(T, Form)> {
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut file = fsx::open(path)?;
    let len = file.metadata()?.len();
    // The check, a blank, and the newline.
    let around = CHECK_LEN as u64 + 2;
    if len > LEN_MAX + around {
        return Err(wrong(format!("it is longer than {LEN_MAX} bytes")));
    }
    if len <= WHOLE_LEN_MAX {
        return read_whole(&mut file, len);
    }
    let mut head = [0; CHECK_LEN + 1];
    file.read_exact(&mut head).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => wrong("it ends early".to_owned()),
        _ => error,
    })?;
    // The newline at the end is no part of the payload.
    let payload = Hashing::new(file.take(len.saturating_sub(around)), LEN_MAX);
    let mut reader = BufReader::with_capacity(BUFFER_LEN, payload);
    let value = serde_json::from_reader(&mut reader).map_err(|error| match error.io_error_kind() {
        Some(_) => io::Error::from(error),
        None => wrong(format!("it is no document of this form: {error}")),
    })?;
    let hashing = reader.into_inner();
    let form = Form { len: hashing.len, hash: hashing.hasher.finalize() };
    if head[CHECK_LEN] != b' ' || head[..CHECK_LEN] != form.hash.to_hex().as_bytes()[..CHECK_LEN] {
        return Err(wrong("its check is wrong".to_owned()));
    }
    Ok((value, form))
}

/// The same by way of its text.
fn read_whole<T: DeserializeOwned>(file: &mut File, len: u64) -> io::Result<(T, Form)> {
    let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut text = Vec::new();
    file.take(len).read_to_end(&mut text)?;
    let payload = text.strip_suffix(b"\n").and_then(|line| line.split_at_checked(CHECK_LEN + 1));
    let (head, payload) = payload.ok_or_else(|| wrong("it ends early".to_owned()))?;
    let form = Form { len: payload.len() as u64, hash: blake3::hash(payload) };
    if head[CHECK_LEN] != b' ' || head[..CHECK_LEN] != form.hash.to_hex().as_bytes()[..CHECK_LEN] {
        return Err(wrong("its check is wrong".to_owned()));
    }
    let value =
        serde_json::from_slice(payload).map_err(|error| wrong(format!("it is no document of this form: {error}")))?;
    Ok((value, form))
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests read and write what they made")]
mod tests {
    use std::fs;

    use super::super::record;
    use super::*;

    #[test]
    fn a_document_is_a_checked_line_and_a_flipped_or_torn_one_is_told() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("d");
        for count in [1_000, 400_000] {
            is_told(directory.path(), &path, &(0..count).map(|n| format!("file {n}\n\"")).collect());
        }
    }

    fn is_told(directory: &Path, path: &Path, value: &Vec<String>) {
        replace(directory, path, &value).expect("written");
        assert!(fs::read(path).expect("read") == record::encode(&value), "one codec");
        let (back, form) = read::<Vec<String>>(path).expect("read");
        assert!(back == *value && form == measure(&value).expect("measured"));
        let whole = fs::read(path).expect("read");
        for at in [0, 16, 17, 5_000, whole.len() / 2, whole.len() - 3] {
            let mut bad = whole.clone();
            bad[at] ^= 4;
            fs::write(path, &bad).expect("written");
            let told = read::<Vec<String>>(path).expect_err("flipped").kind();
            assert_eq!(told, io::ErrorKind::InvalidData, "flip at {at}");
            fs::write(path, &whole[..at]).expect("written");
            let told = read::<Vec<String>>(path).expect_err("torn").kind();
            assert_eq!(told, io::ErrorKind::InvalidData, "torn at {at}");
        }
    }

    #[test]
    fn one_that_would_not_be_read_is_not_written() {
        let directory = tempfile::tempdir().expect("tempdir");
        let (scratch, path) = (directory.path(), directory.path().join("d"));
        fs::write(&path, "old").expect("written");
        let (value, most) = (vec!["x".repeat(1 << 10); 300], 100 << 10);
        assert_eq!(measure_within(&value, most).expect_err("too long").kind(), io::ErrorKind::FileTooLarge);
        let told = replace_within(scratch, &path, &value, most).expect_err("too long");
        assert_eq!(told.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(fs::read(&path).expect("read"), b"old");
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 1, "no scratch is left");
        // One of an earlier build, or of somebody else: it costs nothing but a look at its length.
        File::create(&path).and_then(|file| file.set_len(1 << 40)).expect("a file");
        assert_eq!(read::<Vec<String>>(&path).expect_err("too long").kind(), io::ErrorKind::InvalidData);
    }
}
