//! A keeper that hangs, and ends that race with restarts.

use rustix::process::Signal;

use super::*;

#[test]
fn a_keeper_that_hangs_stops_nothing_but_mounts() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let Some(kept) = started(&origin, &[]) else { return };
    let source = "s3://models/m/";
    kept.node.ready(&json!({"source": source}));
    let volumes: Vec<Volume> = (0..80).map(|n| volume(&kept, &format!("p{n}"), &[("source", source)])).collect();
    kept.signal_keeper(Signal::STOP);
    std::thread::scope(|scope| {
        let asking: Vec<_> =
            volumes.iter().map(|volume| scope.spawn(|| volume.publish_within(Duration::from_secs(14)))).collect();
        let began = Instant::now();
        // More than those that have a thread of their own wait by now.
        std::thread::sleep(Duration::from_secs(2));
        for _ in 0..3 {
            assert!(kept.node.status()["leases"].is_array());
            kept.node.ready(&json!({"source": source}));
            kept.node.ready(&json!({"source": source, "lease": "pod:p0"}));
        }
        assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
        for asking in asking {
            let refused = asking.join().expect("no panic").expect_err("nobody mounts");
            assert_eq!(refused.code, ABORTED, "{refused:?}");
            assert!(refused.message.contains("waiting for larder-keeper"), "{refused:?}");
        }
    });
    assert!(volumes.iter().all(|volume| mounted(&volume.target()).is_empty()));
    kept.signal_keeper(Signal::CONT);
    std::thread::scope(|scope| {
        volumes.iter().for_each(|volume| drop(scope.spawn(|| volume.publish().expect("published"))));
    });
    for volume in &volumes {
        assert_eq!(mounted(&volume.target()).len(), 1);
    }
    assert_reads(&volumes[79].target(), &model);
    std::thread::scope(|scope| {
        volumes.iter().for_each(|volume| drop(scope.spawn(|| volume.unpublish().expect("taken away"))));
    });
    assert!(volumes.iter().all(|volume| !volume.target().exists()));
}

/// kubelet asks until it is answered, and then takes the volume for gone.
#[test]
fn what_ends_while_the_daemon_restarts_stays_away() {
    let whole = safetensors("w", 7, 24 << 20);
    let origin = slow_origin(&whole, 1 << 20);
    let Some(mut kept) = started(&origin, &[]) else { return };
    let mut all = Vec::new();
    for round in 0..3 {
        let lazily = |n| volume(&kept, &format!("p{round}-{n}"), &[("source", "s3://models/m/"), ("lazy", "true")]);
        let volumes: Vec<Volume> = (0..8).map(lazily).collect();
        for volume in &volumes {
            volume.try_publish_within(PATIENCE).expect("published");
        }
        std::thread::scope(|scope| {
            scope.spawn(|| kept.node.restart());
            for volume in &volumes {
                scope.spawn(|| {
                    let began = Instant::now();
                    while let Err(why) = volume.try_unpublish() {
                        assert!(began.elapsed() < PATIENCE, "{why}");
                        std::thread::sleep(Duration::from_millis(20));
                    }
                });
            }
        });
        all.extend(volumes);
    }
    // Whatever would come back does so at once.
    std::thread::sleep(Duration::from_secs(1));
    let back: Vec<_> = all.iter().map(Volume::target).filter(|target| !mounted(target).is_empty()).collect();
    assert!(back.is_empty(), "mounted again: {back:?}\n{}", kept.logs());
    assert_eq!(owners(&kept), [""; 0]);
}
