//! The authenticator of the active configuration, and notifications of its replacement.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use super::Authenticator;

/// Holds the [`Authenticator`] of the active configuration.
#[derive(Debug)]
pub struct CurrentAuthenticator {
    authenticator: ArcSwap<Authenticator>,
    changed: watch::Sender<()>,
}

impl CurrentAuthenticator {
    /// Creates a holder whose active authenticator is `authenticator`.
    #[must_use]
    pub fn new(authenticator: Authenticator) -> Self {
        Self { authenticator: ArcSwap::from_pointee(authenticator), changed: watch::Sender::new(()) }
    }

    /// Returns the active authenticator.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<Authenticator>> {
        self.authenticator.load()
    }

    /// Replaces the active authenticator, and has long-running calls reauthorized.
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
