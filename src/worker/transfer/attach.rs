//! What is attached to an image, on its way to one region: it is carried after the image and before the image is visible, and whatever is
//! wrong with it is a warning. Only what may be over in a moment is tried again first, as it is for everything else.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use super::{destination::Destination, member::Member, resumption};
use crate::{
    domain::Warnings,
    region::{Attachment, Error, Result, Tree},
};

/// Why each blob that is lost is, by its place in the tree.
pub type Lost = BTreeMap<usize, String>;

impl Destination {
    /// Goes on without a blob that was not written, and returns why, if the image is whole without it.
    pub(super) fn without_blob(&self, tree: &Tree, place: usize, error: Error, member: &Member) -> Result<String> {
        let Some(blob) = tree.blob(place).filter(|_| tree.is_attached(place)) else { return Err(error) };
        let reason = match member.lost(place) {
            Some(error) => error.to_string(),
            None => self.excused(error)?.to_string(),
        };
        self.meter.lost(blob.size);
        Ok(reason)
    }

    /// Writes what is attached to an image and makes it findable. Returns the tree with what has arrived of it.
    pub(super) async fn attach<'a>(
        &self,
        tree: &'a Tree,
        lost: &Lost,
        warnings: &mut Warnings,
    ) -> Result<Cow<'a, Tree>> {
        let mut carried = BTreeSet::new();
        let mut unreachable = false;
        for (place, attachment) in tree.attachments.iter().enumerate() {
            let Some((root, _)) = attachment.root() else { continue };
            let before = self.meter.read();
            let reason = match attachment.blobs.iter().find_map(|blob| lost.get(blob)) {
                Some(reason) => reason.clone(),
                None if unreachable => "the region could not be reached for what is attached to the image".to_owned(),
                None => match self.write_attachment(attachment).await {
                    Ok(()) => {
                        carried.insert(place);
                        continue;
                    }
                    Err(error) => {
                        let error = self.excused(error)?;
                        unreachable |= matches!(error, Error::Transport { .. } | Error::Stalled(_));
                        error.to_string()
                    }
                },
            };
            let name = attachment.tag.as_ref().map_or_else(|| root.digest.to_string(), Clone::clone);
            warnings.add(format_args!("{name}, attached to the image, is not carried: {reason}"));
            // As far as it was not written, and counted, all the same.
            let (after, size) =
                (self.meter.read(), attachment.manifests.iter().map(|(manifest, _)| manifest.size).sum::<u64>());
            let counted = (after.copied + after.skipped).saturating_sub(before.copied + before.skipped);
            self.meter.lost(size.saturating_sub(counted));
        }
        let tree = if carried.len() == tree.attachments.len() {
            Cow::Borrowed(tree)
        } else {
            Cow::Owned(tree.with_attachments(&carried))
        };
        for referrers in &tree.referrers {
            let list = self.store.list_referrers(&self.stage, referrers);
            if let Err(error) = self.ask("listing referrers", list).await {
                let error = self.excused(error)?;
                warnings.add(format_args!("what refers to {} can't be found there: {error}", referrers.subject));
            }
        }
        Ok(tree)
    }

    async fn write_attachment(&self, attachment: &Attachment) -> Result<()> {
        self.write_manifests(&attachment.manifests).await?;
        self.ask("attaching to the image", self.store.attach(&self.stage, attachment)).await
    }

    /// The error, if the image can do without what it is about: it is not one of the claim, and does not pass by itself.
    fn excused(&self, error: Error) -> Result<Error> {
        let of_claim = matches!(error, Error::Overtaken | Error::Journal(_) | Error::Interrupted);
        if of_claim || resumption(&error, self.resumed).is_some() { Err(error) } else { Ok(error) }
    }
}

/// The same error, but for one that says that an index names what is not there: that is so, and stays so.
pub fn refused_for_absent(error: Error, tree: &Tree) -> Error {
    match error {
        Error::Status { ref detail, .. } if !tree.absent.is_empty() && detail.contains("MANIFEST") => {
            Error::Incomplete { absent: tree.absent.len(), source: Box::new(error) }
        }
        error => error,
    }
}
