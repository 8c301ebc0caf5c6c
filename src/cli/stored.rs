//! The store without the daemon: where it lies, who may touch it, and a walk through all of it in short reads.

use super::print::{self, Progress};
use super::reach::Reach;
use super::{Failure, talk, up};
use crate::daemon::lock::Lock;
use crate::daemon::paths::{self, Layout};
use crate::daemon::settings::Flags;
use crate::daemon::settings_key::KeyText;
use crate::history::{self, Beside};
use crate::relay::Memory;
use crate::store::index::{GroupLimits, Tail};
use crate::store::{Key, MessageRef, Options, RecordRef, Store};
use crate::wire::QueryKind;
use parking_lot::RwLock;
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A read of the store is begun anew after this long, since it keeps old pages from being used again …
const READ_TIME: Duration = Duration::from_millis(20);
/// … or after this many bytes.
const READ_BYTES: u64 = 4 * 1024 * 1024;

/// The store of one place, and the key that was given for it.
pub(super) struct Place {
    pub(super) layout: Layout,
    key: Option<Key>,
    map_bytes: usize,
}

impl Place {
    pub(super) fn of(data_dir: Option<&Path>, global: bool, db_key: Option<&Path>) -> Result<Place, Failure> {
        let place = paths::Place { data_dir: data_dir.map(Into::into), socket: None, global };
        let values = db_key.map(|path| ("persistence.db_key", path.display().to_string()));
        let settings = up::settings(&Flags { place, config: None, values: values.into_iter().collect() })?;
        let key = settings.db_key.as_ref().map(key_of).transpose()?;
        Ok(Place { layout: settings.layout, key, map_bytes: settings.map_bytes })
    }

    /// Its folder.
    pub(super) fn folder(&self) -> PathBuf {
        self.layout.store_folder()
    }

    pub(super) fn key(&self) -> Option<Key> {
        self.key.clone()
    }

    /// Keeps daemons out until it is dropped; a running one is named.
    pub(super) fn lock(&self) -> Result<Lock, Failure> {
        self.layout.create().map_err(Failure::failed)?;
        Lock::take(&self.layout, jiff::Timestamp::now()).map_err(Failure::failed)
    }

    /// How to open it.
    pub(super) fn options(&self) -> Options {
        Options { map_bytes: self.map_bytes, ..Options::new(self.folder(), self.key()) }
    }

    /// For reading, beside a running daemon or without one.
    pub(super) fn open_for_reading(&self) -> Result<Store, Failure> {
        Store::open(self.options().reading()).map_err(Failure::failed)
    }

    /// For writing, by whoever holds the lock.
    pub(super) fn open_for_writing(&self) -> Result<Store, Failure> {
        let store = Store::open(self.options()).map_err(Failure::failed)?;
        let seconds = u32::try_from(jiff::Timestamp::now().as_second()).unwrap_or(0);
        store.begin_epoch(seconds, 0).map_err(Failure::failed)?;
        Ok(store)
    }
}

/// Answers what a daemon would be asked, from the store itself, as it was when this was opened.
pub(super) struct Reader {
    store: Store,
    tail: RwLock<Tail>,
    memory: RwLock<Memory>,
    beside: Beside,
}

impl Reader {
    pub(super) fn open(place: &Place) -> Result<Reader, Failure> {
        let store = place.open_for_reading()?;
        // What the daemon has not indexed yet: at most one group.
        let tail = RwLock::new(store.tail(GroupLimits::default()).map_err(Failure::failed)?);
        let damage = store.index(&tail, false).map_err(Failure::failed)?;
        let (memory, behind) = store.recover_readable().map_err(Failure::failed)?;
        let (memory, damage) = (RwLock::new(memory), damage.or(behind));
        Ok(Reader { store, tail, memory, beside: Beside { trouble: None, damage } })
    }

    /// The answer, a JSON value.
    pub(super) fn ask(&self, kind: QueryKind, arguments: &Value) -> Result<Value, Failure> {
        let (failed, answer) =
            history::answer(&self.store, &self.tail, &self.memory, &self.beside, kind, &arguments.to_string());
        let value: Value = serde_json::from_slice(&answer).map_err(Failure::failed)?;
        match (failed, value["error"].as_str()) {
            (true, reason) => Err(Failure::Failed(reason.unwrap_or("the store could not answer").to_owned())),
            (false, _) => Ok(value),
        }
    }
}

/// Who answers questions about what is stored: the relay, or, while it is off, its store.
pub(super) enum Source {
    Relay(Box<Reach>),
    Store(Box<Reader>),
}

impl Source {
    /// The one that `reach` means; `db_key` is for an encrypted store.
    pub(super) fn of(
        reach: Reach,
        (data_dir, global): (Option<&Path>, bool),
        db_key: Option<&Path>,
    ) -> Result<Source, Failure> {
        if !reach.is_off() || !reach.layout.store_folder().exists() {
            return Ok(Source::Relay(Box::new(reach)));
        }
        let mut progress = Progress::start();
        progress.show("reading the store …");
        let place = Place::of(data_dir, global, db_key)?;
        Ok(Source::Store(Box::new(Reader::open(&place)?)))
    }

    pub(super) fn ask(&self, kind: QueryKind, arguments: &Value) -> Result<Value, Failure> {
        match self {
            Source::Relay(reach) => talk::ask(reach, kind, arguments),
            Source::Store(reader) => reader.ask(kind, arguments),
        }
    }
}

/// What is missing from pages, and why: each part of it once.
#[derive(Debug, Default)]
pub(super) struct Missing {
    damaged: Option<String>,
    uncommitted_since: Option<String>,
}

impl Missing {
    /// Takes note of what a page says of itself.
    pub(super) fn note(&mut self, answer: &Value) {
        for (part, key) in [(&mut self.damaged, "damaged"), (&mut self.uncommitted_since, "uncommitted_since")] {
            if let (None, Some(said)) = (&part, answer[key].as_str()) {
                *part = Some(said.to_owned());
            }
        }
    }

    /// What damage has left out, in a sentence.
    pub(super) fn damage(&self) -> Option<String> {
        self.damaged.as_ref().map(|damage| {
            format!(
                "the store is damaged ({damage}): what cannot be read there was left out; `relay doctor` names every place"
            )
        })
    }

    /// Says all of it on standard error.
    pub(super) fn say(&self) {
        if let Some(sentence) = self.damage() {
            print::note(&sentence);
        }
        if let Some(since) = &self.uncommitted_since {
            print::note(&format!(
                "the store has taken nothing since {since}: what was accepted since then waits and is not shown; \
                 `relay status` says why"
            ));
        }
    }
}

/// A key from its text.
pub(super) fn key_of(text: &KeyText) -> Result<Key, Failure> {
    Key::parse(text.reveal()).map_err(Failure::failed)
}

/// Each message that is in the store now, the oldest first; with it, how much of the store has been read (0 to 1). A
/// message to agents of several shards comes once for each.
pub(super) fn each_message(
    store: &Store,
    mut each: impl FnMut(&MessageRef<'_>, f64) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (first, last) =
        (store.first_segment().map_err(Failure::failed)?, store.last_segment().map_err(Failure::failed)?);
    let mut next = first;
    while next <= last {
        let snapshot = store.snapshot().map_err(Failure::failed)?;
        // What retention has swept away meanwhile is gone.
        next = next.max(snapshot.first_segment().map_err(Failure::failed)?);
        let (begun, mut bytes) = (Instant::now(), 0);
        while next <= last && bytes < READ_BYTES && begun.elapsed() < READ_TIME {
            let Some(mut segment) = snapshot.segment(next).map_err(Failure::failed)? else { break };
            bytes += u64::from(segment.header().bytes);
            next += 1;
            let done = (next - first) as f64 / (last - first + 1) as f64;
            let mut result = Ok(());
            let read = segment.records(|_, record| {
                if let RecordRef::Message(message) = &record {
                    result = each(message, done);
                }
                if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            });
            read.map_err(Failure::failed)?;
            result?;
        }
    }
    Ok(())
}
