//! How a cluster of ours is started, formed and removed, with stand-ins for the two programs: the command lines, in their
//! order, and that nothing stays whatever fails.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use ferro_bench::cluster::{Cluster, Policy, Programs};
use ferro_bench::process::Stop;
use rustix::process::{Pid, test_kill_process};

/// Listens on the API socket of its configuration, as `vsand` does, and no more.
const VSAND: &str = r#"#!/bin/sh
run=$(sed -n 's/^run_dir = "\(.*\)"$/\1/p' "$2")
cp "$2" "$(dirname "$0")/last.toml"
echo "$0 is serving"
exec qemu-storage-daemon --chardev "socket,id=api,path=$run/api.sock,server=on,wait=off" --monitor chardev=api
"#;

const VSANCTL: &str = r#"#!/bin/sh
host=$(basename "$(dirname "$2")")
shift 2
echo "$host $*" >>"$(dirname "$0")/calls"
case "$*" in
  "$(cat "$(dirname "$0")/fails" 2>/dev/null)") echo "refused: try another" >&2; exit 1 ;;
  "cluster token"*) echo '{"token": "T0", "expires_at": 1}' ;;
  "volume open"*) echo '{"name": "bench", "socket": "/run/x/bench.sock"}' ;;
esac
"#;

struct Lab {
    directory: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [("vsand", VSAND), ("vsanctl", VSANCTL)] {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&self, policy: &str) -> anyhow::Result<Cluster> {
        let programs = Programs::in_directory(self.directory.path())?;
        Cluster::start(&programs, &policy.parse::<Policy>()?, &self.path("disks"), 0, &Stop::default())
    }

    /// The calls of `vsanctl`, with the host and without the temporary path of the disk.
    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("calls")).unwrap();
        let short = |word: &str| if word.starts_with('/') { "DISK".to_owned() } else { word.to_owned() };
        text.lines().map(|line| line.split(' ').map(short).collect::<Vec<_>>().join(" ")).collect()
    }
}

fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).unwrap().next().is_none()
}

#[test]
fn three_hosts_are_formed_as_an_operator_would_and_leave_nothing() {
    let lab = Lab::new();
    let cluster = lab.start("mirror:3").unwrap();
    assert_eq!(cluster.volume("bench", "2G").unwrap(), Path::new("/run/x/bench.sock"));
    assert_eq!(
        lab.calls(),
        [
            "h1 cluster bootstrap",
            "h1 cluster token -o json",
            "h2 cluster join T0",
            "h1 cluster token -o json",
            "h3 cluster join T0",
            "h1 disk add DISK --size 0G",
            "h2 disk add DISK --size 0G",
            "h3 disk add DISK --size 0G",
            "h1 volume create bench --size 2G --policy mirror:3",
            "h1 volume open bench -o json",
        ]
    );
    let config = fs::read_to_string(lab.path("last.toml")).unwrap();
    let keys: Vec<&str> = config.lines().filter_map(|line| line.split(" = ").next()).collect();
    assert_eq!(keys, ["listen", "name", "state_dir", "run_dir", "fault_domain"]);
    let watched = cluster.watched();
    assert_eq!(watched.len(), 3);
    drop(cluster);
    for process in watched {
        let pid = Pid::from_raw(process.pid.cast_signed()).unwrap();
        assert!(test_kill_process(pid).is_err(), "{} is still there", process.name);
    }
    assert!(is_empty(&lab.path("disks")));
}

#[test]
fn one_copy_needs_one_host() {
    let lab = Lab::new();
    let cluster = lab.start("mirror:1").unwrap();
    assert_eq!(cluster.watched().len(), 1);
    assert_eq!(lab.calls(), ["h1 cluster bootstrap", "h1 disk add DISK --size 0G"]);
}

#[test]
fn a_refusal_is_passed_on_with_the_logs_and_leaves_nothing() {
    let lab = Lab::new();
    fs::write(lab.path("fails"), "cluster bootstrap").unwrap();
    let error = format!("{:#}", lab.start("mirror:1").err().unwrap());
    assert!(error.contains("refused: try another"), "{error}");
    assert!(error.contains("is serving"), "{error}");
    assert!(is_empty(&lab.path("disks")));
}

#[test]
fn a_daemon_that_cannot_start_says_why() {
    let lab = Lab::new();
    fs::write(lab.path("vsand"), "#!/bin/sh\necho unknown key listen >&2\nexit 2\n").unwrap();
    let error = format!("{:#}", lab.start("mirror:3").err().unwrap());
    assert!(error.contains("unknown key listen"), "{error}");
    assert!(is_empty(&lab.path("disks")));
}

#[test]
fn missing_programs_are_named_with_the_command_that_builds_them() {
    let directory = tempfile::tempdir().unwrap();
    let error = format!("{:#}", Programs::in_directory(directory.path()).err().unwrap());
    assert!(error.contains("cargo build --release --bin vsand"), "{error}");
}
