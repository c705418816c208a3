//! The text of the file: which line says what.

use std::collections::BTreeSet;
use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::load::{SetBy, Settling};
use super::prefetch;
use super::problem::Wrong;
use super::setting::{SETTINGS, Setting};
use super::suggest::nearest;
use super::value::{self, Raw};

/// Where lines begin.
struct Lines {
    breaks: Vec<usize>,
}

impl Lines {
    fn of(text: &[u8]) -> Self {
        let breaks = text.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
        Self { breaks: breaks.collect() }
    }

    /// The line, counted from 1, in which a byte stands.
    fn line(&self, at: usize) -> usize {
        self.breaks.partition_point(|end| *end < at) + 1
    }
}

/// Applies a file's bytes to the settings.
pub(super) fn apply(settling: &mut Settling, path: &Path, bytes: &[u8]) {
    let lines = Lines::of(bytes);
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            settling.doubt();
            let line = lines.line(error.valid_up_to());
            return settling.problems.in_line(line, "this line is not UTF-8, as TOML must be".to_owned());
        }
    };
    let (document, errors) = DeTable::parse_recoverable(text);
    let mut broken = BTreeSet::new();
    for error in errors {
        // Without a place, it is the end that came too early.
        let line = lines.line(error.span().map_or(text.trim_end().len(), |span| span.start));
        // One mistake often breaks several rules: the first says most.
        if broken.insert(line) {
            let message: String = error.message().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            settling.problems.in_line(line, format!("this is not TOML: {message}"));
        }
    }
    if !broken.is_empty() {
        settling.doubt();
    }
    Reader { settling, path, lines, broken }.table(document.get_ref());
}

struct Reader<'a> {
    settling: &'a mut Settling,
    path: &'a Path,
    lines: Lines,
    /// Lines that are not TOML: what was made of them says nothing.
    broken: BTreeSet<usize>,
}

impl Reader<'_> {
    fn table(&mut self, table: &DeTable<'_>) {
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let at = key.span().start;
            let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) else {
                self.wrong(&unknown(name), value::shown(name).as_str(), "", at);
                continue;
            };
            let set_by = self.set_by(at);
            let whose = format!("`{name}`");
            let start = value.span().start;
            let Some(read) = setting.read else {
                self.prefetch(setting, value, set_by);
                continue;
            };
            for reason in self.settling.read(setting, read, Raw::Toml(value), set_by) {
                self.wrong(&reason, &whose, setting.form, start);
            }
        }
    }

    fn prefetch(&mut self, setting: &Setting, value: &toml::Spanned<DeValue<'_>>, set_by: SetBy) {
        let start = value.span().start;
        for entry in prefetch::read(value) {
            let (set_by, line) = (self.set_by(entry.at), self.lines.line(entry.source_at));
            let told = entry.wrong.iter().filter_map(|reason| {
                let line = self.line_of(reason, start)?;
                let sentence = reason.sentence(&format!("`{}`", setting.name), setting.form);
                if reason.vital {
                    self.settling.problems.in_line(line, sentence.clone());
                } else {
                    self.settling.problems.of_prefetch(line, sentence.clone());
                }
                Some(sentence)
            });
            let why = told.collect::<Vec<_>>();
            self.settling.prefetch(entry.prefetch, entry.shown, why, set_by, line);
        }
        self.settling.set(setting, set_by);
    }

    fn set_by(&self, at: usize) -> SetBy {
        SetBy::File { path: self.path.to_owned(), line: self.lines.line(at) }
    }

    fn wrong(&mut self, wrong: &Wrong, whose: &str, form: &str, at: usize) {
        if let Some(line) = self.line_of(wrong, at) {
            self.settling.problems.in_line(line, wrong.sentence(whose, form));
        }
    }

    /// The line in which it is told; `None` where it may come of a broken one.
    fn line_of(&self, wrong: &Wrong, at: usize) -> Option<usize> {
        let line = self.lines.line(wrong.at.unwrap_or(at));
        // Behind a broken line, a key may have landed in the wrong table.
        let doubtful = wrong.unsure && self.broken.first().is_some_and(|first| *first < line);
        (!self.broken.contains(&line) && !doubtful).then_some(line)
    }
}

fn unknown(name: &str) -> Wrong {
    let want = if prefetch::KEYS.contains(&name) {
        "it belongs below a line [[prefetch]]".to_owned()
    } else if let Some(near) = nearest(name, SETTINGS.iter().map(|setting| setting.name)) {
        format!("did you mean `{near}`?")
    } else {
        "`larder daemon --check` without it shows the names of all settings".to_owned()
    };
    Wrong { unsure: true, ..Wrong::because("is unknown".to_owned(), want) }
}
