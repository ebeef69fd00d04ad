//! A walk through manifests, from one down: side by side, within a budget, and by the place that each thing has. What an index lists is
//! a manifest and what a manifest lists is a blob, whatever media type is said of it; an index may list blobs as well, of types of
//! their own.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use serde::{Deserialize, de::IgnoredAny};

use super::{
    Error, Result, Source,
    tree::{INDEX_TYPES, MANIFEST_TYPES},
};
use crate::domain::{Descriptor, Digest, DigestError, ForeignText, ImageName, Warnings};

/// The largest manifest or index that is read, in bytes: what the OCI distribution specification recommends.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// All manifests of an image together, in bytes: they are held in memory while it is copied.
const MAX_MANIFESTS_BYTES: u64 = 16 << 20;
/// All parts of an image together, in bytes: what a database's signed number holds.
const MAX_IMAGE_BYTES: u64 = i64::MAX.unsigned_abs();
/// The most manifests of an image.
const MAX_MANIFESTS: usize = 1_000;
/// The most parts of an image; and the most that one manifest may name, each as often as it does.
const MAX_PARTS: usize = 20_000;
/// How deep indexes may lie in indexes.
const MAX_DEPTH: usize = 8;
/// The most entries of indexes that may not be there.
const MAX_ABSENT: usize = 100;
/// Manifests that are read at the same time.
const READS_AT_ONCE: usize = 16;

/// A manifest of an artifact, as registries from before OCI 1.1 have them: a list of blobs.
const ARTIFACT_TYPE: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// What may still be read.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    manifests: usize,
    manifest_bytes: u64,
    parts: usize,
    bytes: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { manifests: MAX_MANIFESTS, manifest_bytes: MAX_MANIFESTS_BYTES, parts: MAX_PARTS, bytes: MAX_IMAGE_BYTES }
    }
}

impl Budget {
    /// The sizes of all parts that were spent.
    pub fn spent_bytes(&self) -> u64 {
        MAX_IMAGE_BYTES - self.bytes
    }

    /// The budget of one thing of several that are read at the same time: their manifests are held in memory together.
    pub fn of_one(self) -> Self {
        Self { manifest_bytes: self.manifest_bytes.min(MAX_MANIFEST_BYTES), ..self }
    }

    /// What is left of this budget when something was read that had the budget `before`, and has `after` left of it. Nothing if that is
    /// too much.
    pub fn less(self, before: Self, after: Self) -> Option<Self> {
        Some(Self {
            manifests: self.manifests.checked_sub(before.manifests - after.manifests)?,
            manifest_bytes: self.manifest_bytes.checked_sub(before.manifest_bytes - after.manifest_bytes)?,
            parts: self.parts.checked_sub(before.parts - after.parts)?,
            bytes: self.bytes.checked_sub(before.bytes - after.bytes)?,
        })
    }

    /// Counts a part, before anything of it is read.
    fn part(&mut self, part: &Descriptor, what: impl Fn() -> String) -> Result<()> {
        self.bytes = self.bytes.checked_sub(part.size).ok_or_else(|| {
            let reason = format!("with {} bytes of one part, it has more than {MAX_IMAGE_BYTES}", part.size);
            Error::malformed(what(), reason)
        })?;
        Ok(())
    }

    /// Counts a manifest, which is `depth` indexes deep, before anything of it is read.
    fn manifest(&mut self, manifest: &Descriptor, depth: usize, what: impl Fn() -> String) -> Result<()> {
        let (manifests, bytes) = (self.manifests.checked_sub(1), self.manifest_bytes.checked_sub(manifest.size));
        let reason = match (manifests, bytes) {
            _ if depth > MAX_DEPTH => format!("it is more than {MAX_DEPTH} indexes deep"),
            _ if manifest.size > MAX_MANIFEST_BYTES => {
                format!("it has {} bytes, the most is {MAX_MANIFEST_BYTES}", manifest.size)
            }
            (None, _) => format!("the image has more than {MAX_MANIFESTS} manifests"),
            (_, None) => format!("the image's manifests have more than {MAX_MANIFESTS_BYTES} bytes together"),
            (Some(manifests), Some(bytes)) => {
                (self.manifests, self.manifest_bytes) = (manifests, bytes);
                return Ok(());
            }
        };
        Err(Error::malformed(what(), reason))
    }
}

/// What is done about entries of indexes that are not there.
#[derive(Debug, Clone, Copy)]
pub enum Missing<'a> {
    /// These were not there when the image was registered. Any other is an error.
    Known(&'a [Digest]),
    /// They are noted.
    Noted,
}

/// Where something stands that is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// An image's own manifest, of a type that is known.
    Root,
    /// What is attached to an image: a manifest of any type.
    Attached,
    /// An entry of an index.
    Entry,
    /// A configuration or a layer.
    Blob,
    /// A layer that others give out.
    Foreign,
}

/// Something that is to be read.
struct Part {
    descriptor: Descriptor,
    place: Place,
    depth: usize,
}

/// What a manifest says of one part. Annotations, which may take many times the memory that they have bytes, are left out.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    media_type: String,
    digest: String,
    size: u64,
    /// Where else the content is to be had.
    #[serde(default)]
    urls: Option<Vec<IgnoredAny>>,
}

/// What is read of a manifest.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Content {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<Vec<Reference>>,
    config: Option<Reference>,
    layers: Option<Vec<Reference>>,
    blobs: Option<Vec<Reference>>,
}

/// A walk through manifests.
pub struct Walk<'a> {
    source: &'a dyn Source,
    name: &'a ImageName,
    missing: Missing<'a>,
    /// Whether what is read is kept.
    pub keeps: bool,
    /// What may still be read.
    pub budget: Budget,
    /// The blobs that were found.
    pub blobs: Vec<Descriptor>,
    /// Entries of indexes that are not there.
    pub absent: Vec<Digest>,
    /// What is not carried.
    pub warnings: Warnings,
    seen: HashSet<Digest>,
    /// The manifests in the order in which they were read, each with what it refers to.
    manifests: Vec<(Descriptor, Bytes, Vec<Digest>)>,
}

impl<'a> Walk<'a> {
    /// A walk that has not begun.
    pub fn new(source: &'a dyn Source, name: &'a ImageName, budget: Budget, missing: Missing<'a>) -> Self {
        Self {
            source,
            name,
            missing,
            keeps: true,
            budget,
            blobs: Vec::new(),
            absent: Vec::new(),
            warnings: Warnings::default(),
            seen: HashSet::new(),
            manifests: Vec::new(),
        }
    }

    /// Takes in everything from a manifest down, one level after the other.
    pub async fn down(&mut self, root: Descriptor, place: Place) -> Result<()> {
        let mut level = vec![Part { descriptor: root.clone(), place, depth: 0 }];
        while !level.is_empty() {
            let manifests = self.sort(level)?;
            let reads = manifests.into_iter().map(|part| read(self.source, self.name, part).boxed());
            let mut reads = stream::iter(reads.collect::<Vec<_>>()).buffered(READS_AT_ONCE);
            level = Vec::new();
            while let Some((part, read)) = reads.next().await {
                level.extend(self.take(part, read, level.len())?);
            }
        }
        self.budget.parts = self.budget.parts.saturating_sub(self.seen.len());
        // An index of which nothing is there is no image.
        match self.absent.first() {
            Some(digest) if self.seen.len() == self.absent.len() + 1 => {
                Err(Error::BlobMissing { digest: *digest, image: self.name.to_string() })
            }
            _ => Ok(()),
        }
    }

    fn what(&self, digest: Digest) -> String {
        format!("the manifest {digest} of {}", self.name)
    }

    /// Takes blobs in, and returns what has to be read.
    fn sort(&mut self, level: Vec<Part>) -> Result<Vec<Part>> {
        let mut manifests = Vec::new();
        for part in level {
            let Part { descriptor, place, depth } = &part;
            if *place == Place::Foreign {
                let Descriptor { digest, size, .. } = descriptor;
                self.warnings.add(format_args!(
                    "the layer {digest} of {size} bytes is not carried: its manifest says that others give it out"
                ));
                continue;
            }
            if !self.seen.insert(descriptor.digest) {
                continue;
            }
            let what = || self.what(descriptor.digest);
            if *place == Place::Root && !is_known(&descriptor.media_type) {
                let kind = ForeignText::value(&descriptor.media_type);
                return Err(Error::malformed(what(), format!("its media type is {kind:?}")));
            }
            let mut budget = self.budget;
            if may_be_manifest(&part) {
                budget.manifest(descriptor, *depth, what)?;
            }
            budget.part(descriptor, what)?;
            self.budget = budget;
            if may_be_manifest(&part) {
                manifests.push(part);
            } else if self.keeps {
                self.blobs.push(part.descriptor);
            }
        }
        Ok(manifests)
    }

    /// Takes in what was read of a part, and returns what that refers to. `waiting` parts are known beside them.
    fn take(&mut self, part: Part, read: Result<Read>, waiting: usize) -> Result<Vec<Part>> {
        let Part { descriptor, place, depth } = part;
        let (content, below) = match read {
            Ok(Read::Manifest(content, below)) => (content, below),
            Ok(Read::Blob) => {
                self.budget.manifests += 1;
                self.budget.manifest_bytes += descriptor.size;
                if self.keeps {
                    self.blobs.push(descriptor);
                }
                return Ok(Vec::new());
            }
            Err(error @ Error::BlobMissing { .. }) if place == Place::Entry => {
                return self.absent(&descriptor, error).map(|()| Vec::new());
            }
            Err(error) => return Err(error),
        };
        let what = self.what(descriptor.digest);
        if self.seen.len() + waiting + below.len() > self.budget.parts {
            return Err(Error::malformed(what, format!("the image has more than {MAX_PARTS} parts")));
        }
        let parse = |(reference, place): (Reference, Place)| {
            let descriptor = reference.parse().map_err(Error::digest(what.as_str()))?;
            Ok(Part { descriptor, place, depth: depth + 1 })
        };
        let below = below.into_iter().map(parse).collect::<Result<Vec<Part>>>()?;
        let digests = below.iter().map(|part| part.descriptor.digest).collect();
        self.manifests.push((descriptor, if self.keeps { content } else { Bytes::new() }, digests));
        Ok(below)
    }

    /// An entry of an index is not there.
    fn absent(&mut self, entry: &Descriptor, error: Error) -> Result<()> {
        match self.missing {
            Missing::Known(known) if !known.contains(&entry.digest) => return Err(error),
            _ if self.absent.len() >= MAX_ABSENT => {
                let reason = format!("more than {MAX_ABSENT} entries of its indexes are not there");
                return Err(Error::malformed(self.name.to_string(), reason));
            }
            _ => {}
        }
        self.warnings
            .add(format_args!("the entry {} of the index was not there when the image was registered", entry.digest));
        self.absent.push(entry.digest);
        // It is not there to be carried.
        self.budget.bytes = self.budget.bytes.saturating_add(entry.size);
        Ok(())
    }

    /// The manifests, every one before those that refer to it.
    pub fn in_order(&mut self) -> Vec<(Descriptor, Bytes)> {
        let manifests = std::mem::take(&mut self.manifests);
        let by_digest: HashMap<Digest, usize> =
            manifests.iter().enumerate().map(|(place, (manifest, ..))| (manifest.digest, place)).collect();
        let mut placed = vec![false; manifests.len()];
        let mut ordered = Vec::with_capacity(manifests.len());
        // Depth first; a manifest is put down after those below it.
        let mut open: Vec<(usize, bool)> = if manifests.is_empty() { Vec::new() } else { vec![(0, false)] };
        while let Some((place, is_done)) = open.pop() {
            let Some((manifest, content, below)) = manifests.get(place) else { continue };
            if is_done {
                ordered.push((manifest.clone(), content.clone()));
            } else if !std::mem::replace(&mut placed[place], true) {
                open.push((place, true));
                open.extend(below.iter().rev().filter_map(|digest| Some((*by_digest.get(digest)?, false))));
            }
        }
        ordered
    }
}

/// What something turned out to be.
enum Read {
    Manifest(Bytes, Vec<(Reference, Place)>),
    Blob,
}

fn is_known(kind: &str) -> bool {
    INDEX_TYPES.contains(&kind) || MANIFEST_TYPES.contains(&kind) || kind == ARTIFACT_TYPE
}

/// Whether something has to be read: it may be a manifest, by where it stands.
fn may_be_manifest(part: &Part) -> bool {
    match part.place {
        Place::Root | Place::Attached => true,
        Place::Entry => is_known(&part.descriptor.media_type) || part.descriptor.size <= MAX_MANIFEST_BYTES,
        Place::Blob | Place::Foreign => false,
    }
}

/// Reads a manifest, and what it refers to.
async fn read(source: &dyn Source, name: &ImageName, part: Part) -> (Part, Result<Read>) {
    let read = read_content(source, name, &part).await;
    (part, read)
}

async fn read_content(source: &dyn Source, name: &ImageName, part: &Part) -> Result<Read> {
    let Part { descriptor, place, .. } = part;
    let Descriptor { media_type, digest, size } = descriptor;
    let is_doubtful = *place == Place::Entry && !is_known(media_type);
    let content = match source.read_manifest(name, descriptor).await {
        // An index may list blobs, of types that no specification knows of.
        Err(error) if is_doubtful && is_refused(&error) => {
            return Ok(Read::Blob);
        }
        content => content?,
    };
    if content.len() as u64 != *size {
        let (image, actual) = (name.to_string(), content.len() as u64);
        return Err(Error::SizeMismatch { image, digest: *digest, expected: *size, actual });
    }
    match references(media_type, &content) {
        Ok(below) => Ok(Read::Manifest(content, below)),
        Err(_) if is_doubtful => Ok(Read::Blob),
        Err(error) => Err(Error::malformed(format!("the manifest {digest} of {name}"), error)),
    }
}

/// Whether a store says that something is no manifest of its.
fn is_refused(error: &Error) -> bool {
    match error {
        Error::Status { status, .. } => matches!(status.as_u16(), 400 | 404..=406 | 415),
        error => error.is_missing(),
    }
}

/// What a manifest or an index refers to. One of a type that is not known says by its content what it is.
fn references(kind: &str, content: &[u8]) -> serde_json::Result<Vec<(Reference, Place)>> {
    let Content { schema_version, media_type, manifests, config, layers, blobs } = serde_json::from_slice(content)?;
    let missing = |field| Err(serde::de::Error::missing_field(field));
    let (is_index, is_manifest) = (INDEX_TYPES.contains(&kind), MANIFEST_TYPES.contains(&kind));
    if is_index && manifests.is_none() {
        return missing("manifests");
    }
    if is_manifest && config.is_none() {
        return missing("config");
    }
    if !is_known(kind) && schema_version.is_none() && media_type.as_deref() != Some(kind) {
        return missing("mediaType");
    }
    let entries = manifests.filter(|_| !is_manifest).unwrap_or_default();
    let blobs = layers.into_iter().chain(blobs).flatten().chain(config).filter(|_| !is_index);
    let entries = entries.into_iter().map(|entry| (entry, Place::Entry));
    let blobs = blobs.map(|blob| {
        let place = if blob.urls.as_ref().is_some_and(|urls| !urls.is_empty()) { Place::Foreign } else { Place::Blob };
        (blob, place)
    });
    Ok(entries.chain(blobs).collect())
}

impl Reference {
    fn parse(self) -> std::result::Result<Descriptor, DigestError> {
        Ok(Descriptor { digest: self.digest.parse()?, media_type: self.media_type, size: self.size })
    }
}
