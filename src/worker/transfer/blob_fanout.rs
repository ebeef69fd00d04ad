//! One blob, read once, for every destination that misses it: it is hashed on the way and passed on through bounded queues.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::{
    ImageSource,
    byte_channel::{ChunkSender, SendError},
    fanout::{Fanout, Rest},
    member::Member,
    reader::Reader,
};
use crate::{
    domain::{ContentHasher, Descriptor},
    region::{Chunk, Error, Result},
};

/// A destination of a blob.
#[derive(Debug)]
pub struct Sink {
    /// The destination.
    pub member: Arc<Member>,
    /// Where it takes the chunks.
    pub chunks: ChunkSender,
    /// How many of the first bytes it has already.
    pub from: u64,
}

/// A blob on its way, from some byte on, to the destinations that take it together.
#[derive(Debug)]
pub struct BlobStream {
    /// The blob's place in the image.
    pub index: usize,
    /// The destinations. One that stops receiving has left, for its own reasons.
    pub sinks: Vec<Sink>,
    /// How far it has been read.
    position: u64,
    /// The hash of what comes before; nothing if that was not read.
    hasher: Option<ContentHasher>,
}

impl BlobStream {
    /// The blob for destinations that each have the first bytes of it, or none.
    pub fn new(index: usize, blob: &Descriptor, sinks: Vec<Sink>) -> Self {
        let position = sinks.iter().map(|sink| sink.from).min().unwrap_or(0);
        let hasher = (position == 0).then(|| blob.digest.algorithm().hasher());
        Self { index, sinks, position, hasher }
    }

    /// Reads the blob and gives it to every sink, to each from the byte that it needs. An error is one of the source: no sink has been sent
    /// the end then, so that each discards what it has once the sinks are dropped.
    pub async fn send(&mut self, source: &ImageSource, blob: &Descriptor, fanout: &Fanout) -> Result<()> {
        if self.sinks.is_empty() {
            return Ok(());
        }
        let mut reader = Reader::new(&source.store, &source.name, blob, self.position, fanout.waits.stall);
        while let Some(bytes) = reader.next().await? {
            source.paces.egress.take(bytes.len()).await;
            self.pass(Piece::Data(&bytes), fanout).await;
            if self.sinks.is_empty() {
                return Ok(());
            }
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&bytes);
            }
            self.position += bytes.len() as u64;
        }
        // A destination that resumes has not been sent all of it, and verifies the whole by itself.
        if let Some(hasher) = self.hasher.clone() {
            let actual = hasher.finish();
            if actual != blob.digest {
                return Err(Error::DigestMismatch { image: source.name.to_string(), expected: blob.digest, actual });
            }
        }
        self.pass(Piece::End, fanout).await;
        Ok(())
    }

    /// Gives a piece to every sink that still takes part. One that is not waited for any longer gets this piece by itself, too.
    async fn pass(&mut self, piece: Piece<'_>, fanout: &Fanout) {
        // Sinks with room are served first: they work while the others are waited for.
        let mut full = Vec::new();
        for sink in std::mem::take(&mut self.sinks) {
            match piece.after(self.position, sink.from).map(|chunk| sink.chunks.try_send(chunk)) {
                None | Some(Ok(())) => self.sinks.push(sink),
                Some(Err(SendError::Full(chunk))) => full.push((sink, chunk)),
                Some(Err(SendError::Closed)) => {}
            }
        }
        if full.is_empty() {
            return;
        }
        let queues = full.iter().map(|(sink, _)| sink).chain(&self.sinks).map(|sink| sink.chunks.clone());
        let queues: Vec<ChunkSender> = queues.collect();
        let others_wait = |place: usize| {
            let others = queues.iter().enumerate().filter(|(other, _)| *other != place);
            others.into_iter().any(|(_, queue)| queue.is_idle())
        };
        let waiting = full.into_iter().enumerate().map(|(place, (sink, chunk))| {
            let others_wait = move || others_wait(place);
            async move { (send_when_there_is_room(&sink, chunk, fanout, others_wait).await, sink) }
        });
        for (sent, sink) in join_all(waiting).await {
            match sent {
                Ok(()) => self.sinks.push(sink),
                Err(SendError::Full(_)) => fanout.detach(&Arc::clone(&sink.member), Rest::Stream(self.rest(sink))),
                Err(SendError::Closed) => {}
            }
        }
    }

    /// What this sink has yet to be sent.
    fn rest(&self, sink: Sink) -> Self {
        Self { index: self.index, sinks: vec![sink], position: self.position, hasher: self.hasher.clone() }
    }
}

#[derive(Clone, Copy)]
enum Piece<'a> {
    Data(&'a Bytes),
    End,
}

impl Piece<'_> {
    /// The part of the piece at `position` that a sink needs which has the first `from` bytes.
    fn after(self, position: u64, from: u64) -> Option<Chunk> {
        match self {
            Self::End => Some(Chunk::End),
            Self::Data(bytes) => {
                let skipped = usize::try_from(from.saturating_sub(position)).unwrap_or(usize::MAX);
                (skipped < bytes.len()).then(|| Chunk::Data(bytes.slice(skipped..)))
            }
        }
    }
}

/// Sends a chunk to a sink whose queue is full. It comes back if the sink is not waited for any longer.
async fn send_when_there_is_room(
    sink: &Sink,
    mut chunk: Chunk,
    fanout: &Fanout,
    others_wait: impl Fn() -> bool,
) -> std::result::Result<(), SendError> {
    loop {
        let since = Instant::now();
        match sink.chunks.send_timeout(chunk, sink.member.step()).await {
            Err(SendError::Full(back)) => chunk = back,
            sent => {
                fanout.waits_on(&sink.member, since, others_wait());
                return sent;
            }
        }
        if !fanout.waits_on(&sink.member, since, others_wait()) {
            return Err(SendError::Full(chunk));
        }
    }
}
