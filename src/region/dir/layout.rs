//! One image's directory: an OCI image layout (image specification 1.1, "OCI Image Layout"). It is visible by its
//! `index.json`, which is written last and in one step.

use std::io;

use cap_std::fs::Dir;

use super::{
    blob,
    partial::{self, Partial},
};
use crate::{
    domain::{Descriptor, Digest, ImageName},
    region::{
        Error, MAX_MANIFEST_BYTES, Result,
        layout::{BLOBS, INDEX, Index},
        referrers::{self, Entry, Listing},
    },
};

/// The directory of an image's blobs.
pub fn blobs(name: &ImageName) -> String {
    format!("{name}/{BLOBS}")
}

/// The index of an image's layout; nothing if there is none.
fn index(dir: &Dir, name: &ImageName) -> Result<Option<Index>> {
    let path = format!("{name}/{INDEX}");
    match blob::read_bounded(dir, &path, MAX_MANIFEST_BYTES) {
        Ok(content) => Index::parse(&path, &content).map(Some),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The root of an image: the one that has the tag, or the only one.
pub fn root(dir: &Dir, name: &ImageName, tag: Option<&str>) -> Result<Option<Descriptor>> {
    index(dir, name)?.map(|index| index.root(tag)).transpose()
}

/// What refers to a manifest of the image.
pub fn referrers(dir: &Dir, name: &ImageName, subject: Digest) -> Result<Listing> {
    let Some(list) = index(dir, name)?.map(|index| index.referrers(subject)).transpose()?.flatten() else {
        return Ok(Listing::default());
    };
    referrers::fits_list(&list)?;
    let content = blob::read_whole(dir, name, &list)?;
    let listed = referrers::entries(&content).map(Listing::from);
    listed.map_err(|error| Error::malformed(format!("the referrers of {subject}"), error))
}

/// What a tag stands for that is beside the image's.
pub fn tagged(dir: &Dir, name: &ImageName, tag: &str) -> Result<Option<Descriptor>> {
    Ok(index(dir, name)?.map(|index| index.tagged(tag)).transpose()?.flatten())
}

/// The manifests that the index lists without naming them.
pub fn unnamed(dir: &Dir, name: &ImageName) -> Result<Vec<Entry>> {
    let path = format!("{name}/{INDEX}");
    let listed = referrers::entries(&blob::read_bounded(dir, &path, MAX_MANIFEST_BYTES)?);
    let listed = listed.map_err(|error| Error::malformed(path, error))?;
    Ok(listed.into_iter().filter(|entry| !entry.has_name()).collect())
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
