//! What a former owner has staged, and whether it is in force: asked of the shards' disks, record by record.
//!
//! A record of the log names blocks of full stripes and the versions that they were staged under ([`super::straight`]). Each shard has its
//! blocks of them either staged still, or in force, or in force and overwritten since. For a data block that means:
//!
//! | its shard has | then |
//! |---|---|
//! | in force: the record's version or a later one | nothing to do |
//! | staged: the record's version | that is its value, and a job will write it |
//! | neither, or can't be asked | it is decoded from shards that have the record's version, staged or in force |
//! | too few of those, and its shard is only away | it is waited for, until it is back or out of the in-sync set |
//! | too few of those | nothing to do if every parity that can be asked is the record's or later: what is in force can be decoded. Else it is lost |
//!
//! The last line holds because parities are put in force, or written over, before data: a parity of an older version would make the block's old
//! value of what is in force, and that is not what was acknowledged. It must not be said of a shard that comes back in sync: that one may have the
//! old value in force.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use ferro_protocol::ids::{ChunkIndex, Seq, Version};
use ferro_protocol::units::BlockRange;
use vsand_code::Equation;

use super::decode::Fetched;
use super::geometry::Geometry;
use super::ring::Written;
use super::straight::staged_version;
use super::{Stripes, Wanted};
use crate::bugs::Bug;
use crate::owner::Owner;
use crate::owner::guest::PieceKind;
use crate::owner::io::{Fault, Got};

/// One record that is looked at.
#[derive(Debug)]
pub(super) struct Looking {
    geometry: Geometry,
    version: Version,
    /// Rows that are still to be looked at, in pieces.
    pieces: VecDeque<BlockRange>,
    /// What is found to be not in force.
    blocks: BTreeMap<u32, Bytes>,
}

/// How the look at a record goes on.
pub(super) enum Look {
    /// There are more rows.
    More,
    /// Too little can be asked now; these shards are in sync and don't answer.
    Waits(BTreeSet<u8>),
    /// Blocks are lost.
    Lost,
    /// These blocks of the record with this version are not in force.
    Done(Seq, BTreeMap<u32, Bytes>),
}

/// What is known of some rows.
#[derive(Default)]
struct Rows {
    staged: Fetched,
    in_force: Fetched,
    /// Shards that are in sync and can't be asked now.
    away: BTreeSet<u8>,
}

impl Rows {
    /// The block of a shard as the record wrote it.
    fn exact(&self, shard: u8, row: u32, version: Version) -> Option<&Bytes> {
        let of = |fetched: &'_ Fetched| fetched.get(shard, row).is_some_and(|(v, _)| *v == version);
        let fetched = [&self.staged, &self.in_force].into_iter().find(|f| of(f))?;
        fetched.get(shard, row).map(|(_, block)| block)
    }

    /// Whether the shard has the record's block in force, or a later one; `None` if it can't be told.
    fn is_in_force(&self, shard: u8, row: u32, version: Version) -> Option<bool> {
        self.in_force.get(shard, row).map(|(v, _)| *v >= version)
    }
}

impl Looking {
    /// `None` if the record can't be one of this chunk.
    pub(super) fn new(geometry: Geometry, version: Version, blocks: Written) -> Option<Self> {
        let rows = geometry.full_rows(blocks.first, blocks.end())?;
        let pieces = VecDeque::from([rows]);
        Some(Self { geometry, version, pieces, blocks: BTreeMap::new() })
    }

    /// Asks for the rows that come next: of each shard what is staged, and then of each what is in force.
    pub(super) fn next(&mut self, chunk: ChunkIndex) -> Vec<Wanted> {
        let Some(rows) = self.pieces.front().copied() else { return Vec::new() };
        let fetch = |kind: PieceKind| {
            (0..self.geometry.shards()).map(move |n| Wanted {
                chunk: chunk.shard(n),
                range: rows,
                kind: kind.clone(),
                seq: None,
            })
        };
        fetch(PieceKind::FetchStaged).chain(fetch(PieceKind::Fetch)).collect()
    }

    fn version(&self, shard: u8) -> Version {
        Version { seq: staged_version(self.version.seq, shard), ..self.version }
    }
}

impl Owner {
    /// Takes what the shards have answered about the rows that come next.
    pub(super) fn look(
        &self,
        chunk: ChunkIndex,
        looking: &mut Looking,
        got: Vec<Result<Got, Fault>>,
    ) -> Look {
        let Some(stripes) = self.stripes.get(&chunk) else { return Look::Lost };
        if got.is_empty() && !looking.pieces.is_empty() {
            // It had to wait.
            return Look::More;
        }
        if let Some(piece) = looking.pieces.pop_front() {
            let shards = usize::from(looking.geometry.shards());
            let (mut rows, mut away, mut bad) = (Rows::default(), false, false);
            for (n, got) in got.into_iter().enumerate() {
                let fetched = if n < shards { &mut rows.staged } else { &mut rows.in_force };
                let shard = (n % shards) as u8;
                match got {
                    Ok(Got::Runs(runs, data)) => fetched.add(shard, &runs, &data),
                    Err(Fault::Away | Fault::Stuck) => {
                        away = true;
                        if self.has_in_sync(chunk.shard(shard)) {
                            rows.away.insert(shard);
                        }
                    }
                    _ => bad = true,
                }
            }
            if bad && piece.count() > 1 {
                // Of many rows perhaps only one can't be read.
                for row in piece.blocks().rev().filter_map(|row| BlockRange::one(row).ok()) {
                    looking.pieces.push_front(row);
                }
                return Look::More;
            }
            for row in piece.blocks() {
                let Some(values) = stripes.not_in_force(looking, &rows, row) else {
                    looking.pieces.push_front(piece);
                    return if away { Look::Waits(rows.away) } else { Look::Lost };
                };
                if !self.bugs.has(Bug::StagedForgotten) {
                    looking.blocks.extend(values);
                }
            }
        }
        if looking.pieces.is_empty() {
            return Look::Done(looking.version.seq, std::mem::take(&mut looking.blocks));
        }
        Look::More
    }
}

impl Stripes {
    /// The data blocks of a row that are not in force, with their values. `None` if some can't be told.
    fn not_in_force(&self, looking: &Looking, rows: &Rows, row: u32) -> Option<Vec<(u32, Bytes)>> {
        let geometry = self.geometry;
        let exact = |shard: u8| rows.exact(shard, row, looking.version(shard));
        let in_force = |shard: u8| rows.is_in_force(shard, row, looking.version(shard));
        let mut values = Vec::new();
        for shard in geometry.data_shards().filter(|shard| in_force(*shard) != Some(true)) {
            let block = geometry.block(shard, row);
            if let Some(staged) = exact(shard) {
                values.push((block, staged.clone()));
                continue;
            }
            let missing: Vec<u8> = geometry.data_shards().filter(|s| exact(*s).is_none()).collect();
            if let Some(solved) = self.solve_exact(&missing, exact) {
                let at = missing.iter().position(|s| *s == shard)?;
                values.push((block, solved.get(at)?.clone()));
                continue;
            }
            if rows.away.contains(&shard) {
                return None;
            }
            let mut told = geometry.parity_shards().filter_map(in_force).peekable();
            if told.peek().is_none() || !told.all(|in_force| in_force) {
                return None;
            }
        }
        Some(values)
    }

    /// Data blocks of a row from those that `exact` has of it.
    fn solve_exact<'a>(&self, missing: &[u8], exact: impl Fn(u8) -> Option<&'a Bytes>) -> Option<Vec<Bytes>> {
        let geometry = self.geometry;
        let mut equations = Vec::new();
        for shard in geometry.parity_shards() {
            let Some(block) = exact(shard) else { continue };
            let known = geometry.data_shards().map(|data| exact(data).map(AsRef::as_ref)).collect();
            equations.push(Equation {
                parity: usize::from(shard - geometry.data),
                block,
                known,
                generation: 0,
            });
        }
        let missing: Vec<usize> = missing.iter().map(|s| usize::from(*s)).collect();
        Some(self.code.solve(&equations, &missing)?.into_iter().map(Bytes::from).collect())
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use ferro_protocol::ids::Epoch;
    use ferro_protocol::peer::Run;
    use ferro_protocol::units::BLOCK_BYTES;
    use vsand_code::Code;

    use super::super::Stage;
    use super::super::ring::What;
    use super::*;

    const RECORD: Version = Version { epoch: Epoch(3), seq: Seq(100) };
    const ROW: u32 = 5;

    /// What a shard's disk says of the row: nothing, because it can't be asked, or a version and a block for each of the two places.
    #[derive(Clone, Copy)]
    enum Has {
        /// Staged still, over something older.
        Staged,
        /// In force.
        InForce,
        /// In force, and written over.
        Later,
        /// Something older, and nothing staged.
        Older,
        /// It can't be asked, and is in sync.
        Away,
        /// It can't be asked, and won't come back as it was.
        Gone,
    }

    fn stripes(data: u8, parity: u8) -> (Stripes, Looking) {
        let geometry = Geometry { data, parity };
        let code = Code::new(data.into(), parity.into()).unwrap();
        let blocks = Written { first: 0, count: geometry.stripe(), what: What::Staged };
        (Stripes::new(geometry, code, Stage::Recovering, 64), Looking::new(geometry, RECORD, blocks).unwrap())
    }

    /// The blocks that are not in force, by data shard; `None` if that can't be told.
    fn found(data: u8, parity: u8, has: &[Has]) -> Option<Vec<u8>> {
        let (stripes, looking) = stripes(data, parity);
        let value = |shard: u8| vec![shard + 1; BLOCK_BYTES];
        let columns: Vec<Vec<u8>> = (0..data).map(value).collect();
        let columns: Vec<&[u8]> = columns.iter().map(AsRef::as_ref).collect();
        let all: Vec<Vec<u8>> = (0..data).map(value).chain(stripes.code.encode(&columns)).collect();
        let mut rows = Rows::default();
        for (shard, has) in (0_u8..).zip(has) {
            let exact = looking.version(shard);
            let older = Version { seq: Seq(40), ..exact };
            let later = Version { epoch: Epoch(4), seq: Seq(7) };
            let right = all[usize::from(shard)].clone();
            let wrong = vec![0xee; BLOCK_BYTES];
            let put = |into: &mut Fetched, version, block: Vec<u8>| {
                let run = Run { range: BlockRange::one(ROW).unwrap(), version, mapped: true };
                into.add(shard, &[run], &BytesMut::from(block.as_slice()).freeze());
            };
            match has {
                Has::Staged => {
                    put(&mut rows.staged, exact, right);
                    put(&mut rows.in_force, older, wrong);
                }
                Has::InForce => put(&mut rows.in_force, exact, right),
                Has::Later => put(&mut rows.in_force, later, wrong),
                Has::Older => {
                    // Staged by an owner whose record never came to be.
                    put(&mut rows.staged, Version { epoch: Epoch(2), ..exact }, wrong.clone());
                    put(&mut rows.in_force, older, wrong);
                }
                Has::Away => drop(rows.away.insert(shard)),
                Has::Gone => {}
            }
        }
        let values = stripes.not_in_force(&looking, &rows, ROW)?;
        for (block, bytes) in &values {
            let (shard, row) = stripes.geometry.locate(*block);
            assert_eq!((row, bytes.as_ref()), (ROW, all[usize::from(shard)].as_slice()));
        }
        Some(values.iter().map(|(block, _)| stripes.geometry.locate(*block).0).collect())
    }

    #[test]
    fn what_is_staged_counts_until_its_shard_has_it_in_force() {
        use Has::{InForce, Later, Staged};
        assert_eq!(found(2, 1, &[Staged, Staged, Staged]), Some(vec![0, 1]));
        assert_eq!(found(2, 1, &[Staged, Staged, InForce]), Some(vec![0, 1]));
        assert_eq!(found(2, 1, &[InForce, Staged, InForce]), Some(vec![1]));
        assert_eq!(found(2, 1, &[Later, InForce, Later]), Some(vec![]));
    }

    #[test]
    fn a_shard_that_has_nothing_of_it_gets_it_from_the_others() {
        use Has::{Away, Gone, InForce, Later, Older, Staged};
        assert_eq!(found(2, 1, &[Older, Staged, Staged]), Some(vec![0, 1]));
        assert_eq!(found(2, 1, &[Gone, InForce, InForce]), Some(vec![0]));
        assert_eq!(found(4, 2, &[Staged, Gone, InForce, Away, Staged, InForce]), Some(vec![0, 1, 3]));
        // Too few are left that have it, and a job has begun to write it over: what is in force can be decoded.
        assert_eq!(found(2, 2, &[Gone, Later, Later, Later]), Some(vec![]));
    }

    #[test]
    fn what_would_come_back_as_it_was_before_is_waited_for() {
        use Has::{Away, Gone, Later, Older, Staged};
        assert_eq!(found(2, 1, &[Away, Staged, Later]), None);
        assert_eq!(found(2, 2, &[Away, Later, Later, Later]), None);
        // The parity would make its old value of the others.
        assert_eq!(found(2, 1, &[Gone, Staged, Older]), None);
        assert_eq!(found(2, 1, &[Gone, Staged, Gone]), None);
    }

    #[test]
    fn a_record_of_half_stripes_is_none() {
        let (stripes, _) = stripes(2, 1);
        for (first, count) in [(1, 32), (0, 31), (32, 16)] {
            let blocks = Written { first, count, what: What::Staged };
            assert!(Looking::new(stripes.geometry, RECORD, blocks).is_none(), "{first}+{count}");
        }
    }
}
