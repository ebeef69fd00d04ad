//! The service as its users meet it: one binary, one module a promise.
#![allow(missing_docs, clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod abuse;
mod acceptance;
mod authorization;
mod chaos;
mod conformance;
mod contract;
mod copying;
mod crash;
mod credentials;
mod databases;
mod documents;
mod ecs;
mod faults;
mod fuzzed;
mod harness;
mod hostile;
mod limits;
mod logs;
mod metrics;
mod model;
mod openapi;
mod passes;
mod policies;
mod program;
mod refusals;
mod registries;
mod relays;
mod reloading;
mod shutdown;
mod tls;
mod traces;
mod trouble;
mod upheaval;
mod verification;
mod watch;
