//! Database servers that stop responding, and connections that were cut: every query ends by its deadline, and succeeds
//! once the server is reachable again.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use appferry::{
    acs3::Nonce,
    db::{
        ClaimRequest, Db, ImageFilter, LaneCapacity, NameConflictPolicy, Publication, ReadBlob, RegionName, Report,
        Settings, StrayUpload, SynchronizationFilter,
    },
    domain::{Digest, EcsCopy, Event, Fault, FaultKind, ImageId, ImageName, RegionId, Timestamp, Verification},
};
use futures_util::future::BoxFuture;

use super::{DONE, Fixture, LEASE, THREE, add, ask, claim, image, image_id, region, regions, worker};
use crate::harness::{database::Kind, tcp_proxy::TcpProxy, until};

on_every_database! {
    whatever_is_asked_of_a_silent_server_ends_in_time
    the_first_question_after_a_pause_does_not_pay_for_a_cut
}

/// Deadline of one query.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Upper bound for several dependent queries on a loaded machine.
const IN_TIME: Duration = Duration::from_secs(20);

/// Starts a proxy in front of a database, and returns settings that connect through it.
async fn behind_a_switch(kind: Kind, fixture: &mut Fixture) -> (TcpProxy, Settings) {
    let url = url::Url::parse(&fixture.url).expect("a URL");
    let tcp_proxy = TcpProxy::start(url.port().expect("a port")).await;
    let mut through = url.clone();
    through.set_port(Some(tcp_proxy.address.port())).expect("it has a port");
    assert!(kind != Kind::Sqlite);
    // Allows a single connection for reads, so that no later read succeeds if a query leaks the connection.
    let settings = Settings::new(through.to_string());
    (tcp_proxy, Settings { timeout: TIMEOUT, acquire_timeout: TIMEOUT / 2, readers: 1, ..settings })
}

/// Builds a list of calls of methods, each with the method's name. A call returns whether it succeeded.
macro_rules! calls {
    ($state:ident: $($name:ident($($argument:expr),*);)*) => {
        vec![$((stringify!($name), {
            let state = $state.clone();
            Box::pin(async move { state.$name($($argument),*).await.is_ok() }) as BoxFuture<'static, bool>
        })),*]
    };
}

/// Returns one call of every method of `Db` that queries the database.
fn questions(state: &Db) -> Vec<(&'static str, BoxFuture<'static, bool>)> {
    let (a, one, blob) = (|| image_id("a"), || region("one"), Digest::Sha256([9; 32]));
    let copy = || EcsCopy::first(Timestamp::from_millis(1));
    let nonce = || Nonce { access_key_id: "k".into(), value: "v".into(), until: Timestamp::from_millis(1) };
    let fault = || Fault { kind: FaultKind::Store, message: "m".into() };
    let report = || Report { region: region("one"), event: Event::Release { fence: 1 } };
    let stray = || StrayUpload { id: "i".into(), session: "s".into(), attempts: 0 };
    let id = appferry::new_request_id();
    let (held_image, held_region): (&ImageId, &RegionId) = (Box::leak(Box::new(a())), Box::leak(Box::new(one())));
    let held_name: &ImageName = Box::leak(Box::new(ImageName("images:a".into())));
    let name = move || held_name;
    let publication = move || Publication {
        image: held_image,
        region: held_region,
        fence: 1,
        name: held_name,
        location: None,
        root: blob,
    };
    let read = move || ReadBlob { region: held_region, location: "images", blob };
    let limits = || BTreeMap::from([(region("one"), 1)]);
    let order = ClaimRequest {
        owner: Box::leak(Box::new(worker("w"))),
        lanes: Box::leak(Box::new(BTreeMap::from([(region("one"), LaneCapacity { primary: 1, total: 1 })]))),
        lease: LEASE,
        limits: Box::leak(Box::new(limits())),
        draw: 0,
    };
    calls! { state:
        accept(ask(&a(), &["one"]));
        blob_record_reading(read(), None);
        blob_reading(read());
        blobs_record_written(&a(), &one(), 1, &[blob]);
        blobs_written(&a(), &one());
        copies_in_flight(&worker("w"));
        ecs_copies(&[&a()]);
        ecs_copy_abandon(&a(), &one());
        ecs_copy_abandoned();
        ecs_copy_begin(&a(), &one(), 1);
        ecs_copy_clear_discarded(&a(), &one(), &"m-1".parse().expect("an id"));
        ecs_copy_forget(&a(), &one());
        ecs_copy_record_image(&a(), &one(), &copy());
        ecs_copy_save(&a(), &one(), 1, &copy());
        leader_resign(&worker("w"));
        leader_acquire(&worker("w"), LEASE);
        image_add(&image("b"));
        image_add_as(&image("c"), NameConflictPolicy::Supersede(&[one()]));
        image_get(&a());
        image_list(&ImageFilter::default(), None, THREE, true);
        image_remove(&a());
        image_versions(&ImageFilter::default(), THREE);
        image_uses(&one(), &[name().clone()]);
        images_available(&one(), None, 3);
        images_in(&one(), &a(), 3);
        nonce_prune();
        nonce_claim(&nonce());
        publication_announce(publication());
        publication_confirm(&one(), name(), blob);
        publication_complete(publication(), Some(Verification::Trusted));
        published(&[RegionName { region: one(), name: name().clone(), location: None }]);
        queues();
        ready();
        region_located(&one(), "dir:///one");
        region_stores();
        regions_seen(Duration::ZERO);
        registry_habits("registry");
        registry_habits_save("registry", "habits");
        replica_claim(order);
        replica_confirmed(&a(), &one());
        replica_damaged(&a(), &one(), fault());
        reserve_egress(&a(), &[(one(), 1, region("two"))], &limits());
        replica_holds(&a(), &one(), 1);
        restart_waits(LEASE);
        replica_renew(&a(), LEASE, &[(one(), 1, DONE)]);
        replica_report(&a(), report());
        requeue_expired();
        replicas_resume();
        replicas_suspend(&one(), &fault());
        replicas_suspended(&[one()]);
        synchronization_cancel(id);
        synchronization_get(id);
        synchronization_list(&SynchronizationFilter::default(), None, 3);
        synchronization_prune(LEASE);
        synchronization_watch(id);
        stray_upload_defer(&stray(), LEASE);
        stray_upload_forget(&stray());
        stray_upload_note(&one(), "s");
        stray_uploads_due(&one(), LEASE);
        time();
        upload_abandoned(&one());
        upload_forget(&a(), &one(), blob);
        uploads(&a(), &one());
        upload_save(&a(), &one(), 1, blob, "s");
    }
}

/// Returns the names of the methods of `Db` that query the database, parsed from its source.
fn methods() -> BTreeSet<String> {
    let mut methods = BTreeSet::new();
    let mut directories = vec![PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/crates/db/src"))];
    let mut files = Vec::new();
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("the source") {
            let path = entry.expect("a file").path();
            if path.is_dir() { directories.push(path) } else { files.push(path) }
        }
    }
    for path in files {
        let parsed = syn::parse_file(&std::fs::read_to_string(&path).expect("a text")).expect("it is Rust");
        for item in parsed.items {
            let syn::Item::Impl(block) = item else { continue };
            let syn::Type::Path(of) = &*block.self_ty else { continue };
            if !of.path.is_ident("Db") || block.trait_.is_some() {
                continue;
            }
            for item in block.items {
                if let syn::ImplItem::Fn(method) = item
                    && matches!(method.vis, syn::Visibility::Public(_))
                    && method.sig.asyncness.is_some()
                {
                    methods.insert(method.sig.ident.to_string());
                }
            }
        }
    }
    methods
}

async fn whatever_is_asked_of_a_silent_server_ends_in_time(kind: Kind) {
    if kind == Kind::Sqlite {
        return; // SQLite is not accessed over a network.
    }
    let mut fixture = Fixture::new(kind).await;
    let (tcp_proxy, settings) = behind_a_switch(kind, &mut fixture).await;
    let (state, tasks) = Db::open(&settings, regions(), fixture.stop.clone()).await.expect("it opens");
    fixture.tasks.push(tasks);
    let a = add(&state, "a").await;
    state.accept(ask(&a, &["one"])).await.expect("it is accepted");
    assert_eq!(claim(&state, "w", 1).await.len(), 1);

    let called: BTreeSet<String> = questions(&state).iter().map(|(name, _)| (*name).to_owned()).collect();
    let opening = ["open", "close", "due", "changed"].map(str::to_owned);
    assert_eq!(called.union(&opening.into()).cloned().collect::<BTreeSet<_>>(), methods(), "each is asked below");

    tcp_proxy.silence();
    let began = Instant::now();
    let mut running = tokio::task::JoinSet::new();
    for (name, question) in questions(&state) {
        running.spawn(async move { (name, question.await, began.elapsed()) });
    }
    let mut left = called;
    while let Ok(Some(ended)) = tokio::time::timeout(IN_TIME, running.join_next()).await {
        let (name, succeeded, after) = ended.expect("no panic");
        assert!(!succeeded, "{name} had an answer");
        assert!(after < IN_TIME, "{name} took {after:?}");
        left.remove(name);
    }
    assert!(left.is_empty(), "without an end: {left:?}");
    let opened = tokio::time::timeout(IN_TIME, Db::open(&settings, regions(), fixture.stop.clone())).await;
    opened.expect("it ends").expect_err("the server is silent");

    // No broken connection stays in the pool.
    tcp_proxy.resume();
    until("a successful query", async || state.image_get(&a).await.ok()).await;
    for (name, question) in questions(&state) {
        if ["image_get", "image_list", "ready", "time", "queues", "replica_claim", "nonce_claim"].contains(&name) {
            assert!(question.await, "{name}");
        }
    }
    tcp_proxy.silence();
    let _ = tokio::time::timeout(IN_TIME, state.close()).await.expect("it ends");
    tcp_proxy.cut();
    fixture.end().await;
}

/// The network or a restart of the server has cut the idle connections. The next query succeeds nevertheless.
async fn the_first_question_after_a_pause_does_not_pay_for_a_cut(kind: Kind) {
    if kind == Kind::Sqlite {
        return; // SQLite is not accessed over a network.
    }
    let mut fixture = Fixture::new(kind).await;
    let (tcp_proxy, settings) = behind_a_switch(kind, &mut fixture).await;
    let (state, tasks) = Db::open(&settings, regions(), fixture.stop.clone()).await.expect("it opens");
    fixture.tasks.push(tasks);
    for n in 0..4 {
        let name = format!("i-{n}");
        // Each round calls a different method first after the cut, because the first query repairs the connections for
        // later ones.
        tcp_proxy.cut();
        // Connections that have been idle for this long are checked before use.
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        tcp_proxy.cut();
        match n {
            0 => drop(add(&state, &name).await),
            1 => drop(state.accept(ask(&image_id("i-0"), &["one"])).await.expect("it is accepted")),
            2 => drop(state.image_get(&image_id("i-0")).await.expect("it is there")),
            _ => assert_eq!(claim(&state, "w", 1).await.len(), 1),
        }
    }
    fixture.end().await;
}
