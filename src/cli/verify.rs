//! `larder verify`.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::args::Verify;
use super::console::Console;
use super::names::Names;
use super::owner::{self, Claim, Owner};
use super::peer::{self, Peer};
use super::pull::LocalPull;
use super::watch::Watch;
use super::{prefetch, summary};
use crate::cache::named::{Name, Verb};
use crate::cache::{self, VerifyEvent, counted};
use crate::domain::Digest;
use crate::fetch::Cancel;
use crate::report::text;
use crate::report::{Exit, Failure};
use crate::store::Store;

/// Damaged ranges of one file that are told to people.
const RANGES_TOLD_MAX: usize = 8;
/// What an interrupt leaves while nothing is repaired yet.
const UNCHANGED: &str = "what was found is marked, nothing else was changed: the same command starts anew";

/// Hashes every blob of the chosen models once; reports what is wrong, and repairs it if asked.
pub async fn run(console: Console, directory: &Path, args: &Verify, cancel: &Cancel) -> Result<Exit, Failure> {
    let names = Names::new(args.globs.clone(), args.origin.endpoint_url.as_deref()).await;
    let name = args.model.as_ref().map(|model| names.name(Verb::Verify, model)).transpose()?;
    match owner::own(&Claim { directory, turn: args.turn, console, cancel }).await? {
        Owner::Us(store) => by_us(console, &store, name, &names, args, cancel).await,
        Owner::Daemon(peer) => {
            let models: Vec<&str> = args.model.as_deref().into_iter().collect();
            let mut body = names.body(&models)?;
            owner::refuse_origin_flags(&peer, &args.origin, body.get("endpoint_url").is_some(), args.retry)?;
            body["model"] = json!(args.model);
            body["repair"] = json!(args.repair);
            by_daemon(console, &peer, body, name.as_ref(), args.repair, cancel).await
        }
    }
}

async fn by_us(
    console: Console,
    store: &Arc<Store>,
    name: Option<Name>,
    names: &Names,
    args: &Verify,
    cancel: &Cancel,
) -> Result<Exit, Failure> {
    prefetch::tell_recovered(console, store.recovered());
    let mut shown = Shown::new(console);
    let tell = &mut |event| shown.tell(&event);
    let damage = cache::verify(store, name.clone(), names.usual(), cancel, tell).await?;
    if damage.is_none() {
        return Ok(Exit::Done);
    }
    if !args.repair {
        return Ok(unrepaired(console, name.as_ref()));
    }
    let (origin, endpoints, retry) = (&args.origin, names.endpoints(), args.retry);
    let puller = LocalPull { store, origin, endpoints, retry, cancel };
    Box::pin(cache::repair(store, &damage, &puller, tell)).await
}

/// The events of the daemon are those of this process. Which is the last depends on what was found:
/// [`VerifyEvent`] says so.
async fn by_daemon(
    console: Console,
    peer: &Peer,
    body: Value,
    name: Option<&Name>,
    repairs: bool,
    cancel: &Cancel,
) -> Result<Exit, Failure> {
    let (mut shown, mut verified) = (Shown::new(console), false);
    let heard = peer.events("/v1/verify", body, cancel, |event: VerifyEvent| match event {
        VerifyEvent::Error { message, hint, exit_code } if !verified => {
            Some(Err(peer::of_daemon(message, hint, exit_code)))
        }
        event => {
            shown.tell(&event);
            match event {
                VerifyEvent::Verified { damaged: 0, damaged_manifests: 0, .. } => Some(Ok(Exit::Done)),
                VerifyEvent::Verified { .. } if !repairs => Some(Ok(unrepaired(console, name))),
                VerifyEvent::Verified { .. } => {
                    verified = true;
                    None
                }
                VerifyEvent::Repaired { exit_code, .. } => Some(Ok(peer::exit_of(exit_code))),
                _ => None,
            }
        }
    });
    let heard = heard.await;
    drop(shown);
    match heard {
        Err(failure) if failure.exit == Exit::Interrupted && !verified => Err(Failure::interrupted(UNCHANGED)),
        other => other?,
    }
}

fn unrepaired(console: Console, name: Option<&Name>) -> Exit {
    let name = name.map(|name| format!(" {}", name.shown())).unwrap_or_default();
    console.note(&format!("  hint: `larder verify --repair{name}` fetches it again"));
    Exit::Integrity
}

/// Events, as they are shown.
struct Shown {
    console: Console,
    /// While something takes time.
    watch: Option<Watch>,
}

impl Shown {
    const fn new(console: Console) -> Self {
        Self { console, watch: None }
    }

    fn watch(&mut self) -> &mut Watch {
        self.watch.get_or_insert_with(|| Watch::new(self.console))
    }

    fn tell(&mut self, event: &VerifyEvent) {
        match event {
            // Those come as often as somebody looks.
            VerifyEvent::Progress(moving) => return self.watch().show(moving),
            VerifyEvent::Hashing { bytes_done, bytes_total } if !self.console.json => {
                return self.watch().show_hashing(*bytes_done, *bytes_total);
            }
            VerifyEvent::Hashing { .. } => return self.console.passing_event(&json!(event)),
            VerifyEvent::Damaged { .. } => {}
            _ => self.watch = None,
        }
        match event {
            VerifyEvent::Done(ready) => summary::tell(self.console, ready),
            VerifyEvent::Error { message, hint, exit_code } => {
                let (message, hint) = (message.clone(), hint.clone());
                self.console.failure(&Failure { message, hint, exit: peer::exit_of(*exit_code) });
            }
            VerifyEvent::Warning { message } if !self.console.json => self.console.note(&format!("warning: {message}")),
            other if self.console.json => self.console.event(&json!(other)),
            other => other_words(other).iter().for_each(|line| self.console.result(line)),
        }
    }
}

/// What people read of an event.
fn other_words(event: &VerifyEvent) -> Vec<String> {
    match event {
        VerifyEvent::DamagedManifest { models, missing, reason, .. } => {
            let what = match (missing, reason) {
                (true, _) => "is missing".to_owned(),
                (false, None) => "is damaged".to_owned(),
                (false, Some(reason)) => format!("cannot be read: {reason}"),
            };
            models.iter().map(|name| format!("{name}: its manifest {what}")).collect()
        }
        VerifyEvent::Damaged { files, missing, ranges, length, .. } => {
            let what = damage(*missing, ranges, *length);
            files.iter().map(|name| format!("{name} is {what}")).collect()
        }
        VerifyEvent::Verified { blobs, bytes, damaged, damaged_manifests, unfinished } => {
            let verdict = match counted(*damaged, *damaged_manifests) {
                none if none.is_empty() => "nothing is damaged".to_owned(),
                counted => format!("{counted} damaged or missing"),
            };
            let hashed = format!("{} ({}) hashed again", text::count(*blobs, "file"), text::bytes(*bytes));
            let mut clauses = vec![hashed, verdict];
            if *unfinished > 0 {
                clauses.push(format!("{} here only in part and left out", text::count(*unfinished, "source")));
            }
            vec![text::lines("", "  ", &clauses).join("\n")]
        }
        VerifyEvent::NotRepairable { digest, files } => vec![not_repairable(digest, *files)],
        VerifyEvent::Repaired { damaged, damaged_manifests, exit_code: 0 } => {
            vec![format!("{} repaired", counted(*damaged, *damaged_manifests))]
        }
        _ => Vec::new(),
    }
}

fn damage(missing: bool, ranges: &[(u64, u64)], length: Option<u64>) -> String {
    if missing {
        return "missing".to_owned();
    }
    if let Some(length) = length {
        let size = ranges.last().map_or(0, |(_, end)| *end);
        return format!("damaged: {length} bytes long instead of {size}");
    }
    let more = if ranges.len() > RANGES_TOLD_MAX { " and more" } else { "" };
    let told = ranges.iter().take(RANGES_TOLD_MAX).map(|(a, b)| format!("{a}-{b}"));
    format!("damaged in bytes {}{more}", told.collect::<Vec<_>>().join(", "))
}

fn not_repairable(digest: &Digest, files: usize) -> String {
    let what = match files {
        0 => "manifest".to_owned(),
        1 => "file".to_owned(),
        files => format!("{files} files"),
    };
    let name = digest.short();
    format!(
        "{name}: its {what} cannot be fetched again, because no source names this model now;\n  `larder rm {name}` removes it"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_in_words() {
        let digest = Digest::of(b"");
        let told = |event: VerifyEvent| other_words(&event).join("\n");
        let damaged = |missing, ranges: &[(u64, u64)], length| {
            let (files, ranges) = (vec!["s3://b/m: a".into(), "s3://b/n: a".into()], ranges.to_vec());
            told(VerifyEvent::Damaged { digest, files, missing, ranges, length })
        };
        assert_eq!(damaged(true, &[], None), "s3://b/m: a is missing\ns3://b/n: a is missing");
        assert!(damaged(false, &[(0, 9)], Some(4)).starts_with("s3://b/m: a is damaged: 4 bytes long instead of 9\n"));
        let many: Vec<(u64, u64)> = (0..9).map(|at| (2 * at, 2 * at + 1)).collect();
        assert!(
            damaged(false, &many, None)
                .ends_with("damaged in bytes 0-1, 2-3, 4-5, 6-7, 8-9, 10-11, 12-13, 14-15 and more")
        );
        let verified = |damaged, damaged_manifests, unfinished| {
            told(VerifyEvent::Verified { blobs: 2, bytes: 3 << 20, damaged, damaged_manifests, unfinished })
        };
        assert_eq!(verified(0, 0, 0), "2 files (3.0 MiB) hashed again, nothing is damaged");
        assert_eq!(
            verified(1, 2, 1),
            "2 files (3.0 MiB) hashed again, 1 file and 2 manifests damaged or missing,\n  1 source here only in part and left out"
        );
        assert_eq!(told(VerifyEvent::Repaired { damaged: 1, damaged_manifests: 0, exit_code: 0 }), "1 file repaired");
        assert_eq!(told(VerifyEvent::Repaired { damaged: 1, damaged_manifests: 0, exit_code: 65 }), "");
        let lost = |files| told(VerifyEvent::NotRepairable { digest, files });
        assert!(
            lost(0).contains("its manifest cannot") && lost(1).contains("its file") && lost(3).contains("its 3 files")
        );
    }
}
