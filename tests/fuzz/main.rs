//! Fuzzing of everything that reads bytes of somebody else, on stable Rust.
//!
//! Each test is a target. It runs its corpus, `corpus/TARGET/`, and then mutations of it, for a
//! moment; `tests/fuzz/run` runs targets for as long as wanted, guided by coverage. Nothing may
//! panic, take longer than [`engine::PATIENCE`], or need more than [`engine::MEMORY_MAX`]; what is
//! true of all inputs beyond that, a target says itself.

mod control;
mod coverage;
mod csi;
mod engine;
mod hpack;
mod init;
mod keeper;
mod memory;
mod mutator;
mod origins;
mod store;
mod text;
