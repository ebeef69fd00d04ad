//! Lists and lookups.

use appferry::{
    db::{Error, ImageFilter, PageRange, SynchronizationFilter},
    domain::{Image, ImageKind, SynchronizationState, Timestamp},
};

use super::{Fixture, THREE, add, ask, image, image_id};
use crate::harness::database::Kind;

on_every_database! {
    ids_differ_in_case_and_lists_are_in_order
    images_are_found_by_what_is_known_of_them
}

async fn ids_differ_in_case_and_lists_are_in_order(kind: Kind) {
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    for id in ["ci-vm-b", "ci-vm-A", "ci-vm-a", "ci-vm-B", "Zz"] {
        add(&state, id).await;
    }
    let page = state.image_list(&ImageFilter::default(), None, THREE, false).await.expect("a page");
    let ids = |page: &appferry::db::ImagePage| page.images.iter().map(|(i, _)| i.id.to_string()).collect::<Vec<_>>();
    assert_eq!((ids(&page), page.more), (vec!["Zz".to_owned(), "ci-vm-A".into(), "ci-vm-B".into()], true));
    let rest =
        state.image_list(&ImageFilter::default(), Some(&image_id("ci-vm-B")), THREE, false).await.expect("a page");
    assert_eq!((ids(&rest), rest.more), (vec!["ci-vm-a".to_owned(), "ci-vm-b".into()], false));
    assert!(matches!(state.image_get(&image_id("zz")).await, Err(Error::ImageNotFound(_))));
    let (a, capital) = (image_id("ci-vm-a"), image_id("ci-vm-A"));
    let mut requests = Vec::new();
    for image in [&a, &capital, &a, &a] {
        requests.push(state.accept(ask(image, &["one"])).await.expect("it is accepted"));
    }
    state.synchronization_cancel(requests[1]).await.expect("it is canceled");
    let list = async |filter: SynchronizationFilter, before, limit| {
        let page = state.synchronization_list(&filter, before, limit).await.expect("a page");
        (page.synchronizations.iter().map(|s| s.request_id).collect::<Vec<_>>(), page.more)
    };
    let newest_first = [3, 2, 1, 0].map(|place| requests[place]);
    assert_eq!(list(SynchronizationFilter::default(), None, 10).await, (newest_first.to_vec(), false));
    assert_eq!(list(SynchronizationFilter::default(), None, 2).await, (newest_first[..2].to_vec(), true));
    assert_eq!(list(SynchronizationFilter::default(), Some(requests[2]), 2).await, (newest_first[2..].to_vec(), false));
    let of_a = SynchronizationFilter { image: Some(a), state: None };
    assert_eq!(list(of_a, None, 10).await.0, [3, 2, 0].map(|place| requests[place]));
    let canceled = SynchronizationFilter { image: None, state: Some(SynchronizationState::Canceled) };
    assert_eq!(list(canceled, None, 10).await.0, [requests[1]]);
    let running = SynchronizationFilter { image: Some(capital), state: Some(SynchronizationState::Running) };
    assert_eq!(list(running, None, 10).await.0, []);
    assert!(matches!(
        state.image_add(&state.image_get(&image_id("Zz")).await.expect("it is there").0).await,
        Err(Error::ImageExists(_))
    ));
    fixture.end().await;
}

async fn images_are_found_by_what_is_known_of_them(kind: Kind) {
    use ImageKind::{Container, Vm};
    let mut fixture = Fixture::new(kind).await;
    let state = fixture.process().await;
    let images = [
        ("a", "gromacs", "1", Vm, 10),
        ("b", "gromacs", "2", Vm, 30),
        ("c", "gromacs", "3", Vm, 20),
        ("d", "gromacs", "4", Container, 5),
        ("e", "Gromacs", "5", Vm, 7),
        ("f", "lammps", "6", Container, 9),
        ("g", "lammps", "7", Container, 9),
    ];
    for (id, name, version, kind, created) in images {
        let created_at = Timestamp::from_millis(created);
        let image = Image { name: name.into(), version: version.into(), kind, created_at, ..image(id) };
        state.image_add(&image).await.expect("it is added");
    }
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let gromacs = || ImageFilter { names: names(&["gromacs"]), ..ImageFilter::default() };
    let latest = || ImageFilter { latest_only: true, ..ImageFilter::default() };
    for (filter, expected) in [
        (ImageFilter::default(), "abcdefg"),
        (ImageFilter { ids: vec![image_id("c"), image_id("x")], ..ImageFilter::default() }, "c"),
        (gromacs(), "abcd"),
        (ImageFilter { names: names(&["lammps", "Gromacs"]), ..ImageFilter::default() }, "efg"),
        (ImageFilter { kind: Some(Container), ..gromacs() }, "d"),
        // Of images that were created at the same time, the one with the highest id is the latest.
        (latest(), "bdeg"),
        (ImageFilter { kind: Some(Container), ..latest() }, "dg"),
        (ImageFilter { latest_only: true, ..gromacs() }, "bd"),
    ] {
        let mut ids = String::new();
        let (mut skip, limit) = (0, 2);
        loop {
            let page = state.image_list(&filter, None, PageRange { skip, limit }, true).await.expect("a page");
            assert_eq!(page.total, Some(expected.len() as u64), "{filter:?}");
            ids.extend(page.images.iter().map(|(image, _)| image.id.to_string()));
            if !page.more {
                break;
            }
            skip += limit;
        }
        assert_eq!(ids, expected, "{filter:?}");
    }
    let (versions, total) = state.image_versions(&gromacs(), PageRange { skip: 1, limit: 2 }).await.expect("versions");
    assert_eq!((versions.iter().map(|i| i.version.as_str()).collect::<Vec<_>>(), total), (vec!["3", "1"], 4));
    fixture.end().await;
}
