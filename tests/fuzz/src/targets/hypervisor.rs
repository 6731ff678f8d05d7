//! What `hypervisord` is given: specifications and requests by whoever may use its socket, documents by the cluster's
//! directory, which other hosts write.

mod standin;

use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use clap::Parser;
use ferro_protocol::api::ApiError;
use ferro_protocol::api::vm::spec::BootSpec;
use ferro_protocol::api::vm::{VmSpec, VmmKind};
use ferro_protocol::document::DocumentName;
use ferro_protocol::ids::{Epoch, HostId};
use ferro_protocol::time::Instant;
use ferro_transport::documents::read;
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::service::Service;
use hyper::{Request, Uri};
use hyper_util::service::TowerToHyperService;
use hypervisor_core::admission::{Room, admit, capacity};
use hypervisor_core::cgroup::limits;
use hypervisor_core::command::vmm::{Confinement, arguments};
use hypervisor_core::command::{DiskSocket, Machine, NicSocket, qemu};
use hypervisor_core::cpus::CpuSet;
use hypervisor_core::documents::{
    FORMAT, HostDocument, RunDocument, SpecDocument, Subject, host_name, run_name, spec_name, subject,
};
use hypervisor_core::life::{Action, Event, Found, Life, OrderId};
use hypervisor_core::ownership::{Claimed, Lock, verdict};
use hypervisor_core::paths::Paths;
use hypervisor_core::spec::{Vm, check, complete};
use hypervisord::api::{ROUTES, router};
use vmm::args::Arguments;
use vmm::config::BootSource;

use crate::Source;
use standin::StandIn;

const CPUS: u32 = 128;

/// A host that has room for the largest VM.
fn room() -> Room {
    Room {
        cpus: CpuSet::new(0..CPUS),
        memory_bytes: 4 << 40,
        kept_bytes: 1 << 30,
        overcommit_percent: 100,
        huge_2m_free_bytes: 1 << 40,
        huge_1g_free_bytes: 1 << 40,
    }
}

/// A specification: what is wrong with it is said, and what is not can be run, by command lines that say the same.
pub(super) fn specs(data: &[u8]) {
    let Ok(spec) = serde_json::from_slice::<VmSpec>(data) else { return };
    let Ok((spec, vm)) = checked(spec) else { return };
    let text = serde_json::to_string(&spec).expect("a specification can be written");
    assert_eq!(serde_json::from_str::<VmSpec>(&text).expect("and be read"), spec);
    let room = room();
    for kind in [VmmKind::Kvm, VmmKind::Qemu] {
        let Ok(claim) = admit(&room, [], &vm, kind) else { continue };
        let (cpu, memory) = capacity(&room, &[claim]);
        assert!(memory.granted_bytes <= memory.usable_bytes && memory.reserved_bytes <= memory.usable_bytes);
        assert!(cpu.reserved_percent <= cpu.reservable_percent);
        let limits = limits(&[(&vm, kind)], CPUS, memory.usable_bytes);
        let values = limits.iter().flat_map(|limits| limits.files());
        assert!(values.into_iter().all(|(_, value)| !value.contains('\n')), "{limits:?}");
        is_run(&vm, kind);
    }
}

/// Makes it complete and checks it: the VM, or its faults.
fn checked(mut spec: VmSpec) -> Result<(VmSpec, Vm), Vec<ferro_protocol::api::FaultLine>> {
    let mut drawn = 0_u32;
    complete(&mut spec, || {
        drawn += 1;
        let [a, b, c, d] = drawn.to_be_bytes();
        [0, a, b, c, d]
    });
    match check(&spec) {
        Ok(vm) => Ok((spec, vm)),
        Err(faults) => {
            assert!(!faults.is_empty() && faults.iter().all(|fault| !fault.problem.is_empty()), "{faults:?}");
            Err(faults)
        }
    }
}

fn is_run(vm: &Vm, kind: VmmKind) {
    let paths = Paths::new("/run/hypervisord", "/var/lib/hypervisord", &vm.name).expect("they are short");
    let disk = |n: usize| DiskSocket { path: format!("/d/{n}"), queues: 4, read_only: vm.disks[n].read_only };
    let disks: Vec<DiskSocket> = (0..vm.disks.len()).map(disk).collect();
    let nic = |n: usize| NicSocket { path: format!("/n/{n}"), mac: vm.nics[n].mac, mtu: 1500, queues: 4 };
    let nics: Vec<NicSocket> = (0..vm.nics.len()).map(nic).collect();
    let machine = Machine { vm, paths: &paths, disks: &disks, nics: &nics };
    if kind == VmmKind::Qemu {
        let boot = qemu::Kernel { kernel: "/k".into(), initrd: None, cmdline: "c".into() };
        let all = qemu::arguments(machine, &boot, "reconnect=1");
        assert!(all.iter().all(|argument| !argument.contains('\0')), "{all:?}");
        return;
    }
    let all = arguments(machine, Confinement::None).expect("no path has a comma");
    let taken = Arguments::try_parse_from(std::iter::once("vmm".to_owned()).chain(all.iter().cloned()));
    let taken = taken.unwrap_or_else(|error| panic!("the vmm does not take {all:?}: {error}"));
    let config = taken.config().unwrap_or_else(|error| panic!("the vmm can't run {all:?}: {error}"));
    assert_eq!((config.name.as_str(), u32::from(config.cpus.get())), (vm.name.as_str(), vm.cpus));
    assert_eq!((config.memory.bytes(), config.balloon), (vm.memory_bytes, vm.memory.balloon));
    assert_eq!(config.devices.len(), disks.len() + nics.len());
    let lists: Vec<String> = config.affinity.iter().map(ToString::to_string).collect();
    let wanted = vm.cpu.affinity.as_ref().map(ToString::to_string).unwrap_or_default();
    assert_eq!(lists.join(";"), wanted);
    match (&vm.boot, &config.boot) {
        (BootSpec::Volume(wanted), BootSource::Volume(boot)) => {
            assert_eq!((&boot.entry, &boot.append), (&wanted.entry, &wanted.cmdline_append));
        }
        (BootSpec::Files(wanted), BootSource::Files { kernel, initrd, command_line }) => {
            assert_eq!((kernel.as_path(), command_line), (Path::new(&wanted.kernel), &wanted.cmdline));
            assert_eq!(initrd.as_deref(), wanted.initrd.as_deref().map(Path::new));
        }
        (wanted, boot) => panic!("{boot:?} for {wanted:?}"),
    }
}

/// A document of the directory: its name, a line's end, what it says.
pub(super) fn documents(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some((name, text)) = text.split_once('\n') else { return };
    let Ok(name) = name.parse::<DocumentName>() else { return };
    match subject(&name) {
        Some(Subject::Spec(vm)) => {
            assert_eq!(spec_name(&vm), name);
            if let Ok(document) = read::<SpecDocument>(text, FORMAT) {
                let _ = checked(document.spec);
            }
        }
        Some(Subject::Run(vm)) => {
            assert_eq!(run_name(&vm), name);
            if let Ok(run) = read::<RunDocument>(text, FORMAT) {
                is_followed(&run);
            }
        }
        Some(Subject::Host(host)) => {
            let _ = host_name(host);
            let _ = read::<HostDocument>(text, FORMAT);
        }
        None => {}
    }
}

/// The host that a run document names follows it, whatever it orders and whenever.
fn is_followed(run: &RunDocument) {
    let other = HostId::from_bytes([9; 16]);
    for me in [run.host, other] {
        for lock in [Lock::NoDisk, Lock::Unknown, Lock::Nobody(Epoch(3)), Lock::Held(run.host, Epoch(3))] {
            let _ = verdict(me, run.epoch, Claimed::By(run), lock);
        }
    }
    let Some(verb) = run.verb else { return };
    for found in [Found::Off, Found::Running, Found::Paused, Found::Gone] {
        let mut life = Life::new(
            found,
            ferro_protocol::api::vm::spec::RestartSpec::OnFailure,
            hypervisor_core::life::Incarnation(run.incarnation),
            [],
        );
        let mut answers = 0;
        for (now, event) in [
            (1, Event::Ordered(OrderId(run.order), verb)),
            (u64::MAX - 1, Event::Tick),
            (u64::MAX, Event::Tick),
        ] {
            let actions = life.handle(Instant(now), event);
            answers += actions.iter().filter(|action| matches!(action, Action::Answer(..))).count();
        }
        assert!(answers <= 1, "{verb:?} was answered {answers} times");
    }
}

/// A request: whatever it is, an answer in the one form of errors, or what was asked for.
pub(super) fn requests(data: &[u8]) {
    let mut source = Source::new(data);
    let (method, path) = ROUTES[source.below(ROUTES.len())];
    let flags = source.byte();
    let mut path = path.to_owned();
    while let (Some(from), Some(to)) = (path.find('{'), path.find('}')) {
        let len = source.below(80);
        path.replace_range(from..=to, &part(source.take(len)));
    }
    if flags & 1 != 0 {
        let len = source.below(80);
        path = format!("{path}?{}", part(source.take(len)));
    }
    let method = if flags & 2 == 0 { method } else { "patch" };
    let Ok(uri) = path.parse::<Uri>() else { return };
    let mut request = Request::builder().method(method.to_uppercase().as_str()).uri(uri);
    if flags & 4 == 0 {
        request = request.header("content-type", "application/json");
    }
    let Ok(request) = request.body(Full::new(Bytes::copy_from_slice(source.rest()))) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let service = TowerToHyperService::new(router(Arc::new(StandIn)));
        let answer = service.call(request).await.expect("it can't fail");
        let status = answer.status();
        let body = answer.into_body().collect().await.expect("it is all there").to_bytes();
        if !status.is_success() {
            let error: ApiError = serde_json::from_slice(&body)
                .unwrap_or_else(|_| panic!("{method} {path}: {status} {body:?} is no ApiError"));
            assert!(
                !error.next_step.is_empty() && status.as_u16() < 500,
                "{method} {path}: {status} {error}"
            );
        }
    });
}

/// A part of a URI: what can't be in one as it is, is written as `%xx`; a `%` stays, so that bad ones come, too.
fn part(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'%' | b'=' | b'&' | b'/' => {
                text.push(char::from(*byte));
            }
            _ => write!(text, "%{byte:02x}").expect("a string takes everything"),
        }
    }
    text
}

const SPECS: [&str; 7] = [
    r#"{"name":"a","memory_bytes":16777216,"disks":[{"volume":"r"}],"boot":{"volume":{"entry":"-1","cmdline_append":"-- single"}}}"#,
    r#"{"name":"web1","cpus":2,"memory_bytes":536870912,"disks":[{"volume":"web1-root"},{"volume":"d","read_only":true}],"nics":[{"portgroup":"blue"}]}"#,
    r#"{"name":"a","memory_bytes":16777216,"boot":{"files":{"kernel":"/k","initrd":"/i","cmdline":"console=ttyS0 -- single"}}}"#,
    r#"{"name":"a","memory_bytes":1073741824,"disks":[{"volume":"r"}],"boot":{"volume":{"entry":"old","cmdline_append":"debug"}},"vmm":"qemu","restart":"never"}"#,
    r#"{"name":"a","cpus":4,"memory_bytes":1073741824,"disks":[{"volume":"r"}],"cpu":{"shares":2000,"reservation_percent":50,"limit_percent":150,"affinity":"0-3,8;4;5;6-7"},"memory":{"reservation_bytes":536870912,"limit_bytes":805306368,"shares":10,"balloon":true}}"#,
    r#"{"name":"a","memory_bytes":1073741824,"disks":[{"volume":"r"}],"memory":{"huge_pages":"1G","balloon":false},"vmm":"kvm"}"#,
    r#"{"name":"a","memory_bytes":1073741824,"disks":[{"volume":"r"}],"nics":[{"portgroup":"blue","mac":"52:54:00:00:00:01","port":"a.1"},{"portgroup":"red"}]}"#,
];

pub(super) fn spec_seeds() -> Vec<Vec<u8>> {
    SPECS.iter().map(|spec| spec.as_bytes().to_vec()).collect()
}

pub(super) fn document_seeds() -> Vec<Vec<u8>> {
    const HOST: &str = "00000000-0000-0000-0000-000000000001";
    let run = |verb: &str| {
        format!(
            "vm/run/a\n{{\"format\":1,\"host\":\"{HOST}\",\"epoch\":3,\"wanted\":\"on\",\"incarnation\":3,\"order\":4,\"verb\":{verb}}}"
        )
    };
    let mut seeds: Vec<String> =
        SPECS.iter().map(|spec| format!("vm/spec/a\n{{\"format\":1,\"spec\":{spec}}}")).collect();
    seeds.extend([run("\"start\""), run("\"reset\""), run(r#"{"stop":{"timeout_s":60,"force":true}}"#)]);
    seeds.push(format!(
        r#"vm/host/{HOST}
{{"format":1,"beat":7,"capacity":{{"host":"{HOST}","host_name":"h","cpu":{{"count":2,"reservable_percent":200,"reserved_percent":0,"free_percent":200,"virtual_count":0}},"memory":{{"total_bytes":1,"usable_bytes":1,"granted_bytes":0,"reserved_bytes":0,"free_bytes":1}},"kvm":{{"usable":true,"stock_kernels":true,"detail":""}},"control_groups":"","limits_enforced":false}},"vms":{{"a":{{"status":{{"state":"running","incarnation":3,"since_unix_s":9,"restarts":0}},"order":4}}}}}}"#
    ));
    seeds.into_iter().map(String::into_bytes).collect()
}

pub(super) fn request_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (index, (_, path)) in ROUTES.iter().enumerate() {
        let mut seed = vec![index as u8, 0];
        for number in 0..path.matches('{').count() {
            seed.extend_from_slice(if number == 0 { b"\x04web1" } else { b"\x010" });
        }
        seed.extend_from_slice(match *path {
            "/v1/vms" | "/v1/vms/{name}" => SPECS[1].as_bytes(),
            "/v1/vms/{name}/stop" => br#"{"timeout_s":60,"force":true}"#,
            "/v1/vms/{name}/disks" => br#"{"disk":{"volume":"d"}}"#,
            "/v1/vms/{name}/nics" => br#"{"nic":{"portgroup":"blue"}}"#,
            _ => b"{}",
        });
        seeds.push(seed);
        if *path == "/v1/vms/{name}" {
            seeds.push([&[index as u8, 0][..], b"\x03%ff"].concat());
        }
        if path.ends_with("/log") {
            seeds.push([&[index as u8, 1][..], b"\x04web1\x15previous=true&lines=9"].concat());
        }
    }
    seeds
}
