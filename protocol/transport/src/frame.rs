//! A message behind its length: four bytes, little-endian, then as many bytes of postcard. For the join exchange.

use std::io;

use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

/// The longest message.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Sends one message in one write. It may hold secrets: the buffer is wiped.
pub(crate) async fn send<S: AsyncWrite + Unpin, T: Serialize>(stream: &mut S, message: &T) -> io::Result<()> {
    let body = Zeroizing::new(postcard::to_stdvec(message).map_err(io::Error::other)?);
    if body.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is too long to be sent"));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(4 + body.len()));
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&body);
    stream.write_all(&bytes).await?;
    stream.flush().await
}

/// Receives one message, undecoded.
pub(crate) async fn receive<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut len = [0; 4];
    stream.read_exact(&mut len).await?;
    let len = u32::from_le_bytes(len) as usize;
    if len > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the peer announces a message that is too long",
        ));
    }
    let mut body = Zeroizing::new(vec![0; len]);
    stream.read_exact(&mut body).await?;
    Ok(body)
}
