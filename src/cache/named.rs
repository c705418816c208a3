//! What a name means: a source as it was asked for, or the first digits of a model's digest.

use crate::domain::{Digest, Manifest, Source};
use crate::report::{Exit, Failure, text};
use crate::store::{self, Kept, SourceRecord, View};

/// Fewer digits than these are no name: they could be a typing error.
const DIGITS_MIN: usize = 6;
/// All of a digest.
const DIGITS_MAX: usize = 64;

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

/// Everything kept whose source is `name`, or whose digest starts with it (6 to 64 digits); at
/// least one.
///
/// # Errors
/// [`Exit::NotFound`], [`Exit::Usage`] for a name that is neither, and the disk's.
pub fn matching(view: &View, name: &str) -> Result<Vec<Kept>, Failure> {
    let by_digest = (DIGITS_MIN..=DIGITS_MAX).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_hexdigit());
    let found: Vec<Kept> = if by_digest {
        let name = name.to_ascii_lowercase();
        view.kept_where(|kept| kept.manifest.is_some_and(|digest| digest.to_string().starts_with(&name)))?
    } else {
        let wanted = Source::parse(name)?.to_string();
        let same = |source: &str| source.trim_end_matches('/') == wanted.trim_end_matches('/');
        view.kept_where(|kept| kept.record.as_ref().is_some_and(|record| same(&record.source)))?
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

/// The one that is meant of several selections of one source: a finished one, the one used last.
///
/// # Errors
/// As [`matching`].
pub fn chosen(view: &View, name: &str) -> Result<Kept, Failure> {
    let mut found = matching(view, name)?;
    found.sort_by_key(|kept| std::cmp::Reverse((kept.manifest.is_some(), kept.last_used)));
    Ok(found.swap_remove(0))
}

/// The complete model of that name.
///
/// # Errors
/// As [`matching`]; [`Exit::NotFound`] where it is here only in part, and [`Exit::Integrity`] where it
/// is damaged, with the command that completes it.
pub fn complete(view: &View, name: &str) -> Result<Named, Failure> {
    let kept = chosen(view, name)?;
    let incomplete = |why: String| Failure::hinted(Exit::NotFound, format!("`{name}` is {why}"), completing(&kept));
    let Some(digest) = kept.manifest else {
        let (here, size) = kept.record.as_ref().map_or((0, 0), |record| (view.bytes_present(record), record.size()));
        return Err(incomplete(format!("here only in part: {} of {}", text::bytes(here), text::bytes(size))));
    };
    let manifest = match view.manifest(&digest) {
        Err(store::Error::Damaged { .. } | store::Error::Absent(_)) => {
            let damaged = format!("the manifest of `{name}` is damaged or missing");
            return Err(Failure::hinted(Exit::Integrity, damaged, completing(&kept)));
        }
        other => other?,
    };
    let lacking: Vec<&str> = view.lacking(&manifest, &digest).map(|file| file.path.as_str()).collect();
    if !lacking.is_empty() {
        let damaged = format!("`{name}` is damaged: {} is wrong or missing", text::some(&lacking));
        return Err(Failure::hinted(Exit::Integrity, damaged, completing(&kept)));
    }
    Ok(Named { kept, digest, manifest })
}

/// The command that makes a model whole, as a hint.
#[must_use]
pub fn completing(kept: &Kept) -> String {
    match (&kept.record, kept.manifest) {
        (Some(record), _) => format!("`larder prefetch {}` completes it", typed(record)),
        (None, Some(digest)) => {
            format!("no source names it any more, nothing can complete it: `larder rm {}` removes it", digest.short())
        }
        (None, None) => "`larder ls` shows what is here".to_owned(),
    }
}

/// What it is called in a sentence: by its source, or where none names it by its digest.
#[must_use]
pub fn name_of(kept: &Kept) -> String {
    match (&kept.record, kept.manifest) {
        (Some(record), _) => record.source.clone(),
        (None, digest) => digest.map_or_else(|| "-".to_owned(), |digest| digest.short()),
    }
}

/// The key of its pin: the source's record id, or the digest of a model that no source names.
#[must_use]
pub fn pin_key(kept: &Kept) -> Option<String> {
    kept.record.as_ref().map(SourceRecord::id).or_else(|| kept.manifest.map(|digest| digest.to_string()))
}

/// A source and its globs as they are typed in a shell.
fn typed(record: &SourceRecord) -> String {
    let globs =
        |flag: &str, globs: &[String]| globs.iter().map(|glob| format!(" --{flag} '{glob}'")).collect::<String>();
    format!("{}{}{}", record.source, globs("include", &record.include), globs("exclude", &record.exclude))
}
