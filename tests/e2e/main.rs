//! larder as a user meets it: the binary, real servers on loopback, a real store on disk.

mod bad_input;
mod cli;
mod crash;
mod credentials;
mod csi;
mod damage;
mod faults;
mod gcs;
mod inject;
mod journeys;
mod mount;
mod names;
mod node;
mod output;
mod patience;
mod sharing;
mod small_disk;
mod support;
mod web;
