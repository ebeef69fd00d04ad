//! Reading an image again, to see whether it is what it should be.

use std::{fmt::Display, sync::Arc, time::Duration};

use super::{Activity, BoundedSource, Error, Result, Source, Tree, tree::digest_of};
use crate::domain::{Descriptor, Digest, ForeignText, ImageName, Warnings};

/// How long a store may show no progress while an image is read again.
const STALL: Duration = Duration::from_secs(60);
/// How much of what is wrong with an image is listed.
const MAX_DAMAGES: usize = 100;

/// What was found when an image was read again.
#[derive(Debug, Clone, Default)]
pub struct Inspection {
    /// How many bytes were read.
    pub bytes: u64,
    /// What is wrong, if anything is; no more of it than is worth reading.
    pub damages: Vec<String>,
    /// What is wrong with what is attached to the image. It does not decide over the image.
    pub warnings: Warnings,
    /// How many entries of its indexes are not there, and need not be.
    pub absent: usize,
}

/// What it means if an image's name shows another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MovedName {
    /// The image is damaged: it is found by its name alone.
    Damages,
    /// Nothing but a warning: it is read by its digest.
    Warns,
}

/// Reads everything of an image again and compares it with its digests. An error means that it could not be told, not that the
/// image is damaged. Of its indexes' entries, those in `absent` need not be there.
pub async fn verify(
    store: Arc<dyn Source>,
    name: &ImageName,
    root: &Descriptor,
    absent: &[Digest],
    moved: MovedName,
) -> Result<Inspection> {
    let source = &BoundedSource { store, deadline: STALL };
    let activity = Activity::default();
    let mut found = Inspection::default();
    let shown = match source.root_as(name, root.digest).await {
        Ok(Some(there)) if there.digest == root.digest => None,
        Ok(Some(there)) => Some(format!("{name} shows {} and not {}", there.digest, root.digest)),
        Ok(None) => Some(Error::ImageMissing(name.to_string().into()).to_string()),
        Err(error) => {
            found.take(error)?;
            None
        }
    };
    match (shown, moved) {
        (Some(shown), MovedName::Damages) => found.note(shown),
        (Some(shown), MovedName::Warns) => found.warnings.add(shown),
        (None, _) => {}
    }
    let tree = match Tree::read_with_attachments(source, name, root, absent).await {
        Ok(tree) => tree,
        Err(error) => {
            found.take(error)?;
            return Ok(found);
        }
    };
    found.warnings.extend(&tree.warnings);
    found.absent = tree.absent.len();
    let attached = tree.attachments.iter().flat_map(|attachment| &attachment.manifests);
    found.bytes = tree.manifests.iter().chain(attached).map(|(manifest, _)| manifest.size).sum();
    for (place, blob) in tree.all_blobs().enumerate() {
        let read = tokio::select! {
            read = digest_of(source, name, blob, &activity) => read,
            () = activity.silence(STALL) => Err(Error::Stalled("reading a blob again")),
        };
        let wrong = match read {
            Ok(actual) if actual == blob.digest => {
                found.bytes += blob.size;
                continue;
            }
            Ok(actual) => {
                Error::DigestMismatch { image: name.to_string(), expected: blob.digest, actual: Box::new(actual) }
            }
            Err(error) => error,
        };
        if tree.is_attached(place) {
            found.warnings.add(format_args!("of what is attached to the image: {wrong}"));
        } else {
            found.take(wrong)?;
        }
    }
    Ok(found)
}

impl Inspection {
    fn note(&mut self, damage: impl Display) {
        match self.damages.len() {
            0..MAX_DAMAGES => self.damages.push(ForeignText::message(damage).into()),
            MAX_DAMAGES => self.damages.push("and more than that".to_owned()),
            _ => {}
        }
    }

    /// Notes what is wrong with the image; what is wrong with reading it is an error.
    fn take(&mut self, error: Error) -> Result<()> {
        match &error {
            Error::ImageMissing(_)
            | Error::BlobMissing { .. }
            | Error::DigestMismatch { .. }
            | Error::SizeMismatch { .. }
            | Error::Malformed { .. } => {
                self.note(error);
                Ok(())
            }
            _ => Err(error),
        }
    }
}
