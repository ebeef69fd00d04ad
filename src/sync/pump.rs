//! One blob, read once, for everybody who lacks it: it is hashed on the way and passed on through bounded channels.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::{
    sync::mpsc::{
        self,
        error::{SendTimeoutError, TrySendError},
    },
    time::Instant,
};

use super::{limits::Pace, reader::Reader, wanting::Wanting};
use crate::{
    domain::{Descriptor, Digest, ImageName},
    region::{Chunk, Error, Result, Source},
};

/// Pieces that may wait at each destination.
pub const QUEUE: usize = 8;

/// How long destinations are waited for.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// While others wait as well.
    pub patience: Duration,
    /// Alone, and for the source.
    pub stall: Duration,
}

/// A destination of a blob.
#[derive(Debug)]
pub struct Sink<'a> {
    /// The destination.
    pub member: &'a Wanting,
    /// Where it takes the pieces; nothing once it has left.
    pub chunks: Option<mpsc::Sender<Chunk>>,
    /// How many of the first bytes it has already.
    pub from: u64,
}

/// Where a blob is read.
#[derive(Debug, Clone, Copy)]
pub struct From<'a> {
    /// The store.
    pub source: &'a Arc<dyn Source>,
    /// The store's name for the image.
    pub name: &'a ImageName,
    /// How fast it may be read.
    pub pace: &'a Pace,
}

/// Reads the blob and gives it to every sink, to each from the byte that it needs. One that stops receiving has left, and knows
/// why; one that keeps the others waiting is left behind. An error is one of the source: no sink has been told the end then, so
/// that each throws away what it has once the sinks are dropped. `alone` tells whether there is nobody else to wait.
pub async fn pump(
    from: From<'_>,
    blob: &Descriptor,
    sinks: &mut [Sink<'_>],
    waits: Waits,
    alone: impl Fn() -> bool,
) -> Result<()> {
    let begin = sinks.iter().map(|sink| sink.from).min().unwrap_or(0);
    let mut reader = Reader::new(from.source, from.name, blob, begin, waits.stall);
    let mut hasher = Sha256::new();
    let mut position = begin;
    while let Some(bytes) = reader.next().await? {
        from.pace.take(bytes.len()).await;
        hasher.update(&bytes);
        deliver(sinks, &Piece::Data { position, bytes: &bytes }, waits, alone()).await;
        position += bytes.len() as u64;
        if sinks.iter().all(|sink| sink.chunks.is_none()) {
            return Ok(());
        }
    }
    // Whoever goes on with what was there before has not been sent all of it, and verifies it by itself.
    if begin == 0 {
        let actual = Digest::new(hasher.finalize().into());
        if actual != blob.digest {
            return Err(Error::DigestMismatch { image: from.name.to_string(), expected: blob.digest, actual });
        }
    }
    deliver(sinks, &Piece::End, waits, alone()).await;
    Ok(())
}

enum Piece<'a> {
    Data { position: u64, bytes: &'a Bytes },
    End,
}

impl Piece<'_> {
    /// What of it a sink needs that has the first `from` bytes.
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
async fn deliver(sinks: &mut [Sink<'_>], piece: &Piece<'_>, waits: Waits, alone: bool) {
    // Whoever has room is served first: it then works while the others are waited for.
    let mut full = Vec::new();
    for (place, sink) in sinks.iter_mut().enumerate() {
        let (Some(chunks), Some(chunk)) = (&sink.chunks, piece.after(sink.from)) else { continue };
        match chunks.try_send(chunk) {
            Err(TrySendError::Full(chunk)) => full.push((place, chunk)),
            Err(TrySendError::Closed(_)) => sink.chunks = None,
            Ok(()) => {}
        }
    }
    for (place, chunk) in full {
        let Some(sink) = sinks.get(place) else { continue };
        let Some(chunks) = sink.chunks.clone() else { continue };
        let since = Instant::now();
        let patience = if alone { waits.stall } else { sink.member.patience_left(waits.patience, since) };
        let sent = chunks.send_timeout(chunk, patience).await;
        // Only who is waited for by others that have nothing to do keeps them waiting.
        let idle = |other: &Sink<'_>| other.chunks.as_ref().is_none_or(|c| c.capacity() == c.max_capacity());
        if !alone && sinks.iter().enumerate().all(|(other, sink)| other == place || idle(sink)) {
            sinks[place].member.kept_waiting(since, Instant::now());
        }
        match sent {
            Ok(()) => {}
            Err(SendTimeoutError::Closed(_)) => sinks[place].chunks = None,
            Err(SendTimeoutError::Timeout(_)) => {
                sinks[place].member.leave();
                sinks[place].chunks = None;
            }
        }
    }
}
