//! A source: the URI by which people name a model.

use std::fmt;

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
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct Source {
    scheme: Scheme,
    authority: String,
    path: String,
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

impl Source {
    /// Parses a URI.
    ///
    /// # Errors
    /// [`SourceError`] in the words a person reads.
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        if text.len() > URI_LEN_MAX || text.chars().any(char::is_control) {
            return Err(SourceError::Malformed);
        }
        let unknown = || SourceError::UnknownScheme(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(unknown)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "s3" => Scheme::S3,
            "gs" => Scheme::Gs,
            "file" => Scheme::File,
            "https" => Scheme::Https,
            "http" => Scheme::Http,
            _ => return Err(unknown()),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        match scheme {
            Scheme::S3 | Scheme::Gs => check_bucket(text, authority)?,
            Scheme::File if !authority.is_empty() && authority != "localhost" => {
                return Err(SourceError::RelativeFile(text.to_owned()));
            }
            Scheme::File if rest.is_empty() || !rest.contains('/') => {
                return Err(SourceError::RelativeFile(text.to_owned()));
            }
            Scheme::File => {}
            Scheme::Https | Scheme::Http => {
                if authority.contains('@') {
                    return Err(SourceError::Userinfo(scheme.as_str()));
                }
                if authority.is_empty() || path.is_empty() || path.ends_with('/') {
                    return Err(SourceError::NoFile(text.to_owned()));
                }
            }
        }
        let authority = if scheme == Scheme::File { String::new() } else { authority.to_owned() };
        Ok(Self { scheme, authority, path: path.to_owned() })
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

    /// Prefix or key, without a leading `/`; may be empty for a whole bucket. Ends with `/` only
    /// where the person wrote it.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The URI of one object of this source.
    #[must_use]
    pub fn object_uri(&self, key: &str) -> String {
        format!("{}://{}/{}", self.scheme.as_str(), self.authority, key.trim_start_matches('/'))
    }
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

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = match self.path.find(['?', '#']) {
            // A presigned URL carries its signature in the query: never shown.
            Some(at) if matches!(self.scheme, Scheme::Https | Scheme::Http) => &self.path[..at],
            _ => &self.path,
        };
        write!(f, "{}://{}/{}", self.scheme.as_str(), self.authority, shown)
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
