//! A model as links into the node's directory. Moves no bytes.

use std::fs;
use std::io;
use std::path::Path;

use super::{At as _, Claim, Error, LOST_AND_FOUND, Standing, clean, is_ours, is_temporary, look, parent_of, put_link};

/// Makes `place` lead to the model at `model`, an absolute path in this container.
///
/// An absent place, or a link of an earlier call, becomes a link to the directory. A directory
/// that is there already (`KServe` mounts an empty one) stays, and gets a link for every entry of
/// the model; links of an earlier call that this model has no entry for are removed.
///
/// # Errors
/// [`Error::Occupied`] where there is anything else, before anything is changed.
pub fn link(model: &Path, place: &Path) -> Result<(), Error> {
    let place = &clean(place);
    super::check_visible(model)?;
    match look(place)? {
        Standing::Absent => {
            let parent = parent_of(place);
            fs::create_dir_all(parent).of_place("create", parent)?;
            put_link(model, place)
        }
        Standing::Link { target } if target == model => Ok(()),
        Standing::Link { target } if is_ours(&target, model) => put_link(model, place),
        Standing::Link { .. } => Err(Error::Occupied { path: place.clone() }),
        Standing::Directory => fill(model, place),
    }
}

fn fill(model: &Path, place: &Path) -> Result<(), Error> {
    let _claim = Claim::of(place)?;
    let mut entries = Vec::new();
    for entry in fs::read_dir(model).of_model("list", model)? {
        entries.push(entry.of_model("list", model)?.file_name());
    }
    entries.sort();
    let mut stale = Vec::new();
    for entry in fs::read_dir(place).of_place("list", place)? {
        let name = entry.of_place("list", place)?.file_name();
        // One that a neighbour on a file system without locks is making this moment.
        if is_temporary(&name) || name == LOST_AND_FOUND {
            continue;
        }
        let path = place.join(&name);
        match fs::read_link(&path) {
            Ok(target) if is_ours(&target, model) => {
                if entries.binary_search(&name).is_err() {
                    stale.push(path);
                }
            }
            _ => return Err(Error::Occupied { path }),
        }
    }
    for name in &entries {
        let (target, path) = (model.join(name), place.join(name));
        if fs::read_link(&path).ok().as_ref() != Some(&target) {
            put_link(&target, &path)?;
        }
    }
    for path in stale {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).of_place("remove", &path),
            _ => {}
        }
    }
    Ok(())
}
