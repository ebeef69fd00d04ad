//! The workers: they claim what is due, carry it, and report. They know the way of a call only from the database; whatever
//! they were doing when they died, another one finds there and goes on.

mod carriage;
mod destination;
mod ecs;
mod heartbeat;
mod housekeeping;
mod import;
mod journal;
mod lag;
mod limits;
mod pass;
mod pump;
mod reader;
mod region_check;
mod settings;
mod tracing_links;
mod underway;
mod wanting;
mod worker;

pub use housekeeping::{Housekeeper, Settings as HousekeepingSettings};
pub use import::import;
pub use pass::Trouble;
pub use settings::Settings;
pub use worker::Worker;
