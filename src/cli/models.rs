//! The commands that look at what is kept: `ls`, `inspect`, `path`, `export`, `rm`.

use std::collections::HashMap;
use std::path::Path;

use serde_json::json;

use super::console::Console;
use super::prefetch::absolute;
use crate::domain::{Digest, Manifest, Source, Version};
use crate::report::text;
use crate::report::{Exit, Failure};
use crate::store::{self, Kept, SourceFile, SourceRecord, Store, View};

/// Above this, `inspect` tells of an unfinished model only as a whole how much is here: asking
/// file by file opens a journal each time.
const FILES_ASKED_MAX: usize = 256;

/// A model as a user names it.
pub(super) struct Named {
    pub kept: Kept,
    pub digest: Digest,
    pub manifest: Manifest,
}

/// Everything kept whose source is `name`, or whose digest starts with it; something is.
pub(super) fn matching(view: &View, name: &str) -> Result<Vec<Kept>, Failure> {
    let by_digest = name.len() >= 6 && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let kept = view.kept()?;
    let found: Vec<Kept> = if by_digest {
        let name = name.to_ascii_lowercase();
        kept.into_iter()
            .filter(|kept| kept.manifest.is_some_and(|digest| digest.to_string().starts_with(&name)))
            .collect()
    } else {
        let wanted = Source::parse(name)?.to_string();
        let same = |source: &str| source.trim_end_matches('/') == wanted.trim_end_matches('/');
        kept.into_iter().filter(|kept| kept.record.as_ref().is_some_and(|record| same(&record.source))).collect()
    };
    if found.is_empty() {
        let hint = Some(if by_digest {
            "`larder ls` shows what is here".to_owned()
        } else {
            format!("`larder prefetch {name}` brings it")
        });
        return Err(Failure {
            hint,
            ..Failure::new(Exit::NotFound, format!("`{name}` is not in the store `{}`", view.directory().display()))
        });
    }
    Ok(found)
}

/// Opens the store for looking; one that is not there is an error, and stays so.
fn look(directory: &Path) -> Result<View, Failure> {
    match View::open(directory) {
        Err(store::Error::Absent(_)) => Err(no_store(directory)),
        other => Ok(other?),
    }
}

/// Opens the store for changing what is in it. Only a prefetch makes one.
pub(super) fn own(directory: &Path) -> Result<Store, Failure> {
    // What holds something else is refused by the store, in its own words.
    let is_ours_to_make = match std::fs::read_dir(directory) {
        Ok(mut entries) => entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == "lost+found")),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if is_ours_to_make {
        return Err(no_store(directory));
    }
    Ok(Store::open(directory)?)
}

fn no_store(directory: &Path) -> Failure {
    Failure::hinted(
        Exit::NotFound,
        format!("there is no store in `{}`", directory.display()),
        "check --store and LARDER_STORE; the first `larder prefetch` makes a store",
    )
}

/// The one that is meant of several selections of one source: a finished one, the one used last.
fn chosen(view: &View, name: &str) -> Result<Kept, Failure> {
    let mut found = matching(view, name)?;
    found.sort_by_key(|kept| std::cmp::Reverse((kept.manifest.is_some(), kept.last_used)));
    Ok(found.swap_remove(0))
}

/// The complete model of that name.
fn complete(view: &View, name: &str) -> Result<Named, Failure> {
    let kept = chosen(view, name)?;
    let incomplete = |why: String| Failure::hinted(Exit::NotFound, format!("`{name}` is {why}"), completing(&kept));
    let Some(digest) = kept.manifest else {
        let line = Line::of(Some(view), &kept);
        return Err(incomplete(format!("here only in part: {} of {}", text::bytes(line.here), text::bytes(line.size))));
    };
    let manifest = match view.manifest(&digest) {
        Err(store::Error::Damaged { .. } | store::Error::Absent(_)) => {
            let damaged = format!("the manifest of `{name}` is damaged or missing");
            return Err(Failure::hinted(Exit::Integrity, damaged, completing(&kept)));
        }
        other => other?,
    };
    if !view.is_complete(&manifest, &digest) {
        return Err(incomplete("damaged or here only in part".to_owned()));
    }
    Ok(Named { kept, digest, manifest })
}

/// The command that makes a model whole.
fn completing(kept: &Kept) -> String {
    match (&kept.record, kept.manifest) {
        (Some(record), _) => format!("`larder prefetch {}` completes it", typed(record)),
        (None, Some(digest)) => {
            format!("no source names it any more, nothing can complete it: `larder rm {}` removes it", digest.short())
        }
        (None, None) => "`larder ls` shows what is here".to_owned(),
    }
}

/// A source and its globs as they are typed in a shell.
fn typed(record: &SourceRecord) -> String {
    let globs =
        |flag: &str, globs: &[String]| globs.iter().map(|glob| format!(" --{flag} '{glob}'")).collect::<String>();
    format!("{}{}{}", record.source, globs("include", &record.include), globs("exclude", &record.exclude))
}

/// `larder ls`.
pub fn ls(console: Console, directory: &Path) -> Result<Exit, Failure> {
    let view = match View::open(directory) {
        Err(store::Error::Absent(_)) => None,
        other => Some(other?),
    };
    let mut rows = Vec::new();
    for kept in view.iter().map(View::kept).collect::<Result<Vec<_>, _>>()?.into_iter().flatten() {
        let line = Line::of(view.as_ref(), &kept);
        if console.json {
            console.event(&line.json());
        } else {
            rows.push(line.cells());
        }
    }
    if !console.json {
        if rows.is_empty() {
            console.note(&format!("nothing is kept in `{}` yet", directory.display()));
        } else {
            console.data(&text::table(&["SOURCE", "MODEL", "FILES", "SIZE", "STATE", "LAST USED"], &rows));
        }
    }
    Ok(Exit::Done)
}

struct Line<'a> {
    kept: &'a Kept,
    files: usize,
    size: u64,
    here: u64,
    state: &'static str,
}

impl<'a> Line<'a> {
    fn of(view: Option<&View>, kept: &'a Kept) -> Self {
        let manifest = kept.manifest.and_then(|digest| Some((digest, view?.manifest(&digest).ok()?)));
        let record = kept.record.as_ref();
        let (files, size) = match (&manifest, record) {
            (Some((_, manifest)), _) => (manifest.files().len(), manifest.size()),
            (None, Some(record)) => (record.files.len(), record.size()),
            (None, None) => (0, 0),
        };
        let complete = manifest
            .as_ref()
            .is_some_and(|(digest, manifest)| view.is_some_and(|view| view.is_complete(manifest, digest)));
        let (state, here) = match (complete, kept.manifest.is_some(), record) {
            (true, _, Some(_)) => ("complete", size),
            (true, _, None) => ("superseded", size),
            (false, true, _) => ("damaged", 0),
            (false, false, record) => {
                ("partial", view.zip(record).map_or(0, |(view, record)| view.bytes_present(record)))
            }
        };
        Self { kept, files, size, here, state }
    }

    fn source(&self) -> String {
        let Some(record) = &self.kept.record else { return "-".to_owned() };
        let globs =
            |flag: &str, globs: &[String]| globs.iter().map(|glob| format!(" --{flag} {glob}")).collect::<String>();
        format!("{}{}{}", record.source, globs("include", &record.include), globs("exclude", &record.exclude))
    }

    fn cells(&self) -> Vec<String> {
        let state = match self.state {
            "partial" => format!("partial {} %", text::percent(self.here, self.size)),
            other => other.to_owned(),
        };
        vec![
            self.source(),
            self.kept.manifest.map_or_else(|| "-".to_owned(), |digest| digest.short()),
            self.files.to_string(),
            text::bytes(self.size),
            state,
            self.kept.last_used.map_or_else(|| "-".to_owned(), text::ago),
        ]
    }

    fn json(&self) -> serde_json::Value {
        let record = self.kept.record.as_ref();
        json!({
            "source": record.map(|r| &r.source),
            "include": record.map(|r| &r.include),
            "exclude": record.map(|r| &r.exclude),
            "digest": self.kept.manifest,
            "files": self.files,
            "bytes": self.size,
            "bytes_here": self.here,
            "state": self.state,
            "last_used": self.kept.last_used.map(text::unix),
        })
    }
}

/// One file as `inspect` shows it.
struct Shown {
    path: String,
    size: u64,
    /// Known once it was here.
    digest: Option<Digest>,
    uri: Option<String>,
    version: Option<Version>,
    checked: Option<crate::domain::Checksum>,
    /// Bytes that are here; `None` where asking costs too much.
    here: Option<u64>,
}

impl Shown {
    fn of_manifest(view: &View, kept: &Kept, manifest: &Manifest) -> Vec<Self> {
        let files = kept.record.iter().flat_map(|record| &record.files);
        let origins: HashMap<&str, &SourceFile> = files.map(|file| (file.path.as_str(), file)).collect();
        let shown = |file: &crate::domain::ManifestEntry| {
            let origin = origins.get(file.path.as_str());
            Self {
                path: file.path.to_string(),
                size: file.size,
                digest: Some(file.digest),
                uri: origin.map(|origin| origin.uri.clone()),
                version: origin.map(|origin| origin.version.clone()),
                checked: origin.and_then(|origin| origin.checked),
                here: Some(blob_here(view, &file.digest, file.size)),
            }
        };
        manifest.files().iter().map(shown).collect()
    }

    /// What a source says of a model that is not finished, or whose manifest is damaged.
    fn of_record(view: &View, record: &SourceRecord) -> Vec<Self> {
        let ask = record.files.len() <= FILES_ASKED_MAX;
        let present = if ask { view.files_present(record) } else { Vec::new() };
        let here = |at: usize, file: &SourceFile| match file.digest {
            Some(digest) if record.manifest.is_some() => Some(blob_here(view, &digest, file.size)),
            _ => present.get(at).copied(),
        };
        let shown = |(at, file): (usize, &SourceFile)| Self {
            path: file.path.to_string(),
            size: file.size,
            digest: file.digest,
            uri: Some(file.uri.clone()),
            version: Some(file.version.clone()),
            checked: file.checked,
            here: here(at, file),
        };
        record.files.iter().enumerate().map(shown).collect()
    }

    fn json(&self, sharers: &[String]) -> serde_json::Value {
        json!({
            "path": self.path,
            "size": self.size,
            "bytes_here": self.here,
            "digest": self.digest,
            "uri": self.uri,
            "version": self.version.as_ref().map(Version::to_string),
            "checked": self.checked.map(|sum| json!({"algorithm": sum.algorithm(), "value": sum.value()})),
            "shared_with": sharers,
        })
    }

    fn cells(&self, sharers: &[String]) -> Vec<String> {
        let dash = || "-".to_owned();
        vec![
            self.path.clone(),
            text::bytes(self.size),
            match self.here {
                None => "?".to_owned(),
                Some(here) if here == self.size => "all".to_owned(),
                Some(0) => dash(),
                Some(here) => format!("{} %", text::percent(here, self.size)),
            },
            self.digest.map_or_else(dash, |digest| digest.short()),
            self.version.as_ref().map_or_else(dash, Version::to_string),
            match (self.digest, self.checked) {
                (_, Some(sum)) => sum.algorithm().to_owned(),
                (Some(_), None) => "none".to_owned(),
                (None, None) => dash(),
            },
            if sharers.is_empty() { dash() } else { sharers.join(", ") },
        ]
    }
}

/// Bytes of a blob that are here: all or none, because only the whole has a name.
fn blob_here(view: &View, digest: &Digest, size: u64) -> u64 {
    if view.has_blob(digest) && view.blob_len(digest) == size { size } else { 0 }
}

/// `larder inspect`. A model that is here only in part is shown as far as it is known.
pub fn inspect(console: Console, directory: &Path, name: &str) -> Result<Exit, Failure> {
    let view = look(directory)?;
    let kept = chosen(&view, name)?;
    let manifest = kept.manifest.map(|digest| view.manifest(&digest)).transpose();
    let files = match (&manifest, &kept.record) {
        (Ok(Some(manifest)), _) => Shown::of_manifest(&view, &kept, manifest),
        (_, Some(record)) => Shown::of_record(&view, record),
        // Neither says what it was.
        (_, None) => return complete(&view, name).map(|_| Exit::Done),
    };
    let line = Line::of(Some(&view), &kept);
    let here = match files.iter().map(|file| file.here).sum::<Option<u64>>() {
        Some(here) => here,
        None => line.here,
    };
    let is_complete = matches!(line.state, "complete" | "superseded");
    let tree = kept.manifest.filter(|_| is_complete).map(|digest| absolute(&view.tree(&digest)));
    let shared = shared_with(&view, kept.manifest.as_ref())?;
    let sharers = |file: &Shown| file.digest.and_then(|digest| shared.get(&digest)).map_or(&[][..], Vec::as_slice);
    let source = kept.record.as_ref().map(|record| record.source.clone());
    if console.json {
        let files: Vec<_> = files.iter().map(|file| file.json(sharers(file))).collect();
        console.event(&json!({
            "source": source, "digest": kept.manifest, "path": tree, "bytes": line.size,
            "bytes_here": here, "state": line.state, "files": files,
        }));
        return Ok(Exit::Done);
    }
    let mut head = vec![("source", line.source())];
    head.extend(kept.manifest.map(|digest| ("model", digest.to_string())));
    head.push(("files", format!("{} ({})", line.files, text::bytes(line.size))));
    head.push(("state", line.state.to_owned()));
    if !is_complete {
        head.push(("here", format!("{} ({} %)", text::bytes(here), text::percent(here, line.size))));
    }
    head.extend(tree.map(|tree| ("path", tree.display().to_string())));
    let head: String = head.iter().map(|(name, value)| format!("{name:6}  {value}\n")).collect();
    let columns = ["FILE", "SIZE", "HERE", "BLAKE3", "ORIGIN VERSION", "CHECKED AGAINST", "SHARED WITH"];
    let rows: Vec<_> = files.iter().map(|file| file.cells(sharers(file))).collect();
    // Columns that say nothing make lines that no screen holds.
    let tells = |at: usize| if columns[at] == "HERE" { !is_complete } else { rows.iter().any(|row| row[at] != "-") };
    let told: Vec<usize> = (0..columns.len()).filter(|at| tells(*at)).collect();
    let columns: Vec<&str> = told.iter().map(|at| columns[*at]).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| told.iter().map(|at| row[*at].clone()).collect()).collect();
    console.data(&format!("{head}\n{}", text::table(&columns, &rows)));
    if !is_complete {
        console.note(&format!("  hint: {}", completing(&kept)));
    }
    Ok(Exit::Done)
}

/// Blob -> names of the other models that have it too.
fn shared_with(view: &View, own: Option<&Digest>) -> Result<HashMap<Digest, Vec<String>>, Failure> {
    let mut shared: HashMap<Digest, Vec<String>> = HashMap::new();
    for kept in view.kept()? {
        let Some(digest) = kept.manifest.filter(|digest| Some(digest) != own) else { continue };
        let Ok(manifest) = view.manifest(&digest) else { continue };
        let name = kept.record.map_or_else(|| digest.short(), |record| record.source);
        for file in manifest.files() {
            let names = shared.entry(file.digest).or_default();
            if !names.contains(&name) {
                names.push(name.clone());
            }
        }
    }
    Ok(shared)
}

/// `larder path`.
pub fn path(console: Console, directory: &Path, name: &str) -> Result<Exit, Failure> {
    let view = look(directory)?;
    let named = complete(&view, name)?;
    if let Some(record) = &named.kept.record {
        view.touch(record);
    }
    let tree = absolute(&view.tree(&named.digest));
    if console.json {
        console.event(&json!({"path": tree, "digest": named.digest}));
    } else {
        console.data(&format!("{}\n", tree.display()));
    }
    Ok(Exit::Done)
}

/// `larder export`.
pub fn export(console: Console, directory: &Path, name: &str, target: &Path, hard_link: bool) -> Result<Exit, Failure> {
    let view = look(directory)?;
    let named = complete(&view, name)?;
    let done = view.export(&named.manifest, target, hard_link)?;
    if let Some(record) = &named.kept.record {
        view.touch(record);
    }
    if console.json {
        console.event(&json!({
            "path": target, "digest": named.digest, "bytes": done.bytes,
            "reflinked": done.reflinked, "hard_linked": done.linked, "copied": done.copied,
        }));
    }
    console.result(&format!(
        "{}: {} ({} reflinked, {} hard-linked, {} copied)",
        target.display(),
        text::bytes(done.bytes),
        done.reflinked,
        done.linked,
        done.copied
    ));
    Ok(Exit::Done)
}

/// `larder rm`.
pub fn rm(console: Console, directory: &Path, names: &[String]) -> Result<Exit, Failure> {
    let store = own(directory)?;
    let (mut records, mut manifests) = (Vec::new(), Vec::new());
    for name in names {
        for kept in matching(store.view(), name)? {
            manifests.extend(kept.manifest);
            records.extend(kept.record.map(|record| record.id()));
        }
    }
    let freed = store.forget(&records, &manifests)?;
    if console.json {
        console.event(&json!({"removed": names, "bytes_freed": freed}));
    }
    console.result(&format!("removed {}, {} freed", names.join(", "), text::bytes(freed)));
    Ok(Exit::Done)
}
