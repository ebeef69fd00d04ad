//! Images: what is carried.

use std::{fmt, str::FromStr};

use super::{Algorithm, Digest, ImageId, RegionId, Timestamp};

/// What kind of image it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ImageKind {
    /// A virtual machine's disk.
    Vm,
    /// A container image.
    Container,
}

impl ImageKind {
    /// The kind's name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vm => "VM",
            Self::Container => "CONTAINER",
        }
    }

    /// What the ids that the service makes for this kind begin with.
    #[must_use]
    pub const fn id_prefix(self) -> &'static str {
        match self {
            Self::Vm => "ci-vm-",
            Self::Container => "ci-container-",
        }
    }

    /// An id for a new image: the kind's prefix, and 12 letters and digits drawn by `pick`, which is given a bound and
    /// returns a number below it.
    pub fn new_id(self, mut pick: impl FnMut(usize) -> usize) -> Result<ImageId, super::IdError> {
        const LETTERS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let letters = (0..12).filter_map(|_| LETTERS.get(pick(LETTERS.len())).copied().map(char::from));
        format!("{}{}", self.id_prefix(), letters.collect::<String>()).parse()
    }
}

impl FromStr for ImageKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Vm, Self::Container]
            .into_iter()
            .find(|k| k.as_str() == text)
            .ok_or_else(|| format!("{text:?} is no kind of image"))
    }
}

/// The name by which a store knows an image: in the home region its source, in the others its id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName(pub String);

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Content by its digest (OCI image specification 1.1, "Content Descriptors").
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// What the content is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

impl Descriptor {
    /// Describes content that this service makes, by the digest that needs no support of its own anywhere.
    #[must_use]
    pub fn of_content(media_type: &str, content: &[u8]) -> Self {
        let digest = Algorithm::CANONICAL.digest(content);
        Self { media_type: media_type.to_owned(), digest, size: content.len() as u64 }
    }
}

/// What an image consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Blobs below a root manifest or index.
    Blobs(Descriptor),
    /// Disks that ECS keeps and shows nobody: there is no digest to know them by.
    Ecs,
}

/// A registered image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its id.
    pub id: ImageId,
    /// What people call it.
    pub name: String,
    /// Its version.
    pub version: String,
    /// What it is for.
    pub description: String,
    /// Its kind.
    pub kind: ImageKind,
    /// Where the home region's store has it.
    pub source: ImageName,
    /// The region it comes from.
    pub home: RegionId,
    /// What it consists of.
    pub content: Content,
    /// The size of all its content in bytes, each blob counted once; what ECS keeps, in whole GiB.
    pub size: u64,
    /// When it was registered.
    pub created_at: Timestamp,
    /// The image that took its name over, if one has: then it is carried nowhere any more.
    pub superseded_by: Option<ImageId>,
    /// Entries of its indexes that the home region did not have when it was registered. It is whole without them.
    pub absent: Vec<Digest>,
}

/// The repository of images that have no name of their own in a registry.
pub const UNNAMED: &str = "images";

impl Image {
    /// Its name in every store that gives images names of their own, as registries do: the one that it was registered by, or one made of
    /// its id, which may be a tag but no repository.
    #[must_use]
    pub fn reference(&self) -> ImageName {
        if self.kind == ImageKind::Container && self.source.0.contains(':') {
            self.source.clone()
        } else {
            ImageName(format!("{UNNAMED}:{}", self.id))
        }
    }

    /// The digest of its root; nothing for what ECS keeps.
    #[must_use]
    pub fn root(&self) -> Option<Digest> {
        match &self.content {
            Content::Blobs(root) => Some(root.digest),
            Content::Ecs => None,
        }
    }
}
