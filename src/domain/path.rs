//! Where a file sits inside a model: a relative path that cannot leave its directory.

use std::collections::BTreeSet;
use std::fmt;

use super::Text;

/// `NAME_MAX` of every file system worth caching on (limits.h).
const COMPONENT_LEN_MAX: usize = 255;
/// An object key is at most 1024 bytes long on S3 and GCS.
const PATH_LEN_MAX: usize = 1024;

/// A checked relative path with `/` between components. Never empty, absolute or upward.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, serde::Serialize)]
#[serde(transparent)]
pub struct ModelPath(Text);

/// Why a key cannot be a file of a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The key ends where a name should be, or starts with `/`, or has `//` in it.
    #[error("key {0:?} has an empty component")]
    EmptyComponent(String),
    /// The key has `.` or `..` as a component: it would leave or alias the model's directory.
    #[error("key {0:?} has a `.` or `..` component")]
    DotComponent(String),
    /// NUL and other control characters cannot be in a file name, or would deceive a terminal.
    #[error("key {0:?} has a control character")]
    ControlCharacter(String),
    /// A name is longer than 255 bytes or the whole path longer than 1024.
    #[error("key {0:?} is too long: 255 bytes a name and 1024 in all is what file systems take")]
    TooLong(String),
    /// One key is a file and the directory of another.
    #[error("key {file:?} is a file and also the directory of {below:?}")]
    FileIsDirectory {
        /// The path that is a file.
        file: String,
        /// A path below it.
        below: String,
    },
    /// The same path came twice.
    #[error("key {0:?} is there twice")]
    Twice(String),
}

impl ModelPath {
    /// Checks a key (relative to the model's prefix).
    ///
    /// # Errors
    /// Every way a key could name something outside the model, or nothing a file system has.
    pub fn new(key: &str) -> Result<Self, PathError> {
        let shown = || key.chars().take(120).collect::<String>();
        if key.len() > PATH_LEN_MAX {
            return Err(PathError::TooLong(shown()));
        }
        if key.chars().any(char::is_control) {
            return Err(PathError::ControlCharacter(shown()));
        }
        for component in key.split('/') {
            match component {
                "" => return Err(PathError::EmptyComponent(shown())),
                "." | ".." => return Err(PathError::DotComponent(shown())),
                _ if component.len() > COMPONENT_LEN_MAX => return Err(PathError::TooLong(shown())),
                _ => {}
            }
        }
        Ok(Self(key.into()))
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last component.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl fmt::Display for ModelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for ModelPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::new(&text).map_err(serde::de::Error::custom)
    }
}

/// Checks that a set of paths can live in one directory tree.
///
/// # Errors
/// [`PathError::Twice`] and [`PathError::FileIsDirectory`].
pub fn check_paths<'a>(paths: impl IntoIterator<Item = &'a ModelPath>) -> Result<(), PathError> {
    let mut sorted: BTreeSet<&str> = BTreeSet::new();
    for path in paths {
        if !sorted.insert(path.as_str()) {
            return Err(PathError::Twice(path.to_string()));
        }
    }
    for path in &sorted {
        for (at, _) in path.match_indices('/') {
            if sorted.contains(&path[..at]) {
                return Err(PathError::FileIsDirectory { file: path[..at].to_owned(), below: (*path).to_owned() });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_every_key_that_could_leave_the_directory() {
        for key in
            ["", "/a", "a//b", "a/", "..", "a/../b", "./a", "a/.", "a\0b", "a\nb", &"x".repeat(256), &"x/".repeat(600)]
        {
            assert!(ModelPath::new(key).is_err(), "{key:?}");
        }
        for key in ["a", "a/b", "...", ".hidden", "a b", "\u{e9}", "a\\b", &"x".repeat(255)] {
            assert!(ModelPath::new(key).is_ok(), "{key:?}");
        }
    }

    #[test]
    fn a_file_cannot_be_a_directory_too() {
        let paths: Vec<_> = ["a", "a.b", "a/b"].iter().map(|p| ModelPath::new(p).expect("valid")).collect();
        assert!(matches!(check_paths(&paths), Err(PathError::FileIsDirectory { .. })));
        let paths: Vec<_> = ["a", "a"].iter().map(|p| ModelPath::new(p).expect("valid")).collect();
        assert_eq!(check_paths(&paths), Err(PathError::Twice("a".into())));
        let paths: Vec<_> = ["a.b", "a/b", "ab"].iter().map(|p| ModelPath::new(p).expect("valid")).collect();
        assert_eq!(check_paths(&paths), Ok(()));
    }
}
