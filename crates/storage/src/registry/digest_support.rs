//! Finds out whether a registry supports a digest algorithm. Every registry supports SHA-256. For other algorithms the
//! specification defines no explicit response, so only an upload reveals the support.

use bytes::Bytes;
use domain::{Algorithm, Descriptor};
use http::{
    HeaderMap, HeaderValue, Method,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};

use super::{
    RegistryStore,
    client::{Ask, Scope, what},
    upload_part::commit_url,
};
use crate::{Error, Result, http_response::refusal};

impl RegistryStore {
    /// Returns whether the registry accepts blobs with digests by `algorithm`. Called after the registry has rejected a
    /// blob, because a blob may also be rejected when it was damaged in transit. The test uploads an empty blob, which
    /// can't be damaged. Any result other than an explicit rejection counts as support.
    pub(super) async fn supports(&self, repository: &str, algorithm: Algorithm) -> bool {
        let empty =
            Descriptor { media_type: "application/octet-stream".to_owned(), digest: algorithm.digest(&[]), size: 0 };
        match self.put_empty(repository, &empty).await.map_err(|error| error.about_digest(empty.digest)) {
            Err(Error::DigestUnsupported { source, .. }) => {
                tracing::info!(
                    %algorithm, error = %source, repository,
                    "the registry does not support the digest algorithm; the upload fails"
                );
                false
            }
            _ => true,
        }
    }

    async fn put_empty(&self, repository: &str, empty: &Descriptor) -> Result<()> {
        let (upload, begun) = self.begin(repository, empty.digest.algorithm(), None).await?;
        let headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
            (CONTENT_LENGTH, HeaderValue::from_static("0")),
        ]);
        let (url, scope) = (commit_url(&upload, empty), Scope::push(repository));
        let ask = Ask { method: Method::PUT, url, scope, headers, body: Bytes::new() };
        let response = self.client().ask_once(&ask).await?;
        if !response.status().is_success() {
            return Err(refusal(&what(&ask.method, &ask.url), response).await);
        }
        begun.ended();
        Ok(())
    }

    /// Fails unless the registry finds a blob that it has accepted. A registry may index a blob only by the registry's
    /// own algorithm, whichever digest the client used.
    pub(super) async fn require_known(&self, repository: &str, blob: &Descriptor) -> Result<()> {
        let is_known = blob.digest.algorithm() == Algorithm::CANONICAL
            || self.find(repository, blob, Scope::push(repository)).await?.is_some();
        let what = || format!("the repository {repository}");
        if is_known { Ok(()) } else { Err(Error::WrittenWrong { what: what().into(), digest: blob.digest }) }
    }
}
