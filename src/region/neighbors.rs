//! What a store lists beside an image: by tags that have its digest, and without any name. Signatures, attestations and lists of referrers lie
//! there. It is read once for an image, however many manifests the image has.

use std::{collections::HashSet, sync::Arc};

use super::{Entry, Result, Source, layout::Index};
use crate::domain::{Descriptor, ImageName};

/// What is listed beside an image.
#[derive(Debug, Default)]
pub struct Neighbors {
    /// What has a tag.
    pub(super) tags: Tags,
    /// Manifests that have no name: what refers to the image may be among them.
    pub(super) unnamed: Vec<Entry>,
}

/// The tags beside an image.
#[derive(Debug, Default)]
pub(super) enum Tags {
    /// There are none.
    #[default]
    Absent,
    /// These are all of them, with what they stand for.
    Indexed(Index),
    /// These are all of them; what one stands for has to be asked.
    Listed(Arc<HashSet<String>>),
    /// Which there are is not known; each has to be asked for.
    Unlisted,
}

impl Neighbors {
    /// What a tag stands for; nothing if there is none. `source` is asked only for what the list does not say.
    pub(super) async fn tagged(&self, source: &dyn Source, name: &ImageName, tag: &str) -> Result<Option<Descriptor>> {
        match &self.tags {
            Tags::Absent => Ok(None),
            Tags::Indexed(index) => index.tagged(tag),
            Tags::Listed(tags) if !tags.contains(tag) => Ok(None),
            Tags::Listed(_) | Tags::Unlisted => source.tagged(name, tag).await,
        }
    }
}
