//! The pieces of a blob, as bodies of requests: one request may take some of them and the next one goes on.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use reqwest::Body;
use tokio::{sync::mpsc, time::timeout};

use crate::region::{Chunk, Error, Result};

/// How long a registry may take nothing of what it is sent.
const STALL: Duration = Duration::from_secs(60);

/// The pieces of a blob as they come.
#[derive(Debug)]
pub struct Feed {
    chunks: mpsc::Receiver<Chunk>,
    /// What of the last piece has not been taken yet.
    rest: Bytes,
}

/// Where a request's body takes its bytes from.
type Pipe = mpsc::Sender<io::Result<Bytes>>;

/// A body and the pipe that fills it.
pub fn pipe() -> (Pipe, Body) {
    let (pipe, receiver) = mpsc::channel(2);
    let stream = futures_util::stream::unfold(receiver, |mut receiver: mpsc::Receiver<io::Result<Bytes>>| async move {
        Some((receiver.recv().await?, receiver))
    });
    (pipe, Body::wrap_stream(stream))
}

impl Feed {
    /// The pieces that a channel brings.
    pub fn new(chunks: mpsc::Receiver<Chunk>) -> Self {
        Self { chunks, rest: Bytes::new() }
    }

    /// Passes on `bytes` bytes. With `last`, the very last of them only once the end has been told: so that nothing is whole at
    /// the other side that is wrong here. Returns without an error where nobody takes them any more: whoever waits for the
    /// request's answer learns why.
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

    /// All of the `bytes` bytes of a small blob, once the end has been told.
    pub async fn gather(&mut self, bytes: u64) -> Result<Bytes> {
        let mut gathered = BytesMut::new();
        while (gathered.len() as u64) < bytes {
            gathered.extend_from_slice(&self.next(bytes - gathered.len() as u64).await?);
        }
        self.end().await?;
        Ok(gathered.freeze())
    }

    /// The next piece, of `most` bytes at most.
    async fn next(&mut self, most: u64) -> Result<Bytes> {
        while self.rest.is_empty() {
            match self.chunks.recv().await {
                Some(Chunk::Data(bytes)) => self.rest = bytes,
                // Fewer bytes than there should be; the source is told about it elsewhere.
                Some(Chunk::End) | None => return Err(Error::Interrupted),
            }
        }
        let length = usize::try_from(most).unwrap_or(usize::MAX).min(self.rest.len());
        Ok(self.rest.split_to(length))
    }

    /// Waits for the end.
    pub async fn end(&mut self) -> Result<()> {
        match self.chunks.recv().await {
            Some(Chunk::End) if self.rest.is_empty() => Ok(()),
            _ => Err(Error::Interrupted),
        }
    }
}

/// Breaks the request off, whatever it has been sent.
async fn abort(pipe: &Pipe, error: Error) -> Result<()> {
    // Whoever no longer takes it has broken it off already.
    let _ = pipe.send(Err(io::Error::other("broken off"))).await;
    Err(error)
}
