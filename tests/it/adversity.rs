//! A short run of the chaos test: every scenario once.

use std::time::Duration;

use crate::{
    chaos::{Run, Scenario, run},
    harness::postgres,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_can_happen_happens_and_nothing_is_lost() {
    if !postgres::is_installed() {
        return;
    }
    let seed = rand::random();
    println!("seed {seed}");
    let outcome = run(Run { seed, lasts: Duration::from_secs(20), first: Scenario::ALL.to_vec() }).await;
    println!("{outcome}");
    assert!(outcome.kept(), "{outcome}");
    assert!(
        outcome.acknowledged > 100 && outcome.kills >= 5 && outcome.scenarios.len() == Scenario::ALL.len(),
        "{outcome}"
    );
}
