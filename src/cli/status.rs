//! `larder status`: what larder's daemon does, on one screen.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use larder_init::client::{self, Client};
use larder_init::http::Limits;
use serde::Deserialize;

use super::args::Status;
use super::console::Console;
use super::{peer, watch};
use crate::cache::{self, Disk, LeaseStatus, Moving, Progressing, WantedState};
use crate::domain::Digest;
use crate::report::text::{self, bytes, percent};
use crate::report::{Exit, Failure};
use crate::store::Store;

/// A look at a large store takes a second; beyond this the daemon hangs.
const PATIENCE: Duration = Duration::from_secs(20);
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// To the upper left, and at the end away with what was below.
const HOME: &str = "\x1b[H";
const CLEAR: &str = "\x1b[2J\x1b[H";
const CLEAR_LINE: &str = "\x1b[K\n";
const CLEAR_BELOW: &str = "\x1b[J";

/// What the daemon says of itself.
#[derive(Debug, Deserialize)]
struct Told {
    version: String,
    pid: u32,
    state: String,
    /// Seconds since 1970.
    started: u64,
    store: PathBuf,
    socket: PathBuf,
    #[serde(flatten)]
    cache: cache::Status,
}

/// Shows it once, or every second until the process is ended. `store` is the one that other
/// commands would use.
pub fn run(console: Console, store: Option<&Path>, args: &Status) -> Result<Exit, Failure> {
    let (client, mut said) = find(store, args.socket.as_deref())?;
    if !args.watch {
        console.data(&shown(console, &said)?);
        return Ok(Exit::Done);
    }
    let screen = !console.json && io::stdout().is_terminal();
    if screen {
        console.data(CLEAR);
    }
    loop {
        let text = shown(console, &said)?;
        if screen {
            console.data(&format!("{HOME}{}{CLEAR_BELOW}", text.replace('\n', CLEAR_LINE)));
        } else {
            console.data(&text);
        }
        said = loop {
            std::thread::sleep(WATCH_INTERVAL);
            // Whoever watches wants to see a restart, not to miss its end.
            match ask(&client) {
                Ok(said) => break said,
                Err(error) => console.note(&format!("{error}")),
            }
        };
        if screen {
            console.data(HOME);
        }
    }
}

fn shown(console: Console, said: &str) -> Result<String, Failure> {
    if console.json {
        return Ok(format!("{}\n", said.trim_end()));
    }
    let told: Told = serde_json::from_str(said).map_err(|error| {
        Failure::hinted(
            Exit::Defect,
            format!("larder's daemon says what this larder does not know: {error}"),
            "are they of one version? --json shows what it says",
        )
    })?;
    Ok(screen(&told, SystemTime::now()))
}

/// The first daemon that answers: where the flag or the environment says, or else where the store's
/// owner or the default is.
fn find(store: Option<&Path>, flag: Option<&Path>) -> Result<(Client, String), Failure> {
    let named = std::env::var_os("LARDER_SOCKET").filter(|path| !path.is_empty()).map(PathBuf::from);
    let sockets = match flag.map(Path::to_owned).or(named) {
        Some(socket) => vec![socket],
        None => store.and_then(Store::last_socket).into_iter().chain([client::SOCKET.into()]).collect(),
    };
    let mut last = None;
    for socket in sockets {
        let client = Client::new(&socket).limits(Limits { answer_within: PATIENCE, silence_max: PATIENCE });
        match ask(&client) {
            Ok(said) => return Ok((client, said)),
            Err(error @ client::Error::Unreachable { .. }) => last = Some((socket, error)),
            Err(error) => return Err(peer::failure_of(error)),
        }
    }
    Err(last.map_or_else(|| Failure::new(Exit::Defect, "no socket to ask at"), |(socket, error)| unreachable(&socket, error)))
}

fn ask(client: &Client) -> Result<String, client::Error> {
    client.call("GET", "/v1/status", None)?.text()
}

fn unreachable(socket: &Path, error: client::Error) -> Failure {
    match &error {
        client::Error::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => Failure::hinted(
            Exit::Denied,
            format!("the socket `{}` of larder's daemon refuses this user", socket.display()),
            "run this as root, or as the user that the daemon runs as",
        ),
        _ => Failure {
            hint: Some("`larder daemon` starts one; --socket and LARDER_SOCKET say where it listens".to_owned()),
            ..peer::failure_of(error)
        },
    }
}

/// The whole screen, which ends with the end of a line.
fn screen(told: &Told, now: SystemTime) -> String {
    let Told { version, pid, state, started, store, socket, cache } = told;
    let up = text::duration(since(now, *started));
    let mut parts = vec![format!(
        "larder {version} at {}: {state}, pid {pid}, up {up}\n{}{}",
        socket.display(),
        disk(store, &cache.disk),
        counts(cache)
    )];
    parts.extend(moving(&cache.moving));
    parts.extend(prefetch(&cache.prefetch));
    parts.extend(leases(&cache.leases, now));
    parts.join("\n")
}

fn since(now: SystemTime, seconds: u64) -> Duration {
    now.duration_since(text::at(seconds)).unwrap_or_default()
}

fn section(name: &str, clauses: &[String]) -> String {
    text::lines(&format!("{name:9}"), &" ".repeat(9), clauses).join("\n") + "\n"
}

fn disk(store: &Path, disk: &Disk) -> String {
    let used = disk.total.saturating_sub(disk.free);
    let nearest = |part: u64| (u128::from(part) * 100 + u128::from(disk.total) / 2).checked_div(disk.total.into()).unwrap_or(0);
    let of_disk = [
        store.display().to_string(),
        format!("{} of {} in use ({} %)", bytes(used), bytes(disk.total), percent(used, disk.total)),
        format!("eviction above {} % down to {} %", nearest(disk.high), nearest(disk.low)),
    ];
    let of_store = [
        format!("{} kept", bytes(disk.store)),
        format!("{} pinned", bytes(disk.pinned)),
        format!("{} in use", bytes(disk.leased)),
        format!("{} evictable", bytes(disk.evictable)),
        format!("{} reserved for pulls", bytes(disk.reserved)),
    ];
    section("disk", &of_disk) + &section("store", &of_store)
}

fn counts(cache: &cache::Status) -> String {
    let (totals, scrub) = (&cache.totals, &cache.scrub);
    let mut asked = vec![
        format!("{} found here", totals.hits),
        format!("{} joined a pull", totals.joins),
        format!("{} pulled", totals.pulls),
        format!("{} given without the origin", totals.stale),
        format!("{} failed", totals.errors),
    ];
    asked[0] = format!("since the start: {}", asked[0]);
    let moved = [
        format!("{} from origins", bytes(totals.bytes_from_origin)),
        format!("{} that did not have to move", bytes(totals.bytes_from_cache)),
        format!("{} evicted ({})", text::count(count(totals.evictions), "model"), bytes(totals.bytes_evicted)),
    ];
    let finished = scrub.last_finished.map_or_else(
        || "not yet through the store".to_owned(),
        |at| format!("through the store {}", text::ago(text::at(at))),
    );
    let hashed = [
        format!("{} hashed again", bytes(scrub.bytes)),
        finished,
        format!("{} damaged", text::count(count(scrub.damaged), "blob")),
        format!("{} repaired", scrub.repaired),
        format!("{} in all", text::count(count(totals.verification_failures), "mismatch").replace("mismatchs", "mismatches")),
    ];
    section("asked", &asked) + &section("bytes", &moved) + &section("scrub", &hashed)
}

fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn moving(moving: &[Moving]) -> Option<String> {
    let row = |moving: &Moving| {
        let done = match moving.bytes_total {
            0 => "listing".to_owned(),
            total => format!("{} % of {}", percent(moving.bytes_done, total), bytes(total)),
        };
        vec![
            moving.source.clone(),
            done,
            format!("{}/s", bytes(moving.bytes_per_second)),
            moving.seconds_left.map_or_else(|| "-".to_owned(), watch::left),
            moving.waiters.to_string(),
            moving.connections.to_string(),
            moving.retries.to_string(),
        ]
    };
    let header = ["MOVING", "DONE", "RATE", "LEFT", "WAITING", "CONNECTIONS", "RETRIES"];
    table(&header, moving.iter().map(row).collect())
}

fn prefetch(states: &[WantedState]) -> Option<String> {
    let row = |wanted: &WantedState| {
        let state = match wanted.state {
            Progressing::Waiting => "waiting",
            Progressing::Moving => "moving",
            Progressing::Ready => "ready",
            Progressing::Failed => "failed",
        };
        let pinned = if wanted.pin { "yes" } else { "no" };
        let message = wanted.message.clone().unwrap_or_default();
        vec![wanted.source.clone(), pinned.to_owned(), state.to_owned(), message]
    };
    table(&["PREFETCH", "PINNED", "STATE", ""], states.iter().map(row).collect())
}

fn leases(leases: &[LeaseStatus], now: SystemTime) -> Option<String> {
    let row = |lease: &LeaseStatus| {
        let short = lease.digest.parse::<Digest>().map_or_else(|_| lease.digest.clone(), |digest| digest.short());
        let source = lease.source.clone().unwrap_or_else(|| "-".to_owned());
        vec![source, short, lease.owner.clone(), text::duration(since(now, lease.since)), lease.id.clone()]
    };
    table(&["IN USE", "MODEL", "BY", "SINCE", "LEASE"], leases.iter().map(row).collect())
}

fn table(header: &[&str], rows: Vec<Vec<String>>) -> Option<String> {
    if rows.is_empty() { None } else { Some(text::table(header, &rows)) }
}
