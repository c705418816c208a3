//! What can be typed. The texts here are the manual.

#![expect(clippy::doc_markdown, reason = "read on a terminal, where backticks are noise")]

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// One verified copy of a model per node.
#[derive(Debug, Parser)]
#[command(name = "larder", version, max_term_width = 100, after_help = super::exit::TABLE)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub common: Common,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Common {
    /// Directory of the store [default: $XDG_CACHE_HOME/larder, else ~/.cache/larder]
    #[arg(long, global = true, env = "LARDER_STORE", value_name = "DIR", hide_env_values = true)]
    pub store: Option<PathBuf>,
    /// Answers and events as JSON on stdout, one object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Only data and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Say more on stderr; twice for every request (or set LARDER_LOG to a tracing filter)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring models here; nothing moves that is already here
    Prefetch(Prefetch),
    /// List models: source, version, files, size, state, last used
    Ls,
    /// Show a model's files: digests, origin versions, checksums, what is shared
    Inspect {
        /// Source URI, or the first digits of a model's digest
        model: String,
    },
    /// Print a directory with the model's files, ordinary and read-only
    Path {
        /// Source URI, or the first digits of a model's digest
        model: String,
    },
    /// Write a copy of a model into a directory of your own (reflinks where the file system can)
    Export {
        /// Source URI, or the first digits of a model's digest
        model: String,
        /// Where to; absent or empty
        directory: PathBuf,
        /// Link to the store's own read-only files instead of copying them
        #[arg(long)]
        hard_link: bool,
    },
    /// Hash what is on disk again; report what is damaged, or fetch it again
    Verify(Verify),
    /// Forget a model; bytes go when no other model needs them
    Rm {
        /// Source URIs, or first digits of models' digests
        #[arg(required = true)]
        models: Vec<String>,
    },
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// `larder prefetch`.
#[derive(Debug, Args)]
pub struct Prefetch {
    /// s3://bucket/prefix/, gs://bucket/prefix/, file:///dir or https://host/file; prefix or one object
    #[arg(required = true, value_name = "SOURCE")]
    pub sources: Vec<String>,
    /// Only files that match; `*.json` matches in any directory, `a/*.json` from the top
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Not the files that match
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
    /// Return only when the bytes would survive a power cut
    #[arg(long)]
    pub sync: bool,
    /// How to reach the origin.
    #[command(flatten)]
    pub origin: Origin,
}

/// How to reach an origin, beyond what the environment says.
#[derive(Debug, Args, Clone)]
pub struct Origin {
    /// Send no credentials
    #[arg(long)]
    pub anonymous: bool,
    /// Agree to pay for the requests and the traffic (S3)
    #[arg(long)]
    pub requester_pays: bool,
    /// Region of the bucket (S3) [default: what AWS tools would use]
    #[arg(long, value_name = "NAME")]
    pub region: Option<String>,
    /// Another endpoint [default: AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, profile; STORAGE_EMULATOR_HOST]
    #[arg(long, value_name = "URL")]
    pub endpoint_url: Option<String>,
}

/// `larder verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Source URI or digits of a digest [default: everything]
    pub model: Option<String>,
    /// Fetch damaged files again
    #[arg(long)]
    pub repair: bool,
    /// How to reach the origin, for --repair.
    #[command(flatten)]
    pub origin: Origin,
}
