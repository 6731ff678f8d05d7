//! Round trips under load: a small packet every few milliseconds, whether or not the ones before were answered, so that a
//! long queue is seen as often as a short one.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::Context as _;

const EVERY: Duration = Duration::from_millis(10);
/// Answers that come later than this after the last packet are lost.
const PATIENCE: Duration = Duration::from_secs(2);
/// What [`send`] prints before the number of packets that nobody answered.
pub(super) const LOST: &str = "lost ";

/// Sends to an echo for so long and prints, in nanoseconds, how long each answer took; last, how many there were none to.
pub(super) fn send(address: SocketAddr, time: Duration) -> anyhow::Result<()> {
    let local = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(local).context("making a socket")?;
    socket.connect(address).with_context(|| format!("connecting to {address}"))?;
    socket.set_read_timeout(Some(EVERY))?;
    let began = Instant::now();
    let (mut sent, mut answered, mut next) = (0_u64, 0_u64, Duration::ZERO);
    let mut bytes = [0_u8; 64];
    loop {
        let passed = began.elapsed();
        if passed >= time + PATIENCE || (passed >= time && answered == sent) {
            break;
        }
        if passed >= next && passed < time {
            bytes[..8].copy_from_slice(&nanos(passed).to_be_bytes());
            // Refused while nobody listens yet: lost like any other.
            let _refused = socket.send(&bytes);
            (sent, next) = (sent + 1, next + EVERY);
        }
        let wait = next.saturating_sub(began.elapsed()).clamp(Duration::from_micros(100), EVERY);
        socket.set_read_timeout(Some(wait))?;
        let mut answer = [0_u8; 64];
        if socket.recv(&mut answer).is_ok_and(|count| count == answer.len()) {
            let then = u64::from_be_bytes(std::array::from_fn(|at| answer[at]));
            println!("{}", nanos(began.elapsed()).saturating_sub(then));
            answered += 1;
        }
    }
    println!("{LOST}{}", sent.saturating_sub(answered));
    Ok(())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
