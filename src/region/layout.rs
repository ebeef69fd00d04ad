//! The index of an OCI image layout (image specification 1.1, "index.json file"), wherever it lies.

use serde::{Deserialize, Serialize};

use super::{
    Error, ImageSpec, Result, Tree,
    referrers::{is_attached_by, referrers_tag},
    tree::Reference,
};
use crate::domain::{Descriptor, Digest, ForeignText, ImageId, ImageName};

/// The index's file, which makes an image visible.
pub const INDEX: &str = "index.json";
/// The file that says what the directory is, and its content.
pub const MARKER: &str = "oci-layout";
pub const MARKER_CONTENT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
/// The directory of the blobs.
pub const BLOBS: &str = "blobs/sha256";

/// The annotation by which an entry of an index is known (image specification 1.1, "Pre-Defined Annotation Keys").
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// How many of a layout's tags an error repeats.
const SHOWN_TAGS: usize = 16;
/// The tag of an image whose index lists what refers to it as well: programs that read a layout ask for one then.
const TAG: &str = "latest";

/// The name of the layout that a caller describes, in a store that has one for each image.
pub fn name(spec: &ImageSpec) -> std::result::Result<ImageName, String> {
    let name = match spec {
        ImageSpec::Vm(name) => name,
        ImageSpec::Container(url) => url.strip_prefix("oci:").ok_or_else(|| {
            let url = ForeignText::value(url);
            format!("{url:?} is not of the form oci:NAME, and the home region's store is one of OCI image layouts")
        })?,
    };
    let name: ImageId = name.parse().map_err(|error| format!("it names no image of the store: {error}"))?;
    Ok(ImageName(name.to_string()))
}

/// The index of a layout.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    manifests: Vec<Reference>,
    /// Where it was read.
    #[serde(skip)]
    path: String,
}

fn tag_of(entry: &Reference) -> Option<&str> {
    entry.annotations.as_ref()?.get(REF_NAME)?.as_str()
}

impl Index {
    /// Reads an index that lies at `path`.
    pub fn parse(path: &str, content: &[u8]) -> Result<Self> {
        let index: Self = serde_json::from_slice(content).map_err(|error| Error::malformed(path, error))?;
        if index.schema_version != 2 {
            return Err(Error::malformed(path, format!("its schemaVersion is {}, not 2", index.schema_version)));
        }
        Ok(Self { path: path.to_owned(), ..index })
    }

    /// The index of an image and of what is attached to it.
    pub fn of(root: &Descriptor, tree: &Tree) -> Result<Self> {
        let tag = |text: &str| Some(serde_json::Map::from_iter([(REF_NAME.to_owned(), text.into())]));
        let mut manifests = vec![Reference::new(root, if tree.attachments.is_empty() { None } else { tag(TAG) })];
        for referrers in &tree.referrers {
            let (descriptor, _) = referrers.index()?;
            manifests.push(Reference::new(&descriptor, tag(&referrers_tag(referrers.subject))));
        }
        let named = tree.attachments.iter().filter_map(|attached| Some((attached.tag.as_deref()?, attached.root()?)));
        manifests.extend(named.map(|(name, (descriptor, _))| Reference::new(descriptor, tag(name))));
        let media_type = Some("application/vnd.oci.image.index.v1+json".to_owned());
        Ok(Self { schema_version: 2, media_type, manifests, path: String::new() })
    }

    /// Its content.
    pub fn content(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| Error::malformed(INDEX, error))
    }

    /// The root of the image: the only entry that is not attached to one, or the one that has the tag.
    pub fn root(&self, tag: Option<&str>) -> Result<Descriptor> {
        let is_image = |entry: &&Reference| !tag_of(entry).is_some_and(is_attached_by);
        let images: Vec<&Reference> = self.manifests.iter().filter(is_image).collect();
        let chosen = match (tag, &images[..]) {
            (None, [only]) => only,
            (None, entries) => {
                let tags = entries.iter().filter_map(|entry| tag_of(entry)).map(ForeignText::value);
                let tags = tags.take(SHOWN_TAGS).map(String::from).collect::<Vec<_>>().join(", ");
                let reason = format!("it has {} images and no tag says which; its tags are: {tags}", entries.len());
                return Err(Error::malformed(self.path.as_str(), reason));
            }
            (Some(tag), entries) => {
                let found = entries.iter().find(|entry| tag_of(entry) == Some(tag));
                let reason = || format!("it has no image with the tag {:?}", ForeignText::value(tag));
                found.ok_or_else(|| Error::malformed(self.path.as_str(), reason()))?
            }
        };
        chosen.parse().map_err(Error::digest(self.path.as_str()))
    }

    /// The list of what refers to a manifest, if there is one.
    pub fn referrers(&self, subject: Digest) -> Result<Option<Descriptor>> {
        self.tagged(&referrers_tag(subject))
    }

    /// What has a tag, if anything has.
    pub fn tagged(&self, tag: &str) -> Result<Option<Descriptor>> {
        let found = self.manifests.iter().find(|entry| tag_of(entry) == Some(tag));
        found.map(|found| found.parse().map_err(Error::digest(self.path.as_str()))).transpose()
    }
}
