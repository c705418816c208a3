//! Models that are read while they arrive.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use larder_origins::{Checksums, Fault, Noise, safetensors};
use serde_json::json;

use super::kept::Kept;
use super::{lazily, mount_status, mounting, root, slow_origin};
use crate::node::{Node, PATIENCE};

const MIB: usize = 1 << 20;

/// What is at these bytes must be there, whoever waits for it.
fn assert_range(file: &File, whole: &[u8], at: usize, len: usize) {
    let len = len.min(whole.len() - at);
    let mut buffer = vec![0; len];
    file.read_exact_at(&mut buffer, at as u64).unwrap_or_else(|error| panic!("{len} bytes at {at}: {error}"));
    assert!(buffer == whole[at..at + len], "{len} bytes at {at} are wrong");
}

fn until_whole(node: &Node) {
    node.until("the pull ends", |status| status["moving"].as_array().is_some_and(Vec::is_empty));
}

/// From the shortest to the longest.
fn spread(times: impl Iterator<Item = Duration>) -> Vec<Duration> {
    let mut times: Vec<_> = times.collect();
    times.sort_unstable();
    times
}

#[test]
fn a_header_is_there_long_before_the_file() {
    let whole = safetensors("w", 3, 128 * MIB);
    let origin = slow_origin(&whole, 2 << 20);
    let Some(mut node) = mounting(&origin) else { return };
    node.start();
    let directory = lazily(&node);
    let file = File::open(directory.join("model.safetensors")).expect("a file");
    assert_range(&file, &whole, 0, 8);
    let len = u64::from_le_bytes(whole[..8].try_into().expect("eight")) as usize;
    assert_range(&file, &whole, 8, len);
    let sent = origin.bytes_sent();
    eprintln!("the header after {sent} of {} bytes", whole.len());
    assert!(sent < whole.len() as u64 / 50, "{sent} bytes were sent before");
    assert_eq!(fs::read(directory.join("config.json")).expect("a small file"), br#"{"model_type":"none"}"#);
}

#[test]
fn every_byte_is_right_in_order_backwards_and_at_random() {
    let whole = safetensors("w", 4, 48 * MIB);
    let origin = slow_origin(&whole, 4 << 20);
    let Some(mut node) = mounting(&origin) else { return };
    node.start();
    let path = lazily(&node).join("model.safetensors");
    let steps = || (0..whole.len()).step_by(100_003);
    let opened = || File::open(&path).expect("a file");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let file = opened();
            steps().for_each(|at| assert_range(&file, &whole, at, 100_003));
        });
        scope.spawn(|| {
            let file = opened();
            steps().collect::<Vec<_>>().into_iter().rev().for_each(|at| assert_range(&file, &whole, at, 100_003));
        });
        scope.spawn(|| {
            let (file, mut random) = (opened(), Noise::new(7));
            for _ in 0..200 {
                let at = random.below(whole.len() as u64) as usize;
                assert_range(&file, &whole, at, random.below(300_000) as usize + 1);
            }
        });
        scope.spawn(|| {
            let file = opened();
            #[expect(unsafe_code, reason = "a map is what loaders make")]
            // SAFETY: nothing changes the file.
            let map = unsafe { memmap2::Mmap::map(&file).expect("a map") };
            for at in (0..whole.len()).step_by(4096 * 37) {
                assert_eq!(map[at], whole[at], "the byte at {at} of the map");
            }
            assert!(map[..] == whole[..], "the map is wrong");
        });
    });
    until_whole(&node);
    assert!(fs::read(&path).expect("the file") == whole, "afterwards");
    let model = root(&node).join("sources/s3/models/m@/model.safetensors");
    assert!(fs::read(model).expect("the file") == whole, "by its source");
    let status = mount_status(&node);
    assert_eq!(status["reads_failed"], 0, "{status}\n{}", node.log());
    assert!(status["opens_passed"].as_u64() >= Some(1), "{status}");
    eprintln!("{} bytes sent for {}", origin.bytes_sent(), whole.len());
}

#[test]
fn a_reader_outlives_the_pull_that_was_cut_off() {
    let whole = safetensors("w", 5, 24 * MIB);
    let origin = slow_origin(&whole, 2 << 20);
    let Some(mut node) = mounting(&origin) else { return };
    node.begin_pod("p");
    node.start();
    let ready = node.ready(&json!({"source": "s3://models/m/", "lazy": true, "lease": "pod:p"}));
    let path = Path::new(ready["path"].as_str().expect("a path")).join("model.safetensors");
    // Its caller is gone, and the bytes come all the same, also after a crash of the daemon.
    node.until("some bytes", |status| status["moving"][0]["bytes_done"].as_u64() > Some(4 << 20));
    node.restart();
    node.until("it goes on", |status| status["moving"][0]["bytes_done"].as_u64() > Some(4 << 20));
    assert!(fs::read(&path).expect("the file") == whole);
    until_whole(&node);
    let leases = node.status()["leases"].clone();
    let digests: Vec<_> = leases.as_array().expect("leases").iter().map(|lease| lease["digest"].clone()).collect();
    node.until("the pod has a lease of the model too", |status| {
        status["leases"].as_array().is_some_and(|leases| leases.len() == 2)
    });
    node.end_pod("p");
    node.until("the leases end with the pod", |status| status["leases"].as_array().is_some_and(Vec::is_empty));
    eprintln!("{digests:?}");
}

/// Its inode is that of a file that arrives, for as long as somebody has it open.
#[test]
fn a_file_opened_while_it_arrived_reads_on_when_it_is_here_and_the_daemon_was_killed() {
    let whole = Noise::new(16).bytes(8 * MIB);
    let origin = slow_origin(&whole, 4 << 20);
    let Some(mut kept) = Kept::started(&origin) else { return };
    let file = File::open(lazily(&kept.node).join("model.safetensors")).expect("a file");
    assert_range(&file, &whole, 0, 4096);
    until_whole(&kept.node);
    for life in 0..2 {
        kept.node.restart();
        // None of it from the kernel's memory.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advice");
        assert_range(&file, &whole, 0, whole.len());
        assert!(mount_status(&kept.node)["bytes_read"].as_u64() >= Some(whole.len() as u64), "in life {life}");
    }
}

#[test]
fn a_pod_that_ends_before_its_model_has_arrived_keeps_nothing() {
    let whole = Noise::new(14).bytes(4 * MIB);
    let origin = slow_origin(&whole, 2 << 20);
    let Some(mut node) = mounting(&origin) else { return };
    node.begin_pod("p");
    node.start();
    let ready = node.ready(&json!({"source": "s3://models/m/", "lazy": true, "lease": "pod:p"}));
    let file = File::open(Path::new(ready["path"].as_str().expect("a path")).join("model.safetensors"));
    node.end_pod("p");
    let mut bytes = vec![0; whole.len()];
    file.expect("a file").read_exact_at(&mut bytes, 0).expect("the file");
    assert!(bytes == whole);
    until_whole(&node);
    node.until("its leases end with it", |status| status["leases"].as_array().is_some_and(Vec::is_empty));
}

/// A thread of it could wait in the kernel for a page that only an answer of its own unlocks.
#[test]
fn a_daemon_whose_readers_wait_for_an_object_that_is_gone_can_be_killed() {
    let whole = Noise::new(15).bytes(32 * MIB);
    let origin = slow_origin(&whole, 512 << 10);
    let Some(mut kept) = Kept::at(&origin) else { return };
    kept.node.set("read_timeout", "\"2s\"");
    kept.node.start();
    let path = lazily(&kept.node).join("model.safetensors");
    let begin = File::open(&path).expect("a file");
    assert_range(&begin, &whole, 0, 4096);
    origin.misbehave_on_reads(|_, request| {
        request.path.contains("safetensors").then_some(Fault::Refuse(404, "NoSuchKey", None))
    });
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (1..4)
            .map(|part| {
                let at = part * 8 * MIB as u64;
                let path = &path;
                scope.spawn(move || File::open(path).expect("a file").read_exact_at(&mut [0; 4096], at - 4096))
            })
            .collect();
        let restarted = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            kept.node.until("they wait", |status| status["mount"]["reads_waiting"].as_u64() >= Some(3));
            std::thread::sleep(Duration::from_millis(300));
            let killed = Instant::now();
            kept.node.kill();
            assert!(killed.elapsed() < Duration::from_secs(2), "{:?}", killed.elapsed());
            kept.node.start();
        }));
        if let Err(panic) = restarted {
            // Or those who wait would wait for ever.
            kept.end();
            std::panic::resume_unwind(panic);
        }
        for reader in waiting {
            let read = reader.join().expect("a reader");
            assert_eq!(read.expect_err("no bytes").raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
        }
    });
    // What was right is right.
    assert_range(&begin, &whole, 0, 4096);
}

#[test]
fn bytes_that_turn_out_wrong_are_taken_back_from_those_who_have_the_file_open() {
    const FLIPPED: usize = 1000;
    let whole = Noise::new(13).bytes(12 * MIB);
    let origin = slow_origin(&[], 1);
    origin.bucket().put("m/model.safetensors", whole.clone(), Checksums::multipart());
    // Once, and everything else slowly: whoever reads meanwhile waits.
    let spoiled = AtomicBool::new(false);
    origin.misbehave_on_reads(move |_, request| {
        let is_begin = request.path.contains("safetensors") && request.range().is_some_and(|(from, _)| from == 0);
        let is_spoiled = is_begin && !spoiled.swap(true, Relaxed);
        Some(if is_spoiled { Fault::Flip(FLIPPED as u64) } else { Fault::Slow(1 << 20) })
    });
    let Some(kept) = Kept::started(&origin) else { return };
    let path = lazily(&kept.node).join("model.safetensors");
    let file = File::open(&path).expect("a file");
    let mut begin = vec![0; 4096];
    file.read_exact_at(&mut begin, 0).expect("bytes");
    assert_ne!(begin[FLIPPED], whole[FLIPPED], "nothing was proven yet");
    // Everybody reads on, also at the moment when it turns out, and sees an error or what is right.
    let (mut errors, mut right) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for at in (0..whole.len()).step_by(64 << 10) {
                let mut bytes = [0; 64];
                let _ = file.read_exact_at(&mut bytes, at as u64);
            }
        });
        let began = Instant::now();
        while right < 10 {
            assert!(began.elapsed() < PATIENCE, "never right\n{}", kept.logs());
            match file.read_exact_at(&mut begin, 0) {
                Err(_) => errors += 1,
                Ok(()) if begin == whole[..4096] => right += 1,
                Ok(()) => {
                    assert_eq!(right, 0, "wrong again");
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    });
    eprintln!("{errors} errors until it was right");
    assert!(fs::read(&path).expect("the file") == whole);
}

#[test]
fn readers_of_a_stalled_origin_disturb_nobody_and_can_be_killed() {
    const READERS: usize = 256;
    /// So many of them wait until the deadline.
    const PATIENT: usize = 16;
    let whole = safetensors("w", 6, 56 * MIB);
    let origin = slow_origin(&whole, 8 << 20);
    origin.misbehave_on_reads(|_, request| request.path.contains("safetensors").then_some(Fault::Stall(0)));
    origin.bucket().put("other/model.bin", Noise::new(9).bytes(4 * MIB), Checksums::none());
    let Some(mut node) = mounting(&origin) else { return };
    node.set("read_timeout", "\"10s\"");
    node.start();
    let other = node.ready(&json!({"source": "s3://models/other/"}));
    let other = Path::new(other["path"].as_str().expect("a path")).join("model.bin");
    let path = lazily(&node).join("model.safetensors");
    let began = Instant::now();
    let mut readers: Vec<_> = (0..READERS)
        .map(|reader| {
            let mut command = std::process::Command::new("dd");
            command.arg(format!("if={}", path.display())).arg("of=/dev/null").arg("bs=64k").arg("count=1");
            command.arg(format!("skip={}", reader * 3)).stderr(std::process::Stdio::piped());
            command.spawn().expect("dd starts")
        })
        .collect();
    node.until("all of them wait", |status| status["mount"]["reads_waiting"].as_u64() >= Some(READERS as u64));
    // Everything else goes on.
    let looked = Instant::now();
    assert_eq!(fs::read(&other).expect("another file").len(), 4 * MIB);
    assert!(fs::metadata(path.with_file_name("config.json")).is_ok());
    assert!(fs::read_dir(root(&node)).expect("a directory").count() >= 3);
    assert!(looked.elapsed() < Duration::from_secs(1), "{:?}", looked.elapsed());
    let mut asked = spread((0..100).map(|_| {
        let asked = Instant::now();
        drop(node.status());
        asked.elapsed()
    }));
    // Most of them are killed, and die.
    let died = spread(readers.drain(PATIENT..).map(|mut reader| {
        let killed = Instant::now();
        reader.kill().expect("a child");
        reader.wait().expect("a child");
        killed.elapsed()
    }));
    eprintln!(
        "{READERS} readers wait: the socket answers within {:?}, 99 of 100 times {:?}; SIGKILL ends a reader within {:?}, at most {:?}",
        asked[asked.len() / 2],
        asked[asked.len() * 99 / 100],
        died[died.len() / 2],
        died[died.len() - 1],
    );
    assert!(died[died.len() / 2] < Duration::from_millis(100), "{died:?}");
    assert!(died[died.len() - 1] < Duration::from_secs(1), "{died:?}");
    assert!(asked.pop() < Some(Duration::from_secs(1)), "{asked:?}");
    // The others hear of it at the deadline.
    for reader in readers {
        let ran = reader.wait_with_output().expect("a child");
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert!(!ran.status.success() && said.contains("Input/output error"), "{said}");
    }
    assert!(began.elapsed() > Duration::from_secs(9), "{:?}", began.elapsed());
    assert!(node.log().contains("did not arrive in time"), "{}", node.log());
}

#[test]
fn a_read_that_waits_outlives_an_orderly_restart() {
    const AT: usize = 5 * MIB;
    let whole = safetensors("w", 21, 12 * MIB);
    let origin = slow_origin(&whole, 8 << 20);
    origin.misbehave_on_reads(|_, request| request.path.contains("safetensors").then_some(Fault::Stall(0)));
    let Some(mut kept) = Kept::started(&origin) else { return };
    let path = lazily(&kept.node).join("model.safetensors");
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; 4096];
        File::open(&path).and_then(|file| file.read_exact_at(&mut bytes, AT as u64)).map(|()| bytes)
    });
    kept.node.until("it waits", |status| status["mount"]["reads_waiting"].as_u64() >= Some(1));
    assert_eq!(kept.node.terminate().0, Some(0), "{}", kept.logs());
    origin.behave();
    kept.node.start();
    let bytes = reader.join().expect("a reader").unwrap_or_else(|error| panic!("{error}\n{}", kept.logs()));
    assert!(bytes == whole[AT..AT + 4096]);
}
