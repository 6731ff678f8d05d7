//! The switch's API itself: its description, what it refuses before the control plane hears of it, metrics, and captures.

mod switch;

use std::collections::BTreeSet;
use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use ferro_tools::failure::Failure;
use hyper::Method;
use serde_json::{Value, json};
use switch::{Ran, Served};
use vswitch_core::frame::{Csum, Gso, GsoKind, Offload};
use vswitchd::data::capture::{Captured, Direction};

fn collect(value: &Value, key: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (name, inner) in map {
                if let (true, Some(text)) = (name == key, inner.as_str()) {
                    found.insert(text.to_owned());
                }
                collect(inner, key, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, key, found)),
        _ => {}
    }
}

#[test]
fn the_description_has_every_route_and_no_other() {
    let served = Served::start();
    let document: Value = served.runtime.block_on(served.client().get("/openapi.json")).unwrap();
    let described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(|method| (method.clone(), path.clone()))
        })
        .collect();
    let routes: BTreeSet<(String, String)> = vswitchd::api::ROUTES
        .iter()
        .map(|(method, path)| ((*method).to_owned(), (*path).to_owned()))
        .collect();
    assert_eq!(described, routes);
    let mut references = BTreeSet::new();
    collect(&document, "$ref", &mut references);
    assert!(references.len() > 30, "{references:?}");
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
}

#[test]
fn what_can_be_refused_without_looking_is() {
    let served = Served::with_network();
    let client = served.client();
    let ask = |method: &Method, path: &str, body: Option<Value>| -> Failure {
        let body = body.map(|body| (Bytes::from(body.to_string()), "application/json"));
        served.runtime.block_on(client.bytes(method.clone(), path, body)).unwrap_err()
    };
    let (get, post, put) = (Method::GET, Method::POST, Method::PUT);
    for (method, path, body, code) in [
        (&post, "/v1/transactions", Some(json!({})), "bad_request"),
        (&post, "/v1/transactions", Some(json!({"changes": [], "colour": 1})), "bad_request"),
        (
            &post,
            "/v1/transactions",
            Some(json!({"changes": [{"add_switch": {"name": "a", "x": 1}}]})),
            "bad_request",
        ),
        (&post, "/v1/transactions", Some(json!({"changes": [], "confirm_within_s": 0})), "bad_request"),
        (
            &post,
            "/v1/transactions",
            Some(json!({"changes": vec![json!({"remove_port": "p"}); 10_001]})),
            "limit_reached",
        ),
        (&post, "/v1/transactions", Some(json!({"changes": [], "basis": 0})), "conflict"),
        (&get, "/v1/revisions/x", None, "bad_request"),
        (&get, "/v1/revisions/1?wait_s=31", None, "bad_request"),
        (&post, "/v1/revisions/9/confirm", None, "revision_not_found"),
        (&get, "/v1/ports/-a", None, "bad_name"),
        (&get, "/v1/ports/nobody", None, "port_not_found"),
        (&put, "/v1/ports/vm3/attachment", Some(json!({"kind": "wire"})), "bad_request"),
        (
            &put,
            "/v1/ports/vm3/attachment",
            Some(json!({"kind": "vhost_user", "connect": true})),
            "bad_attachment",
        ),
        (&put, "/v1/ports/vm3/attachment", Some(json!({"kind": "tap", "interface": ""})), "bad_attachment"),
        (&get, "/v1/macs?rows=0", None, "bad_request"),
        (&get, "/v1/macs?rows=1001", None, "bad_request"),
        (&get, "/v1/macs?mac=x", None, "bad_request"),
        (&get, "/v1/macs?colour=1", None, "bad_request"),
        (&post, "/v1/macs/release", Some(json!({"mac": "02:00:00:00:00:01", "vni": 0})), "bad_request"),
        (&post, "/v1/trace", Some(json!({"from": {"port": "vm1"}, "frame": "00"})), "bad_frame"),
        (&post, "/v1/trace", Some(json!({"from": {"group": "web"}, "frame": "00"})), "bad_request"),
        (&get, "/v1/capture", None, "bad_request"),
        (&get, "/v1/capture?port=vm1&group=web", None, "bad_request"),
        (&get, "/v1/capture?port=vm1&snap=0", None, "bad_request"),
        (&get, "/v1/capture?port=vm1&frames=0", None, "bad_request"),
        (&get, "/v1/capture?port=vm1&seconds=86401", None, "bad_request"),
        (&get, "/v1/nothing", None, "no_such_route"),
        (&put, "/v1/status", None, "no_such_route"),
    ] {
        let failure = ask(method, path, body);
        assert_eq!(failure.code, code, "{path}: {failure:?}");
        assert!(!failure.next_step.is_empty(), "{path}");
    }
    assert_eq!(served.control.state().revision, 1);
}

#[test]
fn metrics_read_as_prometheus_wants_them() {
    let served = Served::with_network();
    let body =
        served.runtime.block_on(served.client().bytes(Method::GET, "/metrics", None)).unwrap().unwrap();
    let text = String::from_utf8(body.to_vec()).unwrap();
    for line in [
        "vswitchd_health 0",
        "vswitchd_config_revision 1",
        "vswitchd_ports 3",
        "vswitchd_loop_turns_total 7",
        "vswitchd_port_frames_total{port=\"vm1\",group=\"web\",direction=\"from\"} 12",
        "vswitchd_port_bytes_total{port=\"vm2\",group=\"web\",direction=\"to\"} 700",
        "vswitchd_port_drops_total{port=\"vm1\",group=\"web\",cause=\"forged_source\"} 3",
        "vswitchd_port_up{port=\"vm1\",group=\"web\"} 1",
        "vswitchd_uplink_up{uplink=\"eth1\",switch=\"s0\"} 0",
        "vswitchd_tunnel_up{host=\"beta\"} 1",
        "vswitchd_path_up{host=\"beta\",local=\"10.2.0.1\",remote=\"10.2.0.2\"} 0",
        "vswitchd_path_rtt_microseconds{host=\"beta\",local=\"10.1.0.1\",remote=\"10.1.0.2\"} 210",
    ] {
        assert!(text.lines().any(|it| it == line), "no {line:?} in\n{text}");
    }
    assert!(!text.contains("port=\"vm3\""), "it is not attached here");
    assert!(text.ends_with("# EOF\n"));
}

fn captured(at: &str, second: u64, direction: Direction, bytes: Vec<u8>, offload: Offload) -> Captured {
    let time = Duration::new(second, 123_456_789);
    Captured { time, at: at.parse().unwrap(), direction, offload, len: bytes.len(), bytes }
}

/// Three frames at two ports; the second is a super-frame.
fn some_frames() -> Vec<Captured> {
    let mut frame = vec![0xff; 6];
    frame.extend([0x52, 0x54, 0, 0, 0, 1, 0x88, 0xb5]);
    frame.resize(60, 7);
    let mut large = frame.clone();
    large.resize(5001, 8);
    let gso = Offload {
        csum: Csum::Partial { start: 34, offset: 16 },
        gso: Some(Gso { kind: GsoKind::TcpV4, ecn: false, size: 1448 }),
    };
    vec![
        captured("vm1", 1_700_000_000, Direction::In, frame.clone(), Offload::NONE),
        captured("vm2", 1_700_000_001, Direction::Out, large, gso),
        captured("vm1", 1_700_000_002, Direction::Out, frame, Offload::NONE),
    ]
}

#[test]
fn a_capture_is_a_file_that_tshark_reads() {
    let served = Served::with_network();
    let file = served.path("web.pcapng");
    let path = file.to_str().unwrap();
    {
        let mut state = served.control.state();
        (state.frames, state.missed) = (some_frames(), 5);
    }
    let ran = served.run(&["capture", "web", "-w", path, "--count", "3"]);
    assert_eq!((ran.code, ran.out.as_str()), (0, ""));
    assert_eq!(ran.err, "captured 3 frames, 5 more were dropped, because they were not taken fast enough\n");
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!(blocks(&bytes), [0x0a0d_0d0a, 1, 6, 1, 6, 6, 5]);

    let fields = ["frame.time_epoch", "frame.interface_name", "frame.len", "frame.packet_flags_direction"];
    let mut tshark = Command::new("tshark");
    tshark.args(["-r", path, "-T", "fields", "-E", "separator=,"]);
    fields.iter().for_each(|field| {
        tshark.args(["-e", field]);
    });
    let output = match tshark.output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            assert!(std::env::var_os("CI").is_none(), "tshark is not installed: `apt-get install tshark`");
            return eprintln!("tshark is not installed: not read back");
        }
        Err(error) => panic!("tshark: {error}"),
    };
    let read = Ran::of(&output);
    assert_eq!(read.code, 0, "{read:?}");
    let lines: Vec<&str> = read.out.lines().collect();
    assert_eq!(lines.len(), 3, "{read:?}");
    assert!(lines[0].starts_with("1700000000.123456789,vm1,60,0x"), "{read:?}");
    assert!(lines[1].starts_with("1700000001.123456789,vm2,5001,0x"), "{read:?}");
    assert!(lines[0].ends_with('1') && lines[1].ends_with('2'), "which way: {read:?}");
}

/// The types of a file's blocks; it must consist of whole ones.
fn blocks(bytes: &[u8]) -> Vec<u32> {
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (mut at, mut types) = (0, Vec::new());
    while at < bytes.len() {
        let length = word(at + 4) as usize;
        assert_eq!(word(at + length - 4) as usize, length, "both lengths are the same");
        types.push(word(at));
        at += length;
    }
    types
}

#[test]
fn a_capture_ends_when_it_is_told_to_and_the_file_is_whole() {
    let served = Served::with_network();
    served.control.state().frames = some_frames();
    let mut child = served
        .command(&["capture", "port:vm1", "-w", "-", "--snap", "64", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    // The frames are there before it is interrupted: the header, two interfaces, three frames of at most 64 bytes.
    let mut bytes = vec![0; 400];
    out.read_exact(&mut bytes).unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    out.read_to_end(&mut bytes).unwrap();
    let ran = Ran::of(&child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (0, "{\"frames\":3,\"dropped\":0}\n"), "{ran:?}");
    assert_eq!(blocks(&bytes), [0x0a0d_0d0a, 1, 6, 1, 6, 6]);

    // The daemon's end sees that nobody reads any more.
    let sender = served.control.state().captures.pop().unwrap();
    served.runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(30), sender.closed()).await.expect("the capture ends")
    });
    let ran = served.run(&["capture", "uplink:eth0", "-w", "-", "--seconds", "1"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.err.contains("captured 0 frames, none was dropped"), "{ran:?}");
    served.done(&["portgroup", "create", "vm1", "--switch", "s0"]);
    served.run(&["capture", "vm1", "-w", "-"]).refused(2, &["\"vm1\" can mean port and group", "port:vm1"]);
}
