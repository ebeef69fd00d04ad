//! Decides which blob is read next, and for which destinations. Pure: no I/O.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

/// The maximum number of blobs that are considered to find one for which there is room.
const CANDIDATES: usize = 64;

/// The number of a member in its fan-out.
pub type MemberId = u64;

/// The blobs that are still to be sent to the members of a fan-out, by index in the image.
#[derive(Debug, Default)]
pub struct Schedule {
    /// The missing blobs of each member, with the number of leading bytes that it has.
    missing: BTreeMap<MemberId, BTreeMap<usize, u64>>,
    /// The number of members that miss each blob.
    demand: BTreeMap<usize, usize>,
    /// The blobs in descending order of demand.
    order: BTreeSet<(Reverse<usize>, usize)>,
}

impl Schedule {
    /// Adds the missing blobs of a member. A member that joins late receives the blobs that are read from now on
    /// together with the others, and the rest afterwards.
    pub fn join(&mut self, member: MemberId, missing: BTreeMap<usize, u64>) {
        for blob in missing.keys() {
            self.count(*blob, 1);
        }
        self.missing.entry(member).or_default().extend(missing);
    }

    /// Removes a member. Returns its missing blobs.
    pub fn leave(&mut self, member: MemberId) -> BTreeMap<usize, u64> {
        let missing = self.missing.remove(&member).unwrap_or_default();
        for blob in missing.keys() {
            self.count(*blob, -1);
        }
        missing
    }

    /// Whether a member misses any blob.
    pub fn misses(&self, member: MemberId) -> bool {
        self.missing.get(&member).is_some_and(|missing| !missing.is_empty())
    }

    /// Whether no blob is missing.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Returns the blob that most members miss, of those for which every member that misses it has room. Of several
    /// such blobs, returns the first.
    pub fn next(&self, has_room: impl Fn(MemberId, usize) -> bool) -> Option<usize> {
        let fits = |blob: usize| {
            self.missing.iter().all(|(member, missing)| !missing.contains_key(&blob) || has_room(*member, blob))
        };
        self.order.iter().map(|(_, blob)| *blob).take(CANDIDATES).find(|blob| fits(*blob))
    }

    /// Removes a blob that is about to be sent. Returns the members that miss it, each with its first missing byte.
    pub fn take(&mut self, blob: usize) -> Vec<(MemberId, u64)> {
        if let Some(count) = self.demand.remove(&blob) {
            self.order.remove(&(Reverse(count), blob));
        }
        self.missing.iter_mut().filter_map(|(member, missing)| Some((*member, missing.remove(&blob)?))).collect()
    }

    fn count(&mut self, blob: usize, by: isize) {
        let before = self.demand.get(&blob).copied().unwrap_or(0);
        let after = before.saturating_add_signed(by);
        self.order.remove(&(Reverse(before), blob));
        if after == 0 {
            self.demand.remove(&blob);
        } else {
            self.demand.insert(blob, after);
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
        // A second member joins late: the remaining blobs go to both, and the one that it missed comes last.
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
