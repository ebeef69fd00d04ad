//! Drives a fan-out: reads and sends blobs while the destinations have room, each blob as a separate stream.

use std::{sync::Arc, time::Duration};

use domain::Descriptor;
use futures_util::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, OptionFuture},
    stream::FuturesUnordered,
};
use storage::ManifestGraph;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    ImageSource,
    blob_fanout::{BlobStream, BlobTarget},
    byte_channel::{self, ChunkSender},
    destination::Delivery,
    fanout::{Fanout, LARGE_WEIGHT, Remainder},
    member::Member,
    schedule::MemberId,
};

/// Blobs above this size, in bytes, are large: a few concurrent ones saturate any link.
const LARGE: u64 = 4 << 20;
/// Divisor of the patience. The result is the minimum time that the first ready destination waits for those that
/// started with it. A destination that hangs costs this time once for each of its lanes.
const FIRST_WAIT_DIVISOR: u32 = 40;
/// The rate, in bytes a second, at which a fast machine reads an image. Waiting for a destination is worth the time
/// that a second read of the image would take at this rate.
const WAIT_RATE: u64 = 2 << 30;

/// The next item to send.
enum Item {
    /// A blob: its index in the image, and the members with their first missing byte.
    Blob(usize, Vec<(Arc<Member>, u64)>),
    /// The rest of a detached blob.
    Stream(BlobStream),
}

/// The weight of an item in flight, for each of its members.
struct Load {
    weight: usize,
    members: Vec<MemberId>,
}

impl Fanout {
    /// Sends the missing blobs to the destinations while it is polled. Detached members are served concurrently.
    pub fn drive(self: Arc<Self>, source: Arc<ImageSource>, tree: Arc<ManifestGraph>) -> BoxFuture<'static, ()> {
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
                            () = member.closed() => {}
                        }
                    });
                }
                let next_send_at = self.next_send_at(&tree);
                let is_due = next_send_at.is_some_and(|at| at <= Instant::now());
                if is_due {
                    self.state().ready_since = None;
                }
                while is_due && let Some((item, load)) = self.next_item(&tree) {
                    sending.push(self.send(&source, &tree, item).map(|()| load));
                }
                let wait = OptionFuture::from(next_send_at.filter(|_| !is_due).map(sleep_until));
                tokio::select! {
                    Some(load) = sending.next() => self.remove_load(&load),
                    Some(result) = detached.join_next() => {
                        if let Err(error) = result {
                            tracing::error!(%error, "the task that reads for a detached region panicked; ending the transfer");
                            return;
                        }
                    }
                    () = self.changed.notified() => {}
                    Some(()) = wait => {}
                }
            }
        }
        .boxed()
    }

    /// Returns the time at which the next blob is sent, if there is one. A destination that has just become ready waits
    /// a little for those that started with it. A destination that is not ready by then joins later.
    fn next_send_at(&self, tree: &ManifestGraph) -> Option<Instant> {
        let mut state = self.state();
        if state.schedule.is_empty() && state.streams.is_empty() {
            state.ready_since = None;
            return None;
        }
        let Some(ready_since) = state.ready_since else { return Some(Instant::now()) };
        if state.planning == 0 {
            return Some(ready_since);
        }
        // Waits as long as the first destination took to become ready: busy registries delay all destinations, and
        // reading an image again costs its source more.
        let elapsed = ready_since.saturating_duration_since(state.planning_since);
        let worth = Duration::from_millis(tree.size().saturating_mul(1_000) / WAIT_RATE);
        Some(ready_since + elapsed.max(worth).max(self.waits.patience / FIRST_WAIT_DIVISOR).min(self.waits.patience))
    }

    /// Returns the next item, if its members have room for it.
    fn next_item(&self, tree: &ManifestGraph) -> Option<(Item, Load)> {
        let mut state = self.state();
        let weigh = |blob: usize| match tree.blob(blob) {
            Some(blob) if blob.size > LARGE => LARGE_WEIGHT,
            _ => 1,
        };
        // The rest of a detached blob is sent first, because its destination waits for it.
        let (item, blob, members) = if let Some(stream) = state.streams.pop_front() {
            let (blob, members) = (stream.index, stream.targets.iter().map(|target| target.member.id).collect());
            (Item::Stream(stream), blob, members)
        } else {
            let room = |member: MemberId| self.weight.saturating_sub(state.sending.get(&member).copied().unwrap_or(0));
            let next = state.schedule.next(|member, blob| weigh(blob) <= room(member));
            state.is_full = next.is_none() && !state.schedule.is_empty();
            let blob = next?;
            let targets = state.schedule.take(blob);
            let targets =
                targets.into_iter().filter_map(|(id, offset)| Some((Arc::clone(state.members.get(&id)?), offset)));
            let targets: Vec<_> = targets.collect();
            let members = targets.iter().map(|(member, _)| member.id).collect();
            (Item::Blob(blob, targets), blob, members)
        };
        let load = Load { weight: weigh(blob), members };
        for member in &load.members {
            *state.sending.entry(*member).or_default() += load.weight;
        }
        Some((item, load))
    }

    /// Removes a sent item from the weights in flight.
    fn remove_load(&self, load: &Load) {
        let mut state = self.state();
        for member in &load.members {
            if let Some(weight) = state.sending.get_mut(member) {
                *weight = weight.saturating_sub(load.weight);
            }
        }
        state.sending.retain(|_, weight| *weight > 0);
    }

    /// Reads one blob once and sends it to all of its members.
    async fn send(&self, source: &ImageSource, tree: &ManifestGraph, item: Item) {
        let mut stream = match item {
            Item::Blob(index, members) => {
                let Some(blob) = tree.blob(index) else { return };
                BlobStream::new(index, blob, self.deliver(blob, index, members).await)
            }
            Item::Stream(stream) => stream,
        };
        let Some(blob) = tree.blob(stream.index) else { return };
        // Recorded before the queues are dropped: a destination reads the reason as soon as its queue closes.
        if let Err(error) = stream.send(source, blob, self).await {
            let error = Arc::new(error);
            for target in &stream.targets {
                if tree.is_attached(stream.index) {
                    target.member.record_lost_blob(stream.index, Arc::clone(&error));
                } else {
                    target.member.fail(Arc::clone(&error));
                }
            }
        }
    }

    /// Announces a blob to its members. Returns those that receive it.
    async fn deliver(&self, blob: &Descriptor, index: usize, members: Vec<(Arc<Member>, u64)>) -> Vec<BlobTarget> {
        let mut targets = Vec::new();
        for (member, offset) in &members {
            let (sender, chunks) = byte_channel::channel();
            let are_others_idle = || members.iter().any(|(other, _)| other.id != member.id && other.is_idle());
            let delivery = Delivery { index, blob: blob.clone(), offset: *offset, chunks };
            if self.deliver_to_full_queue(member, delivery, &sender, are_others_idle).await {
                targets.push(BlobTarget { member: Arc::clone(member), chunks: sender, offset: *offset });
            }
        }
        targets
    }

    /// Announces a blob to a busy member. Returns whether it receives the blob. A member that stays busy may be
    /// detached.
    async fn deliver_to_full_queue(
        &self,
        member: &Arc<Member>,
        mut delivery: Delivery,
        chunks: &ChunkSender,
        are_others_idle: impl Fn() -> bool,
    ) -> bool {
        loop {
            let since = Instant::now();
            match member.deliver(delivery, chunks).await {
                Ok(is_received) => return is_received,
                Err(back) => delivery = back,
            }
            if !self.should_wait_for(member, since, are_others_idle()) {
                self.detach(member, Remainder::Blob(delivery.index, delivery.offset));
                return false;
            }
        }
    }
}
