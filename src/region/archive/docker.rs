//! Docker's older form of an archive: a list that names configurations and layers. It has no manifest in OCI's sense. The one that is made
//! here depends on the archive's content alone, so that the same archive is always the same image.

use std::collections::HashMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::{Contents, Members, Part, plain};
use crate::{
    domain::{Descriptor, Digest, ForeignText},
    region::{Error, MANIFEST_TYPE, Result, file_part, layout, tree::INDEX_TYPES},
};

/// The list of images in docker's older form.
pub const LIST: &str = "manifest.json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// What a layer begins with, by how it is compressed, and its media type (image specification 1.1, "Layer Media Types").
const LAYER_TYPES: [(&[u8], &str); 3] = [
    (&[0x1f, 0x8b], "application/vnd.oci.image.layer.v1.tar+gzip"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "application/vnd.oci.image.layer.v1.tar+zstd"),
    (&[], "application/vnd.oci.image.layer.v1.tar"),
];

/// Makes a layout's index of docker's list, and the manifests that it needs.
pub fn convert(members: &Members<'_>, list: &[u8], name: Option<String>) -> Result<Contents> {
    Docker { members, blobs: HashMap::new(), known: HashMap::new() }.convert(list, name)
}

/// An image in docker's list.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// Makes a layout of docker's older form.
struct Docker<'a> {
    members: &'a Members<'a>,
    blobs: HashMap<Digest, Part>,
    /// Files that have been read for their digests already: images share layers.
    known: HashMap<Part, Descriptor>,
}

impl Docker<'_> {
    fn convert(mut self, list: &[u8], name: Option<String>) -> Result<Contents> {
        let path = self.members.path.to_owned();
        let images: Vec<DockerImage> = serde_json::from_slice(list)
            .map_err(|error| Error::malformed(path.join(LIST).display().to_string(), error))?;
        let mut made = HashMap::new();
        let mut entries = Vec::new();
        for image in images {
            let config = self.descriptor(&image.config, Some(CONFIG_TYPE))?;
            let layers = image.layers.unwrap_or_default();
            let layers = layers.iter().map(|layer| Ok(as_json(&self.descriptor(layer, None)?)));
            let layers = layers.collect::<Result<Vec<_>>>()?;
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": as_json(&config),
                "layers": layers,
            });
            let content = Bytes::from(manifest.to_string());
            let manifest = Descriptor::of_content(MANIFEST_TYPE, &content);
            let mut entry = as_json(&manifest);
            let names = image.repo_tags.filter(|names| !names.is_empty());
            match names {
                None => entries.push(entry),
                Some(names) => entries.extend(names.into_iter().map(|name| {
                    entry["annotations"] = json!({ layout::REF_NAME: name });
                    entry.clone()
                })),
            }
            made.insert(manifest.digest, content);
        }
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPES[0], "manifests": entries });
        Ok(Contents { path, name, index: index.to_string().into(), blobs: self.blobs, made })
    }

    /// Reads a file for its digest, and a layer for its kind.
    fn descriptor(&mut self, member: &str, media_type: Option<&str>) -> Result<Descriptor> {
        let path = self.members.path;
        let Some(part) = self.members.parts.get(&plain(member)).copied() else {
            let reason = format!("its {LIST} names {:?}, which is not in it", ForeignText::value(member));
            return Err(Error::malformed(path.display().to_string(), reason));
        };
        if let Some(known) = self.known.get(&part) {
            return Ok(known.clone());
        }
        let (digest, size) = file_part::hash(path, part.from, part.size)?;
        let media_type = match media_type {
            Some(media_type) => media_type,
            None => {
                let beginning = file_part::read_whole(path, part.from, part.size.min(8))?;
                let (_, kind) =
                    LAYER_TYPES.into_iter().find(|(magic, _)| beginning.starts_with(magic)).unwrap_or_default();
                kind
            }
        };
        let descriptor = Descriptor { media_type: media_type.to_owned(), digest, size };
        self.blobs.insert(digest, part);
        self.known.insert(part, descriptor.clone());
        Ok(descriptor)
    }
}

fn as_json(descriptor: &Descriptor) -> serde_json::Value {
    let Descriptor { media_type, digest, size } = descriptor;
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
}
