//! Walks the manifest graph from a manifest down, concurrently and within a budget.
//!
//! The role of a part depends on its position and not on the declared media type: an index lists manifests, and a
//! manifest lists blobs. An index may also list blobs, which have other media types.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use domain::{Descriptor, Digest, ForeignText, ImageName, Warnings};
use futures_util::{FutureExt as _, StreamExt as _, stream};

use super::{
    Error, Result, Source,
    budget::{Budget, MAX_MANIFEST_BYTES},
    references::{Place, Reference, is_known, references},
};

/// Maximum number of missing index entries.
const MAX_ABSENT: usize = 100;
/// Maximum number of manifests that are read concurrently.
const READS_AT_ONCE: usize = 32;

/// The prefix of the media types of Docker's schema 1. Such a manifest states no sizes, and its bytes need not match
/// its digest.
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1";

/// How missing index entries are treated.
#[derive(Debug, Clone, Copy)]
pub enum Missing<'a> {
    /// These entries were missing at registration. Any other missing entry is an error.
    Known(&'a [Digest]),
    /// Missing entries are recorded.
    Noted,
}

/// A part to read.
struct Part {
    descriptor: Descriptor,
    place: Place,
    depth: usize,
}

/// A walk through a manifest graph.
pub struct Walk<'a> {
    source: &'a dyn Source,
    name: &'a ImageName,
    missing: Missing<'a>,
    /// Whether the manifests' content and the blobs are kept.
    pub keeps: bool,
    /// The remaining budget.
    pub budget: Budget,
    /// The blobs found, if `keeps` is set.
    pub blobs: Vec<Descriptor>,
    /// The missing index entries.
    pub absent: Vec<Digest>,
    /// Content that is not copied.
    pub warnings: Warnings,
    seen: HashSet<Digest>,
    /// The manifests in reading order, each with its references.
    manifests: Vec<(Descriptor, Bytes, Vec<Digest>)>,
}

impl<'a> Walk<'a> {
    /// Creates a walk that has found nothing yet.
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

    /// Adds a manifest and all parts below it, level by level.
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
        self.budget.spend_parts(self.seen.len());
        // An index without any existing entry is not an image.
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

    /// Adds the blobs of a level, and returns the manifests to read.
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
            if descriptor.media_type.starts_with(SCHEMA_1) && *place != Place::Blob {
                let reason = "it is of Docker's schema 1, which is not carried; convert the image, for example by skopeo copy \
                              --format oci, and push it again";
                return Err(Error::malformed(what(), reason));
            }
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

    /// Adds a part that was read, and returns its references. `waiting` is the number of parts already found on the
    /// next level.
    fn take(&mut self, part: Part, read: Result<Read>, waiting: usize) -> Result<Vec<Part>> {
        let Part { descriptor, place, depth } = part;
        let (content, below) = match read {
            Ok(Read::Manifest(content, below)) => (content, below),
            Ok(Read::Blob) => {
                self.budget.is_blob(&descriptor);
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
        self.budget.has_parts(self.seen.len() + waiting + below.len(), &what)?;
        let parse = |(reference, place): (Reference, Place)| {
            let descriptor = reference.parse().map_err(Error::digest(what.as_str()))?;
            Ok(Part { descriptor, place, depth: depth + 1 })
        };
        let below = below.into_iter().map(parse).collect::<Result<Vec<Part>>>()?;
        let digests = below.iter().map(|part| part.descriptor.digest).collect();
        self.manifests.push((descriptor, if self.keeps { content } else { Bytes::new() }, digests));
        Ok(below)
    }

    /// Records a missing index entry. Fails if the entry was not known to be missing, or if too many entries are
    /// missing.
    fn absent(&mut self, entry: &Descriptor, error: Error) -> Result<()> {
        match self.missing {
            Missing::Known(known) if !known.contains(&entry.digest) => return Err(error),
            _ if self.absent.len() >= MAX_ABSENT => {
                let reason = format!("more than {MAX_ABSENT} entries of its indexes are not there");
                return Err(Error::malformed(self.name.to_string(), reason));
            }
            _ => {}
        }
        self.warnings.add(format_args!(
            "the entry {} of the index was not there when the image was registered; once it is, remove the image, add it and synchronize it again",
            entry.digest
        ));
        self.absent.push(entry.digest);
        self.budget.is_absent(entry);
        Ok(())
    }

    /// Returns the manifests, each before the manifests that refer to it.
    pub fn in_order(&mut self) -> Vec<(Descriptor, Bytes)> {
        let manifests = std::mem::take(&mut self.manifests);
        let by_digest: HashMap<Digest, usize> =
            manifests.iter().enumerate().map(|(place, (manifest, ..))| (manifest.digest, place)).collect();
        let mut placed = vec![false; manifests.len()];
        let mut ordered = Vec::with_capacity(manifests.len());
        // Depth first, in post-order.
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

/// The outcome of reading a part.
enum Read {
    Manifest(Bytes, Vec<(Reference, Place)>),
    Blob,
}

/// Returns whether a part may be a manifest, judging by its position, and must therefore be read.
fn may_be_manifest(part: &Part) -> bool {
    match part.place {
        Place::Root | Place::Attached => true,
        Place::Entry => is_known(&part.descriptor.media_type) || part.descriptor.size <= MAX_MANIFEST_BYTES,
        Place::Blob | Place::Foreign => false,
    }
}

/// Reads a manifest and its references.
async fn read(source: &dyn Source, name: &ImageName, part: Part) -> (Part, Result<Read>) {
    let read = read_content(source, name, &part).await;
    (part, read)
}

async fn read_content(source: &dyn Source, name: &ImageName, part: &Part) -> Result<Read> {
    let Part { descriptor, place, .. } = part;
    let Descriptor { media_type, digest, size } = descriptor;
    let is_doubtful = *place == Place::Entry && !is_known(media_type);
    let content = match source.read_manifest(name, descriptor).await {
        // An index may list blobs whose types the specifications do not define.
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

/// Returns whether a store's error means that the content is not a manifest.
fn is_refused(error: &Error) -> bool {
    match error {
        Error::Status { status, .. } => matches!(status.as_u16(), 400 | 404..=406 | 415),
        error => error.is_missing(),
    }
}
