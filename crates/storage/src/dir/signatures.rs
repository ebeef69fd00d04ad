//! Second layout of an image for signature tools, at `<image>/signatures/`: it shares the blobs by a symbolic link, and
//! its index also lists the image's referrers.
//!
//! Signature tools look in the index for referrers, and other tools find the image without a name only if the index
//! lists nothing else ([`crate::layout`]). This service never reads the layout.

use cap_std::fs::Dir;
use domain::ImageName;

use super::{blob, write};
use crate::{
    Error, Result, Stage,
    layout::{INDEX, MARKER, MARKER_CONTENT},
};

/// The name of the layout's directory, within the image's directory.
const SIGNATURES: &str = "signatures";
/// The link to the image's blobs, and its target.
const BLOBS: &str = "blobs";
const IMAGES_BLOBS: &str = "../blobs";

/// Writes the layout with the given index, or removes the layout if `index` is `None`. Fails on a file system without
/// symbolic links.
pub fn show(dir: &Dir, stage: &Stage, index: Option<&[u8]>) -> Result<()> {
    let layout = path(&stage.name);
    let Some(index) = index else { return remove(dir, &stage.name) };
    dir.create_dir_all(&layout).map_err(Error::io("creating", &layout))?;
    let link = format!("{layout}/{BLOBS}");
    if dir.read_link(&link).is_err() {
        dir.symlink(IMAGES_BLOBS, &link).map_err(Error::io("linking", link))?;
    }
    write_new(dir, stage, MARKER, MARKER_CONTENT.as_bytes())?;
    write_new(dir, stage, INDEX, index)
}

/// Removes the layout, if there is one.
pub fn remove(dir: &Dir, name: &ImageName) -> Result<()> {
    let layout = path(name);
    if !dir.is_dir(&layout) {
        return Ok(());
    }
    for file in [INDEX, MARKER, BLOBS] {
        blob::remove(dir, &format!("{layout}/{file}"))?;
    }
    dir.remove_dir(&layout).map_err(Error::io("removing", layout))
}

fn path(name: &ImageName) -> String {
    format!("{name}/{SIGNATURES}")
}

/// Writes an unfinished file to the image's directory, where the cleanup finds it, and renames it into place.
fn write_new(dir: &Dir, stage: &Stage, file: &str, content: &[u8]) -> Result<()> {
    let staged = super::partial::replacement(stage, file);
    write::write_file(dir, &staged, content)?;
    let to = format!("{}/{file}", path(&stage.name));
    dir.rename(&staged, dir, &to).map_err(Error::io("renaming", to))
}
