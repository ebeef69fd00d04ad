//! The clients' record of acknowledged calls, kept outside of the service. A file has one line per acknowledged call.

use std::{
    fs::File,
    io::Write as _,
    path::Path,
    sync::{Arc, Mutex},
};

/// An acknowledged call.
#[derive(Debug, Clone)]
pub struct Entry {
    pub request_id: String,
    pub app: String,
    /// The target regions; empty for all regions.
    pub targets: Vec<String>,
    /// Whether the client has requested the cancellation of the call.
    pub canceled: bool,
}

#[derive(Debug, Clone)]
pub struct Ledger(Arc<Mutex<(File, Vec<Entry>)>>);

impl Ledger {
    pub fn open(directory: &Path) -> Self {
        let file = File::create(directory.join("ledger")).expect("a ledger");
        Self(Arc::new(Mutex::new((file, Vec::new()))))
    }

    /// Records an acknowledged call. Returns its index.
    pub fn acknowledged(&self, entry: Entry) -> usize {
        let (file, entries) = &mut *self.0.lock().expect("no panic");
        writeln!(file, "{} {} {}", entry.request_id, entry.app, entry.targets.join(","))
            .expect("the ledger is written");
        entries.push(entry);
        entries.len() - 1
    }

    /// Records that the client is about to request the cancellation of a call.
    pub fn canceling(&self, index: usize) {
        self.0.lock().expect("no panic").1[index].canceled = true;
    }

    pub fn entries(&self) -> Vec<Entry> {
        self.0.lock().expect("no panic").1.clone()
    }

    pub fn request_id(&self, index: usize) -> String {
        self.0.lock().expect("no panic").1[index].request_id.clone()
    }

    pub fn count(&self) -> usize {
        self.0.lock().expect("no panic").1.len()
    }
}
