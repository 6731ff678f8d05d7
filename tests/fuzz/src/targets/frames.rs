//! What one host tells another on the data channel.

use ferro_protocol::frame::{
    HEAD_BYTES, Head, Kind, parse_reply, parse_request, put_empty, put_reply, put_request,
};
use ferro_protocol::ids::{ChunkId, ChunkIndex, DiskId, Epoch, ObjectId, Seq, Version};
use ferro_protocol::peer::{ChunkSummary, Refusal, Reply, Request, RequestId, Run};
use ferro_protocol::units::{BLOCK_BYTES, BlockRange, IO_BLOCKS_MAX};

const DISK: DiskId = DiskId::from_bytes([9; 16]);

/// A head, and what is behind it as its header. What is understood survives being written and read again.
pub(super) fn peer_frame(data: &[u8]) {
    let Some((head, header)) = data.split_first_chunk::<HEAD_BYTES>() else { return };
    let parsed = Head::parse(head);
    // The header is also read under a head that would have been right.
    let (kind, payload_len) = match parsed {
        Ok(head) => (head.kind, head.payload_len),
        Err(_) => (if head[0] & 1 == 0 { Kind::Request } else { Kind::Reply }, 0),
    };
    match kind {
        Kind::Request => request(header, payload_len),
        Kind::Reply => reply(header),
        Kind::Ping | Kind::Pong => {}
    }
}

fn request(header: &[u8], payload_len: usize) {
    let Ok(request) = parse_request(header, payload_len) else { return };
    assert_eq!(request.payload_bytes(), Ok(payload_len));
    let mut out = Vec::new();
    put_request(&mut out, RequestId(1), DISK, &request, payload_len);
    let (head, again) = out.split_first_chunk().expect("it begins with a head");
    let head = Head::parse(head).expect("ours can be read");
    assert_eq!((head.kind, head.disk, head.header_len), (Kind::Request, DISK, again.len()));
    assert_eq!(parse_request(again, head.payload_len).as_ref(), Ok(&request));
    if let Request::Install { runs, .. } = &request {
        assert!(runs.is_sorted_by_key(|run| run.range.first()));
        assert!(runs.iter().map(|run| run.range.count()).sum::<u32>() <= IO_BLOCKS_MAX);
    }
}

fn reply(header: &[u8]) {
    let Ok(reply) = parse_reply(header) else { return };
    let mut out = Vec::new();
    put_reply(&mut out, RequestId(1), DISK, &reply, 0);
    assert_eq!(parse_reply(&out[HEAD_BYTES..]).as_ref(), Ok(&reply));
}

/// A connection's bytes, read as the daemon does: head, header, payload, and the end at the first thing that is wrong.
pub(super) fn data_stream(data: &[u8]) {
    let mut rest = data;
    while let Some((head, behind)) = rest.split_first_chunk::<HEAD_BYTES>() {
        let Ok(head) = Head::parse(head) else { return };
        let Some((header, behind)) = behind.split_at_checked(head.header_len) else { return };
        let Some((payload, behind)) = behind.split_at_checked(head.payload_len) else { return };
        match head.kind {
            Kind::Request => match parse_request(header, payload.len()) {
                Ok(request) => assert_eq!(request.payload_bytes(), Ok(payload.len())),
                Err(_) => return,
            },
            Kind::Reply if parse_reply(header).is_err() => return,
            Kind::Reply => {}
            Kind::Ping | Kind::Pong => assert!(header.is_empty() && payload.is_empty()),
        }
        assert!(behind.len() < rest.len(), "each frame takes some bytes");
        rest = behind;
    }
}

fn range(first: u32, count: u32) -> BlockRange {
    BlockRange::new(first, count).expect("seeds are valid")
}

fn requests() -> Vec<Request> {
    let object = ObjectId::from_bytes([7; 16]);
    let chunk = ChunkId { object, index: ChunkIndex(3) };
    let shard = ChunkId { object, index: chunk.index.shard(2) };
    let (epoch, watermark) = (Epoch(4), Seq(90));
    let version = Version { epoch, seq: Seq(99) };
    let run = |first, mapped| Run { range: range(first, 2), version, mapped };
    vec![
        Request::Seal { object, epoch },
        Request::Write { chunk, range: range(8, 2), version, watermark },
        Request::Zero { chunk, range: range(0, 1 << 18), version, watermark },
        Request::Read { chunk, epoch, range: range(300, 256) },
        Request::Fetch { chunk, epoch, range: range(1, 255) },
        Request::Install { chunk, epoch, runs: vec![run(0, true), run(2, false), run(9, false)] },
        Request::List { chunk, epoch, since: Seq(5), from_block: 77 },
        Request::Verify { chunk, epoch, from_block: 300 },
        Request::Promote { chunk: shard, extent: 7, version, watermark },
        Request::Forget { chunk: shard, version, first: 2, end: 9 },
    ]
}

fn replies() -> Vec<Result<Reply, Refusal>> {
    let version = Version { epoch: Epoch(1), seq: Seq(2) };
    let runs = vec![Run { range: range(4, 5), version, mapped: true }; 3];
    let chunk =
        ChunkSummary { index: ChunkIndex(1), watermark: Seq(3), seq_max: Seq(400), tail: runs.clone() };
    vec![
        Ok(Reply::Done),
        Ok(Reply::Data),
        Ok(Reply::Runs(runs.clone())),
        Ok(Reply::List { runs, next_block: Some(9) }),
        Ok(Reply::Sealed { chunks: vec![chunk; 2] }),
        Ok(Reply::Verified { blocks: 200, next_block: Some(512) }),
        Err(Refusal::Fenced { sealed: Epoch(5) }),
        Err(Refusal::NoDisk(DISK)),
        Err(Refusal::BadBlocks { bad: vec![1, 2, 3] }),
        Err(Refusal::Dead("it smokes".to_owned())),
    ]
}

pub(super) fn frame_seeds() -> Vec<Vec<u8>> {
    let request = |(n, request): (usize, &Request)| {
        let mut out = Vec::new();
        let payload = request.payload_bytes().expect("seeds are valid");
        put_request(&mut out, RequestId(n as u64), DISK, request, payload);
        out
    };
    let reply = |(n, reply): (usize, &Result<Reply, Refusal>)| {
        let mut out = Vec::new();
        put_reply(&mut out, RequestId(n as u64), DISK, reply, 0);
        out
    };
    let mut seeds: Vec<_> = requests().iter().enumerate().map(request).collect();
    seeds.extend(replies().iter().enumerate().map(reply));
    seeds
}

pub(super) fn stream_seeds() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    put_empty(&mut all, Kind::Ping, RequestId(0));
    for request in requests() {
        let payload = request.payload_bytes().expect("seeds are valid");
        put_request(&mut all, RequestId(1), DISK, &request, payload);
        all.resize(all.len() + payload, 0xee);
    }
    put_empty(&mut all, Kind::Pong, RequestId(0));
    for reply in replies() {
        put_reply(&mut all, RequestId(1), DISK, &reply, BLOCK_BYTES);
        all.resize(all.len() + BLOCK_BYTES, 0xdd);
    }
    let mut seeds = frame_seeds();
    seeds.push(all);
    seeds
}
