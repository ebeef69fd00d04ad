//! Distributes the blobs of one source to its destinations: each blob is read once for all that miss it at that moment.
//!
//! A destination joins when it knows which blobs it misses, and leaves when it is complete or fails. A destination that
//! falls behind is detached: the rest is read for it alone, from its current position. The others continue without
//! waiting for it or reading anything again.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use domain::RegionId;
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::{
    blob_fanout::BlobStream,
    destination::{Delivery, MissingBlobs, WRITE_CONCURRENCY},
    member::Member,
    schedule::{MemberId, Schedule},
};

/// The maximum total weight of the blobs that are sent to a destination concurrently.
pub const MAX_WEIGHT: usize = 16;
/// The weight of a large blob; other blobs weigh one. A few large blobs saturate any link. A detached destination
/// receives one large blob at a time, so that its share of the source's link depends on its own speed, not on the size
/// of its queues.
pub const LARGE_WEIGHT: usize = 5;

/// The time limits of a transfer.
#[derive(Debug, Clone, Copy)]
pub struct Waits {
    /// How long a destination may keep others waiting.
    pub patience: Duration,
    /// How long the source may make no progress.
    pub stall: Duration,
}

/// The destinations of one source and the blobs that each of them misses.
#[derive(Debug)]
pub struct Fanout {
    /// The time limits.
    pub waits: Waits,
    /// The maximum total weight that is sent to each destination concurrently.
    pub weight: usize,
    state: Mutex<State>,
    /// Notifies the driver of changes.
    pub changed: Notify,
}

/// The members and the blobs that are left to send.
#[derive(Debug)]
pub struct State {
    pub schedule: Schedule,
    pub members: BTreeMap<MemberId, Arc<Member>>,
    next: MemberId,
    /// The rests of blobs that members were receiving when they were detached.
    pub streams: VecDeque<BlobStream>,
    /// The weight that is being sent to each member.
    pub sending: BTreeMap<MemberId, usize>,
    /// Whether a blob waits for a member with room.
    pub is_full: bool,
    /// The detached members, each with its own fan-out.
    detached: BTreeMap<MemberId, Arc<Fanout>>,
    /// The detached members whose fan-outs have no driver yet.
    pub undriven: Vec<(Arc<Member>, Arc<Fanout>)>,
    /// The number of announced destinations that have not joined yet.
    pub planning: usize,
    /// When the first of them was announced.
    pub planning_since: Instant,
    /// When the first of the members that have not been sent anything yet joined.
    pub ready_since: Option<Instant>,
    closed: bool,
}

/// An announced destination. Dropped when it joins or fails.
#[derive(Debug)]
pub struct PendingJoin(Arc<Fanout>);

/// The membership of a destination. The destination leaves when this value is dropped.
#[derive(Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Membership<'a> {
    fanout: &'a Fanout,
    pub member: Arc<Member>,
}

/// The rest of a blob for a detached member.
#[derive(Debug)]
pub enum Remainder {
    /// A blob by its index, from the given byte on. The blob was not announced yet.
    Blob(usize, u64),
    /// The rest of a blob that the member is receiving.
    Stream(BlobStream),
}

impl Fanout {
    /// Creates a fan-out without members. At most `weight` is sent to each member concurrently.
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
            planning: 0,
            planning_since: Instant::now(),
            ready_since: None,
            closed: false,
        };
        Self { waits, weight, state: Mutex::new(state), changed: Notify::new() }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces a destination that does not know its missing blobs yet. Members that are ready wait a little for it.
    pub fn announce(self: &Arc<Self>) -> PendingJoin {
        let mut state = self.state();
        if state.planning == 0 {
            state.planning_since = Instant::now();
        }
        state.planning += 1;
        PendingJoin(Arc::clone(self))
    }

    /// Adds a member. Returns the channel through which its blobs are announced.
    pub fn join(&self, region: &RegionId, missing: &MissingBlobs) -> (Membership<'_>, mpsc::Receiver<Delivery>) {
        let (sender, deliveries) = mpsc::channel(WRITE_CONCURRENCY);
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
        (Membership { fanout: self, member }, deliveries)
    }

    /// Whether to continue to wait for a member that has had no room since `since`. `are_others_idle` states whether
    /// other receivers of the same blob are idle meanwhile.
    pub fn should_wait_for(&self, member: &Member, since: Instant, are_others_idle: bool) -> bool {
        let state = self.state();
        let is_waiting =
            |other: &Arc<Member>| other.id != member.id && state.schedule.misses(other.id) && other.is_idle();
        // The member may have been detached because of another blob.
        let is_member = state.members.contains_key(&member.id);
        let are_others_idle = are_others_idle || (state.is_full && state.members.values().any(is_waiting));
        is_member && (!are_others_idle || member.kept_waiting(since))
    }

    /// Detaches a member: the rest of this blob, and everything else that the member misses, is sent to it separately.
    pub fn detach(&self, member: &Arc<Member>, rest: Remainder) {
        let mut state = self.state();
        let missing = state.schedule.leave(member.id);
        if state.members.remove(&member.id).is_some() {
            tracing::info!(region = %member.region, "region is slower than the others; reading the rest for it alone");
            let alone = Arc::new(Self::new(self.waits, LARGE_WEIGHT));
            alone.state().add(Arc::clone(member), missing);
            state.detached.insert(member.id, Arc::clone(&alone));
            state.undriven.push((Arc::clone(member), alone));
        }
        // A member that has left entirely receives nothing more.
        let Some(alone) = state.detached.get(&member.id) else { return };
        let mut alone_state = alone.state();
        match rest {
            Remainder::Blob(blob, offset) => alone_state.schedule.join(member.id, BTreeMap::from([(blob, offset)])),
            Remainder::Stream(stream) => alone_state.streams.push_back(stream),
        }
        drop(alone_state);
        alone.changed.notify_one();
        drop(state);
        self.changed.notify_one();
    }

    /// Closes the fan-out when its driver ends: no member receives anything more.
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

    /// Whether the driver has ended.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }
}

impl State {
    fn add(&mut self, member: Arc<Member>, missing: BTreeMap<usize, u64>) {
        self.schedule.join(member.id, missing);
        self.members.insert(member.id, member);
        self.ready_since.get_or_insert_with(Instant::now);
    }
}

impl Drop for PendingJoin {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.planning = state.planning.saturating_sub(1);
        drop(state);
        self.0.changed.notify_one();
    }
}

impl Drop for Membership<'_> {
    fn drop(&mut self) {
        let mut state = self.fanout.state();
        state.schedule.leave(self.member.id);
        state.members.remove(&self.member.id);
        state.detached.remove(&self.member.id);
        drop(state);
        self.fanout.changed.notify_one();
    }
}
