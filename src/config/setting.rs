//! The one table of all settings.

use std::time::Duration;

use serde_json::{Value, json};

use super::problem::Wrong;
use super::value::{self, Raw};
use super::{Config, policy, sources, told};

/// Longer, and a changed model would go unnoticed for a day.
const RECHECK_MAX: Duration = Duration::from_hours(24);
const STOP_WITHIN_MIN: Duration = Duration::from_secs(1);
const STOP_WITHIN_MAX: Duration = Duration::from_mins(10);
const READ_TIMEOUT_MIN: Duration = Duration::from_secs(1);
const READ_TIMEOUT_MAX: Duration = Duration::from_hours(1);

/// Puts a value into the settings, unless it is wrong.
type Read = fn(&mut Config, Raw<'_>) -> Result<(), Vec<Wrong>>;

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its key in the file.
    pub name: &'static str,
    /// Its form and unit, as what follows "want".
    pub form: &'static str,
    /// Its default as written in the file; empty for `[[prefetch]]`, which has none.
    pub default: &'static str,
    /// What it is for and why it has that default.
    pub reason: &'static str,
    /// Of `[[prefetch]]` `None`: it is read by its own rules.
    pub(super) read: Option<Read>,
    /// Its value as in the file.
    pub(super) show: fn(&Config) -> Value,
}

impl Setting {
    /// The variable that goes before the file: `LARDER_` and the name in capitals.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("LARDER_{}", self.name.to_ascii_uppercase())
    }
}

/// All settings, in the order in which they are shown.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "store",
        form: "an absolute path",
        default: r#""/var/lib/larder""#,
        reason: "The directory with everything larder keeps, on a local disk. --store goes before it.",
        read: Some(|config, raw| set(&mut config.store, value::path(raw))),
        show: |config| json!(config.store.display().to_string()),
    },
    Setting {
        name: "socket",
        form: "an absolute path of at most 107 bytes",
        default: r#""/run/larder/larder.sock""#,
        reason: "The socket on which pods ask, with mode 0666: whoever sees its directory may ask for what `sources` allows.",
        read: Some(|config, raw| set(&mut config.socket, value::socket(raw))),
        show: |config| json!(config.socket.display().to_string()),
    },
    Setting {
        name: "admin_socket",
        form: "an absolute path of at most 107 bytes",
        default: r#""/run/larder-admin/larder.sock""#,
        reason: "The socket for pin, unpin, remove, verify and release, with mode 0600, in a directory of its own that no pod mounts.",
        read: Some(|config, raw| set(&mut config.admin_socket, value::socket(raw))),
        show: |config| json!(config.admin_socket.display().to_string()),
    },
    Setting {
        name: "listen",
        form: r#"ip:port such as 127.0.0.1:9464, or "" for none"#,
        default: r#""127.0.0.1:9464""#,
        reason: "Where /metrics, /healthz and /readyz are served. By default nobody outside the machine sees them.",
        read: Some(|config, raw| set(&mut config.listen, value::address(raw))),
        show: |config| json!(config.listen.map(|address| address.to_string()).unwrap_or_default()),
    },
    Setting {
        name: "sources",
        form: r#"a list of prefixes such as ["s3://models/", "https://"]"#,
        default: r#"["s3://", "gs://", "https://"]"#,
        reason: "The sources that may be asked for. Whoever reaches the socket asks with the daemon's credentials: file:// would read its files, http:// the metadata service of the node.",
        read: Some(read_sources),
        show: |config| json!(config.sources),
    },
    Setting {
        name: "high_watermark",
        form: r#"a whole percent from 2 to 99, such as 80 or "80%""#,
        default: "80",
        reason: "How full the file system may get, by whatever fills it, before models that nobody uses are evicted. Below 85 %, where the kubelet starts to remove images and to evict pods. Of its inodes, 90 % at least.",
        read: Some(|config, raw| set(&mut config.high_watermark, value::percent(raw, 2..=99))),
        show: |config| json!(config.high_watermark),
    },
    Setting {
        name: "low_watermark",
        form: r#"a whole percent from 1 to 98, such as 70 or "70%""#,
        default: "70",
        reason: "Eviction goes on down to here, so that it is done now and then and not with every pull. Lower than `high_watermark`. Of inodes, 85 % at least.",
        read: Some(|config, raw| set(&mut config.low_watermark, value::percent(raw, 1..=98))),
        show: |config| json!(config.low_watermark),
    },
    Setting {
        name: "recheck",
        form: r#"a duration from 0s to 24h, such as "10s" or "2m""#,
        default: r#""10s""#,
        reason: "How long the origin's last answer counts: a hundred pods that start at once cost one listing. \"0s\" asks every time.",
        read: Some(|config, raw| set(&mut config.recheck, value::duration(raw, Duration::ZERO..=RECHECK_MAX))),
        show: |config| json!(told::duration(config.recheck)),
    },
    Setting {
        name: "anonymous",
        form: "true or false",
        default: "false",
        reason: "Send no credentials, for public buckets.",
        read: Some(|config, raw| set(&mut config.anonymous, value::boolean(raw))),
        show: |config| json!(config.anonymous),
    },
    Setting {
        name: "requester_pays",
        form: "true or false",
        default: "false",
        reason: "Agree to pay for requests and traffic, for requester-pays buckets (S3).",
        read: Some(|config, raw| set(&mut config.requester_pays, value::boolean(raw))),
        show: |config| json!(config.requester_pays),
    },
    Setting {
        name: "region",
        form: r#"the name of a region such as "eu-central-1", or "" for what the environment says"#,
        default: r#""""#,
        reason: "Region of the buckets (S3).",
        read: Some(|config, raw| set(&mut config.region, value::region(raw))),
        show: |config| json!(config.region.as_deref().unwrap_or_default()),
    },
    Setting {
        name: "endpoint_url",
        form: r#"http://host:port or https://host without user name, password and query, or "" for what the environment says"#,
        default: r#""""#,
        reason: "Another server than Amazon's or Google's, such as MinIO.",
        read: Some(|config, raw| set(&mut config.endpoint_url, value::endpoint(raw))),
        show: |config| json!(config.endpoint_url.as_deref().unwrap_or_default()),
    },
    Setting {
        name: "scrub_rate",
        form: r#"bytes per second such as "32MiB" or "1GiB", or "0" for off"#,
        default: r#""32MiB""#,
        reason: "How fast what is kept is read again, to find what the disk damaged: 2.7 TiB a day, and little beside what a disk can do.",
        read: Some(|config, raw| set(&mut config.scrub_rate, value::size(raw))),
        show: |config| json!(told::size(config.scrub_rate)),
    },
    Setting {
        name: "stop_within",
        form: r#"a duration from 1s to 10m, such as "25s""#,
        default: r#""25s""#,
        reason: "How long stopping may take. Below the 30 s after which Kubernetes kills.",
        read: Some(|config, raw| set(&mut config.stop_within, value::duration(raw, STOP_WITHIN_MIN..=STOP_WITHIN_MAX))),
        show: |config| json!(told::duration(config.stop_within)),
    },
    Setting {
        name: "kubelet_dir",
        form: "an absolute path",
        default: r#""/var/lib/kubelet""#,
        reason: "The kubelet's directory: pods/<uid> below it says whether a pod that holds a lease still exists.",
        read: Some(|config, raw| set(&mut config.kubelet_dir, value::path(raw))),
        show: |config| json!(config.kubelet_dir.display().to_string()),
    },
    Setting {
        name: "mount",
        form: r#"the absolute path of a directory, "keeper:" and the absolute path of a keeper's socket, or "" for none"#,
        default: r#""""#,
        reason: "Where models are mounted for pods: by the daemon itself, which needs root, or by larder-keeper, which lets the daemon run without any privilege and restart unnoticed.",
        read: Some(|config, raw| set(&mut config.mount, value::mount(raw))),
        show: |config| json!(told::mount(config.mount.as_ref())),
    },
    Setting {
        name: "read_timeout",
        form: r#"a duration from 1s to 1h, such as "5m""#,
        default: r#""5m""#,
        reason: "How long a read of the mount waits for bytes that do not arrive, before the reader gets an I/O error. Long enough for an origin that is restarted.",
        read: Some(|config, raw| {
            set(&mut config.read_timeout, value::duration(raw, READ_TIMEOUT_MIN..=READ_TIMEOUT_MAX))
        }),
        show: |config| json!(told::duration(config.read_timeout)),
    },
    Setting {
        name: "node",
        form: r#"the name of a node, or "" for none"#,
        default: r#""""#,
        reason: "This node's name in Kubernetes. With it the daemon is the CSI driver csi.larder.dev where there is a keeper, brings the CachedModels that are for this node, and says what is here by labels and a NodeCache.",
        read: Some(|config, raw| set(&mut config.node, value::node(raw))),
        show: |config| json!(config.node.as_deref().unwrap_or_default()),
    },
    Setting {
        name: "policy",
        form: r#"a list of tables such as [{ namespaces = ["team-a", "lab-*"], service_accounts = ["*"], sources = ["s3://team-a/"] }]"#,
        default: "[]",
        reason: "Which pods may ask for which sources; `service_accounts` may be left out. Where there is a rule, what no rule lets is refused. Who asks at the socket has no name, and gets what a rule for all namespaces and service accounts lets.",
        read: Some(policy::read),
        show: |config| config.policy.iter().map(policy::show).collect(),
    },
    Setting {
        name: "log",
        form: r#"a level (error, warn, info, debug, trace, off) or a tracing filter such as "info,larder::fetch=debug""#,
        default: r#""info""#,
        reason: "What is logged, to stderr.",
        read: Some(|config, raw| set(&mut config.log, value::filter(raw))),
        show: |config| json!(config.log),
    },
    Setting {
        name: "log_format",
        form: r#""text" or "json""#,
        default: r#""text""#,
        reason: "Lines for people, or one JSON object a line.",
        read: Some(|config, raw| set(&mut config.log_format, value::log_format(raw))),
        show: |config| json!(config.log_format.as_str()),
    },
    Setting {
        name: "prefetch",
        form: "[[prefetch]] and below it source, and if wanted include, exclude (lists of globs) and pin (true or false)",
        default: "",
        reason: "What to have before anybody asks. Stands at the end of the file, once for each source; `pin` keeps it from eviction.",
        read: None,
        show: |config| config.prefetch.iter().map(told::prefetch).collect(),
    },
];

fn set<T>(field: &mut T, value: Result<T, Wrong>) -> Result<(), Vec<Wrong>> {
    *field = value.map_err(|wrong| vec![wrong])?;
    Ok(())
}

fn read_sources(config: &mut Config, raw: Raw<'_>) -> Result<(), Vec<Wrong>> {
    let mut prefixes = Vec::new();
    let (texts, mut wrong) = value::list(raw);
    for (at, text) in texts {
        match sources::prefix(text) {
            Ok(prefix) => prefixes.push(prefix),
            Err(want) => wrong.push(Wrong::because(format!("has {} in it", value::shown(text)), want).at(at)),
        }
    }
    if !wrong.is_empty() {
        return Err(wrong);
    }
    config.sources = prefixes;
    Ok(())
}

/// A file that says what holds without it, every setting with its form and reason.
#[must_use]
pub fn example() -> String {
    const HEAD: &str = "\
# The settings of `larder daemon`, each with its default: a line that is left out means the same.
# It is read from /etc/larder/larder.toml, or from where --config says.
# A variable goes before the file: LARDER_HIGH_WATERMARK=75 before high_watermark.
# `larder daemon --check` says what is wrong, or what holds and where it was set.
";
    const PREFETCH: &str = r#"# [[prefetch]]
# source = "s3://models/llama-3-8b/"
# include = ["*.safetensors", "*.json"]
# exclude = ["original/**"]
# pin = true
"#;
    let mut text = HEAD.to_owned();
    for setting in SETTINGS {
        text.push('\n');
        for line in wrapped(setting.reason).into_iter().chain(wrapped(&format!("Form: {}.", setting.form))) {
            text.push_str(&format!("# {line}\n"));
        }
        if setting.read.is_some() {
            text.push_str(&format!("{} = {}\n", setting.name, setting.default));
        } else {
            text.push_str(PREFETCH);
        }
    }
    text
}

/// Lines that fit beside a `# `, broken between words.
fn wrapped(text: &str) -> Vec<String> {
    const LEN_MAX: usize = 98;
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() - 1;
        let line = &mut lines[last];
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= LEN_MAX {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_few_and_each_says_why() {
        assert!(SETTINGS.len() <= 22, "{} settings", SETTINGS.len());
        for setting in SETTINGS {
            assert!(setting.reason.ends_with('.') && !setting.form.ends_with('.'), "{}", setting.name);
            let key = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(setting.name.chars().all(key), "{}", setting.name);
            let same = SETTINGS.iter().filter(|other| other.name == setting.name).count();
            assert_eq!(same, 1, "{}", setting.name);
        }
    }

    /// Kubernetes sets variables for every service of a namespace: of one named `larder` these.
    #[test]
    fn no_variable_is_one_of_a_kubernetes_service() {
        for setting in SETTINGS {
            let clash = ["port", "service_"].iter().any(|start| setting.name.starts_with(start));
            assert!(!clash, "{}", setting.variable());
        }
        assert_eq!(SETTINGS[0].variable(), "LARDER_STORE");
    }

    #[test]
    fn the_table_says_the_defaults() {
        let config = Config::default();
        for setting in SETTINGS.iter().filter(|setting| setting.read.is_some()) {
            assert_eq!(told::toml(&(setting.show)(&config)), setting.default, "{}", setting.name);
        }
    }
}
