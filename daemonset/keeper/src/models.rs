//! The daemon's directory of complete models, and how a mount of one is known again.
//!
//! Everything in it is the daemon's, so it could lead anywhere: no link is followed on the way, not
//! even to the directory itself, and nothing that is mounted in it is entered.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use larder_keeper::protocol::Refusal;
use rustix::io::Errno;

use crate::mountinfo::{self, Entry};
use crate::place::{open_beneath, open_without_links};

/// Opens a model's directory. Waits for a disk at most.
pub fn open(models: &Path, name: &Path) -> rustix::io::Result<OwnedFd> {
    open_beneath(&open_without_links(models)?, name)
}

/// Where the directory of models is, in the words of mountinfo: those are the same for every
/// keeper, whatever its container calls the directory.
#[derive(Debug)]
pub struct Models {
    device_number: String,
    root: PathBuf,
}

impl Models {
    /// Finds it. It need not be there: mounts of what was in it may be.
    pub fn find(models: &Path) -> Result<Self, Refusal> {
        let refuse = |errno| Refusal::kernel(errno, format_args!("reach `{}`", models.display()));
        let nearest = models.ancestors().map(open_without_links).find(|opened| !matches!(opened, Err(Errno::NOENT)));
        let nearest = nearest.unwrap_or(Err(Errno::NOENT)).map_err(refuse)?;
        let Entry { device_number, root, point, .. } = mountinfo::entry(mountinfo::mount_id(&nearest)?)?;
        let relative = models.strip_prefix(point).map_err(|_| refuse(Errno::XDEV))?;
        Ok(Self { device_number, root: root.join(relative) })
    }

    /// Whether a mount is of this model, and not of one that had its name.
    pub fn is(&self, name: &Path, entry: &Entry) -> bool {
        entry.device_number == self.device_number && entry.root == self.root.join(name)
    }

    /// Whether a mount is of something in the daemon's store, which is the directory around this one:
    /// there it moves a model that it removes. A whole file system is not the daemon's.
    pub fn has(&self, entry: &Entry) -> bool {
        let store = self.root.parent().filter(|store| store.parent().is_some()).unwrap_or(&self.root);
        entry.device_number == self.device_number && entry.root.starts_with(store) && entry.root != store
    }

    /// The model that such a mount is of, or of something in; empty where that has been removed.
    pub fn name<'e>(&self, entry: &'e Entry) -> Option<&'e OsStr> {
        let first = || match entry.root.strip_prefix(&self.root).ok()?.components().next()? {
            Component::Normal(name) => Some(name),
            _ => None,
        };
        self.has(entry).then(|| first().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(root: &str, device_number: &str) -> Entry {
        Entry { device_number: device_number.to_owned(), root: root.into(), point: "/p".into(), kind: String::new() }
    }

    #[test]
    fn a_mount_of_the_store_is_known() {
        let models = |root: &str| Models { device_number: "8:1".to_owned(), root: root.into() };
        for (root, mounted, expected) in [
            ("/s/v1/models", "/s/v1/models/a", true),
            ("/s/v1/models/", "/s/v1/models/a//deleted", true),
            ("/s/v1/models", "/s/v1/scratch/9//deleted", true),
            ("/s/v1/models", "/s/v1", false),
            ("/s/v1/models", "/s/v10/models/a", false),
            ("/s/v1/models", "/s/other", false),
            ("/s/v1/models", "/", false),
            ("/models", "/models/a", true),
            ("/models", "/models", false),
            ("/models", "/other/a", false),
            ("/", "/a", true),
            ("/", "/", false),
        ] {
            assert_eq!(models(root).has(&entry(mounted, "8:1")), expected, "{mounted} of {root}");
            assert!(!models(root).has(&entry(mounted, "8:2")), "another file system");
        }
        for (mounted, name) in [
            ("/s/v1/models/a", Some("a")),
            ("/s/v1/models/a/sub/file", Some("a")),
            ("/s/v1/models/a//deleted", Some("a")),
            ("/s/v1/scratch/9//deleted", Some("")),
            ("/s/v1/models", Some("")),
            ("/s/other", None),
        ] {
            let entry = entry(mounted, "8:1");
            assert_eq!(models("/s/v1/models").name(&entry), name.map(OsStr::new), "{mounted}");
        }
        let models = models("/s/models/");
        assert!(models.is(Path::new("a"), &entry("/s/models/a", "8:1")));
        for (root, device_number) in [("/s/models/a//deleted", "8:1"), ("/s/models/a", "8:2"), ("/s/models/b", "8:1")] {
            assert!(!models.is(Path::new("a"), &entry(root, device_number)), "{root}");
        }
    }
}
