//! Models as CSI volumes: a keeper, an unprivileged daemon, the real kernel, and kubelet's calls
//! over the sockets that kubelet would find. A real kubelet has its say in `tests/kubernetes`.

mod damage;
mod in_use;
mod kubelet;
mod read_only;
mod rounds;
mod servers;
mod stuck;
mod told;
mod wire;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use larder_origins::{Checksums, Origin, S3Server, SampleModel, safetensors};
use serde_json::json;

use crate::mount::{Kept, assert_reads, slow_origin};
use crate::node::{Node, PATIENCE};
use crate::support::{origin_with_model, upload};
pub use kubelet::Volume;
use kubelet::{ABORTED, INVALID_ARGUMENT, NOT_FOUND, NodeInfo, PERMISSION_DENIED, Registration, call};

/// A node that kubelet knows, and its daemon started. `None`, with the reason printed, where that
/// cannot be.
pub fn started(origin: &Origin, settings: &[(&str, &str)]) -> Option<Kept> {
    Some(begun(Kept::at(origin)?, settings))
}

fn begun(mut kept: Kept, settings: &[(&str, &str)]) -> Kept {
    kept.node.set("node", "\"node-7\"");
    settings.iter().for_each(|(name, value)| kept.node.set(name, value));
    kept.node.start();
    until(&kept, "the driver's socket", |kept| sockets(kept).iter().all(|socket| socket.exists()));
    kept
}

fn sockets(kept: &Kept) -> [std::path::PathBuf; 2] {
    ["plugins_registry/csi.larder.dev-reg.sock", "plugins/csi.larder.dev/csi.sock"]
        .map(|name| kept.node.path("kubelet").join(name))
}

#[track_caller]
fn until(kept: &Kept, what: &str, wanted: impl Fn(&Kept) -> bool) {
    let began = Instant::now();
    while !wanted(kept) {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}\n{}", kept.logs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn volume(kept: &Kept, pod: &str, attributes: &[(&str, &str)]) -> Volume {
    Volume::new(&kept.node.path("kubelet"), pod, attributes)
}

/// Options and type of what is mounted at a path, one line for each mount.
fn mounted(at: &Path) -> Vec<String> {
    let at = at.display().to_string();
    let table = fs::read("/proc/self/mounts").expect("a table");
    String::from_utf8_lossy(&table)
        .lines()
        .filter(|line| line.split(' ').nth(1) == Some(&at))
        .map(str::to_owned)
        .collect()
}

fn owners(kept: &Kept) -> Vec<String> {
    let status = kept.node.status();
    let leases = status["leases"].as_array().cloned().unwrap_or_default();
    leases.iter().map(|lease| lease["owner"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn kubelet_finds_the_driver() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let Some(kept) = started(&origin, &[]) else { return };
    let [registration, driver] = sockets(&kept);
    let none = kubelet::Empty {};
    let info: Registration =
        call(&registration, "pluginregistration.Registration/GetInfo", &none, PATIENCE).expect("an answer");
    assert_eq!((info.kind.as_str(), info.name.as_str()), ("CSIPlugin", "csi.larder.dev"));
    assert_eq!(Path::new(&info.endpoint), driver);
    assert_eq!(info.versions, ["1.0.0"]);
    let node: NodeInfo = call(&driver, "csi.v1.Node/NodeGetInfo", &none, PATIENCE).expect("an answer");
    assert_eq!(node.node_id, "node-7");
    let refused = call::<_, NodeInfo>(&driver, "csi.v1.Controller/CreateVolume", &none, PATIENCE).expect_err("refused");
    assert_eq!(refused.code, 12, "{refused:?}");
}

#[test]
fn a_pod_gets_a_read_only_directory_and_a_lease() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let Some(kept) = started(&origin, &[]) else { return };
    let volume = volume(&kept, "p1", &[("source", "s3://models/m/")]);
    volume.publish().expect("published");
    assert_reads(&volume.target(), &model);
    let table = mounted(&volume.target());
    assert_eq!(table.len(), 1, "{table:?}");
    let options = table[0].split(' ').nth(3).expect("options");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(options.split(',').any(|known| known == option), "{option}: {}", table[0]);
    }
    assert!(!table[0].contains("fuse"), "ordinary files: {}", table[0]);
    // Root of the node itself cannot write there.
    let written = fs::write(volume.target().join("config.json"), "x").expect_err("read only");
    assert_eq!(written.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert!(
        owners(&kept).iter().any(|owner| owner.starts_with("volume:") && owner.ends_with(":p1")),
        "{:?}",
        owners(&kept)
    );
    let lease = &kept.node.status()["leases"][0];
    assert_eq!(lease["pod"], "team/server-0", "for people: {lease}");
    let (_, refused) = kept.node.ask_admin("POST", "/v1/remove", Some(&json!({"models": ["s3://models/m/"]})));
    assert!(refused.to_string().contains("pod team/server-0"), "{refused}");
    // Nothing but this model is below it.
    assert!(!volume.target().join("../..").join("models").exists());

    // kubelet asks again after its own restart: nothing is stacked.
    volume.publish().expect("published");
    assert_eq!(mounted(&volume.target()).len(), 1);
    volume.unpublish().expect("taken away");
    volume.unpublish().expect("taken away, twice");
    assert!(mounted(&volume.target()).is_empty() && !volume.target().exists());
    assert_eq!(owners(&kept), [""; 0]);
}

#[test]
fn what_a_pod_has_is_the_same_whoever_restarts() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let Some(mut kept) = started(&origin, &[("recheck", "\"0s\"")]) else { return };
    let first = volume(&kept, "p1", &[("source", "s3://models/m/")]);
    first.publish().expect("published");
    let other = SampleModel::new(9, 2, 1 << 20);
    upload(origin.bucket(), "m/", &other, Checksums::multipart());
    kept.node.restart();
    assert_reads(&first.target(), &model);
    // The sockets were kept, and what is asked for again is what the pod has.
    first.publish().expect("published");
    assert_reads(&first.target(), &model);
    let second = volume(&kept, "p2", &[("source", "s3://models/m/")]);
    second.publish().expect("published");
    assert_reads(&second.target(), &other);
    kept.kill_keeper();
    assert_reads(&first.target(), &model);
    kept.start_keeper();
    until(&kept, "a pod that ends after the keeper has", |_| first.unpublish().is_ok());
    assert!(mounted(&first.target()).is_empty());
    assert_reads(&second.target(), &other);
    // Nor does a new rule take it away.
    kept.node.set("policy", r#"[{ namespaces = ["elsewhere"], sources = ["s3://"] }]"#);
    kept.node.restart();
    // The sockets were of the keeper that is gone, and not yet of the next.
    until(&kept, "kubelet may call", |kept| UnixStream::connect(&sockets(kept)[1]).is_ok());
    second.publish().expect("published");
    assert_reads(&second.target(), &other);
    let third = volume(&kept, "p3", &[("source", "s3://models/m/")]);
    assert_eq!(third.publish().expect_err("refused").code, PERMISSION_DENIED);
    second.unpublish().expect("taken away");
    assert_eq!(owners(&kept), [""; 0]);
}

#[test]
fn a_call_that_runs_out_of_time_says_how_far_it_is_and_the_next_one_goes_on() {
    let whole = safetensors("w", 3, 12 << 20);
    let origin = slow_origin(&whole, 1 << 20);
    let Some(kept) = started(&origin, &[]) else { return };
    let volumes: Vec<Volume> =
        (0..4).map(|n| volume(&kept, &format!("p{n}"), &[("source", "s3://models/m/")])).collect();
    let refused = volumes[0].publish_within(Duration::from_secs(8)).expect_err("too little time");
    assert_eq!(refused.code, ABORTED, "{refused:?}");
    for word in ["s3://models/m/", "is on its way", "of 12.0 MiB", "kubelet asks again"] {
        assert!(refused.message.contains(word), "{word}: {refused:?}");
    }
    std::thread::scope(|scope| {
        for volume in &volumes {
            scope.spawn(|| volume.publish().expect("published"));
        }
    });
    for volume in &volumes {
        assert!(fs::read(volume.target().join("model.safetensors")).expect("a file") == whole);
    }
    let sent = origin.bytes_sent();
    assert!(sent < whole.len() as u64 * 101 / 100 + 65536, "{sent} bytes for {}", whole.len());
}

#[test]
fn a_pod_that_goes_ends_the_work_for_it() {
    let whole = safetensors("w", 4, 24 << 20);
    let origin = slow_origin(&whole, 1 << 20);
    let Some(kept) = started(&origin, &[]) else { return };
    let volume = volume(&kept, "p1", &[("source", "s3://models/m/")]);
    volume.publish_within(Duration::from_secs(6)).expect_err("too little time");
    kept.node.until("a pull", |status| status["moving"].as_array().is_some_and(|flights| flights.len() == 1));
    volume.unpublish().expect("taken away");
    kept.node.until("no pull", |status| status["moving"].as_array().is_some_and(Vec::is_empty));
    assert_eq!(owners(&kept), [""; 0]);
    assert!(!volume.target().exists());
}

#[test]
fn a_lazy_pod_reads_while_the_model_arrives_through_restarts_of_everything() {
    let whole = safetensors("w", 5, 24 << 20);
    let origin = slow_origin(&whole, 1 << 20);
    let Some(mut kept) = started(&origin, &[]) else { return };
    let volume = volume(&kept, "p1", &[("source", "s3://models/m/"), ("lazy", "true")]);
    let began = Instant::now();
    volume.publish().expect("published");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(mounted(&volume.target())[0].contains("fuse.larder"));
    let file = volume.target().join("model.safetensors");
    let head = |file: &Path| {
        use std::io::Read as _;
        let mut bytes = vec![0; 1 << 16];
        fs::File::open(file).expect("a file").read_exact(&mut bytes).expect("bytes");
        assert!(bytes == whole[..1 << 16]);
    };
    head(&file);
    let bound = |kept: &Kept| kept.logs().matches("bound `arriving").count();
    kept.node.restart();
    head(&file);
    until(&kept, "the next daemon has bound the volume again", |kept| bound(kept) == 2);
    volume.publish().expect("published");
    assert_eq!(mounted(&volume.target()).len(), 1);
    let before = bound(&kept);
    assert_eq!(before, 3, "{}", kept.logs());
    kept.kill_keeper();
    kept.start_keeper();
    // Whoever starts a container now gets it out of the new mount.
    until(&kept, "the volume is in the new mount", |kept| bound(kept) > before);
    kept.node.restart();
    assert_eq!(mounted(&volume.target()).len(), 1);
    assert!(fs::read(&file).expect("the whole file") == whole);
    volume.unpublish().expect("taken away");
    assert!(mounted(&volume.target()).is_empty());
    assert_eq!(owners(&kept), [""; 0]);
}

#[test]
fn what_cannot_be_had_is_said_as_an_event() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let rules = r#"[{ namespaces = ["team"], service_accounts = ["serving"], sources = ["s3://models/m/", "s3://models/gone/"] }]"#;
    let Some(kept) = started(&origin, &[("policy", rules)]) else { return };
    let source = "s3://models/m/";
    let refusal = |change: &dyn Fn(&mut Volume)| {
        let mut volume = volume(&kept, "p1", &[("source", source)]);
        change(&mut volume);
        let refused = volume.publish().expect_err("refused");
        assert!(mounted(&volume.target()).is_empty() && !volume.target().exists(), "{refused:?}");
        refused
    };
    let set = |volume: &mut Volume, name: &str, value: &str| {
        volume.publish.context.insert(name.to_owned(), value.to_owned());
    };
    let refused = refusal(&|volume| set(volume, "source", "s3://models/gone/"));
    assert_eq!(refused.code, NOT_FOUND, "{refused:?}");
    assert!(refused.message.contains("s3://models/gone/"), "{refused:?}");
    for (name, value) in [
        ("source", "s3://models/other/"),
        ("csi.storage.k8s.io/serviceAccount.name", "default"),
        ("csi.storage.k8s.io/pod.namespace", "elsewhere"),
    ] {
        let refused = refusal(&|volume| set(volume, name, value));
        assert_eq!(refused.code, PERMISSION_DENIED, "{name}: {refused:?}");
        assert!(refused.message.contains("may not ask for `s3://models/"), "{refused:?}");
        assert!(refused.message.contains("`policy`"), "{refused:?}");
    }
    let refused = refusal(&|volume| volume.publish.readonly = false);
    assert!(refused.code == INVALID_ARGUMENT && refused.message.contains("readOnly: true"), "{refused:?}");
    let refused = refusal(&|volume| set(volume, "lasy", "true"));
    assert!(refused.code == INVALID_ARGUMENT && refused.message.contains("`lasy`"), "{refused:?}");
    assert_eq!(owners(&kept), [""; 0], "no lease is left");
    // Nobody vouches for who asks at the socket.
    let (status, body) = kept.node.ask("POST", "/v1/ensure", Some(&json!({"source": source})));
    assert_eq!((status, &body["error"]["exit_code"]), (403, &json!(77)), "{body}");
    let (status, _) = kept.node.ask_admin("POST", "/v1/ensure", Some(&json!({"source": source})));
    assert_eq!(status, 200, "who administers the node may");
    volume(&kept, "p2", &[("source", source)]).publish().expect("published");
}

/// Bytes are shared, permission is not.
#[test]
fn a_pods_own_credentials_say_what_it_may_have() {
    let server = S3Server::start().expect("a server");
    let model = SampleModel::new(6, 1, 1 << 20);
    for (path, bytes) in &model.files {
        server.put("models", &format!("m/{path}"), bytes).expect("an object");
    }
    let environment = server.environment();
    let value = |name: &str| {
        environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.clone()).expect("a variable")
    };
    let (id, secret) = (value("AWS_ACCESS_KEY_ID"), value("AWS_SECRET_ACCESS_KEY"));
    let Some(kept) = Kept::of(Node::new(environment.clone())).map(|kept| begun(kept, &[])) else { return };
    kept.node.ready(&json!({"source": "s3://models/m/"}));
    let moved = server.bytes_sent();
    let with = |pod: &str, id: &str, secret: &str| {
        let mut volume = volume(&kept, pod, &[("source", "s3://models/m/")]);
        for (name, value) in [("AWS_ACCESS_KEY_ID", id), ("AWS_SECRET_ACCESS_KEY", secret)] {
            volume.publish.secrets.insert(name.to_owned(), value.to_owned());
        }
        volume
    };
    let good = with("p1", &id, &secret);
    good.publish().expect("published");
    assert_reads(&good.target(), &model);
    assert_eq!(server.bytes_sent(), moved, "the bytes were here");
    let bad = with("p2", &id, "S3CR3T");
    let refused = bad.publish().expect_err("refused");
    assert_eq!(refused.code, PERMISSION_DENIED, "{refused:?}");
    assert!(!bad.target().exists());
    assert!(!kept.logs().contains("S3CR3T") && !kept.logs().contains(&secret), "{}", kept.logs());
}
