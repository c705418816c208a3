//! Which mount a descriptor is on, from /proc alone: asking the file system itself could wait
//! for whoever serves it.

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};

use larder_keeper::protocol::Refusal;
use rustix::io::Errno;

/// The type of every mount of ours, by which one keeper knows those of another.
pub const TYPE: &str = "fuse.larder";

/// What there is to know about a mount.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// `major:minor`; every FUSE connection has its own while anything of it is mounted.
    pub device_number: String,
    /// Its type.
    pub kind: String,
}

/// The number of the mount that a descriptor is on.
pub fn mount_id(fd: &OwnedFd) -> Result<u64, Refusal> {
    // A thread that binds has descriptors of its own (`sys::keep_only`).
    let text = read(&format!("/proc/thread-self/fdinfo/{}", fd.as_raw_fd()))?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| Refusal::new(Errno::NOSYS, "fdinfo names no mount"))
}

/// The mount of a number.
pub fn entry(id: u64) -> Result<Entry, Refusal> {
    let text = read("/proc/thread-self/mountinfo")?;
    let found = text.lines().find_map(|line| parse(line).filter(|(found, _)| *found == id));
    found.map(|(_, entry)| entry).ok_or_else(|| Refusal::new(Errno::NOENT, format!("no mount {id} in mountinfo")))
}

/// `36 35 98:0 /root /point options optional... - type source options` (`man 5 proc_pid_mountinfo`).
fn parse(line: &str) -> Option<(u64, Entry)> {
    let mut fields = line.split(' ');
    let id = fields.next()?.parse().ok()?;
    let device_number = fields.nth(1)?.to_owned();
    let kind = fields.skip_while(|field| *field != "-").nth(1)?.to_owned();
    Some((id, Entry { device_number, kind }))
}

fn read(path: &str) -> Result<String, Refusal> {
    // Names of mounts need not be UTF-8.
    let bytes = fs::read(path).map_err(|error| Refusal::new(Errno::IO, format!("cannot read {path}: {error}")))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_and_without_optional_fields() {
        let entry = || Entry { device_number: "0:45".to_owned(), kind: TYPE.to_owned() };
        for line in [
            "36 35 0:45 / /m rw,noatime master:1 shared:7 - fuse.larder larder ro",
            "36 35 0:45 /- /m\\040- rw - fuse.larder - ro",
        ] {
            assert_eq!(parse(line), Some((36, entry())), "{line}");
        }
        assert_eq!(parse(""), None);
        assert_eq!(parse("36 35 0:45 / /m rw"), None);
    }
}
