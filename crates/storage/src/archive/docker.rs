//! Converter from docker's older archive format to an OCI image layout.
//!
//! The older format lists configurations and layers and has no OCI manifest. The generated manifest depends only on the
//! archive's content, so the same archive always yields the same digest.

use std::collections::HashMap;

use bytes::Bytes;
use domain::{Descriptor, Digest, ForeignText};
use serde::Deserialize;
use serde_json::json;

use super::{Contents, Members, Part, layer::Layer, plain};
use crate::{Error, MANIFEST_TYPE, Result, file_range, layout, manifest_graph::INDEX_TYPES};

/// The file that lists the images in docker's older format.
pub const LIST: &str = "manifest.json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
/// The hint for an archive whose list and content differ.
const WRITE_AGAIN: &str = "write the archive again, by docker save, podman save or skopeo copy";

/// Generates a layout's index from docker's list, and the manifests that the index lists.
pub fn convert(members: &Members<'_>, list: &[u8]) -> Result<Contents> {
    Docker { members, blobs: HashMap::new(), layers: HashMap::new() }.convert(list)
}

/// An entry of docker's list.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// The fields of an image configuration that the conversion reads (image specification 1.1, "Image Configuration").
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    rootfs: RootFs,
}

#[derive(Default, Deserialize)]
struct RootFs {
    /// The digests of the uncompressed layers, in layer order.
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

/// The state of one conversion.
struct Docker<'a> {
    members: &'a Members<'a>,
    blobs: HashMap<Digest, Part>,
    /// Layers that have already been hashed. The images of an archive may share layers.
    layers: HashMap<Part, Layer>,
}

impl Docker<'_> {
    fn convert(mut self, list: &[u8]) -> Result<Contents> {
        let path = self.members.path.to_owned();
        let images: Vec<DockerImage> = serde_json::from_slice(list)
            .map_err(|error| Error::malformed(path.join(LIST).display().to_string(), error))?;
        let mut made = HashMap::new();
        let mut entries = Vec::new();
        for DockerImage { config, repo_tags, layers } in images {
            let layers = self.layers(&config, &layers.unwrap_or_default())?;
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": as_json(&self.config(&config)?),
                "layers": layers.iter().map(as_json).collect::<Vec<_>>(),
            });
            let content = Bytes::from(manifest.to_string());
            let manifest = Descriptor::of_content(MANIFEST_TYPE, &content);
            let mut entry = as_json(&manifest);
            let names = repo_tags.filter(|names| !names.is_empty());
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
        Ok(Contents { path, index: index.to_string().into(), blobs: self.blobs, made })
    }

    fn malformed(&self, reason: impl std::fmt::Display) -> Error {
        Error::malformed(self.members.path.display().to_string(), reason)
    }

    /// Returns the byte range of a file that the list names.
    fn part(&self, member: &str) -> Result<Part> {
        let part = self.members.parts.get(&plain(member)).copied();
        part.ok_or_else(|| {
            self.malformed(format_args!("its {LIST} names {:?}, which is not in it", ForeignText::value(member)))
        })
    }

    fn config(&mut self, member: &str) -> Result<Descriptor> {
        let part = self.part(member)?;
        let (digest, size) = file_range::hash(self.members.path, part.from, part.size)?;
        self.blobs.insert(digest, part);
        Ok(Descriptor { media_type: CONFIG_TYPE.to_owned(), digest, size })
    }

    /// Returns the layers of an image. Each layer must match its digest in the configuration, because nothing else in
    /// such an archive ties a layer to the image.
    fn layers(&mut self, config: &str, members: &[String]) -> Result<Vec<Descriptor>> {
        let diff_ids = self.diff_ids(config)?;
        if diff_ids.len() != members.len() {
            let (layers, ids, config) = (members.len(), diff_ids.len(), ForeignText::value(config));
            return Err(self.malformed(format_args!(
                "its {LIST} names {layers} layers, and rootfs.diff_ids of the configuration {config:?} has {ids}; {WRITE_AGAIN}"
            )));
        }
        members.iter().zip(diff_ids).map(|(member, diff_id)| self.layer(member, diff_id)).collect()
    }

    fn diff_ids(&self, config: &str) -> Result<Vec<Digest>> {
        self.part(config)?;
        let content = self.members.small(&plain(config))?.unwrap_or_default();
        let unusable = |error: &dyn std::fmt::Display| {
            self.malformed(format_args!("the configuration {:?}: {error}", ForeignText::value(config)))
        };
        let Config { rootfs } = serde_json::from_slice(&content).map_err(|error| unusable(&error))?;
        let diff_ids = rootfs.diff_ids.unwrap_or_default();
        diff_ids.iter().map(|id| id.parse::<Digest>().map_err(|error| unusable(&error))).collect()
    }

    /// Reads a layer, whose uncompressed tar must have the digest `expected`.
    fn layer(&mut self, member: &str, expected: Digest) -> Result<Descriptor> {
        let part = self.part(member)?;
        let layer = match self.layers.get(&part) {
            Some(known) => known.clone(),
            None => Layer::read(self.members.path, part)?,
        };
        let shown = ForeignText::value(member);
        match &layer.diff_id {
            Err(error) => Err(self.malformed(format_args!("the layer {shown:?} can't be uncompressed: {error}"))),
            Ok(actual) if *actual != expected => Err(self.malformed(format_args!(
                "the layer {shown:?}, uncompressed, has the digest {actual}, and the image's configuration says {expected}; {WRITE_AGAIN}"
            ))),
            Ok(_) => {
                self.blobs.insert(layer.descriptor.digest, part);
                let descriptor = layer.descriptor.clone();
                self.layers.insert(part, layer);
                Ok(descriptor)
            }
        }
    }
}

fn as_json(descriptor: &Descriptor) -> serde_json::Value {
    let Descriptor { media_type, digest, size } = descriptor;
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
}
