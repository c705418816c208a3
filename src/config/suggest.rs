//! "Did you mean": the nearest of a few names.

/// No name is that long, and comparing costs the product of the lengths.
const NAME_LEN_MAX: usize = 40;

/// The candidate that was probably meant, if one is near.
pub(super) fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if typed.is_empty() || typed.len() > NAME_LEN_MAX {
        return None;
    }
    let typed = typed.to_ascii_lowercase().replace('-', "_");
    let far = match typed.chars().count() {
        0..=3 => 1,
        4..=8 => 2,
        _ => 3,
    };
    let near = |candidate: &&'a str| {
        let distance = distance(&typed, candidate);
        // `endpoint` and `log_level` are far from `endpoint_url` and `log` by count alone.
        let begins = typed.len() >= 4 && candidate.starts_with(&typed);
        let goes_on = typed.strip_prefix(*candidate).is_some_and(|rest| rest.starts_with('_'));
        (distance <= far || begins || goes_on).then_some(distance)
    };
    let nearest = candidates.into_iter().filter_map(|candidate| Some((near(&candidate)?, candidate)));
    nearest.min_by_key(|(distance, _)| *distance).map(|(_, candidate)| candidate)
}

/// How many characters to insert, remove, replace or swap with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=b.len()).collect();
    let mut last = None;
    for (i, ca) in a.chars().enumerate() {
        let mut row = vec![i + 1];
        for (j, cb) in b.iter().enumerate() {
            let replaced = above[j] + usize::from(ca != *cb);
            let mut least = replaced.min(above[j + 1] + 1).min(row[j] + 1);
            if j > 0 && last == Some(*cb) && ca == b[j - 1] {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        before = std::mem::replace(&mut above, row);
        last = Some(ca);
    }
    above[b.len()]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn near_misses_are_found_and_others_are_not() {
        let names = ["store", "socket", "high_watermark", "low_watermark", "log", "log_format", "endpoint_url"];
        let nearest = |typed| nearest(typed, names);
        assert_eq!(nearest("stroe"), Some("store"));
        assert_eq!(nearest("High-Watermark"), Some("high_watermark"));
        assert_eq!(nearest("endpoint"), Some("endpoint_url"));
        assert_eq!(nearest("log_level"), Some("log"));
        assert_eq!(nearest("lgo"), Some("log"));
        assert_eq!(nearest("capacity"), None);
        assert_eq!(nearest(""), None);
        assert_eq!(nearest(&"s".repeat(NAME_LEN_MAX + 1)), None);
    }

    proptest! {
        #[test]
        fn distance_is_a_metric_on_its_ends(a in ".{0,12}", b in ".{0,12}") {
            prop_assert_eq!(distance(&a, &a), 0);
            prop_assert_eq!(distance(&a, &b), distance(&b, &a));
            prop_assert!(distance(&a, &b) <= a.chars().count().max(b.chars().count()));
        }
    }
}
