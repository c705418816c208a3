//! The binary against the kernel: real mounts, daemons of another user that are killed, and peers
//! that mean no good. Needs root and /dev/fuse; without them each test says that it was skipped.
//! `LARDER_KEEPER` names another binary to test, such as the static one of the image.

mod adoptions;
mod binds;
mod containers;
mod daemon;
mod life;
mod mounts;
mod peers;
mod publishes;
mod scene;
mod sockets;
