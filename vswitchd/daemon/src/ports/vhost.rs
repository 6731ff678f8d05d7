//! A guest's network card behind a vhost-user socket.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use ferro_protocol::net::{Mac, NetName};
use ferro_vhost::net::{
    NetDevice, NetSettings, QueuePair, RxRefusal, VirtioNetHdr, feature, gso_type, header_flag, serve,
};
use ferro_vhost::server::{Rendezvous, Server, ServerSettings};
use vswitch_core::frame::{Csum, Gso, GsoKind, Offload};

use super::batch::Batch;
use super::{OpenError, Refusal, head_len};

/// Who listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum VhostSocket {
    /// The switch, on this path; the VMM connects.
    Listen(PathBuf),
    /// The VMM, on this path; the switch connects, and again when it has gone.
    Connect(PathBuf),
}

impl VhostSocket {
    /// The path.
    pub fn path(&self) -> &PathBuf {
        match self {
            Self::Listen(path) | Self::Connect(path) => path,
        }
    }
}

/// What to offer to a guest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VhostSettings {
    /// The socket.
    pub socket: VhostSocket,
    /// Pairs of queues, 1 to 16.
    pub pairs: u16,
    /// The MTU of the port's policy.
    pub mtu: u16,
    /// The address of the port.
    pub mac: Mac,
    /// Offer the device's own configuration space: our own VMM takes it, QEMU and Cloud Hypervisor have their own.
    pub config_space: bool,
    /// Access to a socket that the switch makes.
    pub mode: u32,
}

impl VhostSettings {
    /// With sixteen pairs and access for owner and group.
    pub fn new(socket: VhostSocket, mac: Mac, mtu: u16) -> Self {
        Self { socket, pairs: 16, mtu, mac, config_space: false, mode: 0o660 }
    }
}

/// The port's socket, and the rings of whoever is connected to it.
#[derive(Debug)]
pub struct VhostPort {
    pub(crate) device: NetDevice,
    /// The control thread; dropping it closes the connection.
    server: Server,
    socket: VhostSocket,
    /// Which pair is asked first next time.
    turn: usize,
}

impl VhostPort {
    /// Serves the socket. A socket file of this path that nobody listens on is replaced.
    pub fn open(name: &NetName, settings: &VhostSettings) -> Result<Self, OpenError> {
        let path = settings.socket.path().clone();
        let rendezvous = match &settings.socket {
            VhostSocket::Listen(path) => {
                let what = format!("socket {}", path.display());
                if std::os::unix::net::UnixStream::connect(path).is_ok() {
                    let error = std::io::Error::from(std::io::ErrorKind::AddrInUse);
                    return Err(OpenError::System { what, error });
                }
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(OpenError::System { what, error });
                    }
                    _ => {}
                }
                let listener = UnixListener::bind(path).map_err(OpenError::system(what.clone()))?;
                let mode = std::fs::Permissions::from_mode(settings.mode);
                std::fs::set_permissions(path, mode).map_err(OpenError::system(what))?;
                Rendezvous::Listen(listener)
            }
            VhostSocket::Connect(path) => Rendezvous::Connect(path.clone()),
        };
        let net = NetSettings {
            features: feature::ALL,
            pairs: settings.pairs,
            mtu: Some(settings.mtu),
            mac: Some(settings.mac),
            config_space: settings.config_space,
        };
        let (server, device) = serve(rendezvous, net, ServerSettings::new(name.as_str()))
            .map_err(|error| OpenError::Vhost(path.display().to_string(), error))?;
        Ok(Self { device, server, socket: settings.socket.clone(), turn: 0 })
    }

    /// The socket.
    pub fn socket(&self) -> &VhostSocket {
        &self.socket
    }

    /// Whether its control thread still runs.
    pub fn is_served(&self) -> bool {
        self.server.is_running()
    }

    /// Takes frames from the guest until the batch is full; whether there are more. The pairs take turns, and none gets more
    /// than its share while the others have frames.
    pub(crate) fn take(&mut self, batch: &mut Batch, drops: &mut crate::data::snapshot::DeviceDrops) -> bool {
        let pairs = self.device.settings().pairs.into();
        let running = self.device.sending().count().max(1);
        let share = batch.room_frames().div_ceil(running);
        let mut more = false;
        let first = self.turn;
        for step in 0..pairs {
            let pair = (first + step) % pairs;
            let budget = share.min(batch.room_frames());
            let outcome = self.device.poll_tx(QueuePair(pair as u16), budget, batch);
            more |= outcome.more;
            drops.bad_length += outcome.bad_length as u64;
            drops.bad_header += outcome.bad_header as u64;
            drops.disabled += outcome.disabled as u64;
            if outcome.chains() > 0 {
                self.turn = (pair + 1) % pairs;
            }
        }
        drops.bad_header += batch.bad_header;
        more
    }

    /// Whether the guest takes frames on more than one pair: then the flow matters.
    #[inline]
    pub(crate) fn wants_flow(&self) -> bool {
        self.device.receiving().len() > 1
    }

    /// Gives the guest a frame.
    #[inline]
    pub(crate) fn give(&mut self, flow: u32, offload: Offload, pieces: &[&[u8]]) -> Result<(), Refusal> {
        let pair = self.device.receiver_of(flow).ok_or(Refusal::NotReady)?;
        self.device.push_rx(pair, header_of(offload, pieces), pieces).map_err(|refusal| match refusal {
            RxRefusal::NotReady => Refusal::NotReady,
            RxRefusal::NoRoom => Refusal::NoRoom,
            RxRefusal::TooLong => Refusal::TooLong,
            RxRefusal::Offload(_) => Refusal::Offload,
        })
    }

    /// Whether the guest makes checksums by itself.
    pub(crate) fn takes_csum(&self) -> bool {
        self.device.features() & feature::GUEST_CSUM != 0
    }
}

impl Drop for VhostPort {
    /// The socket's file goes at once. Its thread ends a moment later, and must not be waited for by who it may wait for.
    fn drop(&mut self) {
        if let VhostSocket::Listen(path) = &self.socket
            && let Err(error) = std::fs::remove_file(path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(socket = %path.display(), %error, "the socket's file can't be removed");
        }
    }
}

/// What a guest's header says is still to be done; `None` if no frame can have it.
#[inline]
pub(crate) fn offload_of(header: VirtioNetHdr) -> Option<Offload> {
    let csum = if header.flags & header_flag::NEEDS_CSUM != 0 {
        Csum::Partial { start: header.csum_start, offset: header.csum_offset }
    } else if header.flags & header_flag::DATA_VALID != 0 {
        Csum::Valid
    } else {
        Csum::None
    };
    let kind = match header.gso_type & !gso_type::ECN {
        gso_type::NONE => return Some(Offload { csum, gso: None }),
        gso_type::TCPV4 => GsoKind::TcpV4,
        gso_type::TCPV6 => GsoKind::TcpV6,
        _ => return None,
    };
    let ecn = header.gso_type & gso_type::ECN != 0;
    Some(Offload { csum, gso: Some(Gso { kind, ecn, size: header.gso_size }) })
}

/// The header of a frame for a guest. The length of a super-frame's headers is a hint that some drivers use.
#[inline]
fn header_of(offload: Offload, pieces: &[&[u8]]) -> VirtioNetHdr {
    if offload == Offload::NONE {
        return VirtioNetHdr::default();
    }
    VirtioNetHdr::parse(offload.to_virtio(head_len(offload, pieces), 1))
}
