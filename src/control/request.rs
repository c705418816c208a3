//! What is asked, read with limits.

use std::time::Duration;

use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::api::{Api, Rights};
use crate::cache::named::{At, Name, Verb};
use crate::cache::{Endpoints, LeaseWish, Owner, Wish};
use crate::domain::Source;
use crate::domain::endpoint::endpoint_of;
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
    /// The server that it is to be from: of a daemon that has another one it is refused.
    #[serde(default)]
    endpoint_url: Option<String>,
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
    /// The server that it came from, where not the daemon's own.
    #[serde(default)]
    endpoint_url: Option<String>,
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
    /// The server that it came from, where not the daemon's own.
    #[serde(default)]
    endpoint_url: Option<String>,
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
    endpoint_url: Option<String>,
    #[serde(default)]
    pub repair: bool,
}

impl ModelBody {
    /// The model that is meant.
    ///
    /// # Errors
    /// [`Exit::Usage`].
    pub fn name(&self, verb: Verb, own: &Endpoints) -> Result<Name, Failure> {
        name(verb, &self.model, own, self.endpoint_url.as_deref(), &self.include, &self.exclude)
    }
}

impl RemoveBody {
    /// The models that are meant.
    ///
    /// # Errors
    /// [`Exit::Usage`].
    pub fn names(&self, own: &Endpoints) -> Result<Vec<Name>, Failure> {
        let url = self.endpoint_url.as_deref();
        self.models.iter().map(|model| name(Verb::Rm, model, own, url, &self.include, &self.exclude)).collect()
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
    pub fn name(&self, own: &Endpoints) -> Result<Option<Name>, Failure> {
        let Some(model) = &self.model else {
            if self.include.is_empty() && self.exclude.is_empty() {
                return Ok(None);
            }
            return Err(Failure::new(Exit::Usage, "`include` and `exclude` go with a `model`"));
        };
        let url = self.endpoint_url.as_deref();
        name(Verb::Verify, model, own, url, &self.include, &self.exclude).map(Some)
    }
}

/// One URI at two servers is two models, and a daemon brings those of its own.
fn check_endpoint(source: &Source, asked: Option<&str>, own: &Endpoints) -> Result<(), Failure> {
    let Some(asked) = asked.map(Endpoints::at) else { return Ok(()) };
    asked.check(source)?;
    let (theirs, ours) = (asked.origin(source), own.origin(source));
    if theirs == ours {
        return Ok(());
    }
    let url = |origin: &str| endpoint_of(origin).unwrap_or_default();
    Err(Failure::hinted(
        Exit::Usage,
        format!("`{source}` comes from `{}` here, and not from `{}`", url(&ours), url(&theirs)),
        "`endpoint_url` in the daemon's configuration says where models come from; for another server, name another store with --store",
    ))
}

/// Reads a name with its globs. Of a daemon that reaches buckets at `own` servers it is of those, unless
/// another is said.
pub fn name(
    verb: Verb,
    model: &str,
    own: &Endpoints,
    endpoint_url: Option<&str>,
    include: &[String],
    exclude: &[String],
) -> Result<Name, Failure> {
    check_count(include, exclude)?;
    let at = match endpoint_url {
        // The one who asks may have another usual server.
        Some(url) => At::given(url, Some(own).filter(|own| own.have(url))),
        None => At::usual(own),
    };
    Name::parse(verb, model, &at, include, exclude)
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
        check_endpoint(&source, self.endpoint_url.as_deref(), api.cache.endpoints())?;
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
