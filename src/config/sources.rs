//! Which sources may be asked for: prefixes of their URIs.

use percent_encoding::percent_decode_str;

use crate::domain::{Scheme, Source};

/// As of a source.
const PREFIX_LEN_MAX: usize = 2048;

const SCHEMES: [Scheme; 5] = [Scheme::S3, Scheme::Gs, Scheme::Https, Scheme::Http, Scheme::File];

/// A prefix in the words of [`Source`]'s text, or why it is none.
pub(super) fn prefix(text: &str) -> Result<String, &'static str> {
    if text.len() > PREFIX_LEN_MAX || text.chars().any(char::is_control) {
        return Err("want at most 2048 bytes without control characters");
    }
    let unknown = "want a prefix that begins with s3://, gs://, https://, http:// or file://";
    let (scheme, rest) = text.split_once("://").ok_or(unknown)?;
    let scheme = SCHEMES.into_iter().find(|known| known.as_str().eq_ignore_ascii_case(scheme)).ok_or(unknown)?;
    if climbs(rest) {
        return Err("a source with `..` in it is never allowed, so this prefix allows nothing");
    }
    if rest.contains('*') {
        return Err("a prefix is plain text and covers all that begins with it: leave the `*` out");
    }
    let mut rest = rest;
    match scheme {
        _ if rest.is_empty() => {}
        Scheme::S3 | Scheme::Gs => {
            if Source::parse(text).is_err() {
                return Err("want a bucket's name behind the scheme: letters, digits, `.`, `-` and `_` only");
            }
        }
        Scheme::File => {
            rest = rest.strip_prefix("localhost").unwrap_or(rest);
            if !rest.starts_with('/') {
                return Err("want an absolute path: file:///directory/");
            }
        }
        Scheme::Https | Scheme::Http => {
            if rest.contains('@') {
                return Err("want no user name and no password in it: no source has one");
            }
            if rest.contains(['?', '#']) {
                return Err("want no query and no fragment in it: only what stands before them is compared");
            }
            // The parser takes three slashes for two.
            if rest.starts_with('/') || !url::Url::parse(text).is_ok_and(|url| url.has_host()) {
                return Err("want a host behind the scheme: https://host/ or https://host:port/path/");
            }
        }
    }
    Ok(format!("{}://{rest}", scheme.as_str()))
}

/// Whether any of the prefixes covers the source.
pub(super) fn allow(prefixes: &[String], source: &Source) -> bool {
    if climbs(source.path()) {
        return false;
    }
    let text = source.to_string();
    let covers = |prefix: &String| {
        let rest = text.strip_prefix(prefix.as_str());
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || prefix.ends_with('/'))
    };
    prefixes.iter().any(covers)
}

/// Whether a path could lead out of the directory it begins with, by anybody's reading: URL
/// libraries resolve `%2E%2E` and take `\` for `/`, and some servers decode `%2F` too.
fn climbs(path: &str) -> bool {
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    decoded.split(['/', '\\']).any(|segment| segment.trim() == "..")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn allowed(given: &str, uri: &str) -> bool {
        let source = Source::parse(uri).expect(uri);
        allow(&[prefix(given).expect(given)], &source)
    }

    #[test]
    fn a_prefix_ends_where_a_name_ends() {
        for (given, uri) in [
            ("s3://", "s3://any/thing"),
            ("S3://", "s3://any/thing"),
            ("s3://models", "s3://models"),
            ("s3://models", "s3://models/llama/"),
            ("s3://models/", "s3://models"),
            ("s3://models/llama", "s3://models/llama"),
            ("s3://models/llama", "s3://models/llama/"),
            ("s3://models/llama/", "s3://models/llama/8b"),
            ("file:///data", "file:///data/model"),
            ("file://localhost/data", "file:///data/model"),
            ("file://", "file:///etc/x"),
            ("https://", "https://host/file?secret=1"),
            ("https://host", "https://host/file"),
            ("https://host/dir/", "https://host/dir/file?id=1"),
            ("https://host/file", "https://host/file?X-Amz-Signature=s"),
        ] {
            assert!(allowed(given, uri), "{given} covers {uri}");
        }
        for (given, uri) in [
            ("s3://mod", "s3://models-of-others/x"),
            ("s3://models", "gs://models/x"),
            ("s3://models/llama", "s3://models/llama-private/"),
            ("s3://models/llama/", "s3://models/llama"),
            ("https://", "http://169.254.169.254/latest"),
            ("https://host", "https://host.other/file"),
            ("https://host", "https://host:8443/file"),
            ("https://host/get", "https://host/get?id=2"),
            ("file:///data", "file:///database"),
        ] {
            assert!(!allowed(given, uri), "{given} does not cover {uri}");
        }
        assert!(!allow(&[], &Source::parse("s3://b/k").expect("source")), "an empty list allows nothing");
    }

    #[test]
    fn nothing_climbs_out_of_a_prefix() {
        for (given, uri) in [
            ("file:///data/", "file:///data/../etc/passwd"),
            ("file:///data/", "file:///data/models/.."),
            ("file://", "file:///data/../etc/passwd"),
            ("https://host/a/", "https://host/a/../b"),
            ("https://host/a/", "https://host/a/%2e%2E/b"),
            ("https://host/a/", "https://host/a/..%2fb"),
            ("https://host/a/", "https://host/a/..\\b"),
            ("https://host/a/", "https://host/a/x%5c..%5cb"),
            ("s3://b/", "s3://b/../other/key"),
        ] {
            assert!(!allowed(given, uri), "{uri}");
        }
        for uri in ["file:///data/a..b/c", "file:///data/...", "file:///data/..a", "file:///data/./a"] {
            assert!(allowed("file:///data/", uri), "{uri}");
        }
    }

    #[test]
    fn what_is_no_prefix_says_why() {
        for (text, why) in [
            ("", "begins with"),
            ("models/", "begins with"),
            ("ftp://host/", "begins with"),
            ("s3:/models", "begins with"),
            ("s3:///key", "bucket"),
            ("s3://bu cket/", "bucket"),
            ("s3://models-*", "leave the `*` out"),
            ("file://data", "absolute"),
            ("file:///data/../", "`..`"),
            ("https:///x", "host"),
            ("https://u:p@host/", "password"),
            ("https://host/?a", "query"),
            ("s3://b\n/", "control"),
        ] {
            let told = prefix(text).expect_err(text);
            assert!(told.contains(why), "{text}: {told}");
        }
    }

    proptest! {
        /// What is allowed begins with the prefix and holds no way up, whatever is asked.
        #[test]
        fn allowed_is_below(path in "[a-c./%2eE\\\\]{0,16}") {
            let Ok(source) = Source::parse(&format!("https://host/a/{path}")) else { return Ok(()) };
            if allow(&["https://host/a/".to_owned()], &source) {
                let url = url::Url::parse(&source.to_string()).expect("a URL");
                prop_assert!(url.as_str().starts_with("https://host/a/"), "{}", url);
            }
        }

        #[test]
        fn any_text_is_a_prefix_or_not(text in ".*") {
            if let Ok(normal) = prefix(&text) {
                prop_assert_eq!(prefix(&normal), Ok(normal.clone()));
            }
        }
    }
}
