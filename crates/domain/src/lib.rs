//! The domain model: ids, images, the replica's state machine, the decision to accept a call, and the plans of copies.
//!
//! Pure: no I/O, no system clock, no randomness; times and random numbers are passed in. Independent of protobuf, SQL
//! and stores.

mod accept;
mod backoff;
pub mod descriptors;
mod digest;
mod ecs;
mod error_chain;
mod fault;
mod foreign_text;
mod ids;
mod image;
mod leftover;
mod published;
pub mod ram;
mod regions;
pub mod relay;
mod replica;
mod secret;
mod steady_clock;
mod synchronization;
mod time;
mod warnings;

pub use accept::{AcceptError, Accepted, Registered, Standing, Step, accept};
pub use backoff::Backoff;
pub use digest::{Algorithm, ContentHasher, Digest, DigestError};
pub use ecs::{EcsCopy, EcsImage, EcsImageId, EcsStatus, EcsStep};
pub use error_chain::with_causes;
pub use fault::{Fault, FaultKind};
pub use foreign_text::{ForeignText, is_unprintable, printable, printable_json, printable_lines};
pub use ids::{ClientToken, IdError, ImageId, MAX_ID_LENGTH, MAX_TOKEN_LENGTH, RegionId, RequestId};
pub use image::{Content, Descriptor, Image, ImageKind, ImageName, UNNAMED};
pub use leftover::{ImageUse, Leftover, PartialFile, StoreEntry, leftovers};
pub use published::{NameContent, Published, Verification, VerifyExisting, may_publish};
pub use regions::{MAX_TARGETS, Regions, TargetError, Targets};
pub use replica::{Event, Lease, Outcome, Progress, Replica, ReplicaState, Stale, WorkerId};
pub use secret::Secret;
pub use steady_clock::{ClockState, ClockWatch, SteadyClock};
pub use synchronization::{RegionStatus, RegionView, Synchronization, SynchronizationState};
pub use time::{Clock, Timestamp};
pub use warnings::Warnings;
