//! `cargo run --release --example quickstart`: larder in a few seconds, on this machine alone.
//!
//! Starts an S3 server with signatures on, puts a small sharded model into it, and types what one
//! types on a first day: a prefetch; a second one, which moves nothing; one on another store that
//! is killed half-way and goes on where it was; then `ls`, `path` and `verify`.
//!
//! In what it prints, `$` starts a command and `#` what this program saw from outside: the
//! server's own count of bytes, the files on disk. All else is larder's own output. Where larder
//! does not do what is told here, the program says so and fails. It leaves nothing behind.
//!
//! Cargo builds no binary for an example, so this one is both: started as `larder`, it is larder.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use larder_origins::{S3Server, SampleModel};

const SOURCE: &str = "s3://models/llama-sample/";
/// Pulls that may be done before they are killed, until the story gives up.
const KILL_ATTEMPTS_MAX: u32 = 5;

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| name == "larder") {
        return larder::cli::main();
    }
    match quickstart() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("quickstart: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Sets the stage, has the story told on it, and clears it away.
fn quickstart() -> Result {
    let _listening = heed_interrupts()?;
    let scratch = tempfile::Builder::new().prefix("larder-quickstart-").tempdir();
    let scratch = scratch.map_err(|e| format!("cannot make a temporary directory: {e}"))?;
    let server = S3Server::start().map_err(|e| format!("the S3 server does not start: {e}"))?;
    let model = SampleModel::new(1, 3, 32 << 20);
    for (name, bytes) in &model.files {
        let key = format!("llama-sample/{name}");
        server.put("models", &key, bytes).map_err(|e| format!("cannot upload {key}: {e}"))?;
    }
    let told = story(&server, &model, scratch.path());
    drop(server);
    let cleared = scratch.close().map_err(|e| format!("cannot clean up: {e}"));
    told?;
    cleared?;
    say("\n# Server and stores are gone. Next, a bucket of your own, with the credentials of your AWS tools:")?;
    say("#   cargo install --path . && larder prefetch s3://BUCKET/PREFIX/")
}

fn story(server: &S3Server, model: &SampleModel, scratch: &Path) -> Result {
    let (files, len) = (model.files.len(), model.len());
    say(&format!("# {SOURCE} has {files} files, {}, on an S3 server at {}.", mib(len), server.url()))?;
    say("# AWS_ENDPOINT_URL and its siblings lead larder there, as they would lead any AWS tool.")?;
    let node = Node::new("node-1", server, scratch)?;
    let sent = node.prefetch()?;
    say(&format!("# The server sent {}. Once more:", mib(sent)))?;
    let sent = node.prefetch()?;
    if sent > 0 {
        return Err(format!("the server sent {sent} bytes of a model that was here").into());
    }
    say("# The server sent nothing.")?;

    say("\n# Another node, where the first pull dies half-way:")?;
    let node = Node::new("node-2", server, scratch)?;
    let sent = node.killed_half_way(len)?;
    say(&format!("# Killed when the server had sent {}.", mib(sent)))?;
    node.larder(&["ls"])?;
    let sent = node.prefetch()?;
    if sent >= len {
        return Err(format!("the server sent {sent} bytes: nothing had survived the kill").into());
    }
    say(&format!("# The server sent {} this time, not {}: the rest had survived the kill.", mib(sent), mib(len)))?;

    say("\n# The model is a directory that any program can read:")?;
    node.larder(&["ls"])?;
    let directory = node.larder(&["path", SOURCE])?;
    show_identical(Path::new(directory.trim_end()), model)?;
    node.larder(&["verify"])?;
    Ok(())
}

/// A node with a store of its own, in reach of the server.
struct Node<'a> {
    server: &'a S3Server,
    home: &'a Path,
    store: PathBuf,
}

impl<'a> Node<'a> {
    fn new(name: &str, server: &'a S3Server, home: &'a Path) -> Result<Self> {
        let store = home.join(name);
        say(&format!("$ export LARDER_STORE={}", store.display()))?;
        Ok(Self { server, home, store })
    }

    /// This program again, as larder, in an environment where nothing of the user's interferes.
    fn command(&self, args: &[&str]) -> Result<Command> {
        if INTERRUPTED.load(Relaxed) {
            return Err("interrupted".into());
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.arg0("larder").args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env_clear().envs(self.server.environment()).env("HOME", self.home).env("LARDER_STORE", &self.store);
        Ok(command)
    }

    /// Types a command, shows what it prints, and returns its data.
    fn larder(&self, args: &[&str]) -> Result<String> {
        let typed = format!("larder {}", args.join(" "));
        say(&format!("$ {typed}"))?;
        let output = self.command(args)?.output().map_err(|e| format!("cannot start `{typed}`: {e}"))?;
        let data = String::from_utf8(output.stdout)?;
        say(format!("{data}{}", String::from_utf8_lossy(&output.stderr)).trim_end())?;
        if !output.status.success() {
            return Err(format!("`{typed}` ended with {}", output.status).into());
        }
        Ok(data)
    }

    /// Prefetches; says how many bytes of objects the server sent for it.
    fn prefetch(&self) -> Result<u64> {
        let before = settled(self.server);
        self.larder(&["prefetch", SOURCE])?;
        Ok(self.server.bytes_sent() - before)
    }

    /// Lets a pull begin and kills it on its way; says how many bytes the server had sent.
    fn killed_half_way(&self, model_len: u64) -> Result<u64> {
        say(&format!("$ larder prefetch {SOURCE} &\n$ kill -9 $!"))?;
        for _ in 0..KILL_ATTEMPTS_MAX {
            let before = settled(self.server);
            let mut child = self.command(&["prefetch", SOURCE])?.spawn()?;
            let sent = || self.server.bytes_sent() - before;
            while sent() < model_len * 2 / 5 && child.try_wait()?.is_none() {
                std::thread::sleep(Duration::from_millis(1));
            }
            child.kill()?;
            let sent = sent();
            let output = child.wait_with_output()?;
            if output.status.signal() == Some(libc::SIGKILL) {
                return Ok(sent);
            }
            if !output.status.success() {
                return Err(format!("the pull to kill failed: {}", String::from_utf8_lossy(&output.stderr)).into());
            }
            fs::remove_dir_all(&self.store)?;
        }
        Err(format!("{KILL_ATTEMPTS_MAX} pulls were done before `kill -9` reached them").into())
    }
}

/// The server's count once it stands still: a connection whose peer was killed takes a moment to end.
fn settled(server: &S3Server) -> u64 {
    loop {
        let before = server.bytes_sent();
        std::thread::sleep(Duration::from_millis(20));
        if server.bytes_sent() == before {
            return before;
        }
    }
}

/// Lists a directory that must hold exactly the files that were uploaded.
fn show_identical(directory: &Path, model: &SampleModel) -> Result {
    let mut files = BTreeMap::new();
    read_tree(directory, directory, &mut files).map_err(|e| format!("cannot read {}: {e}", directory.display()))?;
    if files != model.files {
        return Err(format!("{} does not hold what was uploaded", directory.display()).into());
    }
    say("# In that directory, byte for byte what was uploaded:")?;
    files.iter().try_for_each(|(name, bytes)| say(&format!("# {:>9} {name}", bytes.len())))
}

fn read_tree(root: &Path, directory: &Path, files: &mut BTreeMap<String, Vec<u8>>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            read_tree(root, &path, files)?;
        } else {
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
            files.insert(name, fs::read(&path)?);
        }
    }
    Ok(())
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C ends larder, as on any terminal, and the story only after cleaning up.
fn heed_interrupts() -> io::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.spawn(async { INTERRUPTED.store(tokio::signal::ctrl_c().await.is_ok(), Relaxed) });
    Ok(runtime)
}

/// Prints a line; a reader that went away is an error, not a panic.
fn say(line: &str) -> Result {
    writeln!(io::stdout().lock(), "{line}").map_err(|e| format!("cannot print: {e}").into())
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
