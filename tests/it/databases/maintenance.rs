//! Maintenance: retention, leader election, and pruning.

use std::{collections::BTreeMap, time::Duration};

use appferry::{
    acs3::Nonce,
    db::{Db, Error},
    domain::{Digest, EcsCopy, EcsImageId, ImageName, ImageUse, RegionStatus, Stale, Timestamp},
};

use super::{Fixture, LEASE, SHORT, add, ask, claim, claim_within, get, region, status, verify, worker};
use crate::harness::{database::Kind, until};

on_every_database! {
    house_is_kept_by_one
    what_was_left_behind_is_rescued_and_what_is_old_forgotten
    what_ended_just_now_is_kept
    uploads_are_remembered
    uploads_that_were_not_aborted_are_tried_again_when_they_are_due
    a_nonce_is_taken_once
    copies_of_ecs_are_remembered
    what_images_are_used_for_is_known
}

async fn house_is_kept_by_one(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let (one, two) = (fixture.process().await, fixture.process().await);
    let (first, second) = (worker("first"), worker("second"));
    assert!(one.leader_acquire(&first, LEASE).await.expect("it answers"));
    assert!(!two.leader_acquire(&second, LEASE).await.expect("it answers"));
    assert!(one.leader_acquire(&first, Duration::from_millis(200)).await.expect("it answers"), "it is renewed");
    until("the next leader", async || two.leader_acquire(&second, LEASE).await.expect("it answers").then_some(()))
        .await;
    assert!(!one.leader_acquire(&first, LEASE).await.expect("it answers"));
    two.leader_resign(&second).await.expect("it answers");
    assert!(one.leader_acquire(&first, LEASE).await.expect("it answers"), "a resigning leader is replaced at once");

    // Eight workers try concurrently, and one of them is elected.
    two.leader_resign(&first).await.expect("it answers");
    let mut takers = tokio::task::JoinSet::new();
    for n in 0..8 {
        let state = if n % 2 == 0 { one.clone() } else { two.clone() };
        takers.spawn(async move { state.leader_acquire(&worker(&format!("t-{n}")), LEASE).await.expect("it answers") });
    }
    assert_eq!(takers.join_all().await.into_iter().filter(|ours| *ours).count(), 1);
    fixture.end().await;
}

async fn what_was_left_behind_is_rescued_and_what_is_old_forgotten(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    let a = add(&state, "a").await;
    let id = state.accept(ask(&a, &["one"])).await.expect("it is accepted");
    let left = claim_within(&state, "gone", 1, SHORT, &BTreeMap::new(), 0).await.remove(0);
    until("the requeuing", async || (state.requeue_expired().await.expect("it answers") > 0).then_some(())).await;
    assert_eq!(status(&get(&state, id).await, "one"), RegionStatus::Pending);
    assert_eq!(verify(&state, &a, &region("one"), left.regions[0].fence).await, Err(Stale));

    let next = claim(&state, "next", 1).await.remove(0).regions.remove(0);
    assert_eq!(state.requeue_expired().await.expect("it answers"), 0, "a live claim is kept");
    assert_eq!(state.synchronization_prune(Duration::ZERO).await.expect("it answers"), (0, false), "it runs");
    verify(&state, &a, &next.region, next.fence).await.expect("it is in time");
    assert_eq!(state.synchronization_prune(LEASE).await.expect("it answers"), (0, false), "it ended just now");
    until("the pruning", async || {
        (state.synchronization_prune(Duration::ZERO).await.expect("it answers") == (1, false)).then_some(())
    })
    .await;
    assert!(matches!(state.synchronization_get(id).await, Err(Error::SynchronizationNotFound(_))));
    let replicas = state.image_get(&a).await.expect("it is there").1;
    assert_eq!(replicas[0].1.status(), RegionStatus::Available, "locations are kept");
    fixture.end().await;
}

/// The retention period of a synchronization starts when it ends, not when it is accepted.
async fn what_ended_just_now_is_kept(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    let a = add(&state, "a").await;
    let id = state.accept(ask(&a, &["one"])).await.expect("it is accepted");
    let accepted = get(&state, id).await.created_at;
    let claimed = claim(&state, "w", 1).await.remove(0).regions.remove(0);
    let keep = Duration::from_secs(2);
    until("the call to age", async || (accepted.until(appferry::system_clock().now()) > keep * 3 / 2).then_some(()))
        .await;
    verify(&state, &a, &claimed.region, claimed.fence).await.expect("it is in time");
    assert_eq!(state.synchronization_prune(keep).await.expect("it answers"), (0, false), "it ended just now");
    let forgotten = async || (state.synchronization_prune(keep).await.expect("it answers") == (1, false)).then_some(());
    until("the pruning", forgotten).await;
    fixture.end().await;
}

async fn uploads_are_remembered(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    let a = add(&state, "a").await;
    let (one, blob) = (region("one"), Digest::Sha256([9; 32]));
    let id = state.accept(ask(&a, &["one"])).await.expect("it is accepted");
    let fence = claim(&state, "w", 1).await.remove(0).regions[0].fence;
    for session in ["first", "second"] {
        state.upload_save(&a, &one, fence, blob, session).await.expect("it answers").expect("it is in time");
        let uploads = state.uploads(&a, &one).await.expect("it answers");
        assert_eq!(uploads.get(&blob).map(String::as_str), Some(session));
    }
    assert!(state.upload_abandoned(&one).await.expect("it answers").is_empty());
    state.synchronization_cancel(id).await.expect("it is canceled");
    let abandoned = state.upload_abandoned(&one).await.expect("it answers");
    assert_eq!((abandoned.len(), abandoned[0].session.as_str()), (1, "second"));
    state.upload_forget(&a, &one, blob).await.expect("it answers");
    assert!(state.upload_abandoned(&one).await.expect("it answers").is_empty());
    state.image_remove(&a).await.expect("it is removed");
    fixture.end().await;
}

/// An upload that its store failed to abort is due immediately in its own region, and again after each deferral.
async fn uploads_that_were_not_aborted_are_tried_again_when_they_are_due(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let (state, other) = (fixture.process().await, fixture.process().await);
    let [one, two] = ["one", "two"].map(region);
    let hour = Duration::from_secs(3_600);
    let due = async |region| state.stray_uploads_due(region, hour).await.expect("it answers");
    for session in ["first", "second"] {
        state.stray_upload_note(&one, session).await.expect("it answers");
    }
    assert!(due(&two).await.is_empty());
    let mut strays = other.stray_uploads_due(&one, hour).await.expect("it answers");
    strays.sort_by(|a, b| a.session.cmp(&b.session));
    let sessions: Vec<(&str, u32)> = strays.iter().map(|stray| (stray.session.as_str(), stray.attempts)).collect();
    assert_eq!(sessions, [("first", 0), ("second", 0)]);
    state.stray_upload_defer(&strays[0], hour).await.expect("it answers");
    state.stray_upload_defer(&strays[1], Duration::ZERO).await.expect("it answers");
    let left = due(&one).await;
    assert_eq!((left.len(), left[0].session.as_str(), left[0].attempts), (1, "second", 1));
    state.stray_upload_forget(&left[0]).await.expect("it answers");
    assert!(due(&one).await.is_empty());
    // Emulates a clock that was set back by two hours after the first upload was deferred.
    state.stray_upload_defer(&strays[0], hour * 3).await.expect("it answers");
    assert_eq!(due(&one).await.len(), 1);
    fixture.end().await;
}

/// All processes together accept a nonce once, until it has expired.
async fn a_nonce_is_taken_once(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let states = [fixture.process().await, fixture.process().await];
    let now = appferry::system_clock().now().as_millis();
    let nonce = |value: &str, until: i64| Nonce {
        access_key_id: "LTAI".into(),
        value: value.into(),
        until: Timestamp::from_millis(until),
    };
    let (hour, long) = (3_600_000, "n".repeat(128));
    for (value, until) in [("old", now - hour), ("new", now + hour), (long.as_str(), now + hour)] {
        let nonce = nonce(value, until);
        let [one, other] = states.each_ref().map(|state| state.nonce_claim(&nonce));
        let (one, other) = tokio::join!(one, other);
        assert!(one.expect("an answer") != other.expect("an answer"), "only one process accepts it: {value}");
    }
    assert_eq!(states[0].nonce_prune().await.expect("it is done"), 1);
    assert!(states[1].nonce_claim(&nonce("old", now - hour)).await.expect("it is new again"));
    assert!(!states[1].nonce_claim(&nonce("new", now + hour)).await.expect("it is known"));
    // A different access key may use the same nonce.
    let of_another = Nonce { access_key_id: "LTAJ".into(), ..nonce("new", now + hour) };
    assert!(states[1].nonce_claim(&of_another).await.expect("it is new"));
    fixture.end().await;
}

/// The next claim of a replica finds the ECS copy that an earlier claim recorded. The leader abandons a copy that no
/// call needs. A claim with an old fence cannot change a copy.
async fn copies_of_ecs_are_remembered(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    let other = fixture.process().await;
    let a = add(&state, "a").await;
    let one = region("one");
    let made: EcsImageId = "m-1".parse().expect("an id");
    let id = state.accept(ask(&a, &["one"])).await.expect("it is accepted");
    let fence = claim(&state, "w", 1).await.remove(0).regions[0].fence;
    let begin = async |state: &Db, fence| state.ecs_copy_begin(&a, &one, fence).await.expect("it answers");

    assert!(begin(&state, fence - 1).await.is_err(), "an old claim begins nothing");
    let copy = begin(&state, fence).await.expect("it is in time");
    assert_eq!((copy.image.clone(), copy.finished), (None, false));
    assert_eq!(begin(&other, fence).await.expect("it is in time"), copy, "it is the same one");
    let made_copy = copy.with_image(made.clone(), Timestamp::from_millis(7));
    let next = EcsCopy { generation: copy.generation + 1, ..made_copy.clone() };
    state.ecs_copy_record_image(&a, &one, &next).await.expect("it answers");
    assert_eq!(begin(&state, fence).await.expect("it is in time"), copy, "another generation's image is not its own");
    state.ecs_copy_record_image(&a, &one, &made_copy).await.expect("it answers");
    assert_eq!(begin(&other, fence).await.expect("it is in time"), made_copy);
    assert!(state.ecs_copies(&[&a]).await.expect("it answers").is_empty(), "it is not there yet");
    assert!(state.ecs_copy_abandoned().await.expect("it answers").is_empty());
    assert_eq!(state.ecs_copy_abandon(&a, &one).await.expect("it answers"), None);
    let stale = state.ecs_copy_save(&a, &one, fence - 1, &copy).await.expect("it answers");
    assert!(stale.is_err(), "an old claim changes nothing");

    // The leader abandons the copy of a canceled call once.
    state.synchronization_cancel(id).await.expect("it is canceled");
    assert!(state.ecs_copy_save(&a, &one, fence, &copy).await.expect("it answers").is_err());
    assert_eq!(state.ecs_copy_abandoned().await.expect("it answers"), [(a.clone(), one.clone())]);
    let given_up = other.ecs_copy_abandon(&a, &one).await.expect("it answers").expect("an upload exists");
    assert!(given_up.generation > copy.generation && given_up.image.is_none());
    assert_eq!(given_up.discarded, Some(made.clone()));
    state.ecs_copy_clear_discarded(&a, &one, &made).await.expect("it answers");
    let nothing = state.ecs_copy_abandon(&a, &one).await.expect("it answers").expect("its generation is still there");
    assert_eq!(nothing.discarded, None);

    // A new call needs the copy, so that forgetting it has no effect.
    state.accept(ask(&a, &["one"])).await.expect("it is accepted");
    state.ecs_copy_forget(&a, &one).await.expect("it answers");
    let fence = claim(&state, "w", 1).await.remove(0).regions[0].fence;
    let again = begin(&state, fence).await.expect("it is in time");
    assert_eq!(again.generation, given_up.generation, "a copy in use is kept");
    let there = EcsCopy { image: Some(made.clone()), finished: true, ..again };
    state.ecs_copy_save(&a, &one, fence, &there).await.expect("it answers").expect("it is in time");
    let copies = other.ecs_copies(&[&a]).await.expect("it answers");
    assert_eq!(copies.get(&(a.clone(), one.clone())), Some(&made));
    assert!(state.ecs_copy_abandoned().await.expect("it answers").is_empty());
    fixture.end().await;
}

/// Maintenance must not remove images in use from a store.
async fn what_images_are_used_for_is_known(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    let images = [add(&state, "a").await, add(&state, "b").await, add(&state, "c").await];
    let name = |name: &str| ImageName(name.to_owned());
    let names = ["a", "b", "c", "n", "gone"].map(name);
    let uses = async |of: &str| state.image_uses(&region(of), &names).await.expect("it answers");
    // In their home region all three images have the name of their source, in other regions their own ids.
    assert_eq!(uses("home").await, BTreeMap::from([(name("n"), ImageUse::Kept)]));
    assert_eq!(uses("one").await, BTreeMap::new());

    let mut requests = Vec::new();
    for image in &images {
        requests.push(state.accept(ask(image, &["one"])).await.expect("it is accepted"));
    }
    let claimed = claim(&state, "w", 2).await;
    let done = claimed[0].id.clone();
    verify(&state, &done, &region("one"), claimed[0].regions[0].fence).await.expect("it is in time");
    let all = images.iter().map(|image| {
        let used = if *image == done { ImageUse::Kept } else { ImageUse::InFlight };
        (name(image.as_str()), used)
    });
    assert_eq!(uses("one").await, all.collect::<BTreeMap<_, _>>());
    assert_eq!(uses("two").await, BTreeMap::new());

    // Canceled replicas do not count as uses.
    for request in requests {
        state.synchronization_cancel(request).await.expect("it is canceled");
    }
    assert_eq!(uses("one").await, BTreeMap::from([(name(done.as_str()), ImageUse::Kept)]));
    fixture.end().await;
}
