//! Places for calls that need something of ours before anybody has proved who calls: so many at once, and so many for one source, so that
//! no source keeps another one out.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use super::peer::Peer;

/// See the module. Its clones share the places.
#[derive(Debug, Clone)]
pub struct SourcePool(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    places: usize,
    per_source: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: usize,
    sources: HashMap<Option<IpAddr>, usize>,
}

/// A place, until this is dropped.
#[derive(Debug)]
pub struct PoolPlace {
    pool: Arc<Pool>,
    source: Option<IpAddr>,
}

impl SourcePool {
    /// So many places, and so many for one source.
    pub fn new(places: usize, per_source: usize) -> Self {
        Self(Arc::new(Pool { places, per_source, taken: Mutex::default() }))
    }

    /// A place for a call of a peer, if there is one.
    pub fn enter(&self, peer: Option<&Peer>) -> Option<PoolPlace> {
        let source = peer.map(Peer::source);
        let mut taken = self.0.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if taken.all >= self.0.places || taken.sources.get(&source).is_some_and(|count| *count >= self.0.per_source) {
            return None;
        }
        taken.all += 1;
        *taken.sources.entry(source).or_default() += 1;
        Some(PoolPlace { pool: Arc::clone(&self.0), source })
    }
}

impl Drop for PoolPlace {
    fn drop(&mut self) {
        let mut taken = self.pool.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.all = taken.all.saturating_sub(1);
        if let Some(count) = taken.sources.get_mut(&self.source) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                taken.sources.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::SourcePool;
    use crate::server::peer::Peer;

    #[test]
    fn one_source_leaves_places_for_others() {
        let pool = SourcePool::new(3, 2);
        let [one, two, three] = [1, 2, 3].map(|last| Peer {
            address: [192, 0, 2, last].into(),
            secure: false,
            certificate: None,
            activity: Arc::default(),
        });
        let held = [pool.enter(Some(&one)), pool.enter(Some(&one))];
        assert!(held.iter().all(Option::is_some) && pool.enter(Some(&one)).is_none());
        let other = pool.enter(Some(&two));
        assert!(other.is_some() && pool.enter(Some(&three)).is_none(), "all are taken");
        drop(held);
        assert!(pool.enter(Some(&three)).is_some());
        drop(other);
        assert!(pool.0.taken.lock().expect("nobody panicked").sources.is_empty(), "nothing is remembered");
    }
}
