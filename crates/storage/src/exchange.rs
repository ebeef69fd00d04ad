//! The index that a copy replaced, kept so that the copy can restore it.

use std::sync::{Arc, Mutex, PoisonError};

/// The index that a copy has published, with the one it replaced. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Exchange(Arc<Mutex<Option<Exchanged>>>);

/// A replaced index.
#[derive(Debug)]
pub struct Exchanged {
    /// The content of the visible index.
    pub index: Vec<u8>,
    /// The content of the previous index; `None` if there was none.
    pub previous: Option<Vec<u8>>,
}

impl Exchange {
    /// Records an exchange.
    pub fn set(&self, exchanged: Exchanged) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(exchanged);
    }

    /// Takes the exchange out; `None` if the copy has published nothing.
    #[must_use]
    pub fn take(&self) -> Option<Exchanged> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
