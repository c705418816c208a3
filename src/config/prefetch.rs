//! `[[prefetch]]`: what to have before anybody asks.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::Wrong;
use super::setting::SETTINGS;
use super::suggest::nearest;
use super::value::{self, Raw, TEXT_LEN_MAX};
use crate::domain::Source;
use crate::fetch::Selection;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefetch {
    /// What to pull.
    pub source: Source,
    /// Globs of which a file must match one, unless there are none; they compile.
    pub include: Vec<String>,
    /// Globs of which it must match none; they compile.
    pub exclude: Vec<String>,
    /// Whether it is kept from eviction.
    pub pin: bool,
}

/// What an entry may hold.
pub(super) const KEYS: [&str; 4] = ["source", "include", "exclude", "pin"];

/// An entry that is left out, and why: it keeps no other from being brought, and no daemon from
/// serving what is here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Its source as far as there is one that may be shown.
    pub source: String,
    /// What is wrong with it, in words.
    pub why: String,
}

/// An entry and where it stands, in bytes.
pub(super) struct Entry {
    /// Where there is a source, with whatever else is right, so that it can be said too if the source is
    /// not allowed.
    pub prefetch: Option<Prefetch>,
    /// How its source is shown.
    pub shown: String,
    pub at: usize,
    pub source_at: usize,
    /// What is wrong with it.
    pub wrong: Vec<Wrong>,
}

/// Reads all entries.
pub(super) fn read(value: &Spanned<DeValue<'_>>) -> Vec<Entry> {
    let none = |at: usize, wrong: Wrong| Entry {
        prefetch: None,
        shown: "[[prefetch]]".to_owned(),
        at,
        source_at: at,
        wrong: vec![wrong],
    };
    let Some(items) = value.get_ref().as_array() else {
        let is = if value.get_ref().is_table() { "is one table" } else { "is no list of tables" };
        return vec![none(value.span().start, Wrong::form(is.to_owned()))];
    };
    let entry = |item: &Spanned<DeValue<'_>>| {
        let at = item.span().start;
        let not_one = || Wrong::form("has something else than a table in it".to_owned()).at(Some(at));
        item.get_ref().as_table().map_or_else(|| none(at, not_one()), |table| entry(at, table))
    };
    items.iter().map(entry).collect()
}

fn whose(key: &str) -> String {
    format!("`{key}` of [[prefetch]]")
}

fn entry(at: usize, table: &DeTable<'_>) -> Entry {
    let mut gathered = Vec::new();
    let wrong = &mut gathered;
    for (key, _) in table.iter().filter(|(key, _)| !KEYS.contains(&key.get_ref().as_ref())) {
        wrong.push(unknown(key));
    }
    let mut source = None;
    match table.get("source") {
        Some(value) => match read_source(value) {
            Ok(read) => source = Some((value.span().start, read)),
            Err(why) => wrong.push(why.of(whose("source")).at(Some(value.span().start))),
        },
        None => wrong.push(Wrong {
            unsure: true,
            ..Wrong::because(
                "has no `source`".to_owned(),
                "want s3://bucket/prefix/, gs://bucket/prefix/ or https://host/file",
            )
            .of("[[prefetch]]")
            .at(Some(at))
        }),
    }
    let include = globs(table, "include", wrong);
    let exclude = globs(table, "exclude", wrong);
    let mut pin = false;
    if let Some(value) = table.get("pin") {
        match value::boolean(Raw::Toml(value)) {
            Ok(read) => pin = read,
            Err(why) => wrong.push(
                Wrong { want: Some("want true or false".to_owned()), ..why }
                    .of(whose("pin"))
                    .at(Some(value.span().start)),
            ),
        }
    }
    let text = table.get("source").and_then(|value| value.get_ref().as_str());
    let shown = match (&source, text) {
        (Some((_, source)), _) => source.to_string(),
        (None, Some(text)) => value::shown(text).trim_matches('`').to_owned(),
        (None, None) => "[[prefetch]]".to_owned(),
    };
    let source_at = source.as_ref().map_or(at, |(source_at, _)| *source_at);
    let prefetch = source.map(|(_, source)| Prefetch { source, include, exclude, pin });
    Entry { prefetch, shown, at, source_at, wrong: gathered }
}

fn unknown(key: &Spanned<std::borrow::Cow<'_, str>>) -> Wrong {
    let name = key.get_ref().as_ref();
    let settings = || SETTINGS.iter().map(|setting| setting.name);
    // What was meant may be `policy`, without which more is allowed than was wanted.
    let vital = settings().any(|setting| setting == name)
        || (nearest(name, KEYS).is_none() && nearest(name, settings()).is_some());
    let want = if settings().any(|setting| setting == name) {
        "it is a setting of its own: put it above the first [[prefetch]]".to_owned()
    } else if let Some(near) = nearest(name, KEYS) {
        format!("did you mean `{near}`?")
    } else {
        format!("an entry has only {}", KEYS.join(", "))
    };
    let of = format!("{} of [[prefetch]]", value::shown(name));
    Wrong { unsure: true, vital, ..Wrong::because("is unknown".to_owned(), want).of(of).at(Some(key.span().start)) }
}

fn read_source(value: &Spanned<DeValue<'_>>) -> Result<Source, Wrong> {
    let want = "want s3://bucket/prefix/, gs://bucket/prefix/ or https://host/file";
    let Some(text) = value.get_ref().as_str() else {
        return Err(Wrong::because("is no text".to_owned(), want));
    };
    let is = format!("is {}", value::shown(text));
    match Source::parse(text) {
        Ok(source) if source.secret_url().is_none() => Err(Wrong::because(
            is,
            "this is how larder shows a URL with a query, and cannot be asked for: want the whole URL",
        )),
        Ok(source) => Ok(source),
        // The errors of `Source` quote the text, which may hold what is not shown here.
        Err(_) => Err(Wrong::because(is, want)),
    }
}

fn globs(table: &DeTable<'_>, key: &str, wrong: &mut Vec<Wrong>) -> Vec<String> {
    let Some(value) = table.get(key) else { return Vec::new() };
    let (texts, reasons) = value::list(Raw::Toml(value));
    wrong.extend(reasons.into_iter().map(|why| Wrong {
        of: Some(whose(key)),
        at: why.at.or(Some(value.span().start)),
        want: Some("want a list of globs such as [\"*.json\"]".to_owned()),
        ..why
    }));
    let mut globs = Vec::new();
    for (at, text) in texts {
        // One by one, so that each that is wrong is named.
        let compiled = if text.len() > TEXT_LEN_MAX {
            Err(format!("want at most {TEXT_LEN_MAX} bytes"))
        } else {
            Selection::new(&[text.to_owned()], &[]).map_err(|error| match error {
                crate::fetch::Error::BadGlob { detail, .. } => detail,
                other => other.to_string(),
            })
        };
        match compiled {
            Ok(_) => globs.push(text.to_owned()),
            Err(why) => {
                let is = format!("has {} in it", value::shown(text));
                wrong.push(Wrong::because(is, why).of(whose(key)).at(at));
            }
        }
    }
    globs
}
