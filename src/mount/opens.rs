//! Which files are open in the mount, remembered across `kill -9`.
//!
//! The kernel tells of an open once and of its end once, whoever serves it by then. So each open
//! takes a slot in a small file that is mapped into memory: what is written there survives the
//! process, and costs no system call. The handle that the kernel gives back is the slot's number and
//! the request that took it: one that is closed a second time, by a daemon that was killed before it
//! said so, closes nothing else.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use memmap2::{MmapMut, MmapOptions};

use crate::domain::Digest;

/// Files open at once that are remembered across a restart. Beyond it they are counted by this
/// process alone.
const SLOT_COUNT: u32 = 16_384;
/// Request that opened it (8), what is open (32).
const SLOT_LEN: usize = 40;
const TABLE_LEN: usize = SLOT_COUNT as usize * SLOT_LEN;
/// The handle of an open without a slot.
pub const NO_SLOT: u64 = u64::MAX;
/// The kernel marks requests that it sends again with this bit (`FUSE_UNIQUE_RESEND`).
const RESENT: u64 = 1 << 63;
/// Bits of a handle that say which slot; the others are the request's.
const SLOT_BITS: u32 = 16;

const fn handle_of(slot: u32, request: u64) -> u64 {
    slot as u64 | request << SLOT_BITS
}

/// The table of open files.
#[derive(Debug)]
pub struct Opens {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    map: MmapMut,
    free: Vec<u32>,
    /// Opens of this process without a slot, by what is open.
    unslotted: HashMap<Digest, u32>,
}

impl Opens {
    /// Opens the table at `path`, as an earlier life of the same connection left it, or makes an
    /// empty one. Where the disk has no room for it, it is remembered by this process alone.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let map = match mapped(path) {
            Ok(map) => map,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "open files are not remembered across a restart");
                let mut map = MmapOptions::new().len(TABLE_LEN).map_anon()?;
                // What an earlier life left counts, also where nothing can be written.
                if File::open(path).and_then(|mut file| file.read_exact(&mut map)).is_err() {
                    map.fill(0);
                }
                map
            }
        };
        let mut state = State { map, free: Vec::new(), unslotted: HashMap::new() };
        state.free = (0..SLOT_COUNT).rev().filter(|&slot| state.request(slot) == 0).collect();
        Ok(Self { state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is open, once for each time.
    pub fn all(&self) -> Vec<Digest> {
        let state = self.state();
        let slots = (0..SLOT_COUNT).filter(|&slot| state.request(slot) != 0).map(|slot| state.part(slot));
        let others = state.unslotted.iter().flat_map(|(part, count)| (0..*count).map(|_| *part));
        slots.chain(others).collect()
    }

    /// Forgets everything; what was open, once for each time.
    pub fn clear(&self) -> Vec<Digest> {
        let all = self.all();
        let mut state = self.state();
        state.map.fill(0);
        state.free = (0..SLOT_COUNT).rev().collect();
        state.unslotted.clear();
        all
    }

    /// Whether the open with this handle is the only one of `part`. No, where that is not known.
    pub fn is_only(&self, handle: u64, part: &Digest) -> bool {
        let state = self.state();
        let is_open = |&slot: &u32| state.request(slot) != 0 && state.part(slot) == *part;
        let mut slots = (0..SLOT_COUNT).filter(is_open).map(|slot| handle_of(slot, state.request(slot)));
        state.unslotted.is_empty() && slots.next() == Some(handle) && slots.next().is_none()
    }

    /// Notes that the request `unique` opened `part`. The handle to give out, and whether that is
    /// news: a request that the kernel sends again has its slot already.
    pub fn opened(&self, unique: u64, part: Digest) -> (u64, bool) {
        let mut state = self.state();
        let request = unique & !RESENT;
        if unique & RESENT != 0 {
            let taken = (0..SLOT_COUNT).find(|&slot| state.request(slot) == request && state.part(slot) == part);
            if let Some(slot) = taken {
                return (handle_of(slot, request), false);
            }
        }
        let Some(slot) = state.free.pop() else {
            *state.unslotted.entry(part).or_default() += 1;
            return (NO_SLOT, true);
        };
        let at = slot as usize * SLOT_LEN;
        // The request last: a slot that has none is free, whatever else is in it.
        state.map[at + 8..at + SLOT_LEN].copy_from_slice(part.as_bytes());
        std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
        state.map[at..at + 8].copy_from_slice(&request.to_le_bytes());
        (handle_of(slot, request), true)
    }

    /// Notes the end of what was given this handle; what it was of, where it was noted. `part` says so
    /// for one that has no slot.
    pub fn closed(&self, handle: u64, part: impl FnOnce() -> Option<Digest>) -> Option<Digest> {
        if handle == NO_SLOT {
            let part = part()?;
            let mut state = self.state();
            // One of an earlier life is not in the count.
            let count = state.unslotted.get_mut(&part)?;
            *count -= 1;
            if *count == 0 {
                state.unslotted.remove(&part);
            }
            return Some(part);
        }
        let mut state = self.state();
        let slot = u32::try_from(handle & ((1 << SLOT_BITS) - 1)).ok().filter(|&slot| slot < SLOT_COUNT)?;
        let request = state.request(slot);
        if request == 0 || handle_of(slot, request) != handle {
            return None;
        }
        let (at, part) = (slot as usize * SLOT_LEN, state.part(slot));
        state.map[at..at + 8].copy_from_slice(&0u64.to_le_bytes());
        state.free.push(slot);
        Some(part)
    }
}

impl State {
    fn request(&self, slot: u32) -> u64 {
        let at = slot as usize * SLOT_LEN;
        let mut number = [0; 8];
        number.copy_from_slice(&self.map[at..at + 8]);
        u64::from_le_bytes(number)
    }

    fn part(&self, slot: u32) -> Digest {
        let at = slot as usize * SLOT_LEN;
        let mut bytes = [0; 32];
        bytes.copy_from_slice(&self.map[at + 8..at + SLOT_LEN]);
        Digest::from_bytes(bytes)
    }
}

fn mapped(path: &Path) -> io::Result<MmapMut> {
    let len = TABLE_LEN as u64;
    let file: File = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    // Allocated, not only long: writing into a hole of a full disk would be a signal.
    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len)?;
    if file.metadata()?.len() != len {
        file.set_len(len)?;
    }
    #[expect(unsafe_code, reason = "the file is this daemon's alone, by the lock on its store")]
    // SAFETY: nobody else writes to or truncates the file: it lies in the store, which one process
    // owns, and its blocks are allocated.
    let map = unsafe { MmapOptions::new().len(TABLE_LEN).map_mut(&file)? };
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_open_is_known_after_the_process_is_gone() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path().join("opens");
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        let opens = Opens::open(&path).expect("a table");
        let (first, is_news) = opens.opened(10, a);
        assert!(is_news);
        let (second, _) = opens.opened(0xc, b);
        assert_ne!(first, second);
        // No goodbye: this is what kill -9 leaves.
        std::mem::forget(opens);
        let opens = Opens::open(&path).expect("a table");
        assert_eq!(opens.all(), [a, b]);
        assert_eq!(opens.opened(0xc | RESENT, b), (second, false), "sent again: the same open");
        let (third, is_news) = opens.opened(0xe | RESENT, a);
        assert!(is_news && third != first, "sent again, and never answered before");
        assert_eq!(opens.closed(first, || None), Some(a));
        assert_eq!(
            (opens.closed(first, || None), opens.closed(NO_SLOT, || Some(a))),
            (None, None),
            "none without a slot"
        );
        assert_eq!(opens.all().len(), 2);
        assert!(opens.is_only(third, &a) && opens.is_only(second, &b));
        assert!(!opens.is_only(first, &a) && !opens.is_only(second, &a), "not an open of that");
        let (fourth, _) = opens.opened(0x10, a);
        assert!(!opens.is_only(third, &a) && !opens.is_only(fourth, &a) && opens.is_only(second, &b));
        opens.closed(third, || None);
        assert!(opens.is_only(fourth, &a));
    }

    #[test]
    fn more_than_the_table_holds_are_open_all_the_same() {
        let directory = tempfile::tempdir().expect("tempdir");
        let opens = Opens::open(&directory.path().join("opens")).expect("a table");
        let a = Digest::of(b"a");
        let handles: Vec<u64> = (1..=u64::from(SLOT_COUNT)).map(|unique| opens.opened(unique, a).0).collect();
        assert!(!handles.contains(&NO_SLOT));
        assert_eq!(opens.opened(1 << 40, a), (NO_SLOT, true));
        let b = Digest::of(b"b");
        assert_eq!(opens.closed(handles[7], || None), Some(a));
        let (other, _) = opens.opened(1 << 42, b);
        assert!(!opens.is_only(other, &b), "the one without a slot may be of the same");
        assert_eq!(opens.closed(NO_SLOT, || Some(b)), None, "nothing of that was opened without one");
        assert_eq!((opens.closed(NO_SLOT, || Some(a)), opens.is_only(other, &b)), (Some(a), true));
        assert_eq!(opens.closed(other, || None), Some(b));
        let (again, _) = opens.opened(1 << 41, a);
        assert_ne!(again, NO_SLOT);
        assert_eq!(opens.closed(handles[7], || None), None, "closed once more: the slot is another's now");
        assert_eq!(opens.closed(again, || None), Some(a));
    }
}
