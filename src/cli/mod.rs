//! The command line: parse, dispatch, and say how it went.

mod allocator;
mod args;
mod console;
mod daemon;
mod models;
mod mount;
mod names;
mod owner;
mod peer;
mod pins;
mod prefetch;
mod pull;
mod release;
mod signals;
mod status;
mod summary;
mod verify;
mod watch;

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory as _, Parser as _};

use self::args::{Cli, Command, Common, NameFlags};
use self::console::Console;
use self::names::Names;
use crate::cache::named::Verb;
use crate::config::log_filter;
use crate::fetch::Cancel;
pub use crate::report::TABLE as EXIT_CODES;
use crate::report::{Exit, Failure, output, tell_panics};

/// Threads that wait for the disk. More would only queue in the kernel.
const BLOCKING_THREADS_MAX: usize = 16;
/// Threads that wait for the network: hashing and writing happen elsewhere.
const ASYNC_THREADS_MAX: usize = 4;

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    allocator::settle();
    // A file that may not grow is an error of the write, and no reason to be killed.
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default());
    tell_panics(|sentence| output::stderr(format!("error: {sentence}\n").as_bytes()));
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            signals::listen();
            let console = Console { json: false, quiet: false };
            if error.use_stderr() {
                console.usage(&error.render());
                return ExitCode::from(console.end(Exit::Usage) as u8);
            }
            // Help and version are no errors.
            console.printed(error.print());
            return ExitCode::from(console.end(Exit::Done) as u8);
        }
    };
    let console = Console { json: cli.common.json, quiet: cli.common.quiet };
    // The daemon's log is one of its settings.
    let logs_itself = match &cli.command {
        Command::Daemon(args) => !args.check,
        Command::Mount(_) => true,
        _ => false,
    };
    if !logs_itself {
        signals::listen();
        start_log(&cli.common);
    }
    // What the hook has told is a defect like any other.
    let ran = std::panic::catch_unwind(AssertUnwindSafe(|| run(console, &cli))).unwrap_or(Ok(Exit::Defect));
    let exit = ran.unwrap_or_else(|failure| {
        console.failure(&failure);
        failure.exit
    });
    ExitCode::from(console.end(exit) as u8)
}

fn run(console: Console, cli: &Cli) -> Result<Exit, Failure> {
    let store = || store_directory(&cli.common);
    match &cli.command {
        Command::Prefetch(args) => {
            let directory = store()?;
            with_runtime(async |cancel| prefetch::run(console, &directory, args, cancel).await)
        }
        Command::Verify(args) => {
            let directory = store()?;
            with_runtime(async |cancel| verify::run(console, &directory, args, cancel).await)
        }
        Command::Ls => models::ls(console, &store()?, &names(&NameFlags::default())?),
        Command::Inspect { model, flags } => models::inspect(console, &store()?, &names(flags)?, model),
        Command::Path { model, flags } => models::path(console, &store()?, &names(flags)?.name(Verb::Path, model)?),
        Command::Export { model, flags, directory: target, hard_link } => {
            models::export(console, &store()?, &names(flags)?.name(Verb::Export, model)?, target, *hard_link)
        }
        Command::Rm { models: names, flags, turn } => {
            let directory = store()?;
            with_runtime(async |cancel| models::rm(console, &directory, names, flags, *turn, cancel).await)
        }
        Command::Pin { models: names, flags, turn } => {
            let directory = store()?;
            with_runtime(async |cancel| pins::run(console, &directory, names, flags, true, *turn, cancel).await)
        }
        Command::Unpin { models: names, flags, turn } => {
            let directory = store()?;
            with_runtime(async |cancel| pins::run(console, &directory, names, flags, false, *turn, cancel).await)
        }
        Command::Release { leases, turn } => {
            let directory = store()?;
            with_runtime(async |cancel| release::run(console, &directory, leases, *turn, cancel).await)
        }
        // Of a daemon whose settings say where its store is.
        Command::Status(args) => status::run(console, store().ok().as_deref(), args),
        Command::Daemon(args) => daemon::run(console, cli.common.store.as_deref(), args),
        Command::Mount(args) => mount::run(console, &store()?, args, cli.common.verbose),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "larder", &mut script);
            console.data(&String::from_utf8_lossy(&script));
            Ok(Exit::Done)
        }
    }
}

fn store_directory(common: &Common) -> Result<PathBuf, Failure> {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let absolute = |name: &str| named(name).filter(|path| path.is_absolute());
    let default =
        || Some(absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?.join("larder"));
    let none =
        || Failure::new(Exit::Usage, "neither --store, LARDER_STORE, XDG_CACHE_HOME nor HOME says where the store is");
    common.store.clone().or_else(|| named("LARDER_STORE")).or_else(default).ok_or_else(none)
}

/// How models are named, for a command that then only looks: Ctrl-C ends it as it would any other.
fn names(flags: &NameFlags) -> Result<Names, Failure> {
    let runtime = crate::daemon::runtime::start("larder", 1, 1)?;
    #[expect(clippy::disallowed_methods, reason = "the one entry into the runtime")]
    let names = runtime.block_on(Names::of(flags));
    runtime.shutdown_background();
    Ok(names)
}

/// Runs a command that needs the network; the first Ctrl-C or SIGTERM ends it cleanly, the
/// second at once.
fn with_runtime(command: impl AsyncFnOnce(&Cancel) -> Result<Exit, Failure>) -> Result<Exit, Failure> {
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    let runtime = crate::daemon::runtime::start("larder", cores.clamp(1, ASYNC_THREADS_MAX), BLOCKING_THREADS_MAX)?;
    let entered = || {
        #[expect(clippy::disallowed_methods, reason = "the one entry into the runtime")]
        runtime.block_on(command(signals::cancel()))
    };
    let ended = std::panic::catch_unwind(AssertUnwindSafe(entered));
    // Whatever still waits for the disk is background work that may be cut off anywhere. A runtime that
    // is dropped would wait for it.
    runtime.shutdown_background();
    ended.unwrap_or(Ok(Exit::Defect))
}

fn start_log(common: &Common) {
    use tracing_subscriber::EnvFilter;
    let level = match common.verbose {
        0 => "larder=warn",
        1 => "larder=info,warn",
        _ => "larder=trace,info",
    };
    let named = std::env::var("LARDER_LOG").ok().and_then(|text| log_filter(&text));
    let filter = EnvFilter::new(named.as_deref().unwrap_or(level));
    let color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
        && std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| console::Log)
        .log_internal_errors(false)
        .with_ansi(color)
        .with_target(false)
        .init();
}
