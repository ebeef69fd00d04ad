//! Reads a blob from its source, starting at a given byte. Reopens the blob where a read was interrupted, and reads
//! several ranges concurrently where that is faster.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use domain::{Descriptor, ImageName};
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesOrdered};
use storage::{BlobChunks, Error, Result, Source, Verdict};
use tokio::time::{sleep, timeout};

use super::RESUMPTIONS;

/// Blobs above this size, in bytes, are read in concurrent ranges.
const RANGED: u64 = 64 << 20;
/// The size of a range in bytes, and the number of concurrent ranges. Their product bounds the memory of a read.
const RANGE: u64 = 8 << 20;
const RANGES: usize = 3;

/// The blob to read, and how long its source may send nothing.
#[derive(Debug, Clone)]
struct BlobSource {
    source: Arc<dyn Source>,
    name: ImageName,
    blob: Descriptor,
    stall: Duration,
}

/// A reader of a blob.
pub struct BlobReader(Mode);

enum Mode {
    Sequential(Range),
    Ranged {
        blob_source: BlobSource,
        next: u64,
        ranges: FuturesOrdered<BoxFuture<'static, Result<VecDeque<Bytes>>>>,
        read: VecDeque<Bytes>,
    },
}

/// A reader of a part of a blob.
struct Range {
    blob_source: BlobSource,
    position: u64,
    end: u64,
    chunks: Option<BlobChunks>,
    reopened: u32,
}

impl BlobReader {
    /// Creates a reader that starts at the byte `offset`.
    pub fn new(source: &Arc<dyn Source>, name: &ImageName, blob: &Descriptor, offset: u64, stall: Duration) -> Self {
        let blob_source = BlobSource { source: Arc::clone(source), name: name.clone(), blob: blob.clone(), stall };
        if blob.size - offset > RANGED && source.reads_ranges() {
            let (ranges, read) = (FuturesOrdered::new(), VecDeque::new());
            Self(Mode::Ranged { blob_source, next: offset, ranges, read })
        } else {
            Self(Mode::Sequential(Range::new(blob_source, offset, blob.size)))
        }
    }

    /// Returns the next bytes; `None` after the last.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        match &mut self.0 {
            Mode::Sequential(range) => range.next().await,
            Mode::Ranged { blob_source, next, ranges, read } => {
                while read.is_empty() {
                    while ranges.len() < RANGES && *next < blob_source.blob.size {
                        let end = (*next + RANGE).min(blob_source.blob.size);
                        ranges.push_back(Range::new(blob_source.clone(), *next, end).read_all().boxed());
                        *next = end;
                    }
                    match ranges.next().await {
                        Some(range) => *read = range?,
                        None => return Ok(None),
                    }
                }
                Ok(read.pop_front())
            }
        }
    }
}

impl Range {
    fn new(blob_source: BlobSource, position: u64, end: u64) -> Self {
        Self { blob_source, position, end, chunks: None, reopened: 0 }
    }

    async fn read_all(mut self) -> Result<VecDeque<Bytes>> {
        let mut read = VecDeque::new();
        while let Some(bytes) = self.next().await? {
            read.push_back(bytes);
        }
        Ok(read)
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.position >= self.end {
            return Ok(None);
        }
        loop {
            match self.read().await {
                Ok(bytes) => {
                    self.position += bytes.len() as u64;
                    self.reopened = 0;
                    return Ok(Some(bytes));
                }
                Err(error) if error.verdict() == Verdict::Retry => {
                    let Some(wait) = RESUMPTIONS.wait(self.reopened, rand::random()) else { return Err(error) };
                    let wait = error.retry_after().unwrap_or(wait);
                    tracing::info!(%error, position = self.position, blob = %self.blob_source.blob.digest, "source read interrupted; reopening");
                    self.chunks = None;
                    self.reopened += 1;
                    if wait > self.blob_source.stall {
                        return Err(error);
                    }
                    sleep(wait).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn read(&mut self) -> Result<Bytes> {
        let BlobSource { source, name, blob, stall } = &self.blob_source;
        let stalled = |_| Error::Stalled("reading a blob");
        let limit = (self.end < blob.size).then_some(self.end - self.position);
        let chunks = match &mut self.chunks {
            Some(chunks) => chunks,
            closed => closed
                .insert(timeout(*stall, source.read_blob(name, blob, self.position, limit)).await.map_err(stalled)??),
        };
        let bytes = timeout(*stall, chunks.recv()).await.map_err(stalled)?;
        let too_short = || Error::SizeMismatch {
            image: name.to_string(),
            digest: blob.digest,
            expected: blob.size,
            actual: self.position,
        };
        let bytes = bytes.ok_or_else(too_short)??;
        if bytes.len() as u64 > self.end - self.position {
            let (image, actual) = (name.to_string(), self.position + bytes.len() as u64);
            return Err(Error::SizeMismatch { image, digest: blob.digest, expected: blob.size, actual });
        }
        Ok(bytes)
    }
}
