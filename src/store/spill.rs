//! What the store's own disk does not take, in a directory beside the socket of its daemon. On a node
//! that is a tmpfs, which outlives the daemon and goes with the boot, as mounts do.
//!
//! One file each, of the same form as in the store. Whoever opens the store reads them first.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::{CopyId, fsx};

/// Files of one kind: the directory may be in memory.
const COUNT_MAX: usize = 10_000;
/// Where files are made before they get their name by rename.
const SCRATCH: &str = "scratch";
/// Only its owner may look into it, as into the directory of the socket.
const MODE: u32 = 0o700;

/// Where it is, if anywhere.
#[derive(Debug, Default)]
pub(super) struct Spill {
    /// The first that takes something has it, and all are read.
    directories: Vec<PathBuf>,
    /// Whose directories are believed: this process's user, and who has the store.
    owners: [u32; 2],
}

impl Spill {
    /// That of the store with this lock, beside any of these sockets.
    pub fn beside(lock: &Path, sockets: impl IntoIterator<Item = PathBuf>) -> Self {
        let Ok(metadata) = lock.metadata() else { return Self::default() };
        // Which store it is: its path may lead to another one by now.
        let name = format!("unwritten-{:032x}", u128::from_be_bytes(CopyId::of(&metadata).to_bytes()));
        let mut directories = Vec::new();
        for socket in sockets {
            let directory = socket.parent().map(|parent| parent.join(&name));
            directories.extend(directory.filter(|directory| !directories.contains(directory)));
        }
        Self { directories, owners: [rustix::process::geteuid().as_raw(), metadata.uid()] }
    }

    /// Keeps `bytes` in place of what was kept under that name.
    ///
    /// # Errors
    /// No directory takes it, or there is none.
    pub fn write(&self, kind: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut result = Err(io::ErrorKind::Unsupported.into());
        for directory in &self.directories {
            result = self.write_in(directory, kind, name, bytes);
            if result.is_ok() {
                let mut others = self.directories.iter().filter(|other| *other != directory);
                return others.try_for_each(|other| self.remove_in(other, kind, name));
            }
        }
        result
    }

    fn write_in(&self, directory: &Path, kind: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (of_kind, scratch) = (directory.join(kind), directory.join(SCRATCH));
        let path = of_kind.join(name);
        if self.is_ours(directory) && fsx::read_bounded(&path, bytes.len() as u64).is_ok_and(|known| known == bytes) {
            return Ok(());
        }
        if let Some(of_socket) = directory.parent() {
            DirBuilder::new().recursive(true).mode(MODE).create(of_socket)?;
        }
        self.make(directory)?;
        if !self.is_ours(directory) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.make(&of_kind)?;
        self.make(&scratch)?;
        if !path.exists() && fsx::names(&of_kind)?.len() >= COUNT_MAX {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        fsx::replace(&scratch, &path, bytes)
    }

    fn make(&self, directory: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(MODE).create(directory) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                // What root makes here, by a command on the node, is the daemon's.
                let _ = std::os::unix::fs::chown(directory, Some(self.owners[1]), None);
                Ok(())
            }
        }
    }

    /// Removes what is kept under that name, and with the last the directory.
    ///
    /// # Errors
    /// It is still there.
    pub fn remove(&self, kind: &str, name: &str) -> io::Result<()> {
        self.directories.iter().try_for_each(|directory| self.remove_in(directory, kind, name))
    }

    fn remove_in(&self, directory: &Path, kind: &str, name: &str) -> io::Result<()> {
        if !self.is_ours(directory) {
            return Ok(());
        }
        let of_kind = directory.join(kind);
        fsx::remove_if_there(&of_kind.join(name))?;
        // The last one takes what it was in along.
        if std::fs::remove_dir(of_kind).is_ok() {
            let _ = std::fs::remove_dir(directory.join(SCRATCH));
            let _ = std::fs::remove_dir(directory);
        }
        Ok(())
    }

    /// Everything of that kind, with its name. What is longer than `len_max`, or cannot be read, is empty.
    pub fn all(&self, kind: &str, len_max: u64) -> Vec<(String, Vec<u8>)> {
        let mut all = Vec::new();
        for directory in self.directories.iter().filter(|directory| self.is_ours(directory)) {
            let of_kind = directory.join(kind);
            for name in fsx::names(&of_kind).unwrap_or_default().into_iter().take(COUNT_MAX) {
                let bytes = fsx::read_bounded(&of_kind.join(&name), len_max).unwrap_or_default();
                all.push((name, bytes));
            }
        }
        all
    }

    /// Whether what is there is believed: others may write beside a socket in `/tmp`.
    fn is_ours(&self, directory: &Path) -> bool {
        let found = std::fs::symlink_metadata(directory);
        found.is_ok_and(|found| found.is_dir() && self.owners.contains(&found.uid()) && found.mode() & 0o022 == 0)
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "tests read and write what they made")]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn it_keeps_what_it_is_given_where_nobody_else_writes_and_leaves_nothing() {
        let home = tempfile::tempdir().expect("tempdir");
        let lock = home.path().join("lock");
        std::fs::write(&lock, "").expect("a file");
        let sockets = ["a/sock", "b/sock"].map(|socket| home.path().join(socket));
        let spill = Spill::beside(&lock, sockets.clone());
        assert!(spill.all("volumes", 9).is_empty());
        spill.write("volumes", "x", b"one").expect("kept");
        spill.write("volumes", "x", b"two").expect("kept");
        let other_way = Spill::beside(&lock, sockets.iter().rev().cloned());
        assert_eq!(other_way.all("volumes", 9), [("x".to_owned(), b"two".to_vec())]);
        other_way.write("volumes", "x", b"three").expect("kept");
        assert_eq!(spill.all("volumes", 9), [("x".to_owned(), b"three".to_vec())], "in one place");

        let directory = &other_way.directories[0];
        assert_eq!(directory.metadata().expect("a directory").mode() & 0o777, MODE);
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o777)).expect("a mode");
        assert!(spill.all("volumes", 9).is_empty(), "anybody may have written that");
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(MODE)).expect("a mode");
        spill.remove("volumes", "x").expect("removed");
        assert!(spill.directories.iter().all(|directory| !directory.exists()));

        std::fs::write(home.path().join("another"), "").expect("a file");
        assert_ne!(Spill::beside(&home.path().join("another"), sockets).directories, spill.directories);
        Spill::default().write("volumes", "x", b"one").expect_err("nowhere");
    }
}
