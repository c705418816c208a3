//! From an origin's keys to the files of a model: one rule for every origin with a flat listing.

use super::{Error, Listing};
use crate::domain::{Claims, ModelPath, Object, Source, Version, check_paths};

/// A model has at most this many files; a listing that goes on is not one of a model.
const OBJECT_COUNT_MAX: usize = 100_000;
/// Bytes of all keys and versions of a listing: they are kept several times over, in memory and on
/// disk. 100,000 files have 335 each.
const LISTING_LEN_MAX: usize = 32 << 20;
/// Bytes of an ETag. Real ones have about 40; one is in each request and in each line that is kept.
pub(super) const ETAG_LEN_MAX: usize = 1024;

/// What a listing comes to, counted as its pages arrive.
#[derive(Debug, Default)]
pub(super) struct Bounds {
    objects: usize,
    bytes: usize,
}

impl Bounds {
    /// Counts one object.
    ///
    /// # Errors
    /// Where the listing is larger than that of any model, or the version longer than any.
    pub fn add(&mut self, source: &Source, key: &str, version: &Version) -> Result<(), Error> {
        let etag_len = if let Version::Etag(etag) = version { etag.len() } else { 0 };
        if etag_len > ETAG_LEN_MAX {
            let key: String = key.chars().take(120).collect();
            let detail =
                format!("the object `{key}` has an ETag of {etag_len} bytes: at most {ETAG_LEN_MAX} are taken");
            return Err(Error::BadAnswer { uri: source.to_string(), detail });
        }
        self.objects += 1;
        self.bytes += key.len() + etag_len;
        let most = if self.objects > OBJECT_COUNT_MAX {
            format!("{OBJECT_COUNT_MAX} objects")
        } else if self.bytes > LISTING_LEN_MAX {
            format!("{} MiB of keys", LISTING_LEN_MAX >> 20)
        } else {
            return Ok(());
        };
        let detail = format!("more than {most} match: a model has fewer, check the prefix");
        Err(Error::Settings { uri: source.to_string(), detail })
    }
}

/// One entry of a listing, as the origin gives it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub key: String,
    pub size: u64,
    pub version: Version,
    pub claims: Claims,
    pub more_claims: bool,
}

/// Turns a source and what was listed under its path into a model's files.
///
/// A path that ends in `/`, or is empty, is a directory. Any other is the object of exactly that
/// key if there is one, else the directory of that name.
pub(super) fn listing(source: &Source, entries: Vec<Entry>) -> Result<Listing, Error> {
    let path = source.path();
    if !path.is_empty()
        && !path.ends_with('/')
        && let Some(entry) = entries.iter().find(|entry| entry.key == path)
    {
        let name = path.rsplit('/').next().unwrap_or(path);
        return Ok(Listing { objects: vec![object(source, entry.clone(), name)?], markers: 0 });
    }
    let prefix = directory(path);
    let mut listing = Listing::default();
    for entry in entries {
        let Some(relative) = entry.key.strip_prefix(&prefix).map(str::to_owned) else { continue };
        // Consoles make a zero-byte object per directory; the prefix itself may be one.
        if (relative.is_empty() || relative.ends_with('/')) && entry.size == 0 {
            listing.markers += 1;
            continue;
        }
        listing.objects.push(object(source, entry, &relative)?);
    }
    if listing.objects.is_empty() {
        let what = if listing.markers > 0 { "only directory markers match" } else { "nothing matches" };
        let where_to = if path.is_empty() { "the bucket is empty" } else { "check the prefix" };
        return Err(Error::NotFound { uri: source.to_string(), detail: format!("{what}: {where_to}") });
    }
    check_paths(listing.objects.iter().map(|object| &object.path))
        .map_err(|reason| Error::BadKey { uri: source.to_string(), source: reason })?;
    Ok(listing)
}

/// The prefix of all keys below a path.
pub(super) fn directory(path: &str) -> String {
    if path.is_empty() || path.ends_with('/') { path.to_owned() } else { format!("{path}/") }
}

fn object(source: &Source, entry: Entry, relative: &str) -> Result<Object, Error> {
    let path = ModelPath::new(relative).map_err(|reason| Error::BadKey { uri: source.to_string(), source: reason })?;
    let Entry { key, size, version, claims, more_claims } = entry;
    Ok(Object { key, path, size, version, claims, more_claims })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, size: u64) -> Entry {
        Entry { key: key.into(), size, version: Version::Generation(1), claims: Claims::default(), more_claims: false }
    }

    fn paths(uri: &str, entries: &[(&str, u64)]) -> Result<Vec<String>, Error> {
        let source = Source::parse(uri).expect("uri");
        let entries = entries.iter().map(|(key, size)| entry(key, *size)).collect();
        Ok(listing(&source, entries)?.objects.into_iter().map(|object| object.path.to_string()).collect())
    }

    #[test]
    fn a_prefix_with_or_without_a_slash_is_the_same_model() {
        let keys = [("m/", 0), ("m/a", 1), ("m/s/", 0), ("m/s/b", 0), ("m2/c", 1)];
        assert_eq!(paths("s3://b/m/", &keys[..4]).expect("lists"), ["a", "s/b"]);
        assert_eq!(paths("s3://b/m", &keys).expect("lists"), ["a", "s/b"]);
        assert_eq!(paths("s3://b/m/a", &[("m/a", 1), ("m/ab", 1)]).expect("lists"), ["a"]);
        assert_eq!(paths("s3://b", &keys[1..2]).expect("lists"), ["m/a"]);
    }

    #[test]
    fn a_listing_is_bounded_by_objects_and_by_bytes() {
        let source = Source::parse("s3://b/m/").expect("uri");
        let fits = |key: &str, count: usize| {
            let mut bounds = Bounds::default();
            (0..count).try_for_each(|_| bounds.add(&source, key, &Version::Generation(1)))
        };
        assert!(fits("k", OBJECT_COUNT_MAX).is_ok());
        let told = fits("k", OBJECT_COUNT_MAX + 1).expect_err("too many").to_string();
        assert!(told.contains("more than 100000 objects match"), "{told}");
        let key = "k".repeat(1024);
        assert!(fits(&key, LISTING_LEN_MAX / 1024).is_ok());
        let told = fits(&key, LISTING_LEN_MAX / 1024 + 1).expect_err("too long").to_string();
        assert!(told.contains("more than 32 MiB of keys match"), "{told}");
        let version = Version::Etag("e".repeat(ETAG_LEN_MAX + 1).into());
        assert!(Bounds::default().add(&source, "k", &version).is_err());
    }

    #[test]
    fn nothing_and_bad_keys_are_errors() {
        assert!(matches!(paths("s3://b/m/", &[]), Err(Error::NotFound { .. })));
        assert!(matches!(paths("s3://b/m/", &[("m/", 0)]), Err(Error::NotFound { .. })));
        for key in ["m/../x", "m//x", "m/x/", "m/."] {
            assert!(matches!(paths("s3://b/m/", &[(key, 1)]), Err(Error::BadKey { .. })), "{key}");
        }
        assert!(matches!(paths("s3://b/m/", &[("m/a", 1), ("m/a/b", 1)]), Err(Error::BadKey { .. })));
    }
}
