//! Detects buckets that respond 403 instead of 404 for a missing object, because the credentials do not permit listing
//! (Amazon S3, "`GetObject`": without `s3:ListBucket`).
//!
//! The first 403 of a bucket triggers one request for an object that does not exist. Its response shows whether the
//! bucket behaves like this.

use std::sync::OnceLock;

use domain::ImageName;
use http::StatusCode;
use object_store::{ObjectStoreExt as _, path::Path};

use super::{ObjectStore, failed};
use crate::{Error, Result};

/// Whether a bucket responds 403 for missing objects; unset until it is known.
#[derive(Debug, Default)]
pub struct Concealment(OnceLock<bool>);

impl ObjectStore {
    /// Returns whether an error may also mean that the object is missing.
    pub(super) async fn conceals(&self, error: &Error) -> Result<bool> {
        let Error::Refused { source, .. } = error else { return Ok(false) };
        if source.status != StatusCode::FORBIDDEN {
            return Ok(false);
        }
        if let Some(known) = self.concealment.0.get() {
            return Ok(*known);
        }
        let nothing = self.path(&ImageName(".appferry-probe".to_owned()), &uuid::Uuid::now_v7().simple().to_string());
        let concealing = self.is_hidden(&nothing).await?;
        Ok(*self.concealment.0.get_or_init(|| concealing))
    }

    async fn is_hidden(&self, path: &Path) -> Result<bool> {
        match self.bucket.get(path).await.map_err(|error| (failed(path.as_ref(), &error), error)) {
            Ok(_) | Err((_, object_store::Error::NotFound { .. })) => Ok(false),
            Err((Error::Refused { source, .. }, _)) if source.status == StatusCode::FORBIDDEN => Ok(true),
            Err((error, _)) => Err(error),
        }
    }

    /// Returns whether the bucket is known to respond 403 for missing objects.
    pub(super) fn is_concealing(&self) -> bool {
        self.concealment.0.get() == Some(&true)
    }
}
