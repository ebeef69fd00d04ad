//! Tests of leftovers: the files that copies leave in a directory are found and removed, and no others.

use std::{collections::BTreeMap, fs};

use domain::{Leftover, Timestamp, leftovers};

use super::{FENCE, Place, good, root, tree};
use crate::Store as _;

/// Returns the leftovers of the place, with no image in use and no minimum age.
async fn left(place: &Place) -> Vec<Leftover> {
    let found = place.store.find_leftovers().await.expect("it is looked at");
    leftovers(found, &BTreeMap::new(), Timestamp::from_millis(i64::MAX))
}

#[tokio::test]
async fn an_image_that_never_became_visible_is_removed_whole() {
    let place = Place::new();
    let own = good(7);
    place.write(&own, &tree("a")).await;
    let partial = format!("{}.7-99.partial", "0".repeat(64));
    fs::write(place.file("blobs/sha256").join(&partial), "the beginning").expect("an unfinished blob");
    fs::write(place.file(".index.json.7-99"), "{}").expect("an unfinished index");
    let found = left(&place).await;
    let [only] = &found[..] else { panic!("{found:?}") };
    assert_eq!(only.path(), "a");
    assert!(only.bytes() > 15, "{only:?}");
    assert!(place.store.clear_leftover(only).await.expect("it is removed"));
    assert!(!place.file("").exists());
    assert_eq!(left(&place).await, []);

    // An interrupted removal is resumed.
    fs::create_dir(place.file("")).expect("a directory");
    fs::write(place.file(FENCE), "7").expect("a fence");
    let found = left(&place).await;
    assert!(place.store.clear_leftover(&found[0]).await.expect("it is removed"));
    assert!(!place.file("").exists());

    // The next claim starts from nothing.
    place.write(&good(8), &tree("a")).await;
    place.store.publish(&good(8), &tree("a")).await.expect("it is published");
}

#[tokio::test]
async fn what_a_claim_has_taken_up_since_is_kept() {
    let place = Place::new();
    place.write(&good(7), &tree("a")).await;
    let found = left(&place).await;
    let next = good(9);
    place.store.prepare(&next).await.expect("it is prepared");
    assert!(!place.store.clear_leftover(&found[0]).await.expect("an answer"), "another claim writes there");
    place.store.publish(&next, &tree("a")).await.expect("it is published");
    assert!(!place.store.clear_leftover(&found[0]).await.expect("an answer"), "it is visible");
    assert_eq!(place.visible().await, Some(root(&tree("a"))));
    assert_eq!(left(&place).await, []);
}

#[tokio::test]
async fn of_a_visible_image_only_unfinished_files_are_removed() {
    let place = Place::new();
    let own = good(7);
    place.write(&own, &tree("a")).await;
    place.store.publish(&own, &tree("a")).await.expect("it is published");
    let unfinished = place.file("blobs/sha256").join(format!("{}.5-0.begun", "0".repeat(64)));
    fs::write(&unfinished, "the beginning").expect("an unfinished blob");
    fs::write(place.file("notes.partial"), "a person's").expect("a foreign file");
    let found = left(&place).await;
    assert_eq!(found.len(), 1, "{found:?}");
    // A file that is written to again no longer matches the leftover.
    fs::write(&unfinished, "the beginning, and more").expect("it grows");
    assert!(!place.store.clear_leftover(&found[0]).await.expect("an answer"));
    assert!(place.store.clear_leftover(&left(&place).await[0]).await.expect("it is removed"));
    assert!(!unfinished.exists() && place.file("notes.partial").exists());
    assert_eq!(place.visible().await, Some(root(&tree("a"))));
}

#[tokio::test]
async fn nothing_that_the_service_did_not_write_is_left_over() {
    let place = Place::new();
    // A layout that a person is creating, a directory that is not a layout, and a file.
    fs::create_dir_all(place.file("blobs/sha256")).expect("directories");
    fs::write(place.file("oci-layout"), "{}").expect("a marker");
    fs::write(place.file("blobs/sha256").join("0".repeat(64)), "a blob").expect("a blob");
    fs::create_dir(place.directory.path().join("lost+found")).expect("a directory");
    fs::write(place.directory.path().join("notes"), "a file").expect("a file");
    assert_eq!(left(&place).await, []);
}

#[tokio::test]
async fn an_image_that_was_published_for_nothing_is_discarded_by_its_writer_alone() {
    let place = Place::new();
    let own = good(7);
    place.write(&own, &tree("a")).await;
    place.store.publish(&own, &tree("a")).await.expect("it is published");
    assert!(!place.store.discard(&good(6)).await.expect("an answer"), "another writer's");
    assert_eq!(place.visible().await, Some(root(&tree("a"))));
    assert!(place.store.discard(&own).await.expect("it is removed"));
    assert!(!place.file("").exists());
}
