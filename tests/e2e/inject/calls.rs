//! Which system calls fail how: what their manual pages say of the four errors, and no more.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use libc::{EINTR, EIO, EMFILE, ENOSPC};

/// What a call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A file or a directory.
    File,
    /// A file that the call may make.
    New,
    /// A socket, a pipe, an event, or nothing.
    Other,
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::New => "new",
            Self::Other => "other",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        [Self::File, Self::New, Self::Other].into_iter().find(|kind| kind.as_str() == name)
    }
}

/// Where a call says what it is about.
#[derive(Clone, Copy)]
enum About {
    /// The argument at this place is a descriptor.
    Descriptor(usize),
    /// It is a path.
    Path(usize),
    /// It is a path, and the flags are behind it.
    Open(usize),
    Nothing,
}

pub struct Call {
    pub name: &'static str,
    pub number: i64,
    about: About,
    /// With what it fails on a file, and otherwise.
    file: &'static [i32],
    other: &'static [i32],
}

impl Call {
    /// With what it may fail.
    pub fn errors(&self, kind: Kind) -> &'static [i32] {
        match kind {
            Kind::New => &[EIO, EMFILE, EINTR, ENOSPC],
            Kind::File => self.file,
            Kind::Other => self.other,
        }
    }
}

macro_rules! calls {
    ($($name:ident $about:expr, $file:expr, $other:expr;)*) => {
        &[$(Call { name: stringify!($name), number: libc::$name, about: $about, file: &$file, other: &$other }),*]
    };
}

/// All that are made to fail. Not `close`, of which the error means nothing, nor what takes memory, nor
/// `socketpair`, over which tokio panics: that there are descriptors is looked for before it starts.
pub const CALLS: &[Call] = calls! {
    SYS_read About::Descriptor(0), [EIO, EINTR], [EINTR];
    SYS_pread64 About::Descriptor(0), [EIO, EINTR], [];
    SYS_readv About::Descriptor(0), [EIO, EINTR], [EINTR];
    SYS_preadv About::Descriptor(0), [EIO, EINTR], [];
    SYS_write About::Descriptor(0), [ENOSPC, EIO, EINTR], [EINTR];
    SYS_pwrite64 About::Descriptor(0), [ENOSPC, EIO, EINTR], [];
    SYS_writev About::Descriptor(0), [ENOSPC, EIO, EINTR], [EINTR];
    SYS_pwritev About::Descriptor(0), [ENOSPC, EIO, EINTR], [];
    SYS_open About::Open(0), [EIO, EMFILE, EINTR], [];
    SYS_openat About::Open(1), [EIO, EMFILE, EINTR], [];
    SYS_openat2 About::Path(1), [EIO, EMFILE, EINTR], [];
    SYS_mkdir About::Path(0), [ENOSPC, EIO], [];
    SYS_mkdirat About::Path(1), [ENOSPC, EIO], [];
    SYS_rename About::Path(0), [ENOSPC, EIO], [];
    SYS_renameat About::Path(1), [ENOSPC, EIO], [];
    SYS_renameat2 About::Path(1), [ENOSPC, EIO], [];
    SYS_link About::Path(0), [ENOSPC, EIO], [];
    SYS_linkat About::Path(1), [ENOSPC, EIO], [];
    SYS_symlink About::Path(1), [ENOSPC, EIO], [];
    SYS_symlinkat About::Path(2), [ENOSPC, EIO], [];
    SYS_unlink About::Path(0), [EIO], [];
    SYS_unlinkat About::Path(1), [EIO], [];
    SYS_rmdir About::Path(0), [EIO], [];
    SYS_chmod About::Path(0), [EIO], [];
    SYS_fchmodat About::Path(1), [EIO], [];
    SYS_fchmod About::Descriptor(0), [EIO], [];
    SYS_stat About::Path(0), [EIO], [];
    SYS_lstat About::Path(0), [EIO], [];
    SYS_newfstatat About::Path(1), [EIO], [];
    SYS_statx About::Path(1), [EIO], [];
    SYS_fstat About::Descriptor(0), [EIO], [];
    SYS_access About::Path(0), [EIO], [];
    SYS_faccessat About::Path(1), [EIO], [];
    SYS_faccessat2 About::Path(1), [EIO], [];
    SYS_readlink About::Path(0), [EIO], [];
    SYS_readlinkat About::Path(1), [EIO], [];
    SYS_statfs About::Path(0), [EIO, EINTR], [];
    SYS_fstatfs About::Descriptor(0), [EIO, EINTR], [];
    SYS_getdents64 About::Descriptor(0), [EIO], [];
    SYS_fsync About::Descriptor(0), [EIO, ENOSPC, EINTR], [];
    SYS_fdatasync About::Descriptor(0), [EIO, ENOSPC, EINTR], [];
    SYS_sync_file_range About::Descriptor(0), [EIO, ENOSPC], [];
    SYS_syncfs About::Descriptor(0), [EIO, ENOSPC], [];
    SYS_fallocate About::Descriptor(0), [ENOSPC, EIO, EINTR], [];
    SYS_ftruncate About::Descriptor(0), [EIO, EINTR], [];
    SYS_utimensat About::Path(1), [EIO], [];
    SYS_copy_file_range About::Descriptor(0), [ENOSPC, EIO, EINTR], [];
    SYS_sendfile About::Descriptor(1), [EIO, EINTR], [EINTR];
    SYS_flock About::Descriptor(0), [EINTR], [];
    SYS_socket About::Nothing, [], [EMFILE];
    SYS_accept4 About::Nothing, [], [EMFILE, EINTR];
    SYS_eventfd2 About::Nothing, [], [EMFILE];
    SYS_epoll_create1 About::Nothing, [], [EMFILE];
    SYS_pipe2 About::Nothing, [], [EMFILE];
    SYS_timerfd_create About::Nothing, [], [EMFILE];
    SYS_memfd_create About::Nothing, [], [EMFILE];
    SYS_connect About::Nothing, [], [EINTR];
    SYS_sendto About::Nothing, [], [EINTR];
    SYS_recvfrom About::Nothing, [], [EINTR];
    SYS_sendmsg About::Nothing, [], [EINTR];
    SYS_recvmsg About::Nothing, [], [EINTR];
    SYS_poll About::Nothing, [], [EINTR];
    SYS_ppoll About::Nothing, [], [EINTR];
    SYS_epoll_wait About::Nothing, [], [EINTR];
    SYS_epoll_pwait About::Nothing, [], [EINTR];
    SYS_futex About::Nothing, [], [EINTR];
    SYS_clock_nanosleep About::Nothing, [], [EINTR];
    SYS_wait4 About::Nothing, [], [EINTR];
    SYS_getrandom About::Nothing, [], [EINTR];
};

pub fn named(name: &str) -> Option<&'static Call> {
    CALLS.iter().find(|call| call.name == name)
}

/// What a call that is about to be made is about.
pub enum What {
    Of(Kind, String),
    /// Nothing that can fail so.
    Unknown,
}

pub fn what(call: &Call, thread: i32, arguments: &[u64; 6]) -> What {
    let (kind, about) = match call.about {
        // Waking somebody up is never interrupted, and the C library ends the process over it.
        About::Nothing if call.number == libc::SYS_futex && !matches!(arguments[1] & 0x7f, 0 | 9) => {
            return What::Unknown;
        }
        About::Nothing => (Kind::Other, String::new()),
        About::Descriptor(at) => {
            let link = fs::read_link(format!("/proc/{thread}/fd/{}", arguments[at] as i32)).unwrap_or_default();
            let shown = link.display().to_string();
            // Nobody waits for an event or a timer here, so nobody is interrupted.
            if shown.starts_with("anon_inode:") {
                return What::Unknown;
            }
            (if is_file(&shown) { Kind::File } else { Kind::Other }, shown)
        }
        About::Path(at) | About::Open(at) => {
            let mut shown = path(thread, arguments[at]);
            if shown.is_empty() && at > 0 {
                // It is about the descriptor itself.
                let link = fs::read_link(format!("/proc/{thread}/fd/{}", arguments[at - 1] as i32));
                shown = link.unwrap_or_else(|_| PathBuf::new()).display().to_string();
            }
            let creates = matches!(call.about, About::Open(_)) && arguments[at + 1] & libc::O_CREAT as u64 != 0;
            let kind = if creates { Kind::New } else { Kind::File };
            (if shown.starts_with("/dev/") { Kind::Other } else { kind }, shown)
        }
    };
    if call.errors(kind).is_empty() { What::Unknown } else { What::Of(kind, about) }
}

fn is_file(shown: &str) -> bool {
    shown.starts_with('/') && !shown.starts_with("/dev/")
}

/// A string of the thread's.
fn path(thread: i32, address: u64) -> String {
    let mut bytes = vec![0; 4096];
    let read = fs::File::open(format!("/proc/{thread}/mem")).and_then(|memory| {
        let before_a_page = 4096 - (address % 4096) as usize;
        let first = memory.read_at(&mut bytes[..before_a_page], address)?;
        // What is behind may not be there.
        Ok(first + memory.read_at(&mut bytes[first..], address + first as u64).unwrap_or(0))
    });
    bytes.truncate(read.unwrap_or(0));
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
