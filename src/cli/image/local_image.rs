//! Opens an image on this machine: a disk, an OCI layout or an archive.

use std::{path::Path, sync::Arc};

use super::{Error, Result};
use crate::{
    domain::{Digest, ForeignText, ImageKind, ImageName},
    storage::{Archive, DirStore, DiskFile, Source, split_digest},
};

/// An image on this machine.
pub struct LocalImage {
    /// The kind under which the image is registered.
    pub kind: ImageKind,
    /// The source that reads the image.
    pub source: Arc<dyn Source>,
    /// The name of the image in the source.
    pub name: ImageName,
    /// A warning if the user gave a name and a digest, and the name now refers to another digest.
    pub warning: Option<String>,
}

impl LocalImage {
    /// Opens a disk file, or an image of a layout or archive, given as `PATH[:NAME][@DIGEST]`.
    pub async fn open(file: Option<&Path>, layout: Option<&str>) -> Result<Self> {
        match (file, layout) {
            (Some(file), _) => {
                let disk = DiskFile::open(file)
                    .await
                    .map_err(Error::local(format!("failed to open the disk file {}", file.display())))?;
                let name = ImageName(file.display().to_string());
                Ok(Self { kind: ImageKind::Vm, source: Arc::new(disk), name, warning: None })
            }
            (None, Some(layout)) => Self::open_layout(layout).await,
            (None, None) => Err(Error::usage("one of --file, --oci, --vm-image and --registry-url is needed")),
        }
    }

    async fn open_layout(text: &str) -> Result<Self> {
        let (path, image) = split_name(text, |path| Path::new(path).exists());
        // A name may itself contain an `@`.
        let (image, digest) = image.map(|image| split_digest(image).unwrap_or((image, None))).unzip();
        let (image, digest) = (image.map(str::to_owned), digest.flatten());
        // The digest takes precedence over the name.
        let selected = digest.map(|digest| digest.to_string()).or_else(|| image.clone());
        let full = Path::new(path).canonicalize().map_err(Error::local(format!("failed to open the layout {path}")))?;
        let (Some(parent), Some(name)) = (full.parent(), full.file_name()) else {
            return Err(Error::usage(format!("--oci {path}: not an OCI layout or an archive")));
        };
        let name = ImageName(name.to_string_lossy().into_owned());
        let (source, by_name): (Arc<dyn Source>, Arc<dyn Source>) = if full.is_dir() {
            let layout = DirStore::new(parent);
            (Arc::new(layout.with_name(selected)), Arc::new(layout.with_name(image.clone())))
        } else {
            let archive = Archive::open(&full, selected)
                .await
                .map_err(Error::local(format!("failed to open the archive {path}")))?;
            (Arc::new(archive.clone()), Arc::new(archive.with_name(image.clone())))
        };
        let warning = match (image, digest) {
            (Some(image), Some(digest)) => moved_name(&*by_name, &name, &image, digest).await,
            _ => None,
        };
        Ok(Self { kind: ImageKind::Container, source, name, warning })
    }
}

/// Returns a warning if the image with the given name has a digest other than `digest`, which was given with the name.
async fn moved_name(by_name: &dyn Source, layout: &ImageName, image: &str, digest: Digest) -> Option<String> {
    // If no image has that name, the digest alone selects the image.
    let shown = by_name.root(layout).await.ok()??.digest;
    let image = ForeignText::value(image);
    (shown != digest).then(|| format!("{image} has digest {shown} now; {digest} is added, as given"))
}

/// Splits `text` into the path of a layout and the name of an image in it. Both may have colons: the longest prefix
/// that exists is the path. If no prefix exists, the path ends at the first colon, as in skopeo.
fn split_name(text: &str, exists: impl Fn(&str) -> bool) -> (&str, Option<&str>) {
    if exists(text) {
        return (text, None);
    }
    let separators = || text.match_indices([':', '@']).map(|(index, _)| index);
    match separators().rev().find(|index| exists(&text[..*index])).or_else(|| separators().next()) {
        Some(index) => (&text[..index], Some(&text[index + 1..])),
        None => (text, None),
    }
}

#[cfg(test)]
mod tests {
    use super::split_name;

    #[test]
    fn a_layout_and_a_name_may_both_have_colons() {
        let exists = |path: &str| ["many", "a:b", "a"].contains(&path);
        for (text, path, name) in [
            ("many", "many", None),
            ("many:platform/mysql:8.0.27-aarch64", "many", Some("platform/mysql:8.0.27-aarch64")),
            ("many@sha256:00", "many", Some("sha256:00")),
            ("many:x/y:1@sha256:00", "many", Some("x/y:1@sha256:00")),
            ("a:b", "a:b", None),
            ("a:b:c", "a:b", Some("c")),
            ("a:c", "a", Some("c")),
            ("none:localhost/x:1", "none", Some("localhost/x:1")),
            ("none", "none", None),
        ] {
            assert_eq!(split_name(text, exists), (path, name), "{text}");
        }
    }
}
