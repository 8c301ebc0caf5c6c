//! Everything the commands say to a daemon, through `client`; turns its errors into sentences.

use super::Failure;
use crate::base::Sequence;
use crate::daemon::paths::{Environment, Layout, Place};
use crate::daemon::{lock, settings};
use crate::wire::QueryKind;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a question may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// The daemon that is meant.
pub(super) struct Reach {
    pub(super) layout: Layout,
    pub(super) socket: PathBuf,
}

impl Reach {
    pub(super) fn of(data_dir: Option<&Path>, socket: Option<&Path>, global: bool) -> Result<Reach, Failure> {
        let place = Place { data_dir: data_dir.map(Into::into), socket: socket.map(Into::into), global };
        let layout = Layout::of(&place, &Environment::of_process()).map_err(Failure::failed)?;
        let socket = settings::socket_of_running(&layout);
        Ok(Reach { layout, socket })
    }

    /// Said when nobody answers.
    pub(super) fn not_running(&self) -> String {
        let whose = match &self.layout.root {
            Some(root) => format!("for {}", root.display()),
            None => "for this machine (--global)".to_owned(),
        };
        format!("no relay is running {whose} (socket {}); start one with `relay up`", self.socket.display())
    }

    fn is_running(&self) -> bool {
        lock::live_holder(&self.layout).is_some()
    }
}
