//! The instruments of the service, and spans that cost little.
//!
//! The root package exports them; nothing is recorded without an export.

mod leaf_span;
pub mod metrics;

pub use leaf_span::{leaf_span, set_tracer};
