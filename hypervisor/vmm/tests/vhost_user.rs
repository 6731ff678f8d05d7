//! The front end of devices at sockets, against our own back ends in this process: what changes while the guest runs, the
//! control queue, what is refused at the start.

mod driver;

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use driver::{Driver, NEXT, WRITABLE, activate, memory, until};
use ferro_vhost::blk::{self, BlkDevice, BlkSettings, Sector};
use ferro_vhost::net::{self, NetDevice, NetSettings};
use ferro_vhost::server::{Rendezvous, Server, ServerSettings};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::outside::BackEnd as Socket;
use vmm::state::{DeviceState, VhostUserState};
use vmm::threads::Threads;
use vmm::virtio::vhost_user::{Mac, Role, VhostUser, VhostUserError};
use vmm::virtio::{Active, Device, VERSION_1};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const NET_STATUS: u64 = 1 << 16;
const NET_CONTROL: u64 = 1 << 17;
const NET_ANNOUNCE: u64 = 1 << 21;
const NET_MQ: u64 = 1 << 22;
const EVENT_INDEX: u64 = 1 << 29;

/// Runs `front` in a thread while this one serves the back end by `turn`; what the front came to.
fn connect_to(path: PathBuf, role: Role, memory: GuestMemoryMmap) -> Result<VhostUser, VhostUserError> {
    VhostUser::connect(Socket::at(path), role, memory, &Threads::default())
}

fn beside<T: Send>(front: impl FnOnce() -> T + Send, mut turn: impl FnMut()) -> T {
    std::thread::scope(|scope| {
        let front = scope.spawn(front);
        while !front.is_finished() {
            turn();
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        front.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn socket(folder: &Path) -> (UnixListener, PathBuf) {
    let path = folder.join("device.sock");
    let _ = std::fs::remove_file(&path);
    (UnixListener::bind(&path).unwrap(), path)
}

fn serve_disk(folder: &Path, settings: BlkSettings) -> (Server, BlkDevice, PathBuf) {
    let (listener, path) = socket(folder);
    let (server, device) = blk::serve(listener, settings, ServerSettings::new("disk")).unwrap();
    (server, device, path)
}

fn serve_card(folder: &Path) -> (Server, NetDevice, PathBuf) {
    let (listener, path) = socket(folder);
    let settings = NetSettings { pairs: 4, mtu: Some(1500), config_space: true, ..NetSettings::default() };
    let (server, device) =
        net::serve(Rendezvous::Listen(listener), settings, ServerSettings::new("card")).unwrap();
    (server, device, path)
}

fn card(pairs: u16, mtu: Option<u16>) -> Role {
    Role::Net { mac: Mac(MAC), pairs, mtu }
}

fn config<const N: usize>(device: &VhostUser, at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    device.config_read(at, &mut bytes);
    bytes
}

fn read_only_disk() -> Role {
    Role::Block { queues: 1, read_only: true }
}

#[test]
fn a_disk_that_grows_is_told_to_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, mut back_end, path) = serve_disk(folder.path(), BlkSettings::new(Sector(2048), "disk"));
    let role = Role::Block { queues: 2, read_only: false };
    let device = beside(|| connect_to(path, role, memory()), || back_end.control()).unwrap();
    assert_eq!(u64::from_le_bytes(config(&device, 0)), 2048);
    assert_eq!(u16::from_le_bytes(config(&device, 34)), 2, "fewer queues than the back end has");
    back_end.resize(Sector(4096));
    until("the size is known", || u64::from_le_bytes(config(&device, 0)) == 4096);
    until("the driver may know", || device.config_change().generation() == 1);
}

#[test]
fn read_only_is_the_back_ends_to_keep() {
    let folder = tempfile::tempdir().unwrap();
    let settings = BlkSettings::new(Sector(2048), "disk");
    let (_server, mut back_end, path) = serve_disk(folder.path(), settings.clone());
    let connect = |path: &PathBuf| connect_to(path.clone(), read_only_disk(), memory());
    let error = beside(|| connect(&path), || back_end.control()).unwrap_err();
    assert!(error.to_string().contains("open the volume read-only"), "{error}");
    let settings = BlkSettings { read_only: true, ..settings };
    let (_server, mut back_end, path) = serve_disk(folder.path(), settings);
    let device = beside(|| connect(&path), || back_end.control()).unwrap();
    assert_eq!(device.features() & 1 << 5, 1 << 5);
}

/// Sends a command; the answer.
fn command(memory: &GuestMemoryMmap, driver: &mut Driver, bytes: &[u8], turn: &mut dyn FnMut()) -> u8 {
    memory.write_slice(bytes, GuestAddress(0x20_0000)).unwrap();
    memory.write_obj(0xeeu8, GuestAddress(0x20_1000)).unwrap();
    driver.put(0, (0x20_0000, bytes.len() as u32, NEXT, 1));
    driver.put(1, (0x20_1000, 1, WRITABLE, 0));
    let used = driver.used();
    driver.offer(0);
    until("the command is answered", || {
        turn();
        driver.used() == used.wrapping_add(1)
    });
    memory.read_obj(GuestAddress(0x20_1000)).unwrap()
}

#[test]
fn a_card_with_several_pairs_uses_as_many_as_its_driver_wants() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, mut back_end, path) = serve_card(folder.path());
    let memory = memory();
    let connect = || connect_to(path.clone(), card(3, Some(1400)), memory.clone());
    let mut device = beside(connect, || back_end.control()).unwrap();
    assert_eq!(device.queue_sizes().len(), 7);
    assert_eq!(config(&device, 0), [0x52, 0x54, 0, 0, 0, 1, 1, 0, 3, 0, 0x78, 5]);
    let mut rings: Vec<_> = (0..7).map(|index| Driver::new(&memory, index)).collect();
    let features = NET_MQ | NET_CONTROL | NET_STATUS | NET_ANNOUNCE | EVENT_INDEX;
    assert_eq!(device.features() & features, features);
    let all: Vec<_> = rings.iter().collect();
    beside(|| activate(&mut device, features, &all), || back_end.control());
    until("one pair is in use", || {
        back_end.control();
        back_end.sending().count() == 3 && back_end.receiving().len() == 1
    });
    let mut control = rings.pop().unwrap();
    for (bytes, answer, pairs) in [
        (&[4, 0, 3, 0][..], 0, 3),
        (&[4, 0, 4, 0], 1, 3),
        (&[4, 0, 0, 0], 1, 3),
        (&[0, 0, 1], 1, 3),
        (&[4, 0, 2, 0], 0, 2),
    ] {
        assert_eq!(command(&memory, &mut control, bytes, &mut || back_end.control()), answer, "{bytes:?}");
        until("the pairs are in use", || {
            back_end.control();
            back_end.receiving().len() == pairs
        });
    }

    // The link, and a wish for an announcement, come by the back end's notices.
    back_end.set_link(false);
    until("the link is down", || config(&device, 6) == [0]);
    back_end.set_link(true);
    back_end.ask_to_announce();
    until("an announcement is wanted", || config(&device, 6) == [3]);
    assert_eq!(command(&memory, &mut control, &[3, 0], &mut || back_end.control()), 0);
    assert_eq!(config(&device, 6), [1], "it was made");

    // A control queue that breaks the rules is lost, and the others go on.
    control.say(1000);
    until("it asks for a reset", || device.config_change().is_broken());
    assert_eq!(back_end.receiving().len(), 2);
    beside(
        || {
            device.reset();
            until("the reset is over", || device.is_quiet());
        },
        || back_end.control(),
    );
    assert!(!back_end.is_running());
}

/// A back end that has come back has what the guest had set up, and the guest is to announce itself to it.
#[test]
fn a_back_end_that_comes_back_finds_the_pairs_and_hears_of_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let (server, mut back_end, path) = serve_card(folder.path());
    let memory = memory();
    let connect = || connect_to(path.clone(), card(2, None), memory.clone());
    let mut device = beside(connect, || back_end.control()).unwrap();
    assert_eq!(config(&device, 10), [0xdc, 5], "the back end's MTU");
    let mut rings: Vec<_> = (0..5).map(|index| Driver::new(&memory, index)).collect();
    let features = NET_MQ | NET_CONTROL | NET_STATUS | NET_ANNOUNCE;
    let all: Vec<_> = rings.iter().collect();
    beside(|| activate(&mut device, features, &all), || back_end.control());
    let mut control = rings.pop().unwrap();
    assert_eq!(command(&memory, &mut control, &[4, 0, 2, 0], &mut || back_end.control()), 0);
    drop((server, back_end));
    let (_server, mut back_end, _) = serve_card(folder.path());
    until("both pairs are in use again", || {
        back_end.control();
        back_end.receiving().len() == 2
    });
    until("an announcement is wanted", || {
        back_end.control();
        config(&device, 6) == [3]
    });
}

/// A card that was saved has its pairs at once where it goes on, and its driver announces it there.
#[test]
fn a_card_that_was_saved_goes_on_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, mut back_end, path) = serve_card(folder.path());
    let memory = memory();
    let connect = |path: &PathBuf| connect_to(path.clone(), card(2, None), memory.clone());
    let mut device = beside(|| connect(&path), || back_end.control()).unwrap();
    let mut rings: Vec<_> = (0..5).map(|index| Driver::new(&memory, index)).collect();
    let features = NET_MQ | NET_CONTROL | NET_STATUS | NET_ANNOUNCE;
    let all: Vec<_> = rings.iter().collect();
    beside(|| activate(&mut device, features, &all), || back_end.control());
    let queues: Vec<_> = rings.iter().map(|ring| ring.queue.clone()).collect();
    let mut control = rings.pop().unwrap();
    assert_eq!(command(&memory, &mut control, &[4, 0, 2, 0], &mut || back_end.control()), 0);
    let state = device.save();
    let DeviceState::Net(card) = &state else { panic!("{state:?}") };
    assert_eq!((card.pairs, card.used.len(), &card.in_flight), (2, 4, &None));

    let elsewhere = tempfile::tempdir().unwrap();
    let (_server, mut back_end, path) = serve_card(elsewhere.path());
    let mut other = beside(|| connect(&path), || back_end.control()).unwrap();
    other.check(&state).unwrap();
    other.restore(&state).unwrap();
    assert_eq!(other.save(), DeviceState::Net(VhostUserState { used: Vec::new(), ..card.clone() }));
    other.activate(Active { features: features | VERSION_1, queues });
    until("both pairs are in use, and an announcement is wanted", || {
        back_end.control();
        back_end.receiving().len() == 2 && config(&other, 6) == [3]
    });
    let mut wrong = card.clone();
    wrong.pairs = 3;
    assert!(other.check(&DeviceState::Net(wrong)).is_err());
    assert!(other.check(&DeviceState::Block(card.clone())).is_err());
}

/// Requests that a back end had taken are in the state, and the next one gets them.
#[test]
fn requests_in_flight_are_saved() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, mut back_end, path) = serve_disk(folder.path(), BlkSettings::new(Sector(2048), "disk"));
    let role = Role::Block { queues: 1, read_only: false };
    let memory = memory();
    let connect = || connect_to(path.clone(), role, memory.clone());
    let mut device = beside(connect, || back_end.control()).unwrap();
    let ring = Driver::new(&memory, 0);
    beside(|| activate(&mut device, 0, &[&ring]), || back_end.control());
    let saved = |device: &VhostUser| match device.save() {
        DeviceState::Block(state) => state.in_flight,
        other => panic!("{other:?}"),
    };
    until("there is a region", || {
        back_end.control();
        saved(&device).is_some()
    });
    let state = device.save();
    device.restore(&state).unwrap();
    assert_eq!(device.save(), state, "the same bytes, in a file of our own");
}

#[test]
fn an_mtu_that_the_port_has_not_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, mut back_end, path) = serve_card(folder.path());
    let connect = || connect_to(path.clone(), card(1, Some(9000)), memory());
    let error = beside(connect, || back_end.control()).unwrap_err();
    assert!(matches!(error, VhostUserError::Mtu { mtu: 9000, .. }), "{error}");
    assert!(error.to_string().contains("refuses an MTU of 9000"));
}
