//! A store of which nothing can be written: its file system is read-only or fails. What is in it is
//! given out all the same, and it is written again once it can be.

use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use super::error::AtPath as _;
use super::unreadable::Met;
use super::{BootId, Error, Layout, Recovered, Store, catalog, fsx, lock, recovery, refuse_foreign};

/// Why nothing can be written, if so.
#[derive(Debug, Default)]
pub(super) struct Writable(Mutex<Option<String>>);

impl Writable {
    pub(super) fn not(why: String) -> Self {
        Self(Mutex::new(Some(why)))
    }

    fn set(&self, why: Option<String>) -> Option<String> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), why)
    }

    fn why_not(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What has changed since the last look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    /// Nothing can be written any more, for this reason.
    Unwritable(String),
    /// It can be written again.
    Writable(Recovered),
}

impl Store {
    /// As [`Store::open_unproven`], but a store that is there and cannot be written is opened all the
    /// same, to be looked at: [`Store::unwritable`] says why, and [`Store::look_again`] whether that
    /// has changed.
    ///
    /// # Errors
    /// As [`Store::open_unproven`], of a store that cannot be read either.
    pub fn open_as_it_is(directory: &Path, socket: Option<&Path>) -> Result<Self, Error> {
        match Self::open_unproven(directory, socket) {
            Err(error) if is_unwritable(&error) => {
                let layout = Layout::new(directory, BootId::current());
                Self::open_unwritable(layout, socket, told(&error)).map_err(|_| error)
            }
            other => other,
        }
    }

    fn open_unwritable(layout: Layout, socket: Option<&Path>, why: String) -> Result<Self, Error> {
        refuse_foreign(&layout)?;
        let lock = lock::Lock::take_unwritten(&layout, socket)?;
        // It goes on naming the last socket: others look there.
        let sockets = lock::last_socket(&layout).into_iter().chain(socket.map(Path::to_owned));
        let layout = layout.beside(sockets);
        let catalog = catalog::Catalog::open_unwritten(&layout)?;
        Ok(Self {
            writable: Writable::not(why),
            ..Self::of(layout, lock, catalog, Met::default(), Recovered::default())
        })
    }

    /// Why nothing can be written; `None` where it can.
    #[must_use]
    pub fn unwritable(&self) -> Option<String> {
        self.writable.why_not()
    }

    /// Refuses what would have to be written where nothing can.
    ///
    /// # Errors
    /// [`Error::Unwritable`].
    pub fn check_writable(&self) -> Result<(), Error> {
        let path = || self.view().directory().to_owned();
        self.unwritable().map_or(Ok(()), |why| Err(Error::Unwritable { path: path(), why }))
    }

    /// Looks whether the store can be written now; what has changed. One that can be again is recovered,
    /// as at its opening.
    pub fn look_again(&self) -> Option<Turn> {
        let before = self.unwritable();
        let now = self.try_writing(before.is_some());
        let why = now.as_ref().err().map(told);
        self.writable.set(why.clone());
        match (before, why, now) {
            (None, Some(why), _) => Some(Turn::Unwritable(why)),
            (Some(_), None, Ok(recovered)) => Some(Turn::Writable(recovered)),
            _ => None,
        }
    }

    fn try_writing(&self, anew: bool) -> Result<Recovered, Error> {
        let layout = self.layout();
        let root = layout.root();
        let flags = rustix::fs::statvfs(root).at("look at", root)?.f_flag;
        if flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
            return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem)).at("write to", root);
        }
        if !anew {
            if !layout.fresh().is_dir() {
                // There was no room for it, and now there may be.
                let _ = make_directories(layout);
            }
            return Ok(Recovered::default());
        }
        let recovered = prepare(layout, self.view().met())?;
        *self.catalog() = catalog::Catalog::open(layout)?;
        self.lock.name(layout)?;
        Ok(recovered)
    }
}

/// What is done before anything else is written.
pub(super) fn prepare(layout: &Layout, met: &Met) -> Result<Recovered, Error> {
    let made = make_directories(layout);
    let recovered = recovery::recover(layout, met)?;
    // On a full disk the store must open, or nothing could ever be removed from it.
    match made.or_else(|_| make_directories(layout)) {
        Err(error) if error.is_disk_full() => tracing::warn!(%error, "there is no room for a directory of the store"),
        made => made?,
    }
    Ok(recovered)
}

fn make_directories(layout: &Layout) -> Result<(), Error> {
    layout.directories().iter().try_for_each(|path| fsx::create_directories(path).at("create", path))
}

/// Whether a store that answers this may be read: its file system is read-only or fails, or something
/// of it is in the way, or another user's. Not of a full disk: from that something can go.
fn is_unwritable(error: &Error) -> bool {
    matches!(error, Error::Io { .. }) && !error.is_disk_full()
}

fn told(error: &Error) -> String {
    match error {
        Error::Io { source, .. } if source.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            "its file system is mounted read-only".to_owned()
        }
        other => other.to_string(),
    }
}
