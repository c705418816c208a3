//! The commands that look at what is kept: `ls`, `inspect`, `path`, `export`, `rm`.

use std::collections::HashMap;
use std::path::Path;

use serde_json::json;

use super::console::Console;
use super::exit::{Exit, Failure};
use super::text;
use crate::domain::{Digest, Manifest, Source};
use crate::store::{Kept, SourceFile, Store, View};

/// A model as a user names it.
pub(super) struct Named {
    pub kept: Kept,
    pub digest: Digest,
    pub manifest: Manifest,
}

/// Everything kept whose source is `name`, or whose digest starts with it.
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

/// The complete model of that name. Of several selections of one source, the one used last.
pub(super) fn complete(view: &View, name: &str) -> Result<Named, Failure> {
    let mut found = matching(view, name)?;
    found.sort_by_key(|kept| (kept.manifest.is_some(), kept.last_used));
    let kept = found.pop().filter(|kept| kept.manifest.is_some());
    let incomplete = |why: &str| Failure {
        hint: Some(format!("`larder prefetch {name}` completes it")),
        ..Failure::new(Exit::NotFound, format!("`{name}` is {why}"))
    };
    let Some((kept, digest)) = kept.and_then(|kept| kept.manifest.map(|digest| (kept, digest))) else {
        return Err(incomplete("here only in part"));
    };
    let manifest = view.manifest(&digest)?;
    if !view.is_complete(&manifest, &digest) {
        return Err(incomplete("damaged or here only in part"));
    }
    Ok(Named { kept, digest, manifest })
}

/// `larder ls`.
pub fn ls(console: Console, directory: &Path) -> Result<Exit, Failure> {
    let view = match View::open(directory) {
        Err(crate::store::Error::Absent(_)) => None,
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
            "partial" => format!("partial {} %", (self.here.saturating_mul(100)).checked_div(self.size).unwrap_or(0)),
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

/// `larder inspect`.
pub fn inspect(console: Console, directory: &Path, name: &str) -> Result<Exit, Failure> {
    let view = View::open(directory)?;
    let Named { kept, digest, manifest } = complete(&view, name)?;
    let shared = shared_with(&view, &digest)?;
    let of_path: HashMap<&str, &SourceFile> =
        kept.record.iter().flat_map(|record| &record.files).map(|file| (file.path.as_str(), file)).collect();
    let mut rows = Vec::new();
    let mut files = Vec::new();
    for file in manifest.files() {
        let origin = of_path.get(file.path.as_str());
        let sharers = shared.get(&file.digest).map_or(&[][..], Vec::as_slice);
        if console.json {
            files.push(json!({
                "path": file.path,
                "size": file.size,
                "digest": file.digest,
                "uri": origin.map(|o| &o.uri),
                "version": origin.map(|o| o.version.to_string()),
                "checked": origin.and_then(|o| o.checked).map(|sum| json!({"algorithm": sum.algorithm(), "value": sum.value()})),
                "shared_with": sharers,
            }));
            continue;
        }
        rows.push(vec![
            file.path.to_string(),
            text::bytes(file.size),
            file.digest.short(),
            origin.map_or_else(|| "-".to_owned(), |o| o.version.to_string()),
            origin.and_then(|o| o.checked).map_or("BLAKE3 only", |sum| sum.algorithm()).to_owned(),
            if sharers.is_empty() { "-".to_owned() } else { sharers.join(", ") },
        ]);
    }
    let source = kept.record.as_ref().map(|record| record.source.clone());
    if console.json {
        console.event(&json!({"source": source, "digest": digest, "path": view.tree(&digest), "bytes": manifest.size(), "files": files}));
        return Ok(Exit::Done);
    }
    let head = format!(
        "source  {}\nmodel   {digest}\nfiles   {} ({})\npath    {}\n\n",
        source.as_deref().unwrap_or("-"),
        manifest.files().len(),
        text::bytes(manifest.size()),
        view.tree(&digest).display()
    );
    console.data(
        &(head + &text::table(&["FILE", "SIZE", "BLAKE3", "ORIGIN VERSION", "CHECKED AGAINST", "SHARED WITH"], &rows)),
    );
    Ok(Exit::Done)
}

/// Blob -> names of the other models that have it too.
fn shared_with(view: &View, own: &Digest) -> Result<HashMap<Digest, Vec<String>>, Failure> {
    let mut shared: HashMap<Digest, Vec<String>> = HashMap::new();
    for kept in view.kept()? {
        let Some(digest) = kept.manifest.filter(|digest| digest != own) else { continue };
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
    let view = View::open(directory)?;
    let named = complete(&view, name)?;
    if let Some(record) = &named.kept.record {
        view.touch(record);
    }
    let tree = view.tree(&named.digest);
    let tree = std::path::absolute(&tree).unwrap_or(tree);
    if console.json {
        console.event(&json!({"path": tree, "digest": named.digest}));
    } else {
        console.data(&format!("{}\n", tree.display()));
    }
    Ok(Exit::Done)
}

/// `larder export`.
pub fn export(console: Console, directory: &Path, name: &str, target: &Path, hard_link: bool) -> Result<Exit, Failure> {
    let view = View::open(directory)?;
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
    let store = Store::open(directory)?;
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
