//! The daemon's frame: settings, where its files lie, the lock that keeps it alone, its CPUs, its service manager.
#![forbid(unsafe_code)]

mod audit;
mod clerk;
pub mod cpus;
mod harden;
mod headroom;
pub mod licence;
pub mod licence_desk;
pub mod lock;
mod logs;
pub mod notify;
pub mod paths;
mod presence;
mod registrar;
mod run;
pub mod settings;
pub(crate) mod settings_file;
pub mod settings_key;
mod settings_protection;
mod settings_records;
pub(crate) mod storage;
mod trail;
mod witness;

pub use run::{DaemonError, Ready, run, run_temporary};
