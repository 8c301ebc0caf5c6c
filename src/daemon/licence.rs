//! The licence of a running daemon: known before the first listener opens, looked at every hour by a thread of its own, and
//! what is in force is there for whoever asks. Everything it does with the world it does through the desk.

use super::licence_desk::{Desk, DeskPlace, PATIENCE, reading};
use super::settings::Settings;
use crate::base::tier::{Entitled, Entitlement, Feature, Refused};
use crate::licence::{Standing, is_evaluation_build};
use serde_json::Value;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// How long the check at start may hold up the first listener, all in all.
pub const START_PATIENCE: Duration = Duration::from_secs(3);
/// What of it the server may take.
const START_ASK_PATIENCE: Duration = Duration::from_millis(2_700);
/// How often usage is written and the clocks are looked at.
const TURN: Duration = Duration::from_secs(60);
/// How often what the operator should do something about is said again.
const REMIND: Duration = Duration::from_secs(24 * 3_600);
/// How often what is known is written although nothing has changed.
const SAVE: Duration = Duration::from_secs(3_600);

/// Whether everything that settings ask for is granted. Asked before any listener opens.
pub fn gates(settings: &Settings, entitlement: &Entitlement) -> Result<(), Refused> {
    let off_loopback = settings.listen.iter().any(|address| !address.ip().is_loopback());
    let asked = [
        (settings.require_auth, Feature::Authentication),
        (settings.tls.is_some(), Feature::TlsEncryption),
        (settings.db_key.is_some(), Feature::StorageEncryption),
        (off_loopback, Feature::TcpTransport),
    ];
    // Retention is lowered instead, and so is not among them.
    asked.into_iter().filter(|(wanted, _)| *wanted).try_for_each(|(_, feature)| entitlement.require(feature))
}

/// The licence of this daemon.
pub struct Licence {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    ring: Condvar,
}

struct State {
    desk: Desk,
    entitled: Entitled,
    standing: Standing,
    /// Whether the check at start is over.
    checked: bool,
    stopping: bool,
    /// When the clock and the documents were last written; never: at the first look, so that a boot that ends at once counts.
    saved: Option<Instant>,
    reminded: Instant,
}

impl State {
    /// Takes in a look at the licence.
    fn take(&mut self, changed: Option<Entitlement>) {
        let now = reading();
        let has_changed = changed.is_some();
        if let Some(entitlement) = changed {
            tracing::info!(tier = entitlement.tier.name(), "the licence grants something else now");
            self.entitled = Arc::new(entitlement);
        }
        let standing = self.desk.holder().standing(now);
        let turned = standing != self.standing;
        self.standing = standing;
        if turned || self.reminded.elapsed() >= REMIND {
            self.reminded = Instant::now();
            tracing::info!(state = standing.name(), "licence: {}", self.desk.holder().sentence(now));
            for warning in self.desk.warnings(now) {
                tracing::warn!("licence: {warning}");
            }
        }
        let saved = if turned || has_changed || self.saved.is_none_or(|saved| saved.elapsed() >= SAVE) {
            self.saved = Some(Instant::now());
            self.desk.save(now)
        } else {
            self.desk.save_project()
        };
        if let Err(error) = saved {
            tracing::warn!(%error, "what is known of the licence could not be written");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Its holder panicked between two values that are each whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Licence {
    /// Reads the licence, and if it has to be confirmed asks the server, no longer than [`START_PATIENCE`] in all. Never
    /// fails: without a good licence this is the community tier.
    pub fn start(settings: &Settings) -> Licence {
        Licence::at(DeskPlace::of(settings))
    }

    /// The same, of this place.
    pub fn at(place: DeskPlace) -> Licence {
        let begun = Instant::now();
        let now = reading();
        let desk = Desk::open(place, now);
        let entitled = Arc::new(desk.holder().entitlement().clone());
        let standing = desk.holder().standing(now);
        let asks = desk.holder().wants_answer(now).is_some();
        let state = State { desk, entitled, standing, checked: !asks, stopping: false, saved: None, reminded: begun };
        let shared = Arc::new(Shared { state: Mutex::new(state), ring: Condvar::new() });
        let own = shared.clone();
        let thread = match Builder::new().name("relay-licence".into()).spawn(move || watch(&own)) {
            Ok(thread) => Some(thread),
            Err(error) => {
                tracing::error!(%error, "the licence cannot be watched: it stays as it is");
                shared.state().checked = true;
                None
            }
        };
        let mut state = shared.state();
        while !state.checked {
            let Some(left) = START_PATIENCE.checked_sub(begun.elapsed()).filter(|left| !left.is_zero()) else { break };
            state = shared.ring.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(state);
        Licence { shared, thread }
    }

    /// What the daemon goes by: what is granted, with the retention that is in force.
    pub fn in_force(&self) -> Entitled {
        let state = self.shared.state();
        let retention_days_max = state.desk.holder().retention_days_max();
        if retention_days_max == state.entitled.retention_days_max {
            return state.entitled.clone();
        }
        Arc::new(Entitlement { retention_days_max, ..(*state.entitled).clone() })
    }

    /// The longest retention in force, in days: what is granted, or what was until 7 days ago. `None` is unlimited.
    pub fn retention_days_max(&self) -> Option<u32> {
        self.shared.state().desk.holder().retention_days_max()
    }

    /// How it stands, in a word and a sentence.
    pub fn standing(&self) -> (&'static str, String) {
        let state = self.shared.state();
        let now = reading();
        (state.desk.holder().standing(now).name(), state.desk.holder().sentence(now))
    }

    /// What the operator should be told at start and in `status`.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = self.shared.state().desk.warnings(reading());
        if is_evaluation_build() {
            warnings.push("evaluation build: it believes licences that anybody can make".to_owned());
        }
        warnings
    }

    /// Everything there is to say about it.
    pub fn show(&self) -> Value {
        self.shared.state().desk.show(reading())
    }

    /// Reads the licence anew, since the operator has changed it; the server is asked soon, if it has to be.
    pub fn reload(&self) -> Value {
        let mut state = self.shared.state();
        let now = reading();
        let changed = state.desk.reload(now);
        state.take(changed);
        self.shared.ring.notify_all();
        state.desk.show(now)
    }

    /// The answer to a question of [`QueryKind::License`](crate::wire::QueryKind): `{"op": "show"}` or `{"op": "reload"}`.
    pub fn answer(&self, arguments: &str) -> Result<Value, String> {
        let arguments: Value = serde_json::from_str(arguments).unwrap_or_default();
        match arguments.get("op").and_then(Value::as_str) {
            None | Some("show") => Ok(self.show()),
            Some("reload") => Ok(self.reload()),
            Some(other) => Err(format!("a licence can be asked to show or to reload, not to {other}")),
        }
    }

    /// So many agents are connected, and so many messages were accepted since the daemon started.
    pub fn note_usage(&self, agents: u64, messages_total: u64) {
        self.shared.state().desk.note_usage(reading(), agents, messages_total);
    }

    /// Writes what is to be known after a restart, and ends the thread unless it is asking the server: that is not waited for.
    pub fn stop(mut self) {
        let mut state = self.shared.state();
        state.stopping = true;
        if let Err(error) = state.desk.save(reading()) {
            tracing::warn!(%error, "what is known of the licence could not be written");
        }
        drop(state);
        self.shared.ring.notify_all();
        if let Some(thread) = self.thread.take_if(|thread| thread.is_finished()) {
            let _ = thread.join();
        }
    }
}

/// The thread's life: asks when it is time to, without holding anybody up, and looks.
fn watch(shared: &Shared) {
    let mut state = shared.state();
    loop {
        if state.stopping {
            return;
        }
        if state.desk.is_overtaken() {
            let changed = state.desk.reload(reading());
            state.take(changed);
        }
        let patience = if state.checked { PATIENCE } else { START_ASK_PATIENCE };
        if let Some(errand) = state.desk.errand(reading()) {
            drop(state);
            let answer = errand.run(patience);
            state = shared.state();
            if state.stopping {
                return;
            }
            state.desk.answered(reading(), &errand, answer);
        }
        let changed = state.desk.look(reading());
        state.take(changed);
        if !state.checked {
            state.checked = true;
            shared.ring.notify_all();
        }
        if state.stopping {
            return;
        }
        let due = Duration::from_millis(state.desk.holder().next_look_ms(reading()).max(1));
        state = shared.ring.wait_timeout(state, due.min(TURN)).unwrap_or_else(PoisonError::into_inner).0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::tier::Tier;
    use crate::daemon::paths::{Environment, Place};
    use crate::daemon::settings::{Flags, TlsFiles};

    #[test]
    fn every_gated_setting_asks_for_its_feature_and_names_the_tier() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place { data_dir: Some(directory.path().into()), global: true, ..Place::default() };
        let settings =
            || Settings::read(&Flags { place: place.clone(), ..Flags::default() }, &Environment::default()).unwrap();
        let mut auth = settings();
        auth.require_auth = true;
        let mut tls = settings();
        tls.tls = Some(TlsFiles { cert: "a".into(), key: "b".into(), ca: None, mutual: false, bind_names: false });
        let mut encrypted = settings();
        encrypted.db_key = Some(crate::daemon::settings_key::KeyText::new("key"));
        let mut open = settings();
        open.listen = vec!["192.0.2.1:7070".parse().unwrap()];
        let mut loopback = settings();
        loopback.listen = vec!["127.0.0.1:7070".parse().unwrap(), "[::1]:7070".parse().unwrap()];
        let table = [
            (settings(), None),
            (loopback, None),
            (auth, Some((Feature::Authentication, "Authentication requires Pro tier"))),
            (tls, Some((Feature::TlsEncryption, "TLS encryption requires Pro tier"))),
            (encrypted, Some((Feature::StorageEncryption, "Storage encryption requires Pro tier"))),
            (open, Some((Feature::TcpTransport, "TCP off loopback requires Team tier"))),
        ];
        for (settings, gated) in table {
            for tier in Tier::ALL {
                let found = gates(&settings, &Entitlement::of_tier(tier));
                match gated {
                    Some((feature, text)) if tier < feature.tier() => {
                        assert_eq!(found.unwrap_err().sentence(), text, "{tier:?}");
                    }
                    _ => assert_eq!(found, Ok(()), "{tier:?}"),
                }
            }
        }
    }
}
