//! What can be typed. The texts here are the manual.

#![expect(clippy::doc_markdown, reason = "read on a terminal, where backticks are noise")]

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// Brings models from object storage into a store on this machine, verifies every byte, and hands
/// them out as ordinary directories
#[derive(Debug, Parser)]
#[command(name = "larder", version, max_term_width = 100, after_help = after_help())]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub common: Common,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

fn after_help() -> String {
    let first = "\
First steps:
  larder prefetch s3://BUCKET/llama/                  bring a model here
  larder path s3://BUCKET/llama/                      where its files are
  vllm serve \"$(larder path s3://BUCKET/llama/)\"      use them";
    format!("{first}\n\n{}", crate::report::TABLE)
}

/// Options of every command. LARDER_STORE is read elsewhere: an option that clap has from the
/// environment is shown in each usage error as if it were needed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Common {
    /// The store: the directory that holds everything larder keeps [env: LARDER_STORE] [default:
    /// $XDG_CACHE_HOME/larder or ~/.cache/larder]
    #[arg(long, global = true, value_name = "DIR")]
    pub store: Option<PathBuf>,
    /// Print results and progress as JSON on stdout, one object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Print nothing but data and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more on stderr; -vv logs every request [env: LARDER_LOG, a tracing filter]
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring models into the store; what is already here does not move again
    Prefetch(Prefetch),
    /// List what is in the store: source, model, files, size, state, last used
    Ls,
    /// Show one model's files: what is here, digests, origin versions, checksums
    Inspect {
        /// Source as given to prefetch, or 6 or more first digits of the model's digest
        model: String,
        /// What else it is called.
        #[command(flatten)]
        flags: NameFlags,
    },
    /// Print the directory with a model's files, which are ordinary and read-only
    Path {
        /// Source as given to prefetch, or 6 or more first digits of the model's digest
        model: String,
        /// What else it is called.
        #[command(flatten)]
        flags: NameFlags,
    },
    /// Write a copy of a model that is yours to change into another directory
    Export {
        /// Source as given to prefetch, or 6 or more first digits of the model's digest
        model: String,
        /// What else it is called.
        #[command(flatten)]
        flags: NameFlags,
        /// Where to: a directory that is empty or does not exist yet
        directory: PathBuf,
        /// Link to the store's own read-only files instead of copying them
        #[arg(long)]
        hard_link: bool,
    },
    /// Hash models on disk again and report what is damaged; --repair mends it
    Verify(Verify),
    /// Forget models; bytes that no other model needs are deleted
    Rm {
        /// Sources as given to prefetch, or 6 or more first digits of models' digests
        #[arg(required = true, value_name = "MODEL")]
        models: Vec<String>,
        /// What else they are called.
        #[command(flatten)]
        flags: NameFlags,
        /// What to do while another process owns the store.
        #[command(flatten)]
        turn: Turn,
    },
    /// Keep models: while larder's daemon evicts others, it leaves these
    Pin {
        /// Sources as given to prefetch, or 6 or more first digits of models' digests
        #[arg(required = true, value_name = "MODEL")]
        models: Vec<String>,
        /// What else they are called.
        #[command(flatten)]
        flags: NameFlags,
        /// What to do while another process owns the store.
        #[command(flatten)]
        turn: Turn,
    },
    /// Let models be evicted again, whoever pinned them
    Unpin {
        /// Sources as given to prefetch, or 6 or more first digits of models' digests
        #[arg(required = true, value_name = "MODEL")]
        models: Vec<String>,
        /// What else they are called.
        #[command(flatten)]
        flags: NameFlags,
        /// What to do while another process owns the store.
        #[command(flatten)]
        turn: Turn,
    },
    /// End leases whose owners are gone: their models may be evicted, unless something else uses them
    Release {
        /// Leases as `larder status` shows them, or owners: `pod:UID`, `process:PID`, `connection:N`, or
        /// namespace and name of a pod, `team/server-0`
        #[arg(required = true, value_name = "LEASE|OWNER")]
        leases: Vec<String>,
        /// What to do while another process owns the store.
        #[command(flatten)]
        turn: Turn,
    },
    /// Show what larder's daemon does: what moves, the disk, who uses what, counts since its start
    Status(Status),
    /// Serve models to the pods and people of this node, until SIGTERM
    Daemon(Daemon),
    /// Show the store's models as a read-only file system at a directory, until Ctrl-C; what other
    /// commands bring meanwhile appears there while it arrives
    Mount(Mount),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `larder status`. LARDER_SOCKET is read elsewhere, as LARDER_STORE is.
#[derive(Debug, Args)]
pub struct Status {
    /// Show it anew every second, until Ctrl-C, which exits with 130
    #[arg(short, long)]
    pub watch: bool,
    /// Where the daemon listens [env: LARDER_SOCKET] [default: what the store's lock names, else
    /// /run/larder/larder.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
}

/// `larder daemon`.
#[derive(Debug, Args)]
pub struct Daemon {
    /// The settings [default: /etc/larder/larder.toml if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the settings, print those in force and where each was set, and exit
    #[arg(long)]
    pub check: bool,
}

/// `larder mount`.
#[derive(Debug, Args)]
pub struct Mount {
    /// Where: a directory, made where there is none
    pub directory: PathBuf,
    /// How to reach the origins.
    #[command(flatten)]
    pub origin: Origin,
}

/// The globs that a model was pulled with: they are part of its name.
#[derive(Debug, Args, Clone, Default)]
pub struct Globs {
    /// The same --include as given to prefetch: a selection of a source's files is a model of its own;
    /// may be repeated
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// The same --exclude as given to prefetch; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
}

/// The rest of a name, beside its source.
#[derive(Debug, Args, Clone, Default)]
pub struct NameFlags {
    /// The globs.
    #[command(flatten)]
    pub globs: Globs,
    /// The server that it came from, where not from Amazon's or Google's: one URI at two servers is two
    /// models [env: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, STORAGE_EMULATOR_HOST; else the profile's]
    #[arg(long, value_name = "URL")]
    pub endpoint_url: Option<String>,
}

/// `larder prefetch`.
#[derive(Debug, Args)]
pub struct Prefetch {
    /// s3://bucket/prefix/, gs://bucket/prefix/, file:///directory or https://host/file; with s3
    /// and gs everything below a prefix, or one object
    #[arg(required = true, value_name = "SOURCE")]
    pub sources: Vec<String>,
    /// Take only files that match: *.json in any directory, a/*.json from the top; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Leave out files that match, also those that --include takes; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Return only when the files would survive a power cut
    #[arg(long)]
    pub sync: bool,
    /// Pin what was brought, as `larder pin` does
    #[arg(long)]
    pub pin: bool,
    /// What to do while another process owns the store.
    #[command(flatten)]
    pub turn: Turn,
    /// How long an origin is waited for.
    #[command(flatten)]
    pub retry: Retry,
    /// How to reach the origin.
    #[command(flatten)]
    pub origin: Origin,
}

/// What to do while another process owns the store.
#[derive(Debug, Args, Clone, Copy)]
pub struct Turn {
    /// Fail (75) where another command writes to the store, rather than wait for its end
    #[arg(long)]
    pub no_wait: bool,
}

/// How long an origin is waited for.
#[derive(Debug, Args, Clone, Copy)]
pub struct Retry {
    /// How long to ask an origin again that goes away under a pull, such as 30s or 2h; one that was
    /// never reached is given up within seconds [default: 5m]
    #[arg(long, value_name = "DURATION", value_parser = crate::config::duration)]
    pub retry_for: Option<Duration>,
}

impl Prefetch {
    /// The globs, as part of the name of what was brought.
    #[must_use]
    pub fn globs(&self) -> Globs {
        Globs { include: self.include.clone(), exclude: self.exclude.clone() }
    }
}

/// How to reach an origin, beyond what the environment says.
#[derive(Debug, Args, Clone)]
#[command(next_help_heading = "Access to the source (by default as the AWS and Google tools have it)")]
pub struct Origin {
    /// Send no credentials, for public buckets
    #[arg(long)]
    pub anonymous: bool,
    /// Agree to pay for requests and traffic, for requester-pays buckets (S3)
    #[arg(long)]
    pub requester_pays: bool,
    /// Region of the bucket (S3) [env: AWS_REGION; else the profile's]
    #[arg(long, value_name = "NAME")]
    pub region: Option<String>,
    /// Another server than Amazon's or Google's, such as MinIO or an emulator [env:
    /// AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, STORAGE_EMULATOR_HOST; else the profile's]
    #[arg(long, value_name = "URL")]
    pub endpoint_url: Option<String>,
}

/// `larder verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Source as given to prefetch, or 6 or more first digits of the model's digest [default: every
    /// model]
    pub model: Option<String>,
    /// The globs that it was pulled with.
    #[command(flatten)]
    pub globs: Globs,
    /// Fetch what is damaged or missing again
    #[arg(long)]
    pub repair: bool,
    /// What to do while another process owns the store.
    #[command(flatten)]
    pub turn: Turn,
    /// How long an origin is waited for, for --repair.
    #[command(flatten)]
    pub retry: Retry,
    /// How to reach the origin, for --repair.
    #[command(flatten)]
    pub origin: Origin,
}
