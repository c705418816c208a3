//! Defaults, then the file, then the environment, then the flag; and what contradicts what.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::prefetch::{Prefetch, Refused};
use super::problem::{Problems, Wrong};
use super::setting::{SETTINGS, Setting};
use super::value::{self, Raw};
use super::{Config, document};
use crate::report::Failure;

/// Where the settings are if nobody says so; it may be absent.
pub const DEFAULT_PATH: &str = "/etc/larder/larder.toml";

/// Bytes of a file of settings. A thousand prefetches are a tenth of it.
pub const FILE_LEN_MAX: u64 = 1 << 20;

/// Wrong entries of `prefetch` that are shown one by one.
const REFUSED_MAX: usize = 100;

/// Where a setting has its value from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetBy {
    /// Nobody set it.
    Default,
    /// The file.
    File {
        /// Which.
        path: PathBuf,
        /// The line, from 1, in which the key stands.
        line: usize,
    },
    /// A variable of that name.
    Variable(String),
    /// A flag of that name.
    Flag(&'static str),
}

impl fmt::Display for SetBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(name) => f.write_str(name),
        }
    }
}

/// Settings that hold, and where each was set.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// The file that was read, if there was one.
    pub file: Option<PathBuf>,
    /// One for each of [`SETTINGS`].
    pub(super) set_by: Vec<SetBy>,
    /// One for each entry of `prefetch`.
    prefetch_set_by: Vec<SetBy>,
    /// Entries of `prefetch` that are left out.
    pub refused: Vec<Refused>,
    /// What is wrong with them, as `--check` says it.
    complaint: Option<Failure>,
}

impl Loaded {
    /// Whether everything is right, the wishes too, without which a daemon starts all the same.
    ///
    /// # Errors
    /// What is wrong, one line each.
    pub fn check(&self) -> Result<(), Failure> {
        self.complaint.clone().map_or(Ok(()), Err)
    }

    /// Settings that no file has.
    #[must_use]
    pub fn of(config: Config) -> Self {
        let prefetch_set_by = vec![SetBy::Default; config.prefetch.len()];
        let set_by = vec![SetBy::Default; SETTINGS.len()];
        Self { config, file: None, set_by, prefetch_set_by, refused: Vec::new(), complaint: None }
    }

    /// Where a setting has its value from; `None` for a name that is none. Of `prefetch` it is the
    /// first entry.
    #[must_use]
    pub fn set_by(&self, name: &str) -> Option<&SetBy> {
        SETTINGS.iter().zip(&self.set_by).find(|(setting, _)| setting.name == name).map(|(_, set_by)| set_by)
    }

    /// Each entry of `prefetch` with where it stands.
    pub fn prefetch(&self) -> impl Iterator<Item = (&Prefetch, &SetBy)> {
        self.config.prefetch.iter().zip(&self.prefetch_set_by)
    }
}

/// [`Config::load`], with the place of the file that may be absent.
pub(super) fn load(
    path: Option<&Path>,
    default_path: &Path,
    store_flag: Option<&Path>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Failure> {
    let mut settling = Settling::default();
    let file = path.unwrap_or(default_path);
    let read = match read_bounded(file) {
        Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => None,
        read => Some(read),
    };
    let found = read.is_some();
    match read {
        Some(Ok(bytes)) => document::apply(&mut settling, file, &bytes),
        Some(Err(error)) => {
            settling.doubt();
            settling.problems.elsewhere(format!("the settings in `{}` cannot be read: {error}", file.display()));
        }
        None => {}
    }
    settling.environment(environment);
    if let Some(flag) = store_flag {
        settling.store(flag);
    }
    settling.finish(Some(file).filter(|_| found))
}

/// The whole file, unless it is too long; a pipe will do.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(FILE_LEN_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_LEN_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than 1 MiB"));
    }
    Ok(bytes)
}

/// Settings while they are read.
pub(super) struct Settling {
    config: Config,
    set_by: Vec<SetBy>,
    prefetches: Vec<Wish>,
    pub problems: Problems,
    /// Settings with a wrong value: what they hold means nothing.
    wrong: BTreeSet<&'static str>,
}

/// An entry of `prefetch` while it is read.
struct Wish {
    prefetch: Option<Prefetch>,
    shown: String,
    /// What is wrong with it.
    why: Vec<String>,
    set_by: SetBy,
    /// The line of its source.
    line: usize,
}

impl Default for Settling {
    fn default() -> Self {
        Self {
            config: Config::default(),
            set_by: vec![SetBy::Default; SETTINGS.len()],
            prefetches: Vec::new(),
            problems: Problems::default(),
            wrong: BTreeSet::new(),
        }
    }
}

impl Settling {
    /// Sets one value, or says what is wrong with it.
    pub fn read(
        &mut self,
        setting: &Setting,
        read: fn(&mut Config, Raw<'_>) -> Result<(), Vec<Wrong>>,
        raw: Raw<'_>,
        set_by: SetBy,
    ) -> Vec<Wrong> {
        match read(&mut self.config, raw) {
            Ok(()) => {
                self.set(setting, set_by);
                Vec::new()
            }
            Err(reasons) => {
                self.wrong.insert(setting.name);
                reasons
            }
        }
    }

    /// Says that the file could not be read as a whole: what contradicts what is not known.
    pub fn doubt(&mut self) {
        self.wrong = SETTINGS.iter().map(|setting| setting.name).collect();
    }

    /// Remembers where a setting was set.
    pub fn set(&mut self, setting: &Setting, set_by: SetBy) {
        if let Some(at) = SETTINGS.iter().position(|other| other.name == setting.name) {
            self.set_by[at] = set_by;
        }
    }

    /// Takes an entry whose source stands in that line, with what is wrong with it.
    pub fn prefetch(
        &mut self,
        prefetch: Option<Prefetch>,
        shown: String,
        why: Vec<String>,
        set_by: SetBy,
        line: usize,
    ) {
        self.prefetches.push(Wish { prefetch, shown, why, set_by, line });
    }

    /// Applies the variables.
    pub fn environment(&mut self, environment: &dyn Fn(&str) -> Option<String>) {
        for setting in SETTINGS {
            let variable = setting.variable();
            let Some(text) = environment(&variable).filter(|text| !text.is_empty()) else { continue };
            let Some(read) = setting.read else {
                self.problems.elsewhere(format!("{variable} is set: only the file can say what to prefetch"));
                continue;
            };
            for reason in self.read(setting, read, Raw::Text(&text), SetBy::Variable(variable.clone())) {
                self.problems.elsewhere(reason.sentence(&variable, setting.form));
            }
        }
    }

    /// `--store`, relative to where the command was typed.
    pub fn store(&mut self, flag: &Path) {
        match std::path::absolute(flag) {
            Ok(path) => {
                self.config.store = path;
                self.set(&SETTINGS[0], SetBy::Flag("--store"));
            }
            Err(error) => {
                let shown = value::shown(&flag.to_string_lossy());
                self.problems.elsewhere(format!("--store is {shown}: want a path ({error})"));
            }
        }
    }

    /// Looks for contradictions. The settings, or all that is wrong.
    pub fn finish(mut self, file: Option<&Path>) -> Result<Loaded, Failure> {
        let Config { high_watermark: high, low_watermark: low, .. } = self.config;
        if low >= high && self.right(&["low_watermark", "high_watermark"]) {
            let sentence =
                format!("`low_watermark` is {low} and `high_watermark` is {high}: want a low one below the high one");
            self.contradiction(&["low_watermark", "high_watermark"], sentence);
        }
        if self.config.socket == self.config.admin_socket && self.right(&["socket", "admin_socket"]) {
            let sentence = "`admin_socket` is the same as `socket`: want another directory, which pods do not mount";
            self.contradiction(&["admin_socket", "socket"], sentence.to_owned());
        }
        let known = self.right(&["sources"]);
        let (mut prefetch_set_by, mut refused, mut more) = (Vec::new(), Vec::new(), 0_usize);
        for mut wish in std::mem::take(&mut self.prefetches) {
            if let Some(prefetch) =
                wish.prefetch.as_ref().filter(|prefetch| known && !self.config.allows(&prefetch.source))
            {
                let shown = value::shown(&prefetch.source.to_string());
                let sentence = format!(
                    "`source` of [[prefetch]] is {shown}: `sources` does not allow it, add a prefix of it there"
                );
                self.problems.of_prefetch(wish.line, sentence.clone());
                wish.why.insert(0, sentence);
            }
            match wish.prefetch {
                Some(prefetch) if wish.why.is_empty() => {
                    self.config.prefetch.push(prefetch);
                    prefetch_set_by.push(wish.set_by);
                }
                _ if refused.len() >= REFUSED_MAX => more += 1,
                _ => refused.push(Refused { source: wish.shown, why: wish.why.join("; ") }),
            }
        }
        if more > 0 {
            refused.push(Refused { source: "[[prefetch]]".to_owned(), why: format!("{more} more entries are wrong") });
        }
        let vital = self.problems.are_vital();
        match self.problems.failure(file) {
            Some(failure) if vital => Err(failure),
            complaint => Ok(Loaded {
                config: self.config,
                file: file.map(Path::to_owned),
                set_by: self.set_by,
                prefetch_set_by,
                refused,
                complaint,
            }),
        }
    }

    fn right(&self, names: &[&str]) -> bool {
        !names.iter().any(|name| self.wrong.contains(name))
    }

    /// Says it in the line of the first of the settings that has one.
    fn contradiction(&mut self, names: &[&str], sentence: String) {
        let set_by = |name: &&str| {
            let at = SETTINGS.iter().position(|setting| setting.name == *name)?;
            self.set_by.get(at).filter(|set_by| **set_by != SetBy::Default)
        };
        match names.iter().find_map(set_by) {
            Some(SetBy::File { line, .. }) => self.problems.in_line(*line, sentence),
            Some(set_by) => self.problems.elsewhere(format!("{set_by}: {sentence}")),
            None => self.problems.elsewhere(sentence),
        }
    }
}
