//! The authenticator in force, and notifications of its replacement.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use super::Authenticator;

/// Holds the [`Authenticator`] of the configuration in force.
#[derive(Debug)]
pub struct CurrentAuthenticator {
    authenticator: ArcSwap<Authenticator>,
    changed: watch::Sender<()>,
}

impl CurrentAuthenticator {
    /// Puts an authenticator into force.
    #[must_use]
    pub fn new(authenticator: Authenticator) -> Self {
        Self { authenticator: ArcSwap::from_pointee(authenticator), changed: watch::Sender::new(()) }
    }

    /// Returns the authenticator in force.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<Authenticator>> {
        self.authenticator.load()
    }

    /// Replaces the authenticator. Long-running calls are reauthorized.
    pub fn replace(&self, authenticator: Authenticator) {
        self.authenticator.store(Arc::new(authenticator));
        self.changed.send_replace(());
    }

    /// Returns a receiver that is notified of all later replacements.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
