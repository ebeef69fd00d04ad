//! The registry as a source of images.

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use domain::{Descriptor, Digest, ImageName};
use tokio::time::Instant;

use super::{RegistryStore, client::Scope};
use crate::{BlobChunks, Error, Listing, MAX_MANIFEST_BYTES, Neighbors, Result, Source, neighbors::Tags};

#[async_trait]
impl Source for RegistryStore {
    async fn root(&self, name: &ImageName) -> Result<Option<Descriptor>> {
        let at = self.at(name);
        self.find_root(&at.repository, &at.tag).await
    }

    async fn root_of(&self, name: &ImageName, digest: Digest) -> Result<Option<Descriptor>> {
        let found = self.find_root(&self.at(name).repository, &digest.to_string()).await?;
        match found {
            Some(found) if found.digest != digest => {
                let image = name.to_string();
                Err(Error::DigestMismatch { image, expected: digest, actual: Box::new(found.digest) })
            }
            found => Ok(found),
        }
    }

    async fn root_as(&self, name: &ImageName, known: Digest) -> Result<Option<Descriptor>> {
        let at = self.at(name);
        let told = self.root(name).await?;
        self.known_as(&[known], told, &at.repository, &at.tag, Scope::pull(&at.repository)).await
    }

    async fn read_manifest(&self, name: &ImageName, manifest: &Descriptor) -> Result<Bytes> {
        let at = self.at(name);
        let missing = || Error::BlobMissing { digest: manifest.digest, image: name.to_string() };
        if manifest.size > MAX_MANIFEST_BYTES {
            return Err(Error::malformed(manifest.digest.to_string(), "it is larger than a manifest may be"));
        }
        let reference = manifest.digest.to_string();
        let (kind, scope) = (manifest.media_type.as_str(), Scope::pull(&at.repository));
        let found = self.get_manifest_as(kind, &at.repository, &reference, scope, manifest.size).await?;
        let (found, content) = found.ok_or_else(missing)?;
        if found.digest == manifest.digest {
            Ok(content)
        } else {
            let image = name.to_string();
            Err(Error::DigestMismatch { image, expected: manifest.digest, actual: Box::new(found.digest) })
        }
    }

    async fn read_blob(&self, name: &ImageName, blob: &Descriptor, from: u64, most: Option<u64>) -> Result<BlobChunks> {
        let scope = Scope::pull(&self.at(name).repository);
        self.read_as(scope, name, blob, from, most).await
    }

    async fn neighbors(&self, name: &ImageName, since: Instant) -> Result<Neighbors> {
        let at = self.at(name);
        // A list without the image's own tag is outdated or incomplete.
        let listed = self.tags(&at.repository, since).await.filter(|tags| tags.contains(&at.tag));
        Ok(Neighbors { tags: listed.map_or(Tags::Unlisted, Tags::Listed), unnamed: Vec::new() })
    }

    async fn tagged(&self, name: &ImageName, tag: &str) -> Result<Option<Descriptor>> {
        let at = self.at(name);
        self.head_manifest(&at.repository, tag, Scope::pull(&at.repository)).await
    }

    async fn referrers(&self, name: &ImageName, subject: Digest) -> Result<Option<Listing>> {
        let at = self.at(name);
        self.read_referrers(&at.repository, subject, &Scope::pull(&at.repository)).await
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn reads_ranges(&self) -> bool {
        !self.without_ranges.load(Ordering::Relaxed)
    }
}

impl RegistryStore {
    /// Returns the descriptor of the manifest under a tag or a digest, or `None` if there is none.
    async fn find_root(&self, repository: &str, reference: &str) -> Result<Option<Descriptor>> {
        let scope = Scope::pull(repository);
        match self.head_manifest(repository, reference, scope.clone()).await? {
            Some(root) => Ok(Some(root)),
            // Some registries return manifests for `GET` that they report as missing for `HEAD`.
            None => {
                let found = self.get_manifest(repository, reference, scope, MAX_MANIFEST_BYTES).await?;
                Ok(found.map(|(root, _)| root))
            }
        }
    }
}
