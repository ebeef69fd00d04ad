//! The clock of a process that owns its database.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use domain::{Clock, SteadyClock, Timestamp};
use rustix::time::{ClockId, clock_gettime};

/// A clock that follows the system clock without its jumps.
#[derive(Debug)]
pub struct ProcessTime {
    wall: Clock,
    steady: Mutex<SteadyClock>,
}

impl ProcessTime {
    /// Creates a clock that starts at the system's time.
    pub fn start(wall: Clock) -> Self {
        let steady = Mutex::new(SteadyClock::new(wall.now(), elapsed_since_boot()));
        Self { wall, steady }
    }

    /// Returns the current time.
    pub fn now(&self) -> Timestamp {
        let mut steady = self.steady.lock().unwrap_or_else(PoisonError::into_inner);
        steady.now(self.wall.now(), elapsed_since_boot())
    }
}

/// Returns the time since the machine booted, independent of its wall clock. Includes the time in which it was
/// suspended where the system counts it (Linux, `CLOCK_BOOTTIME`).
pub fn elapsed_since_boot() -> Duration {
    #[cfg(target_os = "linux")]
    let clock = ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = ClockId::Monotonic;
    let time = clock_gettime(clock);
    let (seconds, nanos) = (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0));
    Duration::from_secs(seconds) + Duration::from_nanos(nanos)
}
