//! What is wrong, gathered until everything was looked at.

use std::path::Path;

use crate::report::{Exit, Failure};

/// More would only scroll away; how many there are is said.
const TOLD_MAX: usize = 100;

/// What is wrong with one value, before it is known whose it is.
#[derive(Debug)]
pub(super) struct Wrong {
    /// Where in the file, if not where the whole value begins; in bytes.
    pub at: Option<usize>,
    /// Whose value, if not the setting's own.
    pub of: Option<String>,
    /// What it is: "is `12`".
    pub is: String,
    /// Why that is wrong and what is wanted, if the setting's form does not say it.
    pub want: Option<String>,
    /// Whether a broken line above may be the reason for it.
    pub unsure: bool,
    /// Of an entry of `prefetch`: whether something else was meant, without which nothing may start.
    pub vital: bool,
}

impl Wrong {
    /// A value that has not the setting's form.
    pub(super) fn form(is: String) -> Self {
        Self { at: None, of: None, is, want: None, unsure: false, vital: false }
    }

    /// A value that is wrong for a reason of its own.
    pub(super) fn because(is: String, want: impl Into<String>) -> Self {
        Self { want: Some(want.into()), ..Self::form(is) }
    }

    /// The same, elsewhere.
    pub(super) fn at(self, at: Option<usize>) -> Self {
        Self { at, ..self }
    }

    /// The same, of something else.
    pub(super) fn of(self, of: impl Into<String>) -> Self {
        Self { of: Some(of.into()), ..self }
    }

    /// The sentence. `whose` and `form` are those of the setting.
    pub(super) fn sentence(&self, whose: &str, form: &str) -> String {
        let of = self.of.as_deref().unwrap_or(whose);
        match &self.want {
            Some(want) => format!("{of} {}: {want}", self.is),
            None => format!("{of} {}: want {form}", self.is),
        }
    }
}

/// All that is wrong, in the order of the file, then of the table.
#[derive(Debug, Default)]
pub(super) struct Problems {
    /// By line; 0 for what is wrong with the file as a whole.
    in_file: Vec<(usize, String)>,
    elsewhere: Vec<String>,
    /// Of those in the file, the ones that only cost an entry of `prefetch`.
    harmless: usize,
}

impl Problems {
    /// One in a line of the file, counted from 1.
    pub(super) fn in_line(&mut self, line: usize, sentence: String) {
        self.in_file.push((line, sentence));
    }

    /// The same of an entry of `prefetch`, which is left out for it.
    pub(super) fn of_prefetch(&mut self, line: usize, sentence: String) {
        self.harmless += 1;
        self.in_line(line, sentence);
    }

    /// Whether anything is wrong without which nothing may start.
    pub(super) fn are_vital(&self) -> bool {
        self.in_file.len() + self.elsewhere.len() > self.harmless
    }

    /// One that no line of the file shows.
    pub(super) fn elsewhere(&mut self, sentence: String) {
        self.elsewhere.push(sentence);
    }

    /// The failure, if anything is wrong.
    pub(super) fn failure(mut self, path: Option<&Path>) -> Option<Failure> {
        // Stable: what stands in one line keeps its order.
        self.in_file.sort_by_key(|(line, _)| *line);
        let path = path.map(|path| path.display().to_string()).unwrap_or_default();
        let mut lines: Vec<String> =
            self.in_file.into_iter().map(|(line, sentence)| format!("{path}:{line}: {sentence}")).collect();
        lines.extend(self.elsewhere);
        if lines.is_empty() {
            return None;
        }
        let more = lines.len().saturating_sub(TOLD_MAX);
        if more > 0 {
            lines.truncate(TOLD_MAX);
            lines.push(format!("and {more} more"));
        }
        let hint = "correct what is named; `larder daemon --check` reads the settings and starts nothing";
        Some(Failure::hinted(Exit::Usage, lines.join("\n"), hint))
    }
}
