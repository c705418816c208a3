//! What kubelet says, or whoever reaches its socket: HTTP/2, its headers, and the messages in it.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use larder::csi::{Plugin, Tables, fuzzing};
use larder::telemetry::Metrics;
use larder_keeper::Errands;
use tokio::net::UnixListener;

use crate::control::{cache, runtime};
use crate::engine::{Target, outcome, sentence};
use crate::hpack::{Decoder, Word};

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// As a client may have it, unless it is told otherwise.
const FRAME_LEN_MAX: usize = 16 << 10;

fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&len[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
}

/// Frames of a stream: kind, flags, payload.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u8, &[u8])> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, flags, _, _, _, _, rest @ ..] = bytes {
        let len = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some((payload, rest)) = rest.split_at_checked(len) else { break };
        frames.push((*kind, *flags, payload));
        bytes = rest;
    }
    frames
}

/// Whatever blocks of headers a client sends, they say the same afterwards but for the authority.
#[test]
fn authority() {
    let path = b"/var/lib/kubelet/plugins/csi.larder.dev/csi.sock";
    let block = [&[0x83, 0x41, 48][..], path, b"\x40\x02te\x08trailers\x0f\x10\x03gzp\xbe"].concat();
    let seed = |flags: u8| {
        let mut seed = Vec::new();
        for block in [&block[..], &[0x83, 0xbf, 0xbe], &[0x01, 4, b'a', b':', b'8', b'0']] {
            seed.extend([flags, 0, u8::try_from(block.len()).expect("short")]);
            seed.extend(block);
        }
        seed
    };
    let literal = b"\0\0\x16\x00\x0a:authority\x04path\x01\x09localhost".to_vec();
    Target::named("authority").seed(seed(0)).seed(seed(PRIORITY | PADDED)).seed(literal).len_max(8192).run(|input| {
        // Blocks, each with its flags and its length before it.
        let (mut rest, mut blocks, mut sent) = (input, Vec::new(), PREFACE.to_vec());
        while let [flags, high, low, after @ ..] = rest {
            let len = usize::from(u16::from_be_bytes([*high, *low])).min(after.len());
            let (block, after) = after.split_at(len);
            let mut payload = Vec::new();
            if flags & PADDED != 0 {
                payload.push(3);
            }
            if flags & PRIORITY != 0 {
                payload.extend([0; 5]);
            }
            payload.extend(block);
            if flags & PADDED != 0 {
                payload.extend([0; 3]);
            }
            sent.extend(frame(1, END_HEADERS | flags & (PADDED | PRIORITY), &payload));
            blocks.push(block);
            rest = after;
        }
        let (result, put_right) = fuzzing::put_right(&sent);
        result.expect("frames that are whole");
        assert_eq!(&put_right[..24], PREFACE);
        let got = frames(&put_right[24..]);
        assert_eq!(got.len(), blocks.len());
        let (mut before, mut after) = (Decoder::default(), Decoder::default());
        let mut fields = 0;
        for (block, (_, flags, payload)) in blocks.iter().zip(got) {
            assert_eq!(flags & PADDED, 0, "padding goes");
            let start = if flags & PRIORITY == 0 { 0 } else { 5 };
            // A block that is none ends the connection.
            let Some(said) = before.block(block) else { return outcome("none") };
            let heard = after.block(&payload[start..]).expect("a block");
            assert_eq!(said.len(), heard.len());
            for (said, heard) in said.iter().zip(&heard) {
                assert_eq!(said.name, heard.name);
                let is_right = heard.value == Word::plain("x");
                assert!(said.value == heard.value || said.is_authority() && is_right, "{said:?} {heard:?}");
                // One that is remembered and empty is left as it is.
                assert!(!said.is_authority() || is_right || heard.value.is_empty(), "{heard:?}");
            }
            fields += said.len();
        }
        outcome((blocks.len().min(4), fields.min(8)))
    });
}

/// Whatever comes, it comes to an end, and is not much longer for it.
#[test]
fn frames_of_anything() {
    let seed = [
        &PREFACE[..],
        &frame(4, 0, &[0, 3, 0, 0, 0, 100]),
        &frame(1, END_HEADERS, &[0x83, 0x41, 1, b'x']),
        &frame(0, 1, b"data"),
    ]
    .concat();
    Target::named("frames").seed(seed).run(|input| {
        let (result, put_right) = fuzzing::put_right(input);
        assert!(put_right.len() <= input.len() * 12, "{} bytes of {}", put_right.len(), input.len());
        let long =
            frames(input.get(24..).unwrap_or_default()).iter().any(|(_, _, payload)| payload.len() > FRAME_LEN_MAX);
        assert!(!long || result.is_err(), "a frame that is too long");
        let right = put_right.get(24..).unwrap_or_default();
        result.map_or_else(|error| outcome(error.kind()), |()| outcome(frames(right).len().min(8)))
    });
}

fn field(number: u8, value: &[u8]) -> Vec<u8> {
    [&[number << 3 | 2, u8::try_from(value.len()).expect("short")], value].concat()
}

fn entry(number: u8, key: &str, value: &str) -> Vec<u8> {
    field(number, &[field(1, key.as_bytes()), field(2, value.as_bytes())].concat())
}

/// A call as kubelet makes it.
fn call() -> Vec<u8> {
    let of_kubelet = [
        ("pod.uid", "5d0c-1"),
        ("pod.namespace", "team"),
        ("pod.name", "server-0"),
        ("serviceAccount.name", "default"),
    ];
    let mut call = [
        field(1, b"csi-1"),
        field(4, b"/var/lib/kubelet/pods/5d0c-1/volumes/x/mount"),
        field(5, &[0x12, 0]),
        vec![6 << 3, 1],
    ]
    .concat();
    call.extend(of_kubelet.iter().flat_map(|(key, value)| entry(8, &format!("csi.storage.k8s.io/{key}"), value)));
    call.extend(
        [("source", "s3://b/llama/"), ("include", "*.json *.bin"), ("lazy", "false")]
            .iter()
            .flat_map(|(key, value)| entry(8, key, value)),
    );
    call
}

#[test]
fn messages() {
    let keys = [call(), entry(7, "AWS_ACCESS_KEY_ID", "AKIA"), entry(7, "AWS_SECRET_ACCESS_KEY", "S3CR3T")].concat();
    let words =
        "source|include|exclude|lazy|fresh|true|csi.storage.k8s.io/|key.json|AWS_SESSION_TOKEN|../|s3://|gs://b/k";
    Target::named("messages").seed(call()).seed(keys).words(words).run(|input| {
        let unpublish = fuzzing::unpublish(input);
        match fuzzing::publish(input) {
            None => outcome(unpublish),
            Some(Ok(owner)) => {
                assert!(!owner.contains(|c: char| c.is_control() || c == '/'), "{owner:?}");
                outcome("a volume")
            }
            Some(Err(why)) => sentence(&why),
        }
    });
}

/// A connection with anything in it. Every one is answered or ended.
#[test]
fn connection() {
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = runtime();
    let socket = directory.path().join("csi");
    let kubelet = directory.path().join("kubelet");
    let refuse = |_: &larder::csi::Pod, _: &larder::domain::Source| {
        Err(larder::report::Failure::new(larder::report::Exit::Denied, "no"))
    };
    let plugin = Plugin::new(
        cache(&directory.path().join("store")),
        Errands::new("/nowhere"),
        "node".into(),
        &kubelet,
        Box::new(refuse),
        Arc::new(larder::csi::NoCluster),
        Arc::new(Tables::new(&Arc::new(Metrics::new("1")))),
    );
    let plugin = plugin.expect("a plugin");
    let listener = {
        let _entered = runtime.enter();
        UnixListener::bind(&socket).expect("a socket")
    };
    runtime.spawn(fuzzing::serve(listener, plugin));
    let request = |path: &str, message: &[u8]| {
        let mut block = vec![0x83, 0x86, 0x04, u8::try_from(path.len()).expect("short")];
        block.extend(path.as_bytes());
        block.extend(b"\x01\x04sock\x0f\x10\x10application/grpc\x00\x02te\x08trailers");
        let len = u32::try_from(message.len()).expect("short").to_be_bytes();
        [
            &PREFACE[..],
            &frame(4, 0, &[]),
            &frame(1, END_HEADERS, &block),
            &frame(0, 1, &[&[0], &len[..], message].concat()),
        ]
        .concat()
    };
    Target::named("connection")
        .seed(request("/csi.v1.Node/NodePublishVolume", &call()))
        .seed(request("/csi.v1.Identity/Probe", &[]))
        .seed(request("/pluginregistration.Registration/GetInfo", &[]))
        .words("grpc-timeout|1S|/csi.v1.Node/NodeGetInfo|/csi.v1.Node/NodeUnpublishVolume")
        .run(|input| {
            let mut stream = UnixStream::connect(&socket).expect("a daemon");
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
            // It may have had enough before all of it is written.
            let _ = stream.write_all(input);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            match stream.read_to_end(&mut answer) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the connection does not end"),
                _ => outcome((frames(&answer).iter().map(|(kind, ..)| *kind).collect::<Vec<_>>(), answer.len() / 64)),
            }
        });
}
