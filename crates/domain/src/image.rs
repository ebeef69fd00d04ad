//! Images.

use std::{fmt, str::FromStr};

use super::{Algorithm, Digest, ImageId, RegionId, Timestamp};

/// Kind of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names say it")]
pub enum ImageKind {
    /// Disk of a virtual machine.
    Vm,
    Container,
}

impl ImageKind {
    /// Name in the database.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vm => "VM",
            Self::Container => "CONTAINER",
        }
    }

    /// Prefix of the ids that the service generates.
    #[must_use]
    pub const fn id_prefix(self) -> &'static str {
        match self {
            Self::Vm => "ci-vm-",
            Self::Container => "ci-container-",
        }
    }

    /// Generates an id: the kind's prefix and 12 letters and digits. `pick` returns a random number below its argument.
    pub fn new_id(self, mut pick: impl FnMut(usize) -> usize) -> Result<ImageId, super::IdError> {
        const LETTERS: &[u8] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let letters = (0..12).filter_map(|_| LETTERS.get(pick(LETTERS.len())).copied().map(char::from));
        format!("{}{}", self.id_prefix(), letters.collect::<String>()).parse()
    }
}

impl fmt::Display for ImageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ImageKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::Vm, Self::Container]
            .into_iter()
            .find(|k| k.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not a kind of image"))
    }
}

/// Name of an image in a store: in its home region the name of its source, in other regions its id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName(pub String);

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Descriptor of content (OCI image specification 1.1, "Content Descriptors").
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Descriptor {
    /// Media type (RFC 6838).
    pub media_type: String,
    /// Digest of the content.
    pub digest: Digest,
    /// Size in bytes.
    pub size: u64,
}

impl Descriptor {
    /// Creates the descriptor of content that this service generates, with the digest algorithm that every store
    /// supports.
    #[must_use]
    pub fn of_content(media_type: &str, content: &[u8]) -> Self {
        let digest = Algorithm::CANONICAL.digest(content);
        Self { media_type: media_type.to_owned(), digest, size: content.len() as u64 }
    }
}

/// Content of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Blobs below a root manifest or index.
    Blobs(Descriptor),
    /// Disks inside ECS, which have no digest.
    Ecs,
}

/// A registered image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Image {
    pub id: ImageId,
    /// Display name.
    pub name: String,
    /// Version, chosen by the publisher.
    pub version: String,
    pub description: String,
    pub kind: ImageKind,
    /// Name in the home region's store.
    pub source: ImageName,
    pub home: RegionId,
    pub content: Content,
    /// Size in bytes; each blob counts once. The size of an image inside ECS is a whole number of GiB.
    pub size: u64,
    /// Time of the registration.
    pub created_at: Timestamp,
    /// The image that has taken over its name. A superseded image is not copied.
    pub superseded_by: Option<ImageId>,
    /// Index entries that were missing in the home region at registration. The image is complete without them.
    pub absent: Vec<Digest>,
}

/// Repository of images that have no name.
pub const UNNAMED: &str = "images";

impl Image {
    /// Returns the image's name in stores that have names for images, such as registries: the name under which it was
    /// registered, or `images:ID`. An id is a valid tag but not always a valid repository.
    #[must_use]
    pub fn reference(&self) -> ImageName {
        if self.kind == ImageKind::Container && self.source.0.contains(':') {
            self.source.clone()
        } else {
            ImageName(format!("{UNNAMED}:{}", self.id))
        }
    }

    /// Returns the digest of the image's root, or `None` for an image inside ECS.
    #[must_use]
    pub fn root(&self) -> Option<Digest> {
        match &self.content {
            Content::Blobs(root) => Some(root.digest),
            Content::Ecs => None,
        }
    }
}
