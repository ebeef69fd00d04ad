//! Sends one blob to every destination that misses it. The blob is read once, hashed on the way, and forwarded through
//! bounded queues.

use std::sync::Arc;

use bytes::Bytes;
use domain::{ContentHasher, Descriptor};
use futures_util::future::join_all;
use storage::{Chunk, Error, Result};
use tokio::time::Instant;

use super::{
    ImageSource,
    byte_channel::{ChunkSender, SendError},
    fanout::{Fanout, Remainder},
    member::Member,
    reader::BlobReader,
};

/// A destination that receives a blob.
#[derive(Debug)]
pub struct BlobTarget {
    /// The destination.
    pub member: Arc<Member>,
    /// The queue of its chunks.
    pub chunks: ChunkSender,
    /// The number of leading bytes that the destination already has.
    pub offset: u64,
}

/// A blob that is sent, from a given byte on, to the destinations that receive it together.
#[derive(Debug)]
pub struct BlobStream {
    /// The blob's index in the image.
    pub index: usize,
    /// The destinations. A destination whose queue is closed has left by itself.
    pub targets: Vec<BlobTarget>,
    /// The number of bytes that have been read.
    position: u64,
    /// The hash of the bytes before `position`; `None` if they were not read.
    hasher: Option<Box<ContentHasher>>,
}

impl BlobStream {
    /// Creates a stream for destinations, each of which may already have a number of leading bytes.
    pub fn new(index: usize, blob: &Descriptor, targets: Vec<BlobTarget>) -> Self {
        let position = targets.iter().map(|target| target.offset).min().unwrap_or(0);
        let hasher = (position == 0).then(|| Box::new(blob.digest.algorithm().hasher()));
        Self { index, targets, position, hasher }
    }

    /// Reads the blob and sends it to every destination, to each from the byte that it needs.
    ///
    /// Fails only for errors of the source. In that case no destination has received the end of the blob, and each
    /// discards the blob when its queue is dropped.
    pub async fn send(&mut self, source: &ImageSource, blob: &Descriptor, fanout: &Fanout) -> Result<()> {
        if self.targets.is_empty() {
            return Ok(());
        }
        let mut reader = BlobReader::new(&source.store, &source.name, blob, self.position, fanout.waits.stall);
        while let Some(bytes) = reader.next().await? {
            source.paces.egress.take(bytes.len()).await;
            self.send_piece(Piece::Data(&bytes), fanout).await;
            if self.targets.is_empty() {
                return Ok(());
            }
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&bytes);
            }
            self.position += bytes.len() as u64;
        }
        // A destination that resumes does not receive the whole blob, and verifies it by itself.
        if let Some(hasher) = self.hasher.clone() {
            let actual = hasher.finish();
            if actual != blob.digest {
                return Err(Error::DigestMismatch {
                    image: source.name.to_string(),
                    expected: blob.digest,
                    actual: Box::new(actual),
                });
            }
        }
        self.send_piece(Piece::End, fanout).await;
        Ok(())
    }

    /// Sends a piece to every destination that still receives. A destination that is too slow is detached with the rest
    /// of the blob.
    async fn send_piece(&mut self, piece: Piece<'_>, fanout: &Fanout) {
        // Destinations with room are served first, so that they work during the wait for the others.
        let mut full = Vec::new();
        for target in std::mem::take(&mut self.targets) {
            match piece.part_after(self.position, target.offset).map(|chunk| target.chunks.try_send(chunk)) {
                None | Some(Ok(())) => self.targets.push(target),
                Some(Err(SendError::Full(chunk))) => full.push((target, chunk)),
                Some(Err(SendError::Closed)) => {}
            }
        }
        if full.is_empty() {
            return;
        }
        let queues = full.iter().map(|(target, _)| target).chain(&self.targets).map(|target| target.chunks.clone());
        let queues: Vec<ChunkSender> = queues.collect();
        let are_others_idle = |index: usize| {
            let others = queues.iter().enumerate().filter(|(other, _)| *other != index);
            others.into_iter().any(|(_, queue)| queue.is_idle())
        };
        let waiting = full.into_iter().enumerate().map(|(index, (target, chunk))| {
            let are_others_idle = move || are_others_idle(index);
            async move { (send_to_full_target(&target, chunk, fanout, are_others_idle).await, target) }
        });
        for (sent, target) in join_all(waiting).await {
            match sent {
                Ok(()) => self.targets.push(target),
                Err(SendError::Full(_)) => {
                    fanout.detach(&Arc::clone(&target.member), Remainder::Stream(self.split_off(target)));
                }
                Err(SendError::Closed) => {}
            }
        }
    }

    /// Returns the rest of the blob for one destination.
    fn split_off(&self, target: BlobTarget) -> Self {
        Self { index: self.index, targets: vec![target], position: self.position, hasher: self.hasher.clone() }
    }
}

#[derive(Clone, Copy)]
enum Piece<'a> {
    Data(&'a Bytes),
    End,
}

impl Piece<'_> {
    /// Returns the part of a piece at `position` that a destination with the first `offset` bytes needs.
    fn part_after(self, position: u64, offset: u64) -> Option<Chunk> {
        match self {
            Self::End => Some(Chunk::End),
            Self::Data(bytes) => {
                let skipped = usize::try_from(offset.saturating_sub(position)).unwrap_or(usize::MAX);
                (skipped < bytes.len()).then(|| Chunk::Data(bytes.slice(skipped..)))
            }
        }
    }
}

/// Sends a chunk to a destination whose queue is full. Returns [`SendError::Full`] with the chunk if the destination is
/// no longer waited for.
async fn send_to_full_target(
    target: &BlobTarget,
    mut chunk: Chunk,
    fanout: &Fanout,
    are_others_idle: impl Fn() -> bool,
) -> std::result::Result<(), SendError> {
    loop {
        let since = Instant::now();
        match target.chunks.send_timeout(chunk, target.member.poll_interval()).await {
            Err(SendError::Full(back)) => chunk = back,
            sent => {
                fanout.should_wait_for(&target.member, since, are_others_idle());
                return sent;
            }
        }
        if !fanout.should_wait_for(&target.member, since, are_others_idle()) {
            return Err(SendError::Full(chunk));
        }
    }
}
