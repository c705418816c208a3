//! How the models of one command are named: by their sources or digests, the globs that they were
//! pulled with, and the server that they came from.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::args::{Globs, NameFlags};
use crate::cache::named::{At, Name, Verb};
use crate::domain::Source;
use crate::remote::Endpoints;
use crate::report::{Exit, Failure};

/// What all names of a command have in common.
pub struct Names {
    globs: Globs,
    given: Option<String>,
    usual: Endpoints,
}

impl Names {
    /// With the server that is given, or that the environment names, as a pull would have it.
    pub async fn new(globs: Globs, endpoint_url: Option<&str>) -> Self {
        Self { globs, given: endpoint_url.map(str::to_owned), usual: Endpoints::resolve(None).await }
    }

    /// The same from the flags of a command.
    pub async fn of(flags: &NameFlags) -> Self {
        Self::new(flags.globs.clone(), flags.endpoint_url.as_deref()).await
    }

    /// The servers that the environment names.
    pub const fn usual(&self) -> &Endpoints {
        &self.usual
    }

    /// The servers that this command pulls from.
    pub fn endpoints(&self) -> Endpoints {
        self.given.as_deref().map_or_else(|| self.usual.clone(), Endpoints::at)
    }

    /// One of them.
    ///
    /// # Errors
    /// As [`Name::parse`].
    pub fn name(&self, verb: Verb, model: &str) -> Result<Name, Failure> {
        let at = match &self.given {
            Some(url) => At::given(url, Some(&self.usual)),
            None => At::usual(&self.usual),
        };
        Name::parse(verb, model, &at, &self.globs.include, &self.globs.exclude)
    }

    /// What a daemon is told of them, beside their sources. It means its own server where none is named.
    ///
    /// # Errors
    /// [`Exit::Usage`] where they are of two servers, which one request cannot say.
    pub fn body(&self, models: &[&str]) -> Result<Value, Failure> {
        let mut body = json!({"include": self.globs.include, "exclude": self.globs.exclude});
        let endpoints = self.endpoints();
        let sources: Vec<Source> = models.iter().filter_map(|model| Source::parse(model).ok()).collect();
        let servers: BTreeSet<Option<&str>> = sources.iter().map(|source| endpoints.named_for(source)).collect();
        if servers.len() > 1 {
            return Err(Failure::hinted(
                Exit::Usage,
                "these models are of several servers",
                "name those of one server in one command, and the others in the next",
            ));
        }
        if let Some(url) = servers.into_iter().flatten().next() {
            body["endpoint_url"] = url.into();
        }
        Ok(body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_is_told_of_a_server_that_is_named() {
        let globs = Globs { include: vec!["*.json".into()], exclude: Vec::new() };
        let names = |given: Option<&str>| Names {
            globs: globs.clone(),
            given: given.map(str::to_owned),
            usual: Endpoints::default(),
        };
        let url =
            |given: Option<&str>, models: &[&str]| names(given).body(models).map(|body| body["endpoint_url"].clone());
        assert_eq!(names(None).body(&["s3://b/m/"]).expect("a body"), json!({"include": ["*.json"], "exclude": []}));
        assert_eq!(url(Some("http://a"), &["s3://b/m/", "gs://b/m/"]).expect("one server"), json!("http://a"));
        for model in ["file:///m", "https://h/f", "abcdef01"] {
            assert_eq!(url(Some("http://a"), &[model]).expect(model), Value::Null);
        }
        let failure = url(Some("http://a"), &["s3://b/m/", "file:///m"]).expect_err("two");
        assert_eq!(failure.exit, Exit::Usage);
    }
}
