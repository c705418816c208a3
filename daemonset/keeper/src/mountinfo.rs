//! Which mount a descriptor is on, from /proc alone: asking the file system itself could wait
//! for whoever serves it.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

use larder_keeper::protocol::Refusal;
use rustix::io::Errno;

/// The type of every mount of ours, by which one keeper knows those of another.
pub const TYPE: &str = "fuse.larder";

/// What there is to know about a mount.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// `major:minor`; every FUSE connection has its own while anything of it is mounted.
    pub device_number: String,
    /// The directory of its file system that it shows; `//deleted` follows one that is gone.
    pub root: PathBuf,
    /// Where it is mounted.
    pub point: PathBuf,
    /// Its type.
    pub kind: String,
}

/// The number of the mount that a descriptor is on.
pub fn mount_id(fd: &OwnedFd) -> Result<u64, Refusal> {
    // A thread that binds has descriptors of its own (`sys::keep_only`).
    let text = read(&format!("/proc/thread-self/fdinfo/{}", fd.as_raw_fd()))?;
    let id = lines(&text).find_map(|line| text_of(line.strip_prefix(b"mnt_id:")?).trim().parse().ok());
    id.ok_or_else(|| Refusal::new(Errno::NOSYS, "fdinfo names no mount"))
}

/// The mount of a number.
pub fn entry(id: u64) -> Result<Entry, Refusal> {
    let found = entries(&table()?).find(|(found, _)| *found == id);
    found.map(|(_, entry)| entry).ok_or_else(|| Refusal::new(Errno::NOENT, format!("no mount {id} in mountinfo")))
}

/// The kernel's table of all mounts that this process can reach.
pub fn table() -> Result<Vec<u8>, Refusal> {
    read("/proc/thread-self/mountinfo")
}

/// The mounts in a table, each with its number.
pub fn entries(table: &[u8]) -> impl Iterator<Item = (u64, Entry)> {
    lines(table).filter_map(parse)
}

/// `36 35 98:0 /root /point options optional... - type source options` (`man 5 proc_pid_mountinfo`).
pub fn parse(line: &[u8]) -> Option<(u64, Entry)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = text_of(fields.next()?).parse().ok()?;
    let device_number = text_of(fields.nth(1)?);
    let (root, point) = (unescape(fields.next()?), unescape(fields.next()?));
    let kind = text_of(fields.skip_while(|field| *field != b"-").nth(1)?);
    Some((id, Entry { device_number, root, point, kind }))
}

/// Spaces, tabs, line ends and backslashes are written as a backslash and three octal digits.
fn unescape(mut field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    while let [first, rest @ ..] = field {
        let (byte, rest) = match field {
            [b'\\', high @ b'0'..=b'3', middle @ b'0'..=b'7', low @ b'0'..=b'7', rest @ ..] => {
                ((high - b'0') << 6 | (middle - b'0') << 3 | (low - b'0'), rest)
            }
            _ => (*first, rest),
        };
        path.push(byte);
        field = rest;
    }
    OsString::from_vec(path).into()
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

fn text_of(field: &[u8]) -> String {
    String::from_utf8_lossy(field).into_owned()
}

/// As bytes: names of mounts need not be UTF-8.
fn read(path: &str) -> Result<Vec<u8>, Refusal> {
    fs::read(path).map_err(|error| Refusal::new(Errno::IO, format!("cannot read {path}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_and_without_optional_fields() {
        for (line, root, point) in [
            ("36 35 0:45 / /m rw,noatime master:1 shared:7 - fuse.larder larder ro", "/", "/m"),
            ("36 35 0:45 /- /m\\040- rw - fuse.larder - ro", "/-", "/m -"),
        ] {
            let (device_number, kind) = ("0:45".to_owned(), TYPE.to_owned());
            let entry = Entry { device_number, root: root.into(), point: point.into(), kind };
            assert_eq!(parse(line.as_bytes()), Some((36, entry)), "{line}");
        }
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 0:45 / /m rw"), None);
    }

    #[test]
    fn names_are_what_they_were_before_they_were_escaped() {
        for (field, name) in [
            (&b"/a\\040\\011\\012\\134b"[..], &b"/a \t\n\\b"[..]),
            (b"/\xff\\377", b"/\xff\xff"),
            (b"\\134040", b"\\040"),
            (b"/\\04", b"/\\04"),
            (b"/\\400\\08x", b"/\\400\\08x"),
            (b"", b""),
        ] {
            assert_eq!(unescape(field).into_os_string().into_vec(), name, "{field:?}");
        }
    }
}
