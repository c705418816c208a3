//! The settings of `larder daemon`: one TOML file, the environment over it, `--store` over both.
//!
//! All of them stand in one table, [`SETTINGS`], from which the manual, the example file, `--check`
//! and the messages come. Whatever is wrong is said in one go, because whoever changes the settings
//! of a cluster sees the answer minutes later. Nothing here starts anything or asks anybody.

mod document;
mod load;
mod policy;
mod prefetch;
mod problem;
mod setting;
mod sources;
mod suggest;
#[cfg(test)]
mod tests;
mod told;
mod value;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::load::{DEFAULT_PATH, FILE_LEN_MAX, Loaded, SetBy};
pub use self::policy::{Caller, Rule};
pub use self::prefetch::{Prefetch, Refused};
pub use self::setting::{SETTINGS, Setting, example};
use crate::domain::Source;
use crate::report::Failure;

/// What the daemon runs by. Every field is one row of [`SETTINGS`], with its form and its reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Everything larder keeps; absolute.
    pub store: PathBuf,
    /// Where pods ask; absolute, at most 107 bytes.
    pub socket: PathBuf,
    /// Where models are pinned and removed; absolute, at most 107 bytes, another than `socket`.
    pub admin_socket: PathBuf,
    /// Where metrics and health are served.
    pub listen: Option<SocketAddr>,
    /// Prefixes of the sources that may be asked for, in the words of [`Source`]'s text; an empty
    /// list allows none. [`Config::allows`] compares.
    pub sources: Vec<String>,
    /// Percent of the file system in use at which eviction begins; 2 to 99.
    pub high_watermark: u8,
    /// Percent at which it ends; 1 to 98, below `high_watermark`.
    pub low_watermark: u8,
    /// How long the origin's last answer counts; zero to a day.
    pub recheck: Duration,
    /// Send no credentials.
    pub anonymous: bool,
    /// Agree to pay for requests and traffic (S3).
    pub requester_pays: bool,
    /// Region of the buckets (S3).
    pub region: Option<String>,
    /// Another server than Amazon's or Google's. Holds no user name and no password.
    pub endpoint_url: Option<String>,
    /// Bytes per second that are read again to find damage; 0 for none.
    pub scrub_rate: u64,
    /// How long stopping may take; 1 s to 10 min.
    pub stop_within: Duration,
    /// The kubelet's directory; absolute.
    pub kubelet_dir: PathBuf,
    /// Where models are mounted, if they are.
    pub mount: Option<MountAt>,
    /// How long a read of the mount waits for bytes that do not arrive; 1 s to 1 h.
    pub read_timeout: Duration,
    /// The name of this node in Kubernetes, at most 253 bytes, if it is one.
    pub node: Option<String>,
    /// Who may ask for what; where there are none, everybody for everything that `sources` allows.
    pub policy: Vec<Rule>,
    /// A tracing filter, which compiles.
    pub log: String,
    /// How lines of the log look.
    pub log_format: LogFormat,
    /// What to have before anybody asks; each of them allowed by `sources`.
    pub prefetch: Vec<Prefetch>,
}

/// Where the mount comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountAt {
    /// The daemon mounts here; absolute.
    Directory(PathBuf),
    /// The keeper that listens here has it; absolute, at most 107 bytes.
    Keeper(PathBuf),
}

/// How lines of the log look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    /// As it stands in the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            store: "/var/lib/larder".into(),
            socket: "/run/larder/larder.sock".into(),
            admin_socket: "/run/larder-admin/larder.sock".into(),
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 9464))),
            sources: ["s3://", "gs://", "https://"].map(str::to_owned).to_vec(),
            high_watermark: 80,
            low_watermark: 70,
            recheck: Duration::from_secs(10),
            anonymous: false,
            requester_pays: false,
            region: None,
            endpoint_url: None,
            scrub_rate: 32 << 20,
            stop_within: Duration::from_secs(25),
            kubelet_dir: "/var/lib/kubelet".into(),
            mount: None,
            read_timeout: Duration::from_mins(5),
            node: None,
            policy: Vec::new(),
            log: "info".into(),
            log_format: LogFormat::Text,
            prefetch: Vec::new(),
        }
    }
}

/// A tracing filter that compiles, as the setting `log` takes it.
#[must_use]
pub fn log_filter(text: &str) -> Option<String> {
    value::filter(value::Raw::Text(text)).ok()
}

/// A duration as settings have it, up to a day: `30s`, `5m`.
///
/// # Errors
/// What is wanted instead.
pub fn duration(text: &str) -> Result<Duration, String> {
    value::duration(value::Raw::Text(text), Duration::ZERO..=Duration::from_hours(24))
        .map_err(|_| "want a duration from 0s to 24h, such as 30s, 5m or 2h".to_owned())
}

impl Config {
    /// Reads the settings: defaults, then the file, then the environment, then `--store`. Without a
    /// path it is [`DEFAULT_PATH`], which may be absent. `environment` looks a variable up; an empty
    /// one counts as not set.
    ///
    /// Reads one file of at most [`FILE_LEN_MAX`] bytes, so it may be called again for a list of
    /// prefetches that changed.
    ///
    /// What is wrong with an entry of the prefetch list costs that entry alone: it is in
    /// [`Loaded::refused`], and [`Loaded::check`] says it.
    ///
    /// # Errors
    /// Everything that is wrong, one line each, with where it stands and what is wanted
    /// ([`Exit::Usage`](crate::report::Exit::Usage)).
    pub fn load(
        path: Option<&Path>,
        store_flag: Option<&Path>,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Loaded, Failure> {
        load::load(path, Path::new(DEFAULT_PATH), store_flag, environment)
    }

    /// Whether `sources` allows to ask for this. A prefix that does not end in `/` covers itself and
    /// what follows behind a `/`: `s3://mod` does not cover `s3://models/`. A source with `..` in it
    /// is never allowed, as servers and file systems take it for the way out of a prefix.
    #[must_use]
    pub fn allows(&self, source: &Source) -> bool {
        sources::allow(&self.sources, source)
    }
}
