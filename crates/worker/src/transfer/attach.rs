//! Copies the attachments of an image to one region, after the image and before the image becomes visible. A failed
//! attachment becomes a warning, but transient errors are retried first, as for all other content.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use domain::Warnings;
use storage::{Attachment, Error, ManifestGraph, Result};

use super::{destination::Destination, member::Member, resumption};

/// The blobs that could not be copied and without which the image is complete: the reasons by index in the tree.
pub type LostBlobs = BTreeMap<usize, String>;

impl Destination {
    /// If the image is complete without a blob, accepts that the blob was not written and returns the reason.
    pub(super) fn without_blob(
        &self,
        tree: &ManifestGraph,
        index: usize,
        error: Error,
        member: &Member,
    ) -> Result<String> {
        let Some(blob) = tree.blob(index).filter(|_| tree.is_attached(index)) else { return Err(error) };
        let reason = match member.lost_blob(index) {
            Some(error) => error.to_string(),
            None => self.tolerate(error)?.to_string(),
        };
        self.meter.shrink_total(blob.size);
        Ok(reason)
    }

    /// Writes the attachments of an image and lists them as its referrers. Returns the tree with the attachments that
    /// were copied.
    pub(super) async fn attach<'a>(
        &self,
        tree: &'a ManifestGraph,
        lost: &LostBlobs,
        warnings: &mut Warnings,
    ) -> Result<Cow<'a, ManifestGraph>> {
        let mut arrived = BTreeSet::new();
        let mut unreachable = false;
        for (index, attachment) in tree.attachments.iter().enumerate() {
            let Some((root, _)) = attachment.root() else { continue };
            let before = self.meter.read();
            let reason = match attachment.blobs.iter().find_map(|blob| lost.get(blob)) {
                Some(reason) => reason.clone(),
                None if unreachable => "the region became unreachable while attachments were copied".to_owned(),
                None => match self.write_attachment(attachment).await {
                    Ok(()) => {
                        arrived.insert(index);
                        continue;
                    }
                    Err(error) => {
                        let error = self.tolerate(error)?;
                        unreachable |= matches!(error, Error::Transport { .. } | Error::Stalled(_));
                        error.to_string()
                    }
                },
            };
            let name = attachment.tag.as_ref().map_or_else(|| root.digest.to_string(), Clone::clone);
            warnings.add(format_args!("{name}, attached to the image, was not copied: {reason}"));
            // Subtracts only the bytes that the meter has not counted.
            let (after, size) =
                (self.meter.read(), attachment.manifests.iter().map(|(manifest, _)| manifest.size).sum::<u64>());
            let counted = (after.copied + after.skipped).saturating_sub(before.copied + before.skipped);
            self.meter.shrink_total(size.saturating_sub(counted));
        }
        let tree = if arrived.len() == tree.attachments.len() {
            Cow::Borrowed(tree)
        } else {
            Cow::Owned(tree.with_attachments(&arrived))
        };
        for referrers in &tree.referrers {
            let list = self.store.list_referrers(&self.stage, referrers);
            if let Err(error) = self.call("listing referrers", list).await {
                let error = self.tolerate(error)?;
                warnings.add(format_args!("the referrers of {} can't be listed there: {error}", referrers.subject));
            }
        }
        Ok(tree)
    }

    async fn write_attachment(&self, attachment: &Attachment) -> Result<()> {
        self.write_manifests(&attachment.manifests).await?;
        self.call("attaching to the image", self.store.attach(&self.stage, attachment)).await
    }

    /// Returns `error` if the image is complete without the attachment. Fails with `error` if it concerns the claim or
    /// is transient.
    fn tolerate(&self, error: Error) -> Result<Error> {
        let is_of_claim = matches!(error, Error::Overtaken | Error::Journal(_) | Error::Interrupted);
        if is_of_claim || resumption(&error, self.resumed, 0.0).is_some() { Err(error) } else { Ok(error) }
    }
}

/// Explains the rejection of an index by the absent manifests that the index lists. Returns other errors unchanged.
pub fn explain_absent(error: Error, tree: &ManifestGraph) -> Error {
    match error {
        Error::Status { ref detail, .. } if !tree.absent.is_empty() && detail.contains("MANIFEST") => {
            Error::Incomplete { absent: tree.absent.len(), source: Box::new(error) }
        }
        error => error,
    }
}
