//! Replicas in regions that were removed from the configuration of every process.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use appferry::{
    db::{Db, Error},
    domain::{Fault, FaultKind, RegionStatus, Regions, SynchronizationState},
};

use super::{Fixture, Kind, SHORT, add, ask, claim, claim_within, get, image_id, region, status};
use crate::harness::until;

on_every_database! {
    replicas_of_a_region_that_is_not_configured_are_suspended_until_it_is
    suspended_replicas_hinder_neither_cancellation_nor_removal
    regions_are_known_with_their_stores
}

fn reason() -> Fault {
    Fault::new(FaultKind::Store, "two is not configured any more")
}

/// Starts a process that configures the home region and region `one`.
async fn with_one_region(fixture: &mut Fixture) -> Db {
    fixture.process_with_regions(Regions::new(region("home"), [region("one")])).await
}

async fn replicas_of_a_region_that_is_not_configured_are_suspended_until_it_is(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let (all, few) = (fixture.process().await, with_one_region(&mut fixture).await);
    let (waits, copied) = (add(&all, "waits").await, add(&all, "copied").await);
    let held = all.accept(ask(&copied, &["two"])).await.expect("it is accepted");
    assert_eq!(claim_within(&all, "dead", 1, SHORT, &BTreeMap::new(), 0).await.len(), 1);
    let pending = all.accept(ask(&waits, &["one", "two"])).await.expect("it is accepted");

    // The copy in progress is suspended only after its worker's lease has expired.
    let mut suspended = 0;
    until("both to be suspended", async || {
        suspended += few.replicas_suspend(&region("two"), &reason()).await.expect("it can be done");
        (suspended == 2).then_some(())
    })
    .await;
    let counted = few.replicas_suspended(&[region("one"), region("two")]).await.expect("it can be counted");
    assert_eq!(counted, BTreeMap::from([(region("two"), 2)]));
    for id in [held, pending] {
        let seen = get(&few, id).await;
        let two = seen.regions.iter().find(|view| view.region == region("two")).expect("the region");
        assert_eq!(
            (two.status, two.fault.as_ref(), two.next_attempt_at),
            (RegionStatus::Pending, Some(&reason()), None)
        );
    }
    let claimed = claim(&all, "w", 5).await;
    assert_eq!(claimed.len(), 1, "{claimed:?}");
    assert_eq!(claimed[0].regions.iter().map(|claimed| &claimed.region).collect::<Vec<_>>(), [&region("one")]);

    assert_eq!(few.replicas_resume().await.expect("it can be done"), 0, "the region is still not configured here");
    assert_eq!(all.replicas_resume().await.expect("it can be done"), 2);
    let claimed: BTreeSet<_> = claim(&all, "w", 5).await.into_iter().map(|claim| claim.id).collect();
    assert_eq!(claimed, BTreeSet::from([waits, copied]));
    fixture.end().await;
}

async fn suspended_replicas_hinder_neither_cancellation_nor_removal(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let (all, few) = (fixture.process().await, with_one_region(&mut fixture).await);
    let mut ids = Vec::new();
    for name in ["canceled", "removed", "in-use"] {
        let image = add(&all, name).await;
        let targets = if name == "in-use" { &["one", "two"][..] } else { &["two"][..] };
        ids.push(all.accept(ask(&image, targets)).await.expect("it is accepted"));
    }
    assert_eq!(few.replicas_suspend(&region("two"), &reason()).await.expect("it can be done"), 3);

    few.synchronization_cancel(ids[0]).await.expect("it can be canceled");
    few.image_remove(&image_id("removed")).await.expect("it can be removed");
    for id in &ids[..2] {
        let ended = get(&few, *id).await;
        assert_eq!(ended.state, SynchronizationState::Canceled, "{ended:?}");
        assert_eq!(status(&ended, "two"), RegionStatus::Canceled);
    }
    let refused = few.image_remove(&image_id("in-use")).await.expect_err("a copy waits");
    assert!(matches!(&refused, Error::ImageInUse { regions, .. } if *regions == [region("one")]), "{refused:?}");
    assert_eq!(get(&few, ids[2]).await.state, SynchronizationState::Running);
    assert_eq!(all.replicas_resume().await.expect("it can be done"), 1, "nothing was removed with it");
    fixture.end().await;
}

async fn regions_are_known_with_their_stores(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let (all, few) = (fixture.process().await, with_one_region(&mut fixture).await);
    let stores_of = async |state: &Db| {
        let stores = state.region_stores().await.expect("they can be read");
        stores.into_iter().map(|store| (store.region.to_string(), store.location)).collect::<Vec<_>>()
    };
    assert_eq!(stores_of(&few).await, []);
    few.regions_seen(Duration::ZERO).await.expect("it can be recorded");
    few.region_located(&region("one"), "dir:///one").await.expect("it can be recorded");
    all.regions_seen(Duration::ZERO).await.expect("it can be recorded");
    let expected = [("home", None), ("one", Some("dir:///one")), ("three", None), ("two", None)];
    assert_eq!(stores_of(&few).await, expected.map(|(region, at)| (region.to_owned(), at.map(str::to_owned))));
    // A process marks only the regions that it configures as seen.
    until("the time to pass", async || {
        few.regions_seen(Duration::ZERO).await.expect("it can be recorded");
        let stores = few.region_stores().await.expect("they can be read");
        let unseen = |name: &str| stores.iter().find(|store| store.region == region(name)).expect("it is known").unseen;
        (unseen("two") > Duration::from_millis(50) && unseen("one") < Duration::from_millis(50)).then_some(())
    })
    .await;
    fixture.end().await;
}
