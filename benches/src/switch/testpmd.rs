//! DPDK's `dpdk-testpmd` as the load: one process with two virtio-user ports that sends back out of each port what came in
//! by the other, so that a fixed number of frames goes round through whatever switch is between the ports. The same loop
//! drives us and Open vSwitch.

use std::time::{Duration, Instant};

use anyhow::ensure;
use ferro_vhost::frontend::Testpmd;

use crate::process::Stop;

/// What its ports are told: rings as long as may be.
pub(super) const ARGUMENTS: [&str; 3] = ["--no-lsc-interrupt", "--rxd=1024", "--txd=1024"];
/// What its devices are told.
pub(super) const DEVICE_ARGUMENT: &str = "queue_size=1024";

/// One loop.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Bytes of a frame, without its checksum.
    pub(super) frame_bytes: u16,
    /// Frames that go round in each direction.
    pub(super) in_flight: u16,
}

impl Load {
    /// Frames a second through the switch, both directions together, over `time` after a warm-up.
    pub(super) fn rate(self, testpmd: &mut Testpmd, time: Duration, stop: &Stop) -> anyhow::Result<f64> {
        testpmd.say(&format!("set txpkts {}", self.frame_bytes))?;
        testpmd.say(&format!("set burst {}", self.in_flight))?;
        testpmd.say("start tx_first")?;
        stop.sleep(Duration::from_millis(700))?;
        let (before, began) = (received(testpmd)?, Instant::now());
        stop.sleep(time)?;
        let (after, took) = (received(testpmd)?, began.elapsed());
        testpmd.say("stop")?;
        testpmd.expect("Done.")?;
        ensure!(after > before, "no frame came through the switch");
        Ok((after - before) as f64 / took.as_secs_f64())
    }
}

fn received(testpmd: &mut Testpmd) -> anyhow::Result<u64> {
    Ok(testpmd.counters()?.iter().map(|port| port.received).sum())
}
