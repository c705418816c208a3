//! `--include` and `--exclude`.

use globset::{Glob, GlobBuilder, GlobSet, GlobSetBuilder};

use super::Error;
use crate::domain::ModelPath;

/// Which files of a source are wanted. `*` does not cross `/`, `**` does; a glob without `/`
/// matches the file name in any directory, as in .gitignore.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    include: Vec<String>,
    exclude: Vec<String>,
    included: GlobSet,
    excluded: GlobSet,
}

impl Selection {
    /// Compiles globs. No include glob means every file.
    ///
    /// # Errors
    /// [`Error::BadGlob`] names the first that does not compile.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, Error> {
        Ok(Self {
            include: include.to_vec(),
            exclude: exclude.to_vec(),
            included: compile(include)?,
            excluded: compile(exclude)?,
        })
    }

    /// Whether a file is wanted.
    #[must_use]
    pub fn takes(&self, path: &ModelPath) -> bool {
        (self.include.is_empty() || self.included.is_match(path.as_str())) && !self.excluded.is_match(path.as_str())
    }

    /// The include globs as given.
    #[must_use]
    pub fn include(&self) -> &[String] {
        &self.include
    }

    /// The exclude globs as given.
    #[must_use]
    pub fn exclude(&self) -> &[String] {
        &self.exclude
    }
}

fn compile(globs: &[String]) -> Result<GlobSet, Error> {
    let bad = |glob: &str| {
        let glob = glob.to_owned();
        move |error: globset::Error| Error::BadGlob { glob, detail: error.kind().to_string() }
    };
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        let anywhere = if glob.contains('/') { glob.trim_start_matches('/').to_owned() } else { format!("**/{glob}") };
        let compiled: Glob = GlobBuilder::new(&anywhere).literal_separator(true).build().map_err(bad(glob))?;
        set.add(compiled);
    }
    set.build().map_err(bad(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(include: &[&str], exclude: &[&str], path: &str, taken: bool) {
        let own = |globs: &[&str]| globs.iter().map(|g| (*g).to_owned()).collect::<Vec<_>>();
        let selection = Selection::new(&own(include), &own(exclude)).expect("globs");
        assert_eq!(selection.takes(&ModelPath::new(path).expect("path")), taken, "{path}");
    }

    #[test]
    fn globs_select_as_gitignore_users_expect() {
        check(&[], &[], "a/b.bin", true);
        check(&["*.safetensors"], &[], "sub/x.safetensors", true);
        check(&["*.safetensors"], &[], "x.bin", false);
        check(&[], &["original/**"], "original/a/b.pth", false);
        check(&["sub/*"], &[], "sub/a/b", false);
        check(&["*.{json,safetensors}"], &["tokenizer*"], "tokenizer.json", false);
        assert!(Selection::new(&["[".to_owned()], &[]).is_err());
    }
}
