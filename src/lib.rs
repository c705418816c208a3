//! larder keeps one verified copy of a model per node.
#![allow(missing_docs)]
pub mod cli;
pub mod domain;
pub mod fetch;
pub mod remote;
pub mod store;
