//! Bare quinn: DATAGRAM frames from one task to another.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use ferro_transport::tls::quic;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{
    AsyncUdpSocket, ClientConfig, Endpoint, EndpointConfig, Runtime as _, ServerConfig, TokioRuntime,
    TransportConfig, UdpPoller,
};

use super::{Case, Figure, Hosts, Shared, Size, both, thread_ns};
use crate::process::Stop;

const PROTOCOL: &[u8] = b"ferro-bench/1";
/// The kernel's buffers, as ours.
const SOCKET_BYTES: usize = 8 << 20;

/// A socket that keeps a transmit under 64 KiB: quinn sends up to ten datagrams in one, and the kernel refuses longer ones.
#[derive(Debug)]
struct Short {
    inner: Arc<dyn AsyncUdpSocket>,
    segments: usize,
}

impl AsyncUdpSocket for Short {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.inner).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.inner.try_send(transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments().min(self.segments)
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

fn transport(case: &Case) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .initial_mtu(case.size.payload())
        .mtu_discovery_config(None)
        .datagram_receive_buffer_size(Some(8 << 20))
        .datagram_send_buffer_size(2 << 20)
        .congestion_controller_factory(case.congestion.factory());
    Arc::new(config)
}

/// To be called where tokio runs.
fn endpoint(size: Size, server: Option<ServerConfig>) -> anyhow::Result<Endpoint> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(size.payload())?;
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").context("opening a socket")?;
    let _less = rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BYTES);
    let _less = rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BYTES);
    let inner = TokioRuntime.wrap_udp_socket(socket)?;
    let segments = 65_000 / usize::from(size.payload());
    let socket = Arc::new(Short { inner, segments });
    Ok(Endpoint::new_with_abstract_socket(config, server, socket, Arc::new(TokioRuntime))?)
}

pub(super) fn measure(case: &Case, hosts: &Hosts, time: Duration, stop: &Stop) -> anyhow::Result<Figure> {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (here, there) = (runtime()?, runtime()?);
    let server = QuicServerConfig::try_from(quic::server(&hosts.receiver, PROTOCOL)?)?;
    let mut server = ServerConfig::with_crypto(Arc::new(server));
    server.transport_config(transport(case));
    let listening = {
        let _inside = there.enter();
        endpoint(case.size, Some(server))?
    };
    let address = listening.local_addr()?;
    let name = quic::server_name(hosts.receiver.host());
    let client = QuicClientConfig::try_from(quic::client(&hosts.sender, PROTOCOL)?)?;
    let mut client = ClientConfig::new(Arc::new(client));
    client.transport_config(transport(case));
    let datagram = Bytes::from(vec![7; case.size.datagram()]);
    let size = case.size;
    let send = move |shared: &Shared| {
        here.block_on(async {
            let endpoint = endpoint(size, None)?;
            let connection = endpoint.connect_with(client, address, &name)?.await?;
            while !shared.stopped() {
                for _ in 0..64 {
                    connection.send_datagram_wait(datagram.clone()).await?;
                }
                shared.sent.fetch_add(64, Ordering::Relaxed);
                shared.sender_ns.store(thread_ns(), Ordering::Relaxed);
            }
            connection.close(0_u32.into(), b"");
            endpoint.wait_idle().await;
            Ok(())
        })
    };
    let receive = move |shared: &Shared| {
        there.block_on(async {
            let connection = listening.accept().await.context("no connection")?.await?;
            let mut count = 0_u32;
            // Until the other side closes.
            while let Ok(datagram) = connection.read_datagram().await {
                shared.received.fetch_add(1, Ordering::Relaxed);
                shared.received_bytes.fetch_add(datagram.len() as u64, Ordering::Relaxed);
                count += 1;
                if count.is_multiple_of(64) {
                    shared.receiver_ns.store(thread_ns(), Ordering::Relaxed);
                }
            }
            Ok(())
        })
    };
    both(&Arc::new(Shared::default()), time, stop, send, receive)
}
