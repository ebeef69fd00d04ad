//! The service as its users meet it: one binary, one module a promise.
#![allow(missing_docs, clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod acceptance;
mod authorization;
mod conformance;
mod contract;
mod copying;
mod crash;
mod documents;
mod faults;
mod harness;
mod hostile;
mod limits;
mod passes;
mod program;
mod refusals;
mod registries;
mod relays;
mod shutdown;
mod traces;
mod verification;
mod watch;
