//! The frames that wait to be sealed for one connection, in their order, and how many of them are sealed at once.
//!
//! All that waits in as few TLS records as hold it costs least. But sealing is the one thing here that takes time by the byte, and
//! the loop does nothing else meanwhile: where a processor seals 6 MB/s (one without AES instructions, one that is emulated), a
//! queue sealed whole holds the loop for seconds, its peers take it for dead, and both begin again with the same queue. So a
//! [`Outgoing::batch`] is bounded, and the next one is taken when the socket has taken the last.
//!
//! What it must not know: TLS, sockets.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::Bytes;

/// Bytes after which a batch ends, with the frame that reaches them: 0.2 ms where AES is in the processor.
pub(super) const BATCH_BYTES: usize = 1 << 20;

/// Frames that wait.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    /// Heads and headers, one behind the other.
    heads: Vec<u8>,
    /// How many bytes of heads have been taken before those.
    taken: u64,
    /// Payloads, each with its place among all heads there ever were.
    payloads: VecDeque<(u64, Bytes)>,
    payload_bytes: usize,
    /// The last batch's memory, for the next one.
    spare: Batch,
}

/// Frames from the front of what waits.
#[derive(Debug, Default)]
pub(super) struct Batch {
    heads: Vec<u8>,
    payloads: Vec<(usize, Bytes)>,
}

impl Outgoing {
    /// Where the head and the header of the next frame are appended; [`Self::payload`] ends it.
    pub(super) fn heads(&mut self) -> &mut Vec<u8> {
        &mut self.heads
    }

    /// The payload of the frame whose head was just appended.
    pub(super) fn payload(&mut self, payload: &Bytes) {
        if !payload.is_empty() {
            self.payloads.push_back((self.taken + self.heads.len() as u64, payload.clone()));
            self.payload_bytes += payload.len();
        }
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.heads.len() + self.payload_bytes
    }

    /// Takes whole frames from the front: all, or so many that there are [`BATCH_BYTES`] of payload.
    pub(super) fn batch(&mut self) -> Batch {
        let Batch { mut heads, mut payloads } = std::mem::take(&mut self.spare);
        let mut bytes = 0;
        while bytes < BATCH_BYTES
            && let Some((place, payload)) = self.payloads.pop_front()
        {
            bytes += payload.len();
            payloads.push(((place - self.taken) as usize, payload));
        }
        self.payload_bytes -= bytes;
        match (self.payloads.is_empty(), payloads.last()) {
            (false, Some((last, _))) => heads.extend(self.heads.drain(..*last)),
            _ => std::mem::swap(&mut heads, &mut self.heads),
        }
        self.taken += heads.len() as u64;
        Batch { heads, payloads }
    }

    /// The batch has left: what it held is let go, and its memory is used again.
    pub(super) fn done(&mut self, mut batch: Batch) {
        batch.heads.clear();
        batch.payloads.clear();
        self.spare = batch;
    }
}

impl Batch {
    /// Its bytes, in order.
    pub(super) fn pieces(&self) -> Vec<IoSlice<'_>> {
        let mut pieces = Vec::with_capacity(2 * self.payloads.len() + 1);
        let mut from = 0;
        for (to, payload) in &self.payloads {
            pieces.push(IoSlice::new(&self.heads[from..*to]));
            pieces.push(IoSlice::new(payload));
            from = *to;
        }
        pieces.push(IoSlice::new(&self.heads[from..]));
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(batch: &Batch) -> Vec<u8> {
        batch.pieces().iter().flat_map(|piece| piece.to_vec()).collect()
    }

    #[test]
    fn frames_leave_in_order_and_in_bounded_batches() {
        let (mut out, mut all) = (Outgoing::default(), Vec::<u8>::new());
        let mut frame = |out: &mut Outgoing, n: u8, payload: usize| {
            let (head, payload) = (vec![n; usize::from(n) % 7 + 1], Bytes::from(vec![!n; payload]));
            out.heads().extend(&head);
            out.payload(&payload);
            all.extend(head.iter().chain(&payload));
        };
        for n in 0..40 {
            frame(&mut out, n, [0, 4096, 300 << 10, 1 << 20][usize::from(n) % 4]);
        }
        let mut sent = Vec::new();
        let mut last = 0;
        while out.bytes() > 0 {
            let before = out.bytes();
            let taken = out.batch();
            let batch = bytes_of(&taken);
            if last % 2 == 0 {
                out.done(taken);
            }
            assert_eq!(before - out.bytes(), batch.len());
            assert!(batch.len() < 2 * BATCH_BYTES + (300 << 10), "{}", batch.len());
            sent.extend(batch);
            // More comes while some of it has left.
            if last < 20 {
                frame(&mut out, 40 + last, 5000);
                last += 1;
            }
        }
        assert!(last > 5, "it left in {last} batches");
        assert_eq!(sent.len(), all.len());
        assert!(sent == all);
        assert!(bytes_of(&out.batch()).is_empty());
    }

    #[test]
    fn heads_alone_are_one_batch() {
        let mut out = Outgoing::default();
        for n in 0..1000 {
            out.heads().extend([n as u8; 40]);
            out.payload(&Bytes::new());
        }
        assert_eq!(bytes_of(&out.batch()).len(), 40_000);
        assert_eq!(out.bytes(), 0);
    }
}
