//! Manifests of a registry (OCI distribution specification 1.1, "Pulling manifests", "Pushing manifests").

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE},
};
use reqwest::Response;

use super::{
    RegistryStore,
    client::{Ask, Scope, header, refuses_head, what},
    decoding::{Decoder, is_encoded},
};
use crate::{
    domain::Descriptor,
    region::{
        Error, MANIFEST_TYPE, MAX_MANIFEST_BYTES, Result,
        answer::{bounded, refusal},
        tree::{self, INDEX_TYPES, MANIFEST_TYPES},
    },
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

    /// What a tag or a digest stands for; nothing if there is nothing.
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
            // Some registries tell less of a manifest than they should: then it is read.
            None => {
                let found = self.get_manifest(repository, reference, scope, MAX_MANIFEST_BYTES).await?;
                Ok(found.map(|(descriptor, _)| descriptor))
            }
        }
    }

    /// A manifest of at most `limit` bytes, with the digest that its bytes have; nothing if there is none.
    pub(super) async fn get_manifest(
        &self,
        repository: &str,
        reference: &str,
        scope: Scope,
        limit: u64,
    ) -> Result<Option<(Descriptor, Bytes)>> {
        self.get_manifest_as(MANIFEST_TYPES[0], repository, reference, scope, limit).await
    }

    /// The same, of one that may be of another type than images have.
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
        let decoder = Decoder::of(response.headers(), response.content_length(), None);
        let content = bounded(&what, response, limit).await?;
        let content = decoded(&what, decoder, content, limit)?;
        let media_type = if is_known(&media_type) { media_type } else { stated_type(&content).unwrap_or(media_type) };
        let descriptor = Descriptor { media_type, digest: tree::digest(&content), size: content.len() as u64 };
        Ok(Some((descriptor, content)))
    }

    /// Writes a manifest by its digest or by a tag.
    pub(super) async fn put_manifest(
        &self,
        repository: &str,
        reference: &str,
        manifest: &Descriptor,
        content: Bytes,
    ) -> Result<()> {
        let url = self.client().url(&format!("{repository}/manifests/{reference}"))?;
        let what = what(&Method::PUT, &url);
        let headers = HeaderMap::from_iter([header(CONTENT_TYPE, manifest.media_type.as_str())?]);
        let ask = Ask { method: Method::PUT, url, scope: Scope::push(repository), headers, body: content };
        let response = self.client().ask(ask).await?;
        if !response.status().is_success() {
            return Err(refusal(&what, response).await);
        }
        let told = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok()?.parse().ok());
        match told {
            Some(actual) if actual != manifest.digest => {
                Err(Error::DigestMismatch { image: what, expected: manifest.digest, actual })
            }
            _ => Ok(()),
        }
    }
}

/// The media type that an answer says of its content.
pub(super) fn media_type(response: &Response) -> String {
    let value = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim().to_owned()
}

fn is_known(media_type: &str) -> bool {
    MANIFEST_TYPES.contains(&media_type) || INDEX_TYPES.contains(&media_type)
}

/// The media type that a manifest itself states, or that what it has is called by: some registries answer with one of their own.
fn stated_type(content: &[u8]) -> Option<String> {
    let manifest: serde_json::Value = serde_json::from_slice(content).ok()?;
    if let Some(stated) = manifest["mediaType"].as_str().filter(|stated| is_known(stated)) {
        return Some(stated.to_owned());
    }
    let kind = if manifest["manifests"].is_array() { INDEX_TYPES[0] } else { MANIFEST_TYPE };
    (manifest["manifests"].is_array() || manifest["layers"].is_array()).then(|| kind.to_owned())
}

/// Content as it was before it was compressed on the way, of at most `limit` bytes.
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

/// The manifest that an answer is about, if it says all of it.
fn describe(headers: &HeaderMap) -> Option<Descriptor> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let media_type = text(CONTENT_TYPE.as_str())?.split(';').next()?.trim().to_owned();
    if !is_known(&media_type) || is_encoded(headers) {
        return None;
    }
    Some(Descriptor {
        media_type,
        digest: text("docker-content-digest")?.parse().ok()?,
        // Some say that an answer without content has none.
        size: text(CONTENT_LENGTH.as_str())?.parse().ok().filter(|size| *size > 0)?,
    })
}
