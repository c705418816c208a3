//! `larder-keeper`: makes the FUSE mount of larder and keeps it while the daemon comes and goes.
//!
//! This is all of larder that runs with privileges. It knows no network and one peer.

mod args;
mod backing;
mod bind;
mod connection;
mod log;
mod models;
mod mount;
mod mountinfo;
mod mounts;
mod own;
mod peer;
mod place;
mod socket;
mod sys;

use std::io::Write as _;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use args::{Command, Settings};
use larder_keeper::protocol::Refusal;
use larder_keeper::{Errands, client};
use log::say;
use peer::Desk;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::umask;

const EXIT_USAGE: u8 = 64;
const EXIT_UNAVAILABLE: u8 = 69;
const EXIT_KERNEL: u8 = 71;
const EXIT_BUSY: u8 = 75;
/// In all, from the connection to the answer.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    log::tell_panics();
    let settings = match args::parse(std::env::args_os().skip(1).collect(), &|name| std::env::var_os(name)) {
        Ok(Command::Keep(settings)) => settings,
        Ok(Command::Probe(settings)) => return probe(&settings),
        Ok(Command::Print(text)) => {
            let mut stdout = std::io::stdout();
            return match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                    say(&format!("stdout cannot be written: {error}"));
                    ExitCode::from(EXIT_KERNEL)
                }
                _ => ExitCode::SUCCESS,
            };
        }
        Err(problems) => {
            problems.iter().for_each(|problem| say(problem));
            say("`larder-keeper --help` shows what can be given");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match keep(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(refusal) => {
            say(&refusal.sentence);
            let is_busy = refusal.errno == Errno::ADDRINUSE.raw_os_error();
            ExitCode::from(if is_busy { EXIT_BUSY } else { EXIT_KERNEL })
        }
    }
}

/// Asks the keeper for something that takes it a connection, a thread and a walk, and no daemon. A
/// refusal is an answer, too: another keeper would refuse as well, and cost the node its mount.
fn probe(settings: &Settings) -> ExitCode {
    let errands = Errands::new(&settings.socket);
    let path = settings.bind_below.first().map(|directory| directory.join("larder-keeper-probe")).unwrap_or_default();
    let (sender, answered) = mpsc::channel();
    thread::spawn(move || sender.send(errands.there(path)));
    let problem = match answered.recv_timeout(PROBE_TIMEOUT) {
        Ok(Err(error)) if client::refusal(&error).is_none() => error.to_string(),
        Ok(_) => return ExitCode::SUCCESS,
        Err(_) => format!("no answer within {} s", PROBE_TIMEOUT.as_secs()),
    };
    say(&format!("no keeper answers at `{}`: {problem}", settings.socket.display()));
    ExitCode::from(EXIT_UNAVAILABLE)
}

/// Mounts, serves until told to end, and leaves no mount and no socket behind.
fn keep(settings: Settings) -> Result<(), Refusal> {
    umask(Mode::WGRP | Mode::WOTH);
    let told_to_end =
        sys::told_to_end().map_err(|error| Refusal::new(Errno::IO, format!("cannot wait for signals: {error}")))?;
    let (directory, socket) = (settings.mount.clone(), settings.socket.clone());
    socket::nobody_listens(&socket)?;
    own::give(&settings.own, settings.peer_uid)?;
    mount::detach(&directory)?;
    let mount = mount::mount(&directory)?;
    let served = socket::Own::listen(&socket, settings.peer_uid)
        .and_then(|own| Desk::open(settings, mount).serve(own, &told_to_end));
    let _ = std::fs::remove_file(&socket);
    mount::detach(&directory)?;
    served
}
