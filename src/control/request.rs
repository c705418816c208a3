//! What is asked, read with limits.

use std::time::Duration;

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::api::{Api, Rights};
use crate::cache::named::{Name, Verb};
use crate::cache::{LeaseWish, Owner, Wish};
use crate::domain::Source;
use crate::fetch::Selection;
use crate::report::{Exit, Failure};

/// Longer than any wish: a URI and some globs.
const BODY_LEN_MAX: usize = 64 << 10;
/// A caller that takes longer to send that much is not one.
const BODY_PATIENCE: Duration = Duration::from_secs(10);
/// Globs of one kind.
const GLOB_COUNT_MAX: usize = 256;
/// What `progress_ms` may be.
const PROGRESS_MS: std::ops::RangeInclusive<u64> = 100..=5000;

/// `POST /v1/ensure`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EnsureBody {
    source: String,
    #[serde(default)]
    include: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
    #[serde(default)]
    fresh: bool,
    /// Answer `ready` as soon as the files are known, where there is a mount to read them in.
    #[serde(default)]
    lazy: bool,
    #[serde(default)]
    lease: Option<String>,
    #[serde(default)]
    progress_ms: Option<u64>,
    /// Answer `ready` only when the files would survive a power cut.
    #[serde(default)]
    pub sync: bool,
}

/// `POST /v1/pin` and `POST /v1/unpin`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelBody {
    model: String,
    #[serde(default)]
    include: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
}

/// `POST /v1/remove`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoveBody {
    models: Vec<String>,
    #[serde(default)]
    include: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
}

/// `POST /v1/release`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseBody {
    pub lease: String,
}

/// `POST /v1/verify`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyBody {
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    include: Vec<String>,
    #[serde(default)]
    exclude: Vec<String>,
    #[serde(default)]
    pub repair: bool,
}

impl ModelBody {
    /// The model that is meant.
    ///
    /// # Errors
    /// [`Exit::Usage`].
    pub fn name(&self, verb: Verb) -> Result<Name, Failure> {
        name(verb, &self.model, &self.include, &self.exclude)
    }
}

impl RemoveBody {
    /// The models that are meant.
    ///
    /// # Errors
    /// [`Exit::Usage`].
    pub fn names(&self) -> Result<Vec<Name>, Failure> {
        self.models.iter().map(|model| name(Verb::Rm, model, &self.include, &self.exclude)).collect()
    }

    /// The same as they were written.
    pub fn models(&self) -> &[String] {
        &self.models
    }
}

impl VerifyBody {
    /// The model that is meant; none for all.
    ///
    /// # Errors
    /// [`Exit::Usage`].
    pub fn name(&self) -> Result<Option<Name>, Failure> {
        let Some(model) = &self.model else {
            if self.include.is_empty() && self.exclude.is_empty() {
                return Ok(None);
            }
            return Err(Failure::new(Exit::Usage, "`include` and `exclude` go with a `model`"));
        };
        name(Verb::Verify, model, &self.include, &self.exclude).map(Some)
    }
}

/// Reads a name with its globs.
pub fn name(verb: Verb, model: &str, include: &[String], exclude: &[String]) -> Result<Name, Failure> {
    check_count(include, exclude)?;
    Name::parse(verb, model, include, exclude)
}

fn check_count(include: &[String], exclude: &[String]) -> Result<(), Failure> {
    if include.len() > GLOB_COUNT_MAX || exclude.len() > GLOB_COUNT_MAX {
        return Err(Failure::new(Exit::Usage, format!("more than {GLOB_COUNT_MAX} globs")));
    }
    Ok(())
}

/// Why a body is not taken.
#[derive(Debug)]
pub enum Unread {
    TooLong,
    Wrong(Failure),
}

/// Reads a body as one JSON value.
pub async fn read<T: DeserializeOwned>(body: hyper::body::Incoming) -> Result<T, Unread> {
    let wrong = |what: String| {
        let hint =
            "want one JSON object as openapi.json has it: `curl --unix-socket SOCKET http://larder/v1/openapi.json`";
        Unread::Wrong(Failure::hinted(Exit::Usage, what, hint))
    };
    let whole = tokio::time::timeout(BODY_PATIENCE, Limited::new(body, BODY_LEN_MAX).collect()).await;
    let whole = match whole {
        Ok(Ok(whole)) => whole.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(Unread::TooLong),
        Ok(Err(error)) => return Err(wrong(format!("the request broke off: {error}"))),
        Err(_) => return Err(wrong(format!("no whole request within {} s", BODY_PATIENCE.as_secs()))),
    };
    // A list would be taken too, its items for the fields in their order.
    if whole.trim_ascii_start().first().is_some_and(|first| *first != b'{') {
        return Err(wrong("the request is not a JSON object".to_owned()));
    }
    serde_json::from_slice(&whole).map_err(|error| wrong(format!("the request is not what this call takes: {error}")))
}

impl EnsureBody {
    /// The wish, if it may be had.
    ///
    /// # Errors
    /// [`Exit::Usage`]; [`Exit::Denied`] for a source that the settings do not allow.
    pub fn wish(&self, api: &Api, rights: Rights) -> Result<Wish, Failure> {
        let source = Source::parse(&self.source)?;
        if !(api.allows)(rights, &source) {
            return Err(Failure::hinted(
                Exit::Denied,
                format!("`{source}` may not be asked for on this node"),
                "the settings `sources` and `policy` of larder's daemon say what may",
            ));
        }
        check_count(&self.include, &self.exclude)?;
        let selection = Selection::new(&self.include, &self.exclude)?;
        let lease = match self.lease.as_deref() {
            None => LeaseWish::None,
            Some("connection") => LeaseWish::Caller,
            Some(owner) => {
                LeaseWish::Owner(Owner::parse(owner).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?)
            }
        };
        let mut wish = Wish::new(source, selection, self.fresh, lease);
        wish.lazy = self.lazy;
        if let Some(millis) = self.progress_ms {
            if !PROGRESS_MS.contains(&millis) {
                let (least, most) = (PROGRESS_MS.start(), PROGRESS_MS.end());
                return Err(Failure::new(
                    Exit::Usage,
                    format!("`progress_ms` is {millis}, and may be {least} to {most}"),
                ));
            }
            wish.progress_every = Duration::from_millis(millis);
        }
        Ok(wish)
    }
}
