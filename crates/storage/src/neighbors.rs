//! The neighbors of an image: manifests that its store lists beside it, with a tag that contains the image's digest or
//! without a name. Among them are signatures, attestations and lists of referrers. The neighbors of an image are listed
//! once, however many manifests it has.

use std::{collections::HashSet, sync::Arc};

use domain::{Descriptor, ImageName};

use super::{Entry, Result, Source, layout::Index};

/// The manifests listed beside an image.
#[derive(Debug, Default)]
pub struct Neighbors {
    /// The tags. The tag of an attachment contains the digest of its subject.
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
    /// All tags, without their descriptors. Looking up a descriptor takes a request.
    Listed(Arc<HashSet<String>>),
    /// The tags can't be listed. Looking up a tag takes a request.
    Unlisted,
}

impl Neighbors {
    /// Returns the descriptor of a tag, or `None` if there is no such tag. Requests the descriptor from `source` only
    /// if the listed tags do not suffice.
    pub(super) async fn tagged(&self, source: &dyn Source, name: &ImageName, tag: &str) -> Result<Option<Descriptor>> {
        match &self.tags {
            Tags::Absent => Ok(None),
            Tags::Indexed(index) => index.tagged(tag),
            Tags::Listed(tags) if !tags.contains(tag) => Ok(None),
            Tags::Listed(_) | Tags::Unlisted => source.tagged(name, tag).await,
        }
    }
}
