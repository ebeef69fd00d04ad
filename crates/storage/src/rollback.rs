//! The index that a copy replaced, kept to roll the publication back.

use std::sync::{Arc, Mutex, PoisonError};

/// The index that a copy has published, and the index that it replaced. Empty before the publication. Clones share the
/// content.
#[derive(Debug, Clone, Default)]
pub struct Rollback(Arc<Mutex<Option<ReplacedIndex>>>);

/// A published index, and the index that it replaced.
#[derive(Debug)]
pub struct ReplacedIndex {
    /// The content of the published index.
    pub published: Vec<u8>,
    /// The content of the previous index; `None` if there was none.
    pub previous: Option<Vec<u8>>,
}

impl Rollback {
    /// Records a replacement.
    pub fn set(&self, replaced: ReplacedIndex) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(replaced);
    }

    /// Removes and returns the record. Returns `None` if the copy has published nothing.
    #[must_use]
    pub fn take(&self) -> Option<ReplacedIndex> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
