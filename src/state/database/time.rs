//! The time of a process, where it alone has the database.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};

use crate::domain::{Clock, SteadyClock, Timestamp};

/// A clock that follows the system's, and is not set with it.
#[derive(Debug)]
pub struct ProcessTime {
    wall: Clock,
    steady: Mutex<SteadyClock>,
}

impl ProcessTime {
    /// One that begins with the system's time.
    pub fn start(wall: Clock) -> Self {
        let steady = Mutex::new(SteadyClock::new(wall.now(), passed()));
        Self { wall, steady }
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        let mut steady = self.steady.lock().unwrap_or_else(PoisonError::into_inner);
        steady.tell(self.wall.now(), passed())
    }
}

/// The time that has passed since the machine was started, whatever its clock is set to; that in which it was suspended too, where the
/// system counts it.
pub fn passed() -> Duration {
    #[cfg(target_os = "linux")]
    let clock = ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = ClockId::Monotonic;
    let time = clock_gettime(clock);
    let (seconds, nanos) = (u64::try_from(time.tv_sec).unwrap_or(0), u64::try_from(time.tv_nsec).unwrap_or(0));
    Duration::from_secs(seconds) + Duration::from_nanos(nanos)
}
