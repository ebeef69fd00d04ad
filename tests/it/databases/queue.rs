//! Claims, leases, and notifications between processes.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use appferry::{
    db::{Claim, ClaimRequest, Db, LaneCapacity, Report, Settings},
    domain::{
        Digest, Event, Fault, FaultKind, Progress, RegionStatus, Regions, Stale, Synchronization, SynchronizationState,
        Verification, Warnings,
    },
};

use super::{DONE, Fixture, LEASE, SHORT, add, ask, claim, claim_within, get, image_id, region, verify, worker};
use crate::harness::{PATIENCE, database::Kind, until};

on_every_database! {
    a_claim_that_ran_out_is_overtaken
    one_image_with_many_regions_starves_no_other
    limits_hold_across_processes
    regions_differ_in_case
    a_source_is_shared_by_all_processes
    a_worker_hears_of_what_another_process_accepts
    a_watcher_sees_what_another_process_does
}

async fn a_claim_that_ran_out_is_overtaken(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let (state, other) = (fixture.process().await, fixture.process().await);
    let a = add(&state, "a").await;
    let id = state.accept(ask(&a, &["one"])).await.expect("it is accepted");
    let first = claim_within(&state, "late", 1, SHORT, &BTreeMap::new(), 0).await.remove(0).regions.remove(0);
    let second = until("the lease to expire", async || {
        claim(&other, "next", 1).await.pop().map(|mut claim| claim.regions.remove(0))
    })
    .await;
    assert!(second.fence > first.fence);
    assert_eq!(second.attempt, 2);
    // The worker whose lease expired can no longer change the replica.
    let before = get(&state, id).await;
    let fault = Fault { kind: FaultKind::Store, message: "late".into() };
    let faulted = Event::Faulted { fence: first.fence, fault, retry_after: None, progress: DONE };
    let attempts = [
        Event::Verified {
            fence: first.fence,
            progress: DONE,
            verification: Verification::Verified,
            warnings: Warnings::default(),
        },
        faulted,
        Event::Release { fence: first.fence },
        Event::Renew { fence: first.fence, lease: LEASE, progress: DONE },
    ];
    for event in attempts {
        let report = Report { region: first.region.clone(), event };
        assert_eq!(state.replica_report(&a, report).await.expect("it answers"), Err(Stale));
    }
    let noted =
        state.upload_save(&a, &first.region, first.fence, Digest::Sha512([1; 64]), "s").await.expect("it answers");
    assert_eq!(noted, Err(Stale));
    assert!(!state.replica_holds(&a, &first.region, first.fence).await.expect("it answers"));
    assert_eq!(get(&state, id).await, before);
    verify(&other, &a, &second.region, second.fence).await.expect("it is in time");
    assert_eq!(get(&state, id).await.state, SynchronizationState::Succeeded);
    fixture.end().await;
}

async fn one_image_with_many_regions_starves_no_other(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    let two_limited: BTreeMap<_, _> = [(region("two"), 2)].into();
    let mut images = Vec::new();
    for n in 0..40 {
        images.push(add(&state, &format!("long-{n:02}")).await);
    }
    for image in &images {
        state.accept(ask(image, &["two"])).await.expect("it is accepted");
    }
    let wide = add(&state, "wide").await;
    state.accept(ask(&wide, &["one", "two", "three"])).await.expect("it is accepted");
    let single = add(&state, "single").await;
    state.accept(ask(&single, &["three"])).await.expect("it is accepted");

    // The limit of region two is two concurrent copies of all workers together. Its pending copies delay no other
    // region.
    let (mut into_two, mut claimed) = (0, BTreeSet::new());
    for round in 0..12 {
        for claim in claim_within(&state, "w", 3, LEASE, &two_limited, round).await {
            into_two += claim.regions.iter().filter(|claimed| claimed.region == region("two")).count();
            claimed.extend(claim.regions.into_iter().map(|c| (claim.id.to_string(), c.region.to_string())));
        }
    }
    assert_eq!(into_two, 2, "{claimed:?}");
    for (image, to) in [("wide", "one"), ("wide", "three"), ("single", "three")] {
        assert!(claimed.contains(&(image.to_owned(), to.to_owned())), "{image} to {to} was not claimed: {claimed:?}");
    }
    // When one of the two copies has ended, the replica that has waited longest is claimed.
    let ended = claimed.iter().find(|(_, to)| to == "two").expect("one").clone();
    let held = state.image_get(&image_id(&ended.0)).await.expect("it is there").1;
    let fence = held.iter().find(|(r, _)| r.as_str() == "two").expect("the replica").1.fence;
    verify(&state, &image_id(&ended.0), &region("two"), fence).await.expect("it is in time");
    let next = claim_within(&state, "w", 3, LEASE, &two_limited, 0).await;
    let longest = images.iter().find(|image| !claimed.contains(&(image.to_string(), "two".to_owned()))).expect("one");
    assert_eq!(next.iter().map(|claim| &claim.id).collect::<Vec<_>>(), [longest]);
    fixture.end().await;
}

/// Four processes claim concurrently for a region whose limit is three copies.
async fn limits_hold_across_processes(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let mut processes = Vec::new();
    for _ in 0..4 {
        processes.push(fixture.process().await);
    }
    for n in 0..60 {
        let image = add(&processes[0], &format!("i-{n}")).await;
        processes[0].accept(ask(&image, &["one", "two"])).await.expect("it is accepted");
    }
    let limits: BTreeMap<_, _> = [(region("one"), 3)].into();
    let mut claimers = tokio::task::JoinSet::new();
    for (number, state) in processes.iter().enumerate() {
        let (state, limits) = (state.clone(), limits.clone());
        claimers.spawn(async move {
            let mut claims = Vec::new();
            for round in 0..40 {
                claims.extend(claim_within(&state, &format!("w-{number}"), 1, LEASE, &limits, round).await);
            }
            claims
        });
    }
    let claims: Vec<Claim> = claimers.join_all().await.into_iter().flatten().collect();
    let into = |name: &str| {
        let all = claims.iter().flat_map(|claim| claim.regions.iter().map(|c| (claim.id.clone(), c.region.clone())));
        all.filter(|(_, to)| to.as_str() == name).collect::<Vec<_>>()
    };
    assert_eq!(into("one").len(), 3, "as many as may, and no more");
    let two = into("two");
    assert_eq!(two.iter().collect::<BTreeSet<_>>().len(), two.len(), "nothing is claimed twice");
    assert_eq!(two.len(), 60, "a region without a limit is not held up by one with a limit");
    fixture.end().await;
}

/// Region ids are case-sensitive: regions whose ids differ only in case have separate limits.
async fn regions_differ_in_case(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let both = Regions::new(region("home"), ["one", "ONE"].map(region));
    let (state, tasks) =
        Db::open(&Settings::new(fixture.url.clone()), both, fixture.stop.clone()).await.expect("it opens");
    fixture.tasks.push(tasks);
    let limits: BTreeMap<_, _> = [(region("one"), 1), (region("ONE"), 1)].into();
    for n in 0..3 {
        let image = add(&state, &format!("i-{n}")).await;
        state.accept(ask(&image, &["one", "ONE"])).await.expect("it is accepted");
    }
    let lanes = ["one", "ONE"].map(|name| (region(name), LaneCapacity { primary: 5, total: 5 })).into();
    let mut claimed = Vec::new();
    for draw in 0..6 {
        let order = ClaimRequest { owner: &worker("w"), lanes: &lanes, lease: LEASE, limits: &limits, draw };
        let claims = state.replica_claim(order).await.expect("it can be claimed");
        claimed.extend(claims.into_iter().flat_map(|claim| claim.regions).map(|claimed| claimed.region));
    }
    claimed.sort_unstable();
    assert_eq!(claimed, [region("ONE"), region("one")], "one copy into each");
    fixture.end().await;
}

/// All processes together share a source region's limit of copies.
async fn a_source_is_shared_by_all_processes(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let (here, there) = (fixture.process().await, fixture.process().await);
    let limits: BTreeMap<_, _> = [(region("home"), 3)].into();
    let mut claims = Vec::new();
    for (name, state) in [("a", &here), ("b", &there)] {
        let image = add(state, name).await;
        state.accept(ask(&image, &[])).await.expect("it is accepted");
        claims.push(claim(state, name, 1).await.remove(0));
    }
    let sources_of = |claim: &Claim| -> Vec<_> {
        claim.regions.iter().map(|c| (c.region.clone(), c.fence, region("home"))).collect()
    };
    let (first, second) = (sources_of(&claims[0]), sources_of(&claims[1]));
    // Both processes reserve concurrently, and get three copies in total.
    let (one, two) = tokio::join!(
        here.reserve_egress(&claims[0].id, &first, &limits),
        there.reserve_egress(&claims[1].id, &second, &limits)
    );
    let (one, two) = (one.expect("it answers"), two.expect("it answers"));
    assert_eq!(one.len() + two.len(), 3, "{one:?} {two:?}");
    let in_flight = here.copies_in_flight(&worker("a")).await.expect("it answers");
    let from_home: u32 = in_flight.iter().filter(|u| u.from == Some(region("home"))).map(|u| u.copies).sum();
    let ours: u32 = in_flight.iter().filter(|u| u.is_own).map(|u| u.copies).sum();
    assert_eq!((from_home, ours), (3, 3), "{in_flight:?}");
    // When one copy has ended, one more is reserved.
    let (fed, fed_by) = if one.is_empty() { (&two, 1) } else { (&one, 0) };
    let ended = claims[fed_by].regions.iter().find(|c| c.region == fed[0]).expect("it was claimed");
    verify(&here, &claims[fed_by].id, &ended.region, ended.fence).await.expect("it is in time");
    let waiting: Vec<_> = first.iter().filter(|(to, ..)| !one.contains(to)).cloned().collect();
    let more = here.reserve_egress(&claims[0].id, &waiting, &limits).await.expect("it answers");
    let waiting_too: Vec<_> = second.iter().filter(|(to, ..)| !two.contains(to)).cloned().collect();
    let more_too = there.reserve_egress(&claims[1].id, &waiting_too, &limits).await.expect("it answers");
    assert_eq!(more.len() + more_too.len(), 1, "{more:?} {more_too:?}");
    fixture.end().await;
}

async fn a_worker_hears_of_what_another_process_accepts(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let (here, there) = (fixture.process().await, fixture.process().await);
    // PostgreSQL notifies other processes, so the poll interval exceeds the deadline. With other databases, workers
    // poll.
    let poll = if kind == Kind::Postgres { 2 * PATIENCE } else { Duration::from_millis(100) };
    let mut seen = 0;
    // Makes several calls, because a process also wakes up when it starts to listen, and may then find the first call.
    for name in ["first", "second", "third"] {
        let image = add(&here, name).await;
        here.accept(ask(&image, &["one"])).await.expect("it is accepted");
        let claimed = async {
            loop {
                there.due(&mut seen, poll).await;
                if let Some(claim) = claim(&there, "w", 1).await.pop() {
                    return claim;
                }
            }
        };
        let claim = tokio::time::timeout(PATIENCE, claimed).await.unwrap_or_else(|_| panic!("{name} is not heard of"));
        assert_eq!(claim.id, image);
    }
    fixture.end().await;
}

async fn a_watcher_sees_what_another_process_does(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let (here, there) = (fixture.process().await, fixture.process().await);
    let a = add(&here, "a").await;
    let id = here.accept(ask(&a, &["one", "two"])).await.expect("it is accepted");
    let mut watch = here.synchronization_watch(id).await.expect("it can be watched");
    let claim = claim(&there, "w", 1).await.remove(0);
    let within = Duration::from_secs(1);
    let mut see = async |what: &str, seen: &dyn Fn(&Synchronization) -> bool| {
        let started = Instant::now();
        let look = watch.wait_for(|s| seen(s));
        tokio::time::timeout(within, look).await.unwrap_or_else(|_| panic!("{what} was not seen")).expect("it goes on");
        println!("{kind:?}: {what} was seen after {:?}", started.elapsed());
    };
    see("the copying", &|s| s.regions.iter().all(|view| view.status == RegionStatus::Copying)).await;
    let half = Progress { total: 1_000, copied: 500, skipped: 0 };
    let (one, two) = (&claim.regions[0], &claim.regions[1]);
    there.replica_renew(&a, LEASE, &[(one.region.clone(), one.fence, half)]).await.expect("it is renewed");
    see("progress", &|s| s.regions[0].progress == half).await;
    verify(&there, &a, &one.region, one.fence).await.expect("it is in time");
    verify(&there, &a, &two.region, two.fence).await.expect("it is in time");
    see("the end", &|s| s.state == SynchronizationState::Succeeded).await;
    fixture.end().await;
}
