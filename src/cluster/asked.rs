//! What the `CachedModel` objects ask of one node. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use super::objects::CachedModelSpec;
use crate::cache::Want;
use crate::domain::Source;
use crate::fetch::Selection;
use crate::report::Failure;

/// A `CachedModel` that is meant for this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Its name.
    pub name: String,
    /// Its source as somebody wrote it, or as it is shown.
    pub source: String,
    /// What it comes to, or why it cannot be had.
    pub model: Result<Model, String>,
}

/// A model to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// The id of its source and selection in the store.
    pub record_id: String,
    source: Source,
    include: Vec<String>,
    exclude: Vec<String>,
    pin: bool,
}

impl Model {
    /// As the cache takes it.
    #[must_use]
    pub fn want(&self, after: Duration) -> Option<Want> {
        // The globs compiled when it was read.
        let selection = Selection::new(&self.include, &self.exclude).ok()?;
        Some(Want { source: self.source.clone(), selection, pin: self.pin, after })
    }
}

/// Whether a node of these labels is meant.
#[must_use]
pub fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The id of the record that a source and a selection of its files have in the store.
pub type RecordId<'a> = &'a dyn Fn(&Source, &Selection) -> String;

/// What one object asks. `spec` says why it cannot be read where that is so.
#[must_use]
pub fn read(
    name: &str,
    spec: Result<&CachedModelSpec, String>,
    allows: &dyn Fn(&Source) -> bool,
    record_id: RecordId<'_>,
) -> Asked {
    let (source, model) = match spec {
        Ok(spec) => match Source::parse(&spec.source) {
            Ok(source) => (source.to_string(), model(spec, source, allows, record_id)),
            // A text that is no source may be anything, and a secret too: the error knows what to show.
            Err(error) => (String::new(), Err(Failure::from(error).message)),
        },
        Err(why) => (String::new(), Err(why)),
    };
    Asked { name: name.to_owned(), source, model }
}

fn model(
    spec: &CachedModelSpec,
    source: Source,
    allows: &dyn Fn(&Source) -> bool,
    record_id: RecordId<'_>,
) -> Result<Model, String> {
    if !allows(&source) {
        return Err(format!("`{source}` is not among the `sources` that the daemon of this node allows"));
    }
    let selection = Selection::new(&spec.include, &spec.exclude).map_err(|error| Failure::from(error).message)?;
    let record_id = record_id(&source, &selection);
    let (include, exclude) = (spec.include.clone(), spec.exclude.clone());
    Ok(Model { record_id, source, include, exclude, pin: spec.pin })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(source: &Source, selection: &Selection) -> String {
        format!("{source} {:?}", selection.include())
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn spec(source: &str) -> CachedModelSpec {
        CachedModelSpec { source: source.to_owned(), ..CachedModelSpec::default() }
    }

    #[test]
    fn a_selector_selects_as_match_labels_do() {
        let labels = map(&[("gpu", "h100"), ("zone", "a")]);
        assert!(selects(&map(&[]), &labels));
        assert!(selects(&map(&[("gpu", "h100")]), &labels));
        assert!(selects(&map(&[("gpu", "h100"), ("zone", "a")]), &labels));
        assert!(!selects(&map(&[("gpu", "h100"), ("zone", "b")]), &labels));
        assert!(!selects(&map(&[("absent", "")]), &labels));
    }

    #[test]
    fn what_cannot_be_had_says_why() {
        let allows = |source: &Source| source.to_string().starts_with("s3://models/");
        let why = |spec: &CachedModelSpec| read("m", Ok(spec), &allows, &shown).model.expect_err("refused");
        assert!(why(&spec("models/a")).contains("is not a source"), "{}", why(&spec("models/a")));
        assert!(why(&spec("s3://other/a/")).contains("`sources`"));
        let globs = CachedModelSpec { include: vec!["[".into()], ..spec("s3://models/a/") };
        assert!(why(&globs).contains('['), "{}", why(&globs));
        assert_eq!(read("m", Err("no spec".into()), &allows, &shown).model, Err("no spec".to_owned()));
    }

    #[test]
    fn what_can_be_had_is_the_same_as_by_any_other_way() {
        let spec = CachedModelSpec { pin: true, include: vec!["*.json".into()], ..spec("s3://models/a/") };
        let asked = read("m", Ok(&spec), &|_| true, &shown);
        assert_eq!((asked.name.as_str(), asked.source.as_str()), ("m", "s3://models/a/"));
        let model = asked.model.expect("a model");
        let want = model.want(Duration::from_secs(1)).expect("a want");
        assert!(want.pin);
        assert_eq!((shown(&want.source, &want.selection), want.after), (model.record_id, Duration::from_secs(1)));
    }
}
