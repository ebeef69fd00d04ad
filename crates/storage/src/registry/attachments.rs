//! Attachments of images in a registry: lists of referrers, by the API or by its fallback tag (OCI distribution
//! specification 1.1, "Listing Referrers", "Referrers Tag Schema"), and images whose tags contain a digest.

use std::collections::HashSet;

use bytes::Bytes;
use domain::{Digest, ForeignText};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCEPT, LINK},
};
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use super::{
    RegistryStore,
    client::{Ask, Scope, what},
    manifest::media_type,
};
use crate::{
    Attachment, Entry, Error, Listing, MAX_MANIFEST_BYTES, ManifestGraph, ReferrersIndex, Result, Stage,
    http_response::{bounded, refusal},
    manifest_graph::INDEX_TYPES,
    referrers::{self, MAX_REFERRERS_BYTES, referrers_tag},
};

/// Maximum number of pages that are read from a list of referrers.
const MAX_PAGES: usize = 200;
/// Maximum number of concurrent requests for attachments.
const LOOKS_AT_ONCE: usize = 16;
const OCI_INDEX: &str = INDEX_TYPES[0];

/// A page of a list of referrers.
struct Page {
    entries: Vec<Entry>,
    bytes: u64,
    next: Option<Url>,
}

impl RegistryStore {
    /// Reads the referrers of a manifest by the API. Returns `None` if the registry has no such API.
    pub(super) async fn read_referrers(
        &self,
        repository: &str,
        subject: Digest,
        scope: &Scope,
    ) -> Result<Option<Listing>> {
        if !self.referrers_api.may_be_asked(repository, Instant::now()) {
            return Ok(None);
        }
        match self.referrers_by_api(repository, subject, scope).await? {
            Some(listing) => {
                self.referrers_api.answered();
                Ok(Some(listing))
            }
            None if self.referrers_api.seems_absent(repository, Instant::now()) => Ok(None),
            None => {
                let reason = "the registry has listed referrers before, and now answers as if it could not";
                Err(Error::malformed(format!("the referrers of {subject}"), reason))
            }
        }
    }

    /// Reads all pages of the API. Returns `None` if there is no such API. An error after the first page ends the list,
    /// which keeps the earlier pages.
    async fn referrers_by_api(&self, repository: &str, subject: Digest, scope: &Scope) -> Result<Option<Listing>> {
        let first = self.client().url(&format!("{repository}/referrers/{subject}"))?;
        let Some(mut page) = self.referrers_page(first, MAX_REFERRERS_BYTES, scope).await? else { return Ok(None) };
        let mut listing = Listing::from(std::mem::take(&mut page.entries));
        let mut room = MAX_REFERRERS_BYTES - page.bytes;
        for _ in 1..MAX_PAGES {
            let Some(next) = page.next.take() else { return Ok(Some(listing)) };
            match self.referrers_page(next, room, scope).await {
                Ok(Some(read)) => page = read,
                Ok(None) => page = Page { entries: Vec::new(), bytes: 0, next: None },
                Err(error) => return Ok(Some(Listing { broken: Some(error), ..listing })),
            }
            room -= page.bytes;
            listing.entries.append(&mut page.entries);
        }
        let broken = Error::malformed(format!("the referrers of {subject}"), "they have too many pages");
        Ok(Some(Listing { broken: Some(broken), ..listing }))
    }

    /// Reads a page of at most `room` bytes. Returns `None` if there is no such API.
    async fn referrers_page(&self, url: Url, room: u64, scope: &Scope) -> Result<Option<Page>> {
        let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(OCI_INDEX))]);
        let (what, asked) = (what(&Method::GET, &url), url.clone());
        let ask = Ask { method: Method::GET, url, scope: scope.clone(), headers, body: Bytes::new() };
        let response = self.client().ask(ask).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::BAD_REQUEST
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_ACCEPTABLE
            | StatusCode::GONE
            | StatusCode::NOT_IMPLEMENTED => return Ok(None),
            _ => return Err(refusal(&what, response).await),
        }
        let next = next_page(response.headers());
        let says_index = media_type(&response).eq_ignore_ascii_case(OCI_INDEX);
        // The content decides: some registries label an index with another type, and some respond with an HTML page.
        let content = match bounded(&what, response, room).await {
            Ok(content) if says_index || referrers::is_list(&content) => content,
            Err(error) if says_index => return Err(error),
            _ => return Ok(None),
        };
        let entries = referrers::entries(&content).map_err(|error| Error::malformed(what.as_str(), error))?;
        let next = next.map(|next| asked.join(&next).map_err(|error| Error::malformed(what.as_str(), error)));
        let next = next.transpose()?;
        if let Some(next) = &next {
            self.client().allow(&what, next)?;
        }
        Ok(Some(Page { entries, bytes: content.len() as u64, next }))
    }

    /// Adds referrers to the fallback tag, if the registry does not index referrers itself. Entries that the tag
    /// already lists are kept.
    pub(super) async fn put_referrers(&self, repository: &str, referrers: &ReferrersIndex) -> Result<()> {
        let scope = Scope::push(repository);
        if self.referrers_api.may_be_asked(repository, Instant::now())
            && let Ok(Some(_)) = self.referrers_by_api(repository, referrers.subject, &scope).await
        {
            return Ok(());
        }
        let tag = referrers_tag(referrers.subject);
        let (descriptor, content) = match self.get_manifest(repository, &tag, scope, MAX_REFERRERS_BYTES).await? {
            None => referrers.index()?,
            Some((_, there)) => match referrers.added_to(&there)? {
                (_, _, false) => return Ok(()),
                (descriptor, content, true) => (descriptor, content),
            },
        };
        self.put_manifest(repository, &tag, &descriptor, content).await
    }

    /// Tags an attachment of an image. Replaces another attachment under the tag only if the new attachment includes
    /// all layers of the other, or if the stage allows overwriting.
    pub(super) async fn put_attachment(&self, stage: &Stage, repository: &str, attachment: &Attachment) -> Result<()> {
        let (Some(tag), Some((root, content))) = (&attachment.tag, attachment.root()) else { return Ok(()) };
        let there = self.get_manifest(repository, tag, Scope::push(repository), MAX_MANIFEST_BYTES).await?;
        if let Some((there, theirs)) = there {
            if theirs == *content {
                return Ok(());
            }
            let has_theirs =
                layers(content).zip(layers(&theirs)).is_some_and(|(ours, theirs)| ours.is_superset(&theirs));
            if !stage.overwrite && !has_theirs {
                let name = format!("{}/{repository}:{tag}", self.client().location().authority());
                return Err(Error::Foreign { name: name.into(), there: ForeignText::value(there.digest) });
            }
        }
        self.put_manifest(repository, tag, root, content.clone()).await
    }

    /// Returns whether all attachments of an image are present and can be found.
    pub(super) async fn has_attachments(&self, repository: &str, graph: &ManifestGraph) -> Result<bool> {
        let looks = graph.attachments.iter().filter_map(|attachment| Some((attachment, attachment.root()?)));
        let looks = looks.map(|(attachment, (root, _))| async move {
            let reference = attachment.tag.clone().unwrap_or_else(|| root.digest.to_string());
            let there = self.head_manifest_as(&[root.digest], repository, &reference, Scope::push(repository)).await?;
            Ok::<_, Error>(there.is_some_and(|there| there.digest == root.digest))
        });
        let mut looks = stream::iter(looks.collect::<Vec<_>>()).buffer_unordered(LOOKS_AT_ONCE);
        while let Some(there) = looks.try_next().await? {
            if !there {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Returns the digests of a manifest's layers, each of which is a signature, an attestation or an SBOM. Returns `None`
/// if the manifest has no layers.
fn layers(manifest: &[u8]) -> Option<HashSet<String>> {
    #[derive(Deserialize)]
    struct Manifest {
        layers: Vec<Layer>,
    }
    #[derive(Deserialize)]
    struct Layer {
        digest: String,
    }
    let manifest: Manifest = serde_json::from_slice(manifest).ok()?;
    Some(manifest.layers.into_iter().map(|layer| layer.digest).collect())
}

/// Returns the target of the next page from the header `Link` (RFC 8288).
pub(super) fn next_page(headers: &HeaderMap) -> Option<String> {
    let link = headers.get(LINK)?.to_str().ok()?;
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let is_next = parameters.split(';').any(|p| p.trim().trim_start_matches("rel=").trim_matches('"') == "next");
    is_next.then(|| target.to_owned())
}
