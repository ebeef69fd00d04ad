//! Verification of blobs that a bucket already has.

use domain::{Descriptor, Verification, VerifyExisting};
use object_store::{ObjectStoreExt as _, path::Path};

use super::{MOST_COPIED, ObjectStore, failed};
use crate::{
    Error, Result, Stage, Witness,
    layout::blob_path,
    manifest_graph::digest_of,
    store::{SMALL, WORTH_MOUNTING},
};

impl ObjectStore {
    /// Returns the witness of a stored blob, or `None` if there is no object of the blob's size.
    pub(super) async fn find(&self, path: &Path, blob: &Descriptor) -> Result<Option<Witness>> {
        let there = match self.bucket.head(path).await {
            Ok(there) => there,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => {
                let error = failed(path.as_ref(), &error);
                return if self.conceals(&error).await? { Ok(None) } else { Err(error) };
            }
        };
        let tag = there.e_tag.unwrap_or_default();
        let witness = Witness::of(format!("{tag} {}", there.last_modified.timestamp_millis()));
        Ok((there.size == blob.size).then_some(witness))
    }

    /// Reads a blob again and compares its digest.
    pub(super) async fn is_intact(&self, stage: &Stage, blob: &Descriptor) -> Result<bool> {
        Ok(digest_of(self, &stage.name, blob, &stage.activity).await? == blob.digest)
    }

    /// Returns how a stored blob is known to be intact, or `None` if it is damaged and must be written again. An
    /// `unverified` blob was written by an attempt that could not check it.
    pub(super) async fn verify_found(
        &self,
        stage: &Stage,
        blob: &Descriptor,
        witness: &Witness,
        unverified: bool,
    ) -> Result<Option<Verification>> {
        let location = format!("{} {}", self.service(), self.path(&stage.name, ""));
        if !stage.suspect && !unverified {
            if stage.journal.wrote(blob.digest).await? {
                return Ok(Some(Verification::Verified));
            }
            if self.verify_existing == VerifyExisting::Never && blob.size > SMALL {
                return Ok(Some(Verification::Trusted));
            }
            if stage.journal.reading(&location, blob.digest).await?.as_ref() == Some(witness) {
                return Ok(Some(Verification::Verified));
            }
        }
        let intact = match self.is_intact(stage, blob).await {
            // The object was removed or replaced in the meantime.
            Err(Error::BlobMissing { .. } | Error::SizeMismatch { .. }) => false,
            intact => intact?,
        };
        if !intact {
            return Ok(None);
        }
        if self.verify_existing == VerifyExisting::Once {
            stage.journal.note_reading(&location, blob.digest, witness).await?;
        }
        Ok(Some(Verification::Verified))
    }

    /// Makes the service copy the blob from another image. Returns how the copy was verified, or `None` if no image has
    /// the blob.
    pub(super) async fn copy_from_sources(&self, stage: &Stage, blob: &Descriptor) -> Result<Option<Verification>> {
        let (service, own) = (self.service(), self.blob(&stage.name, blob.digest));
        if blob.size > MOST_COPIED {
            return Ok(None);
        }
        let mount_sources = stage.mount_sources.places().await;
        // Sending a small blob costs no more than finding it, so only the first mount source is checked: the image's
        // home, if the home is in the same service.
        let asked = if blob.size <= WORTH_MOUNTING { 1 } else { mount_sources.len() };
        for mount_source in mount_sources.iter().filter(|place| place.service == service).take(asked) {
            let theirs = Path::from(format!("{}/{}", mount_source.path, blob_path(blob.digest)));
            if theirs == own || self.find(&theirs, blob).await?.is_none() {
                continue;
            }
            match self.bucket.copy(&theirs, &own).await {
                Ok(()) => {
                    let Some(witness) = self.find(&own, blob).await? else { return Ok(None) };
                    return self.verify_found(stage, blob, &witness, false).await;
                }
                // The caller then transfers the bytes itself.
                Err(error) => tracing::info!(%error, %theirs, "server-side blob copy failed; transferring the bytes"),
            }
        }
        Ok(None)
    }
}
