//! How much may be in flight, and whether anything arrives.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn_proto::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn_proto::{Connection, RttEstimator};

use super::settings::Congestion;

/// A window that stays as it is.
#[derive(Clone, Debug)]
struct Fixed {
    window: u64,
}

impl Controller for Fixed {
    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, _persistent: bool, _lost_bytes: u64) {}

    fn on_mtu_update(&mut self, _new_mtu: u16) {}

    fn window(&self) -> u64 {
        self.window
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.window
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl ControllerFactory for Fixed {
    fn build(self: Arc<Self>, _now: Instant, _current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Self::clone(&self))
    }
}

impl Congestion {
    /// As QUIC wants it; CUBIC without its bound. For the benchmark of bare QUIC, too.
    #[must_use]
    pub fn factory(self) -> Arc<dyn ControllerFactory + Send + Sync> {
        match self {
            Self::Cubic { .. } => Arc::new(CubicConfig::default()),
            Self::Managed { window } => Arc::new(Fixed { window: u64::from(window) }),
        }
    }
}

/// Makes controllers that are bounded, and count what the other side acknowledges.
pub(super) struct Watch {
    inner: Arc<dyn ControllerFactory + Send + Sync>,
    window_max: u64,
}

impl Watch {
    pub(super) fn new(congestion: Congestion) -> Self {
        Self { inner: congestion.factory(), window_max: u64::from(congestion.window()) }
    }
}

impl ControllerFactory for Watch {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = Arc::clone(&self.inner).build(now, current_mtu);
        Box::new(Watched { inner, window_max: self.window_max, acked: 0 })
    }
}

/// A controller, and how many packets were acknowledged for the first time. That is what shows that a path works both ways:
/// QUIC repeats old acknowledgements in whatever it sends.
struct Watched {
    inner: Box<dyn Controller>,
    window_max: u64,
    acked: u64,
}

/// How many of a connection's packets the other side has acknowledged.
pub(super) fn acknowledged(connection: &Connection) -> u64 {
    let copy = connection.congestion_state().clone_box().into_any();
    copy.downcast::<Watched>().map_or(0, |watched| watched.acked)
}

impl Controller for Watched {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.acked += 1;
        // Who is bounded is not limited by the path. If it went on growing in secret, a loss would not make it less than the bound.
        let limited = app_limited || self.inner.window() >= self.window_max;
        self.inner.on_ack(now, sent, bytes, limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest: Option<u64>) {
        self.inner.on_end_acks(now, in_flight, app_limited, largest);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, persistent: bool, lost_bytes: u64) {
        self.inner.on_congestion_event(now, sent, persistent, lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        self.inner.window().min(self.window_max)
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { inner: self.inner.clone_box(), ..*self })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window().min(self.window_max)
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
