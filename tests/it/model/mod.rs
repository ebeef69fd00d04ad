//! Exhaustive model check of the replica state machine. Three workers claim, copy, and report late or never; leases
//! expire; calls join, cancel and restart copies. The model changes the replica only with `Replica::apply`, the
//! function that the service runs.
//!
//! The model check verifies these invariants in every reachable state:
//!
//! - *verified*: a replica is AVAILABLE only if the worker with the last claim has verified it;
//! - *none lost*: while a call waits for a replica, the replica is pending or being copied;
//! - *ended once*: a call gets the replica's outcome as its result, exactly once;
//! - *overtaken*: a write with an old fence changes nothing;
//! - *superseded*: a replica whose name was taken over stays superseded;
//! - *awake*: when the replica is due, at least one worker is awake or notified;
//! - *suspended*: no worker claims a pending replica in an unconfigured region, and the replica is pending again when
//!   the region is configured.

mod walk;
mod world;

use std::time::Duration;

use appferry::domain::{Event, Progress, Replica, Timestamp, Verification, Warnings, WorkerId};
use stateright::{Checker as _, Model as _};
use walk::Walk;
use world::Machine;

use crate::harness::history::explain;

#[test]
fn the_machine_holds_in_every_state_that_can_be_reached() {
    let walk = Walk { machine: Machine::Ours, suspends: false };
    let checker = walk.checker().symmetry().threads(2).spawn_dfs().join();
    println!("{} states, {} of them different", checker.state_count(), checker.unique_state_count());
    checker.assert_properties();
    assert!(checker.unique_state_count() > 50_000, "{}", checker.unique_state_count());
}

#[test]
fn the_machine_holds_where_its_region_comes_and_goes() {
    let walk = Walk { machine: Machine::Ours, suspends: true };
    let checker = walk.checker().symmetry().threads(2).spawn_dfs().join();
    println!("{} states, {} of them different", checker.state_count(), checker.unique_state_count());
    checker.assert_properties();
    assert!(checker.unique_state_count() > 5_000, "{}", checker.unique_state_count());
}

/// Returns the names of the invariants that a state machine with an injected fault violates.
fn violations(machine: Machine) -> Vec<&'static str> {
    let checker = Walk { machine, suspends: false }
        .checker()
        .symmetry()
        .threads(2)
        .finish_when(stateright::HasDiscoveries::AnyFailures)
        .spawn_dfs()
        .join();
    let broken: Vec<_> = checker
        .discoveries()
        .into_iter()
        .filter(|(name, _)| ["nothing is broken", "none lost", "awake"].contains(name))
        .map(|(name, path)| {
            println!("{machine:?}: \"{name}\" does not hold after {} steps", path.into_actions().len());
            name
        })
        .collect();
    broken
}

#[test]
fn planted_faults_are_found() {
    for machine in [Machine::NoFence, Machine::LostWakeUp, Machine::DoubleFinish, Machine::NoNewFence] {
        assert!(!violations(machine).is_empty(), "{machine:?} violates no invariant");
    }
}

/// The replay of a history detects steps that only a faulty service would make.
#[test]
fn what_is_no_transition_is_found_out() {
    let lease = Duration::from_millis(10);
    let at = Timestamp::from_millis;
    let requested = Replica::requested(at(100));
    let claim = |now| requested.apply(Event::Claim { owner: WorkerId("w".into()), lease }, at(now)).expect("it is due");
    let claimed = claim(105);
    assert_eq!(explain(None, &requested, lease), Some("Request"));
    assert_eq!(explain(Some(&requested), &claimed, lease), Some("Claim"));
    let verification = Verification::Verified;
    let verified = Event::Verified {
        fence: claimed.fence,
        progress: Progress::default(),
        verification,
        warnings: Warnings::default(),
    };
    let available = claimed.apply(verified, at(107)).expect("it is held");
    assert_eq!(explain(Some(&claimed), &available, lease), Some("Verified"));

    let early = Replica { fence: requested.fence + 1, ..claimed.clone() };
    assert_eq!(
        explain(Some(&claimed), &Replica { fence: early.fence + 1, attempt: 2, ..early }, lease),
        None,
        "it was held"
    );
    assert_eq!(explain(Some(&requested), &available, lease), None, "it was not claimed");
    assert_eq!(explain(Some(&available), &claimed, lease), None, "it had ended");
    let unfenced = Replica { fence: claimed.fence - 1, ..available.clone() };
    assert_eq!(explain(Some(&claimed), &unfenced, lease), None, "an old fence");
    assert_eq!(explain(None, &claimed, lease), None, "it has no predecessor");
}
