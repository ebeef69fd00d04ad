//! One image's directory: an OCI image layout (image specification 1.1, "OCI Image Layout"). It is visible by its
//! `index.json`, which is written last and in one step.

use std::io;

use cap_std::fs::Dir;

use super::{
    blob,
    partial::{self, Partial},
};
use crate::{
    domain::{Descriptor, ImageName},
    region::{
        Error, MAX_MANIFEST_BYTES, Result,
        layout::{BLOBS, INDEX, Index},
    },
};

/// The directory of an image's blobs.
pub fn blobs(name: &ImageName) -> String {
    format!("{name}/{BLOBS}")
}

/// The index of an image's layout; nothing if there is none.
pub fn index(dir: &Dir, name: &ImageName) -> Result<Option<Index>> {
    let path = format!("{name}/{INDEX}");
    match blob::read_bounded(dir, &path, MAX_MANIFEST_BYTES) {
        Ok(content) => Index::parse(&path, &content).map(Some),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The root of an image: the one that the layout has under a name, or the only one.
pub fn root(dir: &Dir, name: &ImageName, within: Option<&str>) -> Result<Option<Descriptor>> {
    index(dir, name)?.map(|index| index.root(within)).transpose()
}

/// Whether a whole image of that name is visible.
pub fn is_visible(dir: &Dir, name: &ImageName) -> bool {
    dir.is_file(format!("{name}/{INDEX}"))
}

/// Makes the directories of an image.
pub fn create(dir: &Dir, name: &ImageName) -> Result<()> {
    let blobs = blobs(name);
    dir.create_dir_all(&blobs).map_err(Error::io("creating", &blobs))
}

/// Removes what claims before the one with that fence left unfinished; but for large blobs, which it resumes.
pub fn clear_overtaken(dir: &Dir, name: &ImageName, fence: u64) -> Result<()> {
    let overtaken = |partial: Partial, left: u64| !matches!(partial, Partial::Resumable(_)) && left < fence;
    clear(dir, &blobs(name), overtaken)?;
    clear(dir, &name.0, overtaken)
}

/// Removes those unfinished files of a directory that are chosen.
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
