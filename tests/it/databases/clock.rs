//! Changes of the clock: no wait is extended by more than a lease, and no copy or call is lost.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use appferry::{
    db::{Db, Report, Settings},
    domain::{Clock, Event, Fault, FaultKind, Progress, RegionStatus, Timestamp},
};
use sea_orm::ConnectionTrait as _;
use tokio_util::sync::CancellationToken;

use super::{Fixture, SHORT, add, ask, claim, claim_within, get, region, regions, status, verify, worker};
use crate::harness::{
    database::{self, Kind},
    until,
};

on_every_database! {
    waits_that_lie_too_far_ahead_are_shortened
    a_clock_that_is_set_under_a_process_neither_strands_nor_forgets
    a_clock_that_is_set_back_strands_neither_the_leader_s_duty_nor_the_regions
}

const HOUR: Duration = Duration::from_secs(3_600);

/// Emulates a clock that was set back by an hour, by moving due times an hour ahead. One copy waits for an hour anyway,
/// because its store asked for that delay.
async fn waits_that_lie_too_far_ahead_are_shortened(kind: Kind) {
    let directory = tempfile::tempdir().expect("a directory");
    let url = database::fresh(kind, directory.path()).await;
    let stop = CancellationToken::new();
    let (state, tasks) = Db::open(&Settings::new(url.clone()), regions(), stop.clone()).await.expect("it opens");
    let (a, b) = (add(&state, "a").await, add(&state, "b").await);
    let first = state.accept(ask(&a, &["one"])).await.expect("it is accepted");
    let lease = Duration::from_secs(10);
    let held = claim_within(&state, "gone", 1, lease, &std::collections::BTreeMap::new(), 0).await.remove(0);
    let busy = state.accept(ask(&b, &["two"])).await.expect("it is accepted");
    let claimed = claim_within(&state, "busy", 1, lease, &std::collections::BTreeMap::new(), 0).await.remove(0);
    let event = Event::Faulted {
        fence: claimed.regions[0].fence,
        fault: Fault::new(FaultKind::Store, "busy"),
        retry_after: Some(HOUR),
        progress: Progress::default(),
    };
    let report = Report { region: region("two"), event };
    state.replica_report(&b, report).await.expect("it answers").expect("it is in time");
    let second = state.accept(ask(&b, &["one"])).await.expect("it is accepted");
    assert_eq!(state.restart_waits(lease).await.expect("it answers"), 0, "waits within the limits are kept");

    let db = database::look(&url).await;
    let ahead = "UPDATE replica SET due_at = due_at + 3600000, waiting_since = waiting_since + 3600000";
    db.execute_unprepared(ahead).await.expect("it is an hour ahead");
    let retry = async || {
        let synchronization = get(&state, busy).await;
        synchronization.regions[0].next_attempt_at.expect("it is pending")
    };
    let planned = retry().await;
    assert!(claim(&state, "w", 2).await.is_empty());
    assert_eq!(state.restart_waits(lease).await.expect("it answers"), 3);
    let earlier = retry().await.until(planned);
    assert!(earlier + lease > HOUR && earlier <= HOUR, "a retry is {earlier:?} earlier");
    let due = claim(&state, "w", 2).await;
    assert_eq!(due.iter().map(|claim| &claim.id).collect::<Vec<_>>(), [&b], "a pending replica is due at once");
    assert!(state.replica_holds(&a, &region("one"), held.regions[0].fence).await.expect("it answers"));
    assert_eq!(status(&get(&state, first).await, "one"), RegionStatus::Copying);
    // A claimed replica is due when its lease expires. Changes the due time instead of waiting.
    db.execute_unprepared("UPDATE replica SET due_at = due_at - 10000 WHERE image_id = 'a'").await.expect("later");
    until("the next claim", async || (!claim(&state, "w", 2).await.is_empty()).then_some(())).await;
    verify(&state, &b, &region("one"), due[0].regions[0].fence).await.expect("it is in time");
    assert_eq!(status(&get(&state, second).await, "one"), RegionStatus::Available);
    db.close().await.expect("it is closed");
    stop.cancel();
    tasks.join().await;
}

/// With SQLite, the process has exclusive access to the database and uses its own monotonic clock.
async fn a_clock_that_is_set_under_a_process_neither_strands_nor_forgets(kind: Kind) {
    if kind != Kind::Sqlite {
        return; // The database server's clock is used.
    }
    let mut fixture = Fixture::new(kind).await;
    let offset = Arc::new(AtomicI64::new(0));
    let (shift, system) = (Arc::clone(&offset), appferry::system_clock());
    let clock = Clock::new(move || Timestamp::from_millis(system.now().as_millis() + shift.load(Ordering::Relaxed)));
    let state = fixture.process_with(|settings| Settings { clock, ..settings }).await;
    let a = add(&state, "a").await;
    let hour = i64::try_from(HOUR.as_millis()).expect("small");

    // Sets the clock back, immediately after a call was accepted and while a lease is held.
    let one = state.accept(ask(&a, &["one"])).await.expect("it is accepted");
    let held = claim_within(&state, "gone", 1, SHORT, &std::collections::BTreeMap::new(), 0).await;
    assert_eq!(held.len(), 1);
    let two = state.accept(ask(&a, &["two"])).await.expect("it is accepted");
    offset.store(-hour, Ordering::Relaxed);
    let mut fences = std::collections::BTreeMap::new();
    until("the pending and the expired copy", async || {
        for claim in claim(&state, "w", 4).await {
            fences.extend(claim.regions.into_iter().map(|claimed| (claimed.region, claimed.fence)));
        }
        (fences.len() == 2).then_some(())
    })
    .await;
    for (to, fence) in fences {
        verify(&state, &a, &to, fence).await.expect("it is in time");
    }

    // Sets the clock forward, while rows exist that could be pruned.
    offset.store(hour * 24 * 100, Ordering::Relaxed);
    for _ in 0..3 {
        assert_eq!(state.synchronization_prune(HOUR).await.expect("it answers"), (0, false));
    }
    for (id, to) in [(one, "one"), (two, "two")] {
        assert_eq!(status(&get(&state, id).await, to), RegionStatus::Available);
    }
    fixture.end().await;
}

/// The leader has died and the clock was set back by an hour. The leader lease still expires in time, and a region that
/// no process configures is still noticed in time.
async fn a_clock_that_is_set_back_strands_neither_the_leader_s_duty_nor_the_regions(kind: Kind) {
    let directory = tempfile::tempdir().expect("a directory");
    let url = database::fresh(kind, directory.path()).await;
    let stop = CancellationToken::new();
    let (state, tasks) = Db::open(&Settings::new(url.clone()), regions(), stop.clone()).await.expect("it opens");
    assert!(state.leader_acquire(&worker("gone"), SHORT).await.expect("it answers"));
    state.regions_seen(SHORT).await.expect("they are recorded");

    let db = database::look(&url).await;
    db.execute_unprepared("UPDATE leader_lease SET expires_at = expires_at + 3600000")
        .await
        .expect("it is an hour ahead");
    db.execute_unprepared("UPDATE region_store SET seen_at = seen_at + 3600000").await.expect("they are an hour ahead");
    assert!(!state.leader_acquire(&worker("next"), SHORT).await.expect("it answers"), "it may be alive");
    until("the next leader", async || {
        state.leader_acquire(&worker("next"), SHORT).await.expect("it answers").then_some(())
    })
    .await;
    state.restart_waits(SHORT).await.expect("it answers");
    until("the region store to expire", async || {
        let stores = state.region_stores().await.expect("it answers");
        stores.iter().all(|store| !store.unseen.is_zero()).then_some(())
    })
    .await;
    db.close().await.expect("it is closed");
    stop.cancel();
    tasks.join().await;
}
