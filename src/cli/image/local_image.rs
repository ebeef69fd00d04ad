//! Opens an image of this machine: a disk, an OCI layout or an archive.

use std::{path::Path, sync::Arc};

use super::{Error, Result};
use crate::{
    domain::{ImageKind, ImageName},
    region::{Archive, DirStore, DiskFile, Source},
};

/// An image of this machine.
pub struct LocalImage {
    /// The kind that it is registered as.
    pub kind: ImageKind,
    /// The source that reads it.
    pub source: Arc<dyn Source>,
    /// The name of the image in the source.
    pub name: ImageName,
}

impl LocalImage {
    /// Opens a disk file, or an image of a layout or archive, given as `PATH[:NAME]`.
    pub async fn open(file: Option<&Path>, layout: Option<&str>) -> Result<Self> {
        match (file, layout) {
            (Some(file), _) => {
                let disk = DiskFile::open(file)
                    .await
                    .map_err(Error::local(format!("failed to open the disk file {}", file.display())))?;
                Ok(Self { kind: ImageKind::Vm, source: Arc::new(disk), name: ImageName(file.display().to_string()) })
            }
            (None, Some(layout)) => Self::open_layout(layout).await,
            (None, None) => Err(Error::usage("one of --file, --oci, --vm-image and --registry-url is needed")),
        }
    }

    async fn open_layout(text: &str) -> Result<Self> {
        let (path, image) = split_name(text, |path| Path::new(path).exists());
        let image = image.map(str::to_owned);
        let full = Path::new(path).canonicalize().map_err(Error::local(format!("failed to open the layout {path}")))?;
        let (Some(parent), Some(name)) = (full.parent(), full.file_name()) else {
            return Err(Error::usage(format!("--oci {path}: not an OCI layout or an archive")));
        };
        let name = ImageName(name.to_string_lossy().into_owned());
        let source: Arc<dyn Source> = if full.is_dir() {
            Arc::new(DirStore::new(parent).with_name(image))
        } else {
            Arc::new(
                Archive::open(&full, image)
                    .await
                    .map_err(Error::local(format!("failed to open the archive {path}")))?,
            )
        };
        Ok(Self { kind: ImageKind::Container, source, name })
    }
}

/// Splits the path of a layout from the name of an image in it. Both may have colons: the longest existing path is the
/// layout's. Without one, the path ends at the first colon, as in skopeo.
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
