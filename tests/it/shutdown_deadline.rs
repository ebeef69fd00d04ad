//! Shutdown deadline: a process ends in time and answers calls until then, even if the reader of its output, a blocked
//! thread or the database hangs.

use std::{
    fs::{self, OpenOptions},
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags, mknodat},
    process::{Pid, Signal, kill_process},
};
use tonic::Code;

use crate::harness::{
    address::free_address,
    postgres::{self, Postgres},
    process,
    site::{self, AppSync, Site, app_sync, ask},
    until,
};

/// The exit status of a process that could not shut down gracefully.
const CUT_SHORT: i32 = 3;
/// The shutdown deadline of these tests.
const SHUTDOWN: &str = "shutdown_seconds = 3";

/// A service whose output goes to pipes. Killed when dropped.
struct Piped {
    child: Child,
    address: SocketAddr,
    http: SocketAddr,
}

impl Piped {
    /// Starts a service with the audit log on standard output, and waits until it is ready.
    async fn start(site: &mut Site, change: impl FnOnce(&mut Command)) -> Self {
        let (address, http) = (free_address(), free_address());
        site.more = format!("[http]\nlisten = \"{http}\"\n");
        let config = site.write_config();
        let path = config.to_str().expect("text");
        process::migrate(&config);
        let mut command = process::command(site.directory.path(), &["serve", "--config", path]);
        command.env("APPFERRY_AUDIT__TO", "stdout").env("APPFERRY_SERVER__LISTEN", address.to_string());
        command.stdout(Stdio::piped()).stderr(Stdio::inherit());
        change(&mut command);
        let child = command.spawn().expect("the program starts");
        let piped = Self { child, address, http };
        until("the service", async || (piped.ready().await?.0 == 200).then_some(())).await;
        piped
    }

    /// Returns the status and body of the readiness probe.
    async fn ready(&self) -> Option<(u16, String)> {
        let answer = reqwest::get(format!("http://{}/readyz", self.http)).await.ok()?;
        Some((answer.status().as_u16(), answer.text().await.ok()?))
    }

    async fn client(&self) -> AppSync {
        app_sync(self.address, Some(site::ADMIN)).await
    }

    /// Sends SIGTERM, and returns the exit status and the time until the exit.
    async fn terminated(&mut self) -> (Option<i32>, Duration) {
        let (begun, pid) = (Instant::now(), i32::try_from(self.child.id()).ok().and_then(Pid::from_raw));
        kill_process(pid.expect("an id"), Signal::TERM).expect("it can be signaled");
        let status = until("the end", async || self.child.try_wait().expect("a child")).await;
        (status.code(), begun.elapsed())
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes `calls` calls, and returns their codes.
async fn call(client: &AppSync, calls: usize) -> Vec<Code> {
    let one = |_| {
        let mut client = client.clone();
        async move { client.synchronize_app(ask("not-registered", &[])).await.expect_err("it is not registered").code() }
    };
    stream::iter(0..calls).map(one).buffer_unordered(64).collect().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_that_is_not_read_neither_stops_calls_nor_the_end() {
    let mut site = Site::new();
    site.server = SHUTDOWN.to_owned();
    let mut served = Piped::start(&mut site, |command| {
        command.stderr(Stdio::piped()).env("RUST_LOG", "trace");
    })
    .await;
    // Far more output than both pipes can buffer.
    let codes = call(&served.client().await, 1_000).await;
    assert!(codes.iter().all(|code| *code == Code::NotFound), "{codes:?}");
    let (status, took) = served.terminated().await;
    assert_eq!(status, Some(CUT_SHORT), "lines of the audit log were left behind");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_decision_cannot_be_written_down_is_refused_and_nothing_is_lost() {
    let mut site = Site::new();
    let mut served = Piped::start(&mut site, |_| {}).await;
    let client = served.client().await;
    let mut answered = 0;
    until("calls to be rejected", async || {
        let codes = call(&client, 500).await;
        answered += codes.iter().filter(|code| **code == Code::NotFound).count();
        assert!(codes.iter().all(|code| [Code::NotFound, Code::Unavailable].contains(code)), "{codes:?}");
        codes.contains(&Code::Unavailable).then_some(())
    })
    .await;
    let why = until("the readiness probe to fail", async || served.ready().await.filter(|said| said.0 == 503)).await.1;
    assert!(why.contains("the audit log"), "{why}");

    let output = BufReader::new(served.child.stdout.take().expect("it is piped"));
    let reader = std::thread::spawn(move || output.lines().map_while(Result::ok).count());
    until("readiness", async || (served.ready().await?.0 == 200).then_some(())).await;
    let codes = call(&client, 100).await;
    assert!(codes.iter().all(|code| *code == Code::NotFound), "{codes:?}");
    assert_eq!(served.terminated().await.0, Some(0));
    assert_eq!(reader.join().expect("lines"), answered + 100);
}

/// Replaces a file by a FIFO without a writer, so that a read of it blocks in the kernel. Once it is being read,
/// returns the write end that keeps it open.
async fn hang(file: &Path) -> fs::File {
    fs::remove_file(file).expect("it is there");
    mknodat(CWD, file, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).expect("a flag");
    // Opening without blocking succeeds only while there is a reader.
    until("a reader of the pipe", async || OpenOptions::new().write(true).custom_flags(nonblocking).open(file).ok())
        .await
}

#[tokio::test]
async fn a_thread_that_hangs_in_the_kernel_does_not_hold_the_end() {
    let mut site = Site::new();
    site.server = SHUTDOWN.to_owned();
    let mut served = site.serve().await;
    let config = site.config_file();
    let held = hang(&config).await;
    let begun = Instant::now();
    served.terminate();
    assert_eq!(served.ended().await.code(), Some(CUT_SHORT));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let log = fs::read_to_string(&served.log).expect("a log");
    assert!(log.contains("tasks did not end in time"), "{log}");
    drop(held);
}

#[tokio::test]
async fn a_start_that_hangs_can_be_ended() {
    let site = Site::new();
    let config = site.write_config();
    fs::remove_file(&config).expect("it is there");
    mknodat(CWD, &config, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a pipe");
    let path = config.to_str().expect("text");
    let mut child = process::command(site.directory.path(), &["serve", "--config", path]).spawn().expect("it starts");
    // The service blocks while reading its configuration, after it has installed its signal handlers.
    let nonblocking = i32::try_from(OFlags::NONBLOCK.bits()).expect("a flag");
    let open = || OpenOptions::new().write(true).custom_flags(nonblocking).open(&config).ok();
    let held = until("a reader of the pipe", async || open()).await;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("an id");
    kill_process(pid, Signal::TERM).expect("it can be signaled");
    let status = until("the end", async || child.try_wait().expect("a child")).await;
    assert_eq!(status.code(), Some(CUT_SHORT));
    drop(held);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_hangs_does_not_hold_the_end() {
    if !postgres::is_installed() {
        return;
    }
    let postgres = Postgres::start(&[]);
    let mut site = Site::new().on(&postgres.url("postgres"));
    site.server = SHUTDOWN.to_owned();
    let mut served = site.serve().await;
    let frozen = postgres.freeze();
    let mut client = app_sync(served.address, Some(site::ADMIN)).await;
    let call = tokio::spawn(async move { client.synchronize_app(ask("a", &[])).await });
    let begun = Instant::now();
    served.terminate();
    let status = served.ended().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!([Some(0), Some(CUT_SHORT)].contains(&status.code()), "{status}");
    call.await.expect("it was answered").expect_err("there is no database");
    drop(frozen);
}
