//! What is mounted for pods, in the kernel's words. No file system is asked: one of them may be
//! served by a daemon that is away.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use larder_keeper::protocol::{MESSAGE_LEN_MAX, Refusal, join};
use rustix::fs::{CWD, Mode, openat};
use rustix::io::Errno;

use crate::args::Settings;
use crate::models::Models;
use crate::mountinfo::{self, Entry, TYPE};
use crate::place::{WALK, is_plain, self_fd};

/// Fields of an answer: of the mounts with a number above `after`, those with the lowest ones, as
/// many as fit. A mount has its number for as long as it is there, so whoever asks page by page
/// misses none that was there all the time.
pub fn page(settings: &Settings, after: Option<u64>) -> Result<Vec<u8>, Refusal> {
    let (models, places) = (Models::find(&settings.models)?, Places::find(&settings.bind_below)?);
    let table = mountinfo::table()?;
    let mut page = BTreeMap::new();
    let mut len = b"ok".len();
    for (id, entry) in mountinfo::entries(&table).filter(|(id, _)| after.is_none_or(|after| *id > after)) {
        let Some((verb, what)) = what(&models, &entry) else { continue };
        let Some(target) = places.given(&entry.point) else { continue };
        let fields = [id.to_string().as_bytes(), verb, what.as_bytes(), target.as_os_str().as_bytes()].join(&0);
        if b"ok".len() + 1 + fields.len() > MESSAGE_LEN_MAX {
            let sentence = format!("what is mounted at `{}` has too long a name to be told", target.display());
            return Err(Refusal::new(Errno::NAMETOOLONG, sentence));
        }
        len += 1 + fields.len();
        page.insert(id, fields);
        while len > MESSAGE_LEN_MAX {
            // What is dropped comes with the next page.
            let Some((_, dropped)) = page.pop_last() else { break };
            len -= 1 + dropped.len();
        }
    }
    let fields: Vec<&[u8]> = std::iter::once(b"ok".as_slice()).chain(page.values().map(Vec::as_slice)).collect();
    Ok(join(&fields))
}

/// The request that makes such a mount, and what it would name; none for what is not ours.
fn what<'e>(models: &Models, entry: &'e Entry) -> Option<(&'static [u8], &'e OsStr)> {
    if entry.kind != TYPE {
        return Some((b"publish", models.name(entry)?));
    }
    let root = entry.root.as_os_str().as_bytes();
    let root = root.strip_suffix(b"//deleted").unwrap_or(root);
    Some((b"bind", OsStr::from_bytes(root.strip_prefix(b"/").unwrap_or(root))))
}

/// The directories below which pods are, as the peer names them and as the kernel does.
struct Places(Vec<(PathBuf, PathBuf)>);

impl Places {
    /// Whoever cannot see one of them cannot say what is mounted there.
    fn find(allowed: &[PathBuf]) -> Result<Self, Refusal> {
        let find = |given: &PathBuf| {
            let refuse = |errno| Refusal::kernel(errno, format_args!("reach `{}`", given.display()));
            // The administrator's word, and may be a link.
            let opened = openat(CWD, given, WALK, Mode::empty()).map_err(refuse)?;
            let named = fs::read_link(self_fd(&opened));
            let named = named.map_err(|error| refuse(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
            Ok((given.clone(), named))
        };
        allowed.iter().map(find).collect::<Result<_, _>>().map(Self)
    }

    /// A mount point in the peer's words, if it is below one of them.
    fn given(&self, point: &Path) -> Option<PathBuf> {
        let below = |(given, named): &(PathBuf, PathBuf)| {
            let relative = point.strip_prefix(named).ok().filter(|relative| is_plain(relative))?;
            Some(given.join(relative))
        };
        self.0.iter().find_map(below)
    }
}
