//! Who uses a model, and whether they still exist.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::in_pods::Mounts;

/// An owner of a lease that outlives a call.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// A pod, by its UID. kubelet keeps a directory of that name for as long as the pod is on the
    /// node.
    Pod(String),
    /// A volume that kubelet has asked for, by an id of our own. It ends with the call that takes it
    /// away, or with its pod.
    Volume {
        /// 32 hex digits.
        id: String,
        /// The UID of the pod it is of.
        pod: String,
        /// Namespace and name of that pod, for people.
        #[serde(default)]
        name: Option<String>,
    },
    /// A process of this boot: a pid alone is given to another one some day.
    Process {
        /// Its pid, as the daemon sees it.
        pid: u32,
        /// Field 22 of `proc_pid_stat(5)`, in clock ticks since boot.
        started: u64,
        /// `/proc/sys/kernel/random/boot_id`.
        boot: String,
    },
    /// A connection to this daemon; never written down.
    Connection(u64),
}

/// What can be seen of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It is there.
    Alive,
    /// It was there, or must have been, and is not.
    Gone,
    /// This daemon cannot see owners of this kind.
    Unseen,
}

/// Says within a time whether the pod of a UID is on this node; `None` where there is no answer.
type There = Box<dyn Fn(&str, Duration) -> Option<bool> + Send + Sync>;

/// Says what is mounted for pods.
type Mounted = Box<dyn Fn() -> io::Result<Mounts> + Send + Sync>;

/// How pods of this node are seen.
pub enum Pods {
    /// In this directory of kubelet, where each that is on the node has one named by its UID.
    Directory(PathBuf),
    /// By asking somebody who may look there, who mounts models for them, and who may not answer.
    Asked {
        /// Whether a pod is there.
        there: There,
        /// What is mounted.
        mounts: Mounted,
    },
}

impl fmt::Debug for Pods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(directory) => f.debug_tuple("Directory").field(directory).finish(),
            Self::Asked { .. } => f.write_str("Asked"),
        }
    }
}

impl Pods {
    /// Whether the pod of that UID is on this node. Whoever is asked has so long to answer.
    #[must_use]
    pub fn life(&self, uid: &str, patience: Duration) -> Life {
        match self {
            Self::Directory(pods) => match fs::metadata(pods.join(uid)) {
                Ok(found) if found.is_dir() => Life::Alive,
                // Only who may look into the directory can say that something is not in it.
                Err(error) if error.kind() != io::ErrorKind::NotFound => Life::Unseen,
                _ if pods.is_dir() => Life::Gone,
                _ => Life::Unseen,
            },
            Self::Asked { there, .. } => match there(uid, patience) {
                Some(true) => Life::Alive,
                Some(false) => Life::Gone,
                None => Life::Unseen,
            },
        }
    }
}

impl Pods {
    /// Whether models are mounted for pods here.
    pub(super) const fn have_mounts(&self) -> bool {
        matches!(self, Self::Asked { .. })
    }

    /// What is mounted for pods.
    pub(super) fn mounts(&self) -> io::Result<Mounts> {
        match self {
            Self::Directory(_) => Ok(Mounts::new()),
            Self::Asked { mounts, .. } => mounts(),
        }
    }
}

impl fmt::Display for Pods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(directory) => write!(f, "below `{}`", directory.display()),
            Self::Asked { .. } => f.write_str("for larder-keeper"),
        }
    }
}

/// A name that is no owner.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no owner of a lease: want pod:UID, process:PID or connection")]
pub struct OwnerError(pub String);

/// A pod's UID is a UUID, or 32 hex digits for a static pod.
const UID_LEN_MAX: usize = 64;

impl Owner {
    /// Parses `pod:UID` or `process:PID`. A process is looked up now.
    ///
    /// # Errors
    /// [`OwnerError`], also for a process that does not exist.
    pub fn parse(text: &str) -> Result<Self, OwnerError> {
        let wrong = || OwnerError(text.chars().take(2 * UID_LEN_MAX).collect());
        match text.split_once(':') {
            Some(("pod", uid))
                if (1..=UID_LEN_MAX).contains(&uid.len())
                    && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') =>
            {
                Ok(Self::Pod(uid.to_owned()))
            }
            Some(("process", pid)) => {
                let pid: u32 = pid.parse().map_err(|_| wrong())?;
                let started = started_at(pid).ok_or_else(wrong)?;
                Ok(Self::Process { pid, started, boot: boot_id() })
            }
            _ => Err(wrong()),
        }
    }

    /// Namespace and name of the pod that it belongs to, where they are known.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        if let Self::Volume { name, .. } = self { name.as_deref() } else { None }
    }

    /// What people call it.
    #[must_use]
    pub fn told(&self) -> String {
        self.name().map_or_else(|| self.to_string(), |name| format!("pod {name}"))
    }

    /// The UID of the pod that it is or belongs to.
    #[must_use]
    pub fn pod(&self) -> Option<&str> {
        match self {
            Self::Pod(uid) | Self::Volume { pod: uid, .. } => Some(uid),
            Self::Process { .. } | Self::Connection(_) => None,
        }
    }

    /// Whether the owner is still there, as far as can be seen. May wait so long for whoever sees pods.
    #[must_use]
    pub fn life(&self, pods: &Pods, patience: Duration) -> Life {
        match self {
            Self::Pod(uid) | Self::Volume { pod: uid, .. } => pods.life(uid, patience),
            Self::Process { pid, started, boot } => {
                let same = *boot == boot_id() && started_at(*pid) == Some(*started);
                if same { Life::Alive } else { Life::Gone }
            }
            Self::Connection(_) => Life::Alive,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(uid) => write!(f, "pod:{uid}"),
            Self::Volume { id, pod, .. } => write!(f, "volume:{id}:{pod}"),
            Self::Process { pid, .. } => write!(f, "process:{pid}"),
            Self::Connection(number) => write!(f, "connection:{number}"),
        }
    }
}

/// When a process started, in clock ticks since boot; `None` when there is no such process.
fn started_at(pid: u32) -> Option<u64> {
    let stat = small_file(&format!("/proc/{pid}/stat"))?;
    // The second field is the command in parentheses, and may hold anything, also `)`.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

fn boot_id() -> String {
    small_file("/proc/sys/kernel/random/boot_id").map(|text| text.trim().to_owned()).unwrap_or_default()
}

fn small_file(path: &str) -> Option<String> {
    use std::io::Read as _;
    let mut text = String::new();
    fs::File::open(path).ok()?.take(4096).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(1);

    #[test]
    fn a_process_is_itself_and_no_later_one_of_its_pid() {
        let nowhere = Pods::Directory("/nowhere".into());
        let own = Owner::parse(&format!("process:{}", std::process::id())).expect("this process");
        assert_eq!(own.life(&nowhere, SOON), Life::Alive);
        let Owner::Process { pid, started, boot } = own else { panic!("a process") };
        let other = Owner::Process { pid, started: started + 1, boot: boot.clone() };
        assert_eq!(other.life(&nowhere, SOON), Life::Gone);
        assert_eq!(Owner::Process { pid, started, boot: "other".into() }.life(&nowhere, SOON), Life::Gone);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let owner = Owner::parse(&format!("process:{}", child.id())).expect("a process");
        assert_eq!(owner.life(&nowhere, SOON), Life::Alive);
        child.kill().expect("killed");
        child.wait().expect("reaped");
        assert_eq!(owner.life(&nowhere, SOON), Life::Gone);
    }

    #[test]
    fn a_pod_lives_as_long_as_its_directory() {
        let kubelet = tempfile::tempdir().expect("a directory");
        let pod = Owner::parse("pod:5d0c").expect("a pod");
        let pods = Pods::Directory(kubelet.path().join("pods"));
        assert_eq!(pod.life(&pods, SOON), Life::Unseen);
        fs::create_dir_all(kubelet.path().join("pods/5d0c")).expect("created");
        assert_eq!(pod.life(&pods, SOON), Life::Alive);
        fs::remove_dir(kubelet.path().join("pods/5d0c")).expect("removed");
        assert_eq!(pod.life(&pods, SOON), Life::Gone);
        let file = Pods::Directory(kubelet.path().join("file/pods"));
        fs::File::create(kubelet.path().join("file")).expect("a file");
        assert_eq!(pod.life(&file, SOON), Life::Unseen, "who cannot look does not say that nothing is there");
    }

    #[test]
    fn who_is_asked_may_not_answer() {
        let volume = Owner::Volume { id: "1".into(), pod: "5d0c".into(), name: Some("team/server-0".into()) };
        assert_eq!((volume.to_string(), volume.told()), ("volume:1:5d0c".into(), "pod team/server-0".into()));
        for (answer, life) in [(Some(true), Life::Alive), (Some(false), Life::Gone), (None, Life::Unseen)] {
            let there = Box::new(move |uid: &str, _| answer.filter(|_| uid == "5d0c"));
            let asked = Pods::Asked { there, mounts: Box::new(|| Ok(Mounts::new())) };
            assert_eq!(volume.life(&asked, SOON), life);
        }
    }

    #[test]
    fn names_that_are_no_owners() {
        for name in
            ["", "pod:", "pod:../x", "pod:a/b", "process:x", "process:0", "process:4294967295", "me", "connection"]
        {
            assert!(Owner::parse(name).is_err(), "{name}");
        }
    }
}
