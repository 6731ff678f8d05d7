//! The other two daemons of this host, asked over their local APIs: `vsand` for volumes, `vswitchd` for ports.
//!
//! What it must not know: what a VM needs them for, and what becomes of it when they say no.

use std::path::Path;
use std::time::Duration;

use axum::http::Method;
use ferro_protocol::api::switch::spec::PortSpec;
use ferro_protocol::api::switch::{Attachment, Change, PortInfo, Transacted, Transaction};
use ferro_protocol::api::{ApiError, ErrorCode, OpenVolumeRequest, OpenedVolume, TopSample, VolumeInfo};
use ferro_protocol::ids::VolumeName;
use ferro_protocol::net::NetName;
use ferro_transport::client::LocalClient;

/// How long either may take. Closing a volume waits for its requests.
const ANSWER_MAX: Duration = Duration::from_secs(20);
/// How long a look may take that others wait for.
const LOOK_MAX: Duration = Duration::from_secs(3);
/// A port that was just made is in the directory; the switch of this host follows that.
const PORT_MAX: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(50);

type Result<T> = std::result::Result<T, ApiError>;

/// What was not there to be given back, as these codes say, is as good.
fn given_back<T>(done: Result<T>, not_there: [ErrorCode; 2]) -> Result<()> {
    match done {
        Err(error) if !not_there.contains(&error.code) => Err(error),
        _ => Ok(()),
    }
}

/// This host's `vsand`.
#[derive(Debug)]
pub struct Vsand(LocalClient);

impl Vsand {
    /// The one at this socket.
    pub fn new(socket: &Path) -> Self {
        Self(LocalClient::new(socket))
    }

    /// How a volume is.
    pub async fn volume(&self, name: &VolumeName) -> Result<VolumeInfo> {
        let got = self.0.get(&format!("/v1/volumes/{name}"), LOOK_MAX).await;
        got.map_err(|error| error.into_api(&format!("looking at volume {name}")))
    }

    /// Takes a volume's lock and serves it here.
    pub async fn open(&self, name: &VolumeName, read_only: bool) -> Result<OpenedVolume> {
        let (path, body) = (format!("/v1/volumes/{name}/open"), OpenVolumeRequest { read_only });
        let opened = self.0.send(Method::POST, &path, &body, ANSWER_MAX).await;
        opened.map_err(|error| error.into_api(&format!("opening volume {name}")))
    }

    /// Gives a volume's lock back. One that is not open here, or is gone, is as good.
    pub async fn close(&self, name: &VolumeName) -> Result<()> {
        let path = format!("/v1/volumes/{name}/close");
        let closed = self.0.ask_within(Method::POST, &path, None, ANSWER_MAX).await;
        given_back(
            closed.map_err(|error| error.into_api(&format!("closing volume {name}"))),
            [ErrorCode::VolumeNotOpen, ErrorCode::VolumeNotFound],
        )
    }

    /// What volumes have done.
    pub async fn top(&self) -> Result<TopSample> {
        self.0
            .get("/v1/top", LOOK_MAX)
            .await
            .map_err(|error| error.into_api("asking for the volumes' counters"))
    }
}

/// This host's `vswitchd`.
#[derive(Debug)]
pub struct Vswitchd(LocalClient);

impl Vswitchd {
    /// The one at this socket.
    pub fn new(socket: &Path) -> Self {
        Self(LocalClient::new(socket))
    }

    /// How a port is; none if there is none.
    pub async fn port(&self, name: &NetName) -> Result<Option<PortInfo>> {
        let got = self.0.get(&format!("/v1/ports/{name}"), LOOK_MAX).await;
        match got.map_err(|error| error.into_api(&format!("looking at switch port {name}"))) {
            Ok(port) => Ok(Some(port)),
            Err(error) if error.code == ErrorCode::PortNotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Makes a port.
    pub async fn make(&self, port: PortSpec) -> Result<()> {
        let what = format!("making switch port {} in port group {}", port.name, port.group);
        self.change(Change::AddPort(port), &what).await
    }

    /// Whether such a port could be made now. Nothing is changed.
    pub async fn could_make(&self, port: PortSpec) -> Result<()> {
        let what = format!("looking whether port group {} can have another port", port.group);
        self.transact(Change::AddPort(port), true, LOOK_MAX, &what).await
    }

    /// Takes a port away. One that is gone is as good.
    pub async fn remove(&self, name: &NetName) -> Result<()> {
        let what = format!("removing switch port {name}");
        match self.change(Change::RemovePort(name.to_string()), &what).await {
            Err(error) if error.code == ErrorCode::PortNotFound => Ok(()),
            other => other,
        }
    }

    async fn change(&self, change: Change, what: &str) -> Result<()> {
        self.transact(change, false, ANSWER_MAX, what).await
    }

    async fn transact(&self, change: Change, dry_run: bool, within: Duration, what: &str) -> Result<()> {
        let transaction = Transaction { basis: None, changes: vec![change], dry_run, confirm_within_s: None };
        let done = self.0.send(Method::POST, "/v1/transactions", &transaction, within).await;
        done.map(|_: Transacted| ()).map_err(|error| error.into_api(what))
    }

    /// Attaches a port to a socket of this host that a VM connects to, and says which.
    pub async fn attach(&self, name: &NetName, queue_pairs: u16) -> Result<(PortInfo, String)> {
        let path = format!("/v1/ports/{name}/attachment");
        let body = Attachment::VhostUser { socket: None, connect: false, queue_pairs };
        let began = tokio::time::Instant::now();
        let what = format!("attaching switch port {name}");
        let port: PortInfo = loop {
            match self.0.send(Method::PUT, &path, &body, ANSWER_MAX).await.map_err(|e| e.into_api(&what)) {
                Err(error) if error.code == ErrorCode::PortNotFound && began.elapsed() < PORT_MAX => {
                    tokio::time::sleep(AGAIN).await;
                }
                answer => break answer?,
            }
        };
        match &port.attachment {
            Some(Attachment::VhostUser { socket: Some(socket), .. }) => {
                let socket = socket.clone();
                Ok((port, socket))
            }
            _ => Err(ApiError::new(
                ErrorCode::Internal,
                format!("{what}: vswitchd does not say on which socket"),
                "bring vswitchd and hypervisord to the same version",
            )),
        }
    }

    /// Takes a port off this host. One that is not attached, or gone, is as good.
    pub async fn detach(&self, name: &NetName) -> Result<()> {
        let path = format!("/v1/ports/{name}/attachment");
        let gone = self.0.ask_within(Method::DELETE, &path, None, ANSWER_MAX).await;
        given_back(
            gone.map_err(|error| error.into_api(&format!("detaching switch port {name}"))),
            [ErrorCode::PortNotAttached, ErrorCode::PortNotFound],
        )
    }
}
