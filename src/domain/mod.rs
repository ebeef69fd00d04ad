//! What the service is about: ids, images, the replica's state machine, the decision to accept, and the reasons to refuse.
//!
//! Pure: no I/O, no clock, no randomness; they are passed in. Knows nothing of protobuf, SQL or stores.

mod accept;
mod backoff;
pub mod descriptors;
mod digest;
mod ecs;
mod fault;
mod foreign_text;
mod ids;
mod image;
mod leftover;
mod published;
mod regions;
pub mod relay;
mod replica;
mod secret;
mod steady_clock;
mod synchronization;
mod time;
mod warnings;

pub use accept::{Accepted, Refusal, Registered, Standing, Step, accept};
pub use backoff::Backoff;
pub use digest::{Algorithm, ContentHasher, Digest, DigestError};
pub use ecs::{EcsCopy, EcsImage, EcsImageId, EcsStatus, EcsStep};
pub use fault::{Fault, FaultKind, with_causes};
pub use foreign_text::{ForeignText, is_unprintable, printable, printable_json, printable_lines};
pub use ids::{ClientToken, IdError, ImageId, MAX_ID_LENGTH, MAX_TOKEN_LENGTH, RegionId, RequestId};
pub use image::{Content, Descriptor, Image, ImageKind, ImageName, UNNAMED};
pub use leftover::{FoundFile, FoundImage, ImageUse, Leftover, leftovers};
pub use published::{Published, Shown, Verification, VerifyExisting, may_publish};
pub use regions::{MAX_TARGETS, Regions, TargetError, Targets};
pub use replica::{Event, Lease, Outcome, Progress, Replica, Stale, State, WorkerId};
pub use secret::Secret;
pub use steady_clock::{Belief, ClockWatch, SteadyClock};
pub use synchronization::{RegionStatus, RegionView, Synchronization, SynchronizationState};
pub use time::{Clock, Timestamp};
pub use warnings::Warnings;
