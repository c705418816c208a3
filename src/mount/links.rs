//! Where the link of a source is: a path that a person can derive from the URI. Pure.
//!
//! `s3://bucket/models/llama` is `sources/s3/bucket/models/llama@`. The `@` keeps the link of a
//! source apart from the directory of those below it. A source pulled with globs has the id of its
//! record behind the `@`, and so has one that is here from another server than the daemon's.

use std::collections::BTreeMap;

/// Longer names cannot be typed, and no file system has them.
const NAME_LEN_MAX: usize = 255;

/// What is at a path below `sources`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// A directory.
    Directory,
    /// A link to this path below the root of the mount.
    Link(String),
}

/// All links, and the directories that lead to them.
#[derive(Debug, Default)]
pub struct Links {
    at: BTreeMap<String, At>,
}

impl Links {
    /// Adds the link of a source to `target`, a path below the root of the mount. False where the
    /// URI has a component that cannot be a name.
    pub fn add(&mut self, source: &str, selection: Option<&str>, target: &str) -> bool {
        let Some(mut components) = components(source) else { return false };
        let Some(last) = components.last_mut() else { return false };
        last.push('@');
        last.push_str(selection.unwrap_or_default());
        if components.iter().any(|component| component.len() > NAME_LEN_MAX) {
            return false;
        }
        for depth in 1..components.len() {
            self.at.entry(components[..depth].join("/")).or_insert(At::Directory);
        }
        // A prefix goes before the object of its name, which has no link then.
        let path = components.join("/");
        if source.ends_with('/') || !matches!(self.at.get(&path), Some(At::Link(_))) {
            self.at.insert(path, At::Link(target.to_owned()));
        }
        true
    }

    /// What is at a path.
    #[must_use]
    pub fn at(&self, path: &str) -> Option<&At> {
        if path.is_empty() { Some(&At::Directory) } else { self.at.get(path) }
    }

    /// The names in a directory, in order.
    pub fn names<'a>(&'a self, directory: &'a str) -> impl Iterator<Item = (&'a str, &'a At)> {
        let below = move |path: &'a str| match directory {
            "" => Some(path),
            directory => path.strip_prefix(directory)?.strip_prefix('/'),
        };
        self.at.iter().filter_map(move |(path, at)| Some((below(path).filter(|name| !name.contains('/'))?, at)))
    }
}

/// The path of a link from the link's own place.
#[must_use]
pub fn relative(path: &str, target: &str) -> String {
    // Its own directory's depth below `sources`, and `sources` itself.
    format!("{}{target}", "../".repeat(path.matches('/').count() + 1))
}

/// The components of a URI as names. Escaped: `@`, which is a link's; `%`, which escapes; and what
/// no name can be.
fn components(source: &str) -> Option<Vec<String>> {
    let (scheme, rest) = source.split_once("://")?;
    let mut components = vec![scheme.to_owned()];
    let named = rest.trim_end_matches('/').split('/').filter(|component| !component.is_empty());
    components.extend(named.map(escaped));
    (components.len() > 1).then_some(components)
}

fn escaped(component: &str) -> String {
    if matches!(component, "." | "..") {
        return component.replace('.', "%2E");
    }
    component.replace('%', "%25").replace('\0', "%00").replace('@', "%40")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_where_its_uri_says() {
        let mut links = Links::default();
        for (source, selection, target) in [
            ("s3://b/models/llama", None, "1"),
            ("s3://b/models/llama", Some("abc"), "2"),
            ("s3://b/models", None, "3"),
            ("s3://b/models@/x", None, "4"),
            ("s3://b/models/", None, "7"),
            ("s3://b/models", None, "8"),
            ("gs://b", None, "5"),
            ("file:///srv/../m", None, "6"),
        ] {
            assert!(links.add(source, selection, target), "{source}");
        }
        let at = |path: &str| links.at(path).cloned();
        let link = |target: &str| Some(At::Link(target.into()));
        assert_eq!(at("s3/b/models/llama@"), link("1"));
        assert_eq!(at("s3/b/models/llama@abc"), link("2"));
        assert_eq!(at("s3/b/models@"), link("7"));
        assert_eq!(at("s3/b/models%40/x@"), link("4"));
        assert_eq!(at("gs/b@"), link("5"));
        assert_eq!(at("file/srv/%2E%2E/m@"), link("6"));
        assert_eq!((at("s3/b"), at("")), (Some(At::Directory), Some(At::Directory)));
        assert_eq!(at("s3/c"), None);
        let names = |path| links.names(path).map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(""), ["file", "gs", "s3"]);
        assert_eq!(names("s3/b"), ["models", "models%40", "models@"]);
        assert_eq!(names("s3/b/models"), ["llama@", "llama@abc"]);
    }

    #[test]
    fn a_uri_without_names_has_no_link() {
        for source in ["s3://", "x", "s3:///"] {
            assert!(!Links::default().add(source, None, "t"), "{source}");
        }
        assert!(!Links::default().add(&format!("s3://b/{}", "x".repeat(255)), None, "t"));
    }

    #[test]
    fn links_lead_out_of_their_directory() {
        assert_eq!(relative("gs/b@", "x"), "../../x");
        assert_eq!(relative("s3/b/m/l@", "arriving/x"), "../../../../arriving/x");
    }
}
