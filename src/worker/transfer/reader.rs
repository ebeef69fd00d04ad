//! A blob as it is read from its source, from some byte on: resumed where it broke off, and in several ranges at once where that is faster.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future::BoxFuture, stream::FuturesOrdered};
use tokio::time::{sleep, timeout};

use crate::{
    domain::{Descriptor, ImageName},
    region::{BlobChunks, Error, Result, Source, Verdict},
};

/// Blobs above this size, in bytes, are read in ranges.
const RANGED: u64 = 64 << 20;
/// The size of a range in bytes, and how many are read at once: so much of a blob may lie in memory.
const RANGE: u64 = 8 << 20;
const RANGES: usize = 3;
/// How often a reading is taken up again that brought nothing since it was taken up, and the wait before the first time.
const REOPENS: u32 = 3;
const REOPEN_WAIT: Duration = Duration::from_millis(200);

/// What is read, and how long nothing may come.
#[derive(Debug, Clone)]
struct Text {
    source: Arc<dyn Source>,
    name: ImageName,
    blob: Descriptor,
    stall: Duration,
}

/// A blob as it is read.
pub struct Reader(Way);

enum Way {
    Straight(Range),
    Ranges {
        text: Text,
        next: u64,
        ranges: FuturesOrdered<BoxFuture<'static, Result<VecDeque<Bytes>>>>,
        read: VecDeque<Bytes>,
    },
}

/// A part of a blob, as it is read.
struct Range {
    text: Text,
    position: u64,
    end: u64,
    chunks: Option<BlobChunks>,
    reopened: u32,
}

impl Reader {
    /// A reading from the byte `from` on.
    pub fn new(source: &Arc<dyn Source>, name: &ImageName, blob: &Descriptor, from: u64, stall: Duration) -> Self {
        let text = Text { source: Arc::clone(source), name: name.clone(), blob: blob.clone(), stall };
        if blob.size - from > RANGED && source.reads_ranges() {
            let (ranges, read) = (FuturesOrdered::new(), VecDeque::new());
            Self(Way::Ranges { text, next: from, ranges, read })
        } else {
            Self(Way::Straight(Range::new(text, from, blob.size)))
        }
    }

    /// The next bytes; nothing after the last.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        match &mut self.0 {
            Way::Straight(range) => range.next().await,
            Way::Ranges { text, next, ranges, read } => {
                while read.is_empty() {
                    while ranges.len() < RANGES && *next < text.blob.size {
                        let end = (*next + RANGE).min(text.blob.size);
                        ranges.push_back(Range::new(text.clone(), *next, end).whole().boxed());
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
    fn new(text: Text, position: u64, end: u64) -> Self {
        Self { text, position, end, chunks: None, reopened: 0 }
    }

    async fn whole(mut self) -> Result<VecDeque<Bytes>> {
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
                Err(error) if error.verdict() == Verdict::Retry && self.reopened < REOPENS => {
                    let wait = error.retry_after().unwrap_or(REOPEN_WAIT * 4_u32.pow(self.reopened));
                    tracing::info!(%error, position = self.position, blob = %self.text.blob.digest, "source read interrupted; reopening");
                    self.chunks = None;
                    self.reopened += 1;
                    if wait > self.text.stall {
                        return Err(error);
                    }
                    sleep(wait).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn read(&mut self) -> Result<Bytes> {
        let Text { source, name, blob, stall } = &self.text;
        let stalled = |_| Error::Stalled("reading a blob");
        let most = (self.end < blob.size).then_some(self.end - self.position);
        let chunks = match &mut self.chunks {
            Some(chunks) => chunks,
            none => {
                none.insert(timeout(*stall, source.read_blob(name, blob, self.position, most)).await.map_err(stalled)??)
            }
        };
        let bytes = timeout(*stall, chunks.recv()).await.map_err(stalled)?;
        let ended = || Error::SizeMismatch {
            image: name.to_string(),
            digest: blob.digest,
            expected: blob.size,
            actual: self.position,
        };
        let bytes = bytes.ok_or_else(ended)??;
        if bytes.len() as u64 > self.end - self.position {
            let (image, actual) = (name.to_string(), self.position + bytes.len() as u64);
            return Err(Error::SizeMismatch { image, digest: blob.digest, expected: blob.size, actual });
        }
        Ok(bytes)
    }
}
