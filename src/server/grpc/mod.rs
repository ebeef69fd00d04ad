//! gRPC handlers of the contract's methods. They parse messages into domain types, query the database and the stores,
//! and convert the results back.

mod call_deadline;
mod convert;
mod convert_image;
mod handle;
mod image;
mod image_fields;
mod operation_fields;
mod operations;
mod pagination;
mod permit;
mod source_image;
mod state_error;
mod sync;
mod verify;

pub use call_deadline::CallDeadline;
pub use image::ImageHandlers;
pub use permit::Permit;
pub use sync::SyncHandlers;
