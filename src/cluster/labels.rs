//! Which labels say on the node what it has. Pure.

use std::collections::BTreeMap;

use crate::domain::Digest;

/// In front of the name of each of our labels.
pub const PREFIX: &str = "models.larder.dev/";
/// A label's name behind the prefix is no longer.
const NAME_LEN_MAX: usize = 63;
/// What is left of a name that is too long, before the digits that tell it from others.
const NAME_LEN_KEPT: usize = 46;
/// Digits of a digest in a label.
const DIGITS: usize = 16;
/// Labels of ours on one node: all of them are in every copy of the Node object.
pub const LABEL_COUNT_MAX: usize = 64;

/// What changes: new values, and `None` for what goes.
pub type Changes = BTreeMap<String, Option<String>>;

/// The key of the label of a `CachedModel`.
#[must_use]
pub fn key_of(name: &str) -> String {
    if is_label_name(name) {
        return format!("{PREFIX}{name}");
    }
    let kept: String = name.chars().filter(char::is_ascii).take(NAME_LEN_KEPT).collect();
    let kept = kept.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let digits = &blake3::hash(name.as_bytes()).to_hex()[..DIGITS];
    let short = format!("{kept}-{digits}");
    // What Kubernetes lets nobody name an object is of no use in a label either.
    if is_label_name(&short) { format!("{PREFIX}{short}") } else { format!("{PREFIX}{digits}") }
}

fn is_label_name(name: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    name.len() <= NAME_LEN_MAX
        && edge(name.chars().next())
        && edge(name.chars().next_back())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

/// The labels for what is ready, by the names of the `CachedModel`s; the first by name where there
/// are too many.
#[must_use]
pub fn labels_of(ready: &BTreeMap<String, Digest>) -> BTreeMap<String, String> {
    let label = |(name, digest): (&String, &Digest)| (key_of(name), digest.to_string()[..DIGITS].to_owned());
    ready.iter().take(LABEL_COUNT_MAX).map(label).collect()
}

/// What makes the labels of a node those that it should have. Labels of others stay.
#[must_use]
pub fn changes(has: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> Changes {
    let gone = has.keys().filter(|key| key.starts_with(PREFIX) && !wanted.contains_key(*key));
    let new = wanted.iter().filter(|(key, value)| has.get(*key) != Some(value));
    gone.map(|key| (key.clone(), None)).chain(new.map(|(key, value)| (key.clone(), Some(value.clone())))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn digest(digit: char) -> Digest {
        digit.to_string().repeat(64).parse().expect("a digest")
    }

    #[test]
    fn a_name_that_fits_is_the_label() {
        assert_eq!(key_of("llama-3.1-8b"), "models.larder.dev/llama-3.1-8b");
        assert_eq!(key_of(&"a".repeat(63)), format!("{PREFIX}{}", "a".repeat(63)));
    }

    #[test]
    fn a_long_name_is_cut_and_stays_unlike_others() {
        let long = |end: &str| format!("{}{end}", "a".repeat(63));
        let (one, other) = (key_of(&long("b")), key_of(&long("c")));
        assert_ne!(one, other);
        assert!(one.starts_with(&format!("{PREFIX}{}-", "a".repeat(46))), "{one}");
        assert_eq!(one.len(), PREFIX.len() + 63);
        // Cut where a name may not end.
        let dotted = format!("{}.{}", "a".repeat(45), "b".repeat(40));
        assert!(key_of(&dotted).starts_with(&format!("{PREFIX}{}-", "a".repeat(45))));
        for name in ["", "-", "ä", "a b", &".".repeat(70), &"é".repeat(200)] {
            let key = key_of(name);
            assert!(is_label_name(&key[PREFIX.len()..]), "{name}: {key}");
        }
    }

    #[test]
    fn values_are_the_first_digits_of_the_digest() {
        let ready = BTreeMap::from([("a".to_owned(), digest('4'))]);
        assert_eq!(labels_of(&ready), map(&[("models.larder.dev/a", "4444444444444444")]));
    }

    #[test]
    fn there_are_no_more_than_a_node_bears() {
        let ready: BTreeMap<String, Digest> = (0..70).map(|at| (format!("m{at:03}"), digest('1'))).collect();
        let labels = labels_of(&ready);
        assert_eq!(labels.len(), LABEL_COUNT_MAX);
        assert!(labels.contains_key("models.larder.dev/m063") && !labels.contains_key("models.larder.dev/m064"));
    }

    #[test]
    fn only_what_is_ours_and_wrong_changes() {
        let has = map(&[("zone", "a"), ("models.larder.dev/old", "1"), ("models.larder.dev/same", "2")]);
        let wanted = map(&[("models.larder.dev/same", "2"), ("models.larder.dev/new", "3")]);
        let expected = Changes::from([
            ("models.larder.dev/new".to_owned(), Some("3".to_owned())),
            ("models.larder.dev/old".to_owned(), None),
        ]);
        assert_eq!(changes(&has, &wanted), expected);
        assert_eq!(changes(&wanted, &wanted), Changes::new());
        let moved = map(&[("models.larder.dev/same", "4")]);
        assert_eq!(changes(&moved, &map(&[("models.larder.dev/same", "2")])).len(), 1);
    }
}
