//! Other people's programs, each in its own way of writing an image and of reading one: whatever writes it, it is carried, and whatever reads
//! it where it was carried to finds the same image. The table of what was seen is `docs/interop.md`.

mod matrix;
mod readers;
mod refused;
mod signatures;
mod tool;
mod writers;

pub use readers::Place;
pub use tool::Tools;
