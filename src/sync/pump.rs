//! One blob, read once, for everybody who lacks it: it is hashed on the way and passed on through bounded channels.

use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::{
    sync::mpsc::{
        self,
        error::{SendTimeoutError, TrySendError},
    },
    time::Instant,
};

use crate::{
    domain::{Descriptor, Digest, ImageName},
    region::{Chunk, Error, Result, Source},
};

/// Pieces that may wait at each destination.
pub const QUEUE: usize = 4;

/// How long destinations are waited for.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// While others wait as well.
    pub patience: Duration,
    /// Alone, and for the source.
    pub stall: Duration,
}

/// Where a destination takes the pieces; nothing once it has left.
pub type Sink = Option<mpsc::Sender<Chunk>>;

/// Reads the blob and gives it to every sink. One that stops receiving has left, and knows why; of one that keeps the others
/// waiting, `lagging` is told its place before it is left behind. An error is one of the source: no sink has been told the
/// end then, so that each throws away what it has once the sinks are dropped.
pub async fn pump(
    source: &dyn Source,
    name: &ImageName,
    blob: &Descriptor,
    sinks: &mut [Sink],
    waits: Waits,
    lagging: impl Fn(usize),
) -> Result<()> {
    let mut chunks = source.read_blob(name, blob).await?;
    let mut hasher = Sha256::new();
    let mut size = 0u64;
    loop {
        let chunk =
            tokio::time::timeout(waits.stall, chunks.recv()).await.map_err(|_| Error::Stalled("reading a blob"))?;
        let Some(chunk) = chunk else { break };
        let bytes = chunk?;
        size += bytes.len() as u64;
        hasher.update(&bytes);
        deliver(sinks, &Chunk::Data(bytes), waits, &lagging).await;
        if sinks.iter().all(Option::is_none) {
            return Ok(());
        }
    }
    let image = || name.to_string();
    if size != blob.size {
        return Err(Error::SizeMismatch { image: image(), digest: blob.digest, expected: blob.size, actual: size });
    }
    let actual = Digest::new(hasher.finalize().into());
    if actual != blob.digest {
        return Err(Error::DigestMismatch { image: image(), expected: blob.digest, actual });
    }
    deliver(sinks, &Chunk::End, waits, &lagging).await;
    Ok(())
}

/// Gives a piece to every sink that still takes part.
async fn deliver(sinks: &mut [Sink], chunk: &Chunk, waits: Waits, lagging: &impl Fn(usize)) {
    let alone = sinks.iter().flatten().count() == 1;
    // Whoever has room is served first: it then works while the others are waited for.
    let mut full = Vec::new();
    for (place, slot) in sinks.iter_mut().enumerate() {
        match slot.as_ref().map(|sink| sink.try_send(chunk.clone())) {
            Some(Err(TrySendError::Full(_))) => full.push(place),
            Some(Err(TrySendError::Closed(_))) => *slot = None,
            Some(Ok(())) | None => {}
        }
    }
    let deadline = Instant::now() + if alone { waits.stall } else { waits.patience };
    for place in full {
        let Some(slot) = sinks.get_mut(place) else { continue };
        let Some(sink) = slot else { continue };
        match sink.send_timeout(chunk.clone(), deadline.saturating_duration_since(Instant::now())).await {
            Ok(()) => {}
            Err(SendTimeoutError::Closed(_)) => *slot = None,
            Err(SendTimeoutError::Timeout(_)) => {
                lagging(place);
                *slot = None;
            }
        }
    }
}
