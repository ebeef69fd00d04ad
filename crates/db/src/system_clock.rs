//! The system's wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use domain::{Clock, Timestamp};

/// Returns a clock that reads the system's wall clock.
#[must_use]
pub fn system_clock() -> Clock {
    Clock::new(|| {
        #[expect(clippy::disallowed_methods, reason = "every other module receives this clock")]
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_millis(0).after(elapsed)
    })
}
