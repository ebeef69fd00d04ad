//! Finds and removes leftovers in a directory: unfinished files, and images that are not visible.

use std::io;

use cap_std::fs::{Dir, Metadata};
use domain::{Digest, ImageName, Leftover, PartialFile, StoreEntry, Timestamp};

use super::{
    blob,
    fence::{self, FENCE, Lock},
    layout,
    operations::Progress,
    partial, signatures,
};
use crate::{
    Error, Result,
    layout::{BLOBS, INDEX, MARKER},
};

/// Returns the directory of every image that has unfinished files, or that this service has prepared but not made
/// visible.
pub fn find(dir: &Dir, progress: &Progress) -> Result<Vec<StoreEntry>> {
    let mut images = Vec::new();
    for entry in dir.entries().map_err(Error::io("listing", "."))? {
        let entry = entry.map_err(Error::io("listing", "."))?;
        progress.tick();
        let (Ok(kind), Ok(name)) = (entry.file_type(), entry.file_name().into_string()) else { continue };
        if !kind.is_dir() {
            continue;
        }
        match find_image(dir, ImageName(name)) {
            Ok(Some(image)) => images.push(image),
            // Not a layout, or removed just now.
            Ok(None) => {}
            Err(Error::Io { source, .. }) if gone(&source) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(images)
}

fn gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Examines an image's directory. Returns `None` if nothing in it can be a leftover.
fn find_image(dir: &Dir, name: ImageName) -> Result<Option<StoreEntry>> {
    let mut image = StoreEntry {
        visible: layout::is_visible(dir, &name),
        fence: fence::read(dir, &name),
        bytes: 0,
        changed: Timestamp::from_millis(0),
        partials: Vec::new(),
        name,
    };
    let blobs: Vec<String> = layout::blob_directories(dir, &image.name).map(|(_, path)| path).collect();
    // The directory is neither a layout nor left from an interrupted removal.
    if blobs.is_empty() && image.fence.is_none() {
        return Ok(None);
    }
    for directory in blobs.into_iter().chain([image.name.0.clone()]) {
        let metadata = dir.metadata(&directory).map_err(Error::io("reading", &directory))?;
        image.changed = image.changed.max(changed(&metadata));
        for entry in dir.read_dir(&directory).map_err(Error::io("listing", &directory))? {
            let entry = entry.map_err(Error::io("listing", &directory))?;
            let Ok(file) = entry.file_name().into_string() else { continue };
            let unfinished = partial::parse(&file).is_some();
            // Only the unfinished files of a visible image matter.
            if image.visible && !unfinished {
                continue;
            }
            let Ok(metadata) = entry.metadata() else { continue };
            if !metadata.is_file() {
                continue;
            }
            image.changed = image.changed.max(changed(&metadata));
            image.bytes += metadata.len();
            if unfinished {
                let path = format!("{directory}/{file}");
                image.partials.push(PartialFile { path, bytes: metadata.len(), changed: changed(&metadata) });
            }
        }
    }
    let ours = !image.partials.is_empty() || (!image.visible && image.fence.is_some());
    Ok(ours.then_some(image))
}

/// Returns the time of the last modification, by the clock of the file system.
fn changed(metadata: &Metadata) -> Timestamp {
    use cap_std::fs::MetadataExt as _;
    Timestamp::from_millis(metadata.mtime().saturating_mul(1_000))
}

/// Removes a leftover. Returns false and keeps the leftover if it is locked or has changed since it was found, because
/// a newer claim may use it.
pub fn clear(dir: &Dir, leftover: &Leftover, progress: &Progress) -> Result<bool> {
    match leftover {
        Leftover::File(file) => {
            let is_same = |now: &Metadata| (now.len(), changed(now)) == (file.bytes, file.changed);
            if !dir.metadata(&file.path).is_ok_and(|now| is_same(&now)) {
                return Ok(false);
            }
            blob::remove(dir, &file.path)?;
            Ok(true)
        }
        Leftover::Image(image) => {
            let Some(lock) = Lock::try_acquire(dir, &image.name)? else { return Ok(false) };
            if lock.fence()? != image.fence || layout::is_visible(dir, &image.name) {
                return Ok(false);
            }
            remove_image(dir, &image.name, progress)?;
            drop(lock);
            Ok(true)
        }
    }
}

/// Removes an image that was published under a fence. Returns false if a later claim has prepared the directory, or
/// another process holds the lock.
pub fn discard(dir: &Dir, name: &ImageName, fence: u64, progress: &Progress) -> Result<bool> {
    let Some(lock) = Lock::try_acquire(dir, name)? else { return Ok(false) };
    if lock.fence()? != Some(fence) {
        return Ok(false);
    }
    blob::remove(dir, &format!("{name}/{INDEX}"))?;
    remove_image(dir, name, progress)?;
    drop(lock);
    Ok(true)
}

/// Removes the files of an image that is not visible, and then its empty directories. The caller holds the lock. The
/// fence is removed last, so that the next search finds an interrupted removal.
fn remove_image(dir: &Dir, name: &ImageName, progress: &Progress) -> Result<()> {
    signatures::remove(dir, name)?;
    for (algorithm, blobs) in layout::blob_directories(dir, name) {
        let is_blob = |file: &str| Digest::from_hex(file).is_some_and(|digest| digest.algorithm() == algorithm);
        remove_files(dir, &blobs, |file| is_blob(file) || partial::parse(file).is_some(), progress)?;
        remove_dir(dir, &blobs)?;
    }
    remove_files(dir, &name.0, |file| file == MARKER || partial::parse(file).is_some(), progress)?;
    remove_dir(dir, &format!("{name}/{BLOBS}"))?;
    blob::remove(dir, &format!("{name}/{FENCE}"))?;
    remove_dir(dir, &name.0)
}

fn remove_files(dir: &Dir, directory: &str, chosen: impl Fn(&str) -> bool, progress: &Progress) -> Result<()> {
    for entry in dir.read_dir(directory).map_err(Error::io("listing", directory))? {
        let file = entry.map_err(Error::io("listing", directory))?.file_name();
        if let Some(file) = file.to_str().filter(|file| chosen(file)) {
            blob::remove(dir, &format!("{directory}/{file}"))?;
            progress.tick();
        }
    }
    Ok(())
}

/// Removes a directory if it is empty.
fn remove_dir(dir: &Dir, path: &str) -> Result<()> {
    match dir.remove_dir(path) {
        Err(error) if !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotFound) => {
            Err(Error::io("removing", path)(error))
        }
        _ => Ok(()),
    }
}
