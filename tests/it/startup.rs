//! Checks at startup: exclusive use of the SQLite file, and enough file descriptors.

use std::{net::TcpStream, process::Command};

use appferry::contract::v1::SynchronizationState;

use crate::harness::{
    images,
    process::{self, APPFERRY, Served},
    site::{self, HOME, Site, app_sync, ask, images_client},
    until,
};

/// Writes a site's configuration and migrates its database.
fn prepare(site: &Site) -> String {
    let config = site.write_config();
    process::migrate(&config);
    config.to_str().expect("text").to_owned()
}

#[tokio::test]
async fn a_second_process_on_one_file_is_refused() {
    let site = Site::new();
    let config = prepare(&site);
    let mut served = Served::configured(config.as_ref()).await;
    for role in ["serve", "worker"] {
        let refused = process::run(site.directory.path(), &[role, "--config", &config]);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let why = process::stderr(&refused);
        assert!(why.contains("state.db is in use by another appferry"), "{why}");
    }
    // Commands other than `serve` are not affected.
    process::migrate(config.as_ref());
    process::stdout(&process::run(site.directory.path(), &["doctor", "--config", &config]));
    served.kill();
    drop(Served::configured(config.as_ref()).await);
}

/// Returns a service command with this hard limit of file descriptors.
fn limited(site: &Site, descriptors: u32, config: &str) -> Command {
    let mut command = Command::new("sh");
    let script = format!("ulimit -n {descriptors} && exec \"$@\"");
    process::clean(&mut command).args(["-c", &script, "sh", APPFERRY, "serve", "--config", config]);
    command.current_dir(site.directory.path());
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_do_not_take_the_descriptors_of_stores() {
    let site = Site::new();
    let config = prepare(&site);
    let served = Served::start(limited(&site, 400, &config), site.directory.path().join("log")).await;
    let log = std::fs::read_to_string(&served.log).expect("a log");
    assert!(log.contains("server.max_connections exceeds the limit") && log.contains("limit=400"), "{log}");

    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    // An authenticated connection is not closed in favor of unauthenticated ones.
    client.synchronize_app(ask("nobody-knows-it", &[])).await.expect_err("there is none");
    images::write(&site.image(HOME, "a"), &[vec![1; 100_000], vec![2; 1_000]]);
    site::register(&mut images_client(served.address, Some(site::ADMIN)).await, "a").await;
    let idle: Vec<_> = (0..150).map(|_| TcpStream::connect(served.address).expect("the system takes it")).collect();
    let descriptors = format!("/proc/{}/fd", served.id());
    // The service accepts as many connections as fit; further ones wait in the backlog.
    until("connections", async || {
        let open = std::fs::read_dir(&descriptors).expect("it runs").count();
        (open > 90).then_some(())
    })
    .await;
    let id = client.synchronize_app(ask("a", &[])).await.expect("it is accepted").into_inner().request_id;
    let done = site::finished(&mut client, &id).await;
    assert_eq!(done.state(), SynchronizationState::Succeeded, "{done:?}");
    assert!(done.regions.iter().all(|region| region.attempt == 1), "{done:?}");
    drop(idle);
}

#[test]
fn too_few_descriptors_are_refused_with_the_limit() {
    let site = Site::new();
    let config = prepare(&site);
    let refused = limited(&site, 100, &config).output().expect("it runs");
    let why = process::stderr(&refused);
    assert!(
        !refused.status.success() && why.contains("limit of file descriptors is 100") && why.contains("LimitNOFILE"),
        "{why}"
    );
}
