//! The transitions of the model and its invariants.

use std::time::Duration;

use appferry::domain::{
    Event, Fault, FaultKind, Progress, RegionStatus, Replica, Standing, Timestamp, Verification, Warnings,
};
use stateright::{Model, Property};

use super::world::{CLAIMS, Call, LEASE, Machine, Worker, World};

const WORKERS: usize = 3;
/// The last time in the model, in milliseconds. Time advances by one millisecond at a time.
const LAST: i64 = 4;
/// Delay of a retry, which is half as long as a lease.
const RETRY: Duration = Duration::from_millis(1);
const CALLS: usize = 3;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
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

/// A model with all transitions of one state machine.
pub struct Walk {
    pub machine: Machine,
    /// Whether the region may be removed from the configuration once. If so, the model has fewer workers and calls,
    /// because the state space would be too large otherwise.
    pub suspends: bool,
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
        // The service rejects a takeover of the name while a copy is in progress.
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
            Step::Call => world.call(machine)?,
            Step::Cancel => world.cancel()?,
            Step::Look(number) => world.look(machine, number)?,
            Step::Sleep(number) => {
                let Worker::Looked(notified) = world.workers[number] else { return None };
                world.workers[number] = if notified { Worker::Awake } else { Worker::Asleep };
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
                world.apply(Event::Damaged { fault: fault() })?;
            }
            Step::Supersede => {
                world.superseded = true;
                world.apply(Event::Supersede)?;
            }
            Step::Suspend => {
                world.suspended += 1;
                world.apply(Event::Suspend { reason: fault() })?;
            }
            Step::Resume => {
                world.apply(Event::Resume)?;
                world.raise(machine);
            }
            Step::Tick => {
                world.now = now.after(Duration::from_millis(1));
                world.poll();
            }
        }
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is broken", |_, world: &World| world.broken.is_none()),
            Property::always("none lost", |_, world: &World| {
                !world.calls.contains(&Call::Waits) || world.standing() == Standing::InFlight
            }),
            Property::always("awake", |_, world: &World| {
                let due = world.rung && world.replica.as_ref().is_some_and(|replica| replica.claimable(world.now));
                !due || world.workers.iter().any(|worker| match worker {
                    Worker::Awake | Worker::Holds { .. } => true,
                    Worker::Looked(notified) => *notified,
                    Worker::Asleep => false,
                }) || world.claims >= CLAIMS
            }),
            Property::always("superseded for good", |_, world: &World| {
                let status = world.replica.as_ref().map(Replica::status);
                !world.superseded || status == Some(RegionStatus::Superseded)
            }),
            // These properties check that the relevant states are reachable.
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
