//! Verification of blobs that a registry already has.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use domain::{Descriptor, Digest, Verification, VerifyExisting};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{CONTENT_LENGTH, ETAG, LAST_MODIFIED, RANGE},
};
use reqwest::Response;

use super::{
    RegistryStore,
    client::{Ask, Scope, refuses_head, what},
    content_range::ContentRange,
    decoding::is_encoded,
};
use crate::{
    Error, Result, Stage, Witness,
    http_response::refusal,
    manifest_graph::digest_of_chunks,
    store::{SMALL, WORTH_MOUNTING},
};

/// Blobs and manifests that were found damaged, by repository.
#[derive(Debug, Clone, Default)]
pub(super) struct Damaged(Arc<Mutex<HashSet<(String, Digest)>>>);

impl Damaged {
    /// Locks the set. A panic leaves no partial change behind.
    fn set(&self) -> MutexGuard<'_, HashSet<(String, Digest)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn note(&self, repository: &str, digest: Digest) {
        self.set().insert((repository.to_owned(), digest));
    }

    pub(super) fn has(&self, repository: &str, digest: Digest) -> bool {
        self.set().contains(&(repository.to_owned(), digest))
    }

    fn forget(&self, repository: &str, digest: Digest) {
        self.set().remove(&(repository.to_owned(), digest));
    }
}

impl RegistryStore {
    /// Returns the location of a repository, unique among all registries that a region may have used.
    fn location(&self, repository: &str) -> String {
        format!("{} {repository}", self.service())
    }

    /// Returns the witness of a blob. Returns `None` if the registry does not have the blob, or has it with another
    /// size. A blob with another size is marked as damaged.
    pub(super) async fn find(&self, repository: &str, blob: &Descriptor, scope: Scope) -> Result<Option<Witness>> {
        let mut response = self.ask_for_blob(Method::HEAD, repository, blob, &scope).await?;
        let says_nothing = |response: &Response| content_length(response.headers()) == Some(0) && blob.size > 0;
        // Some registries support only `GET`, and some state a length of 0 for a response without a body.
        if refuses_head(response.status()) || response.status() == StatusCode::OK && says_nothing(&response) {
            response = self.ask_for_blob(Method::GET, repository, blob, &scope).await?;
        }
        let size = match response.status() {
            StatusCode::OK => content_length(response.headers()),
            StatusCode::PARTIAL_CONTENT => ContentRange::of(response.headers()).and_then(|range| range.size),
            StatusCode::NOT_FOUND => return Ok(None),
            _ => {
                let what = what(&Method::HEAD, response.url());
                return Err(refusal(&what, response).await.about_digest(blob.digest));
            }
        };
        if size.is_some_and(|size| size != blob.size) {
            self.damaged.note(repository, blob.digest);
            return Ok(None);
        }
        Ok(Some(witness(response.headers(), blob.digest)))
    }

    /// Requests a blob. A `GET` request asks only for the first byte.
    async fn ask_for_blob(
        &self,
        method: Method,
        repository: &str,
        blob: &Descriptor,
        scope: &Scope,
    ) -> Result<Response> {
        let url = self.client().url(&format!("{repository}/blobs/{}", blob.digest))?;
        let mut headers = HeaderMap::new();
        if method == Method::GET {
            headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
        }
        self.client().ask(Ask { method, url, scope: scope.clone(), headers, body: Bytes::new() }).await
    }

    /// Returns how the integrity of an existing blob was established, or `None` if the blob is damaged and has to be
    /// written again.
    pub(super) async fn verify_found(
        &self,
        stage: &Stage,
        repository: &str,
        blob: &Descriptor,
        witness: &Witness,
    ) -> Result<Option<Verification>> {
        let doubted = stage.suspect || self.damaged.has(repository, blob.digest);
        if !doubted {
            if stage.journal.wrote(blob.digest).await? {
                return Ok(Some(Verification::Verified));
            }
            if self.verify_existing == VerifyExisting::Never && blob.size > SMALL {
                return Ok(Some(Verification::Trusted));
            }
            if stage.journal.reading(&self.location(repository), blob.digest).await?.as_ref() == Some(witness) {
                return Ok(Some(Verification::Verified));
            }
        }
        // Uses the same scope as all other requests of a copy.
        let read = self.read_as(Scope::push(repository), &stage.name, blob, 0, None).await;
        let actual = match read {
            Ok(chunks) => Some(digest_of_chunks(chunks, blob.digest.algorithm(), &stage.activity).await?),
            // A registry that has lost the content may still list the blob.
            Err(Error::BlobMissing { .. }) => None,
            Err(error) => return Err(error),
        };
        if actual != Some(blob.digest) {
            self.damaged.note(repository, blob.digest);
            return Ok(None);
        }
        self.damaged.forget(repository, blob.digest);
        if self.verify_existing == VerifyExisting::Once {
            stage.journal.note_reading(&self.location(repository), blob.digest, witness).await?;
        }
        Ok(Some(Verification::Verified))
    }

    /// Mounts the blob from another repository of the registry. Returns how the blob's integrity was established, or
    /// `None` if no repository provides the blob.
    pub(super) async fn mount_from_sources(
        &self,
        stage: &Stage,
        repository: &str,
        blob: &Descriptor,
    ) -> Result<Option<Verification>> {
        let service = self.service();
        // A blob that the registry reported as mounted but does not have is sent.
        if blob.size <= WORTH_MOUNTING || !self.mount_pause.is_over() || self.damaged.has(repository, blob.digest) {
            return Ok(None);
        }
        let mount_sources = stage.mount_sources.places().await;
        for mount_source in mount_sources.iter().filter(|place| place.service == service && place.path != repository) {
            let scope = Scope::mount(repository, &mount_source.path);
            // A repository without read access can't be a mount source.
            let found = self.find(&mount_source.path, blob, scope).await.unwrap_or(None);
            let Some(witness) = found else { continue };
            if !self.mount(stage, repository, blob.digest, &mount_source.path).await {
                continue;
            }
            if self.verify_existing == VerifyExisting::Once
                && stage.journal.reading(&self.location(&mount_source.path), blob.digest).await?.as_ref()
                    == Some(&witness)
            {
                stage.journal.note_reading(&self.location(repository), blob.digest, &witness).await?;
            }
            return self.verify_found(stage, repository, blob, &witness).await;
        }
        Ok(None)
    }

    /// Writes a manifest under its digest or a tag. If the registry rejects the manifest because blobs are missing,
    /// marks its blobs as damaged.
    pub(super) async fn put_doubting(
        &self,
        stage: &Stage,
        repository: &str,
        reference: &str,
        manifest: &Descriptor,
        content: Bytes,
    ) -> Result<()> {
        let put = self.put_manifest(repository, reference, manifest, content.clone()).await;
        if put.as_ref().is_err_and(Error::is_blob_unknown) {
            self.doubt_parts(stage, repository, &content).await?;
        }
        put
    }

    /// Marks the blobs of a rejected manifest as damaged, except for those that this copy wrote. The registry reported
    /// them as present or mounted and then did not find them, so they are read before the next push.
    async fn doubt_parts(&self, stage: &Stage, repository: &str, manifest: &[u8]) -> Result<()> {
        for digest in parts(manifest) {
            if !stage.journal.wrote(digest).await? {
                self.damaged.note(repository, digest);
            }
        }
        Ok(())
    }

    /// Fails unless the replacement of a damaged blob or manifest has the expected digest.
    pub(super) fn made_good(&self, stage: &Stage, repository: &str, expected: Digest, actual: Digest) -> Result<()> {
        if actual == expected {
            self.damaged.forget(repository, expected);
            return Ok(());
        }
        let image = format!("{} (the registry keeps the damaged one; remove it there)", stage.name);
        Err(Error::DigestMismatch { image, expected, actual: Box::new(actual) })
    }
}

/// Returns the blobs that a manifest references: its configuration and its layers.
fn parts(manifest: &[u8]) -> Vec<Digest> {
    #[derive(serde::Deserialize)]
    struct Manifest {
        config: Option<Part>,
        #[serde(default)]
        layers: Vec<Part>,
    }
    #[derive(serde::Deserialize)]
    struct Part {
        digest: String,
    }
    let Ok(Manifest { config, layers }) = serde_json::from_slice(manifest) else { return Vec::new() };
    config.into_iter().chain(layers).filter_map(|part| part.digest.parse().ok()).collect()
}

/// Returns the length of the content, if the headers state it.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    if is_encoded(headers) {
        return None;
    }
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Returns the validators of a blob, which change when it is written again. Skips an entity tag that is a digest by any
/// algorithm, because such a tag does not depend on the stored bytes.
fn witness(headers: &HeaderMap, digest: Digest) -> Witness {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let is_digest = |tag: &str| tag.trim_start_matches("W/").trim_matches('"').parse::<Digest>().is_ok();
    let tag = text(ETAG).filter(|tag| !tag.contains(&digest.hex()) && !is_digest(tag));
    let parts: Vec<&str> = tag.into_iter().chain(text(LAST_MODIFIED)).collect();
    Witness::of(parts.join(" "))
}

#[cfg(test)]
mod tests {
    use domain::Digest;
    use http::{HeaderMap, HeaderValue, header};

    use super::{Witness, witness};

    #[test]
    fn a_tag_that_is_the_digest_is_no_witness() {
        let digest = Digest::Sha512([7; 64]);
        let mut headers = HeaderMap::new();
        // The distribution project's registry sends the SHA-256 digest, whichever digest the request uses.
        let tags = [digest, Digest::Sha256([7; 32])].map(|digest| [format!("\"{digest}\""), format!("W/\"{digest}\"")]);
        for tag in tags.into_iter().flatten().chain([format!("\"{}\"", digest.hex())]) {
            headers.insert(header::ETAG, HeaderValue::from_str(&tag).expect("a header"));
            assert_eq!(witness(&headers, digest), Witness(None), "{tag}");
        }
        headers.insert(header::LAST_MODIFIED, HeaderValue::from_static("Thu, 01 Jan 2026 00:00:00 GMT"));
        headers.insert(header::ETAG, HeaderValue::from_static("\"abc\""));
        assert_eq!(witness(&headers, digest), Witness(Some("\"abc\" Thu, 01 Jan 2026 00:00:00 GMT".into())));
        let long = |last: char| {
            let value = HeaderValue::from_str(&format!("{}{last}", "x".repeat(60_000))).expect("a header");
            witness(&HeaderMap::from_iter([(header::ETAG, value)]), digest).0.expect("a witness")
        };
        assert!(long('a').len() < 256 && long('a') == long('a') && long('a') != long('b'));
    }
}
