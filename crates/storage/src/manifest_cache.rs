//! Caches the manifests of a source for a while, so that a registration that timed out in a large index resumes when it
//! is retried.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use domain::{Descriptor, Digest, ImageName};
use lru::LruCache;

use super::{BlobChunks, Result, Source};

/// Maximum total size of the cached manifests, in bytes: the limit for the manifests of one image.
const MAX_BYTES: usize = 16 << 20;
/// Maximum number of cached manifests: the limit for one image.
const MAX_MANIFESTS: NonZeroUsize = NonZeroUsize::new(1_000).expect("it is not 0");
/// How long a manifest is cached. If the manifest is removed from the source in the meantime, the copy of the image
/// reports it missing.
const AGE: Duration = Duration::from_secs(600);

/// A cache of verified manifests, by image and digest. Clones share it.
#[derive(Debug, Clone)]
pub struct ManifestCache(Arc<Mutex<Cached>>);

#[derive(Debug)]
struct Cached {
    manifests: LruCache<(ImageName, Digest), (Bytes, Instant)>,
    bytes: usize,
}

impl Default for ManifestCache {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Cached { manifests: LruCache::new(MAX_MANIFESTS), bytes: 0 })))
    }
}

impl ManifestCache {
    /// Recovers from poisoning: a panic leaves the cache consistent.
    fn lock(&self) -> MutexGuard<'_, Cached> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, name: &ImageName, digest: Digest, now: Instant) -> Option<Bytes> {
        let mut cached = self.lock();
        let (content, since) = cached.manifests.get(&(name.clone(), digest))?;
        (now.saturating_duration_since(*since) < AGE).then(|| content.clone())
    }

    fn put(&self, name: &ImageName, digest: Digest, content: Bytes, now: Instant) {
        let mut cached = self.lock();
        cached.bytes += content.len();
        if let Some((_, (before, _))) = cached.manifests.push((name.clone(), digest), (content, now)) {
            cached.bytes -= before.len();
        }
        while cached.bytes > MAX_BYTES
            && let Some((_, (oldest, _))) = cached.manifests.pop_lru()
        {
            cached.bytes -= oldest.len();
        }
    }
}

/// A source whose manifests are cached.
#[derive(Debug)]
pub struct CachingSource<'a> {
    /// The source that is read on a cache miss.
    pub source: &'a dyn Source,
    /// The cache, used for this source only.
    pub manifests: &'a ManifestCache,
}

#[async_trait]
impl Source for CachingSource<'_> {
    async fn root(&self, name: &ImageName) -> Result<Option<Descriptor>> {
        self.source.root(name).await
    }

    async fn root_as(&self, name: &ImageName, known: Digest) -> Result<Option<Descriptor>> {
        self.source.root_as(name, known).await
    }

    async fn read_manifest(&self, name: &ImageName, manifest: &Descriptor) -> Result<Bytes> {
        if let Some(content) = self.manifests.get(name, manifest.digest, Instant::now()) {
            return Ok(content);
        }
        let content = self.source.read_manifest(name, manifest).await?;
        self.manifests.put(name, manifest.digest, content.clone(), Instant::now());
        Ok(content)
    }

    async fn read_blob(&self, name: &ImageName, blob: &Descriptor, from: u64, most: Option<u64>) -> Result<BlobChunks> {
        self.source.read_blob(name, blob, from, most).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{AGE, Bytes, Digest, ImageName, MAX_BYTES, ManifestCache};

    #[test]
    fn so_much_is_cached_for_so_long() {
        let (manifests, now) = (ManifestCache::default(), Instant::now());
        let (name, piece) = (ImageName("a".into()), Bytes::from(vec![0; MAX_BYTES / 4]));
        let digest = |number| Digest::Sha256([number; 32]);
        for number in 0..5 {
            manifests.put(&name, digest(number), piece.clone(), now);
            // A repeated insertion counts once.
            manifests.put(&name, digest(number), piece.clone(), now);
        }
        assert_eq!(manifests.get(&name, digest(0), now), None, "the oldest one made room");
        assert!((1..5).all(|number| manifests.get(&name, digest(number), now).is_some()));
        assert_eq!(manifests.get(&ImageName("b".into()), digest(1), now), None);
        assert_eq!(manifests.get(&name, digest(1), now + AGE), None);
    }
}
