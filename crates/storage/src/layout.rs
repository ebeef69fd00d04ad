//! Writes and reads the index of an OCI image layout (image specification 1.1, "index.json file"), for every kind of
//! store.
//!
//! Programs find an image in a layout in three ways: as the only entry of the index, by the name `latest`, or by a
//! given name. A layout written here therefore has one entry, called `latest`. Further entries for the image's
//! referrers (signatures, bills of materials) would hide the image from skopeo, podman and crane when no name is given.
//! They are listed in a second index, a blob that an annotation of the entry names.

use std::collections::BTreeSet;

use bytes::Bytes;
use domain::{Descriptor, Digest, ForeignText, ImageId, ImageName};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;

use super::{
    Entry, Error, ImageSpec, Located, ManifestGraph, Result, Source,
    digest_reference::split_digest,
    manifest_graph::{INDEX_TYPES, Reference},
    neighbors::{Neighbors, Tags},
    referrers::{self, is_attached_by, referrers_tag},
};

/// The file name of the index. An image is visible once this file exists.
pub const INDEX: &str = "index.json";
/// The name of the file that marks a directory as a layout, and the file's content.
pub const MARKER: &str = "oci-layout";
pub const MARKER_CONTENT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;
/// The name of the directory of the blobs, which has a subdirectory for each digest algorithm.
pub const BLOBS: &str = "blobs";

/// The annotation with an entry's name (image specification 1.1, "Pre-Defined Annotation Keys").
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The annotation with the full name. Its tag is in [`REF_NAME`]. Docker and containerd write it.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// The annotation by which `cosign save` distinguishes images from signatures, and the suffixes of its values for
/// images.
const COSIGN_KIND: &str = "kind";
const COSIGN_IMAGES: [&str; 2] = ["/image", "/imageIndex"];
/// The annotations of an image's entry that state the digest and the size of the index of the image's referrers.
const REFERRERS: &str = "io.appferry.referrers";
const REFERRERS_SIZE: &str = "io.appferry.referrers.size";
/// Maximum number of names that an error lists.
const SHOWN_NAMES: usize = 16;
/// The image's name in a layout written here: the name that programs request by default.
const LATEST: &str = "latest";

/// Returns the path of a blob in a layout (image specification 1.1, "Blobs").
pub fn blob_path(digest: Digest) -> String {
    format!("{BLOBS}/{}/{}", digest.algorithm(), digest.hex())
}

/// Resolves a caller's description of an image in a store that has one layout for each image.
pub fn locate(spec: &ImageSpec) -> std::result::Result<Located, String> {
    let (name, digest) = match spec {
        ImageSpec::Vm(name) => (name.as_str(), None),
        ImageSpec::Container(url) => {
            let (plain, digest) = split_digest(url).map_err(|error| error.to_string())?;
            let name = plain.strip_prefix("oci:").ok_or_else(|| {
                let url = ForeignText::value(url);
                format!("{url:?} is not of the form oci:NAME or oci:NAME@DIGEST, and the home region's store is one of OCI image layouts")
            })?;
            (name, digest)
        }
    };
    let name: ImageId = name.parse().map_err(|error| format!("it names no image of the store: {error}"))?;
    Ok(Located { name: ImageName(name.to_string()), digest })
}

/// The index of a layout.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    #[serde(deserialize_with = "descriptors")]
    manifests: Vec<Reference>,
    /// The content that was parsed.
    #[serde(skip)]
    content: Bytes,
    /// The path of the index, for errors.
    #[serde(skip)]
    path: String,
}

/// Parses the entries that are descriptors and skips the others, which [`Index::unnamed`] includes for a warning.
fn descriptors<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<Reference>, D::Error> {
    let entries = Vec::<Box<RawValue>>::deserialize(deserializer)?;
    Ok(entries.iter().filter_map(|entry| serde_json::from_str(entry.get()).ok()).collect())
}

/// The files of an image's layout other than the image's own blobs and manifests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The content of [`INDEX`].
    pub index: Vec<u8>,
    /// The blobs that the index refers to.
    pub blobs: Vec<(Descriptor, Bytes)>,
    /// An index of the image and its referrers, which is one of the blobs; `None` if the image has no referrers. As the
    /// index of a layout with the same blobs, it shows the referrers to programs that search for signatures.
    pub with_referrers: Option<Bytes>,
}

impl Layout {
    /// Creates the layout of an image.
    pub fn of(root: &Descriptor, graph: &ManifestGraph) -> Result<Self> {
        let named = |name: &str| (REF_NAME.to_owned(), name.into());
        let tagged = graph.attachments.iter().filter_map(|attached| Some((attached.tag.as_deref()?, attached.root()?)));
        let tagged: Vec<_> = tagged
            .map(|(tag, (descriptor, _))| Reference::new(descriptor, Some([named(tag)].into_iter().collect())))
            .collect();
        if graph.referrers.is_empty() && tagged.is_empty() {
            let index = content(vec![Reference::new(root, Some([named(LATEST)].into_iter().collect()))])?;
            return Ok(Self { index, blobs: Vec::new(), with_referrers: None });
        }
        let mut entries = vec![Reference::new(root, Some([named(LATEST)].into_iter().collect()))];
        let mut blobs = Vec::new();
        for referrers in &graph.referrers {
            let (list, content) = referrers.index()?;
            let tag = referrers_tag(referrers.subject);
            entries.push(Reference::new(&list, Some([named(&tag)].into_iter().collect())));
            blobs.push((list, content));
        }
        entries.extend(tagged);
        let with_referrers = Bytes::from(content(entries)?);
        let list = Descriptor::of_content(INDEX_TYPES[0], &with_referrers);
        let annotations = [
            named(LATEST),
            (REFERRERS.to_owned(), list.digest.to_string().into()),
            (REFERRERS_SIZE.to_owned(), list.size.to_string().into()),
        ];
        blobs.push((list, with_referrers.clone()));
        let index = content(vec![Reference::new(root, Some(annotations.into_iter().collect()))])?;
        Ok(Self { index, blobs, with_referrers: Some(with_referrers) })
    }
}

/// Returns the JSON of an index with the given entries.
fn content(manifests: Vec<Reference>) -> Result<Vec<u8>> {
    let media_type = Some(INDEX_TYPES[0].to_owned());
    let index = Index { schema_version: 2, media_type, manifests, content: Bytes::new(), path: String::new() };
    serde_json::to_vec(&index).map_err(|error| Error::malformed(INDEX, error))
}

fn annotation<'a>(entry: &'a Reference, key: &str) -> Option<&'a str> {
    entry.annotations.as_ref()?.get(key)?.as_str()
}

/// Returns whether an entry is an image, and not a signature or a list of referrers, judging by its name and its kind.
fn is_image(entry: &Reference) -> bool {
    let is_attached = annotation(entry, REF_NAME).is_some_and(is_attached_by);
    let kind = annotation(entry, COSIGN_KIND).filter(|kind| kind.starts_with("dev.cosignproject.cosign/"));
    !is_attached && kind.is_none_or(|kind| COSIGN_IMAGES.iter().any(|image| kind.ends_with(image)))
}

impl Index {
    /// Parses the index at `path`.
    pub fn parse(path: &str, content: &[u8]) -> Result<Self> {
        let index: Self = serde_json::from_slice(content).map_err(|error| Error::malformed(path, error))?;
        if index.schema_version != 2 {
            return Err(Error::malformed(path, format!("its schemaVersion is {}, not 2", index.schema_version)));
        }
        Ok(Self { path: path.to_owned(), content: Bytes::copy_from_slice(content), ..index })
    }

    /// Returns the root of an image: the entry called `name`, which may also be a digest. Without a name, returns the
    /// only image, or the only image that has a name. One image may have several names.
    pub fn root(&self, name: Option<&str>) -> Result<Descriptor> {
        let is_called = |entry: &&Reference, name: &str| {
            let names = [annotation(entry, REF_NAME), annotation(entry, CONTAINERD_NAME), Some(entry.digest.as_str())];
            names.contains(&Some(name))
        };
        let chosen: Vec<&Reference> = match name {
            Some(name) => self.manifests.iter().filter(|entry| is_called(entry, name)).collect(),
            None => {
                let images: Vec<&Reference> = self.manifests.iter().filter(|entry| is_image(entry)).collect();
                let has_name = |entry: &&&Reference| annotation(entry, REF_NAME).is_some();
                let named: Vec<&Reference> = images.iter().filter(has_name).copied().collect();
                if digests(&images).len() > 1 && digests(&named).len() == 1 { named } else { images }
            }
        };
        match (chosen.first(), digests(&chosen).len()) {
            (Some(only), 1) => only.parse().map_err(Error::digest(self.path.as_str())),
            (_, count) => Err(Error::malformed(self.path.as_str(), self.unclear(name, count))),
        }
    }

    /// Describes why no image or no single image was found.
    fn unclear(&self, name: Option<&str>, count: usize) -> String {
        let names = self.manifests.iter().filter(|entry| is_image(entry));
        let names = names.map(|entry| ForeignText::value(annotation(entry, REF_NAME).unwrap_or(&entry.digest)));
        let names = names.take(SHOWN_NAMES).map(String::from).collect::<Vec<_>>().join(", ");
        match (name.map(ForeignText::value), count) {
            (Some(name), 0) => format!("it has no image called {name:?}; it has: {names}"),
            (Some(name), count) => {
                format!("it has {count} images called {name:?}; name one by its digest, of: {names}")
            }
            (None, 0) => {
                match self.unnamed().ok().and_then(|entries| entries.iter().find_map(|entry| entry.descriptor().err()))
                {
                    Some(error) => format!("it has no image: {error}"),
                    None => "it has no image".to_owned(),
                }
            }
            (None, count) => format!("it has {count} images; name one of them behind a colon, of: {names}"),
        }
    }

    /// Returns the separate index of the image's attachments, if the layout has one.
    fn with_attachments(&self) -> Result<Option<Descriptor>> {
        let Some(entry) = self.manifests.iter().find(|entry| annotation(entry, REFERRERS).is_some()) else {
            return Ok(None);
        };
        let digest = annotation(entry, REFERRERS).unwrap_or_default().parse();
        let digest = digest.map_err(Error::digest(self.path.as_str()))?;
        let size = annotation(entry, REFERRERS_SIZE).and_then(|size| size.parse().ok());
        let size = size.ok_or_else(|| Error::malformed(self.path.as_str(), format!("{REFERRERS_SIZE} is no size")))?;
        Ok(Some(Descriptor { media_type: INDEX_TYPES[0].to_owned(), digest, size }))
    }

    /// Returns the entry with a digest, if there is one.
    pub fn listed(&self, digest: Digest) -> Result<Option<Descriptor>> {
        let digest = digest.to_string();
        let found = self.manifests.iter().find(|entry| entry.digest == digest);
        found.map(|found| found.parse().map_err(Error::digest(self.path.as_str()))).transpose()
    }

    /// Returns the entry with a tag, if there is one.
    pub fn tagged(&self, tag: &str) -> Result<Option<Descriptor>> {
        let found = self.manifests.iter().find(|entry| annotation(entry, REF_NAME) == Some(tag));
        found.map(|found| found.parse().map_err(Error::digest(self.path.as_str()))).transpose()
    }

    /// Returns the unnamed manifests and the invalid entries. oras lists an image's referrers without names.
    fn unnamed(&self) -> Result<Vec<Entry>> {
        let entries = referrers::entries(&self.content);
        let entries = entries.map_err(|error| Error::malformed(self.path.as_str(), error))?;
        Ok(entries.into_iter().filter(|entry| !entry.has_name()).collect())
    }
}

fn digests<'a>(entries: &[&'a Reference]) -> BTreeSet<&'a str> {
    entries.iter().map(|entry| entry.digest.as_str()).collect()
}

/// Returns the neighbors of an image according to its layout's index. The attachments are listed in that index or in a
/// separate one.
pub async fn neighbors(source: &dyn Source, name: &ImageName, index: Index) -> Result<Neighbors> {
    let unnamed = index.unnamed()?;
    let index = match index.with_attachments()? {
        Some(own) => Index::parse(&own.digest.to_string(), &source.read_manifest(name, &own).await?)?,
        None => index,
    };
    Ok(Neighbors { tags: Tags::Indexed(index), unnamed })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::Index;

    fn entry(digit: char, annotations: &Value) -> Value {
        let digest = format!("sha256:{}", digit.to_string().repeat(64));
        json!({ "mediaType": crate::MANIFEST_TYPE, "digest": digest, "size": 2, "annotations": annotations })
    }

    fn named(digit: char, name: &str) -> Value {
        entry(digit, &json!({ super::REF_NAME: name }))
    }

    fn root(entries: &[Value], name: Option<&str>) -> Result<String, String> {
        let index = json!({ "schemaVersion": 2, "manifests": entries });
        let index = Index::parse("index.json", index.to_string().as_bytes()).map_err(|error| error.to_string())?;
        let root = index.root(name).map_err(|error| error.to_string())?;
        Ok(root.digest.hex()[..1].to_owned())
    }

    #[test]
    fn an_image_is_found_by_whatever_it_is_called() {
        let containerd = json!({ super::REF_NAME: "v1", "io.containerd.image.name": "docker.io/bio/solver:v1" });
        let entries =
            [entry('a', &containerd), named('b', "localhost/solver:2"), named('b', "latest"), entry('c', &json!({}))];
        for (name, found) in [
            ("v1", "a"),
            ("docker.io/bio/solver:v1", "a"),
            ("localhost/solver:2", "b"),
            ("latest", "b"),
            (&*format!("sha256:{}", "c".repeat(64)), "c"),
        ] {
            assert_eq!(root(&entries, Some(name)).as_deref(), Ok(found), "{name}");
        }
        let refused = root(&entries, Some("solver")).expect_err("there is none");
        assert!(refused.contains("no image called") && refused.contains("localhost/solver:2"), "{refused}");
        let twice = [named('a', "v1"), named('b', "v1")];
        assert!(root(&twice, Some("v1")).expect_err("there are two").contains("2 images called"));
    }

    #[test]
    fn without_a_name_the_only_image_is_meant() {
        let list = format!("sha256-{}", "a".repeat(64));
        let signature = format!("{list}.sig");
        let kind = |kind: &str| json!({ "kind": format!("dev.cosignproject.cosign/{kind}") });
        let plain = json!({});
        for (what, entries) in [
            ("one without a name", vec![entry('a', &plain)]),
            ("one under two names", vec![named('a', "1.0"), named('a', "latest")]),
            ("one and what refers to it, by tags", vec![named('a', "v1"), named('b', &list), named('c', &signature)]),
            (
                "one and what refers to it, without a name",
                vec![named('a', "v1"), entry('b', &plain), entry('c', &plain)],
            ),
            ("what cosign saves", vec![entry('b', &kind("sigs")), entry('a', &kind("image"))]),
        ] {
            assert_eq!(root(&entries, None).as_deref(), Ok("a"), "{what}");
        }
        for entries in [vec![named('a', "1"), named('b', "2")], vec![entry('a', &plain), entry('b', &plain)]] {
            let refused = root(&entries, None).expect_err("there are two");
            assert!(refused.contains("2 images; name one"), "{refused}");
        }
        assert!(root(&[], None).expect_err("there is none").contains("it has no image"));
    }

    #[test]
    fn an_entry_that_is_nonsense_takes_no_image_away() {
        let mut nonsense = entry('c', &json!({}));
        nonsense["size"] = json!(-1);
        let entries = [nonsense.clone(), json!("x"), named('a', "v1")];
        assert_eq!(root(&entries, None).as_deref(), Ok("a"));
        assert_eq!(root(&entries, Some("v1")).as_deref(), Ok("a"));
        let refused = root(&[nonsense], None).expect_err("there is none");
        assert!(refused.contains("it has no image") && refused.contains("-1"), "{refused}");
    }
}
