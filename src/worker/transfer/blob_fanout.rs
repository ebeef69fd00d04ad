//! One blob, read once, for every destination that misses it: it is hashed on the way and passed on through bounded queues.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::{
    byte_channel::{ChunkSender, SendError},
    fanout::Waits,
    member::Member,
    reader::Reader,
};
use crate::{
    domain::{Descriptor, Digest, ImageName},
    region::{Chunk, Error, Result, Source},
    worker::pacing::Pace,
};

/// How often it is looked whether others wait for a sink whose queue is full.
const SHORTEST_LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(10);

/// Where blobs are read.
#[derive(Debug, Clone, Copy)]
pub struct BlobSource<'a> {
    /// The store.
    pub store: &'a Arc<dyn Source>,
    /// The store's name for the image.
    pub name: &'a ImageName,
    /// How fast it may be read.
    pub pace: &'a Pace,
}

/// A destination of a blob.
#[derive(Debug)]
pub struct Sink<'a> {
    /// The destination.
    pub member: &'a Member,
    /// Where it takes the chunks; nothing once it has left.
    pub chunks: Option<ChunkSender>,
    /// How many of the first bytes it has already.
    pub from: u64,
}

/// Reads the blob and gives it to every sink, to each from the byte that it needs. A sink that stops receiving has left, for its own
/// reasons; one that keeps the others waiting for too long is left behind. An error is one of the source: no sink has been sent the end
/// then, so that each discards what it has once the sinks are dropped. `alone` says whether no other destination waits.
pub async fn send_blob(
    source: BlobSource<'_>,
    blob: &Descriptor,
    sinks: &mut [Sink<'_>],
    waits: Waits,
    alone: impl Fn() -> bool,
) -> Result<()> {
    let begin = sinks.iter().map(|sink| sink.from).min().unwrap_or(0);
    let mut reader = Reader::new(source.store, source.name, blob, begin, waits.stall);
    let mut hasher = Sha256::new();
    let mut position = begin;
    while let Some(bytes) = reader.next().await? {
        source.pace.take(bytes.len()).await;
        hasher.update(&bytes);
        send_piece(sinks, &Piece::Data { position, bytes: &bytes }, waits, alone()).await;
        position += bytes.len() as u64;
        if sinks.iter().all(|sink| sink.chunks.is_none()) {
            return Ok(());
        }
    }
    // A destination that resumes has not been sent all of it, and verifies the whole by itself.
    if begin == 0 {
        let actual = Digest::new(hasher.finalize().into());
        if actual != blob.digest {
            return Err(Error::DigestMismatch { image: source.name.to_string(), expected: blob.digest, actual });
        }
    }
    send_piece(sinks, &Piece::End, waits, alone()).await;
    Ok(())
}

enum Piece<'a> {
    Data { position: u64, bytes: &'a Bytes },
    End,
}

impl Piece<'_> {
    /// The part of it that a sink needs which has the first `from` bytes.
    fn after(&self, from: u64) -> Option<Chunk> {
        match self {
            Self::End => Some(Chunk::End),
            Self::Data { position, bytes } => {
                let skipped = usize::try_from(from.saturating_sub(*position)).unwrap_or(usize::MAX);
                (skipped < bytes.len()).then(|| Chunk::Data(bytes.slice(skipped..)))
            }
        }
    }
}

/// Gives a piece to every sink that still takes part.
async fn send_piece(sinks: &mut [Sink<'_>], piece: &Piece<'_>, waits: Waits, alone: bool) {
    // Sinks with room are served first: they work while the others are waited for.
    let mut full = Vec::new();
    for (place, sink) in sinks.iter_mut().enumerate() {
        let (Some(chunks), Some(chunk)) = (&sink.chunks, piece.after(sink.from)) else { continue };
        match chunks.try_send(chunk) {
            Err(SendError::Full(chunk)) => full.push((place, chunk)),
            Err(SendError::Closed) => sink.chunks = None,
            Ok(()) => {}
        }
    }
    if full.is_empty() {
        return;
    }
    let queues: Vec<Option<ChunkSender>> = sinks.iter().map(|sink| sink.chunks.clone()).collect();
    let waiting = full.into_iter().map(|(place, chunk)| {
        let member = sinks[place].member;
        let others_wait = |place: usize| {
            let mut others = queues.iter().enumerate().filter(|(other, _)| *other != place);
            others.any(|(_, queue)| queue.as_ref().is_some_and(ChunkSender::is_idle))
        };
        let queue = queues[place].clone();
        async move {
            let others_wait = || !alone && others_wait(place);
            let taken = match queue {
                Some(queue) => wait_for_room(&queue, chunk, member, waits, others_wait).await,
                None => false,
            };
            (place, taken)
        }
    });
    for (place, taken) in join_all(waiting).await {
        if !taken {
            sinks[place].chunks = None;
        }
    }
}

/// Sends a chunk to a sink whose queue is full. Returns false if the sink is gone, or was left behind: it made others wait that have
/// nothing to do for longer than it may, or took nothing at all for `waits.stall`.
async fn wait_for_room(
    queue: &ChunkSender,
    mut chunk: Chunk,
    member: &Member,
    waits: Waits,
    others_wait: impl Fn() -> bool,
) -> bool {
    let began = Instant::now();
    loop {
        let since = Instant::now();
        let left = member.patience_left(waits.patience, since).max(SHORTEST_LOOK).min(LONGEST_LOOK);
        let sent = queue.send_timeout(chunk, left.min(waits.stall)).await;
        let now = Instant::now();
        if others_wait() {
            member.kept_waiting(since, now);
        }
        chunk = match sent {
            Ok(()) => return true,
            Err(SendError::Closed) => return false,
            Err(SendError::Full(chunk)) => chunk,
        };
        let too_slow = others_wait() && member.patience_left(waits.patience, now).is_zero();
        if too_slow || now.duration_since(began) >= waits.stall {
            member.leave_behind();
            return false;
        }
    }
}
