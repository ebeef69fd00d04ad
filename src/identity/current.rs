//! The directory that counts now, and who wants to hear when another one does.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use tokio::sync::watch;

use super::Directory;

/// See the module.
#[derive(Debug)]
pub struct CurrentDirectory {
    directory: ArcSwap<Directory>,
    changed: watch::Sender<()>,
}

impl CurrentDirectory {
    /// Begins with this one.
    #[must_use]
    pub fn new(directory: Directory) -> Self {
        Self { directory: ArcSwap::from_pointee(directory), changed: watch::Sender::new(()) }
    }

    /// The one that counts now.
    #[must_use]
    pub fn load(&self) -> Guard<Arc<Directory>> {
        self.directory.load()
    }

    /// From now on this one counts. Calls that are in progress are decided about again.
    pub fn replace(&self, directory: Directory) {
        self.directory.store(Arc::new(directory));
        self.changed.send_replace(());
    }

    /// Hears of every change after this.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}
