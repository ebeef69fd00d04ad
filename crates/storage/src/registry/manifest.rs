//! Manifests in a registry (OCI distribution specification 1.1, "Pulling manifests", "Pushing manifests").

use bytes::Bytes;
use domain::{Algorithm, Descriptor, Digest};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE},
};
use reqwest::Response;
use url::Url;

use super::{
    RegistryStore,
    client::{Ask, Scope, header, refuses_head, what},
    decoding::{Decoder, is_encoded},
};
use crate::{
    Error, MANIFEST_TYPE, MAX_MANIFEST_BYTES, Result,
    http_response::{bounded, refusal},
    manifest_graph::{INDEX_TYPES, MANIFEST_TYPES},
};

impl RegistryStore {
    fn manifest_ask(&self, method: Method, repository: &str, reference: &str, scope: Scope) -> Result<Ask> {
        let url = self.client().url(&format!("{repository}/manifests/{reference}"))?;
        let types = MANIFEST_TYPES.iter().chain(&INDEX_TYPES);
        let headers = types.map(|kind| (ACCEPT, HeaderValue::from_static(kind))).fold(
            HeaderMap::new(),
            |mut headers, (name, value)| {
                headers.append(name, value);
                headers
            },
        );
        Ok(Ask { method, url, scope, headers, body: Bytes::new() })
    }

    /// Returns the descriptor of the manifest under a tag or a digest, or `None` if there is none.
    pub(super) async fn head_manifest(
        &self,
        repository: &str,
        reference: &str,
        scope: Scope,
    ) -> Result<Option<Descriptor>> {
        let ask = self.manifest_ask(Method::HEAD, repository, reference, scope.clone())?;
        let what = what(&ask.method, &ask.url);
        let response = self.client().ask(ask).await?;
        let described = match response.status() {
            StatusCode::OK => describe(response.headers()),
            StatusCode::NOT_FOUND => return Ok(None),
            status if refuses_head(status) => None,
            _ => return Err(refusal(&what, response).await),
        };
        match described {
            Some(descriptor) => Ok(Some(descriptor)),
            // Some registries omit required headers. Then the manifest itself is read.
            None => {
                let found = self.get_manifest(repository, reference, scope, MAX_MANIFEST_BYTES).await?;
                Ok(found.map(|(descriptor, _)| descriptor))
            }
        }
    }

    /// Like [`Self::head_manifest`], but returns the digest in `known` that matches the manifest, if there is one.
    pub(super) async fn head_manifest_as(
        &self,
        known: &[Digest],
        repository: &str,
        reference: &str,
        scope: Scope,
    ) -> Result<Option<Descriptor>> {
        let told = self.head_manifest(repository, reference, scope.clone()).await?;
        self.known_as(known, told, repository, reference, scope).await
    }

    /// Replaces the digest of a descriptor with the digest in `known` that matches the manifest, if there is one.
    /// Digests of different algorithms can't be compared, so the manifest is read in that case.
    pub(super) async fn known_as(
        &self,
        known: &[Digest],
        told: Option<Descriptor>,
        repository: &str,
        reference: &str,
        scope: Scope,
    ) -> Result<Option<Descriptor>> {
        let is_settled = |Descriptor { digest, .. }: &Descriptor| {
            known.contains(digest) || known.iter().all(|one| one.algorithm() == digest.algorithm())
        };
        if told.as_ref().is_none_or(is_settled) {
            return Ok(told);
        }
        let found = self.get_manifest(repository, reference, scope, MAX_MANIFEST_BYTES).await?;
        Ok(found.map(|(found, content)| {
            let digest = known.iter().find(|one| one.matches(&content)).copied().unwrap_or(found.digest);
            Descriptor { digest, ..found }
        }))
    }

    /// Reads a manifest of at most `limit` bytes and computes its digest. Returns `None` if there is no manifest.
    pub(super) async fn get_manifest(
        &self,
        repository: &str,
        reference: &str,
        scope: Scope,
        limit: u64,
    ) -> Result<Option<(Descriptor, Bytes)>> {
        self.get_manifest_as(MANIFEST_TYPES[0], repository, reference, scope, limit).await
    }

    /// Like [`Self::get_manifest`], but also accepts the media type `kind`, even if images do not use it.
    pub(super) async fn get_manifest_as(
        &self,
        kind: &str,
        repository: &str,
        reference: &str,
        scope: Scope,
        limit: u64,
    ) -> Result<Option<(Descriptor, Bytes)>> {
        let mut ask = self.manifest_ask(Method::GET, repository, reference, scope)?;
        if !MANIFEST_TYPES.contains(&kind) && !INDEX_TYPES.contains(&kind) {
            ask.headers.extend([header(ACCEPT, kind)?]);
        }
        let what = what(&ask.method, &ask.url);
        let response = self.client().ask(ask).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(refusal(&what, response).await),
        }
        let media_type = media_type(&response);
        // The algorithm is that of the requested digest or, for a tag, that of the digest in the response.
        let by: Option<Digest> = reference.parse().ok().or_else(|| told_digest(response.headers()));
        let algorithm = by.map_or(Algorithm::CANONICAL, |digest| digest.algorithm());
        let decoder = Decoder::of(response.headers(), response.content_length(), None);
        let content = bounded(&what, response, limit).await?;
        let content = decoded(&what, decoder, content, limit)?;
        let media_type = if is_known(&media_type) { media_type } else { stated_type(&content).unwrap_or(media_type) };
        let descriptor = Descriptor { media_type, digest: algorithm.digest(&content), size: content.len() as u64 };
        Ok(Some((descriptor, content)))
    }

    /// Writes a manifest under its digest or a tag.
    pub(super) async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        manifest: &Descriptor,
        content: Bytes,
    ) -> Result<()> {
        let url = |reference: &str| self.client().url(&format!("{repository}/manifests/{reference}"));
        if reference == manifest.digest.to_string() {
            let put = self.put(repository, url(reference)?, manifest, content).await;
            return put.map(drop).map_err(|error| error.about_digest(manifest.digest));
        }
        if manifest.digest.algorithm() != Algorithm::CANONICAL {
            // If a manifest is pushed by tag, a registry indexes it only by the registry's own algorithm. The push by
            // digest therefore includes the tag. If the registry ignores this tag, a second push by tag follows.
            let mut tagging = url(&manifest.digest.to_string())?;
            tagging.query_pairs_mut().append_pair("tag", reference);
            let put = self.put(repository, tagging, manifest, content.clone()).await;
            if is_tagged(&put.map_err(|error| error.about_digest(manifest.digest))?, reference) {
                return Ok(());
            }
        }
        self.put(repository, url(reference)?, manifest, content).await.map(drop)
    }

    /// Writes a manifest to a URL. Returns the headers of the response.
    async fn put(&self, repository: &str, url: Url, manifest: &Descriptor, content: Bytes) -> Result<HeaderMap> {
        let what = what(&Method::PUT, &url);
        let headers = HeaderMap::from_iter([header(CONTENT_TYPE, manifest.media_type.as_str())?]);
        let body = content.clone();
        let response =
            self.client().ask(Ask { method: Method::PUT, url, scope: Scope::push(repository), headers, body }).await?;
        if !response.status().is_success() {
            return Err(refusal(&what, response).await);
        }
        match told_digest(response.headers()) {
            Some(actual) if !actual.matches(&content) => {
                Err(Error::DigestMismatch { image: what, expected: manifest.digest, actual: Box::new(actual) })
            }
            _ => Ok(response.headers().clone()),
        }
    }
}

/// Returns the digest that a response states for its manifest.
fn told_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.parse().ok()
}

/// Returns whether a response confirms the tag of a push by digest ("Pushing Manifests").
fn is_tagged(headers: &HeaderMap, tag: &str) -> bool {
    let tags = headers.get_all("oci-tag").iter().filter_map(|value| value.to_str().ok());
    tags.flat_map(|tags| tags.split(',')).any(|given| given.trim() == tag)
}

/// Returns the media type of a response, without parameters.
pub(super) fn media_type(response: &Response) -> String {
    let value = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_owned()
}

fn is_known(media_type: &str) -> bool {
    MANIFEST_TYPES.contains(&media_type) || INDEX_TYPES.contains(&media_type)
}

/// Returns the media type that a manifest states, or else the type that its fields imply, because some registries
/// respond with a generic type.
fn stated_type(content: &[u8]) -> Option<String> {
    let manifest: serde_json::Value = serde_json::from_slice(content).ok()?;
    if let Some(stated) = manifest["mediaType"].as_str().filter(|stated| is_known(stated)) {
        return Some(stated.to_owned());
    }
    let kind = if manifest["manifests"].is_array() { INDEX_TYPES[0] } else { MANIFEST_TYPE };
    (manifest["manifests"].is_array() || manifest["layers"].is_array()).then(|| kind.to_owned())
}

/// Decodes content that was compressed in transit, up to `limit` bytes.
fn decoded(what: &str, mut decoder: Decoder, content: Bytes, limit: u64) -> Result<Bytes> {
    let mut all = Vec::new();
    decoder.push(content);
    while let Some(bytes) = decoder.next().map_err(|error| Error::malformed(what, error))? {
        if (all.len() + bytes.len()) as u64 > limit {
            return Err(Error::malformed(what, format!("the answer has more than {limit} bytes")));
        }
        all.extend_from_slice(&bytes);
    }
    Ok(all.into())
}

/// Returns the descriptor of a manifest, if the headers state all its fields.
fn describe(headers: &HeaderMap) -> Option<Descriptor> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let media_type = text(CONTENT_TYPE.as_str())?.split(';').next()?.trim().to_owned();
    if !is_known(&media_type) || is_encoded(headers) {
        return None;
    }
    Some(Descriptor {
        media_type,
        digest: told_digest(headers)?,
        // Some registries state a length of 0 for a response without a body.
        size: text(CONTENT_LENGTH.as_str())?.parse().ok().filter(|size| *size > 0)?,
    })
}
