//! Which name leads where: the file system as the cache has it now.
//!
//! Everything is derived: whoever comes back after a restart with an inode number finds the same
//! node behind it, because the whole tree is walked once when a number is not known.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::links::{At, Links, relative};
use super::lock;
use super::node::{Key, Node, Sealed};
use crate::cache::{ARRIVING, Cache};
use crate::domain::{Digest, Manifest, Source};
use crate::store::{self, SourceRecord};

/// The directory of links.
const SOURCES: &str = "sources";
/// Models whose directories are kept in memory, and names in all of them; beyond it they are read
/// again. A name takes some 100 bytes.
const MODELS_MAX: usize = 512;
const NAMES_MAX: usize = 250_000;
/// Inodes that are remembered; beyond it they are found again.
const NODES_MAX: usize = 500_000;
/// How old the links may be.
const LINKS_AGE_MAX: Duration = Duration::from_secs(1);
/// How often the whole tree is walked for numbers that lead nowhere.
const WALK_INTERVAL: Duration = Duration::from_secs(1);

/// How long the kernel may remember a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasts {
    /// As long as it likes: it is part of what never changes.
    Forever,
    /// A moment: it may lead elsewhere soon, or be gone. The kernel is not told of that: it would
    /// wait for look-ups that only this process can answer, and a process that waits like this
    /// cannot even be killed (`fuse_reverse_inval_entry` in `fs/fuse/dir.c`).
    Moment,
}

/// One name in a directory, and what is there.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The name.
    pub name: Arc<str>,
    /// What is there.
    pub node: Node,
    /// For how long.
    pub lasts: Lasts,
}

/// What is not there.
#[derive(Debug)]
pub enum Missing {
    /// There is no such name; in a model that lacks nothing there never will be.
    Name(Lasts),
    /// What it was part of is gone.
    Stale,
    /// The disk failed.
    Disk(store::Error),
}

impl From<store::Error> for Missing {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Absent(_) | store::Error::Damaged { .. } => Self::Stale,
            error => Self::Disk(error),
        }
    }
}

/// The directories of a complete model.
#[derive(Debug)]
struct Whole {
    /// The names in each, in order; not those of files that are damaged or missing.
    directories: BTreeMap<Arc<str>, Vec<(Arc<str>, Node)>>,
    /// How long the kernel may remember them: where one is missing, it comes back.
    lasts: Lasts,
}

/// The names in each directory: a file by its place in the record, or a directory.
type Listed = BTreeMap<Arc<str>, BTreeMap<Arc<str>, Option<usize>>>;

/// A model's directories.
#[derive(Debug)]
enum Model {
    /// Nothing in it ever changes while it is here and lacks nothing.
    Whole(Whole),
    Arriving {
        record: Arc<SourceRecord>,
        directories: Listed,
    },
}

impl Model {
    /// How many names it has.
    fn name_count(&self) -> usize {
        match self {
            Self::Whole(whole) => whole.directories.values().map(Vec::len).sum(),
            Self::Arriving { directories, .. } => directories.values().map(BTreeMap::len).sum(),
        }
    }

    /// What its readers wait for, where they do.
    fn record(&self) -> Option<Arc<SourceRecord>> {
        match self {
            Self::Arriving { record, .. } => Some(Arc::clone(record)),
            Self::Whole(_) => None,
        }
    }
}

/// The file system as the cache has it.
#[derive(Debug)]
pub struct Tree {
    cache: Arc<Cache>,
    nodes: RwLock<HashMap<u64, Node>>,
    models: Mutex<HashMap<Key, Arc<Model>>>,
    /// How often something was forgotten: what was read before that is not remembered after it.
    forgotten: AtomicU64,
    links: Mutex<Option<(Instant, Arc<Links>)>>,
    walked: Mutex<Option<Instant>>,
}

impl Tree {
    /// The tree of a cache.
    pub fn new(cache: Arc<Cache>) -> Self {
        Self {
            cache,
            nodes: RwLock::default(),
            models: Mutex::default(),
            forgotten: AtomicU64::new(0),
            links: Mutex::default(),
            walked: Mutex::default(),
        }
    }

    /// What is at an inode.
    pub fn node(&self, number: u64) -> Option<Node> {
        if number == Node::Root.number() {
            return Some(Node::Root);
        }
        if let Some(node) = self.known(number) {
            return Some(node);
        }
        self.walk();
        self.known(number)
    }

    fn known(&self, number: u64) -> Option<Node> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    /// Remembers what a number stands for: the kernel comes back with it.
    pub fn remember(&self, node: &Node) {
        let number = node.number();
        if self.known(number).as_ref() == Some(node) {
            return;
        }
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        if nodes.len() >= NODES_MAX {
            nodes.clear();
        }
        nodes.insert(number, node.clone());
    }

    /// What a name in a directory leads to.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn lookup(&self, parent: &Node, name: &OsStr) -> Result<Entry, Missing> {
        let nothing = || Missing::Name(Lasts::Moment);
        let name = name.to_str().ok_or_else(nothing)?;
        let entry = |node, lasts| Ok(Entry { name: name.into(), node, lasts });
        match parent {
            Node::Root => match name {
                ARRIVING => entry(Node::Arriving, Lasts::Forever),
                SOURCES => entry(Node::Sources("".into()), Lasts::Forever),
                name => {
                    let key = Key::Whole(name.parse().map_err(|_| nothing())?);
                    self.model(key).map_err(absent)?;
                    entry(Node::Directory { key, path: "".into() }, Lasts::Moment)
                }
            },
            Node::Arriving => {
                let key = Key::Arriving(name.parse().map_err(|_| nothing())?);
                self.model(key).map_err(absent)?;
                entry(Node::Directory { key, path: "".into() }, Lasts::Moment)
            }
            Node::Sources(directory) => {
                let path = join(directory, name);
                let links = self.links()?;
                entry(below_sources(links.at(&path).ok_or_else(nothing)?, &path), Lasts::Moment)
            }
            Node::Directory { key, path } => match self.model(*key)?.as_ref() {
                Model::Whole(Whole { directories, lasts }) => {
                    let names = directories.get(path).ok_or(Missing::Stale)?;
                    let at = names.binary_search_by(|(other, _)| other.as_ref().cmp(name));
                    let at = at.map_err(|_| Missing::Name(*lasts))?;
                    entry(names[at].1.clone(), *lasts)
                }
                Model::Arriving { record, directories } => {
                    let names = directories.get(path).ok_or(Missing::Stale)?;
                    let at = names.get(name).ok_or_else(nothing)?;
                    self.arriving(*key, record, path, name.into(), *at)
                }
            },
            Node::Link { .. } | Node::Sealed(_) | Node::Partial { .. } => Err(nothing()),
        }
    }

    /// Everything in a directory, in order.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn list(&self, directory: &Node) -> Result<Vec<Entry>, Missing> {
        match directory {
            Node::Root => {
                let mut entries = vec![
                    Entry { name: ARRIVING.into(), node: Node::Arriving, lasts: Lasts::Forever },
                    Entry { name: SOURCES.into(), node: Node::Sources("".into()), lasts: Lasts::Forever },
                ];
                let view = self.cache.store().view();
                let mut digests: std::collections::BTreeSet<Digest> = std::collections::BTreeSet::new();
                view.each_kept(&mut |kept| digests.extend(kept.manifest))?;
                entries.extend(digests.into_iter().filter(|digest| view.tree(digest).is_dir()).map(|digest| {
                    let node = Node::Directory { key: Key::Whole(digest), path: "".into() };
                    Entry { name: digest.to_string().into(), node, lasts: Lasts::Moment }
                }));
                Ok(entries)
            }
            Node::Arriving => {
                let listed = self.listings()?.into_iter().map(|listing| {
                    let node = Node::Directory { key: Key::Arriving(listing), path: "".into() };
                    Entry { name: listing.to_string().into(), node, lasts: Lasts::Moment }
                });
                Ok(listed.collect())
            }
            Node::Sources(path) => {
                let links = self.links()?;
                let entries = links.names(path).map(|(name, at)| {
                    let node = below_sources(at, &join(path, name));
                    Entry { name: name.into(), node, lasts: Lasts::Moment }
                });
                Ok(entries.collect())
            }
            Node::Directory { key, path } => match self.model(*key)?.as_ref() {
                Model::Whole(Whole { directories, lasts }) => {
                    let names = directories.get(path).ok_or(Missing::Stale)?;
                    let entry = |(name, node): &(Arc<str>, Node)| Entry {
                        name: Arc::clone(name),
                        node: node.clone(),
                        lasts: *lasts,
                    };
                    Ok(names.iter().map(entry).collect())
                }
                Model::Arriving { record, directories } => {
                    let names = directories.get(path).ok_or(Missing::Stale)?;
                    names.iter().map(|(name, at)| self.arriving(*key, record, path, Arc::clone(name), *at)).collect()
                }
            },
            Node::Link { .. } | Node::Sealed(_) | Node::Partial { .. } => Err(Missing::Name(Lasts::Moment)),
        }
    }

    /// The same, if it was read before: without waiting for the disk.
    pub fn record_at_hand(&self, listing: Digest) -> Option<Arc<SourceRecord>> {
        lock(&self.models).get(&Key::Arriving(listing))?.record()
    }

    /// What the readers of a listing wait for.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn record(&self, listing: Digest) -> Result<Arc<SourceRecord>, Missing> {
        self.model(Key::Arriving(listing))?.record().ok_or(Missing::Stale)
    }

    /// A model is gone, or not what it was.
    pub fn forget(&self, model: &Digest) {
        let mut models = lock(&self.models);
        models.remove(&Key::Whole(*model));
        self.forgotten.fetch_add(1, Relaxed);
    }

    /// What was remembered led to a file that is not there any more.
    pub fn forget_all(&self) {
        let mut models = lock(&self.models);
        models.retain(|key, _| matches!(key, Key::Arriving(_)));
        self.forgotten.fetch_add(1, Relaxed);
    }

    /// Whether a directory is as it is for as long as it is there.
    pub fn is_whole(&self, key: Key) -> bool {
        matches!(self.model(key).as_deref(), Ok(Model::Whole(Whole { lasts: Lasts::Forever, .. })))
    }

    fn arriving(
        &self,
        key: Key,
        record: &SourceRecord,
        parent: &str,
        name: Arc<str>,
        at: Option<usize>,
    ) -> Result<Entry, Missing> {
        let file = at.and_then(|at| record.files.get(at));
        let Some(file) = file else {
            let path = join(parent, &name).into();
            return Ok(Entry { name, node: Node::Directory { key, path }, lasts: Lasts::Moment });
        };
        let object = record.object(file);
        if let Some(known) = self.cache.store().known(&object)
            && let Ok(metadata) = self.cache.store().view().blob_metadata(&known.digest, object.size)
        {
            return Ok(Entry { name, node: Node::Sealed(Sealed::new(known.digest, &metadata)), lasts: Lasts::Moment });
        }
        let Key::Arriving(listing) = key else { return Err(Missing::Stale) };
        Ok(Entry { name, node: Node::Partial { listing, file: Arc::new(object) }, lasts: Lasts::Moment })
    }

    fn model(&self, key: Key) -> Result<Arc<Model>, Missing> {
        if let Some(model) = lock(&self.models).get(&key) {
            return Ok(Arc::clone(model));
        }
        let forgotten = self.forgotten.load(Relaxed);
        let view = self.cache.store().view();
        let model = match key {
            Key::Whole(digest) => {
                if !view.tree(&digest).is_dir() {
                    return Err(Missing::Stale);
                }
                Model::Whole(self.whole(&digest, &view.manifest(&digest)?))
            }
            Key::Arriving(listing) => {
                let record = self.cache.listing(&listing)?.ok_or(Missing::Stale)?;
                let directories = directories(&record);
                Model::Arriving { record, directories }
            }
        };
        let model = Arc::new(model);
        let mut models = lock(&self.models);
        let names = models.values().map(|model| model.name_count()).sum::<usize>() + model.name_count();
        if models.len() >= MODELS_MAX || names > NAMES_MAX {
            models.clear();
        }
        // It may have gone, or changed, while it was read: then the next look must see that.
        let is_here = match key {
            Key::Whole(digest) => self.forgotten.load(Relaxed) == forgotten && view.tree(&digest).is_dir(),
            Key::Arriving(_) => true,
        };
        if is_here {
            models.insert(key, Arc::clone(&model));
        }
        Ok(model)
    }

    fn whole(&self, digest: &Digest, manifest: &Manifest) -> Whole {
        let view = self.cache.store().view();
        let mut directories: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Node>> =
            BTreeMap::from([("".into(), BTreeMap::new())]);
        let mut lasts = Lasts::Forever;
        for file in manifest.files() {
            let (parent, name) = split(file.path.as_str());
            let names = directories.entry(parent.into()).or_default();
            if let Ok(metadata) = view.blob_metadata(&file.digest, file.size) {
                names.insert(name.into(), Node::Sealed(Sealed::new(file.digest, &metadata)));
            } else {
                // Damaged, and on its way again: all others are as they were.
                lasts = Lasts::Moment;
            }
            for (parent, name) in above(parent) {
                let node = Node::Directory { key: Key::Whole(*digest), path: join(parent, name).into() };
                directories.entry(parent.into()).or_default().insert(name.into(), node);
            }
        }
        let directories = directories.into_iter().map(|(path, names)| (path, names.into_iter().collect())).collect();
        Whole { directories, lasts }
    }

    fn listings(&self) -> Result<Vec<Digest>, store::Error> {
        let view = self.cache.store().view();
        let mut all: std::collections::BTreeSet<Digest> = view.listings()?.into_iter().collect();
        view.each_source(&mut |record, _| all.extend(record.manifest.is_none().then(|| record.listing())))?;
        Ok(all.into_iter().collect())
    }

    /// Hears everything that is or was listed and may still be read by that name, one at a time.
    fn each_record(&self, each: &mut dyn FnMut(SourceRecord)) -> Result<(), store::Error> {
        let view = self.cache.store().view();
        view.each_source(&mut |record, _| each(record))?;
        for listing in view.listings()? {
            view.listing(&listing)?.map(&mut *each);
        }
        Ok(())
    }

    fn links(&self) -> Result<Arc<Links>, store::Error> {
        let mut links = lock(&self.links);
        if let Some((_, links)) = links.as_ref().filter(|(at, _)| at.elapsed() < LINKS_AGE_MAX) {
            return Ok(Arc::clone(links));
        }
        let mut fresh = Links::default();
        self.cache.store().view().each_source(&mut |record, _| {
            let has_globs = !record.include.is_empty() || !record.exclude.is_empty();
            let selection = (has_globs || !self.is_own(&record)).then(|| record.id());
            let target = match record.manifest {
                Some(digest) => digest.to_string(),
                None => format!("{ARRIVING}/{}", record.listing()),
            };
            fresh.add(&record.source, selection.as_deref(), &target);
        })?;
        let fresh = Arc::new(fresh);
        *links = Some((Instant::now(), Arc::clone(&fresh)));
        Ok(fresh)
    }

    /// Whether a source came from where this daemon has it: one URI at two servers is two models.
    fn is_own(&self, record: &SourceRecord) -> bool {
        Source::parse(&record.source).is_ok_and(|source| record.is_from(&self.cache.endpoints().origin(&source)))
    }

    /// Remembers every node there is, once in a while.
    fn walk(&self) {
        let mut walked = lock(&self.walked);
        if walked.is_some_and(|at| at.elapsed() < WALK_INTERVAL) {
            return;
        }
        let mut open = vec![Node::Root];
        let mut seen = 0;
        let walked_all = self.each_record(&mut |record| {
            let listing = record.listing();
            let directory = Node::Directory { key: Key::Arriving(listing), path: "".into() };
            self.remember(&directory);
            open.push(directory);
            // Also of what has arrived: whoever opened it before that has the arriving inode for good.
            for file in &record.files {
                self.remember(&Node::Partial { listing, file: Arc::new(record.object(file)) });
                seen += 1;
            }
        });
        if let Err(error) = walked_all {
            tracing::debug!(%error, "not all inodes were found again");
        }
        while let Some(directory) = open.pop() {
            for entry in self.list(&directory).unwrap_or_default() {
                self.remember(&entry.node);
                seen += 1;
                // What is below `arriving` stands here from the beginning.
                let is_directory = matches!(entry.node, Node::Sources(_) | Node::Directory { .. });
                if is_directory && seen < NODES_MAX {
                    open.push(entry.node);
                }
            }
        }
        *walked = Some(Instant::now());
    }
}

/// What is at a path below `sources`.
fn below_sources(at: &At, path: &str) -> Node {
    match at {
        At::Directory => Node::Sources(path.into()),
        At::Link(target) => Node::Link { target: relative(path, target).into(), path: path.into() },
    }
}

/// A name that is looked up and leads to nothing is no stale handle.
fn absent(missing: Missing) -> Missing {
    match missing {
        Missing::Stale => Missing::Name(Lasts::Moment),
        other => other,
    }
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn join(parent: &str, name: &str) -> String {
    if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") }
}

/// The directories on the way to a directory, each as its parent and its name.
fn above(mut directory: &str) -> impl Iterator<Item = (&str, &str)> {
    std::iter::from_fn(move || {
        if directory.is_empty() {
            return None;
        }
        let (parent, name) = split(directory);
        directory = parent;
        Some((parent, name))
    })
}

fn directories(record: &SourceRecord) -> Listed {
    let mut directories: Listed = BTreeMap::from([("".into(), BTreeMap::new())]);
    for (at, file) in record.files.iter().enumerate() {
        let (parent, name) = split(file.path.as_str());
        directories.entry(parent.into()).or_default().insert(name.into(), Some(at));
        for (parent, name) in above(parent) {
            directories.entry(parent.into()).or_default().insert(name.into(), None);
        }
    }
    directories
}
