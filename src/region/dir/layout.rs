//! One image's directory: an OCI image layout (image specification 1.1, "OCI Image Layout"). It is visible by its
//! `index.json`, which is written last and in one step.

use std::{io, path::Path};

use cap_std::fs::Dir;
use serde::{Deserialize, Serialize};

use super::blob;
use crate::{
    domain::{Descriptor, ImageName},
    region::{Error, MAX_MANIFEST_BYTES, Result, Stage, tree::Reference},
};

const BLOBS: &str = "blobs/sha256";
const INDEX: &str = "index.json";
const MARKER: &str = "oci-layout";
const MARKER_CONTENT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
/// The annotation by which an entry of an index is known (image specification 1.1, "Pre-Defined Annotation Keys").
const REF_NAME: &str = "org.opencontainers.image.ref.name";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    manifests: Vec<Reference>,
}

/// The directory of an image's blobs.
pub fn blobs(name: &ImageName) -> String {
    format!("{name}/{BLOBS}")
}

/// The root of an image: the only entry of its index, or the one that has the tag.
pub fn root(dir: &Dir, name: &ImageName, tag: Option<&str>) -> Result<Option<Descriptor>> {
    let path = format!("{name}/{INDEX}");
    let content = match blob::read_bounded(dir, &path, MAX_MANIFEST_BYTES) {
        Ok(content) => content,
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let index: Index = serde_json::from_slice(&content).map_err(|error| Error::malformed(&path, error))?;
    if index.schema_version != 2 {
        return Err(Error::malformed(path, format!("its schemaVersion is {}, not 2", index.schema_version)));
    }
    let tag_of = |entry: &Reference| Some(entry.annotations.as_ref()?.get(REF_NAME)?.as_str()?.to_owned());
    let chosen = match (tag, &index.manifests[..]) {
        (None, [only]) => only,
        (None, entries) => {
            let tags = entries.iter().filter_map(tag_of).collect::<Vec<_>>().join(", ");
            let reason = format!("it has {} images and no tag says which; its tags are: {tags}", entries.len());
            return Err(Error::malformed(path, reason));
        }
        (Some(tag), entries) => {
            let found = entries.iter().find(|entry| tag_of(entry).as_deref() == Some(tag));
            found.ok_or_else(|| Error::malformed(path.as_str(), format!("it has no image with the tag {tag:?}")))?
        }
    };
    chosen.parse().map(Some).map_err(Error::digest(path))
}

/// Whether a whole image of that name is visible.
pub fn is_visible(dir: &Dir, name: &ImageName) -> bool {
    dir.is_file(format!("{name}/{INDEX}"))
}

/// Makes the directories of an image, and removes what claims before this one left unfinished.
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
pub fn publish(dir: &Dir, stage: &Stage, root: &Descriptor) -> Result<()> {
    let name = &stage.name;
    sync_dir(dir, &blobs(name))?;
    sync_dir(dir, &format!("{name}/blobs"))?;
    replace(dir, stage, MARKER, MARKER_CONTENT.as_bytes())?;
    let index = Index {
        schema_version: 2,
        media_type: Some("application/vnd.oci.image.index.v1+json".into()),
        manifests: vec![Reference {
            media_type: root.media_type.clone(),
            digest: root.digest.to_string(),
            size: root.size,
            annotations: None,
        }],
    };
    let content = serde_json::to_vec(&index).map_err(|error| Error::malformed(INDEX, error))?;
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
