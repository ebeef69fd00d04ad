//! One source and the destinations that it feeds: each blob is read once for all that miss it at that moment. A destination joins whenever
//! it knows what it misses, and leaves when it has everything, fails or lags; the others neither wait for it nor read anything again.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, sleep_until},
};

use super::{
    blob_fanout::{BlobSource, Sink, send_blob},
    byte_channel,
    destination::{Delivery, MissingBlobs, WRITES_AT_ONCE},
    member::Member,
    schedule::{MemberId, Schedule},
};
use crate::region::Tree;

/// Blobs above this size, in bytes, are large: a few of them at a time fill any link.
const LARGE: u64 = 4 << 20;
/// What may be read at the same time: a large blob weighs five, another one.
const WEIGHT_AT_ONCE: usize = 16;
const LARGE_WEIGHT: usize = 5;
/// How long the first destination that knows what it misses waits at least for those that began with it.
const SHORTEST_BOARDING: Duration = Duration::from_millis(5);
/// The part of the time that the first one took to find out for which it waits for the others.
const BOARDING_PART: u32 = 4;

/// How long destinations are waited for.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// While others wait as well.
    pub patience: Duration,
    /// Alone, and for the source.
    pub stall: Duration,
}

/// The destinations of one source.
#[derive(Debug)]
pub struct Fanout {
    waits: Waits,
    state: Mutex<State>,
    /// For the one that drives it.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    schedule: Schedule,
    members: BTreeMap<MemberId, Arc<Member>>,
    next: MemberId,
    /// Destinations that are still finding out what they miss.
    boarding: usize,
    /// When the first of them began.
    began: Instant,
    /// When one was first ready since nothing was being sent.
    ready: Option<Instant>,
    closed: bool,
}

/// A destination that is about to join. No longer, once this is dropped.
#[derive(Debug)]
pub struct Boarding(Arc<Fanout>);

/// The place of a destination. It is given up when this is dropped.
#[derive(Debug)]
pub struct Seat<'a> {
    fanout: &'a Fanout,
    id: MemberId,
    /// The destination.
    pub member: Arc<Member>,
}

/// What is sent next.
struct Next {
    /// The blob's place in the image.
    blob: usize,
    weight: usize,
    /// To whom, and from which byte on.
    members: Vec<(Arc<Member>, u64)>,
}

impl Fanout {
    /// A source without destinations.
    pub fn new(waits: Waits) -> Self {
        let state = State {
            schedule: Schedule::default(),
            members: BTreeMap::new(),
            next: 0,
            boarding: 0,
            began: Instant::now(),
            ready: None,
            closed: false,
        };
        Self { waits, state: Mutex::new(state), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces a destination that has yet to find out what it misses: those that are ready wait for it a little.
    pub fn board(self: &Arc<Self>) -> Boarding {
        let mut state = self.state();
        if state.boarding == 0 {
            state.began = Instant::now();
        }
        state.boarding += 1;
        Boarding(Arc::clone(self))
    }

    /// Adds a destination. Its blobs come by the channel.
    pub fn join(&self, missing: &MissingBlobs) -> (Seat<'_>, mpsc::Receiver<Delivery>) {
        let (sender, deliveries) = mpsc::channel(WRITES_AT_ONCE);
        let member = Arc::new(Member::new(sender));
        let mut state = self.state();
        let id = state.next;
        state.next += 1;
        if state.closed {
            member.close();
        } else {
            state.schedule.join(id, missing.blobs.clone());
            state.members.insert(id, Arc::clone(&member));
            state.ready.get_or_insert_with(Instant::now);
        }
        drop(state);
        self.changed.notify_one();
        (Seat { fanout: self, id, member }, deliveries)
    }

    /// Sends no more to any destination. For when it is no longer driven.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        for member in std::mem::take(&mut state.members).into_values() {
            member.close();
        }
    }

    /// Whether it is no longer driven.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Sends to destinations what they miss, for as long as it is polled.
    pub async fn drive(&self, source: BlobSource<'_>, tree: &Tree) {
        let mut sending = FuturesUnordered::new();
        let mut weight = 0;
        loop {
            if sending.is_empty() {
                self.departure().await;
            }
            while let Some(next) = self.next(tree, WEIGHT_AT_ONCE - weight, sending.is_empty()) {
                let own = next.weight;
                weight += own;
                sending.push(self.send(source, tree, next).map(move |()| own));
            }
            tokio::select! {
                Some(own) = sending.next() => weight -= own,
                () = self.changed.notified() => {}
            }
        }
    }

    /// Waits until a destination is ready, and then a little for those that began with it. One that is not ready by then joins later.
    async fn departure(&self) {
        loop {
            let until = {
                let state = self.state();
                let ready = state.ready.filter(|_| state.schedule.next().is_some());
                let wait = |ready: Instant| {
                    let part = ready.saturating_duration_since(state.began) / BOARDING_PART;
                    ready + part.max(SHORTEST_BOARDING).min(self.waits.patience)
                };
                match ready {
                    Some(_) if state.boarding == 0 => return,
                    ready => ready.map(wait),
                }
            };
            match until {
                Some(until) if until <= Instant::now() => return,
                Some(until) => tokio::select! {
                    () = sleep_until(until) => return,
                    () = self.changed.notified() => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    /// What is sent next, if there is room for it, and to whom.
    fn next(&self, tree: &Tree, room: usize, idle: bool) -> Option<Next> {
        let mut state = self.state();
        let Some(blob) = state.schedule.next() else {
            if idle {
                state.ready = None;
            }
            return None;
        };
        let own = if tree.blobs.get(blob)?.size > LARGE { LARGE_WEIGHT } else { 1 };
        if own > room {
            return None;
        }
        let taken = state.schedule.take(blob);
        let members = taken.into_iter().filter_map(|(id, from)| Some((Arc::clone(state.members.get(&id)?), from)));
        Some(Next { blob, weight: own, members: members.collect() })
    }

    /// Whether no destination waits while another one is waited for.
    fn is_alone(&self) -> bool {
        self.state().schedule.members() <= 1
    }

    /// Reads one blob, once, for all that miss it.
    async fn send(&self, source: BlobSource<'_>, tree: &Tree, next: Next) {
        let Next { blob: index, members, .. } = next;
        let Some(blob) = tree.blobs.get(index) else { return };
        let mut sinks = Vec::new();
        for (member, from) in &members {
            let (sender, chunks) = byte_channel::channel();
            let others_wait = || members.iter().any(|(other, _)| !Arc::ptr_eq(other, member) && other.is_idle());
            let delivery = Delivery { index, blob: blob.clone(), from: *from, chunks };
            if member.deliver(delivery, self.waits, others_wait).await {
                sinks.push(Sink { member, chunks: Some(sender), from: *from });
            }
        }
        if sinks.is_empty() {
            return;
        }
        let result = send_blob(source, blob, &mut sinks, self.waits, || self.is_alone()).await;
        // Before the sinks are dropped: a destination whose stream breaks off asks why at once.
        if let Err(error) = result {
            let error = Arc::new(error);
            for sink in &sinks {
                sink.member.fail(Arc::clone(&error));
            }
        }
    }
}

impl Drop for Boarding {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.boarding = state.boarding.saturating_sub(1);
        drop(state);
        self.0.changed.notify_one();
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        let mut state = self.fanout.state();
        state.schedule.leave(self.id);
        state.members.remove(&self.id);
        drop(state);
        self.fanout.changed.notify_one();
    }
}
