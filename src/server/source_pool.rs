//! Slots for work on behalf of unauthenticated callers, limited in total and per source address, so that no source can
//! use up the slots of others.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use super::listener::peer::Peer;

/// A pool of slots. Clones share the slots.
#[derive(Debug, Clone)]
pub struct SourcePool(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    total: usize,
    per_source: usize,
    in_use: Mutex<InUse>,
}

#[derive(Debug, Default)]
struct InUse {
    total: usize,
    sources: HashMap<Option<IpAddr>, usize>,
}

/// A slot in use, which is freed on drop.
#[derive(Debug)]
pub struct PoolSlot {
    pool: Arc<Pool>,
    source: Option<IpAddr>,
}

impl SourcePool {
    /// Creates a pool of `total` slots, at most `per_source` of them for each source.
    pub fn new(total: usize, per_source: usize) -> Self {
        Self(Arc::new(Pool { total, per_source, in_use: Mutex::default() }))
    }

    /// Returns a slot for a call of a peer, if one is free.
    pub fn try_acquire(&self, peer: Option<&Peer>) -> Option<PoolSlot> {
        let source = peer.map(Peer::source);
        let mut in_use = self.0.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        if in_use.total >= self.0.total || in_use.sources.get(&source).is_some_and(|count| *count >= self.0.per_source)
        {
            return None;
        }
        in_use.total += 1;
        *in_use.sources.entry(source).or_default() += 1;
        Some(PoolSlot { pool: Arc::clone(&self.0), source })
    }
}

impl Drop for PoolSlot {
    fn drop(&mut self) {
        let mut in_use = self.pool.in_use.lock().unwrap_or_else(PoisonError::into_inner);
        in_use.total = in_use.total.saturating_sub(1);
        if let Some(count) = in_use.sources.get_mut(&self.source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                in_use.sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::SourcePool;
    use crate::server::listener::peer::Peer;

    #[test]
    fn one_source_leaves_slots_for_others() {
        let pool = SourcePool::new(3, 2);
        let [one, two, three] = [1, 2, 3].map(|last| Peer {
            address: [192, 0, 2, last].into(),
            secure: false,
            certificate: None,
            activity: Arc::default(),
        });
        let held = [pool.try_acquire(Some(&one)), pool.try_acquire(Some(&one))];
        assert!(held.iter().all(Option::is_some) && pool.try_acquire(Some(&one)).is_none());
        let other = pool.try_acquire(Some(&two));
        assert!(other.is_some() && pool.try_acquire(Some(&three)).is_none(), "all slots are in use");
        drop(held);
        assert!(pool.try_acquire(Some(&three)).is_some());
        drop(other);
        assert!(pool.0.in_use.lock().expect("no panic").sources.is_empty(), "no source is left");
    }
}
