//! What drives a fan-out: blobs are read and sent for as long as there is room for more, each in a stream of its own.

use std::{sync::Arc, time::Duration};

use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, OptionFuture},
    stream::FuturesUnordered,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    ImageSource,
    blob_fanout::{BlobStream, Sink},
    byte_channel::{self, ChunkSender},
    destination::Delivery,
    fanout::{Fanout, LARGE_WEIGHT, Rest},
    member::Member,
    schedule::MemberId,
};
use crate::{domain::Descriptor, region::Tree};

/// Blobs above this size, in bytes, are large: a few of them at a time fill any link.
const LARGE: u64 = 4 << 20;
/// The part of the patience that the first destination that knows what it misses waits at least for those that began with it. One that does
/// not answer costs that for as many images as it has lanes.
const FIRST_WAIT: u32 = 40;
/// Bytes of the image for each second that it waits at least: what it would otherwise be read twice, at the rate of fast machines.
const BOARDING_RATE: u64 = 2 << 30;

/// What is sent next.
enum Next {
    /// A blob: its place in the image, to whom, and from which byte on.
    Blob(usize, Vec<(Arc<Member>, u64)>),
    /// The rest of one.
    Stream(BlobStream),
}

/// What something that is being sent weighs, at whom.
struct Load {
    weight: usize,
    members: Vec<MemberId>,
}

impl Fanout {
    /// Sends to destinations what they miss, for as long as it is polled. Those that are detached are served beside the others.
    pub fn drive(self: Arc<Self>, source: Arc<ImageSource>, tree: Arc<Tree>) -> BoxFuture<'static, ()> {
        async move {
            let mut sending = FuturesUnordered::new();
            let mut detached = JoinSet::new();
            loop {
                let undriven = std::mem::take(&mut self.state().undriven);
                for (member, fanout) in undriven {
                    let drive = fanout.drive(Arc::clone(&source), Arc::clone(&tree));
                    detached.spawn(async move {
                        tokio::select! {
                            () = drive => {}
                            () = member.gone() => {}
                        }
                    });
                }
                let departs = self.departs(&tree);
                let is_due = departs.is_some_and(|departs| departs <= Instant::now());
                if is_due {
                    self.state().ready = None;
                }
                while is_due && let Some((next, load)) = self.next(&tree) {
                    sending.push(self.send(&source, &tree, next).map(|()| load));
                }
                let departure = OptionFuture::from(departs.filter(|_| !is_due).map(sleep_until));
                tokio::select! {
                    Some(load) = sending.next() => self.sent(&load),
                    Some(ended) = detached.join_next() => {
                        if let Err(error) = ended {
                            tracing::error!(%error, "a reading for one region panicked");
                            return;
                        }
                    }
                    () = self.changed.notified() => {}
                    Some(()) = departure => {}
                }
            }
        }
        .boxed()
    }

    /// When it is begun to send something more, if there is something: a destination that has just become ready waits a little for those that
    /// began with it. One that is not ready by then joins later.
    fn departs(&self, tree: &Tree) -> Option<Instant> {
        let mut state = self.state();
        if state.schedule.is_empty() && state.streams.is_empty() {
            state.ready = None;
            return None;
        }
        let Some(ready) = state.ready else { return Some(Instant::now()) };
        if state.boarding == 0 {
            return Some(ready);
        }
        // As long as it took the first one: where registries are busy, all take longer, and reading an image again costs its source more.
        let took = ready.saturating_duration_since(state.began);
        let worth = Duration::from_millis(tree.size().saturating_mul(1_000) / BOARDING_RATE);
        Some(ready + took.max(worth).max(self.waits.patience / FIRST_WAIT).min(self.waits.patience))
    }

    /// What is sent next, if there is room for it.
    fn next(&self, tree: &Tree) -> Option<(Next, Load)> {
        let mut state = self.state();
        let weigh = |blob: usize| match tree.blob(blob) {
            Some(blob) if blob.size > LARGE => LARGE_WEIGHT,
            _ => 1,
        };
        // What was begun goes on at once: its destination waits for it.
        let (next, blob, members) = if let Some(stream) = state.streams.pop_front() {
            let (blob, members) = (stream.index, stream.sinks.iter().map(|sink| sink.member.id).collect());
            (Next::Stream(stream), blob, members)
        } else {
            let room = |member: MemberId| self.weight.saturating_sub(state.sending.get(&member).copied().unwrap_or(0));
            let next = state.schedule.next(|member, blob| weigh(blob) <= room(member));
            state.is_full = next.is_none() && !state.schedule.is_empty();
            let blob = next?;
            let taken = state.schedule.take(blob);
            let taken = taken.into_iter().filter_map(|(id, from)| Some((Arc::clone(state.members.get(&id)?), from)));
            let taken: Vec<_> = taken.collect();
            let members = taken.iter().map(|(member, _)| member.id).collect();
            (Next::Blob(blob, taken), blob, members)
        };
        let load = Load { weight: weigh(blob), members };
        for member in &load.members {
            *state.sending.entry(*member).or_default() += load.weight;
        }
        Some((next, load))
    }

    /// Something has been sent.
    fn sent(&self, load: &Load) {
        let mut state = self.state();
        for member in &load.members {
            if let Some(weight) = state.sending.get_mut(member) {
                *weight = weight.saturating_sub(load.weight);
            }
        }
        state.sending.retain(|_, weight| *weight > 0);
    }

    /// Reads one blob, once, for all that miss it.
    async fn send(&self, source: &ImageSource, tree: &Tree, next: Next) {
        let mut stream = match next {
            Next::Blob(index, members) => {
                let Some(blob) = tree.blob(index) else { return };
                BlobStream::new(index, blob, self.deliver(blob, index, members).await)
            }
            Next::Stream(stream) => stream,
        };
        let Some(blob) = tree.blob(stream.index) else { return };
        // Before the sinks are dropped: a destination whose stream breaks off asks why at once.
        if let Err(error) = stream.send(source, blob, self).await {
            let error = Arc::new(error);
            for sink in &stream.sinks {
                if tree.is_attached(stream.index) {
                    sink.member.lose(stream.index, Arc::clone(&error));
                } else {
                    sink.member.fail(Arc::clone(&error));
                }
            }
        }
    }

    /// Tells destinations of a blob to come. Returns those that take it.
    async fn deliver(&self, blob: &Descriptor, index: usize, members: Vec<(Arc<Member>, u64)>) -> Vec<Sink> {
        let mut sinks = Vec::new();
        for (member, from) in &members {
            let (sender, chunks) = byte_channel::channel();
            let others_wait = || members.iter().any(|(other, _)| other.id != member.id && other.is_idle());
            let delivery = Delivery { index, blob: blob.clone(), from: *from, chunks };
            if self.deliver_when_there_is_room(member, delivery, &sender, others_wait).await {
                sinks.push(Sink { member: Arc::clone(member), chunks: sender, from: *from });
            }
        }
        sinks
    }

    /// Gives a destination a blob to come. One that is busy with those before may be detached instead.
    async fn deliver_when_there_is_room(
        &self,
        member: &Arc<Member>,
        mut delivery: Delivery,
        chunks: &ChunkSender,
        others_wait: impl Fn() -> bool,
    ) -> bool {
        loop {
            let since = Instant::now();
            match member.deliver(delivery, chunks).await {
                Ok(taken) => return taken,
                Err(back) => delivery = back,
            }
            if !self.waits_on(member, since, others_wait()) {
                self.detach(member, Rest::Blob(delivery.index, delivery.from));
                return false;
            }
        }
    }
}
