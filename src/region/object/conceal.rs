//! Buckets whose credentials may not list: they answer for an object that is missing as for one that may not be read (Amazon S3, "`GetObject`":
//! 403 instead of 404 without `s3:ListBucket`). Whether a bucket does is found out once, by asking for what is certainly missing.

use std::sync::OnceLock;

use http::StatusCode;
use object_store::{ObjectStoreExt as _, path::Path};

use super::{ObjectStore, failed};
use crate::{
    domain::ImageName,
    region::{Error, Result},
};

/// Whether a bucket answers for what is missing as for what may not be read, once that is known.
#[derive(Debug, Default)]
pub struct Concealment(OnceLock<bool>);

impl ObjectStore {
    /// Whether an error may just as well mean that the object is missing.
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

    /// Whether the bucket is known to answer so.
    pub(super) fn is_concealing(&self) -> bool {
        self.concealment.0.get() == Some(&true)
    }
}
