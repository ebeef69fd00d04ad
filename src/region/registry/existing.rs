//! Blobs that a registry has already: how it is known that they are whole.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
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
    domain::{Descriptor, Digest, Verification, VerifyExisting},
    region::{
        Error, Result, Stage, Witness,
        answer::refusal,
        store::{SMALL, WORTH_LENDING},
        tree::digest_of_chunks,
    },
};

/// Blobs and manifests that were found damaged, each in its repository.
#[derive(Debug, Clone, Default)]
pub(super) struct Damaged(Arc<Mutex<HashSet<(String, Digest)>>>);

impl Damaged {
    /// The set holds nothing that a panic could leave half-done.
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
    /// Where a repository is, among all stores that a region may have had.
    fn location(&self, repository: &str) -> String {
        format!("{} {repository}", self.service())
    }

    /// What the registry says of a blob of that size in a repository; nothing if it has none.
    pub(super) async fn find(&self, repository: &str, blob: &Descriptor, scope: Scope) -> Result<Option<Witness>> {
        let mut response = self.ask_for_blob(Method::HEAD, repository, blob, &scope).await?;
        let says_nothing = |response: &Response| content_length(response.headers()) == Some(0) && blob.size > 0;
        // Some have only GET, and some say that an answer without content has none.
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

    /// Asks what there is of a blob; by `GET`, for no more than its first byte.
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

    /// How it is known that a blob which is there is whole; nothing if it is damaged, and has to be written again.
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
        // By the same credentials as everything else of a copy.
        let read = self.read_as(Scope::push(repository), &stage.name, blob, 0, None).await;
        let actual = match read {
            Ok(chunks) => Some(digest_of_chunks(chunks, blob.digest.algorithm(), &stage.activity).await?),
            // A registry that has lost the file may still have the entry.
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

    /// Has another repository of the registry lend the blob. Returns how it is known that it is whole; nothing if none lends it.
    pub(super) async fn borrow(
        &self,
        stage: &Stage,
        repository: &str,
        blob: &Descriptor,
    ) -> Result<Option<Verification>> {
        let service = self.service();
        // One that was said to be mounted, and was not, is sent.
        if blob.size <= WORTH_LENDING || !self.mount_pause.is_over() || self.damaged.has(repository, blob.digest) {
            return Ok(None);
        }
        let lenders = stage.lenders.places().await;
        for lender in lenders.iter().filter(|place| place.service == service && place.path != repository) {
            let scope = Scope::mount(repository, &lender.path);
            // One that may not be read lends nothing.
            let lent = self.find(&lender.path, blob, scope).await.unwrap_or(None);
            let Some(witness) = lent else { continue };
            if !self.mount(stage, repository, blob.digest, &lender.path).await {
                continue;
            }
            if self.verify_existing == VerifyExisting::Once
                && stage.journal.reading(&self.location(&lender.path), blob.digest).await?.as_ref() == Some(&witness)
            {
                stage.journal.note_reading(&self.location(repository), blob.digest, &witness).await?;
            }
            return self.verify_found(stage, repository, blob, &witness).await;
        }
        Ok(None)
    }

    /// Writes a manifest by its digest or a tag. If it is refused because blobs of it were not found, these are doubted.
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

    /// Doubts the blobs of a manifest that was refused because they were not found, though the registry has said to have them or to have
    /// mounted them: they are read before they are believed to be there.
    async fn doubt_parts(&self, stage: &Stage, repository: &str, manifest: &[u8]) -> Result<()> {
        for digest in parts(manifest) {
            if !stage.journal.wrote(digest).await? {
                self.damaged.note(repository, digest);
            }
        }
        Ok(())
    }

    /// Whether what was written in the place of a damaged blob or manifest is read as it should be.
    pub(super) fn made_good(&self, stage: &Stage, repository: &str, expected: Digest, actual: Digest) -> Result<()> {
        if actual == expected {
            self.damaged.forget(repository, expected);
            return Ok(());
        }
        let image = format!("{} (the registry keeps the damaged one; remove it there)", stage.name);
        Err(Error::DigestMismatch { image, expected, actual: Box::new(actual) })
    }
}

/// The blobs that a manifest names: its configuration and its layers.
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

/// The length of the content that an answer is about, if it says so.
fn content_length(headers: &HeaderMap) -> Option<u64> {
    if is_encoded(headers) {
        return None;
    }
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What an answer says of a blob that changes when it is written again. An entity tag that is the digest says nothing of the bytes, nor
/// does one that is a digest by another algorithm.
fn witness(headers: &HeaderMap, digest: Digest) -> Witness {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let is_digest = |tag: &str| tag.trim_start_matches("W/").trim_matches('"').parse::<Digest>().is_ok();
    let tag = text(ETAG).filter(|tag| !tag.contains(&digest.hex()) && !is_digest(tag));
    let parts: Vec<&str> = tag.into_iter().chain(text(LAST_MODIFIED)).collect();
    Witness::of(parts.join(" "))
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header};

    use super::{Witness, witness};
    use crate::domain::Digest;

    #[test]
    fn a_tag_that_is_the_digest_is_no_witness() {
        let digest = Digest::Sha512([7; 64]);
        let mut headers = HeaderMap::new();
        // The distribution project's registry has the digest by SHA-256 there, whatever a blob is asked for by.
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
