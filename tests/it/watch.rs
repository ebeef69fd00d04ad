//! Watching: an immediate snapshot, a snapshot for every change, and the end of the stream; the database load does not
//! depend on the number of watchers.

use std::sync::{Arc, Mutex};

use appferry::{
    app::Role,
    contract::v1::{CancelSynchronizationRequest, RegionState, SynchronizationState, WatchSynchronizationRequest},
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

use crate::harness::{images::noise, site::Site, until};

#[tokio::test]
async fn a_watcher_gets_a_snapshot_at_once_every_state_and_an_end() {
    let site = Site::new().start_as(Role::Server).await;
    let app = site.add("a", &[noise(3 << 20, 1)]).await;
    let id = site.synchronize(&app, &["cn-beijing"]).await.expect("it is accepted");
    let request = WatchSynchronizationRequest { request_id: id.clone() };
    let mut stream =
        site.app_sync().await.watch_synchronization(request.clone()).await.expect("it starts").into_inner();
    let first = stream.message().await.expect("a snapshot").expect("a snapshot").synchronization.expect("one");
    assert_eq!(first.regions[0].state(), RegionState::Pending);
    drop(stream);

    let running = site.stop().await.start().await;
    let mut stream =
        running.app_sync().await.watch_synchronization(request.clone()).await.expect("it starts").into_inner();
    let mut seen = Vec::new();
    while let Some(message) = stream.message().await.expect("it goes on") {
        seen.push(message.synchronization.expect("one"));
    }
    let last = seen.last().expect("a snapshot");
    assert_eq!(last.state(), SynchronizationState::Succeeded);
    let region = &last.regions[0];
    assert_eq!((region.state(), region.attempt), (RegionState::Available, 1));
    assert_eq!(region.bytes_copied + region.bytes_skipped, region.bytes_total);
    assert!(region.start_time.is_some() && region.finish_time.is_some() && last.finish_time.is_some());
    assert!(seen.windows(2).all(|pair| pair[0] != pair[1]), "a snapshot is sent when something has changed");

    // An ended synchronization yields one full snapshot, and the stream ends.
    let mut stream = running.app_sync().await.watch_synchronization(request).await.expect("it starts").into_inner();
    let only = stream.message().await.expect("a snapshot").expect("a snapshot");
    assert_eq!(only.synchronization.as_ref(), Some(last));
    assert!(stream.message().await.expect("an end").is_none());
    running.stop().await;
}

#[tokio::test]
async fn all_watchers_see_a_change() {
    let running = Site::new().start_as(Role::Server).await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let id = running.synchronize(&app, &[]).await.expect("it is accepted");
    let mut client = running.app_sync().await;
    let mut streams = Vec::new();
    for _ in 0..200 {
        let request = WatchSynchronizationRequest { request_id: id.clone() };
        let mut stream = client.watch_synchronization(request).await.expect("it starts").into_inner();
        stream.message().await.expect("a snapshot").expect("a snapshot");
        streams.push(stream);
    }
    client.cancel_synchronization(CancelSynchronizationRequest { request_id: id }).await.expect("it is canceled");
    for mut stream in streams {
        let change = stream.message().await.expect("a change").expect("a change").synchronization.expect("one");
        assert_eq!(change.state(), SynchronizationState::Canceled);
        assert!(stream.message().await.expect("an end").is_none());
    }
    running.stop().await;
}

/// Counts the polling rounds of the watchers' task, and the rows read in each.
#[derive(Clone, Default)]
struct Rounds(Arc<Mutex<Vec<u64>>>);

impl<S: tracing::Subscriber> Layer<S> for Rounds {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        event.record(&mut |field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            if field.name() == "synchronizations" {
                let read = format!("{value:?}").parse().expect("a number");
                self.0.lock().expect("no panic").push(read);
            }
        });
    }
}

#[tokio::test]
async fn a_thousand_watchers_cost_the_database_what_one_costs() {
    let rounds = Rounds::default();
    // With a single subscriber, a test on another thread without one can disable the events globally.
    let _another = tracing::Dispatch::new(tracing_subscriber::registry());
    let _heard = tracing_subscriber::registry().with(rounds.clone()).set_default();
    let mut site = Site::new();
    // Allows more streams of one connection and of one principal than the defaults.
    site.server = "max_streams_per_connection = 2048".to_owned();
    site.more = "[limits]\nmax_in_flight = 2048\n".to_owned();
    let running = site.start_as(Role::Server).await;
    let app = running.add("a", &[noise(10, 1)]).await;
    let id = running.synchronize(&app, &[]).await.expect("it is accepted");
    let mut client = running.app_sync().await;
    let mut streams = Vec::new();
    for watchers in [1, 1_000] {
        while streams.len() < watchers {
            let request = WatchSynchronizationRequest { request_id: id.clone() };
            let mut stream = client.watch_synchronization(request).await.expect("it starts").into_inner();
            stream.message().await.expect("a snapshot").expect("a snapshot");
            streams.push(stream);
        }
        rounds.0.lock().expect("no panic").clear();
        let read = until("five rounds", async || {
            let read = rounds.0.lock().expect("no panic").clone();
            (read.len() >= 5).then_some(read)
        })
        .await;
        assert!(read.iter().all(|&synchronizations| synchronizations == 1), "{watchers} watchers: {read:?}");
    }
    drop(streams);
    running.stop().await;
}
