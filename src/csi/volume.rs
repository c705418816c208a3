//! What a pod asks for in its volume, read from kubelet's call. Pure.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::message::Publish;
use crate::cache::Owner;
use crate::domain::Source;
use crate::fetch::Selection;
use crate::remote::Keys;
use crate::report::{Exit, Failure};

/// What kubelet adds to the attributes where the `CSIDriver` object says `podInfoOnMount`, in place
/// of whatever the pod says under that name.
const OF_KUBELET: &str = "csi.storage.k8s.io/";
/// Attributes that a pod may give.
const ATTRIBUTES: [&str; 5] = ["source", "include", "exclude", "lazy", "fresh"];
/// Bytes of one attribute or secret. etcd holds objects of 1.5 MiB.
const TEXT_LEN_MAX: usize = 64 << 10;
const TARGET_LEN_MAX: usize = 4095;
/// Of a name that kubelet says of a pod; Kubernetes' own are at most 253 bytes. What is noted of a
/// volume must be readable again.
const NAME_LEN_MAX: usize = 1024;
const ID_LEN_MAX: usize = 1024;

/// The pod that a volume is of, in kubelet's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pod {
    /// Its UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub service_account: String,
}

/// One volume of one pod, as it was asked for.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub id: String,
    pub target: PathBuf,
    pub pod: Pod,
    pub source: Source,
    pub selection: Selection,
    pub lazy: bool,
    pub fresh: bool,
    pub keys: Option<Keys>,
}

/// A volume at its target, in our own words: kubelet's id may be any text, and another pod's volume may
/// have the same.
pub(super) fn id(volume_id: &str, target: &Path) -> Result<String, Failure> {
    if volume_id.is_empty() || volume_id.len() > ID_LEN_MAX {
        return Err(wrong(format!("a volume id of {} bytes: want 1 to {ID_LEN_MAX}", volume_id.len())));
    }
    let both = [volume_id.as_bytes(), target.as_os_str().as_encoded_bytes()].join(&0);
    Ok(blake3::hash(&both).to_hex()[..32].to_owned())
}

pub(super) fn target(text: &str) -> Result<PathBuf, Failure> {
    let path = PathBuf::from(text);
    if !path.is_absolute() || text.len() > TARGET_LEN_MAX || text.contains('\0') {
        return Err(wrong("the target path is not an absolute path"));
    }
    Ok(path)
}

fn wrong(message: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, message)
}

impl Asked {
    /// Reads a call.
    ///
    /// # Errors
    /// What is wrong with the pod's volume, for its events.
    pub fn read(call: Publish) -> Result<Self, Failure> {
        let Publish { volume_id, target_path, capability, read_only, secrets, context } = call;
        let target = target(&target_path)?;
        let id = id(&volume_id, &target)?;
        let too_long = |map: &HashMap<String, String>| map.values().any(|value| value.len() > TEXT_LEN_MAX);
        if too_long(&context) || too_long(&secrets) {
            return Err(wrong(format!("an attribute or a secret has more than {TEXT_LEN_MAX} bytes")));
        }
        if capability.is_some_and(|capability| capability.block.is_some()) {
            return Err(wrong("a model is a directory: it cannot be a block device"));
        }
        let pod = pod(&context)?;
        for name in context.keys().filter(|name| !name.starts_with(OF_KUBELET)) {
            if !ATTRIBUTES.contains(&name.as_str()) {
                let known = ATTRIBUTES.join(", ");
                return Err(wrong(format!("`{}` is no attribute of a volume: there are {known}", shown(name))));
            }
        }
        let Some(source) = context.get("source") else {
            return Err(Failure::hinted(
                Exit::Usage,
                "the volume says no source",
                "give volumeAttributes a `source`, such as s3://bucket/prefix/",
            ));
        };
        if !read_only {
            return Err(Failure::hinted(
                Exit::Usage,
                "a model cannot be written",
                "say `readOnly: true` below `csi:` in the pod's volume",
            ));
        }
        let source = Source::parse(source)?;
        // Brackets and braces of globs may hold commas, so spaces and line breaks separate.
        let globs = |name: &str| -> Vec<String> {
            context.get(name).map(|text| text.split_whitespace().map(str::to_owned).collect()).unwrap_or_default()
        };
        let selection = Selection::new(&globs("include"), &globs("exclude"))?;
        let (lazy, fresh) = (truth(&context, "lazy")?, truth(&context, "fresh")?);
        let keys = Keys::of(&source, &secrets).map_err(wrong)?;
        if lazy && keys.is_some() {
            return Err(Failure::hinted(
                Exit::Usage,
                "`lazy` does not go with `nodePublishSecretRef`: larder keeps no secret, so it could not go on after a restart",
                "leave one of the two out",
            ));
        }
        Ok(Self { id, target, pod, source, selection, lazy, fresh, keys })
    }

    /// Whether somebody else asks for the same: the same pod, source and selection.
    pub fn is_same(&self, other: &Self) -> bool {
        let wanted = |asked: &Self| {
            let selection = (asked.selection.include().to_vec(), asked.selection.exclude().to_vec());
            (asked.id.clone(), asked.pod.clone(), asked.source.to_string(), selection, asked.lazy, asked.fresh)
        };
        wanted(self) == wanted(other)
    }

    /// Who the lease is for.
    pub fn owner(&self) -> Owner {
        let Pod { uid, namespace, name, .. } = &self.pod;
        Owner::Volume { id: self.id.clone(), pod: uid.clone(), name: Some(format!("{namespace}/{name}")) }
    }
}

fn pod(context: &HashMap<String, String>) -> Result<Pod, Failure> {
    let of_kubelet = |name: &str| context.get(&format!("{OF_KUBELET}{name}")).filter(|value| !value.is_empty());
    let named = |name: &str| {
        let said = of_kubelet(name).ok_or_else(|| {
            Failure::hinted(
                Exit::Usage,
                format!("kubelet does not say the pod's {name}"),
                "the CSIDriver object must have `podInfoOnMount: true`, as larder's manifests have it",
            )
        })?;
        if said.len() > NAME_LEN_MAX {
            return Err(wrong(format!("the pod's {name} has {} bytes: want at most {NAME_LEN_MAX}", said.len())));
        }
        Ok(said.clone())
    };
    let pod = Pod {
        uid: named("pod.uid")?,
        namespace: named("pod.namespace")?,
        name: named("pod.name")?,
        service_account: named("serviceAccount.name")?,
    };
    // As for `pod:UID` at the socket: it becomes a path.
    if Owner::parse(&format!("pod:{}", pod.uid)).is_err() {
        return Err(wrong(format!("`{}` is no UID of a pod", shown(&pod.uid))));
    }
    Ok(pod)
}

fn truth(context: &HashMap<String, String>, name: &str) -> Result<bool, Failure> {
    match context.get(name).map(String::as_str) {
        None | Some("false" | "") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => Err(wrong(format!("`{name}` is `{}`: want \"true\" or \"false\"", shown(other)))),
    }
}

/// As much of a text as an event has room for.
fn shown(text: &str) -> String {
    text.chars().take(80).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::message::{Capability, Empty};
    use super::*;

    fn call(attributes: &[(&str, &str)]) -> Publish {
        let of_kubelet = [
            ("csi.storage.k8s.io/pod.uid", "5d0c-1"),
            ("csi.storage.k8s.io/pod.namespace", "team"),
            ("csi.storage.k8s.io/pod.name", "server-0"),
            ("csi.storage.k8s.io/serviceAccount.name", "default"),
            ("csi.storage.k8s.io/ephemeral", "true"),
        ];
        Publish {
            volume_id: "csi-1".into(),
            target_path: "/var/lib/kubelet/pods/5d0c-1/volumes/kubernetes.io~csi/model/mount".into(),
            capability: Some(Capability { block: None, mount: Some(Empty {}) }),
            read_only: true,
            secrets: HashMap::new(),
            context: of_kubelet.iter().chain(attributes).map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    #[test]
    fn a_volume_is_read() {
        let attributes = [("source", "s3://b/llama/"), ("include", "*.json\n*.{bin,pt} x"), ("lazy", "true")];
        let asked = Asked::read(call(&attributes)).expect("a volume");
        assert_eq!(asked.source.to_string(), "s3://b/llama/");
        assert_eq!(asked.selection.include(), ["*.json", "*.{bin,pt}", "x"]);
        assert!(asked.lazy && !asked.fresh);
        assert_eq!((asked.pod.namespace.as_str(), asked.pod.service_account.as_str()), ("team", "default"));
        assert_eq!(asked.id.len(), 32);
        assert_eq!(asked.owner().to_string(), format!("volume:{}:5d0c-1", asked.id));
    }

    #[test]
    fn every_slip_of_a_pod_says_what_to_do() {
        type Change = fn(&mut Publish);
        let changes: [(&str, Change); 13] = [
            ("give volumeAttributes", |call| drop(call.context.remove("source"))),
            ("readOnly: true", |call| call.read_only = false),
            ("`sauce` is no attribute", |call| drop(call.context.insert("sauce".into(), "s3://b/".into()))),
            ("\"true\" or \"false\"", |call| drop(call.context.insert("lazy".into(), "yes".into()))),
            ("podInfoOnMount", |call| drop(call.context.remove("csi.storage.k8s.io/pod.uid"))),
            ("is no UID", |call| drop(call.context.insert("csi.storage.k8s.io/pod.uid".into(), "../x".into()))),
            ("block device", |call| {
                call.capability = Some(Capability { block: Some(Empty {}), mount: None });
            }),
            ("volume id", |call| call.volume_id.clear()),
            ("target path", |call| call.target_path = "x".into()),
            ("more than 65536 bytes", |call| drop(call.context.insert("include".into(), "x".repeat(65_537)))),
            ("[", |call| drop(call.context.insert("include".into(), "[".into()))),
            ("ftp://b/", |call| drop(call.context.insert("source".into(), "ftp://b/".into()))),
            ("leave one of the two out", |call| {
                call.context.insert("lazy".into(), "true".into());
                for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
                    call.secrets.insert(name.into(), "x".into());
                }
            }),
        ];
        for (says, change) in changes {
            let mut call = call(&[("source", "s3://b/k/")]);
            change(&mut call);
            let failure = Asked::read(call).expect_err(says);
            let said = format!("{} {}", failure.message, failure.hint.unwrap_or_default());
            assert!(said.contains(says) && failure.exit == Exit::Usage, "{says}: {said}");
        }
    }
}
