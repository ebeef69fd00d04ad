//! Reads an image again and verifies its digests.

use std::{fmt::Display, sync::Arc, time::Duration};

use domain::{Descriptor, Digest, ForeignText, ImageName, Warnings};

use super::{Activity, BoundedSource, Error, ManifestGraph, Result, Source, manifest_graph::digest_of};

/// How long a store may make no progress while an image is verified.
const STALL: Duration = Duration::from_secs(60);
/// Maximum number of listed damages.
const MAX_DAMAGES: usize = 100;

/// The result of a verification.
#[derive(Debug, Clone, Default)]
pub struct Inspection {
    /// The number of bytes read.
    pub bytes: u64,
    /// The damages, up to a limit; empty if the image is intact.
    pub damages: Vec<String>,
    /// The damages of attachments. They do not make the image damaged.
    pub warnings: Warnings,
    /// The number of missing index entries that are allowed to be missing.
    pub absent: usize,
}

/// The effect of a name that shows another image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MovedName {
    /// The image counts as damaged: it can be found only by its name.
    Damages,
    /// A warning: the image is read by its digest.
    Warns,
}

/// Reads all parts of an image and compares them with their digests. An error means that the verification could not be
/// completed, not that the image is damaged. The index entries in `absent` may be missing.
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
    let graph = match ManifestGraph::read_with_attachments(source, name, root, absent).await {
        Ok(graph) => graph,
        Err(error) => {
            found.take(error)?;
            return Ok(found);
        }
    };
    found.warnings.extend(&graph.warnings);
    found.absent = graph.absent.len();
    let attached = graph.attachments.iter().flat_map(|attachment| &attachment.manifests);
    found.bytes = graph.manifests.iter().chain(attached).map(|(manifest, _)| manifest.size).sum();
    for (place, blob) in graph.all_blobs().enumerate() {
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
        if graph.is_attached(place) {
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

    /// Records an error that means damage to the image. Returns any other error.
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
