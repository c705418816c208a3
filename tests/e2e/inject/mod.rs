//! Each system call of a pull, a repair and a CSI publish fails once, in turn, with what it may fail
//! with. Whatever comes of it: never a wrong byte, a panic, a hang or a lie in the exit code, and the
//! next attempt goes through.
//!
//! The gate tries some of them, another selection for another `LARDER_INJECT_SEED`. All of them, or as
//! many as an hour has room for:
//!
//! ```text
//! LARDER_INJECT_SECONDS=3600 tests/run --test e2e inject -- --nocapture --test-threads=1
//! ```

mod calls;
mod ptrace;
mod tracer;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use larder_origins::{Checksums, Front, Origin, SampleModel};

use crate::csi::{Volume, started};
use crate::mount::Kept;
use crate::node::damage;
use crate::support::{Larder, Ran, upload};
use tracer::{Order, Tracer, failed, seen};

/// What takes longer hangs.
const PATIENCE: Duration = Duration::from_mins(1);
const SOURCE: &str = "s3://models/m/";

/// One after the other, in an order that the seed decides: how many were tried, of how many.
struct Sweep {
    what: &'static str,
    orders: Vec<Order>,
    until: Instant,
    seed: u64,
    wrong: Vec<String>,
    tried: usize,
    /// Of those tried, how many came to that call.
    failed: usize,
}

impl Sweep {
    /// All calls that were seen, each as often as it was, with each of its errors.
    fn of(what: &'static str, seconds: f64, seen: &HashMap<(&'static str, calls::Kind), u32>) -> Self {
        let seed = std::env::var("LARDER_INJECT_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
        let seconds = std::env::var("LARDER_INJECT_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(seconds);
        let mut orders = Vec::new();
        let mut seen: Vec<_> = seen.iter().collect();
        seen.sort();
        for (&(call, kind), &count) in seen {
            for &errno in calls::named(call).expect("a call").errors(kind) {
                orders.extend((1..=count).map(|nth| Order { call, kind, nth, errno }));
            }
        }
        // The first of each kind of failure, then the second, and so on: a moment's sample has some of all.
        let mut order_of: HashMap<_, u64> = HashMap::new();
        orders.sort_by_key(|order| mixed(seed, order));
        let mut ranked: Vec<(u64, Order)> = orders
            .into_iter()
            .map(|order| {
                let rank = order_of.entry((order.call, order.kind, order.errno)).or_default();
                *rank += 1;
                (*rank, order)
            })
            .collect();
        ranked.sort_by_key(|(rank, order)| (*rank, mixed(seed, order)));
        let orders = ranked.into_iter().map(|(_, order)| order).collect();
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        Self { what, orders, until, seed, wrong: Vec::new(), tried: 0, failed: 0 }
    }

    /// Tries one after the other.
    fn run(mut self, mut attempt: impl FnMut(Order) -> Attempt) {
        let all = self.orders.len();
        for order in std::mem::take(&mut self.orders) {
            if Instant::now() > self.until {
                break;
            }
            self.tried += 1;
            let Attempt { failed, wrong } = attempt(order);
            self.failed += usize::from(failed.is_some());
            if let Some(wrong) = wrong {
                let wrong = format!("{order}: {}\n    {wrong}", failed.unwrap_or_default());
                println!("{wrong}");
                self.wrong.push(wrong);
            }
        }
        let Self { what, seed, wrong, tried, failed, .. } = self;
        println!(
            "{what}: {tried} of {all} failures tried with seed {seed}, {failed} came to pass, {} wrong",
            wrong.len()
        );
        assert!(wrong.is_empty(), "{what}: {} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
        assert!(failed * 2 >= tried, "{what}: most calls are not made any more");
    }
}

/// A number for a failure.
fn mixed(seed: u64, order: &Order) -> u64 {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    (seed, order.call, order.kind, order.nth, order.errno).hash(&mut hasher);
    hasher.finish()
}

/// What came of one failure.
struct Attempt {
    /// The call that failed, if it came to that.
    failed: Option<String>,
    wrong: Option<String>,
}

/// A model with files of every way to be moved: in one piece, and in chunks.
fn model(seed: u64) -> SampleModel {
    SampleModel::new(seed, 2, 1_200_000)
}

fn origin() -> (Origin, SampleModel) {
    let origin = Origin::start(Front::S3).expect("an origin");
    let model = model(7);
    upload(origin.bucket(), "m/", &model, Checksums::multipart());
    (origin, model)
}

fn here() -> bool {
    let here = cfg!(target_arch = "x86_64");
    if !here {
        crate::support::skipped("inject", "the tracer speaks x86-64 alone");
    }
    here
}

/// Runs a command with that failure: its exit code, what it said, and what is wrong about that.
fn run(command: &Command, order: Option<Order>, at: &Path) -> (Option<i32>, String, Option<String>) {
    let (report, errors) = (at.join("report"), at.join("errors"));
    let code = Tracer::run(command, order, &report, &errors).wait(PATIENCE);
    let said = fs::read_to_string(&errors).unwrap_or_default();
    let wrong = match code {
        None => Some(format!("hangs: {said}")),
        Some(101 | 134 | 139) => Some(format!("ends with {code:?}: {said}")),
        _ if said.contains("panicked") => Some(format!("panics: {said}")),
        _ => None,
    };
    (code, said, wrong)
}

/// Whether the model is here, whole, and right; what is wrong if it is not.
fn whole(larder: &Larder, model: &SampleModel) -> Result<(), String> {
    let verified = larder.run(&["verify"]);
    if verified.code != Some(0) {
        return Err(format!("verify: {verified:?}"));
    }
    let Ran { code, stdout, stderr } = larder.run(&["path", SOURCE]);
    if code != Some(0) {
        return Err(format!("path: {code:?} {stderr}"));
    }
    for (path, bytes) in &model.files {
        match fs::read(Path::new(stdout.trim_end()).join(path)) {
            Ok(read) if read == *bytes => {}
            Ok(_) => return Err(format!("`{path}` has other bytes")),
            Err(error) => return Err(format!("`{path}`: {error}")),
        }
    }
    Ok(())
}

/// What is wrong after a command that ended with that code, and after the same once more, in peace.
fn judge(larder: &Larder, model: &SampleModel, code: Option<i32>, said: &str, command: &[&str]) -> Option<String> {
    if code == Some(0)
        && let Err(why) = whole(larder, model)
    {
        return Some(format!("a lie: it ends with 0, and {why}\n    it said: {said}"));
    }
    let again = larder.run(command);
    if again.code != Some(0) {
        return Some(format!("after {code:?} ({}) the next attempt fails: {again:?}", said.trim()));
    }
    whole(larder, model).err().map(|why| format!("after the next attempt {why}"))
}

#[test]
fn no_call_of_a_pull_fails_badly() {
    if !here() {
        return;
    }
    let (origin, model) = origin();
    let scratch = tempfile::tempdir().expect("a directory");
    let fresh = || Larder::at(&origin);
    let pull = ["prefetch", SOURCE];
    let (code, said, _) = run(&fresh().command(&pull), None, scratch.path());
    assert_eq!(code, Some(0), "{said}");
    Sweep::of("a pull", 8.0, &seen(&scratch.path().join("report"))).run(|order| {
        let larder = fresh();
        let (code, said, wrong) = run(&larder.command(&pull), Some(order), scratch.path());
        let wrong = wrong.or_else(|| judge(&larder, &model, code, &said, &pull));
        Attempt { failed: failed(&scratch.path().join("report")), wrong }
    });
}

/// The same of a process that may have few files open, wherever that stops it.
#[test]
fn no_limit_on_open_files_ends_badly() {
    let (origin, model) = origin();
    let scratch = tempfile::tempdir().expect("a directory");
    for limit in [6, 7, 8, 10, 12, 16, 20, 24, 32] {
        let larder = Larder::at(&origin);
        let command = larder.command(&["prefetch", SOURCE]);
        let mut limited = Command::new("prlimit");
        limited.arg(format!("--nofile={limit}:{limit}")).arg(command.get_program()).args(command.get_args());
        limited.env_clear().envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        let errors = fs::File::create(scratch.path().join("errors")).expect("a file");
        let status = limited.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).status().expect("prlimit");
        let said = fs::read_to_string(scratch.path().join("errors")).expect("text");
        assert!(!said.contains("panicked") && !matches!(status.code(), None | Some(101)), "{limit}: {status} {said}");
        assert_eq!(judge(&larder, &model, status.code(), &said, &["prefetch", SOURCE]), None, "{limit}: {status}");
    }
}

#[test]
fn no_call_of_a_repair_fails_badly() {
    if !here() {
        return;
    }
    let (origin, model) = origin();
    let scratch = tempfile::tempdir().expect("a directory");
    // A model with damage in a file of each kind.
    let damaged = || {
        let larder = Larder::at(&origin);
        larder.ok(&["prefetch", SOURCE]);
        let directory = PathBuf::from(larder.ok(&["path", SOURCE]).stdout.trim_end());
        for (path, _) in model.files.iter().filter(|(_, bytes)| !bytes.is_empty()) {
            damage(&directory.join(path));
        }
        larder
    };
    let repair = ["verify", "--repair"];
    let (code, said, _) = run(&damaged().command(&repair), None, scratch.path());
    assert_eq!(code, Some(0), "{said}");
    Sweep::of("a repair", 8.0, &seen(&scratch.path().join("report"))).run(|order| {
        let larder = damaged();
        let (code, said, wrong) = run(&larder.command(&repair), Some(order), scratch.path());
        let wrong = wrong.or_else(|| judge(&larder, &model, code, &said, &repair));
        Attempt { failed: failed(&scratch.path().join("report")), wrong }
    });
}

/// The daemon's calls, from kubelet's call to the answer.
#[test]
fn no_call_of_a_publish_fails_badly() {
    if !here() {
        return;
    }
    let (origin, _) = origin();
    let Some(mut kept) = started(&origin, &[]) else { return };
    let scratch = tempfile::tempdir().expect("a directory");
    let mut count = 0;
    // Every time a model that was never here.
    let mut attempt = |kept: &mut Kept, order: Option<Order>| {
        count += 1;
        let model = SampleModel::new(1000 + count, 2, 1_200_000);
        upload(origin.bucket(), &format!("m{count}/"), &model, Checksums::multipart());
        let source = format!("s3://models/m{count}/");
        let volume = Volume::new(&kept.node.path("kubelet"), &format!("p{count}"), &[("source", &source)]);
        let logged = kept.node.log().len();
        let tracer = Tracer::attach(kept.node.pid(), order, &scratch.path().join("report"));
        let published = publish(&volume);
        drop(tracer);
        let wrong = published_wrongly(kept, &volume, &model, &published, logged);
        if wrong.is_some() {
            // The next one has a daemon that nothing happened to.
            kept.node.end();
            kept.node.start();
        }
        wrong
    };
    assert_eq!(attempt(&mut kept, None), None);
    let seen = seen(&scratch.path().join("report"));
    Sweep::of("a publish", 8.0, &seen).run(|order| {
        let wrong = attempt(&mut kept, Some(order));
        Attempt { failed: failed(&scratch.path().join("report")), wrong }
    });
}

/// Publishes; why not.
fn publish(volume: &Volume) -> Result<(), String> {
    let (told, hears) = std::sync::mpsc::channel();
    let volume = volume.clone();
    // A connection that breaks is a panic there, and one that hangs is left behind.
    std::thread::spawn(move || {
        let _ = told.send(volume.publish_within(PATIENCE));
    });
    match hears.recv_timeout(PATIENCE) {
        Ok(published) => published.map_err(|refused| format!("{refused:?}")),
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => Err("it hangs".into()),
        Err(_) => Err("the connection broke".into()),
    }
}

/// What is wrong with a volume that was published, or was not; it is gone then.
fn published_wrongly(
    kept: &mut Kept,
    volume: &Volume,
    model: &SampleModel,
    published: &Result<(), String>,
    logged: usize,
) -> Option<String> {
    let differs = |when: &str| {
        let differs = |(path, bytes): (&String, &Vec<u8>)| match fs::read(volume.target().join(path)) {
            Ok(read) if read == *bytes => None,
            Ok(_) => Some(format!("{when}: `{path}` has other bytes")),
            Err(error) => Some(format!("{when}: `{path}`: {error}")),
        };
        model.files.iter().find_map(differs)
    };
    if published.as_ref().is_err_and(|why| why == "it hangs") {
        return Some(format!("it hangs: {}", &kept.node.log()[logged..]));
    }
    if published.is_ok()
        && let Some(wrong) = differs("a lie: it was published")
    {
        return Some(wrong);
    }
    if kept.node.has_ended() {
        return Some(format!("the daemon ended after {published:?}: {}", &kept.node.log()[logged..]));
    }
    let again = publish(volume);
    if let Err(again) = again {
        return Some(format!("after {published:?} the next call fails: {again}\n{}", &kept.node.log()[logged..]));
    }
    if let Some(wrong) = differs("published again") {
        return Some(wrong);
    }
    if let Err(error) = volume.unpublish() {
        return Some(format!("after {published:?} it cannot be taken away: {error:?}"));
    }
    let log = kept.node.log();
    log[logged..].contains("panicked").then(|| format!("a panic after {published:?}: {}", &log[logged..]))
}
