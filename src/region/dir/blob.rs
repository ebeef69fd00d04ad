//! One blob's file, `<image>/blobs/sha256/<hex>`. It gets that name only when it is whole, durable and verified; before, its
//! name is its writer's alone, and bears the fence of the claim that it writes for.

use std::{
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::{Bytes, BytesMut};
use cap_std::fs::{Dir, File, OpenOptions};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::layout;
use crate::{
    domain::{Descriptor, Digest, ImageName, Verification},
    region::{CHUNK_BYTES, Chunk, Error, Presence, Result, Stage},
};

/// What the name of an unfinished blob ends with.
const PARTIAL: &str = ".partial";
/// The same, of one that is large enough to be gone on with by whoever comes next.
const BEGUN: &str = ".begun";
/// Blobs above this size, in bytes, are gone on with.
const LARGE: u64 = 64 << 20;

/// Whether a writer that comes next goes on with the blob where one before left off.
pub fn is_kept(blob: &Descriptor) -> bool {
    blob.size > LARGE
}

fn path(name: &ImageName, digest: Digest) -> String {
    format!("{}/{}", layout::blobs(name), digest.hex())
}

fn partial(stage: &Stage, blob: &Descriptor) -> String {
    let ending = if is_kept(blob) { BEGUN } else { PARTIAL };
    format!("{}.{}{ending}", path(&stage.name, blob.digest), mark(stage))
}

/// What a name that nobody else writes to ends with: the claim's fence, and a number of this process. A writer that was given up
/// may still be at work when the same claim writes the same thing again, and must neither write nor remove the other's file.
pub fn mark(stage: &Stage) -> String {
    static WRITERS: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", stage.fence, WRITERS.fetch_add(1, Ordering::Relaxed))
}

/// The fence in a mark.
pub fn fence_of_mark(mark: &str) -> Option<u64> {
    mark.split_once('-')?.0.parse().ok()
}

/// The fence of the claim that an unfinished file belongs to; nothing if the file is no such one.
pub fn fence_of_partial(file: &str) -> Option<u64> {
    fence_of_mark(file.strip_suffix(PARTIAL)?.split_once('.')?.1)
}

/// The fence of the claim that began a blob that is kept; nothing if the file is no such one.
pub fn fence_of_begun(file: &str) -> Option<u64> {
    fence_of_mark(file.strip_suffix(BEGUN)?.split_once('.')?.1)
}

/// Opens an ordinary file. Anything else (a directory, a pipe) is refused before it can block.
fn open_file(dir: &Dir, path: &str) -> Result<File> {
    let kind = dir.metadata(path).map_err(Error::io("reading", path))?;
    if !kind.is_file() {
        return Err(Error::malformed(path, "it is not a file"));
    }
    dir.open(path).map_err(Error::io("reading", path))
}

/// Reads a file of at most `most` bytes.
pub fn read_bounded(dir: &Dir, path: &str, most: u64) -> Result<Vec<u8>> {
    let file = open_file(dir, path)?;
    let mut content = Vec::new();
    file.take(most + 1).read_to_end(&mut content).map_err(Error::io("reading", path))?;
    if content.len() as u64 > most {
        return Err(Error::malformed(path, format!("it has more than {most} bytes")));
    }
    Ok(content)
}

/// Opens a blob for reading from a place on. It must have the size that it should have.
pub fn open(dir: &Dir, name: &ImageName, blob: &Descriptor, from: u64) -> Result<File> {
    let mut file = match open_file(dir, &path(name, blob.digest)) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(Error::BlobMissing { digest: blob.digest, image: name.to_string() });
        }
        other => other?,
    };
    let size = file.metadata().map_err(Error::io("reading", blob.digest.hex()))?.len();
    if size == blob.size {
        file.seek(SeekFrom::Start(from)).map_err(Error::io("reading", blob.digest.hex()))?;
        Ok(file)
    } else {
        Err(Error::SizeMismatch { image: name.to_string(), digest: blob.digest, expected: blob.size, actual: size })
    }
}

/// Reads a small blob whole, and verifies it.
pub fn read_whole(dir: &Dir, name: &ImageName, blob: &Descriptor) -> Result<Bytes> {
    let mut content = Vec::new();
    let file = open(dir, name, blob, 0)?;
    file.take(blob.size).read_to_end(&mut content).map_err(Error::io("reading", path(name, blob.digest)))?;
    let actual = Digest::new(Sha256::digest(&content).into());
    if actual == blob.digest {
        Ok(content.into())
    } else {
        Err(Error::DigestMismatch { image: name.to_string(), expected: blob.digest, actual })
    }
}

/// Reads an open blob and passes it on, until its end, until `most` bytes, or until nobody receives any more.
pub fn read(file: File, most: u64, chunks: &mpsc::Sender<Result<Bytes>>) {
    let mut file = file.take(most);
    loop {
        let mut buffer = BytesMut::zeroed(CHUNK_BYTES);
        let chunk = match fill(&mut file, &mut buffer) {
            Ok(0) => return,
            Ok(length) => {
                buffer.truncate(length);
                Ok(buffer.freeze())
            }
            Err(error) => Err(Error::io("reading", "a blob")(error)),
        };
        let failed = chunk.is_err();
        if chunks.blocking_send(chunk).is_err() || failed {
            return;
        }
    }
}

fn fill(file: &mut impl io::Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// What there is of the blob: all of it, undamaged, or the beginning that an earlier writer left. A damaged one is removed. One
/// that another image of the directory has is taken from there, by a hard link.
pub fn look(dir: &Dir, stage: &Stage, blob: &Descriptor) -> Result<Presence> {
    let own = path(&stage.name, blob.digest);
    if verify(dir, &own, blob).is_ok() {
        return Ok(Presence::Whole(Verification::Verified));
    }
    remove(dir, &own)?;
    for entry in dir.entries().map_err(Error::io("listing", "."))? {
        let other = entry.map_err(Error::io("listing", "."))?.file_name();
        let Some(other) = other.to_str().map(|name| ImageName(name.to_owned())) else { continue };
        let theirs = path(&other, blob.digest);
        if other == stage.name || !dir.is_file(&theirs) || !layout::is_visible(dir, &other) {
            continue;
        }
        // A file system without links, or a damaged blob over there: then the bytes are carried, as if there were none.
        if dir.hard_link(&theirs, dir, &own).is_ok() {
            if verify(dir, &own, blob).is_ok() {
                return Ok(Presence::Whole(Verification::Verified));
            }
            remove(dir, &own)?;
        }
    }
    let begun = if is_kept(blob) { longest_partial(dir, stage, blob)? } else { None };
    Ok(begun.map_or(Presence::Absent, |(_, length)| Presence::Part(length)))
}

/// The longest beginning of the blob that a writer of this claim, or of one before, left, and its length.
fn longest_partial(dir: &Dir, stage: &Stage, blob: &Descriptor) -> Result<Option<(String, u64)>> {
    let blobs = layout::blobs(&stage.name);
    let mut longest: Option<(String, u64)> = None;
    for entry in dir.read_dir(&blobs).map_err(Error::io("listing", &blobs))? {
        let entry = entry.map_err(Error::io("listing", &blobs))?;
        let file = entry.file_name().to_string_lossy().into_owned();
        let ours = file.starts_with(&blob.digest.hex()) && fence_of_begun(&file).is_some_and(|f| f <= stage.fence);
        let Ok(metadata) = entry.metadata() else { continue };
        let length = metadata.len();
        let longer = longest.as_ref().is_none_or(|(_, known)| length > *known);
        if ours && metadata.is_file() && length > 0 && length < blob.size && longer {
            longest = Some((format!("{blobs}/{file}"), length));
        }
    }
    Ok(longest)
}

fn remove(dir: &Dir, path: &str) -> Result<()> {
    match dir.remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("removing", path)(error)),
        _ => Ok(()),
    }
}

/// Reads a file again and compares its bytes with the digest.
fn verify(dir: &Dir, path: &str, blob: &Descriptor) -> Result<()> {
    let mut file = open_file(dir, path)?;
    let (actual, size) = hash(&mut file).map_err(Error::io("reading", path))?;
    if size != blob.size {
        let image = path.to_owned();
        return Err(Error::SizeMismatch { image, digest: blob.digest, expected: blob.size, actual: size });
    }
    if actual != blob.digest {
        return Err(Error::DigestMismatch { image: path.to_owned(), expected: blob.digest, actual });
    }
    Ok(())
}

fn hash(file: &mut File) -> io::Result<(Digest, u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut size = 0;
    loop {
        let length = fill(file, &mut buffer)?;
        if length == 0 {
            return Ok((Digest::new(hasher.finalize().into()), size));
        }
        size += length as u64;
        hasher.update(&buffer[..length]);
    }
}

/// Writes a blob as its pieces come, from the byte `from` on, and gives it its name when it is whole, durable and verified. What
/// a stream that broke off has brought is left for whoever goes on with it.
pub fn write(dir: &Dir, stage: &Stage, blob: &Descriptor, from: u64, chunks: mpsc::Receiver<Chunk>) -> Result<()> {
    let partial = partial(stage, blob);
    let result = write_partial(dir, &partial, stage, blob, from, chunks).and_then(|()| verify(dir, &partial, blob));
    match result {
        Ok(()) => {
            let own = path(&stage.name, blob.digest);
            dir.rename(&partial, dir, &own).map_err(Error::io("renaming", own))
        }
        Err(Error::Interrupted) if may_go_on(dir, &partial, blob) => Err(Error::Interrupted),
        Err(error) => {
            // What is wrong is told; that its remains could not be removed either would only hide it.
            let _ = remove(dir, &partial);
            // The beginning was another writer's, and may never have reached the disk whole.
            let begun_wrong = from > 0 && matches!(error, Error::DigestMismatch { .. });
            Err(if begun_wrong { Error::UploadGone(partial) } else { error })
        }
    }
}

/// Whether what a stream that broke off has brought is worth keeping. As many bytes as there should be, and no end: they were wrong.
fn may_go_on(dir: &Dir, partial: &str, blob: &Descriptor) -> bool {
    is_kept(blob) && dir.metadata(partial).is_ok_and(|there| (1..blob.size).contains(&there.len()))
}

/// Removes what writers have left of a blob.
pub fn forsake(dir: &Dir, name: &ImageName, digest: Digest) -> Result<()> {
    let blobs = layout::blobs(name);
    let entries = match dir.read_dir(&blobs) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::io("listing", &blobs))?,
    };
    for entry in entries {
        let file = entry.map_err(Error::io("listing", &blobs))?.file_name().to_string_lossy().into_owned();
        if file.starts_with(&digest.hex()) && fence_of_begun(&file).is_some() {
            remove(dir, &format!("{blobs}/{file}"))?;
        }
    }
    Ok(())
}

/// Writes a blob under a name of its own. The beginning that another writer left is copied, not taken over: that writer may be
/// alive, and still hold the file open.
fn write_partial(
    dir: &Dir,
    path: &str,
    stage: &Stage,
    blob: &Descriptor,
    from: u64,
    mut chunks: mpsc::Receiver<Chunk>,
) -> Result<()> {
    let mut file = create(dir, path)?;
    if from > 0 {
        let gone = || Error::UploadGone(path.to_owned());
        let (begun, _) = longest_partial(dir, stage, blob)?.filter(|(_, length)| *length >= from).ok_or_else(gone)?;
        let beginning = open_file(dir, &begun)?;
        let copied = io::copy(&mut beginning.take(from), &mut file).map_err(Error::io("copying", &begun))?;
        remove(dir, &begun)?;
        if copied != from {
            return Err(gone());
        }
    }
    let mut written = from;
    loop {
        match chunks.blocking_recv() {
            Some(Chunk::Data(bytes)) => {
                written += bytes.len() as u64;
                if written > blob.size {
                    break;
                }
                file.write_all(&bytes).map_err(Error::io("writing", path))?;
            }
            Some(Chunk::End) => break,
            None => return Err(Error::Interrupted),
        }
    }
    if written != blob.size {
        let image = stage.name.to_string();
        return Err(Error::SizeMismatch { image, digest: blob.digest, expected: blob.size, actual: written });
    }
    file.sync_all().map_err(Error::io("syncing", path))
}

/// Writes a small blob durably and in one step.
pub fn write_small(dir: &Dir, stage: &Stage, blob: &Descriptor, content: &[u8]) -> Result<()> {
    let partial = partial(stage, blob);
    write_file(dir, &partial, content)?;
    let own = path(&stage.name, blob.digest);
    dir.rename(&partial, dir, &own).map_err(Error::io("renaming", own))
}

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
