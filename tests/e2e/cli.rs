//! What the command line says, word for word where the words are the point.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use larder_origins::{Checksums, Fault, Front, Noise, Origin, SampleModel, which};
use serde_json::{Value, json};

use crate::support::{Larder, Ran, origin_with_model, skipped, upload, wait};

/// Without what differs from run to run: the store's place, digests, times and rates.
fn redacted(larder: &Larder, text: &str) -> String {
    let text = text.replace(larder.store().to_str().expect("text"), "STORE");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for line in &mut lines {
        if let Some((before, _)) = line.split_once("moved in ") {
            *line = format!("{before}moved in TIME (RATE)");
        } else if let Some((before, after)) = line.split_once('(')
            && (after.ends_with(" ms)") || after.ends_with(" s)"))
        {
            *line = format!("{before}(TIME)");
        }
        if let Some((before, digest)) = line.split_once("models/")
            && digest.len() == 64
            && digest.bytes().all(|b| b.is_ascii_hexdigit())
        {
            *line = format!("{before}models/DIGEST");
        }
    }
    lines.join("\n")
}

/// Flips a bit of a read-only file, behind larder's back.
fn damage(file: &Path) {
    std::fs::set_permissions(file, std::fs::Permissions::from_mode(0o600)).expect("owned");
    let mut bytes = std::fs::read(file).expect("a file");
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(file, bytes).expect("written in place");
}

fn manifest_of(larder: &Larder, digest: &Value) -> PathBuf {
    larder.store().join(format!("v1/manifests/{}.json", digest.as_str().expect("a digest")))
}

#[test]
fn a_prefetch_says_what_moved_what_it_was_compared_with_and_where_it_is() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    upload(origin.bucket(), "plain/", &SampleModel::new(2, 1, 3 << 20), Checksums::none());
    let larder = Larder::at(&origin);
    let prefetch = |source: &str| {
        let ran = larder.ok(&["prefetch", source]);
        assert_eq!(ran.stdout, "", "the summary is for people");
        let lines: Vec<&str> = ran.stderr.lines().collect();
        let (last, others) = lines.split_last().expect("lines");
        assert!(others.iter().all(|line| line.len() <= 80), "{lines:#?}");
        assert_eq!(larder.ok(&["path", source]).stdout.trim_end(), last.trim_start());
        redacted(&larder, &ran.stderr)
    };
    insta::assert_snapshot!(prefetch("s3://models/m/"), @"
    s3://models/m/: 18.2 MiB moved in TIME (RATE)
      9 files, all checked against the origin's CRC64NVME as they came
      STORE/v1/models/DIGEST
    ");
    insta::assert_snapshot!(prefetch("s3://models/m/"), @"
    s3://models/m/: 18.2 MiB, nothing had to move (TIME)
      9 files, all checked against the origin's CRC64NVME when they came, not now
      STORE/v1/models/DIGEST
    ");
    insta::assert_snapshot!(prefetch("s3://models/plain"), @"
    s3://models/plain: 3.2 MiB moved in TIME (RATE)
      the origin keeps no checksum for 7 files (BLAKE3 digests are recorded)
      STORE/v1/models/DIGEST
    ");
    insta::assert_snapshot!(prefetch("s3://models/plain"), @"
    s3://models/plain: 3.2 MiB, nothing had to move (TIME)
      the origin keeps no checksum for 7 files (BLAKE3 digests are recorded)
      STORE/v1/models/DIGEST
    ");
}

#[test]
fn a_pull_that_goes_on_says_how_much_of_it_moved() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let larder = Larder::at(&origin);
    larder.ok(&["prefetch", "s3://models/m", "--exclude", "*00001*", "--exclude", "*.json"]);
    insta::assert_snapshot!(redacted(&larder, &larder.ok(&["prefetch", "s3://models/m"]).stderr), @"
    s3://models/m: 6.2 MiB of 18.2 MiB moved in TIME (RATE)
      9 files, all checked against the origin's CRC64NVME when they came
      STORE/v1/models/DIGEST
    ");
}

#[test]
fn only_a_prefetch_makes_a_store() {
    let larder = Larder::new::<&str, &str>([]);
    let copy = larder.scratch().join("copy");
    let source = "s3://models/m";
    for command in [
        &["verify"][..],
        &["verify", "--repair", source],
        &["rm", source],
        &["path", source],
        &["inspect", source],
        &["export", source, copy.to_str().expect("text")],
    ] {
        let told = larder.fails(66, command);
        assert_eq!(
            told.replace(larder.store().to_str().expect("text"), "STORE"),
            "\
error: there is no store in `STORE`
  hint: check --store and LARDER_STORE; the first `larder prefetch` makes a store
",
            "{command:?}"
        );
        assert!(!larder.store().exists() && !copy.exists(), "{command:?} made something");
    }
    // An empty directory, or a new disk, is no store yet.
    std::fs::create_dir_all(larder.store().join("lost+found")).expect("directories");
    larder.fails(66, &["verify"]);
    larder.fails(66, &["rm", source]);
    assert!(!larder.store().join("v1").exists());
    assert_eq!(larder.ok(&["ls"]).stdout, "");
}

#[test]
fn usage_errors_ask_for_what_is_missing_and_nothing_else() {
    let larder = Larder::new::<&str, &str>([]);
    insta::assert_snapshot!(larder.fails(64, &["prefetch"]), @"
    error: the following required arguments were not provided:
      <SOURCE>...

    Usage: larder prefetch <SOURCE>...

    For more information, try '--help'.
    ");
    for command in ["inspect", "path", "export", "rm"] {
        let told = larder.fails(64, &[command]);
        assert!(!told.contains("--store"), "{told}");
    }
}

#[test]
fn the_store_is_named_by_flag_then_environment_then_home() {
    let mut larder = Larder::new::<&str, &str>([]);
    let told = |larder: &Larder, args: &[&str]| larder.ok(args).stderr;
    let other = larder.scratch().join("other");
    let by_flag = told(&larder, &["ls", "--store", other.to_str().expect("text")]);
    assert!(by_flag.contains(other.to_str().expect("text")), "{by_flag}");
    let by_environment = told(&larder, &["ls"]);
    assert!(by_environment.contains(larder.store().to_str().expect("text")), "{by_environment}");
    larder.set("LARDER_STORE", "");
    let by_home = told(&larder, &["ls"]);
    assert!(by_home.contains(larder.scratch().join(".cache/larder").to_str().expect("text")), "{by_home}");
}

#[test]
fn every_help_fits_a_screen() {
    let mut larder = Larder::new::<&str, &str>([]);
    larder.set("COLUMNS", "80");
    let commands = ["prefetch", "ls", "inspect", "path", "export", "verify", "rm", "pin", "unpin", "status", "daemon"];
    for command in [&["", "completions"], &commands[..]].concat() {
        let args: Vec<&str> = [command, "--help"].into_iter().filter(|arg| !arg.is_empty()).collect();
        let help = larder.ok(&args).stdout;
        assert!(help.lines().all(|line| line.chars().count() <= 80), "{help}");
    }
    let help = larder.ok(&["prefetch", "--help"]).stdout;
    let at = |text: &str| help.find(text).unwrap_or_else(|| panic!("{text}: {help}"));
    assert!(at("--include") < at("--exclude") && at("--exclude") < at("--sync"), "{help}");
    assert!(at("--sync") < at("--anonymous") && at("--endpoint-url") < at("--store"), "{help}");
}

#[test]
fn a_damaged_manifest_is_damage_of_its_model_alone_and_is_repaired() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let other = SampleModel::new(9, 1, 2 << 20);
    upload(origin.bucket(), "n/", &other, Checksums::multipart());
    let larder = Larder::at(&origin);
    let digest = larder.prefetch("s3://models/m")["digest"].clone();
    larder.prefetch("s3://models/n");
    let whole = larder.ok(&["verify", "--json"]).last_event();
    damage(&manifest_of(&larder, &digest));

    let told = larder.fails(65, &["verify"]);
    insta::assert_snapshot!(told, @"
    s3://models/m: its manifest is damaged
    12 files (20.4 MiB) hashed again, 1 manifest damaged or missing
      hint: `larder verify --repair` fetches it again
    ");
    let events = larder.run(&["verify", "--json"]).events();
    assert_eq!(
        events[0],
        json!({"event": "damaged_manifest", "digest": digest, "models": ["s3://models/m"], "missing": false})
    );
    assert_eq!(
        events[1]["blobs"], whole["blobs"],
        "all blobs are hashed, those of that model by its source: {events:?}"
    );
    assert_eq!(events[1]["damaged_manifests"], 1);
    larder.ok(&["verify", "s3://models/n"]);
    let told = larder.fails(65, &["path", "s3://models/m"]);
    insta::assert_snapshot!(told, @"
    error: the manifest of `s3://models/m` is damaged or missing
      hint: `larder prefetch s3://models/m` completes it
    ");

    let before = origin.reads();
    let told = larder.ok(&["verify", "--repair"]).stderr;
    assert!(told.ends_with("1 manifest repaired\n"), "{told}");
    assert_eq!(origin.reads(), before, "no byte of a file moves for a manifest");
    larder.holds("s3://models/m", &model.files);
    larder.holds("s3://models/n", &other.files);
    larder.ok(&["verify"]);

    std::fs::remove_file(manifest_of(&larder, &digest)).expect("a manifest");
    let told = larder.fails(65, &["verify"]);
    assert!(told.starts_with("s3://models/m: its manifest is missing\n"), "{told}");
    larder.ok(&["verify", "--repair", "s3://models/m"]);
    larder.holds("s3://models/m", &model.files);
    larder.ok(&["verify"]);
}

#[test]
fn a_damaged_manifest_and_a_damaged_file_are_repaired_in_one_go() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let larder = Larder::at(&origin);
    let digest = larder.prefetch("s3://models/m")["digest"].clone();
    let shard = "model-00002-of-00003.safetensors";
    let tree = larder.ok(&["path", "s3://models/m"]).stdout;
    damage(&Path::new(tree.trim_end()).join(shard));
    damage(&manifest_of(&larder, &digest));

    let told = larder.fails(65, &["verify", "s3://models/m"]);
    insta::assert_snapshot!(told, @"
    s3://models/m: its manifest is damaged
    s3://models/m: model-00002-of-00003.safetensors is damaged in bytes 3145728-4194304
    9 files (18.2 MiB) hashed again, 1 file and 1 manifest damaged or missing
      hint: `larder verify --repair s3://models/m` fetches it again
    ");
    let told = larder.ok(&["verify", "--repair", "s3://models/m"]).stderr;
    assert!(told.ends_with("1 file and 1 manifest repaired\n"), "{told}");
    larder.holds("s3://models/m", &model.files);
    larder.ok(&["verify"]);
}

/// A tree that no manifest answers for may show anything: it is made anew with its manifest.
#[test]
fn a_missing_manifest_does_not_hide_a_damaged_file_from_repair() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let larder = Larder::at(&origin);
    let digest = larder.prefetch("s3://models/m")["digest"].clone();
    let tree = larder.ok(&["path", "s3://models/m"]).stdout;
    damage(&Path::new(tree.trim_end()).join("model-00002-of-00003.safetensors"));
    std::fs::remove_file(manifest_of(&larder, &digest)).expect("a manifest");
    larder.fails(65, &["verify", "s3://models/m"]);
    larder.ok(&["verify", "--repair", "s3://models/m"]);
    larder.holds("s3://models/m", &model.files);
    larder.ok(&["verify"]);
}

/// What no source names any more cannot come again; it is said, and does not stop the rest.
#[test]
fn a_model_without_a_source_is_reported_as_not_repairable() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let larder = Larder::at(&origin);
    let old = larder.prefetch("s3://models/m")["digest"].clone();
    let shard = "model-00002-of-00003.safetensors";
    let old_shard = larder.store().join(format!("v1/models/{}/{shard}", old.as_str().expect("a digest")));
    let mut new = model.clone();
    new.files.insert(shard.into(), Noise::new(5).bytes(4 << 20));
    upload(origin.bucket(), "m/", &new, Checksums::multipart());
    let digest = larder.prefetch("s3://models/m")["digest"].clone();
    assert_ne!(old, digest);
    let short = &old.as_str().expect("a digest")[..12];
    let redacted = |told: String| told.replace(short, "OLD");

    // A file that only the superseded model has.
    damage(&old_shard);
    damage(&manifest_of(&larder, &digest));
    let told = redacted(larder.fails(65, &["verify", "--repair"]));
    assert!(told.contains(&format!("OLD: {shard} is damaged in bytes")), "{told}");
    assert!(told.ends_with("OLD: its file cannot be fetched again, because no source names this model now;\n  `larder rm OLD` removes it\n"), "{told}");
    larder.holds("s3://models/m", &new.files);
    larder.ok(&["verify", "s3://models/m"]);

    // And its manifest.
    damage(&manifest_of(&larder, &old));
    let told = redacted(larder.fails(65, &["verify", "--repair"]));
    assert!(told.contains("OLD: its manifest is damaged\n"), "{told}");
    assert!(told.contains("OLD: its manifest cannot be fetched again"), "{told}");
    larder.fails(65, &["inspect", short]);
    larder.ok(&["rm", short]);
    larder.ok(&["verify"]);
    larder.holds("s3://models/m", &new.files);
}

#[test]
fn inspect_shows_what_is_known_of_a_model_that_is_here_in_part() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let refused = "model-00003-of-00003.safetensors";
    origin.misbehave_on_reads(move |_, request| {
        request.path.ends_with(refused).then_some(Fault::Refuse(403, "AccessDenied", None))
    });
    let larder = Larder::at(&origin);
    // The refusal ends the pull; small files come first.
    larder.fails(77, &["prefetch", "s3://models/m"]);
    let told = larder.fails(66, &["path", "s3://models/m"]);
    assert!(told.starts_with("error: `s3://models/m` is here only in part: "), "{told}");

    let shown = larder.ok(&["inspect", "s3://models/m"]);
    assert!(
        shown.stdout.contains("source  s3://models/m\n") && shown.stdout.contains("state   partial\n"),
        "{shown:?}"
    );
    assert!(shown.stderr.ends_with("hint: `larder prefetch s3://models/m` completes it\n"), "{shown:?}");
    let known = larder.ok(&["inspect", "--json", "s3://models/m"]).last_event();
    let listed = larder.ok(&["ls", "--json"]).last_event();
    assert_eq!((&known["state"], &known["path"], &known["digest"]), (&json!("partial"), &Value::Null, &Value::Null));
    assert_eq!((&known["bytes"], &known["bytes_here"]), (&json!(model.len()), &listed["bytes_here"]));
    let files = known["files"].as_array().expect("files");
    assert_eq!(files.len(), model.files.len());
    for file in files {
        let path = file["path"].as_str().expect("a path");
        assert_eq!(file["size"], model.files[path].len(), "{file}");
        assert!(file["version"].as_str().expect("a version").starts_with("etag:"), "{file}");
        if path == refused {
            assert_eq!(file["bytes_here"], 0);
        }
    }

    // A finished model that lost a file.
    origin.behave();
    larder.prefetch("s3://models/m");
    let done = larder.ok(&["inspect", "--json", "s3://models/m"]).last_event();
    assert_eq!((&done["state"], &done["bytes_here"]), (&json!("complete"), &json!(model.len())));
    let lost = done["files"].as_array().expect("files").iter().find(|file| file["path"] == refused).expect("listed");
    let lost = lost["digest"].as_str().expect("a digest");
    let fresh = std::fs::read_dir(larder.store().join("v1/fresh")).expect("boots").next().expect("one").expect("one");
    std::fs::remove_file(fresh.path().join(lost)).expect("a blob");
    let shown = larder.ok(&["inspect", "s3://models/m"]);
    let row = shown.stdout.lines().find(|line| line.starts_with(refused)).expect("its row");
    assert!(shown.stdout.contains("state   damaged\n") && row.contains("6.0 MiB    -  "), "{shown:?}");
    larder.ok(&["prefetch", "s3://models/m"]);
    larder.holds("s3://models/m", &model.files);
}

/// On a real terminal: bars while it runs, nothing but the result afterwards, and no color ever.
#[test]
fn bars_are_drawn_on_a_terminal_and_leave_nothing_behind() {
    let name = "bars_are_drawn_on_a_terminal_and_leave_nothing_behind";
    let Some(script) = which("script") else { return skipped(name, "script (util-linux) is not installed") };
    let origin = Origin::start(Front::S3).expect("an origin");
    upload(origin.bucket(), "m/", &SampleModel::new(3, 5, 6 << 20), Checksums::multipart());
    origin.misbehave_on_reads(|number, _| Some(if number == 2 { Fault::slow_down() } else { Fault::Slow(4 << 20) }));
    let larder = Larder::at(&origin);
    let in_terminal = |term: &str| {
        let mut command = larder.command(&[]);
        let line = format!(
            "stty rows 24 cols {} && exec '{}' prefetch s3://models/m",
            Screen::WIDTH,
            command.get_program().to_str().expect("text")
        );
        let environment: Vec<_> =
            command.get_envs().filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned()))).collect();
        command = Command::new(&script);
        command.env_clear().envs(environment).env("TERM", term).args(["-qec", &line, "/dev/null"]);
        let output = crate::support::program(&mut command);
        String::from_utf8(output.stdout).expect("text").replace("\r\n", "\n")
    };
    let printed = in_terminal("xterm-256color");
    let screen = Screen::after(&printed);
    assert!(printed.contains("s3://models/m: ") && printed.contains(" connections"), "{printed:?}");
    assert!(printed.contains("[==") && printed.contains("model-00001-of-00005.safetensors, 6.0 MiB"), "{printed:?}");
    for code in printed.split('\u{1b}').skip(1).filter_map(|code| code.chars().find(char::is_ascii_alphabetic)) {
        assert!("AJKhl".contains(code), "moves and erases, colors nothing: {code}");
    }
    assert_eq!(screen.0.len(), 3, "{screen:?}");
    assert!(screen.0[0].starts_with("s3://models/m: 30.2 MiB moved in "), "{screen:?}");

    // A terminal that cannot move its cursor gets lines, and a result.
    std::fs::remove_dir_all(larder.store()).expect("a store");
    let printed = in_terminal("dumb");
    assert!(!printed.contains('\u{1b}'), "{printed:?}");
    assert!(printed.contains("moved in "), "{printed:?}");
}

/// The least terminal that shows what `console` draws.
#[derive(Debug)]
struct Screen(Vec<String>);

impl Screen {
    /// The result has room on it, the bars have more than the 80 of a terminal that tells no size.
    const WIDTH: usize = 120;

    fn after(printed: &str) -> Self {
        let mut lines: Vec<Vec<char>> = vec![Vec::new()];
        let (mut row, mut column) = (0, 0);
        let mut rest = printed;
        while let Some(c) = rest.chars().next() {
            rest = &rest[c.len_utf8()..];
            // A line wraps when a character comes that has no room on it.
            if c == '\n' || (column == Self::WIDTH && !c.is_ascii_control()) {
                (row, column) = (row + 1, 0);
                lines.resize(lines.len().max(row + 1), Vec::new());
            }
            match c {
                '\n' => {}
                '\r' => column = 0,
                '\u{1b}' => {
                    let end = rest.find(|c: char| c.is_ascii_alphabetic()).expect("a code ends");
                    let (code, after) = rest.split_at(end + 1);
                    rest = after;
                    match code {
                        "[2K" => lines[row].clear(),
                        up if up.ends_with('A') => row -= up[1..up.len() - 1].parse::<usize>().expect("a number"),
                        other => panic!("a code that is not drawn with: {other}"),
                    }
                }
                c => {
                    let length = lines[row].len().max(column + 1);
                    lines[row].resize(length, ' ');
                    lines[row][column] = c;
                    column += 1;
                }
            }
        }
        let lines = lines.into_iter().map(|line| String::from_iter(line).trim_end().to_owned());
        Self(lines.filter(|line| !line.is_empty()).collect())
    }
}

/// The same command under a limit that a shell sets. It must end, and in words.
#[track_caller]
fn limited(larder: &Larder, limit: &str, args: &[&str]) -> Ran {
    let run = larder.command(args);
    let mut command = Command::new("bash");
    command.env_clear().envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
        .args(["-c", &format!("{limit}; exec timeout -s KILL 60 \"$@\""), "bash", env!("CARGO_BIN_EXE_larder")])
        .args(args);
    wait(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("bash starts"))
}

#[test]
fn a_limit_on_the_length_of_files_is_told() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let larder = Larder::at(&origin);
    let ran = limited(&larder, "ulimit -f 1024", &["prefetch", "s3://models/m/"]);
    assert_eq!(ran.code, Some(74), "{ran:?}");
    assert!(ran.stderr.contains("File too large") && ran.stderr.contains("1024 KiB here: raise"), "{ran:?}");
    larder.ok(&["prefetch", "s3://models/m/"]);
    larder.holds("s3://models/m/", &model.files);
    let target = larder.scratch().join("target");
    let ran = limited(&larder, "ulimit -f 1024", &["export", "s3://models/m/", target.to_str().expect("text")]);
    assert_eq!(ran.code, Some(74), "{ran:?}");
    assert!(ran.stderr.contains("1024 KiB here: raise"), "{ran:?}");
    let longest = crate::support::read_tree(&target).values().map(Vec::len).max();
    assert!(longest < Some(1 << 20), "nothing half-written is left: {longest:?}");
}

#[test]
fn a_process_that_may_start_no_thread_says_so_and_ends() {
    let (origin, _) = origin_with_model(Checksums::multipart());
    let larder = Larder::at(&origin);
    let mut told = 0;
    for kib in (24_000..200_000).step_by(8_000) {
        let ran = limited(&larder, &format!("ulimit -v {kib}"), &["prefetch", "s3://models/none/"]);
        // Killed by `timeout`, or by a shell that starts nothing in so little.
        assert_ne!(ran.code, Some(137), "{kib} KiB: it hangs: {ran:?}");
        if ran.code == Some(70) {
            let limit = format!("at most {kib} KiB of address space (`ulimit -v`)");
            assert!(ran.stderr.contains("cannot start a thread: ") && ran.stderr.contains(&limit), "{ran:?}");
            assert!(!ran.stderr.contains("panic"), "{ran:?}");
            told += 1;
        }
    }
    assert!(told > 0, "no limit was low enough");
}

#[test]
fn a_variable_that_is_no_text_is_named_and_not_shown() {
    use std::os::unix::ffi::OsStrExt as _;
    let (origin, _) = origin_with_model(Checksums::multipart());
    let larder = Larder::at(&origin);
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"] {
        let value = std::ffi::OsStr::from_bytes(b"S3CR3T\xff");
        let ran =
            wait(larder.command(&["-vv", "prefetch", "s3://models/m/"]).env(name, value).spawn().expect("starts"));
        assert_eq!(ran.code, Some(77), "{ran:?}");
        assert!(ran.stderr.contains(&format!("{name} is not UTF-8")), "{ran:?}");
        assert!(!ran.stderr.contains("S3CR3T"), "{ran:?}");
    }
}
