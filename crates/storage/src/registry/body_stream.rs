//! The byte stream of a blob, split into request bodies: consecutive requests take consecutive parts of it.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use reqwest::Body;
use tokio::{sync::mpsc, time::timeout};

use crate::{Chunk, Error, Result};

/// Maximum time to wait until a registry accepts the next bytes.
const STALL: Duration = Duration::from_secs(60);

/// The pieces of a blob as they arrive.
#[derive(Debug)]
pub struct BodyStream {
    chunks: mpsc::Receiver<Chunk>,
    /// Part of the last piece that has not been returned yet.
    rest: Bytes,
}

/// Sender of the bytes of a request's body.
type Pipe = mpsc::Sender<io::Result<Bytes>>;

/// Returns a body and the pipe that fills it.
pub fn pipe() -> (Pipe, Body) {
    let (pipe, receiver) = mpsc::channel(2);
    let stream = futures_util::stream::unfold(receiver, |mut receiver: mpsc::Receiver<io::Result<Bytes>>| async move {
        Some((receiver.recv().await?, receiver))
    });
    (pipe, Body::wrap_stream(stream))
}

impl BodyStream {
    /// Creates a stream that reads from a channel.
    pub fn new(chunks: mpsc::Receiver<Chunk>) -> Self {
        Self { chunks, rest: Bytes::new() }
    }

    /// Sends `bytes` bytes to the pipe. If `last` is true, withholds the final piece until the source has reported its
    /// end, so that the registry does not receive all bytes of a blob whose source failed. Returns `Ok` if the request
    /// has dropped its body: the response to the request then states the reason.
    pub async fn fill(&mut self, pipe: Pipe, mut bytes: u64, last: bool) -> Result<()> {
        while bytes > 0 {
            let piece = match self.next(bytes).await {
                Ok(piece) => piece,
                Err(error) => return abort(&pipe, error).await,
            };
            bytes -= piece.len() as u64;
            if bytes == 0
                && last
                && let Err(error) = self.end().await
            {
                return abort(&pipe, error).await;
            }
            match timeout(STALL, pipe.send(Ok(piece))).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Ok(()),
                Err(_) => return Err(Error::Stalled("sending a blob")),
            }
        }
        Ok(())
    }

    /// Returns all `bytes` bytes of a small blob, after the source has reported its end.
    pub async fn gather(&mut self, bytes: u64) -> Result<Bytes> {
        let mut gathered = BytesMut::new();
        while (gathered.len() as u64) < bytes {
            gathered.extend_from_slice(&self.next(bytes - gathered.len() as u64).await?);
        }
        self.end().await?;
        Ok(gathered.freeze())
    }

    /// Returns the next piece, of at most `most` bytes.
    async fn next(&mut self, most: u64) -> Result<Bytes> {
        while self.rest.is_empty() {
            match self.chunks.recv().await {
                Some(Chunk::Data(bytes)) => self.rest = bytes,
                // The source ended early. Its reader reports the reason elsewhere.
                Some(Chunk::End) | None => return Err(Error::Interrupted),
            }
        }
        let length = usize::try_from(most).unwrap_or(usize::MAX).min(self.rest.len());
        Ok(self.rest.split_to(length))
    }

    /// Waits until the source reports its end.
    pub async fn end(&mut self) -> Result<()> {
        match self.chunks.recv().await {
            Some(Chunk::End) if self.rest.is_empty() => Ok(()),
            _ => Err(Error::Interrupted),
        }
    }
}

/// Aborts the request, however many bytes were sent.
async fn abort(pipe: &Pipe, error: Error) -> Result<()> {
    // The send fails only if the request has already ended.
    let _ = pipe.send(Err(io::Error::other("broken off"))).await;
    Err(error)
}
