//! A data stream handed to a synchronous loop: not a byte may be lost on the way.

mod common;

use std::io::{self, Read, Write};

use common::{Cluster, PATIENCE, accept, cluster, host};
use ferro_transport::tls::{Channel, RawTls, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Echoes `total` bytes with rustls alone, as an event loop would, but waiting by blocking the socket.
fn echo(mut raw: RawTls, total: usize) -> io::Result<()> {
    raw.socket.set_nonblocking(false)?;
    let mut seen = 0;
    let mut buffer = vec![0; 16 << 10];
    while seen < total {
        // First what is there already: that is the promise under test.
        match raw.tls.reader().read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                raw.tls.writer().write_all(&buffer[..n])?;
                seen += n;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                assert_ne!(raw.tls.read_tls(&mut raw.socket)?, 0, "the peer left after {seen} bytes");
                raw.tls.process_new_packets().map_err(io::Error::other)?;
            }
            Err(error) => return Err(error),
        }
        while raw.tls.wants_write() {
            raw.tls.write_tls(&mut raw.socket)?;
        }
    }
    Ok(())
}

async fn hand_over(accepting_side: bool) {
    const TOTAL: usize = 3 << 20;
    let cluster = Cluster::new(cluster(1));
    let mut server = cluster.endpoint(host(1)).await;
    let client = cluster.handle(host(2));
    let connecting = connect(server.local_addr(), Some(host(1)), Channel::Data, &client);
    let (connected, incoming) = tokio::join!(connecting, accept(&mut server));
    let (mut keep, mut give) = (connected.unwrap().stream, incoming.stream);
    if !accepting_side {
        std::mem::swap(&mut keep, &mut give);
    }
    let sent: Vec<u8> = (0..TOTAL).map(|i| (i * 7 % 251) as u8).collect();
    // Some bytes are there before the hand-over, and one has been read, so that the rest of its record is plaintext
    // inside rustls.
    keep.write_all(&sent[..5000]).await.unwrap();
    keep.flush().await.unwrap();
    let mut first = [0; 1];
    give.read_exact(&mut first).await.unwrap();
    assert_eq!(first[0], sent[0]);
    let raw = RawTls::take_apart(give).unwrap();
    let echoing = std::thread::spawn(move || echo(raw, TOTAL - 1));

    let (mut input, mut output) = tokio::io::split(keep);
    let rest = sent[5000..].to_vec();
    let sending = tokio::spawn(async move {
        output.write_all(&rest).await.unwrap();
        output.flush().await.unwrap();
    });
    let mut heard = vec![0; TOTAL - 1];
    tokio::time::timeout(PATIENCE, input.read_exact(&mut heard)).await.expect("bytes were lost").unwrap();
    assert!(heard == sent[1..]);
    sending.await.unwrap();
    echoing.join().unwrap().unwrap();
}

#[tokio::test]
async fn the_accepting_side_can_be_taken_apart() {
    hand_over(true).await;
}

#[tokio::test]
async fn the_connecting_side_can_be_taken_apart() {
    hand_over(false).await;
}
