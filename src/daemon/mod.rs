//! The daemon's frame: settings, where its files lie, the lock that keeps it alone, its CPUs, its service manager.
#![forbid(unsafe_code)]

pub mod cpus;
pub mod lock;
pub mod notify;
pub mod paths;
pub mod settings;
pub(crate) mod settings_file;
mod settings_records;

use crate::daemon::settings::Settings;

/// Why the daemon ended other than well.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The place is taken or cannot be used.
    #[error(transparent)]
    Lock(#[from] lock::LockError),
    /// A directory cannot be made.
    #[error(transparent)]
    Path(#[from] paths::PathError),
    /// Signals cannot be heard.
    #[error("cannot listen for signals: {0}")]
    Signals(std::io::Error),
}

/// Holds the place, says that it is ready, and waits for a signal to stop.
pub fn run(settings: Settings) -> Result<(), RunError> {
    settings.layout.create()?;
    let now = jiff::Timestamp::now();
    let lock = lock::Lock::take(&settings.layout, now)?;
    let mut signals = signal_hook::iterator::Signals::new([signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT])
        .map_err(RunError::Signals)?;
    let socket = lock.bind(&settings.layout.socket)?;
    drop(settings.layout.write_project_file(now));
    notify::ready("listening");
    signals.forever().next();
    notify::stopping();
    drop(socket);
    Ok(())
}
