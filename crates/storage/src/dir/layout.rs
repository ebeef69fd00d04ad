//! An image's directory as an OCI image layout (image specification 1.1, "OCI Image Layout"). The image becomes visible
//! when its `index.json` is written, last and atomically.

use std::io;

use cap_std::fs::Dir;
use domain::{Algorithm, Descriptor, ImageName};

use super::{
    blob,
    partial::{self, Partial},
};
use crate::{
    Error, MAX_MANIFEST_BYTES, Result,
    layout::{BLOBS, INDEX, Index},
};

/// Returns the directory of an image's blobs with digests of one algorithm.
pub fn blobs(name: &ImageName, algorithm: Algorithm) -> String {
    format!("{name}/{BLOBS}/{algorithm}")
}

/// Returns the existing directories of an image's blobs.
pub fn blob_directories(dir: &Dir, name: &ImageName) -> impl Iterator<Item = (Algorithm, String)> {
    let directories = Algorithm::ALL.map(|algorithm| (algorithm, blobs(name, algorithm)));
    directories.into_iter().filter(|(_, path)| dir.is_dir(path))
}

/// Reads the index of an image's layout. Returns `None` if there is none.
pub fn index(dir: &Dir, name: &ImageName) -> Result<Option<Index>> {
    let path = format!("{name}/{INDEX}");
    match blob::read_bounded(dir, &path, MAX_MANIFEST_BYTES) {
        Ok(content) => Index::parse(&path, &content).map(Some),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the root of an image: the manifest that the layout lists under the name `within`, or the only one.
pub fn root(dir: &Dir, name: &ImageName, within: Option<&str>) -> Result<Option<Descriptor>> {
    index(dir, name)?.map(|index| index.root(within)).transpose()
}

/// Returns whether a complete image of that name is visible.
pub fn is_visible(dir: &Dir, name: &ImageName) -> bool {
    dir.is_file(format!("{name}/{INDEX}"))
}

/// Creates the directories of an image. The directories for digest algorithms other than the canonical one are created
/// on demand, because few images need them.
pub fn create(dir: &Dir, name: &ImageName) -> Result<()> {
    let blobs = blobs(name, Algorithm::CANONICAL);
    dir.create_dir_all(&blobs).map_err(Error::io("creating", &blobs))
}

/// Creates the directory of an image's blobs of one algorithm. Fails if the cleanup of leftovers has removed the
/// image's directory.
pub fn create_blobs(dir: &Dir, name: &ImageName, algorithm: Algorithm) -> Result<()> {
    let blobs = blobs(name, algorithm);
    match dir.create_dir(&blobs) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(Error::io("creating", blobs)(error)),
        _ => Ok(()),
    }
}

/// Removes the unfinished files of claims before `fence`. Keeps large blobs, which the new claim resumes.
pub fn clear_overtaken(dir: &Dir, name: &ImageName, fence: u64) -> Result<()> {
    let overtaken = |partial: Partial, left: u64| !matches!(partial, Partial::Resumable(_)) && left < fence;
    for (_, blobs) in blob_directories(dir, name) {
        clear(dir, &blobs, overtaken)?;
    }
    clear(dir, &name.0, overtaken)
}

/// Removes from a directory the unfinished files that `chosen` selects.
pub fn clear(dir: &Dir, path: &str, chosen: impl Fn(Partial, u64) -> bool) -> Result<()> {
    for entry in dir.read_dir(path).map_err(Error::io("listing", path))? {
        let entry = entry.map_err(Error::io("listing", path))?;
        let file = entry.file_name();
        if file.to_str().and_then(partial::parse).is_some_and(|(partial, fence)| chosen(partial, fence)) {
            entry.remove_file().or_else(gone_is_fine).map_err(Error::io("removing", file.to_string_lossy()))?;
        }
    }
    Ok(())
}

fn gone_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
