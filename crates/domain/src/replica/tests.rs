//! Tests of the state machine with arbitrary histories of several workers.

use std::time::Duration;

use proptest::prelude::*;

use super::{Event, Lease, Progress, Replica, ReplicaState, Stale, WorkerId};
use crate::{Fault, FaultKind, Timestamp, Verification, Warnings};

const LEASE: Duration = Duration::from_secs(10);

/// A step of a history. A worker acts with the fence of its last claim, even if a newer claim exists.
#[derive(Debug, Clone)]
enum Move {
    Pass(u32),
    Request,
    Claim(usize),
    Renew(usize),
    Verify(usize),
    Retry(usize),
    Fail(usize),
    Release(usize),
    Cancel,
    Damage,
    Suspend,
    Resume,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let worker = 0..3usize;
    let one = prop_oneof![
        (0..15_000u32).prop_map(Move::Pass),
        Just(Move::Request),
        worker.clone().prop_map(Move::Claim),
        worker.clone().prop_map(Move::Renew),
        worker.clone().prop_map(Move::Verify),
        worker.clone().prop_map(Move::Retry),
        worker.clone().prop_map(Move::Fail),
        worker.prop_map(Move::Release),
        Just(Move::Cancel),
        Just(Move::Damage),
        Just(Move::Suspend),
        Just(Move::Resume),
    ];
    prop::collection::vec(one, 0..60)
}

fn fault() -> Fault {
    Fault::new(FaultKind::Store, "the disk is full")
}

fn event(step: &Move, fences: &[u64; 3]) -> Event {
    let progress = Progress { total: 2, copied: 1, skipped: 1 };
    match *step {
        Move::Request | Move::Pass(_) => Event::Request,
        Move::Claim(w) => Event::Claim { owner: WorkerId(format!("w{w}").into()), lease: LEASE },
        Move::Renew(w) => Event::Renew { fence: fences[w], lease: LEASE, progress },
        Move::Verify(w) => Event::Verified {
            fence: fences[w],
            progress,
            verification: Verification::Verified,
            warnings: Warnings::default(),
        },
        Move::Retry(w) => {
            let retry_after = Some(Duration::from_secs(1));
            Event::Faulted { fence: fences[w], fault: fault(), retry_after, progress }
        }
        Move::Fail(w) => Event::Faulted { fence: fences[w], fault: fault(), retry_after: None, progress },
        Move::Release(w) => Event::Release { fence: fences[w] },
        Move::Cancel => Event::Cancel,
        Move::Damage => Event::Damaged { fault: fault() },
        Move::Suspend => Event::Suspend { reason: fault() },
        Move::Resume => Event::Resume,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// In any history, only the holder of the newest claim changes a copy, and the fence never falls. An ended replica
    /// does not change until it is requested again, and an AVAILABLE one does not change until it is found damaged.
    #[test]
    fn only_the_newest_claim_writes(history in moves()) {
        let mut now = Timestamp::from_millis(1_000);
        let mut replica = Replica::requested(now);
        let mut fences = [u64::MAX; 3];
        let mut holder: Option<usize> = None;
        for step in &history {
            if let Move::Pass(millis) = step {
                now = now.after(Duration::from_millis(u64::from(*millis)));
                continue;
            }
            let before = replica.clone();
            let result = replica.apply(event(step, &fences), now);
            if let Ok(after) = &result {
                prop_assert!(after.fence >= before.fence);
                let was_available = matches!(before.state, ReplicaState::Available(_));
                prop_assert_eq!(was_available, matches!(step, Move::Damage), "{:?} at {:?}", step, &before.state);
                // A damaged replica stays suspect until the whole replica is verified again.
                let verified = matches!(step, Move::Verify(_));
                prop_assert_eq!(after.suspect, matches!(step, Move::Damage) || before.suspect && !verified);
            }
            match (step, result) {
                (Move::Claim(worker), Ok(after)) => {
                    prop_assert!(before.claimable(now));
                    prop_assert!(after.fence > before.fence);
                    prop_assert_eq!(after.attempt, before.attempt + 1);
                    fences[*worker] = after.fence;
                    holder = Some(*worker);
                    replica = after;
                }
                (Move::Claim(_), Err(Stale)) => prop_assert!(!before.claimable(now)),
                (Move::Request, Ok(after)) => {
                    if before.outcome().is_some() {
                        prop_assert!(after.fence > before.fence, "an old worker could still write");
                        prop_assert_eq!(after.faults, 0);
                        holder = None;
                    } else {
                        prop_assert_eq!(&after, &before, "joining changes nothing");
                    }
                    replica = after;
                }
                (Move::Request, Err(Stale)) => prop_assert!(matches!(before.state, ReplicaState::Available(_))),
                (Move::Cancel, Ok(after)) => {
                    prop_assert!(before.outcome().is_none());
                    holder = None;
                    replica = after;
                }
                (Move::Damage, Ok(after)) => replica = after,
                (Move::Damage, Err(Stale)) => prop_assert!(!matches!(before.state, ReplicaState::Available(_))),
                (Move::Cancel, Err(Stale)) => prop_assert!(before.outcome().is_some()),
                (Move::Renew(w) | Move::Verify(w) | Move::Retry(w) | Move::Fail(w) | Move::Release(w), Ok(after)) => {
                    prop_assert_eq!(Some(*w), holder, "{:?} came from a worker that was overtaken", step);
                    if !matches!(step, Move::Renew(_)) {
                        holder = None;
                    }
                    prop_assert_eq!(matches!(after.state, ReplicaState::Available(_)), matches!(step, Move::Verify(_)));
                    replica = after;
                }
                (Move::Renew(w) | Move::Verify(w) | Move::Retry(w) | Move::Fail(w) | Move::Release(w), Err(Stale)) => {
                    prop_assert_ne!(Some(*w), holder, "{:?} was refused to the holder", step);
                }
                (Move::Suspend, Ok(after)) => {
                    let pending = matches!(before.state, ReplicaState::Pending { .. });
                    prop_assert!(pending || before.claimable(now));
                    prop_assert!(!after.claimable(now), "a worker could take it");
                    holder = None;
                    replica = after;
                }
                (Move::Suspend, Err(Stale)) => prop_assert!(!before.claimable(now)),
                (Move::Resume, Ok(after)) => {
                    prop_assert!(before.is_suspended());
                    prop_assert!(after.claimable(now));
                    replica = after;
                }
                (Move::Resume, Err(Stale)) => prop_assert!(!before.is_suspended()),
                (Move::Pass(_), _) => {}
            }
        }
    }

    /// No replica is lost: after any history, time, a configured region and one working worker bring it to its end.
    #[test]
    fn a_working_worker_always_finishes(history in moves()) {
        let mut now = Timestamp::from_millis(1_000);
        let mut replica = Replica::requested(now);
        let mut fences = [u64::MAX; 3];
        for step in &history {
            if let Move::Pass(millis) = step {
                now = now.after(Duration::from_millis(u64::from(*millis)));
            } else if let Ok(after) = replica.apply(event(step, &fences), now) {
                if let Move::Claim(worker) = step {
                    fences[*worker] = after.fence;
                }
                replica = after;
            }
        }
        if replica.outcome().is_none() {
            now = now.after(LEASE);
            // A suspended replica resumes once its region is configured.
            replica = replica.apply(Event::Resume, now).unwrap_or(replica);
            let owner = WorkerId("working".into());
            let claimed = replica.apply(Event::Claim { owner, lease: LEASE }, now).expect("a claim");
            let verification = Verification::Verified;
            let done = Event::Verified { fence: claimed.fence, progress: claimed.progress, verification, warnings: Warnings::default() };
            let done = claimed.apply(done, now).expect("the newest fence");
            prop_assert_eq!(done.state, ReplicaState::Available(Some(Verification::Verified)));
        }
    }
}

#[test]
fn a_worker_of_a_removed_image_holds_no_fence_of_the_next_one() {
    let then = Timestamp::from_millis(1_000);
    let claim = || Event::Claim { owner: WorkerId("w".into()), lease: LEASE };
    let old = Replica::requested(then).apply(claim(), then).expect("a claim");
    let later = then.after(Duration::from_secs(1));
    let new = Replica::requested(later).apply(claim(), later).expect("a claim");
    let verification = Verification::Verified;
    let late = Event::Verified {
        fence: old.fence,
        progress: Progress::default(),
        verification,
        warnings: Warnings::default(),
    };
    assert_eq!(new.apply(late, later), Err(Stale));
}

#[test]
fn a_released_copy_does_not_count_as_an_attempt() {
    let now = Timestamp::from_millis(5);
    let owner = WorkerId("w".into());
    let claimed = Replica::requested(now).apply(Event::Claim { owner, lease: LEASE }, now).expect("a claim");
    let released = claimed.apply(Event::Release { fence: claimed.fence }, now).expect("a release");
    assert_eq!((released.attempt, released.claimable(now)), (0, true));
}

#[test]
fn an_available_replica_can_be_confirmed_and_superseded() {
    let now = Timestamp::from_millis(0);
    let claim = Event::Claim { owner: WorkerId("w".into()), lease: LEASE };
    let pending = Replica::requested(now);
    let copying = pending.apply(claim, now).expect("a claim");
    let verification = Verification::Trusted;
    let verified = Event::Verified {
        fence: copying.fence,
        progress: Progress::default(),
        verification,
        warnings: Warnings::default(),
    };
    let available = copying.apply(verified, now).expect("a verified copy");
    assert_eq!(available.verification(), Some(Verification::Trusted));
    let confirmed = available.apply(Event::Confirmed, now).expect("an available replica");
    assert_eq!(
        (confirmed.verification(), &confirmed),
        (Some(Verification::Verified), &Replica { state: confirmed.state.clone(), ..available })
    );

    let superseded = confirmed.apply(Event::Supersede, now).expect("an available replica");
    assert_eq!(superseded.verification(), None);
    for event in [Event::Request, Event::Cancel, Event::Expire, Event::Confirmed, Event::Supersede] {
        assert_eq!(superseded.apply(event, now), Err(Stale));
    }
    for replica in [pending, copying] {
        for event in [Event::Supersede, Event::Confirmed] {
            assert_eq!(replica.apply(event, now), Err(Stale));
        }
    }
}

/// After the clock was set back by an hour, a wait starts again and has its intended length. Waits of any length that
/// began in the past are unchanged.
#[test]
fn waits_after_a_clock_was_set_back_start_again() {
    let (now, hour, minute) = (Timestamp::from_millis(10_000_000), Duration::from_secs(3_600), Duration::from_secs(60));
    let replica = |state| Replica { state, ..Replica::requested(now) };
    let pending = |since: Timestamp, wait, last_fault| {
        replica(ReplicaState::Pending { since, not_before: since.after(wait), last_fault })
    };
    let copying = |by| {
        let lease = Lease { owner: WorkerId("w".into()), until: now.after(by) };
        replica(ReplicaState::Copying { lease, last_fault: None })
    };
    let set_back = |replica: &Replica| replica.apply(Event::ClockSetBack { lease: LEASE }, now);
    let none = Duration::ZERO;
    assert_eq!(set_back(&pending(now.after(hour), none, None)), Ok(pending(now, none, None)));
    // A store may ask for a wait that is as long as the clock's step.
    for wait in [none, minute, hour] {
        for step in [Duration::from_millis(1), minute, hour] {
            let before = pending(now.after(step), wait, Some(fault()));
            assert_eq!(set_back(&before), Ok(pending(now, wait, Some(fault()))), "{before:?}");
        }
    }
    assert_eq!(set_back(&copying(hour)), Ok(copying(LEASE)));
    for legitimate in [
        pending(now, none, None),
        pending(now, hour, Some(fault())),
        pending(now.before(minute), hour, Some(fault())),
        copying(LEASE),
        copying(LEASE * 3),
        replica(ReplicaState::Available(None)),
        replica(ReplicaState::Canceled),
    ] {
        assert_eq!(set_back(&legitimate), Err(Stale), "{legitimate:?}");
    }
}
