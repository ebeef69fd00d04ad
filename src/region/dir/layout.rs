//! One image's directory: an OCI image layout (image specification 1.1, "OCI Image Layout"). It is visible by its
//! `index.json`, which is written last and in one step.

use std::{io, path::Path};

use cap_std::fs::Dir;

use super::blob;
use crate::{
    domain::{Descriptor, Digest, ImageName},
    region::{
        Error, MAX_MANIFEST_BYTES, Result, Stage, Tree,
        layout::{BLOBS, INDEX, Index, MARKER, MARKER_CONTENT},
        tree::{self, Entry},
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
pub fn referrers(dir: &Dir, name: &ImageName, subject: Digest) -> Result<Vec<Entry>> {
    let Some(list) = index(dir, name)?.map(|index| index.referrers(subject)).transpose()?.flatten() else {
        return Ok(Vec::new());
    };
    let content = blob::read_whole(dir, name, &list)?;
    tree::entries(&content).map_err(|error| Error::malformed(format!("the referrers of {subject}"), error))
}

/// Whether a whole image of that name is visible.
pub fn is_visible(dir: &Dir, name: &ImageName) -> bool {
    dir.is_file(format!("{name}/{INDEX}"))
}

/// Makes the directories of an image, and removes what claims before this one left unfinished; but for the beginnings of
/// large blobs, which this one may go on with.
pub fn prepare(dir: &Dir, stage: &Stage) -> Result<()> {
    let blobs = blobs(&stage.name);
    dir.create_dir_all(&blobs).map_err(Error::io("creating", &blobs))?;
    clear(dir, &blobs, stage.fence, blob::fence_of_partial)?;
    clear(dir, &stage.name.0, stage.fence, fence_of_replacement)
}

/// Removes the files of a directory that bear a fence before `fence`.
fn clear(dir: &Dir, path: &str, fence: u64, fence_of: impl Fn(&str) -> Option<u64>) -> Result<()> {
    for entry in dir.read_dir(path).map_err(Error::io("listing", path))? {
        let entry = entry.map_err(Error::io("listing", path))?;
        let file = entry.file_name();
        if file.to_str().and_then(&fence_of).is_some_and(|left| left < fence) {
            entry.remove_file().or_else(gone_is_fine).map_err(Error::io("removing", file.to_string_lossy()))?;
        }
    }
    Ok(())
}

/// The fence of the claim that was about to replace a file of the layout.
fn fence_of_replacement(file: &str) -> Option<u64> {
    let (replaced, mark) = file.strip_prefix('.')?.rsplit_once('.')?;
    if [INDEX, MARKER].contains(&replaced) { blob::fence_of_mark(mark) } else { None }
}

fn gone_is_fine(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Makes the image visible: first everything that it needs, then, in one step, its index.
pub fn publish(dir: &Dir, stage: &Stage, tree: &Tree) -> Result<()> {
    let name = &stage.name;
    let Some((root, _)) = tree.manifests.last() else { return Err(Error::ImageMissing(name.to_string())) };
    for referrers in &tree.referrers {
        let (descriptor, content) = referrers.index();
        blob::write_small(dir, stage, &descriptor, &content)?;
    }
    clear(dir, &blobs(name), stage.fence + 1, blob::fence_of_begun)?;
    sync_dir(dir, &blobs(name))?;
    sync_dir(dir, &format!("{name}/blobs"))?;
    replace(dir, stage, MARKER, MARKER_CONTENT.as_bytes())?;
    let content = Index::of(root, tree).content()?;
    replace(dir, stage, INDEX, &content)?;
    sync_dir(dir, &name.0)?;
    sync_dir(dir, ".")
}

/// Writes a file of the layout durably and in one step.
fn replace(dir: &Dir, stage: &Stage, file: &str, content: &[u8]) -> Result<()> {
    let path = format!("{}/{file}", stage.name);
    let partial = format!("{}/.{file}.{}", stage.name, blob::mark(stage));
    blob::write_file(dir, &partial, content)?;
    dir.rename(&partial, dir, &path).map_err(Error::io("renaming", path))
}

/// Makes the entries of a directory durable.
pub fn sync_dir(dir: &Dir, path: &str) -> Result<()> {
    let sync = || dir.open(Path::new(path))?.sync_all();
    sync().map_err(Error::io("syncing", path))
}
