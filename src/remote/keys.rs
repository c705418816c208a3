//! Credentials that a caller brings along, in place of the daemon's own.

use std::collections::HashMap;
use std::fmt;

use crate::domain::{Scheme, Source};

/// Somebody's own credentials for one source. Kept in memory only, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys(Kind);

#[derive(Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Aws {
        id: String,
        secret: String,
        token: Option<String>,
    },
    /// The JSON of a Google service account's key.
    Google(String),
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

/// The entry of a Secret for `gs://`, as the file is called that Google's console gives.
const GOOGLE: &str = "key.json";
const ID: &str = "AWS_ACCESS_KEY_ID";
const SECRET: &str = "AWS_SECRET_ACCESS_KEY";
const TOKEN: &str = "AWS_SESSION_TOKEN";

impl Keys {
    /// Reads the entries of a Kubernetes Secret: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and
    /// perhaps `AWS_SESSION_TOKEN` for `s3://`, `key.json` for `gs://`. `None` for an empty Secret,
    /// which is what there is without a reference to one.
    ///
    /// # Errors
    /// What is missing, without any value in it.
    pub fn of(source: &Source, secret: &HashMap<String, String>) -> Result<Option<Self>, String> {
        if secret.is_empty() {
            return Ok(None);
        }
        let entry = |name: &str| {
            let value = secret.get(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
            value.ok_or_else(|| format!("the Secret has no `{name}`"))
        };
        let kind = match source.scheme() {
            Scheme::S3 => Kind::Aws { id: entry(ID)?, secret: entry(SECRET)?, token: entry(TOKEN).ok() },
            Scheme::Gs => Kind::Google(entry(GOOGLE)?),
            other => return Err(format!("a Secret is of no use for {}://", other.as_str())),
        };
        Ok(Some(Self(kind)))
    }

    /// The same for the same credentials, and of no use to anybody else.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let text = match &self.0 {
            Kind::Aws { id, secret, token } => format!("{id}\n{secret}\n{}", token.as_deref().unwrap_or_default()),
            Kind::Google(json) => json.clone(),
        };
        blake3::derive_key("larder 2026-11 fingerprint of credentials", text.as_bytes())[..16]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    pub(super) const fn kind(&self) -> &Kind {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(uri: &str, entries: &[(&str, &str)]) -> Result<Option<Keys>, String> {
        let source = Source::parse(uri).expect("a source");
        Keys::of(&source, &entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn secrets_are_read_and_not_shown() {
        assert_eq!(read("s3://b/k/", &[]), Ok(None));
        let keys = read("s3://b/k/", &[(ID, "id\n"), (SECRET, "S3CR3T"), ("other", "x")]).expect("keys").expect("some");
        assert!(!format!("{keys:?}").contains("S3CR3T"));
        let other = read("s3://b/k/", &[(ID, "id"), (SECRET, "another")]).expect("keys").expect("some");
        assert_ne!(keys.fingerprint(), other.fingerprint());
        assert_eq!(keys.fingerprint().len(), 32);
        assert!(read("gs://b/k/", &[(GOOGLE, "{}")]).expect("keys").is_some());
    }

    #[test]
    fn what_is_missing_is_named_without_a_value() {
        let said = read("s3://b/k/", &[(ID, "S3CR3T")]).expect_err("no secret");
        assert!(said.contains(SECRET) && !said.contains("S3CR3T"), "{said}");
        assert!(read("gs://b/k/", &[(ID, "x"), (SECRET, "x")]).expect_err("no key").contains(GOOGLE));
        assert!(read("https://h/f", &[(ID, "x")]).expect_err("no use").contains("https://"));
    }
}
