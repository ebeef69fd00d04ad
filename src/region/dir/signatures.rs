//! A second layout inside an image's, `<image>/signatures/`: over the same blobs, by a symbolic link, with an index that lists what refers
//! to the image as well. Programs that look for signatures look in the index, and those that look for the image find it by itself only
//! where nothing else is listed ([`crate::region::layout`]). It is a view for other programs: nothing here reads it.

use cap_std::fs::Dir;

use super::{blob, write};
use crate::{
    domain::ImageName,
    region::{
        Error, Result, Stage,
        layout::{INDEX, MARKER, MARKER_CONTENT},
    },
};

/// The directory of the layout, in the image's.
const SIGNATURES: &str = "signatures";
/// The link to the image's blobs, and where it leads.
const BLOBS: &str = "blobs";
const IMAGES_BLOBS: &str = "../blobs";

/// Shows what refers to the image by this index; without one, nothing. A file system without symbolic links is an error.
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

/// Removes it, if there is one.
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

/// Writes a file beside its place, where an unfinished one of the image is looked for, and puts it there.
fn write_new(dir: &Dir, stage: &Stage, file: &str, content: &[u8]) -> Result<()> {
    let staged = super::partial::replacement(stage, file);
    write::write_file(dir, &staged, content)?;
    let to = format!("{}/{file}", path(&stage.name));
    dir.rename(&staged, dir, &to).map_err(Error::io("renaming", to))
}
