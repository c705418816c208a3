//! A small file system of the test's own, so that filling it up is quick and hurts nobody.

use std::fs::File;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// A tmpfs, unmounted with the value; a plain directory where this user may not mount.
pub struct Disk {
    directory: tempfile::TempDir,
    mounted: bool,
}

impl Disk {
    pub fn new(mebibytes: u32) -> Self {
        let directory = tempfile::Builder::new().prefix("larder-disk-").tempdir().expect("a directory under /tmp");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m,mode=0755"), "larder-test"]).arg(directory.path());
        let mounted = mount.stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        if !mounted {
            eprintln!("SKIPPED eviction under pressure: this user may not mount a file system, so it is never full");
        }
        Self { directory, mounted }
    }

    /// Whether it is small, and so can be filled.
    pub const fn is_small(&self) -> bool {
        self.mounted
    }

    pub fn store(&self) -> PathBuf {
        self.directory.path().join("store")
    }

    /// What others have written: so many KiB from now on.
    pub fn set_ballast(&self, kibibytes: u32) {
        let path = self.directory.path().join("ballast");
        let _ = std::fs::remove_file(&path);
        if kibibytes > 0 && self.mounted {
            let mut file = File::create(&path).expect("a file");
            let bytes = vec![1; kibibytes as usize * 1024];
            // A full disk is as full as it gets.
            let _ = file.write_all(&bytes);
        }
    }

    /// Removes everything from it.
    pub fn clear(&self) {
        self.set_ballast(0);
        if self.store().exists() {
            std::fs::remove_dir_all(self.store()).expect("a directory");
        }
    }

    /// Bytes that an unprivileged user could ever write, and bytes in use.
    pub fn space(&self) -> (u64, u64) {
        let stat = rustix::fs::statvfs(self.directory.path()).expect("a file system");
        (stat.f_blocks * stat.f_frsize, (stat.f_blocks - stat.f_bavail) * stat.f_frsize)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            // Lazily: a thread of a crashed life may still have a file open.
            let _ = Command::new("umount").arg("-l").arg(self.directory.path()).status();
        }
    }
}
