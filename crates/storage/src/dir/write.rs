//! Writes one blob as its pieces arrive. The writer holds a thread only while it writes to the disk, not while it waits
//! for data.

use std::io::{self, Read as _, Write as _};

use bytes::Bytes;
use cap_std::fs::{Dir, File, OpenOptions};
use domain::Descriptor;
use tokio::sync::mpsc;

use super::{DirStore, blob, layout, operations::Progress, partial};
use crate::{Chunk, Error, Result, Stage};

/// Maximum number of bytes that one operation writes.
const BATCH_BYTES: usize = 4 << 20;
/// Maximum number of bytes written between two syncs, so that no single sync takes long enough to count as stalled.
const UNSYNCED_BYTES: u64 = 128 << 20;

/// The pieces of a blob that arrived since the last operation.
#[derive(Debug, Default)]
struct Batch {
    pieces: Vec<Bytes>,
    end: Option<End>,
}

/// How the stream of a blob ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// After all pieces.
    Whole,
    /// Before all pieces arrived.
    Broken,
}

impl Batch {
    /// Waits for the next piece, and takes the pieces that are queued behind it.
    async fn next(chunks: &mut mpsc::Receiver<Chunk>) -> Self {
        let mut batch = Self::default();
        let mut bytes = batch.take(chunks.recv().await);
        while batch.end.is_none()
            && bytes < BATCH_BYTES
            && let Ok(chunk) = chunks.try_recv()
        {
            bytes += batch.take(Some(chunk));
        }
        batch
    }

    fn take(&mut self, chunk: Option<Chunk>) -> usize {
        match chunk {
            Some(Chunk::Data(bytes)) => {
                let length = bytes.len();
                self.pieces.push(bytes);
                return length;
            }
            Some(Chunk::End) => self.end = Some(End::Whole),
            None => self.end = Some(End::Broken),
        }
        0
    }
}

/// Writes a blob, starting at the byte offset `from`, and gives the file the blob's name once it is complete, durable
/// and verified. If the stream breaks off, the received part of a large blob is kept for the next writer.
pub async fn write(
    store: &DirStore,
    stage: &Stage,
    blob: &Descriptor,
    from: u64,
    mut chunks: mpsc::Receiver<Chunk>,
) -> Result<()> {
    let mut unfinished = Unfinished::new(store, stage, blob, from);
    loop {
        let batch = Batch::next(&mut chunks).await;
        let ended = batch.end.is_some();
        unfinished = store.blocking(stage, move |dir, progress| unfinished.advance(dir, batch, progress)).await?;
        if ended {
            return Ok(());
        }
    }
}

/// A blob that is being written. Dropping it removes the file, unless the blob is complete or the next writer can
/// resume it.
#[derive(Debug)]
struct Unfinished {
    store: DirStore,
    stage: Stage,
    blob: Descriptor,
    /// Number of leading bytes that an earlier writer left.
    from: u64,
    path: String,
    /// Unset until the first bytes arrive.
    file: Option<File>,
    written: u64,
    unsynced: u64,
    /// Whether no file is left to remove.
    settled: bool,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if self.settled || self.file.is_none() || self.is_resumable() {
            return;
        }
        let (store, path) = (self.store.clone(), std::mem::take(&mut self.path));
        // If the removal fails, the next claim or the maintenance removes the file.
        self.store.0.operations.start(move || {
            let _ = store.dir().and_then(|dir| blob::remove(&dir, &path));
        });
    }
}

impl Unfinished {
    fn new(store: &DirStore, stage: &Stage, blob: &Descriptor, from: u64) -> Self {
        Self {
            store: store.clone(),
            stage: stage.clone(),
            blob: blob.clone(),
            from,
            path: partial::blob(stage, blob),
            file: None,
            written: from,
            unsynced: 0,
            settled: false,
        }
    }

    /// Returns whether the next writer can resume. An unfinished file of full size has failed its verification.
    fn is_resumable(&self) -> bool {
        partial::is_resumable(&self.blob) && (1..self.blob.size).contains(&self.written)
    }

    /// Writes the pieces of a batch, and finishes the blob at the end of its stream.
    fn advance(mut self, dir: &Dir, batch: Batch, progress: &Progress) -> Result<Self> {
        let done = self.append(dir, batch.pieces, progress).and_then(|()| match batch.end {
            None => Ok(()),
            Some(End::Whole) => self.finish(dir, progress),
            Some(End::Broken) => Err(Error::Interrupted),
        });
        let Err(error) = done else { return Ok(self) };
        if !(matches!(error, Error::Interrupted) && self.is_resumable()) {
            // An error of the removal is ignored, because it would hide the original error.
            let _ = blob::remove(dir, &self.path);
        }
        self.settled = true;
        // The beginning is from another writer, and parts of it may never have reached the disk.
        let begun_wrong = self.from > 0 && matches!(error, Error::DigestMismatch { .. });
        Err(if begun_wrong { Error::UploadGone(std::mem::take(&mut self.path).into()) } else { error })
    }

    fn append(&mut self, dir: &Dir, pieces: Vec<Bytes>, progress: &Progress) -> Result<()> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => self.begin(dir, progress)?,
        };
        for bytes in pieces {
            let length = bytes.len() as u64;
            self.written += length;
            if self.written > self.blob.size {
                return Err(self.size_mismatch());
            }
            file.write_all(&bytes).map_err(Error::io("writing", &self.path))?;
            self.stage.reservation.written(length);
            progress.tick();
            self.unsynced += length;
            if self.unsynced >= UNSYNCED_BYTES {
                file.sync_data().map_err(Error::io("syncing", &self.path))?;
                self.unsynced = 0;
                progress.tick();
            }
        }
        self.file = Some(file);
        Ok(())
    }

    /// Creates the file. Copies the beginning that another writer left instead of continuing that file, because its
    /// writer may still be running and have the file open.
    fn begin(&self, dir: &Dir, progress: &Progress) -> Result<File> {
        layout::create_blobs(dir, &self.stage.name, self.blob.digest.algorithm())?;
        let mut file = create(dir, &self.path)?;
        if self.from == 0 {
            return Ok(file);
        }
        let gone = || Error::UploadGone(self.path.clone().into());
        let found = blob::longest_partial(dir, &self.stage, &self.blob)?;
        // The new file itself is empty, so it is never the longest.
        let (begun, _) = found.filter(|(_, length)| *length >= self.from).ok_or_else(gone)?;
        let copied = copy(blob::open_file(dir, &begun)?, &mut file, self.from, progress)
            .map_err(Error::io("copying", &begun))?;
        blob::remove(dir, &begun)?;
        if copied == self.from { Ok(file) } else { Err(gone()) }
    }

    /// Makes the file durable, verifies it, and gives it the blob's name.
    fn finish(&mut self, dir: &Dir, progress: &Progress) -> Result<()> {
        if self.written != self.blob.size {
            return Err(self.size_mismatch());
        }
        if let Some(file) = self.file.take() {
            file.sync_all().map_err(Error::io("syncing", &self.path))?;
            progress.tick();
        }
        blob::verify(dir, &self.path, &self.blob, progress)?;
        let own = blob::path(&self.stage.name, self.blob.digest);
        dir.rename(&self.path, dir, &own).map_err(Error::io("renaming", own))?;
        self.settled = true;
        Ok(())
    }

    fn size_mismatch(&self) -> Error {
        let image = self.stage.name.to_string();
        Error::SizeMismatch { image, digest: self.blob.digest, expected: self.blob.size, actual: self.written }
    }
}

/// Copies the first `bytes` bytes of a file. Returns how many were copied.
fn copy(mut from: File, to: &mut File, bytes: u64, progress: &Progress) -> io::Result<u64> {
    let mut copied = 0;
    while copied < bytes {
        let step = io::copy(&mut (&mut from).take(UNSYNCED_BYTES.min(bytes - copied)), to)?;
        if step == 0 {
            break;
        }
        copied += step;
        progress.tick();
    }
    Ok(copied)
}

/// Creates or truncates a file.
fn create(dir: &Dir, path: &str) -> Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    dir.open_with(path, &options).map_err(Error::io("creating", path))
}

/// Writes a small file durably.
pub fn write_file(dir: &Dir, path: &str, content: &[u8]) -> Result<()> {
    let mut file = create(dir, path)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(Error::io("writing", path))
}

/// Writes a small blob durably and atomically.
pub fn write_small(dir: &Dir, stage: &Stage, blob: &Descriptor, content: &[u8]) -> Result<()> {
    layout::create_blobs(dir, &stage.name, blob.digest.algorithm())?;
    let partial = partial::blob(stage, blob);
    write_file(dir, &partial, content)?;
    let own = blob::path(&stage.name, blob.digest);
    dir.rename(&partial, dir, &own).map_err(Error::io("renaming", own))
}
