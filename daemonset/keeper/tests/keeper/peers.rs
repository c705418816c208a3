//! Who is answered: one daemon at a time, nobody else, and no nonsense.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::thread;
use std::time::Instant;

use larder_keeper::protocol::{self, MESSAGE_LEN_MAX};
use larder_keeper::{Keeper, client};
use rustix::fs::{Mode, OFlags, statvfs};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::scene::{PATIENCE, Scene, again, answer, ask, ended, errno, mount_tmpfs, scene, until};

/// A connection whose keeper can register files, and its mount's epoch; none, and a line, if the
/// kernel cannot.
fn connect_to_back(scene: &Scene) -> Option<(Keeper, u64)> {
    let (keeper, hello) = scene.connect();
    if hello.fuse.agreed.flags & larder_keeper::fuse::PASSTHROUGH == 0 {
        eprintln!("skipped: this kernel has no passthrough");
        return None;
    }
    Some((keeper, hello.fuse.epoch))
}

#[test]
fn a_key_keeps_its_id_until_it_is_forgotten() {
    let Some(scene) = scene() else { return };
    let Some((keeper, epoch)) = connect_to_back(&scene) else { return };
    let open = |name: &str| File::open(scene.path("store/model").join(name)).unwrap();
    let before = scene.descriptors();
    let id = keeper.back(epoch, 7, open("passed")).unwrap();
    assert_eq!(keeper.back(epoch, 7, open("plain")).unwrap(), id, "the first one counts");
    assert_ne!(keeper.back(epoch, 8, open("plain")).unwrap(), id);
    drop(keeper);
    let (keeper, _) = scene.connect();
    assert_eq!(keeper.back(epoch, 7, open("passed")).unwrap(), id, "for the next daemon too");
    let other = keeper.back(epoch, 8, open("plain")).unwrap();
    assert_eq!(keeper.keys(epoch, None).unwrap(), [(7, id), (8, other)]);
    assert!(keeper.unback(epoch, 7).unwrap());
    assert!(!keeper.unback(epoch, 7).unwrap());
    assert_eq!(keeper.keys(epoch, None).unwrap(), [(8, other)]);
    assert_eq!(keeper.keys(epoch, Some(8)).unwrap(), []);
    until("no descriptor is kept", || scene.descriptors() == before);
}

#[test]
fn keys_come_in_pages() {
    let Some(scene) = scene() else { return };
    let Some((keeper, epoch)) = connect_to_back(&scene) else { return };
    let file = File::open(scene.path("store/model/plain")).unwrap();
    // The longest there are.
    let expected: Vec<u64> = (0..600).map(|number| u64::MAX - 600 + number).collect();
    for key in expected.iter().rev() {
        keeper.back(epoch, *key, &file).unwrap();
    }
    let mut found: Vec<u64> = Vec::new();
    loop {
        let page = keeper.keys(epoch, found.last().copied()).unwrap();
        assert!(page.len() <= protocol::KEYS_PER_ANSWER);
        if page.is_empty() {
            break;
        }
        found.extend(page.into_iter().map(|(key, _)| key));
    }
    assert_eq!(found, expected);
}

#[test]
fn keys_have_a_limit() {
    let Some(scene) = scene() else { return };
    let Some((keeper, epoch)) = connect_to_back(&scene) else { return };
    let file = File::open(scene.path("store/model/plain")).unwrap();
    let began = Instant::now();
    for key in 0..65_536 {
        keeper.back(epoch, key, &file).unwrap();
    }
    eprintln!("65,536 files registered in {:?}", began.elapsed());
    assert_eq!(errno(keeper.back(epoch, 65_536, &file)), Errno::NOSPC);
    keeper.back(epoch, 0, &file).expect("known already");
    assert!(keeper.unback(epoch, 0).unwrap());
    keeper.back(epoch, 65_536, &file).expect("room for one");
}

#[test]
fn a_forgotten_file_gives_its_space_back() {
    let Some(scene) = scene() else { return };
    let Some((keeper, epoch)) = connect_to_back(&scene) else { return };
    let store = scene.path("small");
    fs::create_dir(&store).unwrap();
    mount_tmpfs(&store);
    let free = || statvfs(&store).unwrap().f_bfree;
    let (empty, path) = (free(), store.join("blob"));
    fs::write(&path, vec![1; 4 << 20]).unwrap();
    keeper.back(epoch, 1, File::open(&path).unwrap()).unwrap();
    fs::remove_file(&path).unwrap();
    assert!(free() < empty, "held by nobody but the kernel");
    assert!(keeper.unback(epoch, 1).unwrap());
    until("the space is free", || free() == empty);
}

#[test]
fn only_plain_files_opened_to_read_become_backing_files() {
    let Some(scene) = scene() else { return };
    let Some((keeper, epoch)) = connect_to_back(&scene) else { return };
    let path = scene.path("store/model/plain");
    let opened = |options: &mut OpenOptions| OwnedFd::from(options.open(&path).unwrap());
    let path_only = rustix::fs::open(&path, OFlags::PATH, Mode::empty()).unwrap();
    for (what, file) in [
        ("to write", opened(OpenOptions::new().write(true))),
        ("to read and write", opened(OpenOptions::new().read(true).write(true))),
        ("to append", opened(OpenOptions::new().append(true))),
        ("as a path", path_only),
        ("a directory", File::open(&scene.root).unwrap().into()),
        ("a device", File::open("/dev/null").unwrap().into()),
        ("a pipe", std::io::pipe().unwrap().0.into()),
        ("a socket", scene.raw()),
        ("a temporary file", opened(OpenOptions::new().write(true).custom_flags(0))),
    ] {
        assert_eq!(errno(keeper.back(epoch, 1, file)), Errno::INVAL, "{what}");
    }
    let sentence = keeper.back(epoch, 1, File::open("/dev/null").unwrap()).unwrap_err().to_string();
    assert!(sentence.contains("regular file"), "{sentence}");
    assert_eq!(keeper.keys(epoch, None).unwrap(), []);
}

/// The store must not lie there; the kernel's reason comes through.
#[test]
fn a_file_on_an_overlay_becomes_none() {
    let Some(scene) = scene() else { return };
    let Some((keeper, epoch)) = connect_to_back(&scene) else { return };
    for directory in ["upper", "work", "merged"] {
        fs::create_dir(scene.path(directory)).unwrap();
    }
    let data = ["lowerdir=store/model", "upperdir=upper", "workdir=work"].map(|option| {
        let (name, directory) = option.split_once('=').unwrap();
        format!("{name}={}", scene.path(directory).display())
    });
    let data = std::ffi::CString::new(data.join(",")).unwrap();
    let merged = scene.path("merged");
    let flags = rustix::mount::MountFlags::empty();
    if let Err(errno) = rustix::mount::mount("overlay", &merged, "overlay", flags, data.as_c_str()) {
        eprintln!("skipped: no overlay here: {errno}");
        return;
    }
    let file = File::open(merged.join("plain")).unwrap();
    assert_eq!(errno(keeper.back(epoch, 1, file)), Errno::LOOP);
    assert_eq!(keeper.keys(epoch, None).unwrap(), []);
}

#[test]
fn there_is_one_daemon_and_the_last_hello_is_it() {
    let Some(scene) = scene() else { return };
    let (first, hello) = scene.connect();
    assert!(!first.closed());
    let errand = scene.raw();
    let (second, _) = scene.connect();
    until("the first is told", || first.closed());
    assert!(!second.closed());
    assert_eq!(first.keys(hello.fuse.epoch, None).unwrap_err().kind(), std::io::ErrorKind::ConnectionAborted);
    assert_eq!(second.keys(hello.fuse.epoch, None).unwrap(), []);
    assert!(ask(&errand, b"keys\x001\0").starts_with("error|1|"), "no daemon without hello");
    assert!(ask(&errand, b"hello\x004").starts_with("error|93|"), "another protocol");
    assert!(!second.closed(), "which changes nothing");
    drop(scene);
    until("the end of the keeper is seen", || second.closed());
}

/// Not a test: tries to connect as whoever it is run as, and ends with the `errno`.
#[test]
#[ignore = "a process that tests start"]
fn stranger_process() {
    let Some(socket) = std::env::var_os("LARDER_KEEPER_TEST_SOCKET") else { return };
    let code = match Keeper::connect(socket, std::time::Duration::ZERO) {
        Ok(_) => 0,
        Err(error) => client::errno(&error).unwrap_or(255),
    };
    std::process::exit(code);
}

#[test]
fn another_user_is_not_answered() {
    let Some(scene) = scene() else { return };
    let as_user = |uid: u32| {
        let mut command = again("peers::stranger_process");
        command.env("LARDER_KEEPER_TEST_SOCKET", scene.socket()).uid(uid).gid(uid);
        ended(&mut command.stdout(std::process::Stdio::null()).spawn().unwrap()).code()
    };
    assert_eq!(as_user(1000), Some(Errno::ACCESS.raw_os_error()), "the socket's mode");
    let (daemon, _) = scene.connect();
    fs::set_permissions(scene.socket(), Permissions::from_mode(0o666)).unwrap();
    assert_eq!(as_user(1000), Some(Errno::PERM.raw_os_error()), "the keeper's own check");
    assert!(scene.logged("user 1000 is not the peer"));
    assert!(!daemon.closed(), "and the daemon stays");
    assert_eq!(as_user(65532), Some(0));
    assert_eq!(as_user(0), Some(0));
}

#[test]
fn nonsense_ends_a_connection_and_nothing_else() {
    let Some(scene) = scene() else { return };
    let (daemon, hello) = scene.connect();
    let before = scene.descriptors();
    let long = [b'x'; MESSAGE_LEN_MAX + 1];
    let long_path = [b"bind\0model\0/".as_slice(), &[b'x'; MESSAGE_LEN_MAX]].concat();
    for message in [
        &b"x"[..],
        b"\0",
        b"\xff\xfe\0\0",
        b"hello",
        b"bind\0a",
        b"publish\0a",
        b"there",
        b"mounts",
        b"mounts\0x",
        b"back\x001",
        b"back\x001\x001",
        b"keys\x001",
        b"keys\0x\0",
        b"adopt\x001\x007\x0045\x000\x004096\x001048576",
        b"adopted",
        b"remember\x001\x001",
        &long,
        &long_path,
        &[0; 10_000],
    ] {
        let socket = scene.raw();
        assert!(ask(&socket, message).starts_with("error|71|"), "{:?}", &message[..message.len().min(9)]);
        assert_eq!(answer(&socket), None, "it is closed");
    }
    let socket = scene.raw();
    protocol::send(&socket, b"", None).unwrap();
    assert_eq!(answer(&socket), None, "an empty message");
    assert_eq!(daemon.keys(hello.fuse.epoch, None).unwrap(), []);
    until("all are closed", || scene.descriptors() == before);
}

/// Sends a message with many descriptors.
fn send_many(socket: &OwnedFd, message: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(250))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    sendmsg(socket, &[std::io::IoSlice::new(message)], &mut control, SendFlags::NOSIGNAL).expect("sent");
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let Some(scene) = scene() else { return };
    let (daemon, _) = scene.connect();
    let before = scene.descriptors();
    let file = File::open(scene.path("store/model/plain")).unwrap();
    for count in [1, 2, 3, 10, 250] {
        for message in [&b"hello\x003"[..], b"keys\x001\0", b"x", b"back\x001\x001", b"unbind\0/x"] {
            if (count, message) == (1, b"back\x001\x001") {
                continue;
            }
            let socket = scene.raw();
            send_many(&socket, message, &vec![file.as_fd(); count]);
            assert!(answer(&socket).unwrap().starts_with("error|71|"), "{count} {message:?}");
        }
    }
    assert!(!daemon.closed());
    until("all are closed", || scene.descriptors() == before);
}

#[test]
fn a_flood_of_connections_passes() {
    let Some(scene) = scene() else { return };
    let (descriptors, threads) = (scene.descriptors(), scene.threads());
    // More at a time than are answered, and none says a word.
    let silent: Vec<Option<String>> = {
        let sockets: Vec<OwnedFd> = (0..400).map(|_| scene.raw()).collect();
        sockets.iter().skip(256).map(answer).collect()
    };
    assert!(silent.iter().all(|answer| answer.as_ref().is_some_and(|text| text.starts_with("error|16|"))));
    until("they are forgotten", || scene.threads() == threads);
    // Each of these takes the place of the one before.
    let began = Instant::now();
    let floods: Vec<_> = (0..4)
        .map(|_| {
            let socket = scene.socket();
            thread::spawn(move || {
                for _ in 0..250 {
                    let _ = Keeper::connect(&socket, PATIENCE);
                }
            })
        })
        .collect();
    floods.into_iter().for_each(|flood| flood.join().unwrap());
    eprintln!("1,000 daemons in {:?}", began.elapsed());
    let (daemon, hello) = scene.connect();
    assert_eq!(daemon.keys(hello.fuse.epoch, None).unwrap(), []);
    drop(daemon);
    until("they are forgotten", || scene.threads() == threads && scene.descriptors() == descriptors);
}

#[test]
fn a_connection_without_a_word_is_closed() {
    let Some(scene) = scene() else { return };
    let (daemon, hello) = scene.connect();
    let silent = scene.raw();
    assert_eq!(answer(&silent), None, "after ten seconds");
    assert!(!daemon.closed(), "the daemon may be silent");
    assert_eq!(daemon.keys(hello.fuse.epoch, None).unwrap(), []);
}
