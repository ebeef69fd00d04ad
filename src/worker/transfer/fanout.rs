//! One source and the destinations that it feeds: each blob is read once for all that miss it at that moment. A destination joins whenever
//! it knows what it misses, and leaves when it has everything or fails. One that falls behind is detached: what it has yet to get is read
//! for it alone, from where it is, while the others go on without waiting for it and without reading anything again.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::{
    blob_fanout::BlobStream,
    destination::{Delivery, MissingBlobs, WRITES_AT_ONCE},
    member::Member,
    schedule::{MemberId, Schedule},
};
use crate::domain::RegionId;

/// What a destination may be sent at the same time: a few large blobs fill any link. A large one weighs five, another one; a destination that
/// fell behind gets one large one at a time, so that its share of the source's link is what it takes, and not what its queues hold.
pub const WEIGHT_AT_ONCE: usize = 16;
pub const LARGE_WEIGHT: usize = 5;

/// How long is waited.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// For a destination, while others wait for it as well.
    pub patience: Duration,
    /// For the source.
    pub stall: Duration,
}

/// The destinations of one source.
#[derive(Debug)]
pub struct Fanout {
    /// How long is waited.
    pub waits: Waits,
    /// What each destination may be sent at the same time, by weight.
    pub weight: usize,
    state: Mutex<State>,
    /// For the one that drives it.
    pub changed: Notify,
}

/// Who takes part, and what there is to send.
#[derive(Debug)]
pub struct State {
    pub schedule: Schedule,
    pub members: BTreeMap<MemberId, Arc<Member>>,
    next: MemberId,
    /// What is taken up again where it was left.
    pub streams: VecDeque<BlobStream>,
    /// What each destination is being sent, by weight.
    pub sending: BTreeMap<MemberId, usize>,
    /// Whether something waits until a destination has room for it.
    pub is_full: bool,
    /// Members that fell behind, each in a fan-out of its own.
    detached: BTreeMap<MemberId, Arc<Fanout>>,
    /// Those of them that are not driven yet.
    pub undriven: Vec<(Arc<Member>, Arc<Fanout>)>,
    /// Destinations that are still finding out what they miss.
    pub boarding: usize,
    /// When the first of them began.
    pub began: Instant,
    /// When the first of those became ready that have not been sent anything yet.
    pub ready: Option<Instant>,
    closed: bool,
}

/// A destination that is about to join. No longer, once this is dropped.
#[derive(Debug)]
pub struct Boarding(Arc<Fanout>);

/// The place of a destination. It is given up when this is dropped.
#[derive(Debug)]
pub struct Seat<'a> {
    fanout: &'a Fanout,
    /// The destination.
    pub member: Arc<Member>,
}

/// What a destination that fell behind has yet to be sent of a blob.
#[derive(Debug)]
pub enum Rest {
    /// The blob, by its place in the image, from that byte on. It does not know of it yet.
    Blob(usize, u64),
    /// The rest of one that it is being sent.
    Stream(BlobStream),
}

impl Fanout {
    /// A source without destinations, each of which may be sent so much at the same time.
    pub fn new(waits: Waits, weight: usize) -> Self {
        let state = State {
            schedule: Schedule::default(),
            members: BTreeMap::new(),
            next: 0,
            streams: VecDeque::new(),
            sending: BTreeMap::new(),
            is_full: false,
            detached: BTreeMap::new(),
            undriven: Vec::new(),
            boarding: 0,
            began: Instant::now(),
            ready: None,
            closed: false,
        };
        Self { waits, weight, state: Mutex::new(state), changed: Notify::new() }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
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
    pub fn join(&self, region: &RegionId, missing: &MissingBlobs) -> (Seat<'_>, mpsc::Receiver<Delivery>) {
        let (sender, deliveries) = mpsc::channel(WRITES_AT_ONCE);
        let mut state = self.state();
        let member = Arc::new(Member::new(state.next, region.clone(), sender, self.waits.patience));
        state.next += 1;
        if state.closed {
            member.close();
        } else {
            state.add(Arc::clone(&member), missing.blobs.clone());
        }
        drop(state);
        self.changed.notify_one();
        (Seat { fanout: self, member }, deliveries)
    }

    /// Whether a destination without room is waited for any longer. It had none since `since`, and `others_wait` says whether others that
    /// take the same blob have nothing to do meanwhile.
    pub fn waits_on(&self, member: &Member, since: Instant, others_wait: bool) -> bool {
        let state = self.state();
        let waits = |other: &Arc<Member>| other.id != member.id && state.schedule.misses(other.id) && other.is_idle();
        // What it was sent of another blob may have been too slow.
        let is_here = state.members.contains_key(&member.id);
        let others_wait = others_wait || (state.is_full && state.members.values().any(waits));
        is_here && (!others_wait || member.kept_waiting(since))
    }

    /// A destination is not waited for: the rest of this blob, and whatever else it misses, is sent to it alone.
    pub fn detach(&self, member: &Arc<Member>, rest: Rest) {
        let mut state = self.state();
        let missing = state.schedule.leave(member.id);
        if state.members.remove(&member.id).is_some() {
            tracing::info!(region = %member.region, "the region is slower than the others; reading the rest for it alone");
            let alone = Arc::new(Self::new(self.waits, LARGE_WEIGHT));
            alone.state().add(Arc::clone(member), missing);
            state.detached.insert(member.id, Arc::clone(&alone));
            state.undriven.push((Arc::clone(member), alone));
        }
        // One that has left altogether has nowhere to get the rest.
        let Some(alone) = state.detached.get(&member.id) else { return };
        let mut own = alone.state();
        match rest {
            Rest::Blob(blob, from) => own.schedule.join(member.id, BTreeMap::from([(blob, from)])),
            Rest::Stream(stream) => own.streams.push_back(stream),
        }
        drop(own);
        alone.changed.notify_one();
        drop(state);
        self.changed.notify_one();
    }

    /// Sends no more to any destination. For when it is no longer driven.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        for member in std::mem::take(&mut state.members).into_values() {
            member.close();
        }
        for alone in std::mem::take(&mut state.detached).into_values() {
            alone.close();
        }
    }

    /// Whether it is no longer driven.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }
}

impl State {
    fn add(&mut self, member: Arc<Member>, missing: BTreeMap<usize, u64>) {
        self.schedule.join(member.id, missing);
        self.members.insert(member.id, member);
        self.ready.get_or_insert_with(Instant::now);
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
        state.schedule.leave(self.member.id);
        state.members.remove(&self.member.id);
        state.detached.remove(&self.member.id);
        drop(state);
        self.fanout.changed.notify_one();
    }
}
