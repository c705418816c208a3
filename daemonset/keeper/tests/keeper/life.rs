//! Starting, ending, and daemons that come and go.

use std::fs::{self, File, Permissions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use larder_keeper::fuse::PASSTHROUGH;
use larder_keeper::{Keeper, protocol};
use rustix::fs::{Advice, fadvise};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::scene::{PEER_UID, content, empty_scene, ended, mode, mount_tmpfs, read, scene, until};

/// One daemon reads two requests and is killed; the next answers them. Meanwhile a complete file
/// is read as if nothing had happened.
#[test]
fn readers_do_not_notice_that_the_daemon_dies() {
    let Some(scene) = scene() else { return };
    let model = scene.mount().join("model");
    let has_passthrough = scene.connect().1.fuse.agreed.flags & PASSTHROUGH != 0;
    let first = scene.daemon(true);
    let (plain, passed) = (File::open(model.join("plain")).unwrap(), File::open(model.join("passed")).unwrap());
    let id = has_passthrough.then(|| first.says("backed"));
    assert_eq!(read(model.join("plain")), content("plain"));
    let slow = thread::spawn({
        let path = model.join("slow");
        move || read(path)
    });
    first.says("parked a read");
    first.kill();
    until("the keeper knows", || scene.logged("the daemon is gone"));

    if id.is_some() {
        let mut byte = [0];
        passed.read_exact_at(&mut byte, 299_999).expect("no daemon is needed");
        assert_eq!(byte[0], content("passed")[299_999]);
    }
    let opened = thread::spawn({
        let path = model.join("passed");
        move || read(path)
    });
    let second = scene.daemon(false);
    assert_eq!(slow.join().unwrap(), content("slow"));
    assert_eq!(opened.join().unwrap(), content("passed"));
    let mut byte = [0];
    plain.read_exact_at(&mut byte, 200_000).expect("a file of the daemon before");
    if let Some(id) = id {
        assert_eq!(second.says("backed"), id, "another id for a file that is open is an error");
    } else {
        eprintln!("skipped in part: this kernel has no passthrough");
    }
}

/// Readers that never pause, and daemons that are killed wherever they are.
#[test]
fn many_daemons_die_and_no_read_fails() {
    const DAEMONS: usize = 25;
    let Some(scene) = scene() else { return };
    let mut daemon = scene.daemon(false);
    let stop = Arc::new(AtomicBool::new(false));
    let readers = ["slow", "passed", "plain"].map(|name| {
        let (path, stop) = (scene.mount().join("model").join(name), Arc::clone(&stop));
        thread::spawn(move || {
            let (mut count, expected) = (0, content(name));
            while !stop.load(Ordering::Relaxed) {
                let mut file = File::open(&path).expect("opened");
                // So that the daemon is asked, and not the page cache.
                fadvise(&file, 0, None, Advice::DontNeed).expect("dropped");
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).expect("read");
                assert!(bytes == expected, "wrong bytes of {name}");
                count += 1;
            }
            count
        })
    });
    for number in 0..DAEMONS {
        thread::sleep(Duration::from_millis(5 + 7 * (number as u64 % 5)));
        daemon.kill();
        daemon = scene.daemon(false);
    }
    stop.store(true, Ordering::Relaxed);
    let counts = readers.map(|reader| reader.join().expect("no error"));
    eprintln!("{DAEMONS} daemons killed under {counts:?} reads");
    assert!(counts.iter().all(|count| *count > 0));
}

#[test]
fn the_mount_is_read_only_and_executes_nothing() {
    let Some(scene) = scene() else { return };
    let _daemon = scene.daemon(false);
    let mounts = scene.mounts();
    assert_eq!(mounts.len(), 1, "{mounts:?}");
    for option in [" ro,nosuid,nodev,noexec,noatime", " - fuse.larder larder ro,", "allow_other", "default_permissions"]
    {
        assert!(mounts[0].contains(option), "{option}: {mounts:?}");
    }
    let error = fs::write(scene.mount().join("model/new"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let number = mounts[0].split(' ').nth(2).unwrap();
    let read_ahead = fs::read_to_string(format!("/sys/class/bdi/{number}/read_ahead_kb")).unwrap();
    assert!(read_ahead.trim() == "1024" || scene.logged("readahead stays"), "{read_ahead}");
}

#[test]
fn hello_says_what_was_agreed() {
    let Some(mut scene) = scene() else { return };
    let (_keeper, hello) = scene.connect();
    assert_eq!((hello.version, hello.fuse.agreed.abi_major), (protocol::VERSION, 7));
    assert_eq!(hello.keeper_version, env!("CARGO_PKG_VERSION"));
    assert_eq!(hello.mount, scene.mount());
    assert_eq!(hello.fuse.agreed.max_write, 1 << 20);
    assert!(hello.fuse.agreed.abi_minor >= 31 && hello.fuse.agreed.max_readahead >= 4096, "{:?}", hello.fuse.agreed);
    assert_eq!(scene.connect().1.fuse.epoch, hello.fuse.epoch, "the same mount");
    let request = larder_keeper::init_request(&hello.fuse.agreed);
    let offer = larder_keeper::fuse::Offer::parse(&request).expect("an INIT request");
    assert_eq!(offer.agree(), hello.fuse.agreed, "whoever answers it agrees to the same");
    scene.end(Signal::KILL);
    scene.start();
    assert_ne!(scene.connect().1.fuse.epoch, hello.fuse.epoch, "another mount");
}

#[test]
fn told_to_end_it_leaves_neither_mount_nor_socket() {
    for signal in [Signal::TERM, Signal::INT] {
        let Some(mut scene) = scene() else { return };
        let daemon = scene.daemon(false);
        let mut file = File::open(scene.mount().join("model/passed")).unwrap();
        let of_kubelet = scene.path("plugins/larder/csi.sock");
        scene.errands().listen(&of_kubelet).expect("a socket");
        assert!(of_kubelet.exists());
        assert_eq!(scene.end(signal).code(), Some(0));
        assert!(scene.mounts().is_empty());
        assert!(!scene.socket().exists() && !of_kubelet.exists());
        assert!(scene.mount().is_dir(), "the directory stays");
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).expect("an open file stays readable");
        assert_eq!(bytes, content("passed"));
        drop(daemon);
    }
}

#[test]
fn what_is_left_of_keepers_before_is_cleared_away() {
    let Some(mut scene) = scene() else { return };
    scene.end(Signal::KILL);
    assert_eq!(
        File::open(scene.mount().join("model")).unwrap_err().raw_os_error(),
        Some(Errno::NOTCONN.raw_os_error()),
        "a dead mount"
    );
    assert!(scene.socket().exists(), "a dead socket");
    scene.start();
    assert_eq!(scene.mounts().len(), 1);
    scene.end(Signal::KILL);
    mount_tmpfs(&scene.mount());
    assert_eq!(scene.mounts().len(), 2, "a stack of two");
    scene.start();
    let _daemon = scene.daemon(false);
    assert_eq!(scene.mounts().len(), 1);
    assert_eq!(read(scene.mount().join("model/plain")), content("plain"));
}

/// What nobody can serve any more is not kept: whoever restarts the keeper gets a new mount.
#[test]
fn an_aborted_connection_ends_the_keeper_when_a_daemon_comes() {
    let Some(mut scene) = scene() else { return };
    let daemon = scene.daemon(false);
    // It is in use, so this only ends the connection.
    assert_eq!(unmount(scene.mount(), UnmountFlags::FORCE), Err(Errno::BUSY));
    drop(daemon);
    Keeper::connect(scene.socket(), Duration::ZERO).unwrap_err();
    assert_eq!(scene.wait().code(), Some(71));
    scene.start();
    let _daemon = scene.daemon(false);
    assert_eq!(read(scene.mount().join("model/plain")), content("plain"));
}

#[test]
fn a_second_keeper_leaves_the_first_alone() {
    let Some(scene) = scene() else { return };
    let _daemon = scene.daemon(false);
    let mut second = scene.command().spawn().unwrap();
    assert_eq!(ended(&mut second).code(), Some(75));
    assert!(scene.logged("another keeper listens"));
    assert_eq!(read(scene.mount().join("model/plain")), content("plain"));
}

#[test]
fn the_socket_is_the_peers_and_nobody_elses() {
    let Some(scene) = scene() else { return };
    assert_eq!(mode(&scene.socket()), 0o600);
    assert_eq!(fs::metadata(scene.socket()).unwrap().uid(), PEER_UID);
}

#[test]
fn the_peer_gets_its_directories_and_nothing_in_them() {
    let Some(mut scene) = empty_scene() else { return };
    let (made, there) = (scene.path("made/deep/store"), scene.path("data"));
    fs::set_permissions(&there, Permissions::from_mode(0o700)).unwrap();
    let owner = |path: &Path| fs::symlink_metadata(path).map(|found| (found.uid(), found.gid())).unwrap();
    for _ in 0..2 {
        let mut command = scene.command();
        command.args(["--own".as_ref(), made.as_os_str(), "--own".as_ref(), there.as_os_str()]);
        scene.start_as(command);
        assert_eq!((owner(&made), mode(&made)), ((PEER_UID, PEER_UID), 0o755));
        assert_eq!((owner(made.parent().unwrap()), mode(made.parent().unwrap())), ((0, 0), 0o755));
        assert_eq!((owner(&there), mode(&there)), ((PEER_UID, PEER_UID), 0o700), "its mode stays");
        assert_eq!(owner(&there.join("v1")), (0, 0), "not what is in it");
        scene.end(Signal::TERM);
    }
    // What the peer put into its directory leads nowhere.
    fs::create_dir(scene.path("secret")).unwrap();
    symlink(scene.path("secret"), there.join("link")).unwrap();
    fs::write(there.join("file"), "").unwrap();
    for (path, expected) in [("link", "symbolic links"), ("link/new", "symbolic links"), ("file", "Not a directory")] {
        let mut command = scene.command();
        let output = command.arg("--own").arg(there.join(path)).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(71), "{path}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains(expected), "{path}: {said}");
    }
    assert_eq!(owner(&scene.path("secret")), (0, 0));
    assert_eq!(fs::read_dir(scene.path("secret")).unwrap().count(), 0);
    assert!(scene.mounts().is_empty(), "before anything is mounted");
}

#[test]
fn a_probe_is_answered_by_a_keeper_that_lives() {
    let Some(mut scene) = scene() else { return };
    let probe = || {
        let mut command = scene.command();
        let output = command.arg("--probe").stderr(Stdio::piped()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    assert_eq!(probe(), (Some(0), String::new()), "and no daemon is needed");
    assert!(!scene.logged("probe"), "nor is the log filled");
    let pid = Pid::from_raw(scene.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let began = Instant::now();
    let (code, said) = probe();
    assert_eq!(code, Some(69), "{said}");
    assert!(said.contains("no answer within 5 s"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    kill_process(pid, Signal::CONT).unwrap();
    assert_eq!(probe().0, Some(0));
    fs::rename(scene.path("pods"), scene.path("away")).unwrap();
    assert_eq!(probe(), (Some(0), String::new()), "a refusal is an answer");
    let keeper = scene.command();
    scene.end(Signal::TERM);
    let mut command = Command::new(keeper.get_program());
    let output = command.args(keeper.get_args()).arg("--probe").output().unwrap();
    assert_eq!(output.status.code(), Some(69));
    assert!(String::from_utf8(output.stderr).unwrap().contains("No such file"));
}

#[test]
fn wrong_values_are_all_told_at_once() {
    let Some(scene) = empty_scene() else { return };
    let mut command = scene.command();
    command.args(["--peer-uid=x", "--lazy"]).env("LARDER_KEEPER_MOUNT", "m").stderr(Stdio::piped());
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8(output.stderr).unwrap();
    for expected in ["larder-keeper: unknown argument `--lazy`", "`x` is no UID", "`m` is no place"] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    let file = scene.path("file");
    fs::write(&file, "").unwrap();
    let status = scene.command().env("LARDER_KEEPER_MOUNT", file).status().unwrap();
    assert_eq!(status.code(), Some(71));
    assert!(scene.logged("cannot make `"));
}

/// Neither a full disk behind its log nor a reader that has stopped reading keeps it from answering.
#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let Some(mut scene) = empty_scene() else { return };
    let help = scene.command().arg("--help").stdout(full()).status().unwrap();
    assert_eq!(help.code(), Some(71), "what was asked for has gone nowhere");
    let mut command = scene.command();
    command.stderr(full());
    scene.start_as(command);
    assert_eq!(scene.end(Signal::TERM).code(), Some(0));

    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = scene.command();
    command.stderr(writer);
    scene.start_as(command);
    // Far more refusals than a pipe has room for lines.
    for number in 0..2000 {
        assert!(scene.errands().there(Path::new("/").join("x".repeat(200)).join(number.to_string())).is_err());
    }
    assert_eq!(scene.end(Signal::TERM).code(), Some(0));
    drop(reader);
}
