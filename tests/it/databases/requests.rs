//! Acceptance of calls, including repeated, rejected and concurrent ones.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use appferry::{
    db::{Db, Error, NewSynchronization, Report, Settings, SynchronizationFilter},
    domain::{
        Event, Fault, FaultKind, ImageId, Progress, RegionStatus, RequestId, Stale, SynchronizationState, Verification,
        Warnings, with_causes,
    },
};
use sea_orm::{ConnectionTrait as _, DbBackend, Statement};
use tokio_util::sync::CancellationToken;

use super::{DONE, Fixture, LEASE, add, ask, claim, claim_within, get, region, status, verify, with_token};
use crate::harness::{
    PATIENCE,
    database::{self, Kind},
    until,
};

on_every_database! {
    a_call_goes_to_its_end
    a_token_names_one_call
    a_call_that_can_t_be_written_fails_alone
    an_image_that_is_removed_leaves_nobody_waiting
    many_processes_at_once_lose_nothing
}

async fn a_call_goes_to_its_end(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    let a = add(&state, "a").await;
    let id = state.accept(ask(&a, &["one", "two"])).await.expect("it is accepted");
    let fresh = get(&state, id).await;
    assert_eq!((fresh.state, fresh.regions.len()), (SynchronizationState::Running, 2));
    assert_eq!(status(&fresh, "one"), RegionStatus::Pending);

    let claims = claim(&state, "w", 5).await;
    let [claimed] = claims.as_slice() else { panic!("{claims:?}") };
    assert_eq!(claimed.image.as_ref().expect("an image").description, "äöü \u{1F6A2} 'quoted' \\ and \"more\"");
    assert_eq!(claimed.regions.len(), 2);
    assert!(claim(&state, "w", 5).await.is_empty(), "nothing is claimed twice");
    let [one, two] = [0, 1].map(|place| claimed.regions[place].clone());
    assert_eq!((one.attempt, one.faults), (1, 0));
    let half = Progress { total: 1_000, copied: 500, skipped: 0 };
    let lost = state.replica_renew(&a, LEASE, &[(one.region.clone(), one.fence, half)]).await.expect("it is renewed");
    assert!(lost.is_empty());
    assert_eq!(get(&state, id).await.regions[0].progress, half);
    assert!(state.replica_holds(&a, &one.region, one.fence).await.expect("it answers"));
    assert!(!state.replica_holds(&a, &one.region, one.fence + 1).await.expect("it answers"));

    verify(&state, &a, &one.region, one.fence).await.expect("it is in time");
    assert_eq!(verify(&state, &a, &one.region, one.fence).await, Err(Stale), "nothing ends twice");
    let fault = Fault { kind: FaultKind::Store, message: "zero \0 byte, ünd mehr".into() };
    let event = Event::Faulted { fence: two.fence, fault, retry_after: None, progress: half };
    let report = Report { region: two.region.clone(), event };
    state.replica_report(&a, report).await.expect("it is reported").expect("it is in time");
    let ended = get(&state, id).await;
    assert_eq!(ended.state, SynchronizationState::Failed);
    assert!(ended.finished_at.expect("an end") >= ended.created_at);
    let failed = ended.regions.iter().find(|view| view.region == two.region).expect("the region");
    assert!(failed.fault.as_ref().expect("a fault").message.ends_with("byte, ünd mehr"), "{failed:?}");

    // The failed replica is requested again with a higher fence. The available replica is not requested again.
    let again = state.accept(ask(&a, &[])).await.expect("it is accepted");
    let running = get(&state, again).await;
    let accepted: Vec<_> = running.regions.iter().map(|view| (view.region.as_str(), view.status)).collect();
    assert_eq!(accepted, [("three", RegionStatus::Pending), ("two", RegionStatus::Pending)]);
    let claims = claim(&state, "w", 5).await;
    assert_eq!(claims[0].available, [region("one")]);
    for claimed in &claims[0].regions {
        assert!(claimed.region != two.region || claimed.fence > two.fence);
        verify(&state, &a, &claimed.region, claimed.fence).await.expect("it is in time");
    }
    assert_eq!(get(&state, again).await.state, SynchronizationState::Succeeded);
    assert_eq!(get(&state, id).await, ended, "the outcome of a call is kept");
    assert!(matches!(
        state.accept(ask(&a, &["one"])).await,
        Err(Error::ImageAlreadyAvailable { regions, .. }) if regions == [region("one")]
    ));
    let nothing_left = state.accept(ask(&a, &[])).await.expect("it is accepted");
    assert_eq!(get(&state, nothing_left).await.state, SynchronizationState::Succeeded);
    fixture.end().await;
}

async fn a_token_names_one_call(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let (state, other) = (fixture.process().await, fixture.process().await);
    let a = add(&state, "a").await;
    let first = state.accept(with_token(ask(&a, &["one"]), "t")).await.expect("it is accepted");
    let again = other.accept(with_token(ask(&a, &["one"]), "t")).await.expect("it is accepted");
    assert_eq!(again, first);
    let differs = other.accept(with_token(ask(&a, &["two"]), "t")).await;
    assert!(matches!(differs, Err(Error::TokenReused(id)) if id == first), "{differs:?}");
    let in_capitals = other.accept(with_token(ask(&a, &["one"]), "T")).await.expect("it is accepted");
    assert_ne!(in_capitals, first, "tokens differ in case");
    let somebody_else =
        NewSynchronization { principal: "acs:ram::1:user/b".into(), ..with_token(ask(&a, &["one"]), "t") };
    assert_ne!(state.accept(somebody_else).await.expect("it is accepted"), first);

    // Two processes use one token concurrently. Both calls return the same synchronization in every round.
    for round in 0..30 {
        let token = format!("round-{round}");
        let one = with_token(ask(&a, &["one"]), &token);
        let two = with_token(ask(&a, &["one"]), &token);
        let (one, two) = tokio::join!(state.accept(one), other.accept(two));
        assert_eq!(one.expect("it is accepted"), two.expect("it is accepted"));
    }
    fixture.end().await;
}

/// A call that the database rejects fails without affecting the other calls of its group.
async fn a_call_that_can_t_be_written_fails_alone(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    let a = add(&state, "a").await;
    // SQLite does not limit the length of a principal's name, so a trigger rejects the long one.
    if kind == Kind::Sqlite {
        let db = database::look(&fixture.url).await;
        let trigger = "CREATE TRIGGER no_long BEFORE INSERT ON synchronization WHEN length(NEW.principal) > 256 \
                       BEGIN SELECT RAISE(ABORT, 'too long'); END";
        db.execute_unprepared(trigger).await.expect("a trigger");
        db.close().await.expect("it is closed");
    }
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..64 {
        let principal = if n == 31 { "p".repeat(300) } else { "p".to_owned() };
        let (state, ask) = (state.clone(), NewSynchronization { principal, ..ask(&a, &["one"]) });
        calls.spawn(async move { (n, state.accept(ask).await) });
    }
    for (n, answer) in calls.join_all().await {
        match answer {
            Ok(_) => assert_ne!(n, 31),
            Err(error) => assert_eq!((n, error.is_temporary()), (31, false), "{error:?}"),
        }
    }
    let page = state.synchronization_list(&SynchronizationFilter::default(), None, 1_000).await.expect("a page");
    assert_eq!(page.synchronizations.len(), 63);
    fixture.end().await;
}

/// On PostgreSQL, a group of calls waits until the group before it is written, but does not wait long if that group is
/// blocked.
#[tokio::test]
async fn a_call_that_waits_for_a_lock_holds_up_no_other() {
    if !Kind::Postgres.is_available() {
        return;
    }
    let mut fixture = Fixture::new(Kind::Postgres).await;
    let state = fixture.process_with(|settings| Settings { timeout: PATIENCE, ..settings }).await;
    let (slow, fast) = (add(&state, "slow").await, add(&state, "fast").await);
    let db = database::look(&fixture.url).await;
    let trigger = "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_advisory_xact_lock(7); \
                   RETURN NEW; END $$; CREATE TRIGGER waits BEFORE INSERT ON synchronization FOR EACH ROW \
                   WHEN (NEW.image_id = 'slow') EXECUTE FUNCTION wait(); SELECT pg_advisory_lock(7)";
    db.execute_unprepared(trigger).await.expect("a trigger and a lock");
    let waiting = tokio::spawn({
        let (state, ask) = (state.clone(), ask(&slow, &["one"]));
        async move { state.accept(ask).await }
    });
    until("a blocked call", async || {
        let sql = "SELECT 1 AS n FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted";
        db.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await.expect("it answers")
    })
    .await;
    let began = Instant::now();
    state.accept(ask(&fast, &["one"])).await.expect("it is accepted");
    assert!(began.elapsed() >= Duration::from_millis(10), "it has waited for its turn: {:?}", began.elapsed());
    assert!(!waiting.is_finished(), "it waits for the lock");
    db.execute_unprepared("SELECT pg_advisory_unlock(7)").await.expect("the lock is released");
    waiting.await.expect("it ends").expect("it is accepted");
    db.close().await.expect("it is closed");
    fixture.end().await;
}

/// An image is removed while it is requested. Either the removal fails because the image is in use, or the call fails
/// because the image does not exist. No task blocks forever.
async fn an_image_that_is_removed_leaves_nobody_waiting(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let (here, there) = (fixture.process().await, fixture.process().await);
    // The first call certainly precedes its removal. The other calls race with theirs.
    let first = add(&here, "first").await;
    let mut accepted = vec![here.accept(ask(&first, &["one"])).await.expect("it is accepted")];
    there.image_remove(&first).await.expect_err("it is in use");
    for round in 0..40 {
        let image = add(&here, &format!("i-{round}")).await;
        let (outcome, removed) = tokio::join!(here.accept(ask(&image, &["one"])), async {
            tokio::time::sleep(Duration::from_micros(round * 50)).await;
            there.image_remove(&image).await
        });
        match (outcome, removed) {
            (Ok(id), _) => accepted.push(id),
            (Err(Error::ImageNotFound(_)), Ok(())) => {}
            other => panic!("{other:?}"),
        }
    }
    while let claims = claim(&there, "w", 100).await
        && !claims.is_empty()
    {
        for claim in claims {
            for claimed in claim.regions {
                let fault = Fault { kind: FaultKind::ImageNotFound, message: "it was removed".into() };
                let fence = claimed.fence;
                let event = match &claim.image {
                    Some(_) => Event::Verified {
                        fence,
                        progress: DONE,
                        verification: Verification::Verified,
                        warnings: Warnings::default(),
                    },
                    None => Event::Faulted { fence, fault, retry_after: None, progress: Progress::default() },
                };
                let report = Report { region: claimed.region, event };
                there.replica_report(&claim.id, report).await.expect("it answers").expect("it is in time");
            }
        }
    }
    for id in accepted {
        let ended = get(&here, id).await;
        assert!(ended.state.is_terminal(), "{ended:?}");
    }
    fixture.end().await;
}

/// Several processes concurrently accept and cancel calls for the same few images, and complete or fail the copies.
/// Every call is answered, and every accepted call ends.
async fn many_processes_at_once_lose_nothing(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let mut processes = Vec::new();
    for _ in 0..3 {
        processes.push(fixture.process().await);
    }
    let mut images = Vec::new();
    for n in 0..12 {
        images.push(add(&processes[0], &format!("i-{n}")).await);
    }
    let done = CancellationToken::new();
    let mut workers = tokio::task::JoinSet::new();
    for (number, state) in processes.iter().enumerate() {
        workers.spawn(work(state.clone(), number, done.clone()));
    }
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..24 {
        callers.spawn(call(processes[caller % processes.len()].clone(), images.clone(), caller));
    }
    let accepted: Vec<RequestId> = callers.join_all().await.into_iter().flatten().collect();
    assert!(accepted.len() > 50, "{}", accepted.len());
    for id in &accepted {
        let state = &processes[1];
        until("the end of every accepted call", async || get(state, *id).await.state.is_terminal().then_some(())).await;
    }
    done.cancel();
    while let Some(ended) = workers.join_next().await {
        ended.expect("no worker panicked");
    }
    fixture.end().await;
}

/// Claims replicas and reports results until `done` is canceled and no replica is due. Every third copy fails.
async fn work(state: Db, number: usize, done: CancellationToken) {
    let (mut round, mut seen) = (number, 0);
    loop {
        round += 1;
        let claims = claim_within(&state, &format!("w-{number}"), 4, LEASE, &BTreeMap::new(), round).await;
        if claims.is_empty() {
            if done.is_cancelled() {
                return;
            }
            state.due(&mut seen, Duration::from_millis(2)).await;
        }
        let mut reports = tokio::task::JoinSet::new();
        for claim in claims {
            for (index, claimed) in claim.regions.into_iter().enumerate() {
                let fence = claimed.fence;
                let event = if (round + index) % 3 == 0 {
                    let fault = Fault { kind: FaultKind::Store, message: "planned".into() };
                    Event::Faulted { fence, fault, retry_after: None, progress: DONE }
                } else {
                    Event::Verified {
                        fence,
                        progress: DONE,
                        verification: Verification::Verified,
                        warnings: Warnings::default(),
                    }
                };
                let (state, image) = (state.clone(), claim.id.clone());
                let report = Report { region: claimed.region, event };
                reports.spawn(async move {
                    // The report is stale if the copy was canceled meanwhile.
                    let reported = state.replica_report(&image, report).await.expect("it can be reported");
                    assert!(matches!(reported, Ok(()) | Err(Stale)));
                });
            }
        }
        while let Some(reported) = reports.join_next().await {
            reported.expect("no panic");
        }
    }
}

/// Makes twelve calls and cancels every fourth. Returns the ids of the accepted calls.
async fn call(state: Db, images: Vec<ImageId>, caller: usize) -> Vec<RequestId> {
    let mut accepted = Vec::new();
    for call in 0..12 {
        let image = &images[(caller * 5 + call * 7) % images.len()];
        let targets: &[&str] = [&["one", "two", "three"][..], &["two"], &[]][(caller + call) % 3];
        match state.accept(ask(image, targets)).await {
            Ok(id) => accepted.push(id),
            Err(Error::ImageAlreadyAvailable { .. }) => {}
            Err(error) => panic!("{}", with_causes(&error)),
        }
        if call % 4 == 3
            && let Some(id) = accepted.last()
        {
            state.synchronization_cancel(*id).await.unwrap_or_else(|error| panic!("{}", with_causes(&error)));
        }
    }
    accepted
}
