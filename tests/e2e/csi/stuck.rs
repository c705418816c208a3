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

/// Whoever mounted it: a keeper of another version, or an administrator.
#[test]
fn what_is_mounted_after_its_end_is_taken_away_and_what_a_pod_may_have_stays() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let Some(mut kept) = started(&origin, &[]) else { return };
    let [ended, running] = ["p1", "p2"].map(|pod| volume(&kept, pod, &[("source", "s3://models/m/")]));
    ended.publish().expect("published");
    running.publish().expect("published");
    ended.unpublish().expect("taken away");
    kept.node.kill();
    let digest = fs::read_dir(kept.node.store().join("v1/models")).expect("models").flatten().next().expect("one");
    let keeper = larder_keeper::Errands::new(kept.node.path("keeper/sock"));
    keeper.publish(digest.file_name(), ended.target()).expect("mounted");
    // Nothing is known of the one that runs.
    for note in fs::read_dir(kept.node.store().join("v1/volumes")).expect("notes").flatten() {
        let text = fs::read_to_string(note.path()).expect("a note");
        if text.contains("/p2/") {
            fs::remove_file(note.path()).expect("removed");
        }
    }
    kept.node.start();
    until(&kept, "what has ended is taken away", |_| mounted(&ended.target()).is_empty());
    assert_reads(&running.target(), &model);
    running.unpublish().expect("taken away");
    assert!(mounted(&running.target()).is_empty());
}

/// Bytes are shared, and a volume is its pod's.
#[test]
fn a_volume_of_the_same_id_in_another_pod_gets_nothing_of_the_first_ones() {
    let (origin, model) = origin_with_model(Checksums::multipart());
    let other = SampleModel::new(9, 2, 1 << 20);
    upload(origin.bucket(), "other/", &other, Checksums::multipart());
    let rules = r#"[{ namespaces = ["team"], sources = ["s3://models/m/"] }, { namespaces = ["*"], sources = ["s3://models/other/"] }]"#;
    let Some(kept) = started(&origin, &[("policy", rules)]) else { return };
    let first = volume(&kept, "p1", &[("source", "s3://models/m/")]);
    first.publish().expect("published");
    let elsewhere = |pod: &str, source: &str, target: Option<&Volume>| {
        let mut volume = volume(&kept, pod, &[("source", source)]);
        volume.publish.volume_id.clone_from(&first.publish.volume_id);
        volume.publish.context.insert("csi.storage.k8s.io/pod.namespace".into(), "elsewhere".into());
        if let Some(target) = target {
            volume.publish.target_path.clone_from(&target.publish.target_path);
        }
        volume
    };
    let refused = elsewhere("p2", "s3://models/m/", None).publish().expect_err("refused");
    assert_eq!(refused.code, PERMISSION_DENIED, "{refused:?}");
    let second = elsewhere("p2", "s3://models/other/", None);
    second.publish().expect("published");
    assert_reads(&second.target(), &other);
    // Nor is the first one's made way for it.
    let refused = elsewhere("p3", "s3://models/other/", Some(&first)).publish().expect_err("refused");
    assert_eq!(refused.code, PERMISSION_DENIED, "{refused:?}");
    assert!(refused.message.contains("team/server-0"), "{refused:?}");
    let mut changed = first.clone();
    changed.publish.context.insert("include".into(), "*.json".into());
    assert_eq!(changed.publish().expect_err("refused").code, PERMISSION_DENIED);
    second.unpublish().expect("taken away");
    assert_reads(&first.target(), &model);
    first.publish().expect("as before");
    first.unpublish().expect("taken away");
    assert_eq!(owners(&kept), [""; 0]);
}
