//! Where buckets are: decided once for a process, because it is a part of what a name means. One URI at
//! two servers is two models.

use aws_config::BehaviorVersion;
use aws_sdk_s3::config::Region;

use super::{Error, transport};
use crate::domain::endpoint::{AMAZON, GOOGLE, canonical, canonical_origin};
use crate::domain::{Scheme, Source};

/// The servers of a process. By default those of Amazon and Google.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    s3: Option<String>,
    gcs: Option<String>,
    /// By a flag or a setting, and not by the environment, which then says the rest too.
    is_given: bool,
}

impl Endpoints {
    /// One server for all buckets.
    #[must_use]
    pub fn at(url: &str) -> Self {
        Self { s3: Some(url.to_owned()), gcs: Some(url.to_owned()), is_given: true }
    }

    /// `given`; else what the tools of the clouds read: `AWS_ENDPOINT_URL_S3`, the `services` section of
    /// the profile, `AWS_ENDPOINT_URL`, the profile's `endpoint_url`; `STORAGE_EMULATOR_HOST`. Reads
    /// files, and asks nobody.
    pub async fn resolve(given: Option<&str>) -> Self {
        match given {
            Some(url) => Self::at(url),
            None => Self { s3: s3_of_environment().await, gcs: emulator(), is_given: false },
        }
    }

    /// The server of S3, where it is not Amazon's own, which is another in each region.
    pub(super) fn s3(&self) -> Option<&str> {
        self.s3.as_deref().filter(|url| *url != AMAZON)
    }

    /// Whether S3 is at a server that a flag or a setting names.
    pub(super) fn is_s3_given(&self) -> bool {
        self.is_given && self.s3().is_some()
    }

    /// The server of GCS, without a `/` at its end.
    pub(super) fn gcs(&self) -> &str {
        self.gcs.as_deref().unwrap_or(GOOGLE).trim_end_matches('/')
    }

    /// The server that somebody has named for buckets of this kind.
    #[must_use]
    pub fn named_for(&self, source: &Source) -> Option<&str> {
        match source.scheme() {
            Scheme::S3 => self.s3.as_deref(),
            Scheme::Gs => self.gcs.as_deref(),
            Scheme::File | Scheme::Https | Scheme::Http => None,
        }
    }

    /// Refuses a server that could be asked for nothing, or has a password in its URL.
    ///
    /// # Errors
    /// [`Error::Settings`].
    pub fn check(&self, source: &Source) -> Result<(), Error> {
        self.named_for(source).map_or(Ok(()), |url| transport::check_endpoint(&source.to_string(), url))
    }

    /// Where a source is, in one word per trust domain: two sources with the same answer are served by
    /// the same origin, so its ETags mean the same thing in both.
    #[must_use]
    pub fn origin(&self, source: &Source) -> String {
        match source.scheme() {
            Scheme::S3 => self.of_s3(),
            Scheme::Gs => self.of_gcs(),
            Scheme::File => "file".to_owned(),
            Scheme::Https | Scheme::Http => format!("{} {}", source.scheme().as_str(), source.authority()),
        }
    }

    /// Whether these servers are where something came from; of what is in no bucket, always.
    #[must_use]
    pub fn are(&self, origin: &str) -> bool {
        match origin.split_once(' ') {
            Some(("s3", _)) => canonical_origin(origin) == self.of_s3(),
            Some(("gs", _)) => canonical_origin(origin) == self.of_gcs(),
            _ => true,
        }
    }

    /// Whether a URL leads to the server that they have for S3 or for GCS.
    #[must_use]
    pub fn have(&self, url: &str) -> bool {
        self.are(&Self::at(url).of_s3()) || self.are(&Self::at(url).of_gcs())
    }

    fn of_s3(&self) -> String {
        format!("s3 {}", canonical(self.s3.as_deref().unwrap_or(AMAZON)))
    }

    fn of_gcs(&self) -> String {
        format!("gs {}", canonical(self.gcs.as_deref().unwrap_or(GOOGLE)))
    }
}

/// The server that the environment names for GCS.
pub(super) fn emulator() -> Option<String> {
    let host = std::env::var("STORAGE_EMULATOR_HOST").ok().filter(|host| !host.is_empty())?;
    Some(if host.contains("://") { host } else { format!("http://{host}") })
}

async fn s3_of_environment() -> Option<String> {
    // With a region and without credentials nobody is asked: not the instance's metadata either.
    let settings = aws_config::defaults(BehaviorVersion::latest()).region(Region::new("none")).no_credentials();
    let settings = settings.load().await;
    let key = aws_types::service_config::ServiceConfigKey::builder()
        .service_id("s3")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build()
        .ok()?;
    let own = settings.service_config().and_then(|config| config.load_config(key));
    own.or_else(|| settings.endpoint_url().map(str::to_owned)).filter(|endpoint| !endpoint.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_uri_at_two_servers_is_two_origins() {
        let origin = |endpoints: &Endpoints, uri: &str| endpoints.origin(&Source::parse(uri).expect(uri));
        let (clouds, own) = (Endpoints::default(), Endpoints::at("http://Minio:80/"));
        for (endpoints, uri, meant) in [
            (&clouds, "s3://b/m/", "s3 https://s3.amazonaws.com"),
            (&own, "s3://b/m/", "s3 http://minio"),
            (&clouds, "gs://b/m/", "gs https://storage.googleapis.com"),
            (&own, "gs://b/m/", "gs http://minio"),
            (&clouds, "https://h:1/f", "https h:1"),
            (&own, "https://h:1/f", "https h:1"),
            (&own, "file:///m", "file"),
        ] {
            assert_eq!(origin(endpoints, uri), meant);
            assert!(endpoints.are(meant), "{meant}");
        }
        assert!(!own.are("s3 https://s3.amazonaws.com") && !clouds.are("gs http://minio"));
        let regional = Endpoints::at("https://s3.eu-central-1.amazonaws.com");
        assert_eq!(origin(&regional, "s3://b/m/"), origin(&clouds, "s3://b/m/"));
    }

    #[test]
    fn what_is_no_server_is_refused_where_it_matters() {
        let bad = Endpoints::at("http://us3r:p4ss@h");
        let check = |uri: &str| bad.check(&Source::parse(uri).expect(uri));
        assert!(check("s3://b/m/").is_err() && check("gs://b/m/").is_err());
        assert!(check("file:///m").is_ok() && check("https://h/f").is_ok());
        assert!(Endpoints::default().check(&Source::parse("s3://b/").expect("a source")).is_ok());
    }
}
