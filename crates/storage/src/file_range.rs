//! Reads ranges of local files, such as a disk or a member of an archive, on a blocking thread.

use std::{
    fs::{File, FileType},
    io::{self, Read, Seek as _, SeekFrom, Take},
    os::unix::fs::FileTypeExt as _,
    path::Path,
};

use bytes::{Bytes, BytesMut};
use domain::{Algorithm, Digest};
use tokio::sync::mpsc;

use super::{BlobChunks, CHUNK_BYTES, Error, Result};

/// Maximum number of chunks that are read ahead.
const READ_AHEAD: usize = 2;

/// Fails for files that can't be read twice. A file is read once for its digests and again when it is stored. The check
/// precedes the open, because opening a pipe waits for its writer.
pub fn require_rereadable(path: &Path) -> Result<()> {
    let shown = || path.display().to_string();
    let kind = std::fs::metadata(path).map_err(Error::io("reading", shown()))?.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    let kind = kind_name(kind);
    let reason = format!("it is a {kind}, and is to be read more than once; write it to a file first, and give that");
    Err(Error::malformed(shown(), reason))
}

fn kind_name(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "directory"
    } else if kind.is_fifo() {
        "pipe"
    } else if kind.is_socket() {
        "socket"
    } else {
        "character device"
    }
}

/// Opens a range of at most `most` bytes, starting at the byte offset `from`.
pub fn open(path: &Path, from: u64, most: u64) -> Result<Take<File>> {
    let mut file = File::open(path).map_err(failed(path))?;
    if from > 0 {
        file.seek(SeekFrom::Start(from)).map_err(failed(path))?;
    }
    Ok(file.take(most))
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    Error::io("reading", path.display().to_string())
}

/// Reads a range of at most `most` bytes, starting at the byte offset `from`, into memory.
pub fn read_whole(path: &Path, from: u64, most: u64) -> Result<Vec<u8>> {
    let mut content = Vec::new();
    open(path, from, most)?.read_to_end(&mut content).map_err(failed(path))?;
    Ok(content)
}

/// Returns the digest of a range, and its size in bytes.
pub fn hash(path: &Path, from: u64, most: u64) -> Result<(Digest, u64)> {
    hash_all(open(path, from, most)?).map_err(failed(path))
}

/// Returns the digest of everything that `reader` returns, and its size in bytes.
pub fn hash_all(mut reader: impl Read) -> io::Result<(Digest, u64)> {
    let mut hasher = Algorithm::CANONICAL.hasher();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut size = 0;
    loop {
        let length = reader.read(&mut buffer)?;
        if length == 0 {
            return Ok((hasher.finish(), size));
        }
        size += length as u64;
        hasher.update(&buffer[..length]);
    }
}

/// Reads a range in chunks. Ends with the range, or when the receiver is dropped.
pub fn read(path: &Path, from: u64, most: u64) -> BlobChunks {
    let (sender, chunks) = mpsc::channel(READ_AHEAD);
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        if let Err(error) = pass_on(&path, from, most, &sender) {
            // The receiver may have been dropped.
            let _ = sender.blocking_send(Err(error));
        }
    });
    chunks
}

fn pass_on(path: &Path, from: u64, most: u64, chunks: &mpsc::Sender<Result<Bytes>>) -> Result<()> {
    let mut file = open(path, from, most)?;
    loop {
        let mut buffer = BytesMut::zeroed(CHUNK_BYTES);
        let length = file.read(&mut buffer).map_err(failed(path))?;
        buffer.truncate(length);
        if length == 0 || chunks.blocking_send(Ok(buffer.freeze())).is_err() {
            return Ok(());
        }
    }
}
