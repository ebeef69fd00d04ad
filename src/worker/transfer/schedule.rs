//! Which blob is read next, and for which destinations. Pure.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

/// How many blobs are looked at to find one for which there is room.
const CANDIDATES: usize = 64;

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

    /// Whether nothing is left to be sent.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The blob that the most destinations miss, of those for which all who miss it have room; of several, the first.
    pub fn next(&self, has_room: impl Fn(MemberId, usize) -> bool) -> Option<usize> {
        let fits = |blob: usize| {
            self.missing.iter().all(|(member, missing)| !missing.contains_key(&blob) || has_room(*member, blob))
        };
        self.order.iter().map(|(_, blob)| *blob).take(CANDIDATES).find(|blob| fits(*blob))
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

    fn next(schedule: &Schedule) -> Option<usize> {
        schedule.next(|_, _| true)
    }

    #[test]
    fn who_has_no_room_keeps_back_only_what_it_misses() {
        let mut schedule = Schedule::default();
        schedule.join(1, blobs(&[2]));
        schedule.join(2, blobs(&[0, 1, 2]));
        assert_eq!(next(&schedule), Some(2));
        assert_eq!(schedule.next(|member, _| member != 1), Some(0));
        assert_eq!(schedule.next(|_, blob| blob == 1), Some(1));
        assert_eq!(schedule.next(|_, _| false), None);
    }

    #[test]
    fn what_the_most_miss_is_read_first_and_once_for_all_of_them() {
        let mut schedule = Schedule::default();
        schedule.join(1, blobs(&[0, 1, 2]));
        assert_eq!((next(&schedule), schedule.take(0)), (Some(0), vec![(1, 0)]));
        // Another one comes late: what is left goes to both, and what it missed comes last.
        schedule.join(2, blobs(&[0, 1, 2]));
        assert_eq!((next(&schedule), schedule.take(1)), (Some(1), vec![(1, 0), (2, 0)]));
        assert_eq!((next(&schedule), schedule.take(2)), (Some(2), vec![(1, 0), (2, 0)]));
        assert_eq!((next(&schedule), schedule.take(0)), (Some(0), vec![(2, 0)]));
        assert_eq!(next(&schedule), None);
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
                if let Some(blob) = next(&schedule) {
                    for (member, from) in schedule.take(blob) {
                        prop_assert!(sent.entry(member).or_default().insert(blob, from).is_none(), "sent twice");
                    }
                }
            }
            while let Some(blob) = next(&schedule) {
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
