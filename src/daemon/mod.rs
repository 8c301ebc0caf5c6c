//! The daemon's frame: settings, where its files lie, the lock that keeps it alone, its CPUs, its service manager.
#![forbid(unsafe_code)]

pub mod cpus;
pub mod lock;
pub mod notify;
pub mod paths;
pub mod settings;
pub(crate) mod settings_file;
