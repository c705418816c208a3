//! What can be typed or set. Reads the arguments and the environment it is given, and nothing else.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use larder_init::client::SOCKET;
use larder_init::failure::{self, Failure};
use larder_init::place::ModelRoot;

/// Long enough for a node that is still starting its daemon.
const TIMEOUT_DEFAULT: Duration = Duration::from_mins(30);
/// A week: what is longer is a slip of the keyboard.
const TIMEOUT_SECONDS_MAX: u64 = 7 * 86_400;
/// A UID of Kubernetes has 36 characters.
const POD_UID_LEN_MAX: usize = 128;

const HELP: &str = "\
Leaves models where a pod expects them, from the node's larder cache.

Usage: larder-init [OPTIONS] SOURCE DEST [SOURCE DEST]...

SOURCE is s3://bucket/prefix/, gs://bucket/prefix/, file:///dir or https://host/file.
DEST becomes a link to a read-only directory with the model's files; in an empty
directory that is already there, a link is put for each of them.

Options:
      --copy                  Files of the pod's own instead of links (reflinks where possible)
      --fresh                 Refuse a cached copy when the origin cannot be asked
      --lazy                  Do not wait for the bytes: reads of the model do [LARDER_LAZY]
      --include GLOB          Only files that match; may be given again
      --exclude GLOB          Not the files that match; may be given again
      --socket PATH           The daemon's socket [LARDER_SOCKET, /run/larder/larder.sock]
      --timeout SECONDS       How long to go without a daemon [LARDER_TIMEOUT, 1800]
      --pod-uid UID           Whose lease keeps the model [LARDER_POD_UID, POD_UID]
      --model-root FROM=TO    Where the node's directory FROM is mounted here [LARDER_MODEL_ROOT]
      --json                  The daemon's events on stdout, one JSON object a line
  -q, --quiet                 Only errors
  -h, --help                  This text
  -V, --version               The version

Without arguments, SOURCE and DEST are LARDER_SOURCE and LARDER_DEST.

";

/// What to do.
#[derive(Debug)]
pub enum Command {
    /// Print this and end.
    Print(String),
    /// Deliver models.
    Deliver(Settings),
}

/// One model and its place.
#[derive(Debug, PartialEq, Eq)]
pub struct Pair {
    /// The URI.
    pub source: String,
    /// The place.
    pub dest: PathBuf,
}

/// How to deliver.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option as typed")]
pub struct Settings {
    pub pairs: Vec<Pair>,
    pub copy: bool,
    pub fresh: bool,
    pub lazy: bool,
    pub include: Vec<String>,
    pub exclude: Vec<String>,
    pub socket: PathBuf,
    pub timeout: Duration,
    pub pod_uid: Option<String>,
    pub model_root: Option<ModelRoot>,
    pub json: bool,
    pub quiet: bool,
}

fn usage(message: impl Into<String>) -> Failure {
    Failure::new(failure::USAGE, message).hint("`larder-init --help` shows what can be given")
}

fn text(value: OsString, name: &str) -> Result<String, Failure> {
    value.into_string().map_err(|value| usage(format!("{name} is not UTF-8: `{}`", value.to_string_lossy())))
}

/// Reads the arguments (without the program's name), and what they leave open from the environment.
///
/// # Errors
/// A [`Failure`] with exit code 64 for anything that cannot be meant.
pub fn parse(arguments: Vec<OsString>, env: &dyn Fn(&str) -> Option<OsString>) -> Result<Command, Failure> {
    // An empty variable is as good as none: that is what a template leaves of an absent value.
    let env = |name: &str| env(name).filter(|value| !value.is_empty());
    let mut typed = Typed::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        if let Some(text) = typed.take(argument, &mut arguments)? {
            return Ok(Command::Print(text));
        }
    }
    if typed.places.is_empty() && !typed.ends_options {
        typed.places.extend(["LARDER_SOURCE", "LARDER_DEST"].into_iter().filter_map(env));
    }
    let timeout = match typed.timeout.or_else(|| env("LARDER_TIMEOUT")) {
        Some(value) => parse_timeout(&text(value, "the timeout")?)?,
        None => TIMEOUT_DEFAULT,
    };
    let pod_uid = match typed.pod_uid.or_else(|| env("LARDER_POD_UID")).or_else(|| env("POD_UID")) {
        Some(value) => Some(parse_pod_uid(text(value, "the pod's UID")?)?),
        None => None,
    };
    let model_root = match typed.model_root.or_else(|| env("LARDER_MODEL_ROOT")) {
        Some(value) => {
            let value = text(value, "the model root")?;
            let root = ModelRoot::parse(&value);
            Some(root.ok_or_else(|| usage(format!("`{value}` is no model root: FROM=TO, both absolute paths")))?)
        }
        None => None,
    };
    let lazy = typed.lazy || env("LARDER_LAZY").is_some_and(|value| value != "0" && value != "false");
    if lazy && typed.copy {
        return Err(usage("`--copy` and `--lazy` exclude each other: a copy needs all the bytes"));
    }
    let socket = typed.socket.or_else(|| env("LARDER_SOCKET")).unwrap_or_else(|| SOCKET.into());
    Ok(Command::Deliver(Settings {
        pairs: pairs(typed.places)?,
        copy: typed.copy,
        fresh: typed.fresh,
        lazy,
        include: typed.include,
        exclude: typed.exclude,
        socket: socket.into(),
        timeout,
        pod_uid,
        model_root,
        json: typed.json,
        quiet: typed.quiet,
    }))
}

/// The arguments as they are, not yet understood.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option as typed")]
struct Typed {
    places: Vec<OsString>,
    ends_options: bool,
    copy: bool,
    fresh: bool,
    lazy: bool,
    include: Vec<String>,
    exclude: Vec<String>,
    socket: Option<OsString>,
    timeout: Option<OsString>,
    pod_uid: Option<OsString>,
    model_root: Option<OsString>,
    json: bool,
    quiet: bool,
}

impl Typed {
    /// Takes one argument, and the next where it is an option's value. A text is to be printed.
    fn take(
        &mut self,
        argument: OsString,
        rest: &mut dyn Iterator<Item = OsString>,
    ) -> Result<Option<String>, Failure> {
        let bytes = argument.as_encoded_bytes();
        if self.ends_options || !bytes.starts_with(b"-") || bytes == b"-" {
            self.places.push(argument);
            return Ok(None);
        }
        let argument = text(argument, "an option")?;
        let (name, inline) = match argument.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name, Some(OsString::from(value))),
            _ => (argument.as_str(), None),
        };
        let flag = match name {
            "--" => Some(&mut self.ends_options),
            "--copy" => Some(&mut self.copy),
            "--fresh" => Some(&mut self.fresh),
            "--lazy" => Some(&mut self.lazy),
            "--json" => Some(&mut self.json),
            "-q" | "--quiet" => Some(&mut self.quiet),
            _ => None,
        };
        if let Some(flag) = flag {
            *flag = true;
            return if inline.is_none() { Ok(None) } else { Err(usage(format!("`{name}` takes no value"))) };
        }
        match name {
            "-h" | "--help" => return Ok(Some(format!("{HELP}{}", failure::TABLE))),
            "-V" | "--version" => return Ok(Some(concat!("larder-init ", env!("CARGO_PKG_VERSION"), "\n").to_owned())),
            "--include" | "--exclude" | "--socket" | "--timeout" | "--pod-uid" | "--model-root" => {}
            _ => return Err(usage(format!("unknown option `{name}`"))),
        }
        let value = inline.or_else(|| rest.next()).ok_or_else(|| usage(format!("`{name}` needs a value")))?;
        match name {
            "--include" => self.include.push(text(value, name)?),
            "--exclude" => self.exclude.push(text(value, name)?),
            "--socket" => self.socket = Some(value),
            "--timeout" => self.timeout = Some(value),
            "--pod-uid" => self.pod_uid = Some(value),
            _ => self.model_root = Some(value),
        }
        Ok(None)
    }
}

fn pairs(places: Vec<OsString>) -> Result<Vec<Pair>, Failure> {
    if places.is_empty() {
        return Err(usage("no SOURCE and no DEST were given"));
    }
    let mut pairs = Vec::new();
    let mut places = places.into_iter();
    while let Some(source) = places.next() {
        let source = text(source, "SOURCE")?;
        let dest = places.next().ok_or_else(|| usage(format!("no DEST was given for `{source}`")))?;
        if source.is_empty() || dest.is_empty() {
            return Err(usage("SOURCE or DEST is empty"));
        }
        pairs.push(Pair { source, dest: dest.into() });
    }
    Ok(pairs)
}

fn parse_timeout(text: &str) -> Result<Duration, Failure> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = text.parse().ok().filter(|seconds| is_number && *seconds <= TIMEOUT_SECONDS_MAX);
    let seconds = seconds
        .ok_or_else(|| usage(format!("`{text}` is no timeout: whole seconds, at most {TIMEOUT_SECONDS_MAX}")))?;
    Ok(Duration::from_secs(seconds))
}

fn parse_pod_uid(uid: String) -> Result<String, Failure> {
    let is_plain = uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if is_plain && !uid.is_empty() && uid.len() <= POD_UID_LEN_MAX {
        return Ok(uid);
    }
    Err(usage(format!("`{uid}` is no UID of a pod: set LARDER_POD_UID from metadata.uid")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Settings, String> {
        let env = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value));
        match parse(arguments.iter().map(OsString::from).collect(), &env) {
            Ok(Command::Deliver(settings)) => Ok(settings),
            Ok(Command::Print(text)) => Err(text),
            Err(failure) => {
                assert_eq!(failure.exit_code, failure::USAGE);
                Err(failure.message)
            }
        }
    }

    #[test]
    fn every_option_is_read() {
        let settings = check(
            &[
                "s3://b/m/",
                "--copy",
                "--fresh",
                "--include=*.json",
                "--include",
                "a=b",
                "--exclude",
                "x",
                "/d",
                "--socket=/s",
                "--timeout",
                "7",
                "--pod-uid",
                "u-1",
                "--model-root=/a=/b",
                "--json",
                "-q",
                "--",
                "-s",
                "-d",
            ],
            &[],
        )
        .unwrap();
        assert!(settings.copy && settings.fresh && settings.json && settings.quiet);
        assert_eq!(settings.include, ["*.json", "a=b"]);
        assert_eq!(settings.exclude, ["x"]);
        assert_eq!(settings.socket, PathBuf::from("/s"));
        assert_eq!(settings.timeout, Duration::from_secs(7));
        assert_eq!(settings.pod_uid.as_deref(), Some("u-1"));
        assert_eq!(settings.model_root, ModelRoot::parse("/a=/b"));
        let pair = |source: &str, dest: &str| Pair { source: source.to_owned(), dest: dest.into() };
        assert_eq!(settings.pairs, [pair("s3://b/m/", "/d"), pair("-s", "-d")]);
    }

    #[test]
    fn the_environment_fills_in() {
        let variables = [
            ("LARDER_SOURCE", "s"),
            ("LARDER_DEST", "d"),
            ("LARDER_SOCKET", "/s"),
            ("LARDER_TIMEOUT", "0"),
            ("LARDER_MODEL_ROOT", "/a=/b"),
            ("LARDER_POD_UID", ""),
            ("POD_UID", "u"),
        ];
        let settings = check(&[], &variables).unwrap();
        assert_eq!(settings.pairs, [Pair { source: "s".to_owned(), dest: "d".into() }]);
        assert_eq!((settings.socket, settings.timeout), (PathBuf::from("/s"), Duration::ZERO));
        assert_eq!((settings.pod_uid.as_deref(), settings.model_root.is_some()), (Some("u"), true));
        let settings = check(&["x", "y", "--timeout=3", "--pod-uid=v"], &variables).unwrap();
        assert_eq!(settings.pairs, [Pair { source: "x".to_owned(), dest: "y".into() }]);
        assert_eq!((settings.timeout, settings.pod_uid.as_deref()), (Duration::from_secs(3), Some("v")));
        let settings = check(&["x", "y"], &[]).unwrap();
        assert_eq!((settings.socket, settings.timeout), (PathBuf::from(SOCKET), TIMEOUT_DEFAULT));
        assert_eq!((settings.pod_uid, settings.model_root), (None, None));
        assert!(!settings.lazy && check(&["--lazy", "x", "y"], &[]).unwrap().lazy);
        for (value, lazy) in [("1", true), ("true", true), ("0", false), ("false", false), ("", false)] {
            assert_eq!(check(&["x", "y"], &[("LARDER_LAZY", value)]).unwrap().lazy, lazy, "{value:?}");
        }
    }

    #[test]
    fn slips_are_named() {
        for (arguments, said) in [
            (&[][..], "no SOURCE and no DEST"),
            (&["s"], "no DEST was given for `s`"),
            (&["s", "d", "t"], "no DEST was given for `t`"),
            (&["", "d"], "is empty"),
            (&["s", ""], "is empty"),
            (&["--lasy", "s", "d"], "unknown option `--lasy`"),
            (&["--lazy", "--copy", "s", "d"], "exclude each other"),
            (&["-x"], "unknown option `-x`"),
            (&["--copy=yes"], "`--copy` takes no value"),
            (&["s", "d", "--socket"], "`--socket` needs a value"),
            (&["s", "d", "--timeout=1.5"], "`1.5` is no timeout"),
            (&["s", "d", "--timeout=+1"], "`+1` is no timeout"),
            (&["s", "d", "--timeout=99999999999999999999"], "is no timeout"),
            (&["s", "d", "--timeout="], "`` is no timeout"),
            (&["s", "d", "--pod-uid", "a b"], "is no UID"),
            (&["s", "d", "--pod-uid="], "is no UID"),
            (&["s", "d", "--model-root", "a"], "is no model root"),
            (&["--help"], "Exit codes:"),
            (&["s", "-V"], "larder-init 0."),
        ] {
            let message = check(arguments, &[]).unwrap_err();
            assert!(message.contains(said), "{arguments:?}: {message}");
        }
        assert!(check(&[], &[("LARDER_SOURCE", "s")]).unwrap_err().contains("no DEST"));
        assert!(check(&["--"], &[("LARDER_SOURCE", "s"), ("LARDER_DEST", "d")]).is_err());
    }

    #[test]
    fn a_place_may_have_any_name_and_a_source_may_not() {
        use std::os::unix::ffi::OsStringExt as _;
        let odd = OsString::from_vec(vec![b'/', 0xff]);
        assert!(parse(vec!["s".into(), odd.clone()], &|_| None).is_ok());
        assert!(parse(vec![odd, "d".into()], &|_| None).is_err());
    }
}
