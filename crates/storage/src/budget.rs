//! Limits the number of manifests, the number of parts, the size and the nesting depth of an image. Everything is
//! counted before it is read.

use domain::Descriptor;

use super::{Error, Result};

/// Maximum size of a manifest or index, in bytes, as the OCI distribution specification recommends.
pub const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Maximum total size of an image's manifests, in bytes. They are held in memory during the copy.
const MAX_MANIFESTS_BYTES: u64 = 16 << 20;
/// Maximum total size of an image's parts, in bytes: the maximum of a signed 64-bit number in the database.
const MAX_IMAGE_BYTES: u64 = i64::MAX.unsigned_abs();
/// Maximum number of manifests in an image.
const MAX_MANIFESTS: usize = 1_000;
/// Maximum number of parts in an image, and of references in one manifest, repetitions included.
const MAX_PARTS: usize = 20_000;
/// Maximum depth of nested indexes.
const MAX_DEPTH: usize = 8;

/// The remaining budget of an image.
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
    /// Returns the total size of all parts counted so far, in bytes.
    pub fn spent_bytes(&self) -> u64 {
        MAX_IMAGE_BYTES - self.bytes
    }

    /// Returns the budget of one of several concurrent reads. It allows fewer bytes of manifests, because the manifests
    /// of all these reads are in memory at once.
    pub fn of_one(self) -> Self {
        Self { manifest_bytes: self.manifest_bytes.min(MAX_MANIFEST_BYTES), ..self }
    }

    /// Subtracts the consumption of another walk, whose budget went from `before` to `after`. Returns `None` if this
    /// budget is too small for it.
    pub fn less(self, before: Self, after: Self) -> Option<Self> {
        Some(Self {
            manifests: self.manifests.checked_sub(before.manifests - after.manifests)?,
            manifest_bytes: self.manifest_bytes.checked_sub(before.manifest_bytes - after.manifest_bytes)?,
            parts: self.parts.checked_sub(before.parts - after.parts)?,
            bytes: self.bytes.checked_sub(before.bytes - after.bytes)?,
        })
    }

    /// Fails if `parts` exceeds the remaining number of parts.
    pub fn has_parts(&self, parts: usize, what: &str) -> Result<()> {
        if parts <= self.parts {
            return Ok(());
        }
        Err(Error::malformed(what, format!("the image has more than {MAX_PARTS} parts")))
    }

    /// Subtracts `parts` from the remaining number of parts.
    pub fn spend_parts(&mut self, parts: usize) {
        self.parts = self.parts.saturating_sub(parts);
    }

    /// Reverts the count of a manifest that turned out to be a blob.
    pub fn is_blob(&mut self, blob: &Descriptor) {
        self.manifests += 1;
        self.manifest_bytes += blob.size;
    }

    /// Reverts the count of a part that is missing.
    pub fn is_absent(&mut self, part: &Descriptor) {
        self.bytes += part.size;
    }

    /// Counts a part before it is read. Fails if the image becomes too large.
    pub fn part(&mut self, part: &Descriptor, what: impl Fn() -> String) -> Result<()> {
        self.bytes = self.bytes.checked_sub(part.size).ok_or_else(|| {
            let reason = format!("with {} bytes of one part, it has more than {MAX_IMAGE_BYTES}", part.size);
            Error::malformed(what(), reason)
        })?;
        Ok(())
    }

    /// Counts a manifest, which is nested in `depth` indexes, before it is read. Fails if a limit is exceeded.
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
