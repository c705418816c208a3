//! The two kinds of objects that larder has in a cluster, and their definitions.
//!
//! A `CachedModel` is written by people and read by every node. A `NodeCache` is written by one node
//! and read by people: a status on the `CachedModel`, written by a thousand nodes that all watch it,
//! would be a million messages for each change.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::schemars;
use kube::CustomResource;
use kube::core::CustomResourceExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Group of both.
pub const GROUP: &str = "larder.dev";
/// Version of both.
pub const VERSION: &str = "v1alpha1";

/// What [`crate::domain::Source`] takes: what it does not take is refused when it is applied, and not
/// found in the status of each node. A user name or password is not taken: it would stand in etcd. In
/// the syntax of RE2, as the API server's.
const SOURCE: &str = concat!(
    r"^([sS]3|[gG][sS])://[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}(/[^\x00-\x1f\x7f-\x9f]*)?$",
    r"|^[fF][iI][lL][eE]://(localhost)?/[^\x00-\x1f\x7f-\x9f]*$",
    r"|^[hH][tT][tT][pP][sS]?://[^/?#@\x00-\x1f\x7f-\x9f]+",
    r"/[^?#\x00-\x1f\x7f-\x9f]*[^/?#\x00-\x1f\x7f-\x9f]([?#][^\x00-\x1f\x7f-\x9f]*)?$",
);

/// One character of a glob, escaped or not, or a class.
macro_rules! glob_atom {
    () => {
        r"[^\[{}\\]|\\.|\[([!^].|[^!^])[^\]]*\]"
    };
}

/// What [`crate::fetch::Selection`] takes, as far as that is regular: brackets are closed, braces are
/// closed and opened, down to the third level, and nothing ends in a backslash. Deeper ones are taken.
const GLOB: &str = concat!(
    "^(",
    glob_atom!(),
    r"|\{(",
    glob_atom!(),
    r"|\{(",
    glob_atom!(),
    r"|\{(",
    glob_atom!(),
    r")*\})*\})*\})*$",
    r"|\{.*\{.*\{.*\{",
);

/// What a label of a node can be.
const LABEL_VALUE: &str = r"^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$";
const LABEL_VALUE_LEN_MAX: u32 = 63;

/// A model that the nodes of a cluster are to have before anybody asks.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "larder.dev",
    version = "v1alpha1",
    kind = "CachedModel",
    plural = "cachedmodels",
    shortname = "cmodel",
    doc = "A model that the chosen nodes have before anybody asks for it. How each of them stands is in its NodeCache.",
    printcolumn = r#"{"name":"Source","type":"string","jsonPath":".spec.source"}"#,
    printcolumn = r#"{"name":"Pin","type":"boolean","jsonPath":".spec.pin"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct CachedModelSpec {
    /// Where it is: `s3://bucket/prefix/`, `gs://bucket/prefix/`, `https://host/file` or `file:///directory`. The daemon's setting `sources` has to allow it.
    #[schemars(length(min = 1, max = 2048), regex(pattern = SOURCE))]
    pub source: String,
    /// Globs of the files to bring; left out, all. `*` does not cross `/`, `**` does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 1024), regex(pattern = GLOB)))]
    pub include: Vec<String>,
    /// Globs of files to leave out; left out, none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 256), inner(length(min = 1, max = 1024), regex(pattern = GLOB)))]
    pub exclude: Vec<String>,
    /// Whether nodes keep it whatever else they need room for.
    #[serde(default)]
    pub pin: bool,
    /// Labels of the nodes that are to have it; none means every node that runs larder.
    #[serde(default)]
    #[schemars(
        extend("maxProperties" = 64),
        extend("additionalProperties" = {"type": "string", "pattern": LABEL_VALUE, "maxLength": LABEL_VALUE_LEN_MAX})
    )]
    pub node_selector: BTreeMap<String, String>,
}

/// What one node has. It has no `spec`: nobody asks anything of a node by it.
#[derive(CustomResource, Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "larder.dev",
    version = "v1alpha1",
    kind = "NodeCache",
    plural = "nodecaches",
    shortname = "ncache",
    no_spec,
    status = "NodeCacheStatus",
    doc = "What larder has on the node of the same name. Written by that node alone; it goes with the node.",
    printcolumn = r#"{"name":"Ready","type":"integer","jsonPath":".status.ready"}"#,
    printcolumn = r#"{"name":"Wanted","type":"integer","jsonPath":".status.wanted"}"#,
    printcolumn = r#"{"name":"Failed","type":"integer","jsonPath":".status.failed"}"#,
    printcolumn = r#"{"name":"Free","type":"string","jsonPath":".status.storeFree"}"#,
    printcolumn = r#"{"name":"Updated","type":"date","jsonPath":".status.updated"}"#,
    printcolumn = r#"{"name":"Version","type":"string","jsonPath":".status.version"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
pub struct NodeCacheSpec {}

/// How the models stand that the cluster asks of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(transform = without_defaults)]
pub struct NodeCacheStatus {
    /// The models that the `CachedModel` objects ask of this node, by name; 256 at most.
    #[schemars(length(max = 256))]
    pub models: Vec<ModelStatus>,
    /// How many of them are ready.
    #[schemars(range(min = 0))]
    pub ready: i64,
    /// How many of them failed: `models` says why.
    #[schemars(range(min = 0))]
    pub failed: i64,
    /// How many of them there are, with those that are not listed here.
    #[schemars(range(min = 0))]
    pub wanted: i64,
    /// Said where `models` is cut short.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// What is free on the file system of the store, for people: `1.2 TiB of 3.5 TiB`.
    #[schemars(length(max = 64))]
    pub store_free: String,
    /// Bytes free on the file system of the store.
    #[schemars(range(min = 0))]
    pub store_bytes_free: i64,
    /// Size of that file system in bytes.
    #[schemars(range(min = 0))]
    pub store_bytes_total: i64,
    /// The version of larder.
    #[schemars(length(max = 64))]
    pub version: String,
    /// When this was written. Ten minutes and more ago: the daemon of this node does not reach the API server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub updated: Option<Time>,
}

/// Takes the defaults out of a schema: they are for reading what an earlier version wrote, and an API
/// server of Kubernetes 1.20 takes an empty text for none at all, and refuses that.
fn without_defaults(schema: &mut schemars::Schema) {
    let properties = schema.get_mut("properties").and_then(|properties| properties.as_object_mut());
    for property in properties.into_iter().flat_map(|properties| properties.values_mut()) {
        property.as_object_mut().map(|property| property.remove("default"));
    }
}

/// How one model stands on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModelStatus {
    /// The name of the `CachedModel`.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its source.
    #[schemars(length(max = 2048))]
    pub source: String,
    /// Where it is.
    pub state: ModelState,
    /// The digest of the model, where it is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub digest: Option<String>,
    /// Bytes that are here.
    #[schemars(range(min = 0))]
    pub bytes_done: i64,
    /// Bytes of all files; 0 until the origin has listed them.
    #[schemars(range(min = 0))]
    pub bytes_total: i64,
    /// Why it failed or waits, or what to know of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// When it came to this state.
    pub since: Time,
}

/// Where a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ModelState {
    /// Not begun, or evicted since: the message says which.
    Waiting,
    /// On its way.
    Moving,
    /// Here.
    Ready,
    /// Failed, and tried again where that can help.
    Failed,
}

/// The definitions of both kinds, as a cluster takes them.
#[must_use]
pub fn definitions() -> Vec<CustomResourceDefinition> {
    vec![CachedModel::crd(), NodeCache::crd()]
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::Value;

    use super::*;
    use crate::domain::Source;

    const FILE: &str = "daemonset/base/crds.yaml";
    const BLESS: &str = "LARDER_BLESS=1 cargo test --lib cluster::objects";

    fn generated() -> Vec<Value> {
        definitions().iter().map(|definition| serde_json::to_value(definition).expect("JSON")).collect()
    }

    fn schema(definition: &Value) -> &Value {
        &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    }

    /// What is applied is what the code reads and writes.
    #[test]
    fn the_manifest_is_what_the_types_say() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(FILE);
        if std::env::var_os("LARDER_BLESS").is_some() {
            let documents: Vec<String> =
                generated().iter().map(|value| serde_saphyr::to_string(value).expect("YAML")).collect();
            let text = format!("# Written from src/cluster/objects.rs by `{BLESS}`.\n{}", documents.join("---\n"));
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            #[expect(clippy::disallowed_methods, reason = "a file of the repository, not of the store")]
            std::fs::write(&path, text).expect("written");
        }
        #[expect(clippy::disallowed_methods, reason = "a file of the repository, not of the store")]
        let Ok(text) = std::fs::read_to_string(&path) else { return };
        let there: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
        assert!(there == generated(), "{FILE} is not what the types say: `{BLESS}` writes it anew");
    }

    #[test]
    fn names_are_those_that_manifests_use() {
        let names = |definition: &Value| {
            let names = &definition["spec"]["names"];
            let text = |value: &Value| value.as_str().expect("text").to_owned();
            (text(&definition["metadata"]["name"]), text(&names["shortNames"][0]), text(&definition["spec"]["scope"]))
        };
        let all: Vec<_> = generated().iter().map(names).collect();
        let is = |name: &str, short: &str| (name.to_owned(), short.to_owned(), "Cluster".to_owned());
        assert_eq!(all, [is("cachedmodels.larder.dev", "cmodel"), is("nodecaches.larder.dev", "ncache")]);
    }

    /// Kubernetes 1.20 takes it: every value has a type, and nothing is there that came later.
    #[test]
    fn schemas_are_structural() {
        fn walk(at: &str, value: &Value) {
            assert!(value["type"].is_string(), "{at} has no type: {value}");
            for absent in ["$ref", "oneOf", "anyOf", "allOf", "x-kubernetes-validations", "const"] {
                assert_eq!(value[absent], Value::Null, "{at} has {absent}");
            }
            if let Some(format) = value["format"].as_str() {
                assert!(["int64", "date-time"].contains(&format), "{at}: {format}");
            }
            for (name, property) in value["properties"].as_object().into_iter().flatten() {
                walk(&format!("{at}.{name}"), property);
            }
            for inner in ["items", "additionalProperties"] {
                if value[inner].is_object() {
                    walk(&format!("{at}.{inner}"), &value[inner]);
                }
            }
        }
        for definition in generated() {
            let (kind, schema) = (definition["spec"]["names"]["kind"].as_str().expect("a kind"), schema(&definition));
            for (name, property) in schema["properties"].as_object().expect("properties") {
                walk(&format!("{kind}.{name}"), property);
            }
        }
        let all = generated();
        let spec = &schema(&all[0])["properties"]["spec"];
        assert_eq!(spec["required"], serde_json::json!(["source"]));
        assert_eq!(spec["properties"]["source"]["maxLength"], 2048);
        let include = &spec["properties"]["include"];
        assert_eq!(
            (&include["minItems"], &include["maxItems"], &include["default"]),
            (&1.into(), &256.into(), &Value::Null)
        );
        let selector = &spec["properties"]["nodeSelector"];
        assert_eq!(
            (&selector["maxProperties"], &selector["additionalProperties"]["maxLength"]),
            (&64.into(), &63.into())
        );
        let status = schema(&all[1]);
        assert_eq!((&status["properties"]["spec"], &status["required"]), (&Value::Null, &Value::Null));
        let properties = &status["properties"]["status"]["properties"];
        assert_eq!(properties["models"]["maxItems"], 256);
        assert!(properties.as_object().expect("properties").values().all(|property| property["default"].is_null()));
    }

    /// The API server matches with Go's regexp, whose syntax is RE2's, as this crate's is: neither looks
    /// around, and neither is anchored by itself.
    fn pattern(of: &str) -> regex::Regex {
        let definition = serde_json::to_value(CachedModel::crd()).expect("JSON");
        let properties = &schema(&definition)["properties"]["spec"]["properties"];
        let pattern = match of {
            "source" => &properties[of]["pattern"],
            "nodeSelector" => &properties[of]["additionalProperties"]["pattern"],
            _ => &properties[of]["items"]["pattern"],
        };
        regex::Regex::new(pattern.as_str().unwrap_or_else(|| panic!("{of} has no pattern"))).expect("a pattern")
    }

    fn takes_glob(glob: &str) -> bool {
        crate::fetch::Selection::new(&[glob.to_owned()], &[]).is_ok()
    }

    /// Texts of few characters, among them all that mean something; the same each time.
    fn texts(alphabet: &[&str]) -> impl Iterator<Item = String> {
        let mut seed = 7_u64;
        let mut next = move |below: usize| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(seed >> 40).unwrap_or(0) % below
        };
        (0..20_000).map(move |_| (0..next(9)).map(|_| alphabet[next(alphabet.len())]).collect())
    }

    #[test]
    fn a_source_is_taken_here_where_a_daemon_takes_it() {
        let pattern = pattern("source");
        let check = |text: &str, taken: bool| {
            assert_eq!(pattern.is_match(text), taken, "{text:?}");
            assert_eq!(Source::parse(text).is_ok(), taken, "{text:?}");
        };
        for source in [
            "s3://models/llama/",
            "S3://b",
            "gs://b/k",
            "s3://b/a b?#@/ü",
            "file:///data/m",
            "file://localhost/data",
            "https://host:8443/a/b.bin?versionId=7#x",
            "https://h/a@b",
            "http://[::1]/f",
        ] {
            check(source, true);
        }
        for wrong in [
            "",
            "models/llama",
            "/data",
            "s3://",
            "s3:///key",
            "s3://.b/",
            "s3://bu cket/",
            "s3://key:secret@b/k",
            "file://host/x",
            "file://",
            "ftp://h/f",
            "https://host",
            "https://host/",
            "https://h/d/?x=1",
            "https://user:password@host/f",
            "https://token@host/f",
            "s3://b/\n",
            " s3://b/m",
        ] {
            check(wrong, false);
        }
        let alphabet =
            ["s3://", "gs://", "https://", "http://", "file://", "/", "a", ".", "@", "?", "#", ":", " ", "\t"];
        for text in texts(&alphabet).flat_map(|text| [format!("https://{text}"), format!("s3://{text}"), text]) {
            assert_eq!(pattern.is_match(&text), Source::parse(&text).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn a_glob_is_refused_only_where_a_daemon_refuses_it() {
        let pattern = pattern("include");
        for glob in [
            "*.json",
            "a/**",
            "{a,b}.bin",
            "*.{js{on,},b[a-c]}",
            "[!a]",
            "[]a]",
            r"\[x",
            r"\{",
            "a]",
            "{{{{a}}}}",
            "a,b",
        ] {
            assert!(pattern.is_match(glob) && takes_glob(glob), "{glob}");
        }
        for wrong in ["[", "[a", "a[!]", "[]", "{a", "a}", "{a}}", "{{a}", r"a\", r"{a\}", "{[}", "{{{a}}"] {
            assert!(!pattern.is_match(wrong) && !takes_glob(wrong), "{wrong}");
        }
        // What it cannot tell is left to the daemons.
        assert!(pattern.is_match("[z-a]") && !takes_glob("[z-a]"));
        let mut refused = 0;
        for text in
            texts(&["a", "*", "[", "]", "{", "}", "!", "^", "\\", ",", "-", "/"]).filter(|text| !text.is_empty())
        {
            let matches = pattern.is_match(&text);
            refused += usize::from(!matches);
            assert!(matches || !takes_glob(&text), "{text:?}");
            let is_beyond = text.contains('-') || text.matches('{').count() >= 4;
            assert!(!matches || is_beyond || takes_glob(&text), "{text:?}");
        }
        assert!(refused > 5_000, "{refused}");
        assert_eq!(self::pattern("exclude").as_str(), pattern.as_str());
    }

    #[test]
    fn a_selector_has_values_that_labels_can_have() {
        let pattern = pattern("nodeSelector");
        for value in ["", "true", "NVIDIA-H100-80GB-HBM3", "a.b_c"] {
            assert!(pattern.is_match(value), "{value}");
        }
        for wrong in ["-a", "a ", "a/b", "ü", "a."] {
            assert!(!pattern.is_match(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_cached_model_needs_no_more_than_its_source() {
        let text = serde_json::json!({"metadata": {"name": "a"}, "spec": {"source": "s3://models/a/"}});
        let model: CachedModel = serde_json::from_value(text).expect("a CachedModel");
        let spec = CachedModelSpec { source: "s3://models/a/".into(), ..CachedModelSpec::default() };
        assert_eq!(model.spec, spec);
    }
}
