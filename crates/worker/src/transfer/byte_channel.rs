//! A channel of chunks bounded by their bytes, because stores send chunks of very different sizes.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use storage::Chunk;
use tokio::sync::{
    OwnedSemaphorePermit, Semaphore, TryAcquireError,
    mpsc::{self, error::TrySendError},
};

/// The capacity of a queue in bytes.
pub const QUEUE_BYTES: u32 = 8 << 20;
/// The capacity of a queue in chunks, which limits the number of small chunks.
const QUEUE_CHUNKS: usize = 1_024;

/// The sending end.
#[derive(Debug, Clone)]
pub struct ChunkSender {
    chunks: mpsc::Sender<(Chunk, OwnedSemaphorePermit)>,
    capacity: Arc<Semaphore>,
}

/// The receiving end.
#[derive(Debug)]
pub struct ChunkReceiver(mpsc::Receiver<(Chunk, OwnedSemaphorePermit)>);

/// Observes how full a queue is without keeping it open.
#[derive(Debug)]
pub struct QueueMonitor(Weak<Semaphore>);

/// Why a chunk could not be sent.
#[derive(Debug)]
pub enum SendError {
    /// The queue stayed full. Holds the chunk.
    Full(Chunk),
    /// The receiver was dropped.
    Closed,
}

/// Creates a queue of [`QUEUE_BYTES`].
pub fn channel() -> (ChunkSender, ChunkReceiver) {
    let (sender, receiver) = mpsc::channel(QUEUE_CHUNKS);
    (ChunkSender { chunks: sender, capacity: Arc::new(Semaphore::new(QUEUE_BYTES as usize)) }, ChunkReceiver(receiver))
}

/// Returns the capacity that a chunk occupies. A chunk that is larger than the queue occupies all of it.
fn size(chunk: &Chunk) -> u32 {
    match chunk {
        Chunk::Data(bytes) => u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(QUEUE_BYTES),
        Chunk::End => 0,
    }
}

impl ChunkSender {
    /// Sends a chunk without waiting.
    pub fn try_send(&self, chunk: Chunk) -> Result<(), SendError> {
        match Arc::clone(&self.capacity).try_acquire_many_owned(size(&chunk)) {
            Ok(permit) => match self.chunks.try_send((chunk, permit)) {
                Ok(()) => Ok(()),
                Err(TrySendError::Full((chunk, _))) => Err(SendError::Full(chunk)),
                Err(TrySendError::Closed(_)) => Err(SendError::Closed),
            },
            Err(TryAcquireError::NoPermits) if self.chunks.is_closed() => Err(SendError::Closed),
            Err(TryAcquireError::NoPermits) => Err(SendError::Full(chunk)),
            Err(TryAcquireError::Closed) => Err(SendError::Closed),
        }
    }

    /// Sends a chunk, and waits for room at most `wait`.
    pub async fn send_timeout(&self, chunk: Chunk, wait: Duration) -> Result<(), SendError> {
        let send = async {
            let permit =
                Arc::clone(&self.capacity).acquire_many_owned(size(&chunk)).await.map_err(|_| SendError::Closed)?;
            self.chunks.send((chunk.clone(), permit)).await.map_err(|_| SendError::Closed)
        };
        tokio::select! {
            sent = send => sent,
            () = self.chunks.closed() => Err(SendError::Closed),
            () = tokio::time::sleep(wait) => Err(SendError::Full(chunk.clone())),
        }
    }

    /// Whether the queue is empty and the receiver still exists.
    pub fn is_idle(&self) -> bool {
        !self.chunks.is_closed() && self.chunks.capacity() == self.chunks.max_capacity()
    }

    /// Creates a monitor of this queue.
    pub fn monitor(&self) -> QueueMonitor {
        QueueMonitor(Arc::downgrade(&self.capacity))
    }
}

impl QueueMonitor {
    /// Whether every sender was dropped.
    pub fn is_closed(&self) -> bool {
        self.0.strong_count() == 0
    }

    /// Whether the queue holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.upgrade().is_none_or(|capacity| capacity.available_permits() >= QUEUE_BYTES as usize)
    }
}

impl ChunkReceiver {
    /// Receives the next chunk and frees its capacity; `None` after every sender was dropped.
    pub async fn recv(&mut self) -> Option<Chunk> {
        self.0.recv().await.map(|(chunk, _)| chunk)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use storage::Chunk;

    use super::{QUEUE_BYTES, SendError, channel};

    fn data(length: u32) -> Chunk {
        Chunk::Data(Bytes::from(vec![0; length as usize]))
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_bound_the_queue_and_not_chunks() {
        let (sender, mut receiver) = channel();
        for _ in 0..512 {
            sender.try_send(data(QUEUE_BYTES / 512)).expect("room for small chunks");
        }
        assert!(matches!(sender.try_send(data(1)), Err(SendError::Full(_))));
        sender.try_send(Chunk::End).expect("the end takes no room");
        assert!(matches!(sender.send_timeout(data(1), Duration::from_secs(1)).await, Err(SendError::Full(_))));
        receiver.recv().await.expect("a chunk");
        sender.send_timeout(data(1), Duration::from_secs(1)).await.expect("room again");
        assert!(!sender.is_idle());
        drop(receiver);
        assert!(matches!(sender.try_send(data(1)), Err(SendError::Closed)));
        assert!(matches!(sender.send_timeout(data(1), Duration::from_secs(1)).await, Err(SendError::Closed)));
    }
}
