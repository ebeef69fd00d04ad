//! Free space that is promised to copies: each copy reserves what it is about to write, so that the copies that are admitted
//! together fit together.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Error, Result};

/// What is reserved of one file system, by all copies of this process.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<u64>);

impl Ledger {
    /// A number can't be left half-changed by a panic.
    fn reserved(&self) -> MutexGuard<'_, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one copy has reserved. It shrinks as the copy writes, and the rest is released when the last clone is dropped.
#[derive(Debug, Clone, Default)]
pub struct Reservation(Arc<Mutex<Option<Held>>>);

/// A part of a ledger's reserved bytes.
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

    /// Reserves `bytes` instead of what was reserved before. `free` is what the file system has, less what is kept free there.
    /// Refuses if other copies leave less than that; then nothing stays reserved.
    pub fn replace(&self, ledger: &Arc<Ledger>, bytes: u64, free: u64) -> Result<()> {
        let mut held = self.held();
        // Released first: a copy that looks again must not be refused because of itself.
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

    /// Counts bytes as written: the file system says by itself that they are no longer free.
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

        // What is written is no longer free, and no longer reserved.
        first.written(30);
        assert_eq!(refused(third.replace(&ledger, 40, 70)), 20);

        // The rest of what an ended copy had reserved is for others.
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
        // More than was reserved, as when a damaged blob is written again.
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
