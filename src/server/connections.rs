//! Who has a place at a listener. There are so many places, and so many for one source; where none is left, the connection that is
//! least in use gives way: one that has proved nothing before one that has, an older one before a younger one. A connection on which an
//! authenticated call is in progress never does. So whoever proves nothing keeps nobody out.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::peer::{Activity, Use};

/// Connections of one source that may be open without ever having proved who calls; the oldest of them gives way to the next.
pub const UNPROVEN_PER_SOURCE: usize = 256;

/// The places of a listener.
#[derive(Debug)]
pub struct Connections {
    per_source: usize,
    places: Arc<Semaphore>,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    /// In the order in which they were accepted.
    connections: BTreeMap<u64, Connection>,
    /// How many each source has.
    sources: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Connection {
    /// Whom it counts for; nobody where that is not known yet.
    source: Option<IpAddr>,
    activity: Arc<Activity>,
    evicted: CancellationToken,
}

/// A connection's place, until this is dropped.
#[derive(Debug)]
pub struct Place {
    id: u64,
    connections: Arc<Connections>,
    /// Canceled when the connection has to give way.
    pub evicted: CancellationToken,
    /// What goes on on it.
    pub activity: Arc<Activity>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.with(|open| open.remove(self.id));
    }
}

impl Open {
    fn remove(&mut self, id: u64) -> Option<Connection> {
        let connection = self.connections.remove(&id)?;
        if let Some(source) = connection.source {
            self.count(source, -1);
        }
        Some(connection)
    }

    fn count(&mut self, source: IpAddr, by: isize) {
        let count = self.sources.entry(source).or_default();
        *count = count.saturating_add_signed(by);
        if *count == 0 {
            self.sources.remove(&source);
        }
    }

    /// Has the connection give way that is least in use, of those that `among` names. False if all of them are.
    fn evict(&mut self, among: impl Fn(&Connection) -> bool) -> bool {
        let candidates = self.connections.iter().filter(|(_, connection)| among(connection));
        let least = candidates
            .filter_map(|(id, connection)| match connection.activity.used() {
                Use::Unproven => Some((0, *id)),
                Use::Idle => Some((1, *id)),
                Use::Busy => None,
            })
            .min();
        let evicted = least.and_then(|(_, id)| self.remove(id));
        evicted.inspect(|connection| connection.evicted.cancel()).is_some()
    }

    /// Makes room for one more connection of a source. False if there is none to be made.
    fn make_room(&mut self, source: IpAddr, per_source: usize) -> bool {
        let count = self.sources.get(&source).copied().unwrap_or_default();
        if count >= per_source && !self.evict(|connection| connection.source == Some(source)) {
            return false;
        }
        if count >= UNPROVEN_PER_SOURCE {
            let unproven = |connection: &Connection| {
                connection.source == Some(source) && connection.activity.used() == Use::Unproven
            };
            if self.connections.values().filter(|connection| unproven(connection)).count() >= UNPROVEN_PER_SOURCE {
                self.evict(unproven);
            }
        }
        true
    }
}

impl Connections {
    /// So many places, and so many for one source.
    pub fn new(places: usize, per_source: usize) -> Arc<Self> {
        Arc::new(Self { per_source, places: Arc::new(Semaphore::new(places)), open: Mutex::default() })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Open) -> T) -> T {
        act(&mut self.open.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A place for a connection of a source; of nobody's, if who it is will be said later. Waits where every place has an
    /// authenticated call in progress. Returns nothing where the source has all places that one source may have, and uses them.
    pub async fn admit(self: &Arc<Self>, source: Option<IpAddr>) -> Option<Place> {
        if source.is_some_and(|source| !self.with(|open| open.make_room(source, self.per_source))) {
            return None;
        }
        let permit = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                self.with(|open| open.evict(|_| true));
                Arc::clone(&self.places).acquire_owned().await.ok()?
            }
        };
        let (evicted, activity) = (CancellationToken::new(), Arc::<Activity>::default());
        let connection = Connection { source, activity: Arc::clone(&activity), evicted: evicted.clone() };
        let id = self.with(|open| {
            let id = open.next;
            open.next += 1;
            open.connections.insert(id, connection);
            if let Some(source) = source {
                open.count(source, 1);
            }
            id
        });
        Some(Place { id, connections: Arc::clone(self), evicted, activity, _permit: permit })
    }
}

impl Place {
    /// Counts it for the source that a proxy has named. False if that has all places that one source may have, and uses them.
    pub fn count_for(&self, source: IpAddr) -> bool {
        let per_source = self.connections.per_source;
        self.connections.with(|open| {
            if !open.make_room(source, per_source) {
                return false;
            }
            let Some(connection) = open.connections.get_mut(&self.id) else { return false };
            let before = connection.source.replace(source);
            if let Some(before) = before {
                open.count(before, -1);
            }
            open.count(source, 1);
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use super::{Connections, UNPROVEN_PER_SOURCE};

    fn source(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[tokio::test]
    async fn who_proves_nothing_gives_way() {
        let connections = Connections::new(3, 3);
        let [silent, proven, busy] = [1, 1, 2].map(source);
        let (silent, proven, busy) = (
            connections.admit(Some(silent)).await.expect("a place"),
            connections.admit(Some(proven)).await.expect("a place"),
            connections.admit(Some(busy)).await.expect("a place"),
        );
        drop(proven.activity.authenticated());
        let call = busy.activity.authenticated();
        // Whoever was evicted leaves, as its connection does.
        let leaving = tokio::spawn(async move {
            silent.evicted.cancelled().await;
            drop(silent);
        });
        let fourth = connections.admit(Some(source(3))).await.expect("the silent one gave way");
        leaving.await.expect("it left");
        assert!(!proven.evicted.is_cancelled() && !busy.evicted.is_cancelled());
        let held = fourth.activity.authenticated();
        let leaving = tokio::spawn(async move {
            proven.evicted.cancelled().await;
            drop(proven);
        });
        let fifth = connections.admit(Some(source(4))).await.expect("the idle one gave way");
        leaving.await.expect("it left");
        let last = fifth.activity.authenticated();
        let waits = tokio::time::timeout(Duration::from_millis(50), connections.admit(Some(source(5)))).await;
        assert!(waits.is_err(), "all places are in use");
        assert!(!busy.evicted.is_cancelled() && !fourth.evicted.is_cancelled() && !fifth.evicted.is_cancelled());
        drop((call, held, last));
    }

    #[tokio::test]
    async fn one_source_takes_no_place_of_another() {
        let connections = Connections::new(10, 2);
        let first = connections.admit(Some(source(1))).await.expect("a place");
        let second = connections.admit(Some(source(1))).await.expect("a place");
        let calls = [&first, &second].map(|place| place.activity.authenticated());
        assert!(connections.admit(Some(source(1))).await.is_none(), "both of its places are in use");
        assert!(connections.admit(Some(source(2))).await.is_some());
        drop(calls);
        assert!(connections.admit(Some(source(1))).await.is_some());
        assert!(first.evicted.is_cancelled(), "the older one gave way");
        // Behind a proxy it is known later whose it is, and then counted.
        let [third, fourth] = [connections.admit(None).await, connections.admit(None).await];
        let (third, fourth) = (third.expect("a place"), fourth.expect("a place"));
        let three = source(3);
        assert!(third.count_for(three) && fourth.count_for(three));
        let calls = [&third, &fourth].map(|place| place.activity.authenticated());
        let fifth = connections.admit(None).await.expect("a place");
        assert!(!fifth.count_for(three));
        drop(calls);
    }

    #[tokio::test]
    async fn connections_that_prove_nothing_are_few() {
        let connections = Connections::new(4 * UNPROVEN_PER_SOURCE, 4 * UNPROVEN_PER_SOURCE);
        let mut places = Vec::new();
        for _ in 0..2 * UNPROVEN_PER_SOURCE {
            places.push(connections.admit(Some(source(1))).await.expect("a place"));
        }
        let evicted = places.iter().filter(|place| place.evicted.is_cancelled()).count();
        assert_eq!(evicted, UNPROVEN_PER_SOURCE);
        assert!(places[..UNPROVEN_PER_SOURCE].iter().all(|place| place.evicted.is_cancelled()), "the older ones");
    }
}
