//! A source: the URI by which people name a model.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};

use super::Digest;

/// Where a source lives.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub enum Scheme {
    /// Amazon S3 and everything that speaks it.
    S3,
    /// Google Cloud Storage.
    Gs,
    /// A directory or file this machine can read.
    File,
    /// One file over HTTPS.
    Https,
    /// One file over plain HTTP.
    Http,
}

impl Scheme {
    /// The scheme as written before `://`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gs => "gs",
            Self::File => "file",
            Self::Https => "https",
            Self::Http => "http",
        }
    }
}

/// A parsed source URI. Its text form is canonical: equal sources print alike.
///
/// The query of an https source may be a secret, so it is sent to its server and never shown. What
/// tells two objects apart by it is shown as a digest: `https://host/get?query-0123456789ab`. That
/// text parses to an equal source, which names what is kept, and cannot be asked for.
#[derive(Clone)]
pub struct Source {
    scheme: Scheme,
    authority: String,
    path: String,
    /// The query as written; only of https, and not where the source was parsed from what is shown.
    query: Option<String>,
    /// Digits of the digest of what the query says besides its signature.
    query_digits: Option<String>,
}

/// Why a text is not a source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// No `scheme://` at the start, or one that larder does not speak.
    #[error("`{0}` is not a source: want s3://bucket/prefix/, gs://bucket/prefix/, file:///dir or https://host/file")]
    UnknownScheme(String),
    /// The bucket or host is missing.
    #[error("`{0}` names no bucket")]
    NoBucket(String),
    /// A bucket name with characters no bucket has.
    #[error("`{uri}`: {bucket:?} cannot be a bucket name: letters, digits, `.`, `-` and `_` only")]
    BadBucket {
        /// The whole URI.
        uri: String,
        /// The part that cannot be a bucket.
        bucket: String,
    },
    /// `file://` wants an absolute path and no host.
    #[error("`{0}` is not a file source: want file:///absolute/path")]
    RelativeFile(String),
    /// `https://` wants the path of one file.
    #[error("`{0}` names no file: an https source is one file, https://host/path/file")]
    NoFile(String),
    /// A password in a URI would end up in logs and in the catalog.
    #[error(
        "the {0} source has a user name or password in it: larder keeps URIs on disk, use the credential chain instead"
    )]
    Userinfo(&'static str),
    /// Control characters, or a URI no server would take.
    #[error("the source has control characters or is longer than 2048 bytes")]
    Malformed,
}

const URI_LEN_MAX: usize = 2048;

/// What stands for a query where a source is shown, before its digits.
const QUERY_SHOWN: &str = "query-";
/// Digits of [`Digest::short`].
const QUERY_DIGITS: usize = 12;

/// Parameters that sign whatever else the URL says: of AWS and Google, version 4.
const SIGNATURE_PREFIXES: [&str; 2] = ["x-amz-", "x-goog-"];
/// Of older signatures: a parameter without which there is no signature, and all that come with
/// it. Alone, these names are too plain to mean one.
const SIGNATURES: [(&str, &[&str]); 2] = [
    // AWS and Google, version 2, and CloudFront.
    ("Signature", &["Signature", "Expires", "Policy", "AWSAccessKeyId", "GoogleAccessId", "Key-Pair-Id"]),
    // Shared access signatures of Azure: of a service, a user, an account.
    (
        "sig",
        &[
            "sig", "se", "sp", "spr", "sv", "sr", "st", "skoid", "sktid", "skt", "ske", "sks", "skv", "saoid", "suoid",
            "scid", "si", "sip", "ss", "srt",
        ],
    ),
];

impl Source {
    /// Parses a URI.
    ///
    /// # Errors
    /// [`SourceError`] in the words a person reads.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        if text.len() > URI_LEN_MAX || text.chars().any(char::is_control) {
            return Err(SourceError::Malformed);
        }
        // Whatever it is, what stands behind a `?` may be a secret.
        let unknown = || SourceError::UnknownScheme(without_secrets(text));
        let (scheme, rest) = text.split_once("://").ok_or_else(unknown)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "s3" => Scheme::S3,
            "gs" => Scheme::Gs,
            "file" => Scheme::File,
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            _ => return Err(unknown()),
        };
        // Keys and file names may have `?` and `#` in them; a URL's path has neither.
        let (rest, query) = if matches!(scheme, Scheme::Https | Scheme::Http) {
            let rest = rest.split('#').next().unwrap_or_default();
            rest.split_once('?').unwrap_or((rest, ""))
        } else {
            (rest, "")
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        match scheme {
            _ if authority.contains('@') => return Err(SourceError::Userinfo(scheme.as_str())),
            Scheme::S3 | Scheme::Gs => check_bucket(text, authority)?,
            Scheme::File if !authority.is_empty() && authority != "localhost" => {
                return Err(SourceError::RelativeFile(text.to_owned()));
            }
            Scheme::File if rest.is_empty() || !rest.contains('/') => {
                return Err(SourceError::RelativeFile(text.to_owned()));
            }
            Scheme::File => {}
            Scheme::Https | Scheme::Http => {
                if authority.is_empty() || path.is_empty() || path.ends_with('/') {
                    return Err(SourceError::NoFile(format!("{}://{rest}", scheme.as_str())));
                }
            }
        }
        let authority = if scheme == Scheme::File { String::new() } else { authority.to_owned() };
        let (query, query_digits) = match shown_digits(query) {
            Some(digits) => (None, Some(digits.to_owned())),
            None => (Some(query).filter(|query| !query.is_empty()).map(str::to_owned), query_digits(query)),
        };
        Ok(Self { scheme, authority, path: path.to_owned(), query, query_digits })
    }

    /// The scheme.
    #[must_use]
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// Bucket, or host and port; empty for `file`.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Prefix or key, without the `/` behind the authority; may be empty for a whole bucket. Ends
    /// with `/` only where the person wrote it. Of https without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The URL to ask an https server for, secrets included: not to be shown or kept. `None` where
    /// the query is not known, because the source was parsed from what is shown of it.
    #[must_use]
    pub fn secret_url(&self) -> Option<String> {
        let url = format!("{}://{}/{}", self.scheme.as_str(), self.authority, self.path);
        match (&self.query, &self.query_digits) {
            (Some(query), _) => Some(format!("{url}?{query}")),
            (None, Some(_)) => None,
            (None, None) => Some(url),
        }
    }

    /// The URI of one object of this source.
    #[must_use]
    pub fn object_uri(&self, key: &str) -> String {
        let uri = format!("{}://{}/{key}", self.scheme.as_str(), self.authority);
        match &self.query_digits {
            Some(digits) => format!("{uri}?{QUERY_SHOWN}{digits}"),
            None => uri,
        }
    }

    /// What makes two sources one: where the bytes are, and not by whose signature.
    fn identity(&self) -> (Scheme, &str, &str, Option<&str>) {
        (self.scheme, &self.authority, &self.path, self.query_digits.as_deref())
    }
}

/// The digits of a query that is the shown form of another.
fn shown_digits(query: &str) -> Option<&str> {
    let digits = query.strip_prefix(QUERY_SHOWN)?;
    let hex = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    (digits.len() == QUERY_DIGITS && digits.bytes().all(hex)).then_some(digits)
}

/// The digits that stand for a query: of its parameters without signatures, in the order of their
/// names. `None` where nothing else is left.
fn query_digits(query: &str) -> Option<String> {
    fn name(pair: &str) -> &str {
        pair.split('=').next().unwrap_or_default()
    }
    let mut pairs: Vec<&str> = query.split('&').filter(|pair| !pair.is_empty()).collect();
    let signatures: Vec<&[&str]> = (SIGNATURES.iter())
        .filter(|(mark, _)| pairs.iter().any(|pair| name(pair) == *mark))
        .map(|(_, names)| *names)
        .collect();
    pairs.retain(|pair| {
        let name = name(pair);
        let prefixed = |prefix: &&str| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
        !SIGNATURE_PREFIXES.iter().any(prefixed) && !signatures.iter().any(|names| names.contains(&name))
    });
    // Parameters of one name keep their order: it may mean something.
    pairs.sort_by_key(|pair| name(pair));
    (!pairs.is_empty()).then(|| Digest::of(pairs.join("&").as_bytes()).short())
}

/// What may be a source of another scheme, without what may be a password or a token in it.
fn without_secrets(text: &str) -> String {
    let shown = text.split('?').next().unwrap_or_default();
    let (scheme, rest) = shown.split_once("://").unwrap_or(("", shown));
    let (authority, path) = rest.split_once('/').map_or((rest, None), |(authority, path)| (authority, Some(path)));
    let Some((_, host)) = authority.rsplit_once('@') else { return shown.to_owned() };
    let scheme = if scheme.is_empty() { String::new() } else { format!("{scheme}://") };
    format!("{scheme}{host}{}", path.map_or_else(String::new, |path| format!("/{path}")))
}

fn check_bucket(uri: &str, bucket: &str) -> Result<(), SourceError> {
    if bucket.is_empty() {
        return Err(SourceError::NoBucket(uri.to_owned()));
    }
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if bucket.len() > 255 || bucket.starts_with('.') || !bucket.chars().all(ok) {
        return Err(SourceError::BadBucket { uri: uri.to_owned(), bucket: bucket.to_owned() });
    }
    Ok(())
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Source {}

impl PartialOrd for Source {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Source {
    fn cmp(&self, other: &Self) -> Ordering {
        self.identity().cmp(&other.identity())
    }
}

impl Hash for Source {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.object_uri(&self.path))
    }
}

/// As shown: the query is a secret to logs too.
impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, shown: &str) {
        assert_eq!(Source::parse(text).expect(text).to_string(), shown);
    }

    #[test]
    fn canonical_text() {
        check("s3://bucket/models/llama/", "s3://bucket/models/llama/");
        check("S3://bucket", "s3://bucket/");
        check("gs://b/k", "gs://b/k");
        check("file:///data/model", "file:///data/model");
        check("file://localhost/data", "file:///data");
        check("https://host:8443/a/b.bin?X-Amz-Signature=secret", "https://host:8443/a/b.bin");
        check("https://host/a#part", "https://host/a");
        check("https://host/a?#part", "https://host/a");
        check("s3://b/what?#1", "s3://b/what?#1");
        check("s3://b//k", "s3://b//k");
    }

    fn parse(text: &str) -> Source {
        Source::parse(text).expect(text)
    }

    /// What stands for a query, after the URL without it.
    fn suffix(query: &str) -> String {
        let shown = parse(&format!("https://h/get?{query}")).to_string();
        shown.strip_prefix("https://h/get").expect("the URL").to_owned()
    }

    #[test]
    fn a_query_is_part_of_the_name_and_never_shown() {
        let expected = format!("?query-{}", &Digest::of(b"id=1").to_string()[..12]);
        assert_eq!(suffix("id=1"), expected);
        assert_ne!(suffix("id=1"), suffix("id=2"));
        assert_ne!(suffix("id=1"), suffix("id"));
        assert_eq!(suffix("b=2&a=1"), suffix("a=1&&b=2"));
        assert_ne!(suffix("a=1&a=2"), suffix("a=2&a=1"), "the order of one name's values may mean something");
        assert_eq!(suffix("id=1#part"), suffix("id=1"));
        assert_eq!(suffix(""), "");
        let secret = parse("https://h/get?token=S3CR3T");
        assert_eq!(secret.object_uri("get"), secret.to_string());
        assert!(!format!("{secret} {secret:?} {}", secret.object_uri("x")).contains("S3CR3T"));
        assert_eq!(secret.secret_url().as_deref(), Some("https://h/get?token=S3CR3T"));
    }

    #[test]
    fn signatures_are_no_part_of_the_name() {
        for signature in [
            "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=k&X-Amz-Date=d&X-Amz-Expires=9&X-Amz-Signature=s",
            "X-Goog-Algorithm=GOOG4&X-Goog-Signature=s",
            "AWSAccessKeyId=k&Signature=s&Expires=1&x-amz-security-token=t",
            "GoogleAccessId=a&Expires=1&Signature=s",
            "Policy=p&Signature=s&Key-Pair-Id=k",
            "sv=2024-11-04&st=1&se=2&sr=b&sp=r&spr=https&sig=s",
            "skoid=o&sktid=t&skt=1&ske=2&sks=b&skv=v&sv=2024-11-04&se=2&sr=b&sp=r&sig=s",
            "sv=2024-11-04&ss=b&srt=o&sp=r&se=2&sig=s",
        ] {
            assert_eq!(suffix(signature), "", "{signature}");
            assert_eq!(suffix(&format!("{signature}&versionId=7")), suffix("versionId=7"), "{signature}");
            assert_eq!(parse(&format!("https://h/f?{signature}")), parse("https://h/f"));
        }
        // Names too plain to be a signature where nothing is signed.
        for plain in ["se=1", "st=2", "Policy=3", "Expires=4"] {
            assert_ne!(suffix(plain), "", "{plain}");
        }
    }

    #[test]
    fn what_is_shown_names_the_same_source() {
        use std::collections::BTreeSet;
        use std::collections::HashSet;
        let asked = parse("https://h/get?id=1&X-Amz-Signature=one");
        let again = parse("https://h/get?X-Amz-Signature=two&id=1");
        let shown = parse(&asked.to_string());
        assert_eq!(asked, again);
        assert_eq!(asked, shown);
        assert_eq!(asked.to_string(), shown.to_string());
        assert_eq!(asked.cmp(&shown), Ordering::Equal);
        let all = [asked, again, shown.clone()];
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), 1);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 1);
        assert_ne!(shown, parse("https://h/get?id=2"));
        assert_ne!(shown, parse("https://h/get"));
        assert_eq!(shown.secret_url(), None, "only the digits are known");
        // Near misses are queries like any other.
        for query in ["query-0123456789AB", "query-0123456789abc", "query-0123456789a", "query-0123456789ab&x"] {
            assert!(parse(&format!("https://h/get?{query}")).secret_url().is_some(), "{query}");
        }
    }

    #[test]
    fn refusals_show_no_query() {
        for text in [
            "https://h/?t=S3CR3T",
            "https://h?t=S3CR3T/f",
            "https://h/d/?t=S3CR3T",
            "htps://h/f?t=S3CR3T",
            "s3://u:S3CR3T@b/k",
            "gs://S3CR3T@b/k",
            "file://u:S3CR3T@h/k",
            "ftp://u:S3CR3T@h/k",
            "u:S3CR3T@h/k",
        ] {
            let told = Source::parse(text).expect_err(text).to_string();
            assert!(!told.contains("S3CR3T"), "{told}");
        }
    }

    #[test]
    fn refuses_with_a_reason() {
        for text in [
            "",
            "bucket/key",
            "ftp://h/f",
            "s3://",
            "s3:///key",
            "s3://bu cket/",
            "s3://b%2f/",
            "file://host/x",
            "file://",
            "https://host",
            "https://host/",
            "https://u:p@host/f",
            "s3://b/\n",
        ] {
            assert!(Source::parse(text).is_err(), "{text:?}");
        }
    }
}
