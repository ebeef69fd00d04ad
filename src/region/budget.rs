//! How much of an image is read: so many manifests, so many parts, so many bytes, so deep. Everything is counted before it is read.

use super::{Error, Result};
use crate::domain::Descriptor;

/// The largest manifest or index that is read, in bytes: what the OCI distribution specification recommends.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// All manifests of an image together, in bytes: they are held in memory while it is copied.
const MAX_MANIFESTS_BYTES: u64 = 16 << 20;
/// All parts of an image together, in bytes: what a database's signed number holds.
const MAX_IMAGE_BYTES: u64 = i64::MAX.unsigned_abs();
/// The most manifests of an image.
const MAX_MANIFESTS: usize = 1_000;
/// The most parts of an image; and the most that one manifest may name, each as often as it does.
const MAX_PARTS: usize = 20_000;
/// How deep indexes may lie in indexes.
const MAX_DEPTH: usize = 8;

/// What may still be read.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    manifests: usize,
    manifest_bytes: u64,
    parts: usize,
    bytes: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self { manifests: MAX_MANIFESTS, manifest_bytes: MAX_MANIFESTS_BYTES, parts: MAX_PARTS, bytes: MAX_IMAGE_BYTES }
    }
}

impl Budget {
    /// The sizes of all parts that were spent.
    pub fn spent_bytes(&self) -> u64 {
        MAX_IMAGE_BYTES - self.bytes
    }

    /// The budget of one thing of several that are read at the same time: their manifests are held in memory together.
    pub fn of_one(self) -> Self {
        Self { manifest_bytes: self.manifest_bytes.min(MAX_MANIFEST_BYTES), ..self }
    }

    /// What is left of this budget when something was read that had the budget `before`, and has `after` left of it. Nothing if that is
    /// too much.
    pub fn less(self, before: Self, after: Self) -> Option<Self> {
        Some(Self {
            manifests: self.manifests.checked_sub(before.manifests - after.manifests)?,
            manifest_bytes: self.manifest_bytes.checked_sub(before.manifest_bytes - after.manifest_bytes)?,
            parts: self.parts.checked_sub(before.parts - after.parts)?,
            bytes: self.bytes.checked_sub(before.bytes - after.bytes)?,
        })
    }

    /// Counts so many parts that are known, and refuses more than an image may have.
    pub fn has_parts(&self, parts: usize, what: &str) -> Result<()> {
        if parts <= self.parts {
            return Ok(());
        }
        Err(Error::malformed(what, format!("the image has more than {MAX_PARTS} parts")))
    }

    /// So many parts were found.
    pub fn spend_parts(&mut self, parts: usize) {
        self.parts = self.parts.saturating_sub(parts);
    }

    /// What was counted as a manifest is a blob.
    pub fn is_blob(&mut self, blob: &Descriptor) {
        self.manifests += 1;
        self.manifest_bytes += blob.size;
    }

    /// What was counted is not there.
    pub fn is_absent(&mut self, part: &Descriptor) {
        self.bytes += part.size;
    }

    /// Counts a part, before anything of it is read.
    pub fn part(&mut self, part: &Descriptor, what: impl Fn() -> String) -> Result<()> {
        self.bytes = self.bytes.checked_sub(part.size).ok_or_else(|| {
            let reason = format!("with {} bytes of one part, it has more than {MAX_IMAGE_BYTES}", part.size);
            Error::malformed(what(), reason)
        })?;
        Ok(())
    }

    /// Counts a manifest, which is `depth` indexes deep, before anything of it is read.
    pub fn manifest(&mut self, manifest: &Descriptor, depth: usize, what: impl Fn() -> String) -> Result<()> {
        let (manifests, bytes) = (self.manifests.checked_sub(1), self.manifest_bytes.checked_sub(manifest.size));
        let reason = match (manifests, bytes) {
            _ if depth > MAX_DEPTH => format!("it is more than {MAX_DEPTH} indexes deep"),
            _ if manifest.size > MAX_MANIFEST_BYTES => {
                format!("it has {} bytes, the most is {MAX_MANIFEST_BYTES}", manifest.size)
            }
            (None, _) => format!("the image has more than {MAX_MANIFESTS} manifests"),
            (_, None) => format!("the image's manifests have more than {MAX_MANIFESTS_BYTES} bytes together"),
            (Some(manifests), Some(bytes)) => {
                (self.manifests, self.manifest_bytes) = (manifests, bytes);
                return Ok(());
            }
        };
        Err(Error::malformed(what(), reason))
    }
}
