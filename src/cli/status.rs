//! `larder status`: what larder's daemon does, on one screen.

use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use larder_init::client::{self, Client};
use larder_init::http::Limits;
use serde::Deserialize;

use super::args::Status;
use super::console::Console;
use super::{peer, watch};
use crate::cache::{
    self, DamageStatus, Disk, DiskInodes, LeaseStatus, MountStatus, Moving, Progressing, UnreadableStatus, WantedState,
};
use crate::domain::Digest;
use crate::report::text::{self, bytes, percent};
use crate::report::{Exit, Failure, no_thread};
use crate::store::Store;

/// A look at a large store takes a second, and more on a slow disk.
const PATIENCE: Duration = Duration::from_secs(20);
/// Then it is asked for what takes no look at all, and if it does not answer that either, it hangs.
const HANGS_AFTER: Duration = Duration::from_secs(4);
const CHEAP_PATIENCE: Duration = Duration::from_secs(1);
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// How a terminal is drawn anew without flicker: from the upper left, what is left of each line and
/// below the last one goes.
const CLEAR: &str = "\x1b[2J";
const HOME: &str = "\x1b[H";
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
    let redraws = !console.json && io::stdout().is_terminal();
    if redraws {
        console.data(CLEAR);
    }
    loop {
        let text = shown(console, &said)?;
        if redraws {
            console.data(&format!("{HOME}{}{CLEAR_BELOW}", text.replace('\n', CLEAR_LINE)));
        } else {
            console.data(&text);
        }
        if !redraws && !console.json {
            console.data("\n");
        }
        if !console.is_heard() {
            return Ok(Exit::Done);
        }
        said = loop {
            std::thread::sleep(WATCH_INTERVAL);
            // Whoever watches wants to see a restart, and how it ends.
            match ask(&client) {
                Ok(said) => break said,
                Err(error) => console.note(&error.to_string()),
            }
        };
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
    let mut first = None;
    for socket in sockets {
        let client = Client::new(&socket).limits(Limits { answer_within: PATIENCE, silence_max: PATIENCE });
        match ask(&client) {
            Ok(said) => return Ok((client, said)),
            Err(error @ client::Error::Unreachable { .. }) => first = first.or(Some((socket, error))),
            Err(error) => return Err(peer::failure_of(error)),
        }
    }
    Err(first.map_or_else(
        || Failure::new(Exit::Defect, "no socket to ask at"),
        |(socket, error)| unreachable(&socket, error),
    ))
}

fn ask(client: &Client) -> Result<String, client::Error> {
    let (sender, answered) = mpsc::channel();
    let asked = client.clone();
    // One that is not waited for to the end goes with the process.
    let asking = move || sender.send(asked.call("GET", "/v1/status", None).and_then(client::Answer::text));
    if let Err(error) = std::thread::Builder::new().spawn(asking) {
        let source = io::Error::new(error.kind(), no_thread(&error));
        return Err(client::Error::Unreachable { socket: client.socket().to_owned(), source });
    }
    if let Ok(answer) = answered.recv_timeout(HANGS_AFTER) {
        return answer;
    }
    let cheap = Limits { answer_within: CHEAP_PATIENCE, silence_max: CHEAP_PATIENCE };
    client.clone().limits(cheap).call("GET", "/v1/openapi.json", None).map_err(|error| match error {
        client::Error::Broken { socket, .. } => {
            let seconds = (HANGS_AFTER + CHEAP_PATIENCE).as_secs();
            let what = format!("not a word within {seconds} s, so it is stopped or hangs");
            client::Error::Unreachable { socket, source: io::Error::new(io::ErrorKind::TimedOut, what) }
        }
        other => other,
    })?;
    answered.recv().unwrap_or_else(|_| client.call("GET", "/v1/status", None)?.text())
}

fn unreachable(socket: &Path, error: client::Error) -> Failure {
    match &error {
        client::Error::Unreachable { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
            Failure::hinted(
                Exit::Denied,
                format!("the socket `{}` of larder's daemon refuses this user", socket.display()),
                "run this as root, or as the user that the daemon runs as",
            )
        }
        client::Error::Unreachable { source, .. } if source.kind() == io::ErrorKind::TimedOut => Failure {
            hint: Some("its log may say why; to kill it and start it again costs nothing that is here".to_owned()),
            ..peer::failure_of(error)
        },
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
        "larder {version} at {}: {state}, pid {pid}, up {up}\n{}{}{}{}",
        socket.display(),
        cache.read_only.as_deref().map(read_only).unwrap_or_default(),
        disk(store, &cache.disk),
        cache.mount.as_ref().map(mount).unwrap_or_default(),
        counts(cache)
    )];
    parts.extend(damaged(&cache.damaged, now));
    parts.extend(unreadable(&cache.unreadable));
    parts.extend(cache.held_back.as_ref().map(|why| section("eviction", std::slice::from_ref(why))));
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
    let nearest =
        |part: u64| (u128::from(part) * 100 + u128::from(disk.total) / 2).checked_div(disk.total.into()).unwrap_or(0);
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
    let inodes = disk.inodes.map(|inodes| inodes_of(&inodes)).unwrap_or_default();
    section("disk", &of_disk) + &section("store", &of_store) + &inodes
}

fn inodes_of(inodes: &DiskInodes) -> String {
    let used = inodes.total.saturating_sub(inodes.free);
    let nearest = |part: u64| (u128::from(part) * 100 + u128::from(inodes.total) / 2).checked_div(inodes.total.into());
    let (high, low) = (nearest(inodes.high).unwrap_or(0), nearest(inodes.low).unwrap_or(0));
    section(
        "inodes",
        &[
            format!("{used} of {} in use ({} %)", inodes.total, percent(used, inodes.total)),
            format!("eviction above {high} % down to {low} %"),
            format!("{} kept", inodes.store),
            format!("{} pinned", inodes.pinned),
            format!("{} in use", inodes.leased),
            format!("{} evictable", inodes.evictable),
            format!("{} reserved for pulls", inodes.reserved),
        ],
    )
}

fn read_only(why: &str) -> String {
    section("trouble", &[format!("the store is read-only: {why}"), "nothing is pulled or evicted".to_owned()])
}

fn mount(mount: &MountStatus) -> String {
    let mut clauses = match &mount.directory {
        None => vec!["not up yet".to_owned(), "the daemon's log says what is amiss".to_owned()],
        Some(directory) => {
            let sealed = match &mount.why_not {
                Some(why) if !mount.passes() => format!("{} ({why})", mount.sealed),
                _ => mount.sealed.clone(),
            };
            let kept = if mount.kept { "kept by larder-keeper" } else { "not kept: it ends with the daemon" };
            vec![directory.clone(), sealed, kept.to_owned()]
        }
    };
    // Also where it is not up: those who have files of an earlier one open read on.
    if mount.reads_waiting > 0 {
        clauses.push(format!("{} waiting for bytes", text::count(count(mount.reads_waiting), "read")));
    }
    if mount.reads_failed > 0 {
        clauses.push(format!("{} failed", text::count(count(mount.reads_failed), "read")));
    }
    section("mount", &clauses)
}

fn counts(cache: &cache::Status) -> String {
    let (totals, scrub) = (&cache.totals, &cache.scrub);
    let mut asked = vec![
        format!("since the start: {} found here", totals.hits),
        format!("{} joined a pull", totals.joins),
        format!("{} pulled", totals.pulls),
    ];
    if cache.mount.is_some() {
        asked.push(format!("{} let in while it arrives", totals.lazy));
    }
    asked.push(format!("{} given without asking the origin", totals.stale));
    asked.push(format!("{} failed", totals.errors));
    let moved = [
        format!("{} from origins", bytes(totals.bytes_from_origin)),
        format!("{} did not have to move", bytes(totals.bytes_from_cache)),
        format!("{} evicted ({})", text::count(count(totals.evictions), "model"), bytes(totals.bytes_evicted)),
    ];
    let finished = scrub.last_finished.map_or_else(
        || "not yet through the store".to_owned(),
        |at| format!("through the store {}", text::ago(text::at(at))),
    );
    let hashed = [
        format!("{} hashed again", bytes(scrub.bytes)),
        finished,
        format!("{} damaged", text::count(count(scrub.damaged), "file")),
        format!("{} repaired", scrub.repaired),
        format!("bytes were wrong {} in all", text::count(count(totals.verification_failures), "time")),
    ];
    section("asked", &asked) + &section("bytes", &moved) + &section("scrub", &hashed)
}

fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn damaged(damaged: &[DamageStatus], now: SystemTime) -> Option<String> {
    let row = |damaged: &DamageStatus| {
        let files: Vec<&str> = damaged.files.iter().map(String::as_str).collect();
        let found = damaged.since.filter(|at| *at > 0);
        let found = found.map_or_else(|| "-".to_owned(), |at| text::duration(since(now, at)));
        vec![text::some(&files).replace('`', ""), found]
    };
    table(&["DAMAGED", "SINCE"], &damaged.iter().map(row).collect::<Vec<_>>())
}

fn unreadable(documents: &[UnreadableStatus]) -> Option<String> {
    let row = |document: &UnreadableStatus| {
        let state = if document.removed { "removed" } else { "passed over" };
        vec![document.path.clone(), state.to_owned(), document.why.clone()]
    };
    table(&["UNREADABLE", "STATE", "WHY"], &documents.iter().map(row).collect::<Vec<_>>())
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
            moving.waiting.as_ref().map_or_else(String::new, watch::waiting),
        ]
    };
    let header = ["MOVING", "DONE", "RATE", "LEFT", "WAITING", "CONNECTIONS", "RETRIES", ""];
    table(&header, &moving.iter().map(row).collect::<Vec<_>>())
}

fn prefetch(states: &[WantedState]) -> Option<String> {
    let row = |wanted: &WantedState| {
        let state = match wanted.state {
            Progressing::Waiting => "waiting",
            Progressing::Moving => "moving",
            Progressing::Ready => "ready",
            Progressing::Failed => "failed",
            Progressing::Evicted => "evicted",
        };
        let pinned = if wanted.pin { "yes" } else { "no" };
        let message = wanted.message.clone().unwrap_or_default();
        vec![wanted.source.clone(), pinned.to_owned(), state.to_owned(), message]
    };
    table(&["PREFETCH", "PINNED", "STATE", ""], &states.iter().map(row).collect::<Vec<_>>())
}

fn leases(leases: &[LeaseStatus], now: SystemTime) -> Option<String> {
    let row = |lease: &LeaseStatus| {
        let short = lease.digest.parse::<Digest>().map_or_else(|_| lease.digest.clone(), |digest| digest.short());
        let source = lease.source.clone().unwrap_or_else(|| "-".to_owned());
        let owner = lease.pod.as_ref().map_or_else(|| lease.owner.clone(), |pod| format!("pod {pod}"));
        vec![source, short, owner, text::duration(since(now, lease.since)), lease.id.clone()]
    };
    table(&["IN USE", "MODEL", "BY", "SINCE", "LEASE"], &leases.iter().map(row).collect::<Vec<_>>())
}

fn table(header: &[&str], rows: &[Vec<String>]) -> Option<String> {
    if rows.is_empty() { None } else { Some(text::table(header, rows)) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(moving: &serde_json::Value, leases: &serde_json::Value, prefetch: &serde_json::Value) -> String {
        const GIB: u64 = 1 << 30;
        let said = json!({
            "version": "0.1.0", "pid": 4711, "state": "serving", "started": 1000, "store": "/var/lib/larder",
            "socket": "/run/larder/larder.sock", "models": 3, "pins": 1,
            "disk": {"total": 100 * GIB, "free": 39 * GIB, "high": 80 * GIB - 1, "low": 70 * GIB - 1, "store": 40 * GIB,
                "pinned": 12 * GIB, "leased": 8 * GIB, "evictable": 20 * GIB, "reserved": 2 * GIB},
            "moving": moving, "leases": leases, "prefetch": prefetch,
            "totals": {"bytes_from_origin": 40 * GIB, "bytes_from_cache": 400 * GIB, "hits": 120, "joins": 3, "pulls": 4,
                "stale": 0, "errors": 1, "evictions": 1, "bytes_evicted": 20 * GIB, "verification_failures": 1},
            "scrub": {"bytes": 5 * GIB, "damaged": 1, "repaired": 1, "last_finished": null},
        });
        let screen = screen(&serde_json::from_value(said).expect("a status"), text::at(1000 + 3 * 3600 + 300));
        screen.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }

    #[test]
    fn a_daemon_at_rest_on_a_screen() {
        insta::assert_snapshot!(told(&json!([]), &json!([]), &json!([])), @"
        larder 0.1.0 at /run/larder/larder.sock: serving, pid 4711, up 3 h 5 min
        disk     /var/lib/larder, 61.0 GiB of 100.0 GiB in use (61 %),
                 eviction above 80 % down to 70 %
        store    40.0 GiB kept, 12.0 GiB pinned, 8.0 GiB in use, 20.0 GiB evictable,
                 2.0 GiB reserved for pulls
        asked    since the start: 120 found here, 3 joined a pull, 4 pulled,
                 0 given without asking the origin, 1 failed
        bytes    40.0 GiB from origins, 400.0 GiB did not have to move,
                 1 model evicted (20.0 GiB)
        scrub    5.0 GiB hashed again, not yet through the store, 1 file damaged,
                 1 repaired, bytes were wrong 1 time in all
        ");
    }

    #[test]
    fn a_mount_that_passes_through_or_not_or_is_not_there() {
        let up = MountStatus {
            directory: Some("/var/lib/larder/mnt".to_owned()),
            sealed: "passthrough".to_owned(),
            kept: true,
            ..MountStatus::default()
        };
        insta::assert_snapshot!(mount(&up), @"mount    /var/lib/larder/mnt, passthrough, kept by larder-keeper");
        let cached = MountStatus {
            sealed: "cached".to_owned(),
            why_not: Some("the kernel has no passthrough, which came with Linux 6.9".to_owned()),
            kept: false,
            reads_waiting: 1,
            reads_failed: 12,
            ..up
        };
        insta::assert_snapshot!(mount(&cached), @"
        mount    /var/lib/larder/mnt,
                 cached (the kernel has no passthrough, which came with Linux 6.9),
                 not kept: it ends with the daemon, 1 read waiting for bytes,
                 12 reads failed
        ");
        let absent = MountStatus { directory: None, why_not: None, reads_waiting: 0, reads_failed: 0, ..cached };
        insta::assert_snapshot!(mount(&absent), @"mount    not up yet, the daemon's log says what is amiss");
    }

    #[test]
    fn what_moves_what_is_wanted_and_what_is_used() {
        let moving = json!({
            "source": "s3://models/llama/", "bytes_done": 45, "bytes_total": 100, "bytes_moved": 45,
            "bytes_per_second": 20, "seconds_left": 3, "files_done": 1, "files_total": 2, "connections": 8,
            "retries": 1, "waiters": 3, "seconds": 2.5,
        });
        let mut listing = moving.clone();
        listing["bytes_total"] = 0.into();
        listing["seconds_left"] = serde_json::Value::Null;
        listing["waiting"] = json!({"why": "connection refused", "seconds": 5, "seconds_left": 295});
        let lease =
            json!({"id": "8f3a", "owner": "pod:5d0c", "digest": "0".repeat(64), "source": null, "since": 11000});
        let mut of_volume = lease.clone();
        (of_volume["owner"], of_volume["pod"]) = ("volume:1:5d0d".into(), "team/server-0".into());
        let wanted = |state: &str, message: serde_json::Value| json!({"source": "gs://b/m", "pin": state == "ready", "state": state, "message": message});
        let prefetch = json!([wanted("ready", serde_json::Value::Null), wanted("failed", "no such bucket".into())]);
        let told = told(&json!([moving, listing]), &json!([lease, of_volume]), &prefetch);
        let tables = told.split_once("\n\n").expect("tables").1;
        insta::assert_snapshot!(tables, @"
        MOVING              DONE           RATE    LEFT  WAITING  CONNECTIONS  RETRIES
        s3://models/llama/  45 % of 100 B  20 B/s  3 s   3        8            1
        s3://models/llama/  listing        20 B/s  -     3        8            1        waiting for the origin, 5 s (for 4 min 55 s more): connection refused

        PREFETCH  PINNED  STATE
        gs://b/m  yes     ready
        gs://b/m  no      failed  no such bucket

        IN USE  MODEL         BY                 SINCE        LEASE
        -       000000000000  pod:5d0c           18 min 20 s  8f3a
        -       000000000000  pod team/server-0  18 min 20 s  8f3a
        ");
    }
}
