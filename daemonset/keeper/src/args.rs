//! What can be typed or set. Reads the arguments and the environment it is given, and nothing else.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use larder_keeper::protocol::{self, number};

const MOUNT: &str = "/var/lib/larder/mount/models";
const MODELS: &str = "/var/lib/larder/store/v1/models";
/// `nonroot` of the distroless images.
const PEER_UID: &str = "65532";
const BIND_BELOW: [&str; 1] = ["/var/lib/kubelet/pods"];
const LISTEN_BELOW: [&str; 2] = ["/var/lib/kubelet/plugins", "/var/lib/kubelet/plugins_registry"];
/// Bytes of a socket's path without its NUL (unix(7)).
const SOCKET_LEN_MAX: usize = 107;

const HELP: &str = "\
Keeps the node's FUSE mount of larder while the daemon comes and goes.

Usage: larder-keeper [OPTIONS]

Options:
      --mount DIR         Where the file system is mounted [/var/lib/larder/mount/models]
      --models DIR        Where the daemon keeps complete models, one directory each
                          [/var/lib/larder/store/v1/models]
      --socket PATH       Where the daemon finds the keeper [/run/larder-keeper/keeper.sock]
      --peer-uid UID      Who is answered, besides root [65532]
      --bind-below DIR    Where a model may be mounted for a pod; may be given again
                          [/var/lib/kubelet/pods]
      --listen-below DIR  Where sockets for kubelet may be made; may be given again
                          [/var/lib/kubelet/plugins, /var/lib/kubelet/plugins_registry]
      --own DIR           A directory to make and give to the peer; may be given again
      --probe             Ask the keeper at --socket whether it answers, and end
  -h, --help              This text
  -V, --version           The version

Every option with a value is also a variable: LARDER_KEEPER_MOUNT and so on; colons separate directories.
SIGTERM and SIGINT detach the mount; files that are open stay readable where they are complete.

Exit codes:
    0  told to end
   64  usage: an argument or a variable is wrong
   69  --probe: no keeper answers
   71  the kernel refuses or lacks something
   75  another keeper listens at the socket
";

/// What to do.
#[derive(Debug)]
pub enum Command {
    /// Print this and end.
    Print(String),
    /// Keep the mount.
    Keep(Settings),
    /// Ask a keeper with these settings whether it answers.
    Probe(Settings),
}

/// How.
#[derive(Debug, PartialEq, Eq)]
pub struct Settings {
    pub mount: PathBuf,
    pub models: PathBuf,
    pub socket: PathBuf,
    pub peer_uid: u32,
    pub bind_below: Vec<PathBuf>,
    pub listen_below: Vec<PathBuf>,
    pub own: Vec<PathBuf>,
}

/// An option, its variable, and whether it takes several values.
const OPTIONS: [(&str, &str, bool); 7] = [
    ("--mount", "LARDER_KEEPER_MOUNT", false),
    ("--models", "LARDER_KEEPER_MODELS", false),
    ("--socket", "LARDER_KEEPER_SOCKET", false),
    ("--peer-uid", "LARDER_KEEPER_PEER_UID", false),
    ("--bind-below", "LARDER_KEEPER_BIND_BELOW", true),
    ("--listen-below", "LARDER_KEEPER_LISTEN_BELOW", true),
    ("--own", "LARDER_KEEPER_OWN", true),
];

/// Reads the arguments (without the program's name), and what they leave open from the environment.
///
/// # Errors
/// Everything that cannot be meant, a sentence each.
pub fn parse(arguments: Vec<OsString>, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Command, Vec<String>> {
    let mut problems = Vec::new();
    let mut typed: [Vec<OsString>; OPTIONS.len()] = Default::default();
    let mut is_probe = false;
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let (name, inline) = split(&argument);
        match name.to_str() {
            Some("-h" | "--help") => return Ok(Command::Print(HELP.to_owned())),
            Some("-V" | "--version") => {
                return Ok(Command::Print(concat!("larder-keeper ", env!("CARGO_PKG_VERSION"), "\n").to_owned()));
            }
            Some("--probe") if inline.is_none() => {
                is_probe = true;
                continue;
            }
            _ => {}
        }
        let Some(option) = OPTIONS.iter().position(|(option, ..)| name == *option) else {
            problems.push(format!("unknown argument `{}`", argument.to_string_lossy()));
            continue;
        };
        match inline.map(OsStr::to_owned).or_else(|| arguments.next()) {
            Some(value) => typed[option].push(value),
            None => problems.push(format!("`{}` needs a value", OPTIONS[option].0)),
        }
    }
    for ((name, variable, is_list), values) in OPTIONS.iter().zip(&mut typed) {
        // An empty variable is as good as none: that is what a template leaves of an absent value.
        if let Some(value) = env(variable).filter(|value| values.is_empty() && !value.is_empty()) {
            let parts = value.as_bytes().split(|byte| *is_list && *byte == b':');
            values.extend(parts.map(|part| OsStr::from_bytes(part).to_owned()));
        }
        if values.len() > 1 && !is_list {
            problems.push(format!("`{name}` is given more than once"));
        }
    }
    let [mount, models, socket, peer_uid, bind_below, listen_below, own] = typed;
    let peer_uid = peer_uid.into_iter().next().unwrap_or_else(|| PEER_UID.into());
    // The last UID means "no change" to chown(2).
    let uid = number(peer_uid.as_bytes()).filter(|uid| *uid != u32::MAX);
    if uid.is_none() {
        problems.push(format!("`{}` is no UID", peer_uid.to_string_lossy()));
    }
    let settings = Settings {
        mount: places(mount, &[MOUNT], &mut problems).swap_remove(0),
        models: places(models, &[MODELS], &mut problems).swap_remove(0),
        socket: places(socket, &[protocol::SOCKET], &mut problems).swap_remove(0),
        peer_uid: uid.unwrap_or_default(),
        bind_below: places(bind_below, &BIND_BELOW, &mut problems),
        listen_below: places(listen_below, &LISTEN_BELOW, &mut problems),
        own: places(own, &[], &mut problems),
    };
    if settings.socket.as_os_str().len() > SOCKET_LEN_MAX {
        problems.push(format!("`{}` has more than {SOCKET_LEN_MAX} bytes", settings.socket.display()));
    }
    match (problems.is_empty(), is_probe) {
        (true, false) => Ok(Command::Keep(settings)),
        (true, true) => Ok(Command::Probe(settings)),
        (false, _) => Err(problems),
    }
}

/// An option and its value, if that is in the same argument.
fn split(argument: &OsStr) -> (&OsStr, Option<&OsStr>) {
    let bytes = argument.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(at) => (OsStr::from_bytes(&bytes[..at]), Some(OsStr::from_bytes(&bytes[at + 1..]))),
        None => (argument, None),
    }
}

/// Absolute paths, the defaults if there are none.
fn places(values: Vec<OsString>, defaults: &[&str], problems: &mut Vec<String>) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = values.into_iter().map(PathBuf::from).collect();
    if paths.is_empty() {
        paths.extend(defaults.iter().map(PathBuf::from));
    }
    for path in &paths {
        let is_plain = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
        if !is_plain || !path.is_absolute() || path == Path::new("/") {
            problems.push(format!("`{}` is no place: an absolute path without `..`, and not `/`", path.display()));
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Settings, String> {
        let env = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        match parse(arguments.iter().map(OsString::from).collect(), &env) {
            Ok(Command::Keep(settings)) => Ok(settings),
            Ok(Command::Probe(settings)) => Err(format!("probe {}", settings.socket.display())),
            Ok(Command::Print(text)) => Err(text),
            Err(problems) => Err(problems.join("\n")),
        }
    }

    #[test]
    fn every_option_is_read() {
        let settings = check(
            &[
                "--mount=/m",
                "--models=/n",
                "--socket",
                "/s=",
                "--peer-uid=7",
                "--bind-below=/a",
                "--bind-below",
                "/b:c",
                "--own=/e",
                "--own=/f",
            ],
            &[("LARDER_KEEPER_LISTEN_BELOW", "/c:/d"), ("LARDER_KEEPER_MOUNT", "/x"), ("LARDER_KEEPER_PEER_UID", "")],
        );
        let paths = |paths: [&str; 2]| paths.map(PathBuf::from).to_vec();
        let expected = Settings {
            mount: "/m".into(),
            models: "/n".into(),
            socket: "/s=".into(),
            peer_uid: 7,
            bind_below: paths(["/a", "/b:c"]),
            listen_below: paths(["/c", "/d"]),
            own: paths(["/e", "/f"]),
        };
        assert_eq!(settings, Ok(expected));
    }

    #[test]
    fn the_defaults_are_those_of_the_help() {
        let settings = check(&[], &[]).unwrap();
        assert_eq!(settings.peer_uid.to_string(), PEER_UID);
        assert!(settings.own.is_empty());
        let single = [&settings.mount, &settings.models, &settings.socket];
        for path in single.into_iter().chain(&settings.bind_below).chain(&settings.listen_below) {
            assert!(HELP.contains(path.to_str().unwrap()), "{path:?}");
        }
    }

    #[test]
    fn every_slip_is_named() {
        let said = check(
            &[
                "x",
                "--lazy",
                "--mount=m",
                "--peer-uid=-1",
                "--bind-below=/a/../b",
                "--socket=/a",
                "--socket=/b",
                "--mount",
            ],
            &[("LARDER_KEEPER_LISTEN_BELOW", "/c:")],
        )
        .unwrap_err();
        for expected in [
            "argument `x`",
            "`--lazy`",
            "`m` is no place",
            "`-1` is no UID",
            "`/a/../b` is no place",
            "`--socket` is given more",
            "`--mount` needs a value",
            "`` is no place",
        ] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
        let long = format!("--socket=/{}", "s".repeat(SOCKET_LEN_MAX));
        for (argument, expected) in [
            ("--peer-uid=4294967295", "is no UID"),
            ("--peer-uid=", "`` is no UID"),
            ("--mount=/", "`/` is no place"),
            (&long, "more than 107 bytes"),
            ("--own=", "`` is no place"),
            ("--probe=yes", "unknown argument `--probe=yes`"),
            ("--probe", "probe /run/larder-keeper/keeper.sock"),
            ("--help", "Exit codes:"),
            ("-V", "larder-keeper 0."),
        ] {
            let said = check(&[argument], &[]).unwrap_err();
            assert!(said.contains(expected), "{argument}: {said}");
        }
    }
}
