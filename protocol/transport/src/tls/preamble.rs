//! The eight bytes that each side sends first on a new connection, so that two releases that do not understand each
//! other say so instead of misreading.
//!
//! ```text
//!   0  version of what follows, 1
//!   1  channel: 1 control, 2 data, 3 join
//!   2  "FERRO"
//!   7  0
//! ```

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Channel;

const VERSION: u8 = 1;
const MAGIC: [u8; 6] = *b"FERRO\0";

/// Why the other side's first bytes were not accepted.
#[derive(Debug, thiserror::Error)]
pub enum PreambleError {
    /// Another release.
    #[error(
        "the peer speaks protocol version {theirs}, this host version {VERSION}; upgrade the older of the two"
    )]
    Version {
        /// The version that the peer sent.
        theirs: u8,
    },
    /// Something else altogether, or another channel than was agreed on.
    #[error(
        "the peer does not begin as a Ferrosphere host does; check that the address is a daemon's peer port"
    )]
    Foreign,
    /// The connection ended first.
    #[error("the connection ended before the peer said anything: {0}")]
    Io(#[from] io::Error),
}

/// Sends ours and checks theirs.
pub(super) async fn exchange<S>(stream: &mut S, channel: Channel) -> Result<(), PreambleError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let ours = bytes(channel);
    stream.write_all(&ours).await?;
    stream.flush().await?;
    let mut theirs = [0; 8];
    stream.read_exact(&mut theirs).await?;
    check(theirs, channel)
}

fn bytes(channel: Channel) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[0] = VERSION;
    bytes[1] = channel.wire();
    bytes[2..].copy_from_slice(&MAGIC);
    bytes
}

fn check(theirs: [u8; 8], channel: Channel) -> Result<(), PreambleError> {
    if theirs[2..] != MAGIC {
        return Err(PreambleError::Foreign);
    }
    if theirs[0] != VERSION {
        return Err(PreambleError::Version { theirs: theirs[0] });
    }
    if theirs != bytes(channel) {
        return Err(PreambleError::Foreign);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn both_sides_notice_another_version() {
        let (mut new, mut old) = tokio::io::duplex(64);
        let peer = tokio::spawn(async move {
            old.write_all(b"\x02\x01FERRO\0").await.unwrap();
            let mut theirs = [0; 8];
            old.read_exact(&mut theirs).await.unwrap();
            theirs
        });
        let error = exchange(&mut new, Channel::Control).await.unwrap_err();
        assert!(matches!(error, PreambleError::Version { theirs: 2 }), "{error}");
        assert_eq!(peer.await.unwrap(), *b"\x01\x01FERRO\0");
    }

    #[test]
    fn another_channel_or_another_protocol_is_foreign() {
        assert!(check(*b"\x01\x02FERRO\0", Channel::Data).is_ok());
        assert!(matches!(check(*b"\x01\x02FERRO\0", Channel::Control), Err(PreambleError::Foreign)));
        assert!(matches!(check(*b"GET / HT", Channel::Control), Err(PreambleError::Foreign)));
        assert!(matches!(check(*b"\x01\x02FERRO\x01", Channel::Data), Err(PreambleError::Foreign)));
    }
}
