//! A data stream taken apart, for an event loop that drives rustls itself.

use std::io;
use std::net::TcpStream;

use rustls::Connection;

use super::PeerStream;

/// A connection's socket and its TLS state, handed over without losing a byte.
///
/// Before it waits for the socket, the new owner must look at what has arrived already: plaintext may be ready in
/// `tls.reader()`, and `tls.wants_write()` may hold. Both are left where rustls keeps them.
#[derive(Debug)]
pub struct RawTls {
    /// The socket: non-blocking, no Nagle.
    pub socket: TcpStream,
    /// The TLS state: established, no tickets or key updates of ours outstanding.
    pub tls: Connection,
}

impl RawTls {
    /// Takes the stream apart. To be called inside the runtime that the stream belongs to.
    pub fn take_apart(stream: PeerStream) -> io::Result<Self> {
        let (socket, tls) = match stream {
            PeerStream::Client(stream) => {
                let (socket, tls) = stream.into_inner();
                (socket, Connection::Client(tls))
            }
            PeerStream::Server(stream) => {
                let (socket, tls) = stream.into_inner();
                (socket, Connection::Server(tls))
            }
        };
        let socket = socket.into_std()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, tls })
    }
}
