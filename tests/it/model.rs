//! Exhaustive model check of the replica state machine: three workers that claim, copy, and report late or never;
//! expiring leases; calls that join, cancel and restart. Every step of the replica is `Replica::apply`, the function
//! that the service runs.
//!
//! The invariants of every reachable state:
//!
//! - *verified*: a replica is AVAILABLE only if the worker with its last claim has verified it;
//! - *none lost*: while a call waits for a replica, the replica is pending or being copied;
//! - *ended once*: a call's result for a replica is the replica's outcome, reported once;
//! - *overtaken*: a write with an old fence changes nothing;
//! - *superseded for good*: a replica whose name was taken over stays so;
//! - *awake*: when something is due, not every worker sleeps without a notification;
//! - *suspended*: a pending replica in an unconfigured region is claimed by no worker, and is pending again when the
//! region is configured.

use std::time::Duration;

use crate::harness::history::explain;
use appferry::domain::{
    Event, Fault, FaultKind, Outcome, Progress, RegionStatus, Replica, Standing, Timestamp, Verification, Warnings,
    WorkerId,
};
use stateright::{Checker as _, Model, Property, Representative};

const WORKERS: usize = 3;
/// The end of time in the model. A lease lasts for two steps, and a retry follows after one.
const LAST: i64 = 4;
const LEASE: Duration = Duration::from_millis(2);
const RETRY: Duration = Duration::from_millis(1);
const CALLS: usize = 3;
const CLAIMS: u8 = 4;

/// The machine under test: the service's, or one with an injected fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Machine {
    Ours,
    /// Every writer is treated as the holder of the last claim.
    NoFence,
    /// An accepted call does not wake a worker that is polling at that moment.
    LostWakeUp,
    /// A late report is forwarded to the callers.
    DoubleFinish,
    /// A claim does not raise the fence.
    NoNewFence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Worker {
    /// It is about to poll.
    Awake,
    /// It has polled and found nothing. The flag is set by a notification since then.
    Looked(bool),
    /// It sleeps until a notification or its next poll.
    Asleep,
    /// It holds a claim with that fence, the last or an earlier one, and has verified its copy or not.
    Holds { fence: u64, claim: u8, verified: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Call {
    Waits,
    Ended(RegionStatus),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct World {
    now: Timestamp,
    replica: Option<Replica>,
    calls: Vec<Call>,
    workers: Vec<Worker>,
    /// Whether workers were notified of due replicas. Replicas that become due by time are found by polling.
    rung: bool,
    claims: u8,
    canceled: u8,
    damaged: u8,
    /// Whether another image has taken over the name.
    superseded: bool,
    /// Number of removals of the region from the configuration.
    suspended: u8,
    /// The violated invariant, if any.
    broken: Option<&'static str>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    Call,
    Cancel,
    Look(usize),
    Sleep(usize),
    Copy(usize),
    Renew(usize),
    Verified(usize),
    Faulted(usize, bool),
    Release(usize),
    Crash(usize),
    Rescue,
    Damage,
    Supersede,
    Suspend,
    Resume,
    Tick,
}

impl Representative for World {
    /// Reduces the state by symmetry: workers are interchangeable.
    fn representative(&self) -> Self {
        let mut same = self.clone();
        same.workers.sort_unstable();
        same
    }
}

struct Walk {
    machine: Machine,
    /// Whether the region is removed from the configuration once. Uses fewer workers and calls, because the state space
    /// would be too large.
    suspends: bool,
}

impl Walk {
    fn calls(&self) -> usize {
        if self.suspends { CALLS - 1 } else { CALLS }
    }
}

fn fault() -> Fault {
    Fault::new(FaultKind::Store, "")
}

const DONE: Progress = Progress { total: 1, copied: 1, skipped: 0 };

impl World {
    fn standing(&self) -> Standing {
        Standing::of(self.replica.as_ref().map(Replica::status))
    }

    /// Applies an event to the replica; `None` if it is not valid.
    fn happens(&mut self, event: Event) -> Option<()> {
        self.replica = Some(self.replica.as_ref()?.apply(event, self.now).ok()?);
        Some(())
    }

    /// Lets all workers poll.
    fn look_by_themselves(&mut self) {
        for worker in &mut self.workers {
            if *worker == Worker::Asleep {
                *worker = Worker::Awake;
            }
        }
    }

    fn is_suspended(&self) -> bool {
        self.replica.as_ref().is_some_and(Replica::is_suspended)
    }

    fn raise(&mut self, machine: Machine) {
        self.rung = true;
        for worker in &mut self.workers {
            match worker {
                Worker::Asleep => *worker = Worker::Awake,
                // A worker that has just polled checks for new notifications before it sleeps.
                Worker::Looked(told) => *told = machine != Machine::LostWakeUp,
                _ => {}
            }
        }
    }

    /// Applies a worker's report, and forwards the result to the callers.
    fn report(&mut self, machine: Machine, worker: usize, event: impl Fn(u64) -> Event) {
        let Worker::Holds { fence, claim, verified } = self.workers[worker] else { return };
        let Some(before) = self.replica.clone() else { return };
        let shown = match machine {
            Machine::NoFence => before.fence,
            _ => fence,
        };
        let event = event(shown);
        let after = before.apply(event.clone(), self.now);
        match &after {
            Ok(after) => {
                if claim != self.claims {
                    self.broken = Some("a claim that was overtaken changed something");
                }
                if after.outcome() == Some(Outcome::Available) && !verified {
                    self.broken = Some("available, and not verified");
                }
                if after.claimable(self.now) {
                    self.replica = Some(after.clone());
                    self.raise(machine);
                }
                self.replica = Some(after.clone());
                self.settle(after.status());
            }
            Err(_) if machine == Machine::DoubleFinish => {
                let told = match event {
                    Event::Verified { .. } => RegionStatus::Available,
                    Event::Faulted { retry_after: None, .. } => RegionStatus::Failed,
                    _ => return,
                };
                self.settle(told);
            }
            Err(_) => {}
        }
        if !matches!(event, Event::Renew { .. }) || after.is_err() {
            self.workers[worker] = Worker::Awake;
        }
    }

    /// Reports the replica's outcome to the waiting calls.
    fn settle(&mut self, status: RegionStatus) {
        if matches!(status, RegionStatus::Pending | RegionStatus::Copying) {
            return;
        }
        if self.replica.as_ref().map(Replica::status) != Some(status) {
            self.broken = Some("callers were told what is not so");
        }
        for call in &mut self.calls {
            if *call == Call::Waits {
                *call = Call::Ended(status);
            }
        }
    }
}

impl Model for Walk {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World {
            now: Timestamp::from_millis(0),
            replica: None,
            calls: Vec::new(),
            workers: vec![Worker::Awake; if self.suspends { 2 } else { WORKERS }],
            rung: false,
            claims: 0,
            canceled: 0,
            damaged: 0,
            superseded: false,
            suspended: 0,
            broken: None,
        }]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        if world.broken.is_some() {
            return;
        }
        if world.calls.len() < self.calls() {
            steps.push(Step::Call);
        }
        if world.canceled < 1 && world.calls.contains(&Call::Waits) {
            steps.push(Step::Cancel);
        }
        for (number, worker) in world.workers.iter().enumerate() {
            match worker {
                Worker::Awake => steps.push(Step::Look(number)),
                Worker::Looked(_) => steps.push(Step::Sleep(number)),
                Worker::Asleep => {}
                Worker::Holds { verified, .. } => {
                    steps.push(if *verified { Step::Verified(number) } else { Step::Copy(number) });
                    steps.push(Step::Renew(number));
                    steps.push(Step::Faulted(number, true));
                    steps.push(Step::Faulted(number, false));
                    steps.push(Step::Release(number));
                    steps.push(Step::Crash(number));
                }
            }
        }
        steps.push(Step::Rescue);
        if world.damaged < 1 && world.standing() == Standing::Available {
            steps.push(Step::Damage);
        }
        // Rejected while a copy is in progress.
        if !world.superseded && world.standing() == Standing::Available {
            steps.push(Step::Supersede);
        }
        if self.suspends && world.suspended < 1 {
            steps.push(Step::Suspend);
        }
        if world.is_suspended() {
            steps.push(Step::Resume);
        }
        if world.now.as_millis() < LAST {
            steps.push(Step::Tick);
        }
    }

    fn next_state(&self, before: &World, step: Step) -> Option<World> {
        let machine = self.machine;
        let mut world = before.clone();
        let now = world.now;
        match step {
            Step::Call => match world.standing() {
                // Rejected.
                Standing::Available => return None,
                Standing::Underway => world.calls.push(Call::Waits),
                Standing::Missing => {
                    world.calls.push(Call::Waits);
                    world.replica = Some(match &world.replica {
                        None => Replica::requested(now),
                        Some(ended) => ended.apply(Event::Request, now).ok()?,
                    });
                    world.raise(machine);
                }
            },
            Step::Cancel => {
                world.canceled += 1;
                let waiting = world.calls.iter().filter(|call| **call == Call::Waits).count();
                if waiting == 1 {
                    world.replica = Some(world.replica.as_ref()?.apply(Event::Cancel, now).ok()?);
                }
                let first = world.calls.iter_mut().find(|call| **call == Call::Waits)?;
                *first = Call::Ended(RegionStatus::Canceled);
            }
            Step::Look(number) => {
                let due = world.replica.as_ref().filter(|replica| replica.claimable(now) && world.claims < CLAIMS);
                world.workers[number] = match due {
                    None => Worker::Looked(false),
                    Some(replica) => {
                        let claim = Event::Claim { owner: WorkerId("w".into()), lease: LEASE };
                        let mut claimed = replica.apply(claim, now).ok()?;
                        if machine == Machine::NoNewFence {
                            claimed.fence = replica.fence;
                        }
                        let fence = claimed.fence;
                        world.claims += 1;
                        world.rung = false;
                        world.replica = Some(claimed);
                        Worker::Holds { fence, claim: world.claims, verified: false }
                    }
                };
            }
            Step::Sleep(number) => {
                let Worker::Looked(told) = world.workers[number] else { return None };
                world.workers[number] = if told { Worker::Awake } else { Worker::Asleep };
            }
            Step::Copy(number) => {
                let Worker::Holds { fence, claim, .. } = world.workers[number] else { return None };
                world.workers[number] = Worker::Holds { fence, claim, verified: true };
            }
            Step::Renew(number) => {
                world.report(machine, number, |fence| Event::Renew { fence, lease: LEASE, progress: DONE });
            }
            Step::Verified(number) => {
                world.report(machine, number, |fence| Event::Verified {
                    fence,
                    progress: DONE,
                    verification: Verification::Verified,
                    warnings: Warnings::default(),
                });
            }
            Step::Faulted(number, again) => {
                let retry_after = again.then_some(RETRY);
                world.report(machine, number, |fence| Event::Faulted {
                    fence,
                    fault: fault(),
                    retry_after,
                    progress: DONE,
                });
            }
            Step::Release(number) => world.report(machine, number, |fence| Event::Release { fence }),
            Step::Crash(number) => world.workers[number] = Worker::Awake,
            Step::Rescue => {
                world.replica = Some(world.replica.as_ref()?.apply(Event::Expire, now).ok()?);
                world.raise(machine);
            }
            Step::Damage => {
                world.damaged += 1;
                world.happens(Event::Damaged { fault: fault() })?;
            }
            Step::Supersede => {
                world.superseded = true;
                world.happens(Event::Supersede)?;
            }
            Step::Suspend => {
                world.suspended += 1;
                world.happens(Event::Suspend { reason: fault() })?;
            }
            Step::Resume => {
                world.happens(Event::Resume)?;
                world.raise(machine);
            }
            Step::Tick => {
                world.now = now.after(Duration::from_millis(1));
                world.look_by_themselves();
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is broken", |_, world: &World| world.broken.is_none()),
            Property::always("none lost", |_, world: &World| {
                !world.calls.contains(&Call::Waits) || world.standing() == Standing::Underway
            }),
            Property::always("awake", |_, world: &World| {
                let due = world.rung && world.replica.as_ref().is_some_and(|replica| replica.claimable(world.now));
                !due || world.workers.iter().any(|worker| match worker {
                    Worker::Awake | Worker::Holds { .. } => true,
                    Worker::Looked(told) => *told,
                    Worker::Asleep => false,
                }) || world.claims >= CLAIMS
            }),
            Property::always("superseded for good", |_, world: &World| {
                let status = world.replica.as_ref().map(Replica::status);
                !world.superseded || status == Some(RegionStatus::Superseded)
            }),
            // Checks that the relevant states are reachable.
            Property::sometimes("a copy is there", |_, world: &World| world.standing() == Standing::Available),
            Property::sometimes("a copy is suspended", |walk: &Self, world: &World| {
                !walk.suspends || world.is_suspended()
            }),
            Property::always("suspended", |_, world: &World| {
                !world.is_suspended() || !world.replica.as_ref().is_some_and(|replica| replica.claimable(world.now))
            }),
            Property::sometimes("a copy was tried twice", |_, world: &World| {
                world.replica.as_ref().is_some_and(|replica| replica.attempt == 2)
            }),
            Property::sometimes("two believe that they hold it", |_, world: &World| {
                world.workers.iter().filter(|worker| matches!(worker, Worker::Holds { .. })).count() >= 2
            }),
            Property::sometimes("a name was taken over", |_, world: &World| world.superseded),
            Property::sometimes("all calls have ended", |walk: &Self, world: &World| {
                world.calls.len() == walk.calls() && !world.calls.contains(&Call::Waits)
            }),
        ]
    }
}

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

/// Returns the invariants that an injected fault violates, with the length of the shortest counterexample.
fn found(machine: Machine) -> Vec<&'static str> {
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
        assert!(!found(machine).is_empty(), "{machine:?} was not found out");
    }
}

/// The replay rejects histories that a faulty service would produce.
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
    assert_eq!(explain(Some(&requested), &available, lease), None, "nobody had claimed it");
    assert_eq!(explain(Some(&available), &claimed, lease), None, "it had ended");
    let unfenced = Replica { fence: claimed.fence - 1, ..available.clone() };
    assert_eq!(explain(Some(&claimed), &unfenced, lease), None, "an old fence");
    assert_eq!(explain(None, &claimed, lease), None, "it came from nowhere");
}
