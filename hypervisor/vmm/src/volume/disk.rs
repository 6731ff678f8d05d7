//! A disk as `boot-image` wants it, with the pieces that were read lately: file systems are read block by block, and each
//! request to a back end costs some hundred microseconds.

use std::cell::RefCell;
use std::time::Duration;

use boot_image::{BoxedError, ReadAt};

use crate::outside::BackEnd;
use crate::virtio::vhost_user::reader::{BlockReader, READ_BYTES_MAX, ReadError};

/// Pieces that are kept: 2 MiB.
const PIECES_MAX: usize = 8;
const PIECE_BYTES: u64 = READ_BYTES_MAX as u64;

/// A part of the disk.
struct Piece {
    number: u64,
    data: Vec<u8>,
}

struct State {
    reader: BlockReader,
    /// The latest last.
    pieces: Vec<Piece>,
    /// The first error; nothing is read after it.
    failed: Option<ReadError>,
}

/// A disk that is read only.
pub(super) struct Disk {
    bytes: u64,
    state: RefCell<State>,
}

/// Only says that there is an error: [`Disk::failure`] has it.
#[derive(Debug, thiserror::Error)]
#[error("the disk could not be read")]
struct SeeFailure;

impl Disk {
    pub(super) fn open(back_end: BackEnd, patience: Duration) -> Result<Self, ReadError> {
        let reader = BlockReader::open(back_end, patience)?;
        let state = State { reader, pieces: Vec::new(), failed: None };
        Ok(Self { bytes: state.reader.bytes(), state: RefCell::new(state) })
    }

    /// What a read failed with.
    pub(super) fn failure(self) -> Option<ReadError> {
        self.state.into_inner().failed
    }
}

impl State {
    fn piece(&mut self, number: u64, disk_bytes: u64) -> Result<&Piece, ReadError> {
        let known = self.pieces.iter().position(|piece| piece.number == number);
        let piece = if let Some(at) = known {
            self.pieces.remove(at)
        } else {
            let start = number * PIECE_BYTES;
            let mut data = vec![0; PIECE_BYTES.min(disk_bytes - start) as usize];
            self.reader.read(start, &mut data)?;
            if self.pieces.len() == PIECES_MAX {
                self.pieces.remove(0);
            }
            Piece { number, data }
        };
        self.pieces.push(piece);
        Ok(&self.pieces[self.pieces.len() - 1])
    }

    fn read(&mut self, offset: u64, buf: &mut [u8], disk_bytes: u64) -> Result<(), ReadError> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let piece = self.piece(at / PIECE_BYTES, disk_bytes)?;
            let from = &piece.data[(at % PIECE_BYTES) as usize..];
            let bytes = from.len().min(buf.len() - done);
            buf[done..done + bytes].copy_from_slice(&from[..bytes]);
            done += bytes;
        }
        Ok(())
    }
}

impl ReadAt for Disk {
    fn size(&self) -> u64 {
        self.bytes
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), BoxedError> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.bytes);
        end.ok_or(boot_image::OutOfRange(offset))?;
        let mut state = self.state.borrow_mut();
        if state.failed.is_none() {
            match state.read(offset, buf, self.bytes) {
                Ok(()) => return Ok(()),
                Err(error) => state.failed = Some(error),
            }
        }
        Err(SeeFailure.into())
    }
}
