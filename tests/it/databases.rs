//! One suite for every database that the state is kept in. Each test stands on a database of its own; where it speaks of processes,
//! each has a state, connections and tasks of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use appferry::{
    domain::{
        ClientToken, Clock, Content, Descriptor, Digest, EcsCopy, EcsImageId, Event, Fault, FaultKind, Image, ImageId,
        ImageKind, ImageName, Progress, RegionId, RegionStatus, Regions, RequestId, Stale, Synchronization,
        SynchronizationState, Targets, Timestamp, WorkerId,
    },
    identity::acs3::Nonce,
    state::{Ask, Claim, Error, Filter, ImageFilter, Order, Report, Settings, Span, State, Tasks},
};
use sea_orm::ConnectionTrait as _;
use tokio_util::sync::CancellationToken;

use crate::harness::{
    database::{self, Kind},
    history, until,
};

/// Long enough never to run out in a test.
const LEASE: Duration = Duration::from_secs(600);
/// Short enough to run out in one.
const SHORT: Duration = Duration::from_millis(200);

/// Three entries, and none left out.
const THREE: Span = Span { skip: 0, limit: 3 };

/// A database, with as many processes on it as a test needs.
struct Bench {
    directory: tempfile::TempDir,
    url: String,
    stop: CancellationToken,
    tasks: Vec<Tasks>,
}

fn region(name: &str) -> RegionId {
    name.parse().expect("an id")
}

fn image_id(name: &str) -> ImageId {
    name.parse().expect("an id")
}

fn regions() -> Regions {
    Regions::new(region("home"), ["one", "two", "three"].map(region))
}

impl Bench {
    async fn new(kind: Kind) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let url = database::fresh(kind, directory.path()).await;
        history::record(&url).await;
        Self { directory, url, stop: CancellationToken::new(), tasks: Vec::new() }
    }

    async fn process(&mut self) -> State {
        self.process_with(|settings| settings).await
    }

    async fn process_with(&mut self, change: impl FnOnce(Settings) -> Settings) -> State {
        let settings = change(Settings::new(self.url.clone()));
        let (state, tasks) = State::open(&settings, regions(), self.stop.clone()).await.expect("it opens");
        self.tasks.push(tasks);
        state
    }

    /// Ends every process, and looks whether all that has happened was allowed to.
    async fn end(self) {
        self.stop.cancel();
        for tasks in self.tasks {
            tasks.join().await;
        }
        let replayed = history::replay(&self.url, &[LEASE, SHORT]).await;
        println!("{replayed:?}");
        drop(self.directory);
    }
}

fn image(id: &str) -> Image {
    Image {
        id: image_id(id),
        name: "gromacs".into(),
        version: "2026.1".into(),
        description: "äöü \u{1F6A2} 'quoted' \\ and \"more\"".into(),
        kind: ImageKind::Vm,
        source: ImageName("n".into()),
        home: region("home"),
        content: Content::Blobs(Descriptor { media_type: "m".into(), digest: Digest::new([7; 32]), size: 5 }),
        size: 1_000,
        created_at: Clock::system().now(),
    }
}

async fn add(state: &State, id: &str) -> ImageId {
    let image = image(id);
    state.image_add(&image).await.expect("it is added");
    image.id
}

fn ask(image: &ImageId, targets: &[&str]) -> Ask {
    let named = || Targets::Named(targets.iter().map(|name| region(name)).collect());
    Ask {
        request_id: RequestId::generate(),
        image: image.clone(),
        targets: if targets.is_empty() { Targets::All } else { named() },
        principal: "acs:ram::1:user/a".into(),
        token: None,
        trace: None,
    }
}

fn with_token(ask: Ask, token: &str) -> Ask {
    Ask { token: Some(token.parse::<ClientToken>().expect("a token")), ..ask }
}

fn worker(name: &str) -> WorkerId {
    WorkerId(name.into())
}

/// Claims for all regions, with no limits.
async fn claim(state: &State, owner: &str, images: usize) -> Vec<Claim> {
    claim_within(state, owner, images, LEASE, &BTreeMap::new(), 0).await
}

async fn claim_within(
    state: &State,
    owner: &str,
    images: usize,
    lease: Duration,
    limits: &BTreeMap<RegionId, usize>,
    draw: usize,
) -> Vec<Claim> {
    let all: Vec<RegionId> = ["one", "two", "three"].map(region).to_vec();
    let order = Order { owner: &worker(owner), regions: &all, lease, images, limits, draw };
    state.replica_claim(order).await.expect("it can be claimed")
}

const DONE: Progress = Progress { total: 1_000, copied: 900, skipped: 100 };

async fn verify(state: &State, image: &ImageId, to: &RegionId, fence: u64) -> Result<(), Stale> {
    let report = Report { region: to.clone(), event: Event::Verified { fence, progress: DONE } };
    state.replica_report(image, report).await.expect("it can be reported")
}

async fn get(state: &State, id: RequestId) -> Synchronization {
    state.synchronization_get(id).await.expect("it is known")
}

fn status(synchronization: &Synchronization, of: &str) -> RegionStatus {
    synchronization.regions.iter().find(|view| view.region.as_str() == of).expect("the region").status
}

async fn a_call_goes_to_its_end(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let state = bench.process().await;
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

    // The one that failed starts afresh, with a higher fence; the one that is there is not asked for again.
    let again = state.accept(ask(&a, &[])).await.expect("it is accepted");
    let running = get(&state, again).await;
    let asked: Vec<_> = running.regions.iter().map(|view| (view.region.as_str(), view.status)).collect();
    assert_eq!(asked, [("three", RegionStatus::Pending), ("two", RegionStatus::Pending)]);
    let claims = claim(&state, "w", 5).await;
    assert_eq!(claims[0].available, [region("one")]);
    for claimed in &claims[0].regions {
        assert!(claimed.region != two.region || claimed.fence > two.fence);
        verify(&state, &a, &claimed.region, claimed.fence).await.expect("it is in time");
    }
    assert_eq!(get(&state, again).await.state, SynchronizationState::Succeeded);
    assert_eq!(get(&state, id).await, ended, "what became of a call stays");
    assert!(matches!(
        state.accept(ask(&a, &["one"])).await,
        Err(Error::ImageAlreadyThere { regions, .. }) if regions == [region("one")]
    ));
    let nothing_left = state.accept(ask(&a, &[])).await.expect("it is accepted");
    assert_eq!(get(&state, nothing_left).await.state, SynchronizationState::Succeeded);
    bench.end().await;
}

async fn a_token_names_one_call(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let (state, other) = (bench.process().await, bench.process().await);
    let a = add(&state, "a").await;
    let first = state.accept(with_token(ask(&a, &["one"]), "t")).await.expect("it is accepted");
    let again = other.accept(with_token(ask(&a, &["one"]), "t")).await.expect("it is accepted");
    assert_eq!(again, first);
    let differs = other.accept(with_token(ask(&a, &["two"]), "t")).await;
    assert!(matches!(differs, Err(Error::TokenReused(id)) if id == first), "{differs:?}");
    let in_capitals = other.accept(with_token(ask(&a, &["one"]), "T")).await.expect("it is accepted");
    assert_ne!(in_capitals, first, "tokens differ in case");
    let somebody_else = Ask { principal: "acs:ram::1:user/b".into(), ..with_token(ask(&a, &["one"]), "t") };
    assert_ne!(state.accept(somebody_else).await.expect("it is accepted"), first);

    // Both at once, from two processes, many times: one call each.
    for round in 0..30 {
        let token = format!("round-{round}");
        let one = with_token(ask(&a, &["one"]), &token);
        let two = with_token(ask(&a, &["one"]), &token);
        let (one, two) = tokio::join!(state.accept(one), other.accept(two));
        assert_eq!(one.expect("it is accepted"), two.expect("it is accepted"));
    }
    bench.end().await;
}

async fn ids_differ_in_case_and_lists_are_in_order(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let state = bench.process().await;
    for id in ["ci-vm-b", "ci-vm-A", "ci-vm-a", "ci-vm-B", "Zz"] {
        add(&state, id).await;
    }
    let page = state.image_list(&ImageFilter::default(), None, THREE, false).await.expect("a page");
    let ids = |page: &appferry::state::ImagePage| page.images.iter().map(|(i, _)| i.id.to_string()).collect::<Vec<_>>();
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
    let list = async |filter: Filter, before, limit| {
        let page = state.synchronization_list(&filter, before, limit).await.expect("a page");
        (page.synchronizations.iter().map(|s| s.request_id).collect::<Vec<_>>(), page.more)
    };
    let newest_first = [3, 2, 1, 0].map(|place| requests[place]);
    assert_eq!(list(Filter::default(), None, 10).await, (newest_first.to_vec(), false));
    assert_eq!(list(Filter::default(), None, 2).await, (newest_first[..2].to_vec(), true));
    assert_eq!(list(Filter::default(), Some(requests[2]), 2).await, (newest_first[2..].to_vec(), false));
    let of_a = Filter { image: Some(a), state: None };
    assert_eq!(list(of_a, None, 10).await.0, [3, 2, 0].map(|place| requests[place]));
    let canceled = Filter { image: None, state: Some(SynchronizationState::Canceled) };
    assert_eq!(list(canceled, None, 10).await.0, [requests[1]]);
    let running = Filter { image: Some(capital), state: Some(SynchronizationState::Running) };
    assert_eq!(list(running, None, 10).await.0, []);
    assert!(matches!(
        state.image_add(&state.image_get(&image_id("Zz")).await.expect("it is there").0).await,
        Err(Error::ImageExists(_))
    ));
    bench.end().await;
}

async fn images_are_found_by_what_is_known_of_them(kind: Kind) {
    use ImageKind::{Container, Vm};
    let mut bench = Bench::new(kind).await;
    let state = bench.process().await;
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
        // Of those that were registered at the same time, the one with the higher id.
        (latest(), "bdeg"),
        (ImageFilter { kind: Some(Container), ..latest() }, "dg"),
        (ImageFilter { latest_only: true, ..gromacs() }, "bd"),
    ] {
        let mut found = String::new();
        let (mut skip, limit) = (0, 2);
        loop {
            let page = state.image_list(&filter, None, Span { skip, limit }, true).await.expect("a page");
            assert_eq!(page.total, Some(expected.len() as u64), "{filter:?}");
            found.extend(page.images.iter().map(|(image, _)| image.id.to_string()));
            if !page.more {
                break;
            }
            skip += limit;
        }
        assert_eq!(found, expected, "{filter:?}");
    }
    let (versions, total) = state.image_versions(&gromacs(), Span { skip: 1, limit: 2 }).await.expect("versions");
    assert_eq!((versions.iter().map(|i| i.version.as_str()).collect::<Vec<_>>(), total), (vec!["3", "1"], 4));
    bench.end().await;
}

async fn a_claim_that_ran_out_is_overtaken(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let (state, other) = (bench.process().await, bench.process().await);
    let a = add(&state, "a").await;
    let id = state.accept(ask(&a, &["one"])).await.expect("it is accepted");
    let first = claim_within(&state, "late", 1, SHORT, &BTreeMap::new(), 0).await.remove(0).regions.remove(0);
    let second = until("the lease's end", async || {
        claim(&other, "next", 1).await.pop().map(|mut claim| claim.regions.remove(0))
    })
    .await;
    assert!(second.fence > first.fence);
    assert_eq!(second.attempt, 2);
    // Whatever the late one tries, nothing changes.
    let before = get(&state, id).await;
    let fault = Fault { kind: FaultKind::Store, message: "late".into() };
    let faulted = Event::Faulted { fence: first.fence, fault, retry_after: None, progress: DONE };
    let attempts = [
        Event::Verified { fence: first.fence, progress: DONE },
        faulted,
        Event::Release { fence: first.fence },
        Event::Renew { fence: first.fence, lease: LEASE, progress: DONE },
    ];
    for event in attempts {
        let report = Report { region: first.region.clone(), event };
        assert_eq!(state.replica_report(&a, report).await.expect("it answers"), Err(Stale));
    }
    let noted = state.upload_note(&a, &first.region, first.fence, Digest::new([1; 32]), "s").await.expect("it answers");
    assert_eq!(noted, Err(Stale));
    assert!(!state.replica_holds(&a, &first.region, first.fence).await.expect("it answers"));
    assert_eq!(get(&state, id).await, before);
    verify(&other, &a, &second.region, second.fence).await.expect("it is in time");
    assert_eq!(get(&state, id).await.state, SynchronizationState::Succeeded);
    bench.end().await;
}

async fn one_image_with_many_regions_starves_no_other(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let state = bench.process().await;
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

    // Region two takes two copies at a time, whoever claims; what waits for it keeps nobody else waiting.
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
    // When one has ended, the next that has waited longest follows.
    let ended = claimed.iter().find(|(_, to)| to == "two").expect("one").clone();
    let held = state.image_get(&image_id(&ended.0)).await.expect("it is there").1;
    let fence = held.iter().find(|(r, _)| r.as_str() == "two").expect("the replica").1.fence;
    verify(&state, &image_id(&ended.0), &region("two"), fence).await.expect("it is in time");
    let next = claim_within(&state, "w", 3, LEASE, &two_limited, 0).await;
    let longest = images.iter().find(|image| !claimed.contains(&(image.to_string(), "two".to_owned()))).expect("one");
    assert_eq!(next.iter().map(|claim| &claim.id).collect::<Vec<_>>(), [longest]);
    bench.end().await;
}

/// Four processes that claim at the same time what goes to a region that takes three copies.
async fn limits_hold_across_processes(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let mut processes = Vec::new();
    for _ in 0..4 {
        processes.push(bench.process().await);
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
    bench.end().await;
}

/// Two regions whose names differ in case alone are two, with limits of their own.
async fn regions_differ_in_case(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let both = Regions::new(region("home"), ["one", "ONE"].map(region));
    let (state, tasks) =
        State::open(&Settings::new(bench.url.clone()), both, bench.stop.clone()).await.expect("it opens");
    bench.tasks.push(tasks);
    let limits: BTreeMap<_, _> = [(region("one"), 1), (region("ONE"), 1)].into();
    for n in 0..3 {
        let image = add(&state, &format!("i-{n}")).await;
        state.accept(ask(&image, &["one", "ONE"])).await.expect("it is accepted");
    }
    let all = ["one", "ONE"].map(region);
    let mut claimed = Vec::new();
    for draw in 0..6 {
        let order = Order { owner: &worker("w"), regions: &all, lease: LEASE, images: 5, limits: &limits, draw };
        let claims = state.replica_claim(order).await.expect("it can be claimed");
        claimed.extend(claims.into_iter().flat_map(|claim| claim.regions).map(|claimed| claimed.region));
    }
    claimed.sort_unstable();
    assert_eq!(claimed, [region("ONE"), region("one")], "one copy into each");
    bench.end().await;
}

/// A region that feeds as many as it may, for one process, feeds none for another.
async fn a_source_is_shared_by_all_processes(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let (here, there) = (bench.process().await, bench.process().await);
    let limits: BTreeMap<_, _> = [(region("home"), 3)].into();
    let mut claims = Vec::new();
    for (name, state) in [("a", &here), ("b", &there)] {
        let image = add(state, name).await;
        state.accept(ask(&image, &[])).await.expect("it is accepted");
        claims.push(claim(state, name, 1).await.remove(0));
    }
    let wanted = |claim: &Claim| -> Vec<_> {
        claim.regions.iter().map(|c| (c.region.clone(), c.fence, region("home"))).collect()
    };
    let (first, second) = (wanted(&claims[0]), wanted(&claims[1]));
    // Both at once: three together, and no more.
    let (one, two) = tokio::join!(
        here.replica_feed(&claims[0].id, &first, &limits),
        there.replica_feed(&claims[1].id, &second, &limits)
    );
    let (one, two) = (one.expect("it answers"), two.expect("it answers"));
    assert_eq!(one.len() + two.len(), 3, "{one:?} {two:?}");
    let underway = here.copies_underway(&worker("a")).await.expect("it answers");
    let from_home: u32 = underway.iter().filter(|u| u.from == Some(region("home"))).map(|u| u.copies).sum();
    let ours: u32 = underway.iter().filter(|u| u.ours).map(|u| u.copies).sum();
    assert_eq!((from_home, ours), (3, 3), "{underway:?}");
    // When one has ended, one more may be.
    let (fed, fed_by) = if one.is_empty() { (&two, 1) } else { (&one, 0) };
    let ended = claims[fed_by].regions.iter().find(|c| c.region == fed[0]).expect("it was claimed");
    verify(&here, &claims[fed_by].id, &ended.region, ended.fence).await.expect("it is in time");
    let waiting: Vec<_> = first.iter().filter(|(to, ..)| !one.contains(to)).cloned().collect();
    let more = here.replica_feed(&claims[0].id, &waiting, &limits).await.expect("it answers");
    let waiting_too: Vec<_> = second.iter().filter(|(to, ..)| !two.contains(to)).cloned().collect();
    let more_too = there.replica_feed(&claims[1].id, &waiting_too, &limits).await.expect("it answers");
    assert_eq!(more.len() + more_too.len(), 1, "{more:?} {more_too:?}");
    bench.end().await;
}

/// An image is removed while others ask for it: either it is in use, or whoever asked is told that it has gone. Nobody waits for ever.
async fn an_image_that_is_removed_leaves_nobody_waiting(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let (here, there) = (bench.process().await, bench.process().await);
    let mut accepted = Vec::new();
    for round in 0..40 {
        let image = add(&here, &format!("i-{round}")).await;
        let (asked, removed) = tokio::join!(here.accept(ask(&image, &["one"])), async {
            tokio::time::sleep(Duration::from_micros(round * 50)).await;
            there.image_remove(&image).await
        });
        match (asked, removed) {
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
                    Some(_) => Event::Verified { fence, progress: DONE },
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
    bench.end().await;
}

/// Several processes accept, join, cancel, carry and fail the same few images at once. Nothing that happens in between may show:
/// every call is answered, and every accepted one ends.
async fn many_processes_at_once_lose_nothing(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let mut processes = Vec::new();
    for _ in 0..3 {
        processes.push(bench.process().await);
    }
    let mut images = Vec::new();
    for n in 0..12 {
        images.push(add(&processes[0], &format!("i-{n}")).await);
    }
    let done = CancellationToken::new();
    let mut workers = tokio::task::JoinSet::new();
    for (number, state) in processes.iter().enumerate() {
        let (state, done) = (state.clone(), done.clone());
        workers.spawn(async move {
            let mut round = number;
            loop {
                round += 1;
                let claims = claim_within(&state, &format!("w-{number}"), 4, LEASE, &BTreeMap::new(), round).await;
                if claims.is_empty() {
                    if done.is_cancelled() {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
                let mut reports = tokio::task::JoinSet::new();
                for claim in claims {
                    for (place, claimed) in claim.regions.into_iter().enumerate() {
                        let (state, image) = (state.clone(), claim.id.clone());
                        let fails = (round + place) % 3 == 0;
                        reports.spawn(async move {
                            let fence = claimed.fence;
                            let fault = Fault { kind: FaultKind::Store, message: "planned".into() };
                            let event = if fails {
                                Event::Faulted { fence, fault, retry_after: None, progress: DONE }
                            } else {
                                Event::Verified { fence, progress: DONE }
                            };
                            let report = Report { region: claimed.region, event };
                            // It may have been canceled meanwhile.
                            let _ = state.replica_report(&image, report).await.expect("it can be reported");
                        });
                    }
                }
                reports.join_all().await;
            }
        });
    }
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..24 {
        let state = processes[caller % processes.len()].clone();
        let images = images.clone();
        callers.spawn(async move {
            let mut accepted = Vec::new();
            for call in 0..12 {
                let image = &images[(caller * 5 + call * 7) % images.len()];
                let targets: &[&str] = [&["one", "two", "three"][..], &["two"], &[]][(caller + call) % 3];
                match state.accept(ask(image, targets)).await {
                    Ok(id) => accepted.push(id),
                    Err(Error::ImageAlreadyThere { .. }) => {}
                    Err(error) => panic!("{}", appferry::domain::with_causes(&error)),
                }
                if call % 4 == 3
                    && let Some(id) = accepted.last()
                {
                    state
                        .synchronization_cancel(*id)
                        .await
                        .unwrap_or_else(|e| panic!("{}", appferry::domain::with_causes(&e)));
                }
            }
            accepted
        });
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
    bench.end().await;
}

/// A call that the database refuses is refused alone.
async fn a_call_that_can_t_be_written_fails_alone(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let state = bench.process().await;
    let a = add(&state, "a").await;
    // SQLite takes a name of any length, and a trigger takes the place of the column's.
    if kind == Kind::Sqlite {
        let db = database::look(&bench.url).await;
        let trigger = "CREATE TRIGGER no_long BEFORE INSERT ON synchronization WHEN length(NEW.principal) > 256 \
                       BEGIN SELECT RAISE(ABORT, 'too long'); END";
        db.execute_unprepared(trigger).await.expect("a trigger");
        db.close().await.expect("it is closed");
    }
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..64 {
        let principal = if n == 31 { "p".repeat(300) } else { "p".to_owned() };
        let (state, ask) = (state.clone(), Ask { principal, ..ask(&a, &["one"]) });
        calls.spawn(async move { (n, state.accept(ask).await) });
    }
    for (n, answer) in calls.join_all().await {
        match answer {
            Ok(_) => assert_ne!(n, 31),
            Err(error) => assert_eq!((n, error.is_temporary()), (31, false), "{error:?}"),
        }
    }
    let page = state.synchronization_list(&Filter::default(), None, 1_000).await.expect("a page");
    assert_eq!(page.synchronizations.len(), 63);
    bench.end().await;
}

async fn a_watcher_sees_what_another_process_does(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let (here, there) = (bench.process().await, bench.process().await);
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
    bench.end().await;
}

async fn a_worker_hears_of_what_another_process_accepts(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let (here, there) = (bench.process().await, bench.process().await);
    let a = add(&here, "a").await;
    let mut seen = 0;
    // Whatever was told before.
    while tokio::time::timeout(Duration::from_millis(700), there.due(&mut seen, Duration::from_secs(60))).await.is_ok()
    {
    }
    here.accept(ask(&a, &["one"])).await.expect("it is accepted");
    let heard =
        tokio::time::timeout(Duration::from_secs(2), there.due(&mut seen, Duration::from_secs(60))).await.is_ok();
    assert_eq!(heard, kind == Kind::Postgres, "PostgreSQL tells; with the others, workers look by themselves");
    bench.end().await;
}

async fn house_is_kept_by_one(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let (one, two) = (bench.process().await, bench.process().await);
    let (first, second) = (worker("first"), worker("second"));
    assert!(one.housekeeping_take(&first, LEASE).await.expect("it answers"));
    assert!(!two.housekeeping_take(&second, LEASE).await.expect("it answers"));
    assert!(one.housekeeping_take(&first, Duration::from_millis(200)).await.expect("it answers"), "it is renewed");
    until("the next one's turn", async || {
        two.housekeeping_take(&second, LEASE).await.expect("it answers").then_some(())
    })
    .await;
    assert!(!one.housekeeping_take(&first, LEASE).await.expect("it answers"));
    two.housekeeping_leave(&second).await.expect("it answers");
    assert!(one.housekeeping_take(&first, LEASE).await.expect("it answers"), "who leaves need not be waited for");

    // Eight at once: one.
    two.housekeeping_leave(&first).await.expect("it answers");
    let mut takers = tokio::task::JoinSet::new();
    for n in 0..8 {
        let state = if n % 2 == 0 { one.clone() } else { two.clone() };
        takers.spawn(
            async move { state.housekeeping_take(&worker(&format!("t-{n}")), LEASE).await.expect("it answers") },
        );
    }
    assert_eq!(takers.join_all().await.into_iter().filter(|ours| *ours).count(), 1);
    bench.end().await;
}

async fn what_was_left_behind_is_rescued_and_what_is_old_forgotten(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let state = bench.process().await;
    let a = add(&state, "a").await;
    let id = state.accept(ask(&a, &["one"])).await.expect("it is accepted");
    let left = claim_within(&state, "gone", 1, SHORT, &BTreeMap::new(), 0).await.remove(0);
    until("the rescue", async || (state.replica_rescue().await.expect("it answers") > 0).then_some(())).await;
    assert_eq!(status(&get(&state, id).await, "one"), RegionStatus::Pending);
    assert_eq!(verify(&state, &a, &region("one"), left.regions[0].fence).await, Err(Stale));

    let next = claim(&state, "next", 1).await.remove(0).regions.remove(0);
    assert_eq!(state.replica_rescue().await.expect("it answers"), 0, "who is alive is left alone");
    assert_eq!(state.synchronization_prune(Duration::ZERO).await.expect("it answers"), (0, false), "it runs");
    verify(&state, &a, &next.region, next.fence).await.expect("it is in time");
    assert_eq!(state.synchronization_prune(LEASE).await.expect("it answers"), (0, false), "it ended just now");
    until("forgetting", async || {
        (state.synchronization_prune(Duration::ZERO).await.expect("it answers") == (1, false)).then_some(())
    })
    .await;
    assert!(matches!(state.synchronization_get(id).await, Err(Error::SynchronizationNotFound(_))));
    let replicas = state.image_get(&a).await.expect("it is there").1;
    assert_eq!(replicas[0].1.status(), RegionStatus::Available, "where an image is stays known");
    bench.end().await;
}

/// How long a synchronization is kept counts from its end, however long ago it was accepted.
async fn what_ended_just_now_is_kept(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let state = bench.process().await;
    let a = add(&state, "a").await;
    let id = state.accept(ask(&a, &["one"])).await.expect("it is accepted");
    let accepted = get(&state, id).await.created_at;
    let claimed = claim(&state, "w", 1).await.remove(0).regions.remove(0);
    let keep = Duration::from_secs(2);
    until("a call of long ago", async || (accepted.until(Clock::system().now()) > keep * 3 / 2).then_some(())).await;
    verify(&state, &a, &claimed.region, claimed.fence).await.expect("it is in time");
    assert_eq!(state.synchronization_prune(keep).await.expect("it answers"), (0, false), "it ended just now");
    let forgotten = async || (state.synchronization_prune(keep).await.expect("it answers") == (1, false)).then_some(());
    until("forgetting", forgotten).await;
    bench.end().await;
}

async fn uploads_are_remembered(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let state = bench.process().await;
    let a = add(&state, "a").await;
    let (one, blob) = (region("one"), Digest::new([9; 32]));
    let id = state.accept(ask(&a, &["one"])).await.expect("it is accepted");
    let fence = claim(&state, "w", 1).await.remove(0).regions[0].fence;
    for session in ["first", "second"] {
        state.upload_note(&a, &one, fence, blob, session).await.expect("it answers").expect("it is in time");
        assert_eq!(state.upload_get(&a, &one, blob).await.expect("it answers").as_deref(), Some(session));
    }
    assert!(state.upload_abandoned().await.expect("it answers").is_empty());
    state.synchronization_cancel(id).await.expect("it is canceled");
    let abandoned = state.upload_abandoned().await.expect("it answers");
    assert_eq!((abandoned.len(), abandoned[0].session.as_str()), (1, "second"));
    state.upload_forget(&a, &one, blob).await.expect("it answers");
    assert!(state.upload_abandoned().await.expect("it answers").is_empty());
    state.image_remove(&a).await.expect("it is removed");
    bench.end().await;
}

/// Two migrations at once, and one after them: the steps are taken once.
/// A nonce is new to one of all processes, once, until no request can have it any more.
async fn a_nonce_is_taken_once(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let states = [bench.process().await, bench.process().await];
    let now = Clock::system().now().as_millis();
    let nonce = |value: &str, until: i64| Nonce {
        access_key_id: "LTAI".into(),
        value: value.into(),
        until: Timestamp::from_millis(until),
    };
    let (hour, long) = (3_600_000, "n".repeat(128));
    for (value, until) in [("old", now - hour), ("new", now + hour), (long.as_str(), now + hour)] {
        let nonce = nonce(value, until);
        let [one, other] = states.each_ref().map(|state| state.nonce_remember(&nonce));
        let (one, other) = tokio::join!(one, other);
        assert!(one.expect("an answer") != other.expect("an answer"), "it is new to one of both: {value}");
    }
    assert_eq!(states[0].nonce_prune().await.expect("it is done"), 1);
    assert!(states[1].nonce_remember(&nonce("old", now - hour)).await.expect("it is new again"));
    assert!(!states[1].nonce_remember(&nonce("new", now + hour)).await.expect("it is known"));
    // Another key may use the same.
    let of_another = Nonce { access_key_id: "LTAJ".into(), ..nonce("new", now + hour) };
    assert!(states[1].nonce_remember(&of_another).await.expect("it is new"));
    bench.end().await;
}

async fn a_schema_is_brought_up_to_date_once(kind: Kind) {
    let directory = tempfile::tempdir().expect("a directory");
    let url = database::empty(kind, directory.path()).await;
    let settings = Settings::new(url.clone());
    let refused = State::open(&settings, regions(), CancellationToken::new()).await;
    assert!(matches!(refused, Err(Error::SchemaOld(_))), "{refused:?}");
    let steps = if kind == Kind::Sqlite {
        // One process alone has a file.
        appferry::state::migrate(&settings).await.expect("the schema")
    } else {
        let (one, two) = tokio::join!(appferry::state::migrate(&settings), appferry::state::migrate(&settings));
        one.expect("the schema") + two.expect("the schema")
    };
    assert!(steps > 0);
    assert_eq!(appferry::state::migrate(&settings).await.expect("the schema"), 0);

    let db = database::look(&url).await;
    db.execute_unprepared("INSERT INTO seaql_migrations (version, applied_at) VALUES ('m29991231_000001_later', 0)")
        .await
        .expect("a step");
    let refused = State::open(&settings, regions(), CancellationToken::new()).await.expect_err("it is newer");
    assert!(appferry::domain::with_causes(&refused).contains("m29991231_000001_later"), "{refused:?}");
    assert!(matches!(refused, Error::SchemaNewer(_)), "{refused:?}");
    let refused = appferry::state::migrate(&settings).await.expect_err("it is newer");
    assert!(matches!(refused, Error::SchemaNewer(_)), "{refused:?}");
}

/// What the version before the last step of the schema writes, in its own words.
async fn written_before(db: &sea_orm::DatabaseConnection, id: &str, request: &str) {
    let uuid = match db.get_database_backend() {
        sea_orm::DbBackend::Postgres => format!("'{request}'::uuid"),
        _ => format!("x'{request}'"),
    };
    for statement in [
        format!(
            "INSERT INTO image VALUES ('{id}', 'n', '1', '', 'VM', 'n', 'home', 'm', 'sha256:{}', 1, 1, 1)",
            "0".repeat(64)
        ),
        format!(
            "INSERT INTO synchronization (request_id, image_id, principal, client_token, asked, targets, open, traceparent, \
             tracestate, state, created_at, finished_at) VALUES ({uuid}, '{id}', 'p', NULL, 'all', 'one,two', 2, NULL, NULL, \
             'RUNNING', 1, NULL)"
        ),
        format!(
            "INSERT INTO replica (image_id, region_id, due_at, fence, state) VALUES ('{id}', 'one', 1, 1, 'PENDING')"
        ),
        format!(
            "INSERT INTO replica (image_id, region_id, due_at, fence, state) VALUES ('{id}', 'two', 1, 1, 'PENDING')"
        ),
        format!(
            "UPDATE replica SET state = 'AVAILABLE', due_at = NULL, attempt = 1, finished_at = 2 \
             WHERE image_id = '{id}' AND region_id = 'one'"
        ),
        format!(
            "INSERT INTO synchronization_target (request_id, region_id, status, attempt, finished_at) \
             VALUES ({uuid}, 'one', 'AVAILABLE', 1, 2)"
        ),
        format!("UPDATE synchronization SET open = 1 WHERE request_id = {uuid}"),
    ] {
        db.execute_unprepared(&statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }
}

/// The version before goes on working on a schema that was brought up to date under it, and what it has written is understood.
async fn the_version_before_works_on_the_schema_after(kind: Kind) {
    use appferry_migrations::{Migrator, MigratorTrait as _};
    let directory = tempfile::tempdir().expect("a directory");
    let url = database::empty(kind, directory.path()).await;
    let db = database::look(&url).await;
    let steps = u32::try_from(Migrator::migrations().len()).expect("a few");
    Migrator::up(&db, Some(steps - 1)).await.expect("the schema before");
    let [before, after] = ["01a20fb163707000800000000000000a", "01a20fb163707000800000000000000b"];
    written_before(&db, "before", before).await;
    Migrator::up(&db, None).await.expect("the schema after");
    written_before(&db, "after", after).await;
    db.close().await.expect("it is closed");

    let stop = CancellationToken::new();
    let (state, tasks) = State::open(&Settings::new(url), regions(), stop.clone()).await.expect("it opens");
    for claim in claim(&state, "w", 5).await {
        assert_eq!(claim.available, [region("one")]);
        for claimed in claim.regions {
            verify(&state, &claim.id, &claimed.region, claimed.fence).await.expect("it is in time");
        }
    }
    for request in [before, after] {
        let ended = get(&state, request.parse().expect("an id")).await;
        assert_eq!((ended.state, ended.regions.len()), (SynchronizationState::Succeeded, 2));
    }
    stop.cancel();
    tasks.join().await;
}

/// What ECS makes is known to whoever claims next, and given up once nobody wants it; whoever was overtaken changes none of it.
async fn copies_of_ecs_are_remembered(kind: Kind) {
    let mut bench = Bench::new(kind).await;
    let state = bench.process().await;
    let other = bench.process().await;
    let a = add(&state, "a").await;
    let one = region("one");
    let made: EcsImageId = "m-1".parse().expect("an id");
    let id = state.accept(ask(&a, &["one"])).await.expect("it is accepted");
    let fence = claim(&state, "w", 1).await.remove(0).regions[0].fence;
    let begin = async |state: &State, fence| state.ecs_copy_begin(&a, &one, fence).await.expect("it answers");

    assert!(begin(&state, fence - 1).await.is_err(), "an old claim begins nothing");
    let copy = begin(&state, fence).await.expect("it is in time");
    assert_eq!((copy.image.clone(), copy.finished), (None, false));
    assert_eq!(begin(&other, fence).await.expect("it is in time"), copy, "it is the same one");
    let known = copy.made(made.clone(), Timestamp::from_millis(7));
    let next = EcsCopy { generation: copy.generation + 1, ..known.clone() };
    state.ecs_copy_made(&a, &one, &next).await.expect("it answers");
    assert_eq!(begin(&state, fence).await.expect("it is in time"), copy, "another generation's image is not its own");
    state.ecs_copy_made(&a, &one, &known).await.expect("it answers");
    assert_eq!(begin(&other, fence).await.expect("it is in time"), known);
    assert!(state.ecs_copies(&[&a]).await.expect("it answers").is_empty(), "it is not there yet");
    assert!(state.ecs_copy_abandoned().await.expect("it answers").is_empty());
    assert_eq!(state.ecs_copy_abandon(&a, &one).await.expect("it answers"), None);
    let stale = state.ecs_copy_note(&a, &one, fence - 1, &copy).await.expect("it answers");
    assert!(stale.is_err(), "an old claim changes nothing");

    // Canceled: whoever keeps house gives it up, once.
    state.synchronization_cancel(id).await.expect("it is canceled");
    assert!(state.ecs_copy_note(&a, &one, fence, &copy).await.expect("it answers").is_err());
    assert_eq!(state.ecs_copy_abandoned().await.expect("it answers"), [(a.clone(), one.clone())]);
    let given_up = other.ecs_copy_abandon(&a, &one).await.expect("it answers").expect("there is something to give up");
    assert!(given_up.generation > copy.generation && given_up.image.is_none());
    assert_eq!(given_up.discarded, Some(made.clone()));
    state.ecs_copy_discarded(&a, &one, &made).await.expect("it answers");
    let nothing = state.ecs_copy_abandon(&a, &one).await.expect("it answers").expect("its generation is still there");
    assert_eq!(nothing.discarded, None);

    // Wanted again, before it was forgotten and after.
    state.accept(ask(&a, &["one"])).await.expect("it is accepted");
    state.ecs_copy_forget(&a, &one).await.expect("it answers");
    let fence = claim(&state, "w", 1).await.remove(0).regions[0].fence;
    let again = begin(&state, fence).await.expect("it is in time");
    assert_eq!(again.generation, given_up.generation, "what is wanted is not forgotten");
    let there = EcsCopy { image: Some(made.clone()), finished: true, ..again };
    state.ecs_copy_note(&a, &one, fence, &there).await.expect("it answers").expect("it is in time");
    let copies = other.ecs_copies(&[&a]).await.expect("it answers");
    assert_eq!(copies.get(&(a.clone(), one.clone())), Some(&made));
    assert!(state.ecs_copy_abandoned().await.expect("it answers").is_empty());
    bench.end().await;
}

macro_rules! on_every_database {
    ($($promise:ident)*) => {
        on_every_database!(@on sqlite Sqlite $($promise)*);
        on_every_database!(@on postgres Postgres $($promise)*);
        on_every_database!(@on mysql MySql $($promise)*);
    };
    (@on $module:ident $kind:ident $($promise:ident)*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    super::$promise(crate::harness::database::Kind::$kind).await;
                }
            )*
        }
    };
}

on_every_database! {
    a_call_goes_to_its_end
    a_token_names_one_call
    ids_differ_in_case_and_lists_are_in_order
    images_are_found_by_what_is_known_of_them
    a_claim_that_ran_out_is_overtaken
    one_image_with_many_regions_starves_no_other
    limits_hold_across_processes
    regions_differ_in_case
    a_source_is_shared_by_all_processes
    an_image_that_is_removed_leaves_nobody_waiting
    many_processes_at_once_lose_nothing
    a_call_that_can_t_be_written_fails_alone
    a_watcher_sees_what_another_process_does
    a_worker_hears_of_what_another_process_accepts
    house_is_kept_by_one
    what_was_left_behind_is_rescued_and_what_is_old_forgotten
    what_ended_just_now_is_kept
    uploads_are_remembered
    copies_of_ecs_are_remembered
    a_nonce_is_taken_once
    a_schema_is_brought_up_to_date_once
    the_version_before_works_on_the_schema_after
}
