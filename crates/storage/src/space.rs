//! Reserves free space for copies, so that all copies that run at the same time have enough space.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Error, Result};

/// The bytes of one file system that all copies of this process have reserved.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<u64>);

impl Ledger {
    /// Recovers from poisoning: a panic can't leave the number half-changed.
    fn reserved(&self) -> MutexGuard<'_, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reservation of one copy. It shrinks as the copy writes. The rest is released when the last clone is dropped.
#[derive(Debug, Clone, Default)]
pub struct Reservation(Arc<Mutex<Option<Held>>>);

/// A share of a ledger's reserved bytes.
#[derive(Debug)]
struct Held {
    ledger: Arc<Ledger>,
    bytes: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut reserved = self.ledger.reserved();
        *reserved = reserved.saturating_sub(self.bytes);
    }
}

impl Reservation {
    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves `bytes` in place of the previous reservation. `free` is the file system's free space less the part that
    /// is kept free. Fails if other copies' reservations leave less than `bytes`; the copy then has no reservation.
    pub fn replace(&self, ledger: &Arc<Ledger>, bytes: u64, free: u64) -> Result<()> {
        let mut held = self.held();
        // Released first, so that a copy's own reservation does not cause its rejection.
        drop(held.take());
        let mut reserved = ledger.reserved();
        let available = free.saturating_sub(*reserved);
        if bytes > available {
            return Err(Error::NoSpace { needed: bytes, available });
        }
        *reserved = reserved.saturating_add(bytes);
        drop(reserved);
        *held = Some(Held { ledger: Arc::clone(ledger), bytes });
        Ok(())
    }

    /// Releases bytes that were written: the file system no longer counts them as free.
    pub fn written(&self, bytes: u64) {
        if let Some(held) = &mut *self.held() {
            let bytes = bytes.min(held.bytes);
            held.bytes -= bytes;
            let mut reserved = held.ledger.reserved();
            *reserved = reserved.saturating_sub(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, Ledger, Reservation};

    fn refused(result: super::Result<()>) -> u64 {
        match result {
            Err(Error::NoSpace { available, .. }) => available,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn copies_that_are_admitted_together_fit_together() {
        let ledger = std::sync::Arc::<Ledger>::default();
        let [first, second, third] = [(); 3].map(|()| Reservation::default());
        first.replace(&ledger, 40, 100).expect("there is room");
        second.replace(&ledger, 40, 100).expect("there is room");
        assert_eq!(refused(third.replace(&ledger, 40, 100)), 20);

        // Written bytes are neither free nor reserved.
        first.written(30);
        assert_eq!(refused(third.replace(&ledger, 40, 70)), 20);

        // The rest of a finished copy's reservation is available to others.
        drop(first);
        drop(second);
        third.replace(&ledger, 70, 70).expect("there is room");
    }

    #[test]
    fn a_copy_that_reserves_again_is_not_refused_because_of_itself() {
        let ledger = std::sync::Arc::<Ledger>::default();
        let own = Reservation::default();
        own.replace(&ledger, 80, 100).expect("there is room");
        own.replace(&ledger, 90, 100).expect("there is room");
        // More bytes than were reserved, as when a damaged blob is written again.
        own.written(500);
        Reservation::default().replace(&ledger, 100, 100).expect("nothing is reserved any more");
        assert_eq!(refused(own.replace(&ledger, 101, 100)), 100);
        Reservation::default().replace(&ledger, 100, 100).expect("a refused copy holds nothing");
    }

    #[test]
    fn clones_share_a_reservation() {
        let ledger = std::sync::Arc::<Ledger>::default();
        let own = Reservation::default();
        let clone = own.clone();
        own.replace(&ledger, 60, 100).expect("there is room");
        drop(own);
        assert_eq!(refused(Reservation::default().replace(&ledger, 60, 100)), 40);
        drop(clone);
        Reservation::default().replace(&ledger, 60, 100).expect("it was released");
    }
}
