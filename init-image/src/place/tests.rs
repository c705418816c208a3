//! Placing models of a few files, and every way a place can be taken.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;

/// A directory that goes with the value.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("larder-place-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A model with these files, under a digest made of `digit`.
    fn model(&self, digit: &str, files: &[(&str, &str)]) -> PathBuf {
        let model = self.0.join("models").join(digit.repeat(64));
        fs::create_dir_all(&model).unwrap();
        for (name, text) in files {
            let path = model.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        model
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn copy_all(model: &Path, place: &Path, files: u64, bytes: u64) -> Result<Copied, Error> {
    copy(model, place, files, bytes, &mut |_| {})
}

const SMALL: &[(&str, &str)] = &[("config.json", "{}"), ("empty", ""), ("sub/deep/a.bin", "abc")];

#[test]
fn roots_are_rewritten_by_whole_names() {
    let root = ModelRoot::parse("/var/lib/larder/=/larder").unwrap();
    for (path, expected) in [
        ("/var/lib/larder/models/x", "/larder/models/x"),
        ("/var/lib/larder", "/larder"),
        ("/var/lib/larder2/models/x", "/var/lib/larder2/models/x"),
        ("/elsewhere", "/elsewhere"),
    ] {
        assert_eq!(root.rewrite(Path::new(path)), Path::new(expected), "{path}");
    }
    assert_eq!(ModelRoot::parse("/=/host").unwrap().rewrite(Path::new("/a/b")), Path::new("/host/a/b"));
    for bad in ["", "/a", "a=/b", "/a=b", "=", "/a="] {
        assert_eq!(ModelRoot::parse(bad), None, "{bad:?}");
    }
}

#[test]
fn our_links_are_known_by_their_targets() {
    let digest = "ab".repeat(32);
    let model = PathBuf::from(format!("/larder/models/{digest}"));
    for (target, expected) in [
        (format!("/larder/models/{digest}"), true),
        (format!("/larder/models/{digest}/config.json"), true),
        (format!("/elsewhere/{}", "cd".repeat(32)), true),
        ("/larder/models/other".to_owned(), true),
        ("/larder".to_owned(), false),
        ("/etc/passwd".to_owned(), false),
        (format!("{digest}/config.json"), false),
    ] {
        assert_eq!(is_ours(Path::new(&target), &model), expected, "{target}");
    }
    assert!(!is_ours(Path::new("/etc/passwd"), Path::new("/model")));
}

#[test]
fn an_absent_place_becomes_a_link() {
    let scratch = Scratch::new();
    let model = scratch.model("a", SMALL);
    let place = scratch.path("not/there/yet");
    link(&model, &place).unwrap();
    assert_eq!(fs::read_link(&place).unwrap(), model);
    assert_eq!(names(place.parent().unwrap()), ["yet"]);
    // With a slash at its end it is still the link, not what it leads to.
    let other = scratch.model("b", SMALL);
    link(&other, &scratch.path("not/there/yet/")).unwrap();
    assert_eq!(fs::read_link(&place).unwrap(), other);
    link(&other, &place).unwrap();
    assert_eq!(names(place.parent().unwrap()), ["yet"]);
}

#[test]
fn a_directory_is_filled_with_links_and_follows_the_model() {
    let scratch = Scratch::new();
    let place = scratch.path("place");
    fs::create_dir(&place).unwrap();
    fs::create_dir(place.join(LOST_AND_FOUND)).unwrap();
    let model = scratch.model("a", SMALL);
    link(&model, &place).unwrap();
    assert_eq!(names(&place), ["config.json", "empty", "lost+found", "sub"]);
    assert_eq!(fs::read_to_string(place.join("sub/deep/a.bin")).unwrap(), "abc");
    // What a killed run left is swept up, and an entry that the model lost goes.
    symlink("/x", place.join(".larder-tmp-1-2-3")).unwrap();
    let other = scratch.model("b", &[("config.json", "{1}"), ("new", "n")]);
    link(&other, &place).unwrap();
    assert_eq!(names(&place), ["config.json", "lost+found", "new"]);
    assert_eq!(fs::read_to_string(place.join("config.json")).unwrap(), "{1}");
}

#[test]
fn what_is_not_ours_is_not_touched() {
    let scratch = Scratch::new();
    let model = scratch.model("a", SMALL);
    let file = scratch.path("file");
    fs::write(&file, "mine").unwrap();
    let foreign_link = scratch.path("link");
    symlink("/etc/passwd", &foreign_link).unwrap();
    let with_file = scratch.path("with-file");
    fs::create_dir(&with_file).unwrap();
    fs::write(with_file.join("mine"), "mine").unwrap();
    let with_link = scratch.path("with-link");
    fs::create_dir(&with_link).unwrap();
    symlink("/etc/passwd", with_link.join("config.json")).unwrap();
    let with_directory = scratch.path("with-directory");
    fs::create_dir_all(with_directory.join("mine")).unwrap();
    for place in [&file, &foreign_link, &with_file, &with_link, &with_directory] {
        let before = format!("{:?}", tree::list(&scratch.0, false, &|_| false).ok());
        assert!(matches!(link(&model, place), Err(Error::Occupied { .. })), "link {}", place.display());
        assert!(matches!(copy_all(&model, place, 3, 5), Err(Error::Occupied { .. })), "copy {}", place.display());
        assert_eq!(format!("{:?}", tree::list(&scratch.0, false, &|_| false).ok()), before);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn a_copy_is_the_pods_own() {
    let scratch = Scratch::new();
    let model = scratch.model("a", SMALL);
    let place = scratch.path("new/place");
    let mut last = Copied::default();
    let copied = copy(&model, &place, 3, 5, &mut |copied| last = copied).unwrap();
    assert_eq!((copied.files, copied.bytes, last), (3, 5, copied));
    for (name, text) in SMALL {
        assert_eq!(&fs::read_to_string(place.join(name)).unwrap(), text);
        let (ours, theirs) = (fs::metadata(place.join(name)).unwrap(), fs::metadata(model.join(name)).unwrap());
        assert!(ours.ino() != theirs.ino() && ours.is_file() && ours.permissions().mode() & 0o200 != 0);
    }
    assert_eq!(names(&place), ["config.json", "empty", "sub"]);
    // Another one over it, and one over links.
    let other = scratch.model("b", &[("config.json", "{1}"), ("empty", ""), ("sub/deep/a.bin", "abcd")]);
    copy_all(&other, &place, 3, 7).unwrap();
    assert_eq!(fs::read_to_string(place.join("sub/deep/a.bin")).unwrap(), "abcd");
    let linked = scratch.path("linked");
    fs::create_dir(&linked).unwrap();
    link(&model, &linked).unwrap();
    copy_all(&other, &linked, 3, 7).unwrap();
    assert!(fs::symlink_metadata(linked.join("sub")).unwrap().is_dir());
    assert_eq!(fs::read_to_string(model.join("sub/deep/a.bin")).unwrap(), "abc", "not written through the link");
    let link_to_model = scratch.path("link-to-model");
    link(&model, &link_to_model).unwrap();
    copy_all(&model, &link_to_model, 3, 5).unwrap();
    assert!(fs::symlink_metadata(&link_to_model).unwrap().is_dir());
}

#[test]
fn a_copy_that_fails_leaves_nothing() {
    let scratch = Scratch::new();
    let model = scratch.model("a", SMALL);
    let place = scratch.path("place");
    for (files, bytes) in [(4, 5), (3, 6), (2, 5)] {
        assert!(matches!(copy_all(&model, &place, files, bytes), Err(Error::Incomplete { .. })));
        assert!(!place.exists());
    }
    fs::create_dir(&place).unwrap();
    symlink("/nowhere", model.join("gone")).unwrap();
    let error = copy_all(&model, &place, 4, 5).unwrap_err();
    assert!(error.is_of_the_model(), "{error}");
    assert_eq!(names(&place), [""; 0]);
    assert!(matches!(copy_all(&scratch.path("absent"), &place, 0, 0), Err(Error::Model { .. })));
    assert!(matches!(link(&scratch.path("absent"), &place), Err(Error::Model { .. })));
}

#[test]
fn what_a_killed_copy_left_is_swept_up() {
    let scratch = Scratch::new();
    let model = scratch.model("a", SMALL);
    let place = scratch.path("place");
    let staging = place.join(".larder-tmp-1-2-3");
    fs::create_dir_all(&staging).unwrap();
    fs::write(staging.join("0"), "half").unwrap();
    copy_all(&model, &place, 3, 5).unwrap();
    assert_eq!(names(&place), ["config.json", "empty", "sub"]);
}

#[test]
fn large_files_are_copied_whole() {
    let scratch = Scratch::new();
    let model = scratch.model("a", &[]);
    // More than one slice, and not a round number: a sparse file takes no room.
    let size = (64 << 20) + 4321_u64;
    let file = File::create(model.join("weights")).unwrap();
    file.set_len(size).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"end", size - 3).unwrap();
    let place = scratch.path("place");
    let mut told = 0;
    copy(&model, &place, 1, size, &mut |_| told += 1).unwrap();
    assert!(told >= 1);
    assert_eq!(fs::metadata(place.join("weights")).unwrap().len(), size);
    let mut end = [0; 3];
    let copied = File::open(place.join("weights")).unwrap();
    std::os::unix::fs::FileExt::read_exact_at(&copied, &mut end, size - 3).unwrap();
    assert_eq!(&end, b"end");
}

#[test]
fn many_at_one_place_all_succeed() {
    let scratch = Scratch::new();
    let model = scratch.model("a", SMALL);
    let (absent, directory, copies) = (scratch.path("absent"), scratch.path("directory"), scratch.path("copies"));
    fs::create_dir(&directory).unwrap();
    fs::create_dir(&copies).unwrap();
    std::thread::scope(|threads| {
        for _ in 0..8 {
            threads.spawn(|| link(&model, &absent).unwrap());
            threads.spawn(|| link(&model, &directory).unwrap());
            threads.spawn(|| copy_all(&model, &copies, 3, 5).unwrap());
        }
    });
    assert_eq!(names(&directory), ["config.json", "empty", "sub"]);
    assert_eq!(names(&copies), ["config.json", "empty", "sub"]);
    assert_eq!(names(&scratch.0), ["absent", "copies", "directory", "models"]);
}
