//! What `appferry image add` puts into the home region's store: a disk, a layout or an archive of this machine.

use std::{path::Path, sync::Arc};

use super::{Error, Result};
use crate::{
    domain::{Digest, ForeignText, ImageKind, ImageName},
    region::{Archive, DirStore, DiskFile, Source, split_digest},
};

/// What an image is made from.
pub struct Origin {
    /// Which kind it is registered as.
    pub kind: ImageKind,
    /// Where it is read, and by which name.
    pub source: Arc<dyn Source>,
    pub name: ImageName,
    /// What the name shows by now, where the image was named by its digest as well and that is another one.
    pub warning: Option<String>,
}

impl Origin {
    /// Opens a disk file, or a layout or an archive with the name of an image in it.
    pub async fn open(file: Option<&Path>, layout: Option<&str>) -> Result<Self> {
        match (file, layout) {
            (Some(file), _) => {
                let disk = DiskFile::open(file).await.map_err(Error::local("the disk file"))?;
                let name = ImageName(file.display().to_string());
                Ok(Self { kind: ImageKind::Vm, source: Arc::new(disk), name, warning: None })
            }
            (None, Some(layout)) => Self::layout(layout).await,
            (None, None) => Err(Error::Usage("--file, --oci, --vm-image or --registry-url is needed".to_owned())),
        }
    }

    async fn layout(text: &str) -> Result<Self> {
        let (path, within) = split_name(text, |path| Path::new(path).exists());
        // A name may have an @ of its own.
        let (called, digest) = within.map(|within| split_digest(within).unwrap_or((within, None))).unzip();
        let (called, digest) = (called.map(str::to_owned), digest.flatten());
        let meant = digest.map(|digest| digest.to_string()).or_else(|| called.clone());
        let full = Path::new(path).canonicalize().map_err(Error::local(format!("the layout {path}")))?;
        let (Some(parent), Some(name)) = (full.parent(), full.file_name()) else {
            return Err(Error::Usage(format!("--oci {path}: it is no layout")));
        };
        let name = ImageName(name.to_string_lossy().into_owned());
        let (source, by_name): (Arc<dyn Source>, Arc<dyn Source>) = if full.is_dir() {
            let layout = DirStore::new(parent);
            (Arc::new(layout.with_name(meant)), Arc::new(layout.with_name(called.clone())))
        } else {
            let archive = Archive::open(&full, meant).await.map_err(Error::local("the archive"))?;
            (Arc::new(archive.clone()), Arc::new(archive.with_name(called.clone())))
        };
        let warning = match (called, digest) {
            (Some(called), Some(digest)) => moved(&*by_name, &name, &called, digest).await,
            _ => None,
        };
        Ok(Self { kind: ImageKind::Container, source, name, warning })
    }
}

/// Says what an image's name shows, if that is not the image of the digest that was named with it.
async fn moved(by_name: &dyn Source, layout: &ImageName, called: &str, digest: Digest) -> Option<String> {
    // A name that the layout does not have shows nothing: the digest says all.
    let shown = by_name.root(layout).await.ok()??.digest;
    let called = ForeignText::value(called);
    (shown != digest).then(|| format!("{called} shows {shown} by now; {digest} is added, as was asked for"))
}

/// Parts a layout's path from the name of an image in it. Both may have colons: the longest path that exists is the layout's. If there is
/// none, it ends at the first colon, as skopeo has it.
fn split_name(text: &str, exists: impl Fn(&str) -> bool) -> (&str, Option<&str>) {
    if exists(text) {
        return (text, None);
    }
    let places = || text.match_indices([':', '@']).map(|(place, _)| place);
    match places().rev().find(|place| exists(&text[..*place])).or_else(|| places().next()) {
        Some(place) => (&text[..place], Some(&text[place + 1..])),
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
