//! Warnings about missing attachments are kept in the replica's row and in every call that waited for the replica.

use appferry::{
    db::Report,
    domain::{Digest, Event, Fault, FaultKind, Image, Verification, Warnings},
};

use super::{DONE, Fixture, ask, claim, get, image, image_id, region};
use crate::harness::database::Kind;

on_every_database! { warnings_are_kept }

async fn warnings_are_kept(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    let absent = (1..=100).map(|number| Digest::Sha256([number; 32])).collect();
    let incomplete = Image { absent, ..image("a") };
    state.image_add(&incomplete).await.expect("it is added");
    let (id, one) = (image_id("a"), region("one"));
    let request = state.accept(ask(&id, &["one"])).await.expect("it is accepted");
    let claimed = claim(&state, "w", 1).await.remove(0);
    assert_eq!(claimed.image.map(|image| image.absent), Some(incomplete.absent.clone()));
    let fence = claimed.regions[0].fence;
    let mut warnings = Warnings::default();
    (0..20).for_each(|number| warnings.add(format_args!("{number} 'ä' \u{1F6A2} {}", "x".repeat(600))));
    let event =
        Event::Verified { fence, progress: DONE, verification: Verification::Verified, warnings: warnings.clone() };
    state.replica_report(&id, Report { region: one.clone(), event }).await.expect("it answers").expect("it is in time");
    assert_eq!(get(&state, request).await.regions[0].warnings, warnings);
    let (kept, replicas) = state.image_get(&id).await.expect("it is there");
    assert_eq!((&kept.absent, &replicas[0].1.warnings), (&incomplete.absent, &warnings));

    // When the replica is found damaged, its warnings are cleared. The calls keep theirs.
    let fault = Fault::new(FaultKind::Store, "found damaged");
    state.replica_damaged(&id, &one, fault).await.expect("it answers").expect("it was available");
    assert!(state.image_get(&id).await.expect("it is there").1[0].1.warnings.is_empty());
    assert_eq!(get(&state, request).await.regions[0].warnings, warnings);
    fixture.end().await;
}
