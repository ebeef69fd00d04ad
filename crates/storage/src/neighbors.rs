//! The neighbors of an image: manifests that its store lists beside it, with tags of its digest or without a name.
//! Signatures, attestations and lists of referrers are among them. They are listed once for an image with any number of
//! manifests.

use std::{collections::HashSet, sync::Arc};

use domain::{Descriptor, ImageName};

use super::{Entry, Result, Source, layout::Index};

/// The manifests listed beside an image.
#[derive(Debug, Default)]
pub struct Neighbors {
    /// The tags, among them those that name an attachment by the digest of its subject.
    pub(super) tags: Tags,
    /// The unnamed manifests, which may refer to the image.
    pub(super) unnamed: Vec<Entry>,
}

/// The tags beside an image.
#[derive(Debug, Default)]
pub(super) enum Tags {
    /// There are no tags.
    #[default]
    Absent,
    /// All tags, with their descriptors.
    Indexed(Index),
    /// All tags; a descriptor takes a request.
    Listed(Arc<HashSet<String>>),
    /// The tags can't be listed; each one takes a request.
    Unlisted,
}

impl Neighbors {
    /// The descriptor of a tag; `None` if there is no such tag. Requests it from `source` only if the list does not
    /// have it.
    pub(super) async fn tagged(&self, source: &dyn Source, name: &ImageName, tag: &str) -> Result<Option<Descriptor>> {
        match &self.tags {
            Tags::Absent => Ok(None),
            Tags::Indexed(index) => index.tagged(tag),
            Tags::Listed(tags) if !tags.contains(tag) => Ok(None),
            Tags::Listed(_) | Tags::Unlisted => source.tagged(name, tag).await,
        }
    }
}
