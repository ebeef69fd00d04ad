//! The state of the model: one replica, its calls, and the workers.

use std::time::Duration;

use appferry::domain::{Event, Outcome, RegionStatus, Replica, Standing, Timestamp, WorkerId};
use stateright::Representative;

/// Maximum number of claims in one run of the model.
pub const CLAIMS: u8 = 4;
pub const LEASE: Duration = Duration::from_millis(2);

/// The state machine under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Machine {
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
pub enum Worker {
    /// The worker is about to poll.
    Awake,
    /// The worker has polled and found nothing. The flag is set if a notification has arrived since then.
    Looked(bool),
    /// The worker sleeps until a notification or its next poll.
    Asleep,
    /// The worker holds a claim, which need not be the last one.
    Holds { fence: u64, claim: u8, verified: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    Waits,
    Ended(RegionStatus),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    pub now: Timestamp,
    pub replica: Option<Replica>,
    pub calls: Vec<Call>,
    pub workers: Vec<Worker>,
    /// Whether workers were notified since the last claim that the replica is due. If the replica becomes due by the
    /// passing of time, workers find it by polling.
    pub rung: bool,
    pub claims: u8,
    pub canceled: u8,
    pub damaged: u8,
    /// Whether another image has taken over the name.
    pub superseded: bool,
    /// Number of removals of the region from the configuration.
    pub suspended: u8,
    /// The violated invariant, if any.
    pub broken: Option<&'static str>,
}

impl Representative for World {
    /// Reduces the state by symmetry: workers are interchangeable.
    fn representative(&self) -> Self {
        let mut same = self.clone();
        same.workers.sort_unstable();
        same
    }
}

impl World {
    pub fn standing(&self) -> Standing {
        Standing::from_status(self.replica.as_ref().map(Replica::status))
    }

    /// Applies an event to the replica. Returns `None` if the event is not valid.
    pub fn apply(&mut self, event: Event) -> Option<()> {
        self.replica = Some(self.replica.as_ref()?.apply(event, self.now).ok()?);
        Some(())
    }

    /// Wakes all sleeping workers, as their poll timers do.
    pub fn poll(&mut self) {
        for worker in &mut self.workers {
            if *worker == Worker::Asleep {
                *worker = Worker::Awake;
            }
        }
    }

    pub fn is_suspended(&self) -> bool {
        self.replica.as_ref().is_some_and(Replica::is_suspended)
    }

    pub fn raise(&mut self, machine: Machine) {
        self.rung = true;
        for worker in &mut self.workers {
            match worker {
                Worker::Asleep => *worker = Worker::Awake,
                // A worker that has just polled checks for new notifications before it sleeps.
                Worker::Looked(notified) => *notified = machine != Machine::LostWakeUp,
                _ => {}
            }
        }
    }

    /// Applies a worker's report, and forwards the result to the callers.
    pub fn report(&mut self, machine: Machine, worker: usize, event: impl Fn(u64) -> Event) {
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
                let notified = match event {
                    Event::Verified { .. } => RegionStatus::Available,
                    Event::Faulted { retry_after: None, .. } => RegionStatus::Failed,
                    _ => return,
                };
                self.settle(notified);
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
            self.broken = Some("a call was told a wrong outcome");
        }
        for call in &mut self.calls {
            if *call == Call::Waits {
                *call = Call::Ended(status);
            }
        }
    }

    /// Accepts a call. Returns `None` if the call is rejected, which changes nothing.
    pub fn call(&mut self, machine: Machine) -> Option<()> {
        match self.standing() {
            Standing::Available => return None,
            Standing::InFlight => self.calls.push(Call::Waits),
            Standing::Missing => {
                self.calls.push(Call::Waits);
                self.replica = Some(match &self.replica {
                    None => Replica::requested(self.now),
                    Some(ended) => ended.apply(Event::Request, self.now).ok()?,
                });
                self.raise(machine);
            }
        }
        Some(())
    }

    /// Cancels the first waiting call, and the replica as well if no other call waits for it.
    pub fn cancel(&mut self) -> Option<()> {
        self.canceled += 1;
        if self.calls.iter().filter(|call| **call == Call::Waits).count() == 1 {
            self.apply(Event::Cancel)?;
        }
        *self.calls.iter_mut().find(|call| **call == Call::Waits)? = Call::Ended(RegionStatus::Canceled);
        Some(())
    }

    /// Lets a worker poll, and claim the replica if it is due.
    pub fn look(&mut self, machine: Machine, worker: usize) -> Option<()> {
        let due = self.replica.clone().filter(|replica| replica.claimable(self.now) && self.claims < CLAIMS);
        self.workers[worker] = match due {
            None => Worker::Looked(false),
            Some(replica) => {
                let claim = Event::Claim { owner: WorkerId("w".into()), lease: LEASE };
                let mut claimed = replica.apply(claim, self.now).ok()?;
                if machine == Machine::NoNewFence {
                    claimed.fence = replica.fence;
                }
                let fence = claimed.fence;
                self.claims += 1;
                self.rung = false;
                self.replica = Some(claimed);
                Worker::Holds { fence, claim: self.claims, verified: false }
            }
        };
        Some(())
    }
}
