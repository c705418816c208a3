//! The commands that look at what is kept, whoever owns it, and `rm`: `ls`, `inspect`, `path`, `export`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::json;

use super::args::{NameFlags, Turn};
use super::console::Console;
use super::names::Names;
use super::owner::{self, Claim, Owner};
use crate::cache::Book;
use crate::cache::listing::{self, Detailed, Listed, ListedFile, State};
use crate::cache::named::{self, Name, Verb, matching};
use crate::domain::{Digest, Source};
use crate::fetch::Cancel;
use crate::remote::Endpoints;
use crate::report::text;
use crate::report::{Exit, Failure};
use crate::store::{self, SourceRecord, Store, View};

/// Opens the store for looking; one that is not there is an error, and stays so.
fn look(directory: &Path) -> Result<View, Failure> {
    match View::open(directory) {
        Err(store::Error::Absent(_)) => Err(owner::no_store(directory)),
        other => Ok(other?),
    }
}

/// A path that is right in any directory.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// `larder ls`.
pub fn ls(console: Console, directory: &Path, names: &Names) -> Result<Exit, Failure> {
    let listed = match View::open(directory) {
        Err(store::Error::Absent(_)) => Vec::new(),
        other => {
            let view = other?;
            let listed = listing::list(&view)?;
            tell_unreadable(console, &view);
            listed
        }
    };
    if console.json {
        listed.iter().for_each(|listed| console.row(&json!(listed)));
    } else if listed.is_empty() {
        console.note(&format!("nothing is kept in `{}` yet", directory.display()));
    } else {
        let rows: Vec<_> = listed.iter().map(|listed| cells(listed, names.usual())).collect();
        console.data(&text::table(&["SOURCE", "MODEL", "FILES", "SIZE", "STATE", "LAST USED"], &rows));
    }
    Ok(Exit::Done)
}

/// Names what had to be passed over.
fn tell_unreadable(console: Console, view: &View) {
    for found in view.unreadable() {
        let next = match (found.is_removed, found.is_wrong) {
            (true, _) => "it was removed, and is made again when its source is asked for",
            (false, true) => "it is passed over, and goes when the store is next opened for writing",
            (false, false) => "it is passed over: look at the disk",
        };
        console.note(&format!("`{}` cannot be read: {}; {next}", found.path.display(), found.why));
    }
}

fn cells(listed: &Listed, usual: &Endpoints) -> Vec<String> {
    let dash = || "-".to_owned();
    let state = match listed.state {
        State::Partial => format!("partial {} %", text::percent(listed.bytes_here, listed.bytes)),
        State::Damaged if !listed.damaged.is_empty() => format!("damaged: {}", damaged(listed)),
        other => other.as_str().to_owned(),
    };
    let pinned = if listed.pinned == Some(true) { ", pinned" } else { "" };
    vec![
        shown_source(listed, usual),
        listed.digest.map_or_else(dash, |digest| digest.short()),
        listed.files.to_string(),
        text::bytes(listed.bytes),
        format!("{state}{pinned}"),
        listed.last_used.map_or_else(dash, |used| text::ago(text::at(used))),
    ]
}

/// The files that are damaged or missing, as far as one line has room for them.
fn damaged(listed: &Listed) -> String {
    let files: Vec<&str> = listed.damaged.iter().map(String::as_str).collect();
    text::some(&files).replace('`', "")
}

/// The source with its globs, as they are typed, and its server where that is not the usual one.
fn shown_source(listed: &Listed, usual: &Endpoints) -> String {
    let Some(source) = &listed.source else { return "-".to_owned() };
    let globs = |globs: &Option<Vec<String>>| globs.clone().unwrap_or_default();
    let is_usual = |url: &&str| {
        let origin = Source::parse(source).map(|source| Endpoints::at(url).origin(&source));
        origin.is_ok_and(|origin| usual.are(&origin))
    };
    let server = listed.endpoint_url.as_deref().filter(|url| !is_usual(url));
    named::typed_at(named::typed(source, &globs(&listed.include), &globs(&listed.exclude)), server)
}

/// One file as `inspect` shows it.
fn file_json(file: &ListedFile, sharers: &[String]) -> serde_json::Value {
    let mut shown = json!(file);
    shown["shared_with"] = json!(sharers);
    shown
}

fn file_cells(file: &ListedFile, sharers: &[String]) -> Vec<String> {
    let dash = || "-".to_owned();
    vec![
        file.path.clone(),
        text::bytes(file.size),
        match file.bytes_here {
            None => "?".to_owned(),
            Some(here) if here == file.size => "all".to_owned(),
            Some(0) => dash(),
            Some(here) => format!("{} %", text::percent(here, file.size)),
        },
        file.digest.map_or_else(dash, |digest| digest.short()),
        file.version.clone().unwrap_or_else(dash),
        match (file.digest, &file.checked) {
            (_, Some(sum)) => sum.algorithm.clone(),
            (Some(_), None) => "none".to_owned(),
            (None, None) => dash(),
        },
        if sharers.is_empty() { dash() } else { sharers.join(", ") },
    ]
}

/// `larder inspect`. A model that is here only in part is shown as far as it is known.
pub fn inspect(console: Console, directory: &Path, names: &Names, model: &str) -> Result<Exit, Failure> {
    let (name, usual) = (&names.name(Verb::Inspect, model)?, names.usual());
    let view = look(directory)?;
    let kept = named::chosen(&view, name)?;
    let Detailed { listed, path, file_list: files } = Detailed::of(&view, &kept);
    if files.is_empty() && kept.record.is_none() {
        // Neither a manifest nor a source says what it was.
        return named::complete(&view, name).map(|_| Exit::Done);
    }
    let shared = shared_with(&view, kept.manifest.as_ref(), usual)?;
    let sharers = |file: &ListedFile| file.digest.and_then(|digest| shared.get(&digest)).map_or(&[][..], Vec::as_slice);
    if console.json {
        let files: Vec<_> = files.iter().map(|file| file_json(file, sharers(file))).collect();
        console.row(&json!({
            "source": listed.source, "include": listed.include, "exclude": listed.exclude,
            "endpoint_url": listed.endpoint_url, "digest": listed.digest, "path": path, "bytes": listed.bytes,
            "bytes_here": listed.bytes_here, "state": listed.state, "pinned": listed.pinned,
            "damaged": listed.damaged, "files": files,
        }));
        return Ok(Exit::Done);
    }
    let is_whole = listed.state.is_whole();
    let mut head = vec![("source", shown_source(&listed, usual))];
    head.extend(listed.digest.map(|digest| ("model", digest.to_string())));
    head.push(("files", format!("{} ({})", listed.files, text::bytes(listed.bytes))));
    let pinned = if listed.pinned == Some(true) { ", pinned" } else { "" };
    head.push(("state", format!("{}{pinned}", listed.state.as_str())));
    if !listed.damaged.is_empty() {
        head.push(("wrong", damaged(&listed)));
    }
    if !is_whole {
        let percent = text::percent(listed.bytes_here, listed.bytes);
        head.push(("here", format!("{} ({percent} %)", text::bytes(listed.bytes_here))));
    }
    head.extend(path.map(|tree| ("path", tree.display().to_string())));
    let head: String = head.iter().map(|(name, value)| format!("{name:6}  {value}\n")).collect();
    let columns = ["FILE", "SIZE", "HERE", "BLAKE3", "ORIGIN VERSION", "CHECKED AGAINST", "SHARED WITH"];
    let rows: Vec<_> = files.iter().map(|file| file_cells(file, sharers(file))).collect();
    // Columns that say nothing make lines that no screen holds.
    let tells = |at: usize| if columns[at] == "HERE" { !is_whole } else { rows.iter().any(|row| row[at] != "-") };
    let told: Vec<usize> = (0..columns.len()).filter(|at| tells(*at)).collect();
    let columns: Vec<&str> = told.iter().map(|at| columns[*at]).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| told.iter().map(|at| row[*at].clone()).collect()).collect();
    console.data(&format!("{head}\n{}", text::table(&columns, &rows)));
    if !is_whole {
        console.note(&format!("  hint: {}", named::completing(&kept, Some(usual))));
    }
    Ok(Exit::Done)
}

/// Blob -> names of the other models that have it too.
fn shared_with(view: &View, own: Option<&Digest>, usual: &Endpoints) -> Result<HashMap<Digest, Vec<String>>, Failure> {
    let mut shared: HashMap<Digest, Vec<String>> = HashMap::new();
    view.each_kept(&mut |kept| {
        let Some(digest) = kept.manifest.filter(|digest| Some(digest) != own) else { return };
        let Ok(manifest) = view.manifest(&digest) else { return };
        let name = named::name_of(&kept, Some(usual));
        for file in manifest.files() {
            let names = shared.entry(file.digest).or_default();
            if !names.contains(&name) {
                names.push(name.clone());
            }
        }
    })?;
    Ok(shared)
}

/// `larder path`.
pub fn path(console: Console, directory: &Path, name: &Name) -> Result<Exit, Failure> {
    let view = look(directory)?;
    let named = named::complete(&view, name)?;
    if let Some(record) = &named.kept.record {
        view.touch(record);
    }
    let tree = absolute(&view.tree(&named.digest));
    if console.json {
        console.row(&json!({"path": tree, "digest": named.digest}));
    } else {
        console.data(&format!("{}\n", tree.display()));
    }
    Ok(Exit::Done)
}

/// `larder export`.
pub fn export(
    console: Console,
    directory: &Path,
    name: &Name,
    target: &Path,
    hard_link: bool,
) -> Result<Exit, Failure> {
    let view = look(directory)?;
    let named = named::complete(&view, name)?;
    let done = match view.export(&named.manifest, target, hard_link) {
        Err(store::Error::Damaged { detail, .. }) => {
            let damaged = format!("`{}` is damaged: {detail}; what was written before it is right", name.shown());
            return Err(Failure::hinted(Exit::Integrity, damaged, named::completing(&named.kept, name.usual())));
        }
        other => other?,
    };
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

#[derive(Deserialize)]
struct Removed {
    bytes_freed: u64,
}

/// `larder rm`.
pub async fn rm(
    console: Console,
    directory: &Path,
    names: &[String],
    flags: &NameFlags,
    turn: Turn,
    cancel: &Cancel,
) -> Result<Exit, Failure> {
    let common = Names::of(flags).await;
    let parsed: Result<Vec<Name>, Failure> = names.iter().map(|name| common.name(Verb::Rm, name)).collect();
    let parsed = parsed?;
    let freed = match owner::own(&Claim { directory, turn, console, cancel }).await? {
        Owner::Us(store) => forget(&store, &parsed)?,
        Owner::Daemon(peer) => {
            let mut body = common.body(&names.iter().map(String::as_str).collect::<Vec<_>>())?;
            body["models"] = json!(names);
            let removed: Removed = peer.ask("/v1/remove", body, cancel).await?;
            removed.bytes_freed
        }
    };
    if console.json {
        console.event(&json!({"removed": names, "bytes_freed": freed}));
    }
    let shown: Vec<String> = parsed.iter().map(Name::shown).collect();
    console.result(&format!("removed {}, {} freed", shown.join(", "), text::bytes(freed)));
    Ok(Exit::Done)
}

/// Forgets models with their pins; bytes freed.
fn forget(store: &Store, names: &[Name]) -> Result<u64, Failure> {
    let (mut records, mut manifests, mut pins) = (Vec::new(), Vec::new(), Vec::new());
    let mut book = Book::open(store)?;
    for name in names {
        for kept in matching(store.view(), name)? {
            let listing = kept.record.as_ref().map(SourceRecord::listing);
            if let Some(user) = kept.manifest.iter().chain(&listing).find_map(|digest| book.left_user(digest)) {
                return Err(Failure::hinted(
                    Exit::Busy,
                    format!("`{name}` stays: {user} uses it, as larder's daemon wrote down before it ended"),
                    format!("`larder release {user}` says that it has ended"),
                ));
            }
            pins.extend(named::pin_key(&kept));
            manifests.extend(kept.manifest);
            records.extend(kept.record.map(|record| record.id()));
        }
    }
    let freed = store.forget(&records, &manifests)?;
    for key in pins {
        book.unpin(store, &key, None)?;
    }
    Ok(freed)
}
