//! A short run of the chaos test: every scenario once.

use std::time::Duration;

use crate::chaos::{Act, Run, run};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_can_happen_happens_and_nothing_is_lost() {
    let seed = rand::random();
    println!("seed {seed}");
    let figures = run(Run { seed, lasts: Duration::from_secs(20), first: Act::ALL.to_vec() }).await;
    println!("{figures}");
    assert!(figures.kept(), "{figures}");
    assert!(figures.acknowledged > 100 && figures.kills >= 5 && figures.acts.len() == Act::ALL.len(), "{figures}");
}
