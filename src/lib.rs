//! larder keeps one verified copy of a model per node.
#![doc = include_str!("ARCHITECTURE.md")]
#![warn(missing_docs, clippy::disallowed_methods, clippy::print_stderr, clippy::print_stdout)]
#![warn(clippy::cast_precision_loss, clippy::zombie_processes)]
#![cfg_attr(not(test), warn(clippy::cast_possible_truncation))]

pub mod cache;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod control;
pub mod csi;
pub mod daemon;
pub mod domain;
pub mod fetch;
pub mod lanes;
pub mod mount;
pub mod net;
pub mod remote;
pub mod report;
pub mod store;
pub mod telemetry;
