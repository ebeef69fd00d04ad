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
    fanout::{Fanout, Rest},
    member::Member,
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

/// What is sent next.
enum Next {
    /// A blob: its place in the image, to whom, and from which byte on.
    Blob(usize, Vec<(Arc<Member>, u64)>),
    /// The rest of one.
    Stream(BlobStream),
}

impl Fanout {
    /// Sends to destinations what they miss, for as long as it is polled. Those that are detached are served beside the others.
    pub fn drive(self: Arc<Self>, source: Arc<ImageSource>, tree: Arc<Tree>) -> BoxFuture<'static, ()> {
        async move {
            let mut sending = FuturesUnordered::new();
            let mut weight = 0;
            let mut detached = JoinSet::new();
            loop {
                for (member, fanout) in std::mem::take(&mut self.state().undriven) {
                    let drive = fanout.drive(Arc::clone(&source), Arc::clone(&tree));
                    detached.spawn(async move {
                        tokio::select! {
                            () = drive => {}
                            () = member.gone() => {}
                        }
                    });
                }
                let departs = if sending.is_empty() { self.departs() } else { Some(Instant::now()) };
                let is_due = departs.is_some_and(|departs| departs <= Instant::now());
                while is_due && let Some((next, own)) = self.next(&tree, WEIGHT_AT_ONCE - weight) {
                    weight += own;
                    sending.push(self.send(&source, &tree, next).map(move |()| own));
                }
                let departure = OptionFuture::from(departs.filter(|_| !is_due).map(sleep_until));
                tokio::select! {
                    Some(own) = sending.next() => weight -= own,
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

    /// When it is begun to send something, if a destination is ready: it waits a little for those that began with it. One that is not ready by
    /// then joins later.
    fn departs(&self) -> Option<Instant> {
        let mut state = self.state();
        if state.schedule.next().is_none() && state.streams.is_empty() {
            state.ready = None;
        }
        let ready = state.ready?;
        if state.boarding == 0 {
            return Some(ready);
        }
        let part = ready.saturating_duration_since(state.began) / BOARDING_PART;
        Some(ready + part.max(SHORTEST_BOARDING).min(self.waits.patience))
    }

    /// What is sent next, if there is room for it, and what it weighs.
    fn next(&self, tree: &Tree, room: usize) -> Option<(Next, usize)> {
        let mut state = self.state();
        let blob = state.streams.front().map(|stream| stream.index).or_else(|| state.schedule.next())?;
        let own = if tree.blobs.get(blob)?.size > LARGE { LARGE_WEIGHT } else { 1 };
        state.is_full = own > room;
        if state.is_full {
            return None;
        }
        if let Some(stream) = state.streams.pop_front() {
            return Some((Next::Stream(stream), own));
        }
        let taken = state.schedule.take(blob);
        let members = taken.into_iter().filter_map(|(id, from)| Some((Arc::clone(state.members.get(&id)?), from)));
        Some((Next::Blob(blob, members.collect()), own))
    }

    /// Reads one blob, once, for all that miss it.
    async fn send(&self, source: &ImageSource, tree: &Tree, next: Next) {
        let mut stream = match next {
            Next::Blob(index, members) => BlobStream::new(index, self.deliver(tree, index, members).await),
            Next::Stream(stream) => stream,
        };
        let Some(blob) = tree.blobs.get(stream.index) else { return };
        // Before the sinks are dropped: a destination whose stream breaks off asks why at once.
        if let Err(error) = stream.send(source, blob, self).await {
            let error = Arc::new(error);
            for sink in &stream.sinks {
                sink.member.fail(Arc::clone(&error));
            }
        }
    }

    /// Tells destinations of a blob to come. Returns those that take it.
    async fn deliver(&self, tree: &Tree, index: usize, members: Vec<(Arc<Member>, u64)>) -> Vec<Sink> {
        let mut sinks = Vec::new();
        let Some(blob) = tree.blobs.get(index) else { return sinks };
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
