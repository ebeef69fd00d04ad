//! Publications: which image was published under a name, which image owns a name, and which blobs are trusted.

use appferry::{
    db::{Db, Error, NameConflictPolicy, Publication, ReadBlob, RegionName},
    domain::{Content, Descriptor, Digest, Image, ImageKind, ImageName, Published, RegionStatus, Stale, Verification},
};
use sea_orm::ConnectionTrait as _;

use super::{Fixture, ask, claim, image, image_id, region, verify};
use crate::harness::{database::Kind, until};

on_every_database! {
    what_was_published_is_known_by_its_name
    blobs_that_were_written_or_read_are_known
    a_name_belongs_to_one_content
    two_who_take_the_same_name_at_once_do_not_both_get_it
    what_was_learned_about_a_registry_is_known_to_every_process
}

/// A digest of the usual length.
const ONE: Digest = Digest::Sha256([1; 32]);
/// A digest of the maximum length.
const TWO: Digest = Digest::Sha512([0xf2; 64]);

/// Returns a container image with the name `foo:1`.
fn named(id: &str, digest: Digest) -> Image {
    let content = Content::Blobs(Descriptor { media_type: "m".into(), digest, size: 5 });
    Image { kind: ImageKind::Container, source: ImageName("foo:1".into()), content, ..image(id) }
}

async fn what_was_published_is_known_by_its_name(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    state.image_add(&named("a", ONE)).await.expect("it is added");
    state.accept(ask(&image_id("a"), &["one"])).await.expect("it is accepted");
    let fence = claim(&state, "w", 1).await.remove(0).regions.remove(0).fence;
    let (image, one, name) = (image_id("a"), region("one"), ImageName("foo:1".into()));
    let location = Some("here");
    let publication = Publication { image: &image, region: &one, fence, name: &name, location, root: ONE };
    let at = async |location: &str| {
        let region_name = RegionName { region: one.clone(), name: name.clone(), location: Some(location.to_owned()) };
        state.published(&[region_name]).await.expect("it answers").remove(&one)
    };
    let recorded = async || at("here").await;
    assert_eq!(recorded().await, None);

    state.publication_announce(publication).await.expect("it answers").expect("the claim is good");
    assert_eq!(recorded().await, Some(Published { pending: Some(ONE), ..Published::default() }));
    let ended = state.publication_complete(publication, Some(Verification::Trusted)).await.expect("it answers");
    ended.expect("the claim is good");
    let published = Published { root: Some((ONE, Verification::Trusted)), ..Published::default() };
    assert_eq!(recorded().await, Some(published.clone()));
    assert_eq!(at("there").await, Some(published.clone().relocated()), "the store is another one by now");
    let next = Publication { root: TWO, ..publication };
    state.publication_announce(next).await.expect("it answers").expect("the claim is good");
    assert_eq!(recorded().await, Some(Published { pending: Some(TWO), ..published.clone() }));
    let late = Publication { fence: fence - 1, ..publication };
    assert_eq!(state.publication_announce(late).await.expect("it answers"), Err(Stale));
    assert_eq!(state.publication_complete(late, Some(Verification::Verified)).await.expect("it answers"), Err(Stale));

    verify(&state, &image, &one, fence).await.expect("it is in time");
    let replicas = state.image_get(&image).await.expect("it is there").1;
    assert_eq!(replicas[0].1.verification(), Some(Verification::Verified));
    state.image_remove(&image).await.expect("it is removed");
    assert_eq!(recorded().await, Some(Published { pending: Some(TWO), ..published }), "the bytes are still there");
    fixture.end().await;
}

async fn blobs_that_were_written_or_read_are_known(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    state.image_add(&named("a", ONE)).await.expect("it is added");
    state.accept(ask(&image_id("a"), &["one"])).await.expect("it is accepted");
    let fence = claim(&state, "w", 1).await.remove(0).regions.remove(0).fence;
    let (image, one, name) = (image_id("a"), region("one"), ImageName("foo:1".into()));
    for blobs in [&[ONE][..], &[ONE, TWO]] {
        let noted = state.blobs_record_written(&image, &one, fence, blobs).await.expect("it answers");
        noted.expect("the claim is good");
    }
    let late = state.blobs_record_written(&image, &one, fence - 1, &[ONE]).await.expect("it answers");
    assert_eq!(late, Err(Stale));
    assert_eq!(state.blobs_written(&image, &one).await.expect("it answers"), [ONE, TWO].into());
    let location = None;
    let publication = Publication { image: &image, region: &one, fence, name: &name, location, root: ONE };
    let ended = state.publication_complete(publication, Some(Verification::Verified)).await.expect("it answers");
    ended.expect("the claim is good");
    assert!(state.blobs_written(&image, &one).await.expect("it answers").is_empty(), "they count as existing");

    for blob in [ONE, TWO] {
        let read = ReadBlob { region: &one, location: "apps/foo", blob };
        assert_eq!(state.blob_reading(read).await.expect("it answers"), None);
        for witness in [Some("a tag"), None, Some("another tag")] {
            state.blob_record_reading(read, witness).await.expect("it is written");
            assert_eq!(state.blob_reading(read).await.expect("it answers"), Some(witness.map(str::to_owned)));
        }
        let elsewhere = ReadBlob { location: "apps/FOO", ..read };
        assert_eq!(state.blob_reading(elsewhere).await.expect("it answers"), None);
    }
    fixture.end().await;
}

/// Claims the due replicas and reports them as verified. Repeats the claim until it finds one, because a transaction
/// that was just aborted may still hold locks.
async fn copy_all(state: &Db) {
    let claims = until("a claim", async || {
        let claims = claim(state, "w", 5).await;
        (!claims.is_empty()).then_some(claims)
    })
    .await;
    for claim in claims {
        for claimed in claim.regions {
            verify(state, &claim.id, &claimed.region, claimed.fence).await.expect("it is in time");
        }
    }
}

async fn a_name_belongs_to_one_content(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    state.image_add(&named("older", ONE)).await.expect("it is added");
    state.image_add(&named("same", ONE)).await.expect("the same content");
    for region in ["one", "two"] {
        state.accept(ask(&image_id("older"), &[region])).await.expect("it is accepted");
    }
    let refused = state.image_add(&named("newer", TWO)).await;
    assert!(matches!(&refused, Err(Error::NameTaken { by, root: ONE, .. }) if by.as_str() == "older"), "{refused:?}");

    let by_name = [region("one")];
    let taking = NameConflictPolicy::Supersede(&by_name);
    let busy = state.image_add_as(&named("newer", TWO), taking).await;
    assert!(matches!(&busy, Err(Error::ImageInUse { .. })), "{busy:?}");
    copy_all(&state).await;
    state.image_add_as(&named("newer", TWO), taking).await.expect("it takes the name over");
    let (older, replicas) = state.image_get(&image_id("older")).await.expect("it is there");
    assert_eq!(older.superseded_by, Some(image_id("newer")));
    let status = |name: &str| replicas.iter().find(|(r, _)| *r == region(name)).map(|(_, replica)| replica.status());
    assert_eq!(status("one"), Some(RegionStatus::Superseded));
    assert_eq!(status("two"), Some(RegionStatus::Available), "it has a name of its own there");
    for id in ["older", "same"] {
        let refused = state.accept(ask(&image_id(id), &["three"])).await;
        assert!(matches!(&refused, Err(Error::ImageSuperseded { by, .. }) if by.as_str() == "newer"), "{refused:?}");
    }
    state.accept(ask(&image_id("newer"), &["one"])).await.expect("it is accepted");

    // The name is free once the last image with its content is removed.
    let refused = state.image_add(&named("back", ONE)).await;
    assert!(matches!(&refused, Err(Error::NameTaken { by, .. }) if by.as_str() == "newer"), "{refused:?}");
    state.image_add(&named("newest", TWO)).await.expect("the same content");
    state.image_remove(&image_id("older")).await.expect("it is removed");
    copy_all(&state).await;
    state.image_remove(&image_id("newer")).await.expect("it is removed");
    let refused = state.image_add(&named("back", ONE)).await;
    assert!(matches!(&refused, Err(Error::NameTaken { by, .. }) if by.as_str() == "newest"), "{refused:?}");
    state.image_remove(&image_id("newest")).await.expect("it is removed");
    state.image_add(&named("back", ONE)).await.expect("the name is free");
    fixture.end().await;
}

async fn two_who_take_the_same_name_at_once_do_not_both_get_it(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    let other = if kind == Kind::Sqlite { state.clone() } else { fixture.process().await };
    for round in 0..5 {
        let image = |id: &str, digest| Image {
            source: ImageName(format!("foo:{round}")),
            ..named(&format!("{id}-{round}"), digest)
        };
        let (one, two) = (image("one", ONE), image("two", TWO));
        let (one, two) = tokio::join!(state.image_add(&one), other.image_add(&two));
        assert_eq!([&one, &two].iter().filter(|added| added.is_ok()).count(), 1, "{one:?} {two:?}");
    }
    fixture.end().await;
}

async fn what_was_learned_about_a_registry_is_known_to_every_process(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    let (here, there) = ("https://one.example/", "https://One.example/");
    let recorded = async |service: &str| state.registry_habits(service).await.expect("it answers");
    assert_eq!(recorded(here).await, None);
    state.registry_habits_save(here, "a").await.expect("it is noted");
    state.registry_habits_save(here, "b").await.expect("it is noted");
    assert_eq!(recorded(here).await.as_deref(), Some("b"));
    assert_eq!(recorded(there).await, None);
    state.registry_habits_save(&"x".repeat(401), "a").await.expect("one that is too long is left out");
    let db = sea_orm::Database::connect(&fixture.url).await.expect("a connection");
    let later = "UPDATE registry_habits SET learned_at = learned_at - 2592000000";
    db.execute_unprepared(later).await.expect("time passes");
    assert_eq!(recorded(here).await, None, "thirty days later, it is found out again");
    fixture.end().await;
}
