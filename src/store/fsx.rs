//! The few file operations the store is made of. The durable order is written here once.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use rustix::fs::OFlags;

use crate::domain::{DIRECTORY_MODE, FILE_TIME};

/// Taken around every create and rename of the hot path. The kernel lets one thread at a time
/// change a directory, and its waiters spin (an rwsem with optimistic spinning); ours sleep.
static NAMING: Mutex<()> = Mutex::new(());

fn naming() -> MutexGuard<'static, ()> {
    NAMING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A name in `directory` that nothing has yet in this process or an earlier one.
pub(super) fn scratch_name(directory: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    directory.join(format!("{}-{next}", std::process::id()))
}

/// Opens a regular file for reading. A link, a pipe or a directory in its place is an error: none of
/// them is followed, or waited for.
pub(super) fn open(path: &Path) -> io::Result<File> {
    open_with(OpenOptions::new().read(true), path)
}

/// The same with other options.
pub(super) fn open_with(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    open_flagged(options, path, OFlags::empty())
}

/// The same with more flags of open(2).
pub(super) fn open_flagged(options: &mut OpenOptions, path: &Path, flags: OFlags) -> io::Result<File> {
    // The kernel's flags fit: they are an int there.
    let flags = (flags | OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = options.custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no regular file"));
    }
    Ok(file)
}

/// Reads a file that must not be larger than `len_max` bytes.
pub(super) fn read_bounded(path: &Path, len_max: u64) -> io::Result<Vec<u8>> {
    let file = open(path)?;
    let mut bytes = Vec::new();
    file.take(len_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > len_max {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {len_max} bytes")));
    }
    Ok(bytes)
}

pub(super) fn read_to_string_bounded(path: &Path, len_max: u64) -> io::Result<String> {
    String::from_utf8(read_bounded(path, len_max)?).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Gives a file another name, in place of whatever has that name.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let _naming = naming();
    rename_over(from, to)
}

/// The same of a file where a directory has that name, which no file of a store may have.
fn rename_over(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory && from.is_file() => {
            let aside = scratch_name(from.parent().unwrap_or(from));
            fs::rename(to, &aside)?;
            let renamed = fs::rename(from, to);
            remove_if_there(&aside)?;
            renamed
        }
        other => other,
    }
}

/// Gives a file another name unless `is_there` says that something stands for it already; whether
/// it did. Nobody else names a file here between the look and the rename.
pub(super) fn rename_unless(from: &Path, to: &Path, is_there: impl FnOnce() -> bool) -> io::Result<bool> {
    let _naming = naming();
    if is_there() {
        return Ok(false);
    }
    rename_over(from, to).map(|()| true)
}

/// Creates a file that was not there, readable and writable by its owner only until it is sealed.
pub(super) fn create_new(path: &Path) -> io::Result<File> {
    let _naming = naming();
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Puts `bytes` under `path` by way of a scratch file: readers see the old or the new content.
///
/// Not synced: a power cut may leave neither of them where the file system does not order the two
/// (ext4 does). That costs a transfer or a listing, no truth. Where it would cost more, see
/// [`replace_by`].
pub(super) fn replace(scratch: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_by(scratch, path, false, |file| file.write_all(bytes))
}

/// The same for what `write` writes. With `sync`, whatever happens one of the two survives: on ext4 a
/// sync waits for everything that was written to the file system before it, so never while a pull is
/// waiting.
pub(super) fn replace_by(
    scratch: &Path,
    path: &Path,
    sync: bool,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = scratch_name(scratch);
    let result = (|| {
        let mut file = create_new(&temporary)?;
        write(&mut file)?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        if sync {
            file.sync_all()?;
        }
        rename(&temporary, path)
    })();
    if result.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    result
}

/// The same by way of a file that is there already and has its blocks, and that nobody else knows.
pub(super) fn replace_in(spare: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let result = (|| {
        let mut file = open_with(OpenOptions::new().write(true), spare)?;
        file.write_all(bytes)?;
        file.set_len(bytes.len() as u64)?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        rename(spare, path)
    })();
    if result.is_err() {
        let _ = fs::remove_file(spare);
    }
    result
}

/// Syncs a file's bytes and length.
pub(super) fn sync_file(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Syncs a file or a directory; one that is not there is fine.
pub(super) fn sync_if_there(path: &Path) -> io::Result<()> {
    match sync_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Syncs a directory's entries.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Renames a synced file to its final name and syncs both directories: after this returns, the
/// name survives a power cut.
pub(super) fn rename_durably(from: &Path, to: &Path) -> io::Result<()> {
    rename_over(from, to)?;
    for directory in [to.parent(), from.parent()].into_iter().flatten() {
        sync_directory(directory)?;
    }
    Ok(())
}

/// Writes all slices, one behind the other, at `offset`, in as few system calls as the kernel
/// allows (at most `IOV_MAX` = 1024 slices each).
pub(super) fn write_slices_at(file: &File, mut offset: u64, slices: &[Bytes]) -> io::Result<()> {
    for group in slices.chunks(512) {
        let buffers: Vec<io::IoSlice<'_>> = group.iter().map(|slice| io::IoSlice::new(slice)).collect();
        let total: usize = group.iter().map(Bytes::len).sum();
        let mut written = match rustix::io::pwritev(file, &buffers, offset) {
            Ok(written) => written,
            Err(rustix::io::Errno::INTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        if written < total {
            // Rare: a signal or a nearly full disk. Finish slice by slice.
            let mut at = offset;
            for slice in group {
                let done = written.min(slice.len());
                written -= done;
                file.write_all_at(&slice[done..], at + done as u64)?;
                at += slice.len() as u64;
            }
        }
        offset += total as u64;
    }
    Ok(())
}

/// Allocates `len` bytes before they are written, so that a full disk says so now and the file
/// lies in few extents. File systems that cannot (NFS, some FUSE) are left as they are.
pub(super) fn allocate(file: &File, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, len) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => file.set_len(len),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes directories; those that are there already stay as they are.
pub(super) fn create_directories(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)
}

/// Gives a file or a directory the time that everything in a model has.
pub(super) fn set_time(path: &Path) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, utimensat};
    let seconds = i64::try_from(FILE_TIME.as_secs()).map_err(io::Error::other)?;
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: 0 },
    };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// How long nobody has changed a file's bytes, names or mode; `None` where that is not known.
pub(super) fn unchanged_for(path: &Path) -> Option<Duration> {
    let metadata = path.metadata().ok()?;
    let changed = Duration::new(u64::try_from(metadata.ctime()).ok()?, u32::try_from(metadata.ctime_nsec()).ok()?);
    SystemTime::now().duration_since(UNIX_EPOCH + changed).ok()
}

/// Gives a directory of a model its mode, whatever the umask of this process, and its time, which
/// every change of its names moves.
pub(super) fn finish_directory(path: &Path) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(DIRECTORY_MODE.into()))?;
    set_time(path)
}

/// Removes a file, or a directory that has the place of one; what is not there is fine.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    let removed = match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => fs::remove_dir_all(path),
        other => other,
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The entries of a directory by name, sorted; none where the directory is absent.
pub(super) fn names(path: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut names = Vec::new();
    for entry in entries {
        if let Ok(name) = entry?.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}
