//! What a copy has made visible, until it is certain that it may stay so.

use std::sync::{Arc, Mutex, PoisonError};

/// The index that a copy has put in place of another one, or of none. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Exchange(Arc<Mutex<Option<Exchanged>>>);

/// An index that has taken another one's place.
#[derive(Debug)]
pub struct Exchanged {
    /// The content of the index that is visible.
    pub index: Vec<u8>,
    /// The content of the one that was visible before; nothing if there was none.
    pub previous: Option<Vec<u8>>,
}

impl Exchange {
    /// Remembers an exchange.
    pub fn set(&self, exchanged: Exchanged) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(exchanged);
    }

    /// The exchange, which is then forgotten; nothing if the copy has changed nothing that is visible.
    #[must_use]
    pub fn take(&self) -> Option<Exchanged> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
