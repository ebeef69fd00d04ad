//! Which blob is read next, and for which destinations. Pure.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

/// A destination of a fan-out.
pub type MemberId = u64;

/// What the destinations of one source have yet to be sent. Blobs are known by their place in the image.
#[derive(Debug, Default)]
pub struct Schedule {
    /// What each destination misses: the blob, and how many of its first bytes it has.
    missing: BTreeMap<MemberId, BTreeMap<usize, u64>>,
    /// How many destinations miss each blob.
    wanted: BTreeMap<usize, usize>,
    /// The same, the most wanted first.
    order: BTreeSet<(Reverse<usize>, usize)>,
}

impl Schedule {
    /// Adds what a destination misses. It may come late: it gets what is read from now on with the others, and the rest afterwards.
    pub fn join(&mut self, member: MemberId, missing: BTreeMap<usize, u64>) {
        for blob in missing.keys() {
            self.count(*blob, 1);
        }
        self.missing.entry(member).or_default().extend(missing);
    }

    /// Removes a destination. Returns what it has yet to be sent.
    pub fn leave(&mut self, member: MemberId) -> BTreeMap<usize, u64> {
        let missing = self.missing.remove(&member).unwrap_or_default();
        for blob in missing.keys() {
            self.count(*blob, -1);
        }
        missing
    }

    /// Whether a destination has yet to be sent something.
    pub fn misses(&self, member: MemberId) -> bool {
        self.missing.get(&member).is_some_and(|missing| !missing.is_empty())
    }

    /// The blob that the most destinations miss; of several, the first.
    pub fn next(&self) -> Option<usize> {
        self.order.first().map(|(_, blob)| *blob)
    }

    /// Takes a blob out: it is about to be sent to these, to each from that byte on.
    pub fn take(&mut self, blob: usize) -> Vec<(MemberId, u64)> {
        if let Some(count) = self.wanted.remove(&blob) {
            self.order.remove(&(Reverse(count), blob));
        }
        self.missing.iter_mut().filter_map(|(member, missing)| Some((*member, missing.remove(&blob)?))).collect()
    }

    fn count(&mut self, blob: usize, by: isize) {
        let before = self.wanted.get(&blob).copied().unwrap_or(0);
        let after = before.saturating_add_signed(by);
        self.order.remove(&(Reverse(before), blob));
        if after == 0 {
            self.wanted.remove(&blob);
        } else {
            self.wanted.insert(blob, after);
            self.order.insert((Reverse(after), blob));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::Schedule;

    fn blobs(blobs: &[usize]) -> BTreeMap<usize, u64> {
        blobs.iter().map(|blob| (*blob, 0)).collect()
    }

    #[test]
    fn what_the_most_miss_is_read_first_and_once_for_all_of_them() {
        let mut schedule = Schedule::default();
        schedule.join(1, blobs(&[0, 1, 2]));
        assert_eq!((schedule.next(), schedule.take(0)), (Some(0), vec![(1, 0)]));
        // Another one comes late: what is left goes to both, and what it missed comes last.
        schedule.join(2, blobs(&[0, 1, 2]));
        assert_eq!((schedule.next(), schedule.take(1)), (Some(1), vec![(1, 0), (2, 0)]));
        assert_eq!((schedule.next(), schedule.take(2)), (Some(2), vec![(1, 0), (2, 0)]));
        assert_eq!((schedule.next(), schedule.take(0)), (Some(0), vec![(2, 0)]));
        assert_eq!(schedule.next(), None);
    }

    proptest! {
        #[test]
        fn everything_is_sent_once_to_each_that_stays(
            members in prop::collection::vec((0..20usize, prop::collection::btree_map(0..12usize, 0..9u64, 0..12), any::<bool>()), 1..6),
        ) {
            let mut schedule = Schedule::default();
            let mut sent: BTreeMap<u64, BTreeMap<usize, u64>> = BTreeMap::new();
            for step in 0..40 {
                for (id, (joins, missing, leaves)) in (0u64..).zip(&members) {
                    if step == *joins {
                        schedule.join(id, missing.clone());
                    }
                    if *leaves && step == joins + 3 {
                        schedule.leave(id);
                    }
                }
                if let Some(blob) = schedule.next() {
                    for (member, from) in schedule.take(blob) {
                        prop_assert!(sent.entry(member).or_default().insert(blob, from).is_none(), "sent twice");
                    }
                }
            }
            while let Some(blob) = schedule.next() {
                let to = schedule.take(blob);
                prop_assert!(!to.is_empty());
                for (member, from) in to {
                    prop_assert!(sent.entry(member).or_default().insert(blob, from).is_none(), "sent twice");
                }
            }
            for (id, (_, missing, leaves)) in (0u64..).zip(&members) {
                let sent = sent.remove(&id).unwrap_or_default();
                prop_assert!(*leaves || sent == *missing);
                prop_assert!(sent.iter().all(|(blob, from)| missing.get(blob) == Some(from)));
            }
        }
    }
}
