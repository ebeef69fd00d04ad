//! A queue of chunks that is bounded by their bytes: stores send chunks of very different sizes.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::sync::{
    OwnedSemaphorePermit, Semaphore, TryAcquireError,
    mpsc::{self, error::TrySendError},
};

use crate::region::Chunk;

/// Bytes that may wait at each destination of a blob.
pub const QUEUE_BYTES: u32 = 8 << 20;
/// Chunks that may wait there, however small they are.
const QUEUE_CHUNKS: usize = 1_024;

/// The end that sends.
#[derive(Debug, Clone)]
pub struct ChunkSender {
    chunks: mpsc::Sender<(Chunk, OwnedSemaphorePermit)>,
    room: Arc<Semaphore>,
}

/// The end that receives.
#[derive(Debug)]
pub struct ChunkReceiver(mpsc::Receiver<(Chunk, OwnedSemaphorePermit)>);

/// The room for bytes of a queue, for as long as there is one.
#[derive(Debug)]
pub struct Room(Weak<Semaphore>);

/// Why a chunk could not be sent.
#[derive(Debug)]
pub enum SendError {
    /// There was no room in time; the chunk comes back.
    Full(Chunk),
    /// The receiver is gone.
    Closed,
}

/// An empty queue.
pub fn channel() -> (ChunkSender, ChunkReceiver) {
    let (sender, receiver) = mpsc::channel(QUEUE_CHUNKS);
    (ChunkSender { chunks: sender, room: Arc::new(Semaphore::new(QUEUE_BYTES as usize)) }, ChunkReceiver(receiver))
}

/// The room that a chunk takes. One that is larger than the queue takes all of it.
fn size(chunk: &Chunk) -> u32 {
    match chunk {
        Chunk::Data(bytes) => u32::try_from(bytes.len()).unwrap_or(u32::MAX).min(QUEUE_BYTES),
        Chunk::End => 0,
    }
}

impl ChunkSender {
    /// Sends a chunk if there is room for it.
    pub fn try_send(&self, chunk: Chunk) -> Result<(), SendError> {
        match Arc::clone(&self.room).try_acquire_many_owned(size(&chunk)) {
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

    /// Sends a chunk, and waits for room at most as long.
    pub async fn send_timeout(&self, chunk: Chunk, wait: Duration) -> Result<(), SendError> {
        let send = async {
            let permit =
                Arc::clone(&self.room).acquire_many_owned(size(&chunk)).await.map_err(|_| SendError::Closed)?;
            self.chunks.send((chunk.clone(), permit)).await.map_err(|_| SendError::Closed)
        };
        tokio::select! {
            sent = send => sent,
            () = self.chunks.closed() => Err(SendError::Closed),
            () = tokio::time::sleep(wait) => Err(SendError::Full(chunk.clone())),
        }
    }

    /// Whether everything that was sent has been received, and there is one who receives.
    pub fn is_idle(&self) -> bool {
        !self.chunks.is_closed() && self.chunks.capacity() == self.chunks.max_capacity()
    }

    /// Its room.
    pub fn room(&self) -> Room {
        Room(Arc::downgrade(&self.room))
    }
}

impl Room {
    /// Whether nothing is sent by the queue any longer.
    pub fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }

    /// Whether no bytes are in it.
    pub fn is_free(&self) -> bool {
        self.0.upgrade().is_none_or(|room| room.available_permits() >= QUEUE_BYTES as usize)
    }
}

impl ChunkReceiver {
    /// The next chunk; its room is free again.
    pub async fn recv(&mut self) -> Option<Chunk> {
        self.0.recv().await.map(|(chunk, _)| chunk)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::{QUEUE_BYTES, SendError, channel};
    use crate::region::Chunk;

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
