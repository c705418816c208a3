//! The directory of ordinary files that a manifest becomes: hard links to its blobs.
//!
//! A directory that was handed out may be bound, opened or leased, and so may those below it: it is
//! mended inside. What is right stays where it is; the name of a file whose blob is not here is taken
//! away, and is put back by a rename, in the same directory, once the blob is here again.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::error::AtPath as _;
use super::{Error, Layout, fsx, sealed};
use crate::domain::{Digest, Manifest, ManifestEntry};

/// A blob with more names than this may have copies: ext4 takes 65,000 names for one inode, and the
/// empty file of many models gets there.
const NAMES_MANY: u64 = 10_000;

/// What mending a tree did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mended {
    /// Whether any name is another, or gone, or back.
    pub changed: bool,
    /// Files whose blobs are not here.
    pub lacking: usize,
}

/// Makes what is below a model's directory what its manifest says, as far as its blobs are here.
/// Where there is no directory, it appears whole, by one rename, or not at all. With `only`, the
/// names of that blob are looked at, and nothing is made.
///
/// Cut off anywhere, it leaves names that lead to what is right and names that are missing: done
/// again, it goes on.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn mend(
    layout: &Layout,
    manifest: &Manifest,
    digest: &Digest,
    only: Option<&Digest>,
) -> Result<Mended, Error> {
    let tree = layout.model(digest);
    if !tree.is_dir() {
        return if only.is_some() { Ok(Mended::default()) } else { build(layout, manifest, &tree) };
    }
    let mut mended = Mended::default();
    let mut touched = BTreeSet::new();
    if only.is_none() {
        remove_others(&tree, &names(manifest), "", &mut touched)?;
    }
    for file in manifest.files().iter().filter(|file| only.is_none_or(|only| file.digest == *only)) {
        let name = tree.join(file.path.as_str());
        let there = std::fs::symlink_metadata(&name).ok();
        let blob = sealed::sized(layout, &file.digest, file.size).map(|(_, metadata)| metadata);
        match (blob, there) {
            (Some(blob), Some(there)) if is_shown(&there, &blob) => continue,
            (Some(_), there) => {
                if there.is_some_and(|there| there.is_dir()) {
                    std::fs::remove_dir_all(&name).at("remove", &name)?;
                }
                put(layout, file, &tree, &name)?;
            }
            (None, there) => {
                mended.lacking += 1;
                let Some(there) = there else { continue };
                let removed = if there.is_dir() { std::fs::remove_dir_all(&name) } else { fsx::remove_if_there(&name) };
                removed.at("remove", &name)?;
            }
        }
        touched.extend(name.parent().map(Path::to_owned));
    }
    mended.changed = !touched.is_empty();
    for directory in touched {
        fsx::finish_directory(&directory).at("finish", &directory)?;
    }
    Ok(mended)
}

/// Takes one copy of a blob out of a tree whose manifest does not say where it is.
///
/// # Errors
/// [`Error::Io`].
pub(super) fn take_out(directory: &Path, inode: u64) -> Result<bool, Error> {
    let mut changed = false;
    for name in fsx::names(directory).at("list", directory)? {
        let path = directory.join(name);
        let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            changed |= take_out(&path, inode)?;
        } else if metadata.ino() == inode {
            fsx::remove_if_there(&path).at("remove", &path)?;
            fsx::finish_directory(directory).at("finish", directory)?;
            changed = true;
        }
    }
    Ok(changed)
}

/// Makes a directory that was not there, or nothing.
fn build(layout: &Layout, manifest: &Manifest, tree: &Path) -> Result<Mended, Error> {
    let lacking =
        manifest.files().iter().filter(|file| sealed::sized(layout, &file.digest, file.size).is_none()).count();
    if lacking > 0 {
        return Ok(Mended { changed: false, lacking });
    }
    let scratch = fsx::scratch_name(&layout.scratch());
    let result = (|| {
        fsx::create_directories(&scratch).at("create", &scratch)?;
        let mut directories = BTreeSet::from([scratch.clone()]);
        for file in manifest.files() {
            let name = scratch.join(file.path.as_str());
            let above = name.ancestors().skip(1).take_while(|directory| *directory != scratch);
            if let Some(parent) = name.parent().filter(|parent| !directories.contains(*parent)) {
                fsx::create_directories(parent).at("create", parent)?;
                directories.extend(above.map(Path::to_owned));
            }
            link(layout, file, &name)?;
        }
        for directory in directories {
            fsx::finish_directory(&directory).at("finish", &directory)?;
        }
        std::fs::rename(&scratch, tree).at("publish", tree)
    })();
    if result.is_err() {
        let _ = std::fs::remove_dir_all(&scratch);
    }
    result.map(|()| Mended { changed: true, lacking: 0 })
}

/// Gives a file its name, in place of whatever has it.
fn put(layout: &Layout, file: &ManifestEntry, tree: &Path, name: &Path) -> Result<(), Error> {
    for directory in name.ancestors().skip(1).take_while(|directory| *directory != tree) {
        if !directory.is_dir() {
            fsx::create_directories(directory).at("create", directory)?;
        }
        fsx::finish_directory(directory).at("finish", directory)?;
    }
    let scratch = fsx::scratch_name(&layout.scratch());
    let result = link(layout, file, &scratch).and_then(|()| std::fs::rename(&scratch, name).at("put", name));
    if result.is_err() {
        let _ = fsx::remove_if_there(&scratch);
    }
    result
}

fn link(layout: &Layout, file: &ManifestEntry, to: &Path) -> Result<(), Error> {
    sealed::with_path(layout, &file.digest, file.size, &file.path, |from| match std::fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::TooManyLinks => {
            std::fs::copy(from, to).and_then(|_| sealed::finish(to)).at("copy", to)
        }
        other => other.at("link", to),
    })
}

/// Whether a name of a tree leads to this copy of the blob.
fn is_shown(there: &Metadata, blob: &Metadata) -> bool {
    let is_copy = || there.nlink() == 1 && blob.nlink() > NAMES_MANY;
    there.is_file()
        && there.len() == blob.len()
        && there.dev() == blob.dev()
        && (there.ino() == blob.ino() || is_copy())
}

/// What is below a model's directory, by its path.
#[derive(Debug, Default)]
struct Names<'a> {
    files: BTreeSet<&'a str>,
    directories: BTreeSet<&'a str>,
}

fn names(manifest: &Manifest) -> Names<'_> {
    let mut names = Names::default();
    for file in manifest.files() {
        let mut path = file.path.as_str();
        names.files.insert(path);
        while let Some((parent, _)) = path.rsplit_once('/') {
            path = parent;
            if !names.directories.insert(path) {
                break;
            }
        }
    }
    names
}

/// Removes what is below a directory and does not belong there. Directories that do stay as they
/// are, empty or not: somebody may have them.
fn remove_others(tree: &Path, names: &Names<'_>, below: &str, touched: &mut BTreeSet<PathBuf>) -> Result<(), Error> {
    let directory = tree.join(below);
    for entry in std::fs::read_dir(&directory).at("list", &directory)? {
        let entry = entry.at("list", &directory)?;
        let (path, kind) = (entry.path(), entry.file_type().at("look at", entry.path())?);
        let name = entry.file_name().into_string().unwrap_or_default();
        let at = if below.is_empty() { name } else { format!("{below}/{name}") };
        if kind.is_dir() && names.directories.contains(at.as_str()) {
            remove_others(tree, names, &at, touched)?;
            continue;
        }
        if kind.is_file() && names.files.contains(at.as_str()) {
            continue;
        }
        let removed = if kind.is_dir() { std::fs::remove_dir_all(&path) } else { fsx::remove_if_there(&path) };
        removed.at("remove", &path)?;
        touched.insert(directory.clone());
    }
    Ok(())
}

/// Removes a model's tree, which nobody uses: unpublished first, by rename, then deleted.
pub(super) fn remove(layout: &Layout, digest: &Digest) -> Result<(), Error> {
    let (from, scratch) = (layout.model(digest), fsx::scratch_name(&layout.scratch()));
    match std::fs::rename(&from, &scratch) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.at("remove", &from)?,
    }
    std::fs::remove_dir_all(&scratch).at("remove", &scratch)
}

/// Whether a file of a model is here, and its name in the tree leads to it.
pub(super) fn shows(layout: &Layout, file: &ManifestEntry, tree: &Path) -> bool {
    let Some((_, blob)) = sealed::sized(layout, &file.digest, file.size) else { return false };
    std::fs::symlink_metadata(tree.join(file.path.as_str())).is_ok_and(|there| is_shown(&there, &blob))
}

/// Whether every blob of the manifest is here, and every name of the tree leads to its own.
pub(super) fn is_complete(layout: &Layout, manifest: &Manifest, digest: &Digest) -> bool {
    let tree = layout.model(digest);
    tree.is_dir() && manifest.files().iter().all(|file| shows(layout, file, &tree))
}

/// Syncs the directories of a model's tree, so that its names survive a power cut.
pub(super) fn sync(layout: &Layout, manifest: &Manifest, digest: &Digest) -> Result<(), Error> {
    let tree = layout.model(digest);
    if !tree.is_dir() {
        return Ok(());
    }
    let below = manifest.files().iter().flat_map(|file| Path::new(file.path.as_str()).ancestors().skip(1));
    let directories: BTreeSet<PathBuf> = below.map(|directory| tree.join(directory)).collect();
    for directory in directories {
        fsx::sync_if_there(&directory).at("sync", &directory)?;
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "small files of the test's own")]
mod tests {
    use std::fs;
    use std::os::unix::fs::{FileExt as _, PermissionsExt as _};

    use super::*;
    use crate::domain::{Claims, FILE_TIME, ModelPath, Version};
    use crate::store::{Amount, CopyId, ObjectId, SourceFile, SourceRecord, Store};

    fn seal(store: &Store, bytes: &'static [u8]) -> Digest {
        let digest = Digest::of(bytes);
        let id = ObjectId {
            origin: "o".into(),
            uri: format!("s3://b/{digest}").into(),
            version: Version::Generation(1),
            size: bytes.len() as u64,
        };
        let hold = store.hold();
        store.seal_bytes(id, &[bytes::Bytes::from_static(bytes)], None, &Claims::default(), &hold).expect("sealed")
    }

    fn publish(store: &Store, name: &str, files: &[(&str, &'static [u8])]) -> (Digest, PathBuf) {
        let mut record = SourceRecord::new(format!("s3://b/{name}"), "o".into(), Vec::new(), Vec::new());
        let mut entries = Vec::new();
        for (path, bytes) in files {
            let (path, digest) = (ModelPath::new(path).expect("a path"), seal(store, bytes));
            let (uri, size) = (format!("s3://b/{digest}").into(), bytes.len() as u64);
            let version = Version::Generation(1);
            record.files.push(SourceFile {
                path: path.clone(),
                uri,
                version,
                size,
                digest: Some(digest),
                checked: None,
            });
            entries.push(ManifestEntry { path, size, digest });
        }
        let digest = store.publish(record, &Manifest::new(entries).expect("a manifest")).expect("published");
        (digest, store.view().tree(&digest))
    }

    const SHARED: &[u8] = b"shared";
    const ONE: &[(&str, &[u8])] = &[("config.json", b"one"), ("sub/below/shared", SHARED), ("sub/other", b"other")];
    const TWO: &[(&str, &[u8])] = &[("shared", SHARED), ("weights", b"two")];

    fn inodes(tree: &Path, paths: &[&str]) -> Vec<u64> {
        paths.iter().map(|path| tree.join(path).metadata().expect("there").ino()).collect()
    }

    fn is_whole(store: &Store, digest: &Digest) -> bool {
        store.view().is_complete(&store.view().manifest(digest).expect("a manifest"), digest)
    }

    /// As somebody who has the wrong disk.
    fn flip(file: &Path) {
        fs::set_permissions(file, fs::Permissions::from_mode(0o644)).expect("a mode");
        fs::OpenOptions::new().write(true).open(file).and_then(|file| file.write_all_at(b"X", 0)).expect("written");
        fs::set_permissions(file, fs::Permissions::from_mode(0o444)).expect("a mode");
    }

    #[test]
    fn a_shared_file_is_mended_inside_the_directories_that_others_have() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let ((one, first), (two, second)) = (publish(&store, "one", ONE), publish(&store, "two", TWO));
        let had = ["", "sub", "sub/below", "sub/other", "config.json"];
        let before = (inodes(&first, &had), inodes(&second, &["", "weights"]));
        let shared = Digest::of(SHARED);
        let mut reader = fs::File::open(first.join("sub/below/shared")).expect("open before");
        flip(&second.join("shared"));

        let bad = store.scrub(&shared, &mut |_| true).expect("hashed").expect("to the end");
        assert!(!bad.is_empty() && !store.view().has_blob(&shared));
        assert!(store.known(&id_of(SHARED)).is_none() && store.view().open_blob(&shared, SHARED.len() as u64).is_err());
        assert!(!first.join("sub/below/shared").exists() && !second.join("shared").exists());
        for model in [&one, &two] {
            assert!(!is_whole(&store, model));
            let manifest = store.view().manifest(model).expect("a manifest");
            let lacking: Vec<Digest> = store.view().lacking(&manifest, model).map(|file| file.digest).collect();
            assert_eq!(lacking, [shared]);
        }
        assert_eq!(before, (inodes(&first, &had), inodes(&second, &["", "weights"])));
        // Whoever had it open reads on.
        io::Read::read_exact(&mut reader, &mut [0; 6]).expect("bytes");
        assert_eq!(store.heed().expect("looked"), [shared]);
        let census = store.census().expect("counted");
        assert!(census.strays.bytes > 0 && census.lacking().into_iter().eq([shared]), "{census:?}");

        // One model is pulled again: the other has its file back too, and the mark is gone.
        publish(&store, "one", ONE);
        assert!(is_whole(&store, &one) && is_whole(&store, &two));
        assert_eq!(before, (inodes(&first, &had), inodes(&second, &["", "weights"])));
        assert_eq!(fs::read(second.join("shared")).expect("back"), SHARED);
        assert!(store.heed().expect("looked").is_empty() && store.view().damage_stamp() == Some(0));
        assert_eq!(store.census().expect("counted").strays, Amount::default());
    }

    fn id_of(bytes: &[u8]) -> ObjectId {
        let (uri, size) = (format!("s3://b/{}", Digest::of(bytes)).into(), bytes.len() as u64);
        ObjectId { origin: "o".into(), uri, version: Version::Generation(1), size }
    }

    /// A process that does not own the store finds the damage, and another life takes it up.
    #[test]
    fn what_others_have_marked_is_taken_up_wherever_it_was_cut_off() {
        let directory = tempfile::tempdir().expect("a directory");
        let shared = Digest::of(SHARED);
        let (one, first, second) = {
            let store = Store::open(directory.path()).expect("a store");
            let ((one, first), (_, second)) = (publish(&store, "one", ONE), publish(&store, "two", TWO));
            let copy = CopyId::of(&store.view().blob_metadata(&shared, SHARED.len() as u64).expect("a blob"));
            let stamp = store.view().damage_stamp();
            super::super::View::open(directory.path()).expect("a view").condemn(&shared, copy).expect("marked");
            assert!(!store.view().has_blob(&shared) && stamp != store.view().damage_stamp());
            assert!(!is_whole(&store, &one), "at once, in every process");
            (one, first, second)
        };
        let inode = first.metadata().expect("a directory").ino();
        {
            let store = Store::open(directory.path()).expect("the next life");
            assert!(!first.join("sub/below/shared").exists() && !second.join("shared").exists());
            // Sealed, and killed before anything is published.
            seal(&store, SHARED);
            assert!(store.view().has_blob(&shared) && !is_whole(&store, &one));
        }
        let store = Store::open(directory.path()).expect("the life after");
        assert!(is_whole(&store, &one) && second.join("shared").exists());
        assert_eq!(first.metadata().expect("a directory").ino(), inode);
        assert!(store.heed().expect("looked").is_empty());
    }

    #[test]
    fn publishing_over_a_directory_that_lost_names_leaves_the_others_where_they_are() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let (one, tree) = publish(&store, "one", ONE);
        let had = ["", "sub", "sub/below", "sub/other"];
        let before = inodes(&tree, &had);
        fs::remove_file(tree.join("config.json")).expect("lost");
        fs::remove_file(tree.join("sub/below/shared")).expect("lost");
        fs::write(tree.join("sub/below/shared"), b"stray!").expect("another file of that length");
        fs::create_dir_all(tree.join("stray/deep")).expect("a directory that does not belong");
        fs::write(tree.join("sub/stray"), b"x").expect("a file that does not belong");
        assert!(!is_whole(&store, &one));
        publish(&store, "one", ONE);
        assert!(is_whole(&store, &one));
        assert_eq!(inodes(&tree, &had), before);
        assert_eq!(fs::read(tree.join("sub/below/shared")).expect("a file"), SHARED);
        assert!(!tree.join("stray").exists() && !tree.join("sub/stray").exists());
    }

    #[test]
    fn everything_in_a_model_has_one_time_and_its_mode() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let (_, tree) = publish(&store, "one", ONE);
        let check = || {
            for (path, mode) in [("", 0o755), ("sub", 0o755), ("sub/below", 0o755), ("sub/other", 0o444)] {
                let metadata = tree.join(path).metadata().expect("there");
                assert_eq!(metadata.permissions().mode() & 0o777, mode, "{path}");
                assert_eq!(metadata.modified().expect("a time"), std::time::UNIX_EPOCH + FILE_TIME, "{path}");
            }
        };
        check();
        store.condemn(&Digest::of(SHARED)).expect("condemned");
        check();
        publish(&store, "one", ONE);
        check();
        store.settle(true).expect("settled");
        check();
    }

    /// A disk that gave an error may give the bytes later.
    #[test]
    fn a_copy_that_is_hashed_right_again_is_no_more_condemned() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let (one, _) = publish(&store, "one", ONE);
        store.condemn(&Digest::of(SHARED)).expect("condemned");
        store.condemn(&Digest::of(SHARED)).expect("twice is once");
        assert!(!is_whole(&store, &one));
        let bad = store.scrub(&Digest::of(SHARED), &mut |_| true).expect("hashed").expect("to the end");
        assert!(bad.is_empty() && is_whole(&store, &one) && store.heed().expect("looked").is_empty());
    }

    /// Room is wanted more than a copy that is of use to nobody.
    #[test]
    fn a_removal_takes_condemned_copies_along_and_the_marks_that_nothing_names() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(directory.path()).expect("a store");
        let (one, _) = publish(&store, "one", ONE);
        store.condemn(&Digest::of(SHARED)).expect("condemned");
        assert!(store.forget(&[], &[]).expect("swept") > 0);
        assert_eq!(store.heed().expect("looked"), [Digest::of(SHARED)], "it is still lacking");
        let record = store.view().kept().expect("kept").remove(0).record.expect("a record");
        store.forget(&[record.id()], &[one]).expect("forgotten");
        assert!(store.heed().expect("looked").is_empty());
    }

    #[test]
    fn an_export_that_meets_damage_says_so_and_marks_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = Store::open(&directory.path().join("store")).expect("a store");
        let (one, tree) = publish(&store, "one", ONE);
        let manifest = store.view().manifest(&one).expect("a manifest");
        for (at, hard_links) in [false, true].into_iter().enumerate() {
            flip(&tree.join("sub/below/shared"));
            let to = directory.path().join(at.to_string());
            let error = store.view().export(&manifest, &to, hard_links).expect_err("damaged").to_string();
            assert!(error.contains("`sub/below/shared`"), "{error}");
            let given: Vec<_> = fs::read_dir(to.join("sub/below")).expect("a directory").collect();
            assert!(given.is_empty() && !store.view().has_blob(&Digest::of(SHARED)), "{given:?}");
            publish(&store, "one", ONE);
        }
        let to = directory.path().join("right");
        assert_eq!(store.view().export(&manifest, &to, false).expect("right").bytes, 14);
    }
}
