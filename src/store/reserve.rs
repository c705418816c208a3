//! Room that is kept for notes of who uses what. Others fill the disk too, and a note that finds no
//! room on it is forgotten with the next restart.
//!
//! Files in `reserve/`, allocated and empty. A note that the disk does not take is written into one of
//! them, which needs no block and no inode more, and then has its name.

use std::io;
use std::path::{Path, PathBuf};

use super::error::AtPath as _;
use super::{Amount, Error, Layout, fsx, space};

/// Two notes for each volume of more pods than a node has; fewer where that was more than so little of
/// the file system.
const COUNT: u64 = 256;
const SHARE: u64 = 64;
/// What a file system allocates at least, and more than a note of a lease or a volume needs.
const LEN: u64 = 4 << 10;

/// Makes what is missing of the reserve, while the disk has room for more than that.
pub(super) fn keep(layout: &Layout) -> Result<(), Error> {
    let directory = layout.reserve();
    let there = fsx::names(&directory).at("list", &directory)?;
    let space = space::measure(layout.root())?;
    let of_inodes = space.inodes.map_or(COUNT, |inodes| inodes.total / SHARE);
    let count = COUNT.min(space.total / SHARE / LEN).min(of_inodes);
    if there.len() as u64 >= count || !space.available().covers(Amount::new(2 * count * LEN, 2 * count)) {
        return Ok(());
    }
    fsx::create_directories(&directory).at("create", &directory)?;
    let names = (0..count).map(|number| number.to_string());
    for name in names.filter(|name| there.binary_search(name).is_err()) {
        let path = directory.join(name);
        let made = fsx::create_new(&path).and_then(|file| fsx::allocate(&file, LEN));
        if made.is_err() {
            let _ = fsx::remove_if_there(&path);
        }
        made.at("allocate", &path)?;
    }
    Ok(())
}

/// Writes `bytes` under `path` with the room of the reserve. `None` where that has none.
pub(super) fn replace(layout: &Layout, path: &Path, bytes: &[u8]) -> Option<io::Result<()>> {
    let spare = take(layout)?;
    Some(fsx::replace_in(&spare, path, bytes))
}

/// A file of the reserve, under a name of its own.
fn take(layout: &Layout) -> Option<PathBuf> {
    let directory = layout.reserve();
    let taken = |name: &String| {
        let spare = fsx::scratch_name(&layout.scratch());
        std::fs::rename(directory.join(name), &spare).ok().map(|()| spare)
    };
    fsx::names(&directory).ok()?.iter().find_map(taken)
}
