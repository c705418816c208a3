//! What is mounted for pods, in the cache's words.

use std::io;
use std::path::{Component, Path};

use larder_keeper::{Errands, What};

use crate::cache::{ARRIVING, Mounts};
use crate::domain::Digest;

/// Models and listings that the keeper finds mounted below kubelet's directory, each with where.
///
/// # Errors
/// The keeper is away, or cannot tell.
pub fn mounts(keeper: &Errands) -> io::Result<Mounts> {
    let found = keeper.mounts()?.into_iter();
    Ok(found.filter_map(|mounted| Some((digest(&mounted.what)?, mounted.target.display().to_string()))).collect())
}

/// What such a mount is of; none for what has no name any more, and for the mount as a whole.
fn digest(what: &What) -> Option<Digest> {
    let names = match what {
        What::Model(name) => Path::new(name),
        What::Directory(path) => path.strip_prefix(ARRIVING).unwrap_or(path),
    };
    match names.components().next()? {
        Component::Normal(name) => name.to_str()?.parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_known_by_their_names() {
        let (model, name) = (Digest::of(b"x"), Digest::of(b"x").to_string());
        assert_eq!(digest(&What::Model(name.clone().into())), Some(model));
        for path in [name.clone(), format!("{name}/sub"), format!("{ARRIVING}/{name}"), format!("{ARRIVING}/{name}/f")]
        {
            assert_eq!(digest(&What::Directory(path.into())), Some(model));
        }
        for path in ["", ARRIVING, "sources/s3/b/m@"] {
            assert_eq!(digest(&What::Directory(path.into())), None, "{path}");
        }
        assert_eq!(digest(&What::Model("".into())), None);
    }
}
