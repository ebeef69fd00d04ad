//! Blobs that a bucket has already: how it is known that they are whole.

use object_store::{ObjectStoreExt as _, path::Path};

use super::{MOST_COPIED, ObjectStore, failed};
use crate::{
    domain::{Descriptor, Verification, VerifyExisting},
    region::{
        Error, Result, Stage, Witness,
        layout::blob_path,
        store::{SMALL, WORTH_LENDING},
        tree::digest_of,
    },
};

impl ObjectStore {
    /// What the service says of a blob of that size; nothing if it has none.
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

    /// Reads a blob again.
    pub(super) async fn is_intact(&self, stage: &Stage, blob: &Descriptor) -> Result<bool> {
        Ok(digest_of(self, &stage.name, blob, &stage.activity).await? == blob.digest)
    }

    /// How it is known that a blob which is there is whole; nothing if it is damaged, and has to be written again. One that is
    /// `unverified` was written by an attempt which could not check it.
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
            // It has gone since.
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

    /// Makes the service copy the blob from another image that has it. Returns how it is known that it is whole; nothing if none has
    /// it.
    pub(super) async fn borrow(&self, stage: &Stage, blob: &Descriptor) -> Result<Option<Verification>> {
        let (service, own) = (self.service(), self.blob(&stage.name, blob.digest));
        if blob.size > MOST_COPIED {
            return Ok(None);
        }
        let lenders = stage.lenders.places().await;
        // A small blob is sent as soon as it is found: only the first is asked, which is the image's home if that is in the bucket.
        let asked = if blob.size <= WORTH_LENDING { 1 } else { lenders.len() };
        for lender in lenders.iter().filter(|place| place.service == service).take(asked) {
            let theirs = Path::from(format!("{}/{}", lender.path, blob_path(blob.digest)));
            if theirs == own || self.find(&theirs, blob).await?.is_none() {
                continue;
            }
            match self.bucket.copy(&theirs, &own).await {
                Ok(()) => {
                    let Some(witness) = self.find(&own, blob).await? else { return Ok(None) };
                    return self.verify_found(stage, blob, &witness, false).await;
                }
                // Then the bytes are carried, as if there were none.
                Err(error) => tracing::info!(%error, %theirs, "a blob could not be copied by the service"),
            }
        }
        Ok(None)
    }
}
