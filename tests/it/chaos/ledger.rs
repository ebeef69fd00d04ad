//! What the clients were told, kept by them, outside of the service: a line on the disk for every acknowledgement.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    sync::{Arc, Mutex},
};

/// A call that was acknowledged.
#[derive(Debug, Clone)]
pub struct Entry {
    pub request_id: String,
    pub app: String,
    /// Empty for all regions.
    pub targets: Vec<String>,
    /// Whether its client has asked to cancel it.
    pub canceled: bool,
}

#[derive(Debug, Clone)]
pub struct Ledger(Arc<Mutex<(File, Vec<Entry>)>>);

impl Ledger {
    pub fn open(directory: &Path) -> Self {
        let file = File::create(directory.join("ledger")).expect("a ledger");
        Self(Arc::new(Mutex::new((file, Vec::new()))))
    }

    /// Notes an acknowledgement. Returns its place.
    pub fn acknowledged(&self, entry: Entry) -> usize {
        let (file, entries) = &mut *self.0.lock().expect("nobody panicked");
        writeln!(file, "{} {} {}", entry.request_id, entry.app, entry.targets.join(",")).expect("the ledger is kept");
        entries.push(entry);
        entries.len() - 1
    }

    /// Notes, before it is sent, that a cancellation is asked for.
    pub fn canceling(&self, place: usize) {
        self.0.lock().expect("nobody panicked").1[place].canceled = true;
    }

    pub fn entries(&self) -> Vec<Entry> {
        self.0.lock().expect("nobody panicked").1.clone()
    }

    pub fn count(&self) -> usize {
        self.0.lock().expect("nobody panicked").1.len()
    }
}
