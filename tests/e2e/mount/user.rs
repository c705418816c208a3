//! `larder mount` by an ordinary user, who has fusermount3 and nothing else.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Command, Stdio};

use larder_origins::{Checksums, Front, Origin, SampleModel};

use super::mountable;
use crate::node::unmount_below;
use crate::support::{s3_environment, skipped, upload, wait};

/// A user that every machine has: fusermount3 wants to know its name.
const NOBODY: u32 = 65534;

/// What the user does: mounts, waits for the word that it is there, and reads at once. In a mount
/// namespace with a `/dev/fuse` for everybody, as distributions have it, and a way to the binary.
const SCRIPT: &str = r#"
set -eu
larder=$1 home=$2 source=$3
mount --bind "$larder" "$home/larder"
mknod -m 666 "$home/fuse" c 10 229
mount --bind "$home/fuse" /dev/fuse
exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -eu -c '
    cd "$HOME"
    ./larder mount "$HOME/models" 2> log & mount=$!
    end() { kill $mount 2>/dev/null || true; wait $mount || code=$?; }
    trap end EXIT
    turns=0
    until grep -q "models appear in" log; do
        kill -0 $mount || { cat log >&2; exit 3; }
        turns=$((turns + 1)); [ $turns -lt 600 ] || { cat log >&2; exit 4; }
        sleep 0.05
    done
    ls models >&2
    ./larder prefetch "$1" >&2
    find -L models/sources/s3 -name config.json -exec cat {} +
    code=0; kill $mount; wait $mount || code=$?
    trap - EXIT
    [ "$code" = 130 ] || [ "$code" = 0 ] || { cat log >&2; exit "$code"; }
    [ -z "$(ls models)" ]
' sh "$source"
"#;

#[test]
fn an_ordinary_user_mounts_and_reads_once_it_is_said_that_models_appear() {
    if !mountable() {
        return;
    }
    if Command::new("fusermount3").arg("-V").stdout(Stdio::null()).status().is_err() {
        return skipped("mount", "there is no fusermount3");
    }
    let origin = Origin::start(Front::S3).expect("an origin");
    let model = SampleModel::new(5, 1, 1 << 20);
    upload(origin.bucket(), "m/", &model, Checksums::multipart());
    let home = tempfile::Builder::new().prefix("larder-user-").tempdir().expect("a directory under /tmp");
    for directory in ["", "models"] {
        let path = home.path().join(directory);
        fs::create_dir_all(&path).expect("a directory");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a mode");
        chown(&path, Some(NOBODY), Some(NOBODY)).expect("an owner");
    }
    fs::write(home.path().join("larder"), "").expect("a file");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", SCRIPT, "sh", env!("CARGO_BIN_EXE_larder")]);
    command.arg(home.path()).arg("s3://models/m").env_clear().envs(s3_environment(&origin));
    command.env("PATH", std::env::var_os("PATH").unwrap_or_default()).env("HOME", home.path());
    let ran =
        wait(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("unshare"));
    let log = fs::read_to_string(home.path().join("log")).unwrap_or_default();
    assert_eq!(ran.code, Some(0), "{ran:?}\n{log}");
    assert!(ran.stdout.as_bytes() == model.files["config.json"], "{ran:?}\n{log}");
    unmount_below(Path::new(home.path()));
}
