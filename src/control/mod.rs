//! The daemon as others talk to it: HTTP/1.1 with JSON over unix sockets, and a scrape over TCP.
//!
//! Knows no settings and starts nothing: [`serve`] answers on a listener until it is told to stop,
//! out of an [`Api`]. Two sockets differ in [`Rights`] alone: pods ask at one, administrators
//! change things at the other. `openapi.json` beside this file is the contract; a test holds the
//! running server to it.

mod answer;
mod api;
mod bind;
mod connection;
mod gates;
mod looks;
mod request;
mod routes;
mod scrape;
mod shared;
mod verify;

pub use api::{Api, Phase, Rights, SharedAnswers};
pub use bind::{Bound, bind};
pub use connection::{Tables, serve, serve_scrapes};
pub use looks::Looks;

/// Every call at the unix sockets: method, path, and what it takes to make it.
pub fn calls() -> impl Iterator<Item = (&'static str, &'static str, Rights)> {
    routes::CALLS.iter().map(|(method, path, rights)| (method.as_str(), *path, *rights))
}

/// The contract, as `GET /v1/openapi.json` gives it.
pub const OPENAPI: &str = include_str!("openapi.json");
