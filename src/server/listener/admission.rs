//! Admission control of a listener: limits open connections in total and per source address.
//!
//! When the listener is full, it evicts the connection that is least in use. Connections without an authenticated call
//! are evicted before all others, and older connections before newer ones. A connection with an authenticated call in
//! flight is never evicted, so that unauthenticated clients can't lock out others.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::peer::{Activity, ConnectionUse};

/// Maximum number of unauthenticated connections of one source address. A further connection evicts the oldest.
pub const UNAUTHENTICATED_PER_SOURCE: usize = 256;

/// The connection slots of a listener.
#[derive(Debug)]
pub struct Admission {
    per_source: usize,
    slots: Arc<Semaphore>,
    open: Mutex<OpenConnections>,
}

#[derive(Debug, Default)]
struct OpenConnections {
    next_id: u64,
    /// By id, which increases with each accepted connection.
    connections: BTreeMap<u64, ConnectionEntry>,
    /// Open connections per source.
    sources: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct ConnectionEntry {
    /// The source that the connection counts for; `None` until a proxy has named it.
    source: Option<IpAddr>,
    activity: Arc<Activity>,
    evicted: CancellationToken,
}

/// The slot of a connection, which is freed on drop.
#[derive(Debug)]
pub struct ConnectionSlot {
    id: u64,
    admission: Arc<Admission>,
    /// Canceled when the connection is evicted.
    pub evicted: CancellationToken,
    /// The calls of the connection.
    pub activity: Arc<Activity>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.admission.with(|open| open.remove(self.id));
    }
}

impl OpenConnections {
    fn remove(&mut self, id: u64) -> Option<ConnectionEntry> {
        let connection = self.connections.remove(&id)?;
        if let Some(source) = connection.source {
            self.add(source, -1);
        }
        Some(connection)
    }

    fn add(&mut self, source: IpAddr, delta: isize) {
        let count = self.sources.entry(source).or_default();
        *count = count.saturating_add_signed(delta);
        if *count == 0 {
            self.sources.remove(&source);
        }
    }

    /// Evicts the least used connection among those that `is_candidate` selects. Returns false if all of them are busy.
    fn evict(&mut self, is_candidate: impl Fn(&ConnectionEntry) -> bool) -> bool {
        let candidates = self.connections.iter().filter(|(_, connection)| is_candidate(connection));
        let least = candidates
            .filter_map(|(id, connection)| match connection.activity.usage() {
                ConnectionUse::Unauthenticated => Some((0, *id)),
                ConnectionUse::Idle => Some((1, *id)),
                ConnectionUse::Busy => None,
            })
            .min();
        let evicted = least.and_then(|(_, id)| self.remove(id));
        evicted.inspect(|connection| connection.evicted.cancel()).is_some()
    }

    /// Makes room for one more connection of a source. Returns false if all of its connections are busy.
    fn make_room(&mut self, source: IpAddr, per_source: usize) -> bool {
        let count = self.sources.get(&source).copied().unwrap_or_default();
        if count >= per_source && !self.evict(|connection| connection.source == Some(source)) {
            return false;
        }
        if count >= UNAUTHENTICATED_PER_SOURCE {
            let is_unauthenticated = |connection: &ConnectionEntry| {
                connection.source == Some(source) && connection.activity.usage() == ConnectionUse::Unauthenticated
            };
            if self.connections.values().filter(|connection| is_unauthenticated(connection)).count()
                >= UNAUTHENTICATED_PER_SOURCE
            {
                self.evict(is_unauthenticated);
            }
        }
        true
    }
}

impl Admission {
    /// Limits open connections to `total`, and to `per_source` for each source.
    pub fn new(total: usize, per_source: usize) -> Arc<Self> {
        Arc::new(Self { per_source, slots: Arc::new(Semaphore::new(total)), open: Mutex::default() })
    }

    fn with<T>(&self, act: impl FnOnce(&mut OpenConnections) -> T) -> T {
        act(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns a slot for a connection of `source`; `None` stands for a source that a proxy will name later. Waits
    /// while all slots have an authenticated call in flight. Returns `None` if the source has reached its limit and all
    /// of its connections are busy.
    pub async fn admit(self: &Arc<Self>, source: Option<IpAddr>) -> Option<ConnectionSlot> {
        if source.is_some_and(|source| !self.with(|open| open.make_room(source, self.per_source))) {
            return None;
        }
        let permit = match Arc::clone(&self.slots).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                self.with(|open| open.evict(|_| true));
                Arc::clone(&self.slots).acquire_owned().await.ok()?
            }
        };
        let (evicted, activity) = (CancellationToken::new(), Arc::<Activity>::default());
        let connection = ConnectionEntry { source, activity: Arc::clone(&activity), evicted: evicted.clone() };
        let id = self.with(|open| {
            let id = open.next_id;
            open.next_id += 1;
            open.connections.insert(id, connection);
            if let Some(source) = source {
                open.add(source, 1);
            }
            id
        });
        Some(ConnectionSlot { id, admission: Arc::clone(self), evicted, activity, _permit: permit })
    }
}

impl ConnectionSlot {
    /// Counts the connection for the source that a proxy has named. Returns false if that source has reached its limit
    /// and all of its connections are busy.
    pub fn count_for(&self, source: IpAddr) -> bool {
        let per_source = self.admission.per_source;
        self.admission.with(|open| {
            if !open.make_room(source, per_source) {
                return false;
            }
            let Some(connection) = open.connections.get_mut(&self.id) else { return false };
            let before = connection.source.replace(source);
            if let Some(before) = before {
                open.add(before, -1);
            }
            open.add(source, 1);
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use super::{Admission, UNAUTHENTICATED_PER_SOURCE};

    fn source(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[tokio::test]
    async fn unauthenticated_connections_are_evicted_first() {
        let admission = Admission::new(3, 3);
        let [silent, proven, busy] = [1, 1, 2].map(source);
        let (silent, proven, busy) = (
            admission.admit(Some(silent)).await.expect("a slot"),
            admission.admit(Some(proven)).await.expect("a slot"),
            admission.admit(Some(busy)).await.expect("a slot"),
        );
        drop(proven.activity.authenticated());
        let call = busy.activity.authenticated();
        // An evicted connection frees its slot.
        let leaving = tokio::spawn(async move {
            silent.evicted.cancelled().await;
            drop(silent);
        });
        let fourth = admission.admit(Some(source(3))).await.expect("the unauthenticated connection is evicted");
        leaving.await.expect("the task ends");
        assert!(!proven.evicted.is_cancelled() && !busy.evicted.is_cancelled());
        let call_of_fourth = fourth.activity.authenticated();
        let leaving = tokio::spawn(async move {
            proven.evicted.cancelled().await;
            drop(proven);
        });
        let fifth = admission.admit(Some(source(4))).await.expect("the idle connection is evicted");
        leaving.await.expect("the task ends");
        let call_of_fifth = fifth.activity.authenticated();
        let waits = tokio::time::timeout(Duration::from_millis(50), admission.admit(Some(source(5)))).await;
        assert!(waits.is_err(), "all slots are busy");
        assert!(!busy.evicted.is_cancelled() && !fourth.evicted.is_cancelled() && !fifth.evicted.is_cancelled());
        drop((call, call_of_fourth, call_of_fifth));
    }

    #[tokio::test]
    async fn sources_do_not_share_a_limit() {
        let admission = Admission::new(10, 2);
        let first = admission.admit(Some(source(1))).await.expect("a slot");
        let second = admission.admit(Some(source(1))).await.expect("a slot");
        let calls = [&first, &second].map(|slot| slot.activity.authenticated());
        assert!(admission.admit(Some(source(1))).await.is_none(), "both of its slots are busy");
        assert!(admission.admit(Some(source(2))).await.is_some());
        drop(calls);
        assert!(admission.admit(Some(source(1))).await.is_some());
        assert!(first.evicted.is_cancelled(), "the older connection is evicted");
        // A connection of a proxy is counted once the proxy has named the source.
        let [third, fourth] = [admission.admit(None).await, admission.admit(None).await];
        let (third, fourth) = (third.expect("a slot"), fourth.expect("a slot"));
        let three = source(3);
        assert!(third.count_for(three) && fourth.count_for(three));
        let calls = [&third, &fourth].map(|slot| slot.activity.authenticated());
        let fifth = admission.admit(None).await.expect("a slot");
        assert!(!fifth.count_for(three));
        drop(calls);
    }

    #[tokio::test]
    async fn unauthenticated_connections_of_a_source_are_limited() {
        let admission = Admission::new(4 * UNAUTHENTICATED_PER_SOURCE, 4 * UNAUTHENTICATED_PER_SOURCE);
        let mut slots = Vec::new();
        for _ in 0..2 * UNAUTHENTICATED_PER_SOURCE {
            slots.push(admission.admit(Some(source(1))).await.expect("a slot"));
        }
        let evicted = slots.iter().filter(|slot| slot.evicted.is_cancelled()).count();
        assert_eq!(evicted, UNAUTHENTICATED_PER_SOURCE);
        assert!(
            slots[..UNAUTHENTICATED_PER_SOURCE].iter().all(|slot| slot.evicted.is_cancelled()),
            "the oldest are evicted"
        );
    }
}
