//! Where the kernel's requests come from: a mount of our own, or the keeper's.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use fuser::{Config, MountOption, Session, SessionACL};
use larder_keeper::{FuseConnection, RESEND, init_request};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::filesystem::{Mounted, READ_LEN_MAX};

/// Threads that answer. None of them waits for the network.
const THREADS: usize = 4;
/// Mounts of earlier lives on top of each other that are taken away.
const STALE_MAX: usize = 64;
/// A mount table is some tens of KiB; with thousands of pods some MiB.
const TABLE_LEN_MAX: u64 = 16 << 20;

fn config(acl: SessionACL) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("larder".into()),
        MountOption::Subtype("larder".into()),
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoExec,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
        MountOption::CUSTOM(format!("max_read={READ_LEN_MAX}")),
    ];
    config.acl = acl;
    config.n_threads = Some(THREADS);
    // A request that was read through a clone dies with it, and cannot be sent again.
    config.clone_fd = false;
    config
}

/// Mounts at a directory, as root, or as a user with fusermount3's help.
///
/// # Errors
/// The kernel's.
pub fn own(mounted: Mounted, directory: &Path) -> io::Result<Session<Mounted>> {
    let is_root = rustix::process::geteuid().is_root();
    detach(directory);
    std::fs::create_dir_all(directory)?;
    // Other users may look only where a user has the administrator's word for it (fuse.conf).
    let acl = if is_root { SessionACL::All } else { SessionACL::Owner };
    let session = Session::new(mounted, directory, &config(acl))?;
    if is_root {
        read_ahead(directory);
    }
    Ok(session)
}

/// Goes on with the keeper's connection. What an earlier daemon has read and not answered is asked
/// for again.
///
/// # Errors
/// The kernel's.
pub fn resume(mounted: Mounted, fuse: &FuseConnection) -> io::Result<Session<Mounted>> {
    // fuser insists on the handshake, which the keeper has done: it is played here once more.
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::io::write(&ours, &init_request(&fuse.agreed))?;
    let session = Session::from_fd(mounted, theirs, SessionACL::All, config(SessionACL::All))?;
    replace(&session, &fuse.device)?;
    rustix::io::write(&fuse.device, &RESEND)?;
    Ok(session)
}

/// Puts the real device in the place of the session's descriptor.
fn replace(session: &Session<Mounted>, device: &OwnedFd) -> io::Result<()> {
    let number = session.as_fd().as_raw_fd();
    #[expect(unsafe_code, reason = "fuser gives its descriptor away only to look at")]
    // SAFETY: the number is the session's open descriptor, which stays the session's: it is
    // forgotten below, not closed.
    let mut place = std::mem::ManuallyDrop::new(unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(number) });
    rustix::io::dup3(device, &mut place, rustix::io::DupFlags::CLOEXEC)?;
    Ok(())
}

/// Takes away our mounts at a directory, those that an earlier life left among them: a dead mount
/// answers nothing but errors.
pub fn detach(directory: &Path) {
    use rustix::mount::UnmountFlags;
    let is_root = rustix::process::geteuid().is_root();
    for _ in 0..STALE_MAX {
        if !is_ours(directory) {
            return;
        }
        let detached = if is_root {
            rustix::mount::unmount(directory, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok()
        } else {
            let status = std::process::Command::new("fusermount3").arg("-uz").arg("--").arg(directory).status();
            status.is_ok_and(|status| status.success())
        };
        if !detached {
            return;
        }
        tracing::debug!(directory = %directory.display(), "unmounted");
    }
}

/// Whether a mount of ours is at the directory.
fn is_ours(directory: &Path) -> bool {
    device_of(directory).is_some()
}

/// The device number, as the kernel writes it, of our mount at a directory. Asks the mount table: a
/// mount that nobody serves, or not yet, answers no other question.
fn device_of(directory: &Path) -> Option<String> {
    let mut table = Vec::new();
    File::open("/proc/self/mountinfo").ok()?.take(TABLE_LEN_MAX).read_to_end(&mut table).ok()?;
    // The paths of others need not be text.
    let table = String::from_utf8_lossy(&table);
    let directory = std::path::absolute(directory).ok()?;
    let ours = |line: &str| {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut fields = mount.split(' ');
        let device = fields.nth(2)?;
        let at = unescaped(fields.nth(1)?);
        let is_ours = file_system.starts_with("fuse.larder ") || file_system.starts_with("fuse larder ");
        (is_ours && Path::new(&at) == directory).then(|| device.to_owned())
    };
    table.lines().rev().find_map(ours)
}

/// Undoes the octal escapes of the mount table.
fn unescaped(field: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .into_iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(field.to_owned(), |text, (escape, character)| text.replace(escape, character))
}

/// Larger requests cost less each. The kernel offers 128 KiB and lets only this file say more.
fn read_ahead(directory: &Path) {
    let Some(device) = device_of(directory) else { return };
    #[expect(clippy::disallowed_methods, reason = "no file, but a switch of the kernel's")]
    let written = std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), "1024");
    if let Err(error) = written {
        tracing::debug!(%error, "readahead stays as the kernel has it");
    }
}
