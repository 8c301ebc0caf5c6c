//! Where a licence meets the world: its files, the machine's clocks and the licence server, one step at a time on the
//! caller's thread. The thread of the daemon and the command line both work through it; what a licence means is decided in
//! `licence`.

use super::paths::Layout;
use super::presence::time_of;
use super::settings::{DAYS_MAX, Settings};
use crate::base::tier::Entitlement;
use crate::http::{Answer, Believed, Client, ClientError};
use crate::licence::{
    Beginning, CACHE_BYTES_MAX, Cache, DOCUMENT_BYTES_MAX, Given, Holder, KeyHash, Lapse, PublicKey, Reading, Standing,
    USAGE_BYTES_MAX, Usage, is_evaluation_build,
};
use crate::tls::{Authorities, LinkError};
use rustix::fs::OFlags;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use zeroize::Zeroizing;

/// How long the server may take when nobody waits for it.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// How often usage is tried to be reported, at most.
const REPORT_EVERY_MS: u64 = 3_600_000;
/// Days of usage that `show` tells.
const DAYS_SHOWN: usize = 7;

/// Where a licence is kept and whom it is confirmed by.
#[derive(Clone)]
pub struct DeskPlace {
    /// The machine's folder: the licence and what is known of it.
    pub base: PathBuf,
    /// The project's folder: usage and retention.
    pub folder: PathBuf,
    /// Which project.
    pub project: String,
    /// A key or document that goes before the activated one.
    pub given: Option<Zeroizing<String>>,
    /// The licence server; empty: none.
    pub server: String,
    /// Authorities by which its certificate is believed, PEM; none: the public ones.
    pub server_ca: Option<PathBuf>,
    /// Whether usage is reported.
    pub telemetry: bool,
    /// The retention that is asked for, in days; `None` is unlimited.
    pub retention_days: Option<u32>,
}

impl DeskPlace {
    /// The one that settings name.
    pub fn of(settings: &Settings) -> DeskPlace {
        let Layout { base, folder, id, .. } = &settings.layout;
        let licence = &settings.licence;
        DeskPlace {
            base: base.clone(),
            folder: folder.clone(),
            project: id.clone(),
            given: licence.given.as_ref().map(|text| Zeroizing::new(text.reveal().to_owned())),
            server: licence.server.clone(),
            server_ca: licence.ca.clone(),
            telemetry: licence.telemetry,
            retention_days: Some(settings.retention_days).filter(|days| *days < DAYS_MAX),
        }
    }

    fn licence_file(&self) -> PathBuf {
        self.base.join("license")
    }

    fn cache_file(&self) -> PathBuf {
        self.base.join("license.cache")
    }

    fn usage_file(&self) -> PathBuf {
        self.folder.join("usage.json")
    }

    fn lapse_file(&self) -> PathBuf {
        self.folder.join("retention.json")
    }
}

/// Something to be posted to the licence server.
#[derive(Clone, Debug)]
pub struct Errand {
    url: String,
    body: String,
    ca: Option<PathBuf>,
    about: About,
}

#[derive(Clone, Debug)]
enum About {
    /// The licence of this key; the answer must hold this nonce.
    Licence { key: KeyHash, nonce: String },
    /// Usage up to this day.
    Usage { last_day: String },
}

impl Errand {
    /// Does it; only here is anybody ever connected to. The authorities are read each time: they may have been renewed.
    pub fn run(&self, patience: Duration) -> Result<Answer, ClientError> {
        let believed = match &self.ca {
            Some(file) if self.url.starts_with("https://") => Believed::These(Authorities::read(file)?),
            _ => Believed::Public,
        };
        Client::new(concat!("agent-relay/", env!("CARGO_PKG_VERSION")), believed).post(&self.url, &self.body, patience)
    }
}

/// The machine's clocks, now.
pub fn reading() -> Reading {
    let wall_ms = jiff::Timestamp::now().as_millisecond().max(0) as u64;
    // The one that counts the machine's sleep.
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let boot_ms = boot.tv_sec.max(0) as u64 * 1_000 + boot.tv_nsec.max(0) as u64 / 1_000_000;
    Reading { wall_ms, boot_ms }
}

/// Which boot of the machine this is; a text of its own where the kernel does not say.
fn boot() -> String {
    match fs::read_to_string("/proc/sys/kernel/random/boot_id") {
        Ok(text) if text.len() <= 64 => text.trim().to_owned(),
        _ => random_text(),
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    // Without it everybody asks at the same minute of the hour: no more is lost.
    let _ = getrandom::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

/// Text that nobody can guess; the answer to a question that nobody could have guessed cannot have been kept from before.
fn random_text() -> String {
    format!("{:016x}{:016x}", random(), random())
}

/// The licence with its files.
pub struct Desk {
    place: DeskPlace,
    public: PublicKey,
    boot: String,
    holder: Holder,
    usage: Usage,
    usage_changed: bool,
    report_at_ms: u64,
    kept_lapse: Option<Lapse>,
    /// What the licence file was when it was read.
    read: Option<FileMark>,
}

/// What changes when a file is replaced: its number, length and time.
type FileMark = (u64, u64, i64, i64);

fn mark_of(path: &Path) -> Option<FileMark> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec()))
}

impl Desk {
    /// Reads what is there. Asks nobody, and never fails: a licence that cannot be read is one that grants nothing.
    pub fn open(place: DeskPlace, now: Reading) -> Desk {
        let public = PublicKey::of_build();
        let boot = boot();
        let usage = read(&place.usage_file(), USAGE_BYTES_MAX).map(|text| Usage::parse(&text)).unwrap_or_default();
        let kept = read(&place.lapse_file(), 4_096).ok();
        let kept_lapse = kept.and_then(|text| serde_json::from_str(&text).ok());
        let read = mark_of(&place.licence_file());
        let holder = holder(&place, public, &boot, kept_lapse.unwrap_or_default(), now);
        Desk { place, public, boot, holder, usage, usage_changed: false, report_at_ms: 0, kept_lapse, read }
    }

    /// Reads the licence anew: it was activated, renewed or taken away. Gives the entitlement if it has changed.
    pub fn reload(&mut self, now: Reading) -> Option<Entitlement> {
        let before = self.holder.entitlement().clone();
        self.read = mark_of(&self.place.licence_file());
        self.holder = holder(&self.place, self.public, &self.boot, self.holder.lapse(), now);
        (*self.holder.entitlement() != before).then(|| self.holder.entitlement().clone())
    }

    /// Whether another program has activated or taken away the machine's licence since it was read.
    pub fn is_overtaken(&self) -> bool {
        self.place.given.is_none() && mark_of(&self.place.licence_file()) != self.read
    }

    /// What the server is to be asked or told now, if anything.
    pub fn errand(&mut self, now: Reading) -> Option<Errand> {
        if let Some(key) = self.holder.wants_answer(now) {
            let nonce = random_text();
            let body = json!({ "key_hash": key.to_string(), "version": env!("CARGO_PKG_VERSION"), "nonce": nonce });
            let url = format!("{}/v1/license", self.place.server);
            let ca = self.place.server_ca.clone();
            return Some(Errand { url, body: body.to_string(), ca, about: About::Licence { key, nonce } });
        }
        self.report(now)
    }

    fn report(&mut self, now: Reading) -> Option<Errand> {
        // An offline licence has nobody to tell; neither has a key that nobody confirmed.
        let Given::Key(key) = self.holder.given() else { return None };
        let wanted = self.place.telemetry && !self.place.server.is_empty() && self.holder.standing(now).grants();
        if !wanted || now.boot_ms < self.report_at_ms {
            return None;
        }
        let days: Vec<(&str, _)> = self.usage.unreported(now.wall_ms).collect();
        let last_day = days.last()?.0.to_owned();
        let rows: Vec<Value> = days
            .iter()
            .map(|(date, day)| json!({ "date": date, "agents_peak": day.agents_peak, "messages_sent": day.messages_sent }))
            .collect();
        self.report_at_ms = now.boot_ms + REPORT_EVERY_MS;
        let key_hash = key.hash().to_string();
        // Tells the daemons of one licence apart, and nothing else about them.
        let daemon = Sha256::digest(format!("{key_hash}:{}", self.place.project));
        let daemon: String = daemon[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        let body =
            json!({ "key_hash": key_hash, "version": env!("CARGO_PKG_VERSION"), "daemon": daemon, "days": rows });
        let url = format!("{}/v1/usage", self.place.server);
        let ca = self.place.server_ca.clone();
        Some(Errand { url, body: body.to_string(), ca, about: About::Usage { last_day } })
    }

    /// Takes in what came of an errand.
    pub fn answered(&mut self, now: Reading, errand: &Errand, answer: Result<Answer, ClientError>) {
        match &errand.about {
            // The licence was changed while the server was asked about the one before.
            About::Licence { key, .. } if self.holder.given().key_hash() != Some(*key) => {}
            About::Licence { nonce, .. } => match answer {
                Ok(answer) if answer.status == 200 => {
                    // Why it is not believed stands in the sentence that `show` gives.
                    let _ = self.holder.answered(now, answer.body.trim(), nonce, random());
                }
                Ok(answer) => self.holder.unreachable(now, &format!("it answered {}", answer.status), random()),
                Err(error) => self.holder.unreachable(now, &why_unreachable(&error), random()),
            },
            About::Usage { last_day } => {
                if answer.is_ok_and(|answer| answer.status == 200) {
                    self.usage.reported(last_day);
                    self.usage_changed = true;
                }
            }
        }
    }

    /// Looks at the licence at this time. Gives the entitlement if it has changed.
    pub fn look(&mut self, now: Reading) -> Option<Entitlement> {
        self.holder.look(now)
    }

    /// All of it at once, for whoever has the time: asks, takes in, looks. Whether the entitlement has changed.
    pub fn check(&mut self, now: Reading, patience: Duration) -> Option<Entitlement> {
        if let Some(errand) = self.errand(now) {
            let answer = errand.run(patience);
            self.answered(now, &errand, answer);
        }
        self.look(now)
    }

    /// So many agents are connected, and so many messages were accepted since the daemon started.
    pub fn note_usage(&mut self, now: Reading, agents: u64, messages_total: u64) {
        self.usage_changed |= self.usage.note(now.wall_ms, agents, messages_total);
    }

    /// Writes what is to be known after a restart.
    pub fn save(&mut self, now: Reading) -> io::Result<()> {
        self.save_machine(now)?;
        self.save_project()
    }

    /// The part of it that is the machine's: documents and the clock.
    pub fn save_machine(&self, now: Reading) -> io::Result<()> {
        // Several daemons share it: what the others heard stays.
        let mut cache = self.cache();
        self.holder.keep(&mut cache, now);
        write_private(&self.place.cache_file(), cache.to_text().as_bytes())
    }

    /// The part of it that is the project's own. For the daemon alone: nobody else counts.
    pub fn save_project(&mut self) -> io::Result<()> {
        let lapse = self.holder.lapse();
        if self.kept_lapse != Some(lapse) {
            let text = serde_json::to_vec(&lapse).map_err(io::Error::other)?;
            write_private(&self.place.lapse_file(), &text)?;
            self.kept_lapse = Some(lapse);
        }
        if std::mem::take(&mut self.usage_changed) {
            write_private(&self.place.usage_file(), self.usage.to_text().as_bytes())?;
        }
        Ok(())
    }

    fn cache(&self) -> Cache {
        read(&self.place.cache_file(), CACHE_BYTES_MAX).map(|text| Cache::parse(&text, self.public)).unwrap_or_default()
    }

    /// What activating a key or a document would come to: its server is asked, and nothing is written.
    pub fn trial(&self, text: &str, now: Reading, patience: Duration) -> Desk {
        let mut cache = self.cache();
        // The operator has looked at the clock, too: what an earlier wrong one said does not count.
        cache.clock = None;
        let place = DeskPlace { given: Some(Zeroizing::new(text.to_owned())), ..self.place.clone() };
        let beginning = Beginning {
            given: Given::parse(text, self.public),
            public: self.public,
            has_server: !place.server.is_empty(),
            cache: &cache,
            lapse: Lapse::default(),
            boot: &self.boot,
        };
        let mut trial = Desk {
            holder: Holder::new(beginning, now),
            place,
            public: self.public,
            boot: self.boot.clone(),
            usage: Usage::default(),
            usage_changed: false,
            report_at_ms: 0,
            kept_lapse: None,
            read: None,
        };
        trial.holder.ask_now();
        trial.check(now, patience);
        trial
    }

    /// The licence that is activated, whatever the environment gives.
    pub fn activated(&self, now: Reading) -> Desk {
        Desk::open(DeskPlace { given: None, ..self.place.clone() }, now)
    }

    /// Activates a key or a document: it is kept in the machine's folder. Nobody is asked.
    pub fn activate(&mut self, text: &str, now: Reading) -> Result<(), String> {
        match Given::parse(text, self.public) {
            Given::Unusable(reason) => return Err(reason),
            Given::Nothing => return Err("an empty text is no licence".to_owned()),
            Given::Key(_) | Given::Document(_) => {}
        }
        let cannot = |error: io::Error| format!("cannot write {}: {error}", self.place.licence_file().display());
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.place.base).map_err(cannot)?;
        let mut line = Zeroizing::new(Vec::with_capacity(text.len() + 1));
        line.extend_from_slice(text.trim().as_bytes());
        line.push(b'\n');
        write_private(&self.place.licence_file(), &line).map_err(cannot)?;
        // The operator has looked at the clock, too: what an earlier wrong one said is forgotten.
        let mut cache = self.cache();
        cache.clock = None;
        if let Err(error) = write_private(&self.place.cache_file(), cache.to_text().as_bytes()) {
            return Err(cannot(error));
        }
        self.reload(now);
        Ok(())
    }

    /// Forgets the activated licence. Whether there was one.
    pub fn deactivate(&mut self, now: Reading) -> Result<bool, String> {
        let path = self.place.licence_file();
        let was_there = match fs::remove_file(&path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(format!("cannot remove {}: {error}", path.display())),
        };
        self.reload(now);
        Ok(was_there)
    }

    /// The licence.
    pub fn holder(&self) -> &Holder {
        &self.holder
    }

    /// What the operator should do something about.
    pub fn warnings(&self, now: Reading) -> Vec<String> {
        let mut warnings = self.holder.warnings(now);
        warnings.extend(self.holder.retention_warning(now, self.place.retention_days));
        let path = self.place.licence_file();
        if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o077 != 0) {
            warnings.push(format!("the licence {0} can be read by others; chmod 600 {0}", path.display()));
        }
        warnings
    }

    /// Everything there is to say about it, for `license show` and the API.
    pub fn show(&self, now: Reading) -> Value {
        let holder = &self.holder;
        let entitlement = holder.entitlement();
        let document = holder.document().map(|signed| signed.document());
        let (key, kind) = match holder.given() {
            Given::Nothing => (None, "none"),
            Given::Key(key) => (Some(key.shown()), "key"),
            Given::Document(_) => (None, "document"),
            Given::Unusable(_) => (None, "unusable"),
        };
        let standing = holder.standing(now);
        let usage: Vec<Value> = self
            .usage
            .days()
            .take(DAYS_SHOWN)
            .map(|(date, day)| json!({ "date": date, "agents_peak": day.agents_peak, "messages_sent": day.messages_sent }))
            .collect();
        json!({
            "tier": entitlement.tier.name(),
            "title": entitlement.tier.title(),
            "state": standing.name(),
            "sentence": holder.sentence(now),
            "warnings": self.warnings(now),
            "evaluation_build": is_evaluation_build(),
            "kind": kind,
            "key": key,
            "from_environment": self.place.given.is_some(),
            "offline": holder.is_offline(),
            "serial": document.map(|document| document.serial),
            "valid_until": document.filter(|_| standing != Standing::NotIssued).and_then(|document| time_of(document.valid_until_ms)),
            "grace_until": holder.grace_until_ms(now).and_then(time_of),
            "confirmed_at": document.and_then(|document| time_of(document.issued_at_ms)),
            "server": if self.place.server.is_empty() { None } else { Some(&self.place.server) },
            "telemetry": self.place.telemetry && !holder.is_offline(),
            "features": entitlement.features.iter().map(|feature| feature.name()).collect::<Vec<_>>(),
            "limits": {
                "maxAgents": entitlement.agents_max,
                "maxMessagesPerSecond": entitlement.messages_per_second,
                "retentionDays": entitlement.retention_days_max,
                "maxWebhooks": entitlement.webhooks_max,
            },
            "retention": {
                "max_days_in_force": holder.retention_days_max(),
                "shrinks_at": holder.lapse().until_ms().and_then(time_of),
            },
            "usage": usage,
            "today": self.usage.day(now.wall_ms),
        })
    }
}

fn holder(place: &DeskPlace, public: PublicKey, boot: &str, lapse: Lapse, now: Reading) -> Holder {
    let given = match &place.given {
        Some(text) => match Given::parse(text, public) {
            Given::Unusable(_) if is_like_path(text) => Given::Unusable(
                "AGENT_RELAY_LICENSE_KEY takes the licence's text, not a path: \"$(cat FILE)\"".to_owned(),
            ),
            given => given,
        },
        None => match read(&place.licence_file(), DOCUMENT_BYTES_MAX) {
            Ok(text) => Given::parse(&text, public),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Given::Nothing,
            Err(error) => Given::Unusable(format!("{} cannot be read: {error}", place.licence_file().display())),
        },
    };
    let cache = read(&place.cache_file(), CACHE_BYTES_MAX).map(|text| Cache::parse(&text, public)).unwrap_or_default();
    Holder::new(Beginning { given, public, has_server: !place.server.is_empty(), cache: &cache, lapse, boot }, now)
}

/// Why the server was not asked, with what to do about it where that is known.
fn why_unreachable(error: &ClientError) -> String {
    match error {
        ClientError::Tls(LinkError::Untrusted) => {
            "its certificate is not signed by an authority that is believed here; name its authority's file (PEM) as licence.ca in relay.toml".to_owned()
        }
        ClientError::Tls(LinkError::Expired) => "its certificate has expired; whoever runs it must renew it".to_owned(),
        ClientError::Tls(LinkError::WrongName(names)) => {
            format!("its certificate is not for the name in licence.server: {names}")
        }
        other => other.to_string(),
    }
}

/// Whether a text is more likely meant to name a file than to be what the file holds.
fn is_like_path(text: &str) -> bool {
    // Neither keys nor documents hold a stroke.
    text.contains('/') || Path::new(text.trim()).is_file()
}

/// Reads a small file; no link is followed, nothing but a plain file is waited for, and nothing longer is read.
pub fn read(path: &Path, bytes_max: usize) -> io::Result<Zeroizing<String>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a plain file"));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(file.metadata()?.size().min(bytes_max as u64) as usize + 1));
    file.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > bytes_max {
        return Err(io::Error::other(format!("it is longer than {bytes_max} bytes")));
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| io::Error::other("it is not text"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// Replaces a file as a whole, for its owner alone. Several programs may do so at once: each writes a file of its own first.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{:x}", random()));
    let next = PathBuf::from(name);
    let write = || -> io::Result<()> {
        // Made new, so that no link is followed.
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&next, path)
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_file(&next);
    }
    written
}
