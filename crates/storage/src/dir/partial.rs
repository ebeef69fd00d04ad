//! Names of unfinished files: each belongs to one writer alone and contains the fence of the writer's claim.

use std::sync::atomic::{AtomicU64, Ordering};

use domain::{Descriptor, Digest};

use super::blob;
use crate::{
    Stage,
    layout::{INDEX, MARKER},
};

/// The suffix of an unfinished blob.
const PARTIAL: &str = ".partial";
/// The suffix of an unfinished blob that the next writer can resume.
const RESUMABLE: &str = ".begun";
/// Blobs above this size, in bytes, can be resumed.
const LARGE: u64 = 64 << 20;

/// The kind of an unfinished file, parsed from its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Partial {
    /// A blob that the next writer starts again.
    Blob,
    /// A large blob, which the next writer resumes.
    Resumable(Digest),
    /// An index or a marker that was to be renamed into place.
    Replacement,
}

/// Returns whether the next writer of the blob resumes where the previous one stopped.
pub fn is_resumable(blob: &Descriptor) -> bool {
    blob.size > LARGE
}

/// Returns a unique suffix: the claim's fence, and a counter of this process. An abandoned writer may still run when
/// the same claim writes the same blob again, and the two writers must not share a file.
fn suffix(stage: &Stage) -> String {
    static WRITERS: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", stage.fence, WRITERS.fetch_add(1, Ordering::Relaxed))
}

/// Returns the path of a new unfinished blob.
pub fn blob(stage: &Stage, blob: &Descriptor) -> String {
    let ending = if is_resumable(blob) { RESUMABLE } else { PARTIAL };
    format!("{}.{}{ending}", blob::path(&stage.name, blob.digest), suffix(stage))
}

/// Returns the path of a new link to another image's blob.
pub fn link(stage: &Stage, blob: &Descriptor) -> String {
    format!("{}.{}{PARTIAL}", blob::path(&stage.name, blob.digest), suffix(stage))
}

/// Returns the path of a new unfinished file that will replace a file of the layout.
pub fn replacement(stage: &Stage, file: &str) -> String {
    format!("{}/.{file}.{}", stage.name, suffix(stage))
}

/// Parses the name of an unfinished file: its kind, and the fence of the claim that wrote it. Returns `None` if this
/// service did not write the file.
pub fn parse(file: &str) -> Option<(Partial, u64)> {
    let fence = |suffix: &str| {
        let (fence, writer) = suffix.split_once('-')?;
        writer.parse::<u64>().ok()?;
        fence.parse().ok()
    };
    if let Some((replaced, suffix)) = file.strip_prefix('.').and_then(|rest| rest.rsplit_once('.')) {
        return [INDEX, MARKER].contains(&replaced).then(|| Some((Partial::Replacement, fence(suffix)?)))?;
    }
    let (digest, suffix) = file.split_once('.')?;
    let digest = Digest::from_hex(digest)?;
    if let Some(suffix) = suffix.strip_suffix(RESUMABLE.trim_start_matches('.')).and_then(|s| s.strip_suffix('.')) {
        return Some((Partial::Resumable(digest), fence(suffix)?));
    }
    Some((Partial::Blob, fence(suffix.strip_suffix(PARTIAL)?)?))
}

#[cfg(test)]
mod tests {
    use domain::Digest;

    use super::{Partial, parse};

    #[test]
    fn only_names_that_this_service_gives_are_unfinished_files() {
        let (hex, long) = ("0".repeat(64), "0".repeat(128));
        for (file, expected) in [
            (format!("{hex}.17-3.partial"), Some((Partial::Blob, 17))),
            (format!("{hex}.17-3.begun"), Some((Partial::Resumable(Digest::Sha256([0; 32])), 17))),
            (format!("{long}.17-3.begun"), Some((Partial::Resumable(Digest::Sha512([0; 64])), 17))),
            (format!("{hex}00.17-3.begun"), None),
            (".index.json.17-0".to_owned(), Some((Partial::Replacement, 17))),
            (".oci-layout.17-0".to_owned(), Some((Partial::Replacement, 17))),
            (hex.clone(), None),
            (format!("{hex}.partial"), None),
            (format!("{hex}.x-3.partial"), None),
            (format!("{hex}.17-x.begun"), None),
            ("download.17-3.partial".to_owned(), None),
            (".other.17-0".to_owned(), None),
            ("index.json".to_owned(), None),
            (".index.json.swp".to_owned(), None),
            (".appferry-fence".to_owned(), None),
        ] {
            assert_eq!(parse(&file), expected, "{file}");
        }
    }
}
