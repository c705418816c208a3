//! What is below `daemonset/`: that Kubernetes knows every field of it, that it agrees with the code,
//! and that pods which use larder need no privilege.
//!
//! Nothing here needs a cluster. `kubectl` renders what is put together by kustomize; where it is not
//! installed, that is said and skipped.

mod agreement;
mod base;
mod examples;
mod guard;
mod kinds;
mod kustomize;
mod load;
mod models;
mod restricted;
mod uninstall;
