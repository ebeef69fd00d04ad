//! Interoperability with other programs that write and read images: whichever program writes an image, every program
//! reads the same image from every region. The results are in `docs/interop.md`.

mod matrix;
mod readers;
mod rejected_inputs;
mod signatures;
mod tools;
mod writers;

pub use readers::Place;
pub use tools::Tools;
