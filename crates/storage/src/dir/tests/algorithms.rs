//! Tests of blobs with SHA-512 digests, which are in a separate directory and behave like blobs with SHA-256 digests.

use std::{collections::BTreeMap, fs, sync::Arc};

use bytes::Bytes;
use domain::{Algorithm, Descriptor, Digest, ImageName, Timestamp, Verification, leftovers};

use super::{Place, good, name, root, tree};
use crate::{Error, MANIFEST_TYPE, ManifestGraph, Memory, Presence, Source as _, Stage, Store as _};

const DIRECTORY: &str = "blobs/sha512";

fn long(content: &[u8]) -> Descriptor {
    let digest = Algorithm::Sha512.digest(content);
    Descriptor { media_type: MANIFEST_TYPE.into(), digest, size: content.len() as u64 }
}

/// Returns the same image as [`tree`], with SHA-512 digests.
fn long_tree(text: &str) -> ManifestGraph {
    let (_, content) = tree(text).manifests.remove(0);
    ManifestGraph { manifests: vec![(long(&content), content)], ..ManifestGraph::default() }
}

#[tokio::test]
async fn an_image_is_shown_by_the_digest_that_it_is_known_by() {
    let place = Place::new();
    place.write(&good(7), &tree("a")).await;
    assert!(!place.file(DIRECTORY).exists(), "only where it is needed");
    let own = good(9);
    place.write(&own, &long_tree("a")).await;
    place.store.publish(&own, &long_tree("a")).await.expect("it is published");
    assert_eq!(place.visible().await, Some(root(&long_tree("a"))));
    assert!(place.file(DIRECTORY).join(root(&long_tree("a")).hex()).exists());
    assert_eq!(place.unfinished(), Vec::<String>::new());
}

#[tokio::test]
async fn what_has_another_digest_is_neither_written_nor_read() {
    let place = Place::new();
    let own = good(7);
    place.store.prepare(&own).await.expect("it is prepared");
    let blob = long(b"right");
    let refused = place.store.write_manifest(&own, &blob, Bytes::from_static(b"wrong")).await;
    assert!(matches!(refused, Err(Error::DigestMismatch { .. })), "{refused:?}");
    assert_eq!(place.unfinished(), Vec::<String>::new());
    place.store.write_manifest(&own, &blob, Bytes::from_static(b"right")).await.expect("it is written");
    assert_eq!(place.store.stat_blob(&own, &blob).await.expect("an answer"), Presence::Whole(Verification::Verified));
    fs::write(place.file(DIRECTORY).join(blob.digest.hex()), "wrong").expect("it is damaged");
    assert_eq!(place.store.stat_blob(&own, &blob).await.expect("an answer"), Presence::Absent);
    match place.store.read_manifest(&name(), &blob).await {
        Err(Error::DigestMismatch { expected, actual, .. }) => {
            assert_eq!((expected, *actual), (blob.digest, Algorithm::Sha512.digest(b"wrong")));
        }
        other => panic!("{other:?}"),
    }
}

/// The beginning of a large blob that an earlier claim left is resumed, in the directory of either algorithm.
#[tokio::test]
async fn a_beginning_is_found_in_its_own_directory() {
    let place = Place::new();
    let blob = Descriptor { size: 100 << 20, ..long(b"large") };
    let other = Descriptor { digest: Digest::Sha512([1; 64]), ..blob.clone() };
    place.store.prepare(&good(7)).await.expect("it is prepared");
    assert_eq!(
        place.store.stat_blob(&good(7), &blob).await.expect("an answer"),
        Presence::Absent,
        "nor is its directory"
    );
    fs::create_dir(place.file(DIRECTORY)).expect("a directory");
    let begun = place.file(DIRECTORY).join(format!("{}.7-0.begun", blob.digest.hex()));
    fs::write(&begun, "the beginning").expect("an unfinished blob");
    let next = good(9);
    place.store.prepare(&next).await.expect("it is prepared");
    assert_eq!(place.store.stat_blob(&next, &blob).await.expect("an answer"), Presence::Part(13));
    assert_eq!(place.store.stat_blob(&next, &other).await.expect("an answer"), Presence::Absent);
    fs::write(place.file(DIRECTORY).join(format!("{}.7-1.partial", blob.digest.hex())), "x").expect("another one");
    place.store.prepare(&good(11)).await.expect("it is prepared");
    assert_eq!(place.unfinished().len(), 1, "what is not resumed goes");
    let session = format!(r#"{{"name":"a","digest":"{}"}}"#, blob.digest);
    place.store.abort(&session).await.expect("it is given up");
    assert!(!begun.exists());
}

#[tokio::test]
async fn what_is_left_over_goes_with_its_directory() {
    let place = Place::new();
    place.write(&good(7), &long_tree("a")).await;
    fs::write(place.file(DIRECTORY).join(format!("{}.7-99.partial", "0".repeat(128))), "x")
        .expect("an unfinished blob");
    let foreign = place.file(DIRECTORY).join("0".repeat(64));
    fs::write(&foreign, "no blob by SHA-512").expect("a foreign file");
    let left = async || {
        let found = place.store.find_leftovers().await.expect("it is looked at");
        leftovers(found, &BTreeMap::new(), Timestamp::from_millis(i64::MAX))
    };
    let found = left().await;
    assert!(place.store.clear_leftover(&found[0]).await.expect("it is removed"));
    let kept: Vec<_> = fs::read_dir(place.file(DIRECTORY)).expect("a directory").flatten().collect();
    assert_eq!(kept.iter().map(fs::DirEntry::path).collect::<Vec<_>>(), std::slice::from_ref(&foreign));
    assert!(!place.file("blobs/sha256").exists());
    fs::remove_file(foreign).expect("it was there");
    place.write(&good(9), &long_tree("a")).await;
    assert!(place.store.clear_leftover(&left().await[0]).await.expect("it is removed"));
    assert!(!place.file("").exists());
}

/// A blob of another image in the directory is linked.
#[tokio::test]
async fn a_blob_of_another_image_is_taken_from_there() {
    let place = Place::new();
    let lender = good(7);
    place.write(&lender, &long_tree("a")).await;
    place.store.publish(&lender, &long_tree("a")).await.expect("it is published");
    let own = Stage::new(ImageName("b".to_owned()), 8, Arc::<Memory>::default());
    place.store.prepare(&own).await.expect("it is prepared");
    place.store.is_complete(&own, &long_tree("a")).await.expect("an answer");
    let (blob, _) = &long_tree("a").manifests[0];
    let found = place.store.stat_blob(&own, blob).await.expect("an answer");
    assert_eq!(found, Presence::Whole(Verification::Verified));
    let linked = place.directory.path().join("b").join(DIRECTORY).join(blob.digest.hex());
    assert!(linked.exists());
}
