//! `policy`: which pods may ask for which sources, beside what `sources` allows at all.

use serde_json::{Value, json};
use toml::de::DeTable;

use super::problem::Wrong;
use super::suggest::nearest;
use super::value::{self, Raw};
use super::{Config, sources};
use crate::domain::Source;

/// Some pods, and what they may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Names of namespaces; a `*` at the end stands for any text.
    pub namespaces: Vec<String>,
    /// Likewise names of service accounts in them.
    pub service_accounts: Vec<String>,
    /// Prefixes as in `sources`.
    pub sources: Vec<String>,
}

/// What a rule may hold.
const KEYS: [&str; 3] = ["namespaces", "service_accounts", "sources"];
/// A label of DNS, as Kubernetes names namespaces; of service accounts it is a subdomain.
const NAME_LEN_MAX: usize = 253;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller<'a> {
    /// A pod, by kubelet's word.
    Pod {
        /// Its namespace.
        namespace: &'a str,
        /// Its service account.
        service_account: &'a str,
    },
    /// Whoever reaches the socket for pods: nobody says who that is.
    Unnamed,
}

impl Rule {
    /// Whether it lets somebody have a source. Who has no name is let by a rule for everybody only.
    fn lets(&self, caller: Caller<'_>, source: &Source) -> bool {
        let is_for = match caller {
            Caller::Pod { namespace, service_account } => {
                self.namespaces.iter().any(|pattern| matches(pattern, namespace))
                    && self.service_accounts.iter().any(|pattern| matches(pattern, service_account))
            }
            Caller::Unnamed => {
                [&self.namespaces, &self.service_accounts].iter().all(|list| list.iter().any(|p| p == "*"))
            }
        };
        is_for && sources::allow(&self.sources, source)
    }
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

impl Config {
    /// Whether somebody may ask for a source: `sources` has to allow it, and where there are rules
    /// one of them.
    #[must_use]
    pub fn lets(&self, caller: Caller<'_>, source: &Source) -> bool {
        self.allows(source) && (self.policy.is_empty() || self.policy.iter().any(|rule| rule.lets(caller, source)))
    }
}

/// A rule as in the file.
pub(super) fn show(rule: &Rule) -> Value {
    json!({
        "namespaces": rule.namespaces,
        "service_accounts": rule.service_accounts,
        "sources": rule.sources,
    })
}

/// Reads all rules. A rule that is left out would let nobody more, but one that is read by half
/// could: if anything is wrong, none holds.
pub(super) fn read(config: &mut Config, raw: Raw<'_>) -> Result<(), Vec<Wrong>> {
    let Raw::Toml(list) = raw else {
        return Err(vec![Wrong::because("is set".to_owned(), "only the file can say who may ask for what")]);
    };
    let Some(items) = list.get_ref().as_array() else {
        return Err(vec![Wrong::form("is no list of tables".to_owned())]);
    };
    let (mut rules, mut wrong) = (Vec::new(), Vec::new());
    for item in items {
        let at = Some(item.span().start);
        match item.get_ref().as_table() {
            Some(table) => rules.extend(rule(table, at, &mut wrong)),
            None => wrong.push(Wrong::form("has something else than a table in it".to_owned()).at(at)),
        }
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    config.policy = rules;
    Ok(())
}

fn rule(table: &DeTable<'_>, at: Option<usize>, wrong: &mut Vec<Wrong>) -> Option<Rule> {
    for (key, _) in table.iter().filter(|(key, _)| !KEYS.contains(&key.get_ref().as_ref())) {
        let name = key.get_ref().as_ref();
        let want = nearest(name, KEYS)
            .map_or_else(|| format!("a rule has only {}", KEYS.join(", ")), |near| format!("did you mean `{near}`?"));
        let of = format!("{} of a rule", value::shown(name));
        wrong.push(Wrong::because("is unknown".to_owned(), want).of(of).at(Some(key.span().start)));
    }
    let mut list = |key: &str, read: &dyn Fn(&str) -> Result<String, String>| {
        let value = table.get(key)?;
        let (texts, reasons) = value::list(Raw::Toml(value));
        let whose = format!("`{key}` of a rule");
        wrong.extend(reasons.into_iter().map(|why| Wrong {
            of: Some(whose.clone()),
            at: why.at.or(Some(value.span().start)),
            want: Some("want a list of texts".to_owned()),
            ..why
        }));
        let mut good = Vec::new();
        for (at, text) in texts {
            match read(text) {
                Ok(text) => good.push(text),
                Err(want) => {
                    let is = format!("has {} in it", value::shown(text));
                    wrong.push(Wrong::because(is, want).of(whose.clone()).at(at));
                }
            }
        }
        Some(good)
    };
    let namespaces = list("namespaces", &name);
    let service_accounts = list("service_accounts", &name).unwrap_or_else(|| vec!["*".to_owned()]);
    let prefixes = list("sources", &|text| sources::prefix(text).map_err(str::to_owned));
    for (key, is_there) in [("namespaces", namespaces.is_some()), ("sources", prefixes.is_some())] {
        if !is_there {
            let want = "say whom the rule is for, and what they may ask for";
            wrong.push(Wrong::because(format!("has no `{key}`"), want).of("a rule").at(at));
        }
    }
    Some(Rule { namespaces: namespaces?, service_accounts, sources: prefixes? })
}

fn name(text: &str) -> Result<String, String> {
    let start = text.strip_suffix('*').unwrap_or(text);
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.');
    if text.is_empty() || text.len() > NAME_LEN_MAX || !start.chars().all(is_plain) {
        return Err("want a name such as \"team-a\", or the beginning of some such as \"team-*\"".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, String> {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("larder.toml");
        std::io::Write::write_all(&mut std::fs::File::create(&path).expect("a file"), text.as_bytes())
            .expect("written");
        Config::load(Some(&path), None, &|_| None).map(|loaded| loaded.config).map_err(|failure| failure.message)
    }

    const RULES: &str = r#"
        [[policy]]
        namespaces = ["team-a"]
        sources = ["s3://a/"]
        [[policy]]
        namespaces = ["team-b", "lab-*"]
        service_accounts = ["serving"]
        sources = ["s3://b/", "s3://shared/"]
        [[policy]]
        namespaces = ["*"]
        sources = ["s3://public/"]
    "#;

    #[test]
    fn rules_let_whom_they_are_for() {
        let config = config(RULES).expect("rules");
        let may = |namespace, service_account, uri| {
            let source = Source::parse(uri).expect("a source");
            config.lets(Caller::Pod { namespace, service_account }, &source)
        };
        assert!(may("team-a", "anything", "s3://a/x/"));
        assert!(may("team-b", "serving", "s3://b/x/") && may("lab-7", "serving", "s3://shared/x/"));
        assert!(may("other", "default", "s3://public/x/"));
        for (namespace, service_account, uri) in [
            ("team-a", "x", "s3://b/x/"),
            ("team-ab", "x", "s3://a/x/"),
            ("team-b", "default", "s3://b/x/"),
            ("lab", "serving", "s3://b/x/"),
            ("other", "default", "s3://a/x/"),
        ] {
            assert!(!may(namespace, service_account, uri), "{namespace} {service_account} {uri}");
        }
        let unnamed = |uri| config.lets(Caller::Unnamed, &Source::parse(uri).expect("a source"));
        assert!(unnamed("s3://public/x/") && !unnamed("s3://a/x/") && !unnamed("s3://b/x/"));
    }

    #[test]
    fn without_rules_everybody_may_what_sources_allow() {
        let config = config("").expect("nothing");
        for (uri, may) in [("s3://any/x/", true), ("file:///etc/", false)] {
            let source = Source::parse(uri).expect("a source");
            assert_eq!(config.lets(Caller::Unnamed, &source), may, "{uri}");
            assert_eq!(config.lets(Caller::Pod { namespace: "n", service_account: "s" }, &source), may, "{uri}");
        }
        let text = "policy = [{ namespaces = [\"*\"], sources = [\"file:///\"] }]";
        let rules = self::config(text).expect("a rule");
        assert!(
            !rules.lets(Caller::Unnamed, &Source::parse("file:///etc/").expect("a source")),
            "`sources` goes first"
        );
    }

    #[test]
    fn every_slip_is_named() {
        for (text, says) in [
            ("policy = 1", "is no list of tables"),
            ("policy = [1]", "something else than a table"),
            ("[[policy]]\nsources = []", "has no `namespaces`"),
            ("[[policy]]\nnamespaces = []", "has no `sources`"),
            ("[[policy]]\nnamespace = []\nsources = []", "did you mean `namespaces`?"),
            ("[[policy]]\nnamespaces = [\"A\"]\nsources = []", "want a name such as"),
            ("[[policy]]\nnamespaces = [\"a*b\"]\nsources = []", "want a name such as"),
            ("[[policy]]\nnamespaces = [\"a\", 1]\nsources = []", "want a list of texts"),
            ("[[policy]]\nnamespaces = [\"a\"]\nsources = [\"bucket\"]", "begins with s3://"),
        ] {
            let said = config(text).expect_err(text);
            assert!(said.contains(says), "{text}: {said}");
        }
    }
}
