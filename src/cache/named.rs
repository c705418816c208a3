//! What a name means: exactly one source with its globs, at one server, or the first digits of a model's
//! digest.
//!
//! Nothing is guessed. A source without globs is all of its files, and never a selection of them that
//! happens to be here; where only such selections are, the error lists them. One URI at two servers is two
//! models: the one at the server that is given or configured is meant. Where no server is, it is Amazon's
//! or Google's, or else the only one that the source is here from: who looks need not know how a daemon
//! reaches buckets.

use std::collections::BTreeSet;
use std::fmt;

use crate::domain::endpoint::endpoint_of;
use crate::domain::{Digest, Manifest, Source};
use crate::fetch::Selection;
use crate::remote::Endpoints;
use crate::report::{Exit, Failure, text};
use crate::store::{self, Kept, SourceRecord, View};

/// Fewer digits than these are no name: they could be a typing error.
const DIGITS_MIN: usize = 6;
/// All of a digest.
const DIGITS_MAX: usize = 64;
/// Candidates that are listed. A screen has no room for more.
const CANDIDATES_MAX: usize = 8;

/// A command that takes names: an error says what to type instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the commands of these names")]
pub enum Verb {
    Path,
    Inspect,
    Export,
    Verify,
    Rm,
    Pin,
    Unpin,
}

impl Verb {
    /// The command for a name, to be pasted into a shell.
    fn command(self, name: &str) -> String {
        match self {
            Self::Path => format!("larder path {name}"),
            Self::Inspect => format!("larder inspect {name}"),
            Self::Export => format!("larder export {name} DIRECTORY"),
            Self::Verify => format!("larder verify {name}"),
            Self::Rm => format!("larder rm {name}"),
            Self::Pin => format!("larder pin {name}"),
            Self::Unpin => format!("larder unpin {name}"),
        }
    }
}

/// The servers of a command's names.
#[derive(Debug, Clone)]
pub struct At {
    endpoints: Endpoints,
    usual: Option<Endpoints>,
    is_given: bool,
}

impl At {
    /// Those that go without saying.
    #[must_use]
    pub fn usual(endpoints: &Endpoints) -> Self {
        Self { endpoints: endpoints.clone(), usual: Some(endpoints.clone()), is_given: false }
    }

    /// The one that was given, in place of the usual ones; `None` where others go without saying for
    /// the one who reads the answer.
    #[must_use]
    pub fn given(url: &str, usual: Option<&Endpoints>) -> Self {
        Self { endpoints: Endpoints::at(url), usual: usual.cloned(), is_given: true }
    }
}

/// What somebody calls a model.
#[derive(Debug, Clone)]
pub struct Name {
    verb: Verb,
    at: At,
    /// As it was typed.
    text: String,
    is: Is,
}

#[derive(Debug, Clone)]
enum Is {
    /// The beginning of a digest, in lower case.
    Digits(String),
    /// A source, canonical, where it is, and which of its files.
    Source {
        source: String,
        origin: String,
        /// Whether somebody has named that server.
        is_only_there: bool,
        include: Vec<String>,
        exclude: Vec<String>,
    },
}

impl Name {
    /// Reads a name, as it was typed after `verb` with these globs.
    ///
    /// # Errors
    /// [`Exit::Usage`] for what is neither a source nor digits, globs that do not compile, globs
    /// or an endpoint beside digits, and an endpoint that is none.
    pub fn parse(verb: Verb, text: &str, at: &At, include: &[String], exclude: &[String]) -> Result<Self, Failure> {
        let has_digits = (DIGITS_MIN..=DIGITS_MAX).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
        let is = if has_digits {
            if !include.is_empty() || !exclude.is_empty() {
                return Err(Failure::hinted(
                    Exit::Usage,
                    format!("`{text}` names a model by its digest, which has its files already"),
                    "leave --include and --exclude out, or name the source",
                ));
            }
            // What is hashed again is fetched from there.
            if at.is_given && verb != Verb::Verify {
                return Err(Failure::hinted(
                    Exit::Usage,
                    format!("`{text}` names a model by its digest, from whichever server it came"),
                    "leave --endpoint-url out, or name the source",
                ));
            }
            Is::Digits(text.to_ascii_lowercase())
        } else {
            Selection::new(include, exclude)?;
            let source = Source::parse(text)?;
            at.endpoints.check(&source)?;
            Is::Source {
                origin: at.endpoints.origin(&source),
                is_only_there: at.endpoints.named_for(&source).is_some(),
                source: source.to_string(),
                include: include.to_vec(),
                exclude: exclude.to_vec(),
            }
        };
        Ok(Self { verb, at: at.clone(), text: text.to_owned(), is })
    }

    /// What it is called in a sentence: with its globs and its server, so that it can be typed.
    #[must_use]
    pub fn shown(&self) -> String {
        match &self.is {
            Is::Digits(_) => self.text.clone(),
            Is::Source { source, origin, include, exclude, .. } => {
                let server = endpoint_of(origin).filter(|_| !goes_without_saying(origin, self.usual()));
                typed_at(typed(source, include, exclude), server.as_deref())
            }
        }
    }

    /// The servers that go without saying where models are named to the one who asks.
    #[must_use]
    pub const fn usual(&self) -> Option<&Endpoints> {
        self.at.usual.as_ref()
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

/// A complete model, as somebody named it.
#[derive(Debug, Clone)]
pub struct Named {
    /// What is kept of it.
    pub kept: Kept,
    /// The model.
    pub digest: Digest,
    /// Its files.
    pub manifest: Manifest,
}

/// What is kept under a name; at least one. A source is one alone, a model is kept once for each
/// source that names it, the one used last first.
///
/// # Errors
/// [`Exit::NotFound`] lists what else there is of a source; [`Exit::Usage`] for digits that begin
/// more than one digest; the disk's.
pub fn matching(view: &View, name: &Name) -> Result<Vec<Kept>, Failure> {
    match &name.is {
        Is::Digits(digits) => by_digits(view, name, digits),
        Is::Source { source, origin, is_only_there, include, exclude } => {
            let alike = |record: &SourceRecord| record.source.trim_end_matches('/') == source.trim_end_matches('/');
            let kept = view.kept_where(|kept| kept.record.as_ref().is_some_and(alike))?;
            let is_so = |kept: &Kept, is: &dyn Fn(&SourceRecord) -> bool| kept.record.as_ref().is_some_and(is);
            let is_of = |kept: &&Kept| is_so(kept, &|record| record.is_of(source, include, exclude));
            let of_name: Vec<&Kept> = kept.iter().filter(is_of).collect();
            let is_there = |kept: &&&Kept| is_so(kept, &|record| record.is_from(origin));
            match (of_name.iter().find(is_there), &of_name[..]) {
                (Some(there), _) => Ok(vec![(*there).clone()]),
                (None, [only]) if !is_only_there => Ok(vec![(*only).clone()]),
                (None, [_, _, ..]) if !is_only_there => Err(from_several(name, &of_name)),
                _ => Err(not_here(view, name, &kept)),
            }
        }
    }
}

fn by_digits(view: &View, name: &Name, digits: &str) -> Result<Vec<Kept>, Failure> {
    let begins = |kept: &Kept| kept.manifest.is_some_and(|digest| digest.to_string().starts_with(digits));
    let mut found = view.kept_where(begins)?;
    let models: BTreeSet<Digest> = found.iter().filter_map(|kept| kept.manifest).collect();
    if models.len() > 1 {
        return Err(Failure::hinted(
            Exit::Usage,
            format!("`{digits}` begins the digests of {} models", models.len()),
            candidates("more digits tell them apart", name.verb, models.iter().map(ToString::to_string)),
        ));
    }
    if found.is_empty() {
        return Err(absent(view, name, "`larder ls` shows what is here".to_owned()));
    }
    found.sort_by_key(|kept| std::cmp::Reverse(kept.last_used));
    Ok(found)
}

/// Nobody has said at which server, and it is here from several.
fn from_several(name: &Name, kept: &[&Kept]) -> Failure {
    let mut names: Vec<String> = kept.iter().map(|kept| name_of(kept, name.usual())).collect();
    names.sort();
    Failure::hinted(
        Exit::Usage,
        format!("`{}` is here from {} servers", name.shown(), names.len()),
        candidates("--endpoint-url tells them apart", name.verb, names.into_iter()),
    )
}

/// Nothing is kept under exactly that name: what is, under names like it.
fn not_here(view: &View, name: &Name, alike: &[Kept]) -> Failure {
    let records = alike.iter().filter_map(|kept| kept.record.as_ref());
    let mut others: Vec<String> = records.map(|record| typed_of(record, name.usual())).collect();
    if others.is_empty() {
        return absent(view, name, format!("`larder prefetch {}` brings it", name.shown()));
    }
    others.sort();
    absent(view, name, candidates("what is here of it", name.verb, others.into_iter()))
}

fn absent(view: &View, name: &Name, hint: String) -> Failure {
    let what = match &name.is {
        Is::Digits(_) => format!("`{}` is not", name.text),
        Is::Source { origin, include, exclude, .. } => {
            let globs = if include.is_empty() && exclude.is_empty() { "" } else { " with these globs" };
            let server = endpoint_of(origin).filter(|_| !goes_without_saying(origin, name.usual()));
            let server = server.map(|url| format!(" of `{url}`")).unwrap_or_default();
            format!("`{}`{globs}{server} is not", name.text)
        }
    };
    Failure::hinted(Exit::NotFound, format!("{what} in the store `{}`", view.directory().display()), hint)
}

/// The commands that name each of several.
fn candidates(what: &str, verb: Verb, names: impl ExactSizeIterator<Item = String>) -> String {
    let more = names.len().saturating_sub(CANDIDATES_MAX);
    let listed: Vec<String> = names.take(CANDIDATES_MAX).map(|name| format!("\n    {}", verb.command(&name))).collect();
    let more = if more > 0 { format!("\n    and {more} more, which `larder ls` shows") } else { String::new() };
    format!("{what}:{}{more}", listed.concat())
}

/// The complete model of that name.
///
/// # Errors
/// As [`matching`]; [`Exit::NotFound`] where it is here only in part, and [`Exit::Integrity`] where it
/// is damaged, with the command that completes it.
pub fn complete(view: &View, name: &Name) -> Result<Named, Failure> {
    let kept = chosen(view, name)?;
    let shown = name.shown();
    let next = || completing(&kept, name.usual());
    let incomplete = |why: String| Failure::hinted(Exit::NotFound, format!("`{shown}` is {why}"), next());
    let Some(digest) = kept.manifest else {
        let (here, size) = kept.record.as_ref().map_or((0, 0), |record| (view.bytes_present(record), record.size()));
        return Err(incomplete(format!("here only in part: {} of {}", text::bytes(here), text::bytes(size))));
    };
    let manifest = match view.manifest(&digest) {
        Err(store::Error::Damaged { .. } | store::Error::Absent(_)) => {
            let damaged = format!("the manifest of `{shown}` is damaged or missing");
            return Err(Failure::hinted(Exit::Integrity, damaged, next()));
        }
        other => other?,
    };
    let lacking: Vec<&str> = view.lacking(&manifest, &digest).map(|file| file.path.as_str()).collect();
    if !lacking.is_empty() {
        let damaged = format!("`{shown}` is damaged: {} is wrong or missing", text::some(&lacking));
        return Err(Failure::hinted(Exit::Integrity, damaged, next()));
    }
    Ok(Named { kept, digest, manifest })
}

/// What is kept under a name: of several sources of one model, the one used last.
///
/// # Errors
/// As [`matching`].
pub fn chosen(view: &View, name: &Name) -> Result<Kept, Failure> {
    Ok(matching(view, name)?.swap_remove(0))
}

/// The command that makes a model whole, as a hint.
#[must_use]
pub fn completing(kept: &Kept, usual: Option<&Endpoints>) -> String {
    match (&kept.record, kept.manifest) {
        (Some(record), _) => format!("`larder prefetch {}` completes it", typed_of(record, usual)),
        (None, Some(digest)) => {
            format!("no source names it any more, nothing can complete it: `larder rm {}` removes it", digest.short())
        }
        (None, None) => "`larder ls` shows what is here".to_owned(),
    }
}

/// What it is called in a sentence: by its source, globs and server, or where none names it by its digest.
/// The usual servers go without saying.
#[must_use]
pub fn name_of(kept: &Kept, usual: Option<&Endpoints>) -> String {
    match (&kept.record, kept.manifest) {
        (Some(record), _) => typed_of(record, usual),
        (None, digest) => digest.map_or_else(|| "-".to_owned(), |digest| digest.short()),
    }
}

/// The key of its pin: the source's record id, or the digest of a model that no source names.
#[must_use]
pub fn pin_key(kept: &Kept) -> Option<String> {
    kept.record.as_ref().map(SourceRecord::id).or_else(|| kept.manifest.map(|digest| digest.to_string()))
}

/// The source of a record as it is typed in a shell; the usual servers go without saying.
pub(super) fn typed_of(record: &SourceRecord, usual: Option<&Endpoints>) -> String {
    let server = record.endpoint_url().filter(|_| !goes_without_saying(&record.origin, usual));
    typed_at(typed(&record.source, &record.include, &record.exclude), server.as_deref())
}

fn goes_without_saying(origin: &str, usual: Option<&Endpoints>) -> bool {
    usual.is_some_and(|usual| usual.are(origin))
}

/// What is typed, and the server after it.
#[must_use]
pub fn typed_at(typed: String, endpoint_url: Option<&str>) -> String {
    match endpoint_url {
        Some(url) => format!("{typed} --endpoint-url {}", text::in_shell(url)),
        None => typed,
    }
}

/// A source and its globs as they are typed in a shell.
#[must_use]
pub fn typed(source: &str, include: &[String], exclude: &[String]) -> String {
    let globs = |flag: &str, globs: &[String]| {
        globs.iter().map(|glob| format!(" --{flag} {}", text::in_shell(glob))).collect::<String>()
    };
    format!("{}{}{}", text::in_shell(source), globs("include", include), globs("exclude", exclude))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(globs: &[&str]) -> Vec<String> {
        globs.iter().map(|glob| (*glob).to_owned()).collect()
    }

    #[test]
    fn names_are_sources_or_digits() {
        let at = At::usual(&Endpoints::default());
        let parse = |text: &str, include: &[&str]| Name::parse(Verb::Path, text, &at, &own(include), &[]);
        assert_eq!(parse("S3://b/m/", &["*.json"]).expect("a source").shown(), "s3://b/m/ --include '*.json'");
        assert_eq!(parse("ABCDEF01", &[]).expect("digits").shown(), "ABCDEF01");
        for (text, include) in [("abcde", &[][..]), ("s3://", &[]), ("s3://b/m", &["["]), ("abcdef01", &["*"])] {
            assert_eq!(parse(text, include).expect_err(text).exit, Exit::Usage);
        }
    }

    #[test]
    fn a_source_is_shown_as_it_is_typed() {
        assert_eq!(typed("s3://b/m/", &[], &[]), "s3://b/m/");
        let shown = typed("s3://b/my model/", &own(&["*.json"]), &own(&["it's"]));
        assert_eq!(shown, r"'s3://b/my model/' --include '*.json' --exclude 'it'\''s'");
    }

    #[test]
    fn candidates_can_be_pasted_and_are_few() {
        let told = candidates("here", Verb::Export, own(&["s3://b/m/"]).into_iter());
        assert_eq!(told, "here:\n    larder export s3://b/m/ DIRECTORY");
        let many: Vec<String> = (0..10).map(|at| format!("s3://b/{at}")).collect();
        let told = candidates("here", Verb::Rm, many.into_iter());
        assert!(told.ends_with("\n    larder rm s3://b/7\n    and 2 more, which `larder ls` shows"), "{told}");
    }
}
