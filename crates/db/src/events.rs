//! Wake-ups within and between processes, and the snapshots that watchers receive.

pub mod notify;
pub mod signal;
pub mod watchers;
