//! What the origins hold: a few models of a few small files, some of which they share.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use larder::cache::Endpoints;
use larder::cache::named::{At, Name, Verb};
use larder::domain::{Digest, Manifest, ManifestEntry, ModelPath, Source, load_order};
use larder::fetch::Selection;
use larder_origins::{Checksums, Fault, Front, Noise, Origin};

/// Sizes of the contents there are, in bytes: around a page, a chunk and a few chunks.
const SIZES: [usize; 16] = [
    0,
    1,
    17,
    300,
    4096,
    4096,
    4097,
    20_000,
    70_000,
    300_000,
    1 << 20,
    (1 << 20) + 1,
    1_300_000,
    2 << 20,
    (2 << 20) + 12_345,
    3 << 20,
];
pub const CONTENTS: usize = SIZES.len();
/// From here on they have a chunk or more.
pub const LARGE_FROM: usize = 10;

/// Where a file of a model may be.
pub const PATHS: [&str; 4] = ["config.json", "tokenizer.model", "w-1.safetensors", "sub/w-2.safetensors"];

/// Prefixes of a bucket, then directories.
pub const SOURCES: usize = 6;
const BUCKET_SOURCES: usize = 4;

/// What may be asked for: a source, and globs of files that are left out of it.
const WISHES: [(usize, &[&str]); WISH_COUNT] =
    [(0, &[]), (1, &[]), (2, &[]), (3, &[]), (0, &["*.safetensors"]), (4, &[]), (5, &[])];
pub const WISH_COUNT: usize = 7;

/// A content by its number, with its digest.
pub struct Content {
    pub bytes: Vec<u8>,
    pub digest: Digest,
}

static POOL: LazyLock<Vec<Content>> = LazyLock::new(|| {
    let content = |(number, size): (u64, &usize)| {
        let bytes = Noise::new(1000 + number).bytes(*size);
        Content { digest: Digest::of(&bytes), bytes }
    };
    (0..).zip(&SIZES).map(content).collect()
});

pub fn content(number: usize) -> &'static Content {
    &POOL[number]
}

/// The number of the content that has this digest.
pub fn number_of(digest: &Digest) -> Option<usize> {
    POOL.iter().position(|content| content.digest == *digest)
}

/// A source or a model at one moment: path and content of each file.
pub type Files = BTreeMap<&'static str, usize>;

/// The digest of the model with these files.
pub fn manifest_of(files: &Files) -> Digest {
    let paths: Vec<ModelPath> = files.keys().map(|path| ModelPath::new(path).expect("a path")).collect();
    let order = load_order(&paths.iter().collect::<Vec<_>>(), None);
    let numbers: Vec<usize> = files.values().copied().collect();
    let entry = |at: usize| ManifestEntry {
        path: paths[at].clone(),
        size: content(numbers[at]).bytes.len() as u64,
        digest: content(numbers[at]).digest,
    };
    Manifest::new(order.into_iter().map(entry).collect()).expect("a model").digest()
}

/// The origins, and what a test does to them.
pub struct World {
    bucket: Origin,
    directories: tempfile::TempDir,
    sources: [Files; SOURCES],
    pub is_down: bool,
}

impl World {
    pub fn new() -> Self {
        let bucket = Origin::start(Front::S3).expect("an origin");
        for (number, content) in POOL.iter().enumerate() {
            // What is compared differs by content, so both kinds of proof occur.
            let sums = if number % 2 == 0 { Checksums::single_part() } else { Checksums::multipart() };
            bucket.bucket().put(&format!("pool/{number}"), content.bytes.clone(), sums);
        }
        Self {
            bucket,
            directories: tempfile::Builder::new().prefix("larder-files-").tempdir().expect("a directory under /tmp"),
            sources: Default::default(),
            is_down: false,
        }
    }

    pub fn endpoint(&self) -> String {
        self.bucket.url()
    }

    /// As at the beginning of a case.
    pub fn reset(&mut self) {
        self.set_down(false);
        self.bucket.forget_seen();
        for source in 0..SOURCES {
            for (slot, path) in PATHS.iter().enumerate() {
                // Neighbours share a file, and no model has more than one large one.
                let number = if slot == 3 { Some(LARGE_FROM + source) } else { Some((source + slot * 3) % LARGE_FROM) };
                self.put(source, path, number.filter(|_| slot != 1 || source % 2 == 0));
            }
        }
    }

    pub fn set_down(&mut self, down: bool) {
        self.is_down = down;
        if down {
            self.bucket.misbehave(|_| Some(Fault::Refuse(500, "InternalError", None)));
        } else {
            self.bucket.behave();
        }
    }

    /// The next read of an object goes wrong, once.
    pub fn spoil_next_read(&self, fault: Fault) {
        if !self.is_down {
            self.bucket.misbehave_on_reads(move |read, _| (read == 0).then(|| fault.clone()));
        }
    }

    /// Stores that content under that path, or removes the object.
    pub fn put(&mut self, source: usize, path: &'static str, number: Option<usize>) {
        let files = &mut self.sources[source];
        match number {
            Some(number) => files.insert(path, number),
            None => files.remove(path),
        };
        self.putter(source)(path, number);
    }

    /// Changes an origin from another thread; the caller then says so by [`World::has_put`].
    pub fn putter(&self, source: usize) -> impl Fn(&'static str, Option<usize>) + '_ {
        move |path, number| {
            if source < BUCKET_SOURCES {
                let key = format!("m{source}/{path}");
                match number {
                    Some(number) => self.bucket.bucket().copy(&format!("pool/{number}"), &key),
                    None => self.bucket.bucket().remove(&key),
                }
            } else {
                put_file(&self.directories.path().join(format!("f{source}")), path, number);
            }
        }
    }

    /// Notes what a [`World::putter`] did.
    pub fn has_put(&mut self, source: usize, path: &'static str, number: Option<usize>) {
        match number {
            Some(number) => self.sources[source].insert(path, number),
            None => self.sources[source].remove(path),
        };
    }

    /// The URI of a wish.
    pub fn uri(&self, wish: usize) -> String {
        let source = WISHES[wish].0;
        if source < BUCKET_SOURCES {
            format!("s3://models/m{source}/")
        } else {
            format!("file://{}/", self.directories.path().join(format!("f{source}")).display())
        }
    }

    /// What a wish is called.
    pub fn name(&self, wish: usize) -> Name {
        let exclude: Vec<String> = WISHES[wish].1.iter().map(|glob| (*glob).to_owned()).collect();
        let endpoints = Endpoints::at(&self.endpoint());
        Name::parse(Verb::Rm, &self.uri(wish), &At::usual(&endpoints), &[], &exclude).expect("a name")
    }

    pub fn source(&self, wish: usize) -> Source {
        Source::parse(&self.uri(wish)).expect("a source")
    }

    /// What a wish is for, now; nothing where there is no file.
    pub fn files(&self, wish: usize) -> Option<Files> {
        let (source, _) = WISHES[wish];
        let selection = selection(wish);
        let takes = |path: &str| selection.takes(&ModelPath::new(path).expect("a path"));
        let files: Files = self.sources[source].iter().filter(|(path, _)| takes(path)).map(|(p, n)| (*p, *n)).collect();
        Some(files).filter(|files| !files.is_empty())
    }

    /// Whether the origin of a wish gives no answer now.
    pub const fn is_silent(&self, wish: usize) -> bool {
        self.is_down && WISHES[wish].0 < BUCKET_SOURCES
    }
}

/// A model by its digest.
pub fn by_digest(digest: &str) -> Name {
    Name::parse(Verb::Rm, digest, &At::usual(&Endpoints::default()), &[], &[]).expect("a name")
}

pub fn selection(wish: usize) -> Selection {
    let exclude: Vec<String> = WISHES[wish].1.iter().map(|glob| (*glob).to_owned()).collect();
    Selection::new(&[], &exclude).expect("globs")
}

fn put_file(directory: &Path, path: &str, number: Option<usize>) {
    static TIME: AtomicU64 = AtomicU64::new(1);
    let to = directory.join(path);
    std::fs::create_dir_all(to.parent().expect("a directory")).expect("a directory");
    let Some(number) = number else {
        let _ = std::fs::remove_file(&to);
        return;
    };
    let new = directory.parent().expect("a directory").join("new");
    std::fs::write(&new, &content(number).bytes).expect("a file");
    // Two changes within one tick of the kernel's clock must not look the same.
    let changed = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_000_000_000 + TIME.fetch_add(1, Relaxed));
    std::fs::File::options().append(true).open(&new).and_then(|file| file.set_modified(changed)).expect("a file");
    std::fs::rename(&new, &to).expect("a file");
}
