//! Volumes come and go while everything restarts and blobs are damaged and repaired, in an order made of
//! a seed. After each round what is mounted is what a model says: nothing else, nothing less, and no
//! directory without its files.
//!
//! `LARDER_ROUNDS` says how many rounds, `LARDER_SEED` which ones.

use std::collections::BTreeMap;

use larder_origins::{Fault, Front};

use super::*;
use crate::node::{damage, http};

const ROUNDS: u64 = 30;
const PODS: u64 = 12;
/// Sources whose files are here in a moment, and sources that take longer than the test.
const QUICK: u64 = 3;
const SLOW: u64 = 2;

/// xorshift64*: what is random is the same again for the same seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

/// What is mounted for a pod.
struct Given {
    volume: Volume,
    /// Of a quick one.
    model: Option<u64>,
}

struct World {
    kept: Kept,
    _origin: Origin,
    models: Vec<SampleModel>,
    /// Named by a number, which no other pod has had.
    given: BTreeMap<u64, Given>,
    begun: u64,
    log: Vec<String>,
}

impl World {
    fn new() -> Option<Self> {
        let origin = Origin::start(Front::S3).expect("an origin");
        let mut models = Vec::new();
        for number in 0..QUICK {
            let model = SampleModel::new(number + 1, 2, 64 << 10);
            upload(origin.bucket(), &format!("quick{number}/"), &model, Checksums::multipart());
            models.push(model);
        }
        for number in 0..SLOW {
            let file = safetensors("w", 40 + number, 32 << 20);
            origin.bucket().put(&format!("slow{number}/model.safetensors"), file, Checksums::none());
            let config = br#"{"model_type":"none"}"#.to_vec();
            origin.bucket().put(&format!("slow{number}/config.json"), config, Checksums::none());
        }
        let is_slow = |path: &str| path.contains("slow") && path.contains("safetensors");
        origin.misbehave_on_reads(move |_, request| is_slow(&request.path).then_some(Fault::Slow(16 << 10)));
        let kept = started(&origin, &[("recheck", "\"1h\"")])?;
        Some(Self { kept, _origin: origin, models, given: BTreeMap::new(), begun: 0, log: Vec::new() })
    }

    /// A volume of a new pod.
    fn begin(&mut self, chance: &mut Chance) -> (u64, Given) {
        self.begun += 1;
        let pod = format!("p{}", self.begun);
        let (source, model, lazy) = match chance.below(QUICK + SLOW) {
            quick if quick < QUICK => (format!("s3://models/quick{quick}/"), Some(quick), chance.below(2) == 0),
            slow => (format!("s3://models/slow{}/", slow - QUICK), None, true),
        };
        let mut attributes = vec![("source", source.as_str())];
        if lazy {
            attributes.push(("lazy", "true"));
        }
        self.log.push(format!("publish {pod} {source}{}", if lazy { " lazily" } else { "" }));
        (self.begun, Given { volume: volume(&self.kept, &pod, &attributes), model })
    }

    fn pick(&self, chance: &mut Chance) -> Option<u64> {
        let count = self.given.len() as u64;
        let at = (count > 0).then(|| chance.below(count))?;
        self.given.keys().nth(usize::try_from(at).expect("small")).copied()
    }

    fn round(&mut self, chance: &mut Chance) {
        let restarts = chance.below(4) == 0;
        let calls = 1 + chance.below(3);
        let (mut coming, mut going) = (Vec::new(), Vec::new());
        for _ in 0..calls {
            let full = self.given.len() as u64 >= PODS;
            if !full && (self.given.is_empty() || chance.below(2) == 0) {
                coming.push(self.begin(chance));
            } else if let Some(pod) = self.pick(chance) {
                self.log.push(format!("unpublish p{pod}"));
                going.push((pod, self.given.remove(&pod).expect("given")));
            }
        }
        if restarts {
            self.log.push("restart the daemon meanwhile".into());
        }
        let node = &mut self.kept.node;
        std::thread::scope(|scope| {
            if restarts {
                scope.spawn(move || node.restart());
            }
            // As kubelet does: until it is answered.
            let publish = |given: &Given| insisted(|| given.volume.try_publish_within(Duration::from_secs(30)));
            let unpublish = |given: &Given| insisted(|| given.volume.try_unpublish());
            coming.iter().for_each(|(_, given)| drop(scope.spawn(move || publish(given))));
            going.iter().for_each(|(_, given)| drop(scope.spawn(move || unpublish(given))));
        });
        self.given.extend(coming);
        // A call of kubelet's own restart: for what it has already.
        if chance.below(4) == 0
            && let Some(pod) = self.pick(chance)
        {
            self.log.push(format!("publish p{pod} again"));
            insisted(|| self.given[&pod].volume.try_publish_within(Duration::from_secs(30)));
        }
        match chance.below(12) {
            0 => {
                self.log.push("another keeper".into());
                self.kept.kill_keeper();
                self.kept.start_keeper();
            }
            1 => self.repair(chance),
            2 => {
                self.log.push("restart the daemon".into());
                self.kept.node.restart();
            }
            _ => {}
        }
    }

    /// A file of a model that is here is damaged, and mended under the pods that have it.
    fn repair(&mut self, chance: &mut Chance) {
        let quick = chance.below(QUICK);
        let ready = self.kept.node.ready(&json!({"source": format!("s3://models/quick{quick}/")}));
        let digest = ready["digest"].as_str().expect("a digest");
        let name = "tokenizer.json";
        self.log.push(format!("damage and repair {name} of quick{quick}"));
        damage(&self.kept.node.store().join("v1/models").join(digest).join(name));
        let asked = json!({"repair": true}).to_string();
        let answer = http::ask(&self.kept.node.admin_socket(), "POST", "/v1/verify", Some(asked.as_bytes()));
        let told = answer.expect("an answer").text();
        assert!(told.contains(r#""event":"repaired""#), "{told}");
    }

    /// What is wrong now, if anything.
    fn wrong(&self) -> Option<String> {
        let table = fs::read_to_string("/proc/self/mounts").expect("a table");
        let pods = self.kept.node.path("kubelet/pods").display().to_string();
        let at = table.lines().filter_map(|line| line.split(' ').nth(1)).filter(|at| at.starts_with(&pods));
        let mut at: Vec<&str> = at.collect();
        at.sort_unstable();
        let mut wanted: Vec<&str> =
            self.given.values().map(|given| given.volume.publish.target_path.as_str()).collect();
        wanted.sort_unstable();
        if at != wanted {
            return Some(format!("mounted are {at:#?}, and not {wanted:#?}"));
        }
        self.given.iter().find_map(|(pod, given)| {
            let target = given.volume.target();
            let Some(model) = given.model else {
                // It is still arriving: its names are there, and its first file comes first.
                return match fs::read(target.join("config.json")) {
                    Ok(bytes) if bytes.starts_with(b"{\"model_type\"") => None,
                    read => Some(format!("p{pod}: {read:?}")),
                };
            };
            let model = &self.models[usize::try_from(model).expect("small")];
            model.files.iter().find_map(|(path, bytes)| match fs::read(target.join(path)) {
                Ok(read) if read == *bytes => None,
                Ok(_) => Some(format!("p{pod}: {path} is wrong")),
                Err(error) => Some(format!("p{pod}: {path}: {error}")),
            })
        })
    }

    /// Waits until all is as it should be: a new keeper has its mounts made a little later.
    fn check(&self, seed: u64) {
        let began = Instant::now();
        while let Some(wrong) = self.wrong() {
            let log = self.log.join("\n");
            assert!(
                began.elapsed() < Duration::from_secs(30),
                "LARDER_SEED={seed}: {wrong}\n{log}\n{}",
                self.kept.logs()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[track_caller]
fn insisted(call: impl Fn() -> Result<(), String>) {
    let began = Instant::now();
    while let Err(why) = call() {
        assert!(began.elapsed() < PATIENCE, "{why}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_is_mounted_is_what_was_asked_for_whatever_restarts() {
    let seed = number("LARDER_SEED").unwrap_or_else(|| u64::from(std::process::id()) << 16 | 1);
    let rounds = number("LARDER_ROUNDS").unwrap_or(ROUNDS);
    eprintln!("{rounds} rounds of LARDER_SEED={seed}");
    let Some(mut world) = World::new() else { return };
    let mut chance = Chance(seed.max(1));
    for round in 0..rounds {
        world.log.push(format!("round {round}"));
        world.round(&mut chance);
        world.check(seed);
    }
    world.log.push("the end".into());
    for given in std::mem::take(&mut world.given).values() {
        insisted(|| given.volume.try_unpublish());
    }
    world.check(seed);
    assert_eq!(owners(&world.kept), [""; 0]);
}
