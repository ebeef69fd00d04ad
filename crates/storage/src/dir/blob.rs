//! Blob files, `<image>/blobs/<algorithm>/<hex>`. A file gets this name only once it is complete, durable and verified.

use std::io::{self, Read as _, Seek as _, SeekFrom};

use bytes::{Bytes, BytesMut};
use cap_std::fs::{Dir, DirEntry, File};
use domain::{Algorithm, Descriptor, Digest, ImageName, Verification};

use super::{
    layout,
    operations::Progress,
    partial::{self, Partial},
};
use crate::{CHUNK_BYTES, Error, Presence, Result, Stage};

/// Returns the path of a blob, relative to the store's directory.
pub fn path(name: &ImageName, digest: Digest) -> String {
    format!("{name}/{}", crate::layout::blob_path(digest))
}

/// Opens a regular file. Rejects anything else, such as a directory or a pipe, without opening it, because the open may
/// block.
pub fn open_file(dir: &Dir, path: &str) -> Result<File> {
    let kind = dir.metadata(path).map_err(Error::io("reading", path))?;
    if !kind.is_file() {
        return Err(Error::malformed(path, "it is not a file"));
    }
    dir.open(path).map_err(Error::io("reading", path))
}

/// Reads a file of at most `limit` bytes.
pub fn read_bounded(dir: &Dir, path: &str, limit: u64) -> Result<Vec<u8>> {
    let file = open_file(dir, path)?;
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content).map_err(Error::io("reading", path))?;
    if content.len() as u64 > limit {
        return Err(Error::malformed(path, format!("it has more than {limit} bytes")));
    }
    Ok(content)
}

/// Opens a blob for reading, starting at the byte offset `from`. Fails if its file does not have the blob's size.
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

/// Reads all of a small blob and verifies its digest.
pub fn read_whole(dir: &Dir, name: &ImageName, blob: &Descriptor) -> Result<Bytes> {
    let mut content = Vec::new();
    let file = open(dir, name, blob, 0)?;
    file.take(blob.size).read_to_end(&mut content).map_err(Error::io("reading", path(name, blob.digest)))?;
    let actual = blob.digest.algorithm().digest(&content);
    if actual == blob.digest {
        Ok(content.into())
    } else {
        Err(Error::DigestMismatch { image: name.to_string(), expected: blob.digest, actual: Box::new(actual) })
    }
}

/// Reads the next piece of an open blob. Returns `None` at its end.
pub fn read_chunk(file: &mut impl io::Read) -> Result<Option<Bytes>> {
    let mut buffer = BytesMut::zeroed(CHUNK_BYTES);
    let length = fill(file, &mut buffer).map_err(Error::io("reading", "a blob"))?;
    buffer.truncate(length);
    Ok((length > 0).then(|| buffer.freeze()))
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

/// Determines how much of the blob is stored: all of it, intact and durable, or a beginning that an earlier writer
/// left. If another image in the directory has the blob, the blob is linked from there.
///
/// A damaged file is not removed; its replacement is renamed over it. Another writer may have overtaken this claim and
/// may be writing an intact file there.
pub fn stat(dir: &Dir, stage: &Stage, blob: &Descriptor, progress: &Progress) -> Result<Presence> {
    let own = path(&stage.name, blob.digest);
    if is_good(dir, &own, blob, progress) || link(dir, stage, blob, progress)? {
        return Ok(Presence::Whole(Verification::Verified));
    }
    let begun = if partial::is_resumable(blob) { longest_partial(dir, stage, blob)? } else { None };
    Ok(begun.map_or(Presence::Absent, |(_, length)| Presence::Part(length)))
}

/// Returns whether a file has the blob's content. Syncs the file, because its writer may have died before the sync.
fn is_good(dir: &Dir, path: &str, blob: &Descriptor, progress: &Progress) -> bool {
    let check = || {
        verify(dir, path, blob, progress)?;
        open_file(dir, path)?.sync_all().map_err(Error::io("syncing", path))
    };
    check().is_ok()
}

/// Hard-links an intact copy of the blob from another image in the directory. Returns false if the file system has no
/// hard links, or if there is no intact copy; the caller then transfers the bytes.
fn link(dir: &Dir, stage: &Stage, blob: &Descriptor, progress: &Progress) -> Result<bool> {
    let own = path(&stage.name, blob.digest);
    for other in stage.holders.of(blob.digest) {
        let theirs = path(other, blob.digest);
        if !dir.is_file(&theirs) || !layout::is_visible(dir, other) {
            continue;
        }
        layout::create_blobs(dir, &stage.name, blob.digest.algorithm())?;
        let linked = partial::link(stage, blob);
        if dir.hard_link(&theirs, dir, &linked).is_err() {
            continue;
        }
        if is_good(dir, &linked, blob, progress) {
            // The rename replaces a damaged file of the same name.
            dir.rename(&linked, dir, &own).map_err(Error::io("renaming", own))?;
            return Ok(true);
        }
        remove(dir, &linked)?;
    }
    Ok(false)
}

/// Finds the longest unfinished file of the blob that this claim or an earlier one left. Returns its path and length.
pub fn longest_partial(dir: &Dir, stage: &Stage, blob: &Descriptor) -> Result<Option<(String, u64)>> {
    let blobs = layout::blobs(&stage.name, blob.digest.algorithm());
    let mut longest: Option<(String, u64)> = None;
    for entry in entries(dir, &blobs)? {
        let entry = entry.map_err(Error::io("listing", &blobs))?;
        let file = entry.file_name().to_string_lossy().into_owned();
        let ours = matches!(partial::parse(&file), Some((Partial::Resumable(digest), fence)) if digest == blob.digest && fence <= stage.fence);
        let Ok(metadata) = entry.metadata() else { continue };
        let length = metadata.len();
        let longer = longest.as_ref().is_none_or(|(_, known)| length > *known);
        if ours && metadata.is_file() && length > 0 && length < blob.size && longer {
            longest = Some((format!("{blobs}/{file}"), length));
        }
    }
    Ok(longest)
}

/// Lists the entries of a directory. Returns no entries if the directory does not exist.
fn entries(dir: &Dir, path: &str) -> Result<impl Iterator<Item = io::Result<DirEntry>>> {
    match dir.read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None.into_iter().flatten()),
        entries => Ok(Some(entries.map_err(Error::io("listing", path))?).into_iter().flatten()),
    }
}

/// Removes a file. Succeeds if it does not exist.
pub fn remove(dir: &Dir, path: &str) -> Result<()> {
    match dir.remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io("removing", path)(error)),
        _ => Ok(()),
    }
}

/// Reads a file again and verifies its size and digest.
pub fn verify(dir: &Dir, path: &str, blob: &Descriptor, progress: &Progress) -> Result<()> {
    let mut file = open_file(dir, path)?;
    let (actual, size) = hash(&mut file, blob.digest.algorithm(), progress).map_err(Error::io("reading", path))?;
    if size != blob.size {
        let image = path.to_owned();
        return Err(Error::SizeMismatch { image, digest: blob.digest, expected: blob.size, actual: size });
    }
    if actual != blob.digest {
        return Err(Error::DigestMismatch { image: path.to_owned(), expected: blob.digest, actual: Box::new(actual) });
    }
    Ok(())
}

fn hash(file: &mut File, algorithm: Algorithm, progress: &Progress) -> io::Result<(Digest, u64)> {
    let mut hasher = algorithm.hasher();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut size = 0;
    loop {
        let length = fill(file, &mut buffer)?;
        if length == 0 {
            return Ok((hasher.finish(), size));
        }
        size += length as u64;
        hasher.update(&buffer[..length]);
        progress.tick();
    }
}

/// Removes the unfinished files of a large blob.
pub fn remove_partials(dir: &Dir, name: &ImageName, digest: Digest) -> Result<()> {
    let blobs = layout::blobs(name, digest.algorithm());
    for entry in entries(dir, &blobs)? {
        let file = entry.map_err(Error::io("listing", &blobs))?.file_name().to_string_lossy().into_owned();
        if matches!(partial::parse(&file), Some((Partial::Resumable(of), _)) if of == digest) {
            remove(dir, &format!("{blobs}/{file}"))?;
        }
    }
    Ok(())
}
