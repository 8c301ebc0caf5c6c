//! Settings: one record each, read once and whole. Precedence flag, environment, relay.toml, default; each value keeps
//! where it came from. Only `daemon` and `cli` know this room: other rooms get plain values.

use super::paths::{Environment, Layout, PathError, Place};
use super::settings_file::{self, FileValue};
use super::settings_key::KeyText;
pub use super::settings_protection::{LicenceSettings, TlsFiles};
use super::settings_protection::{file_of, is_server_url, tls_of};
pub use super::settings_records::{CORES_MAX, DAYS_MAX, LISTEN_MAX, RECORDS, Record, Shape, UNLIMITED, days_of};
use super::{cpus, paths};
use crate::base::tier::Entitlement;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A flag of the command line.
    Flag(&'static str),
    /// An environment variable.
    Environment(&'static str),
    /// A line of relay.toml.
    File {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
    },
    /// Built in.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Flag(flag) => out.write_str(flag),
            Source::Environment(variable) => out.write_str(variable),
            Source::File { path, line } => write!(out, "{}:{line}", path.display()),
            Source::Default => out.write_str("default"),
        }
    }
}

/// A setting with the value in force.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// What it is.
    pub record: &'static Record,
    /// Its value; several for addresses.
    pub values: Vec<String>,
    /// Where it came from.
    pub source: Source,
    /// What it would be if nobody said anything.
    pub default: String,
}

/// Why the settings cannot be used. The text names key, line and bounds.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A key nobody knows.
    #[error("{path}:{line}: there is no setting \"{key}\"{hint}; `relay config` lists them all")]
    Unknown {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// The nearest one that exists, as a phrase; else empty.
        hint: String,
    },
    /// A key of a later version, or one that cannot stand in a file.
    #[error("{path}:{line}: \"{key}\" cannot be set here: {reason}")]
    Misplaced {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// The key.
        key: String,
        /// Why.
        reason: String,
    },
    /// Not TOML.
    #[error("{path}:{line}: {message}")]
    Syntax {
        /// The file.
        path: String,
        /// The line, from 1.
        line: usize,
        /// What the reader expected.
        message: String,
    },
    /// The file cannot be read.
    #[error("cannot read the settings file {path}: {error}")]
    File {
        /// The file.
        path: String,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// A value outside its bounds.
    #[error("{key} = \"{found}\" (from {source}) is not {expected}", source = .origin)]
    Value {
        /// The setting.
        key: &'static str,
        /// What was found.
        found: String,
        /// Where.
        origin: Source,
        /// What it may be.
        expected: String,
    },
    /// TCP that others could reach.
    #[error(
        "listen = \"{address}\" (from {source}) is refused: others can reach that address, so TLS is required there. Give --tls-cert and --tls-key, or use 127.0.0.1 or [::1]",
        source = .origin
    )]
    OffLoopback {
        /// The address.
        address: SocketAddr,
        /// Where it was asked for.
        origin: Source,
    },
    /// Settings that mean nothing without each other.
    #[error("{key} (from {origin}) needs {needed}: {how}")]
    Needs {
        /// The setting.
        key: &'static str,
        /// Where it came from.
        origin: Source,
        /// What is missing.
        needed: &'static str,
        /// What to do.
        how: &'static str,
    },
    /// The storage key cannot be had.
    #[error("cannot read the storage key {path} (from {origin}): {reason}")]
    Key {
        /// The file.
        path: String,
        /// Where it was named.
        origin: Source,
        /// Why not, and what to do.
        reason: String,
    },
    /// A place cannot be used.
    #[error(transparent)]
    Place(#[from] PathError),
}

impl SettingsError {
    /// Whether the command line itself was wrong (exit code 2) rather than the world around it (1).
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            SettingsError::Value { origin: Source::Flag(_), .. }
                | SettingsError::OffLoopback { origin: Source::Flag(_), .. }
        )
    }
}

/// What the flags of `relay up` say; everything else is found from here.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// `--data-dir`, `--socket`, `--global`.
    pub place: Place,
    /// `--config`: this file instead of relay.toml in the project folder.
    pub config: Option<PathBuf>,
    /// Values by setting: the key and the text given.
    pub values: Vec<(&'static str, String)>,
}

/// Checked settings as plain values.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where everything lies.
    pub layout: Layout,
    /// Shards.
    pub cores: u16,
    /// TCP addresses, all loopback.
    pub listen: Vec<SocketAddr>,
    /// Which driver shards use.
    pub backend: Backend,
    /// Least important level that is logged: error, warn, info, debug or trace.
    pub log_level: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// What a receipt and a delivery wait for.
    pub durability: Durability,
    /// The writer's clock.
    pub flush_interval_ms: u64,
    /// The writer's trigger.
    pub max_batch_size: usize,
    /// Address space of the store's file at first.
    pub map_bytes: usize,
    /// How long messages are to be kept and owed, if the tier allows as much.
    pub retention_days: u32,
    /// What encrypts the store; none: it is plain.
    pub db_key: Option<KeyText>,
    /// Whether HELLO needs a credential.
    pub require_auth: bool,
    /// Certificates; none: TLS is off.
    pub tls: Option<TlsFiles>,
    /// The licence's settings.
    pub licence: LicenceSettings,
    /// Bounds.
    pub limits: Limits,
    /// Every setting with its provenance, in the order of [`RECORDS`].
    pub resolved: Vec<Resolved>,
    /// The settings file that was read, if there is one.
    pub file: Option<PathBuf>,
    /// What the operator should be told at start.
    pub warnings: Vec<String>,
}

/// When what was accepted is on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durability {
    /// A durable receipt follows the commit, which is synced; delivery does not wait for it.
    Batch,
    /// Delivery waits for the commit too.
    Strict,
    /// Commits are synced once a second.
    Relaxed,
}

impl Durability {
    /// The one of this name.
    pub fn of(name: &str) -> Option<Durability> {
        [Durability::Batch, Durability::Strict, Durability::Relaxed].into_iter().find(|known| known.name() == name)
    }

    /// Its name, as it is set.
    pub fn name(self) -> &'static str {
        match self {
            Durability::Batch => "batch",
            Durability::Strict => "strict",
            Durability::Relaxed => "relaxed",
        }
    }

    /// Which failure what survives: the one sentence of the greeting, of `status` and of its JSON.
    pub fn survives(self) -> &'static str {
        match self {
            Durability::Batch => {
                "what has a durable receipt survives kill and power loss; delivery does not wait for the disk, and what has \
                 no receipt yet (a moment's messages, more while the disk is slow or refuses) is lost with the process"
            }
            Durability::Strict => {
                "what was delivered or has a durable receipt survives kill and power loss; delivery waits for the disk"
            }
            Durability::Relaxed => {
                "what has a durable receipt, which may take a second, survives kill and power loss; what has none yet \
                 (about a second's messages, more while the disk is slow or refuses) is lost with the process"
            }
        }
    }
}

/// How a shard waits for its sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// io_uring where it works, else epoll.
    Auto,
    /// io_uring or nothing.
    Uring,
    /// epoll.
    Epoll,
}

/// How log lines are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Bounds that an operator may lower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub struct Limits {
    pub connections: usize,
    pub half_open: usize,
    pub in_flight: u32,
    pub in_flight_bytes: usize,
    pub waiting_bytes: usize,
    pub owed_messages: usize,
    pub owed_bytes: usize,
    pub subscriptions: usize,
    pub known_agents: usize,
    /// 0: off.
    pub messages_per_second_per_connection: u32,
    pub burst_per_connection: u32,
}

impl Settings {
    /// Reads flags, environment and file, checks everything, and says where each value came from.
    pub fn read(flags: &Flags, environment: &Environment) -> Result<Settings, SettingsError> {
        let mut layout = Layout::of(&flags.place, environment)?;
        let (file, entries) = read_file(flags, &layout)?;
        let mut resolved = Vec::with_capacity(RECORDS.len());
        for record in RECORDS {
            resolved.push(resolve(record, flags, environment, &entries)?);
        }
        // A socket named in the file is seen from the file's project folder.
        let socket = find(&resolved, "socket");
        if let (Source::File { .. }, Some(path)) = (&socket.source, socket.values.first()) {
            let place = Place { socket: Some(layout.folder.join(path)), ..flags.place.clone() };
            layout = Layout::of(&place, environment)?;
        }
        let mut warnings = Vec::new();
        let key = find(&resolved, "persistence.db_key");
        let db_key = match (&key.source, key.values.first()) {
            (_, None) => None,
            (Source::Environment(_), Some(text)) => Some(KeyText::new(text)),
            (source, Some(path)) => {
                // One named in the file is seen from the file's project folder.
                let from_file = matches!(source, Source::File { .. });
                let path = if from_file { layout.folder.join(path) } else { PathBuf::from(path) };
                let refused = |error: std::io::Error| SettingsError::Key {
                    path: path.display().to_string(),
                    origin: source.clone(),
                    reason: error.to_string(),
                };
                let (key, open_to_others) = KeyText::read(&path).map_err(refused)?;
                if open_to_others {
                    warnings.push(format!("the storage key {0} can be read by others; chmod 600 {0}", path.display()));
                }
                Some(key)
            }
        };
        let licence_given = find(&resolved, "licence.key").values.first().map(|text| KeyText::new(text));
        for entry in &mut resolved {
            match entry.record.key {
                // Neither the key nor where it lies is anybody's business.
                "persistence.db_key" | "licence.key" if !entry.values.is_empty() => {
                    entry.values = vec!["set".to_owned()]
                }
                "data_dir" => entry.values = vec![layout.base.display().to_string()],
                "socket" => entry.values = vec![layout.socket.display().to_string()],
                _ => {}
            }
        }
        let settings = Settings::assemble(layout, resolved, file)?;
        let licence = LicenceSettings { given: licence_given, ..settings.licence };
        Ok(Settings { db_key, licence, warnings, ..settings })
    }

    /// Looks at the text of a settings file alone: whether it is one, its keys exist and its values are within bounds.
    /// What they need of each other, and the files that they name, are not looked at.
    pub fn check_file(path: &Path, text: &str) -> Result<(), SettingsError> {
        let entries = settings_file::parse(path, text)?;
        let (flags, environment) = (Flags::default(), Environment::default());
        RECORDS.iter().try_for_each(|record| resolve(record, &flags, &environment, &entries).map(drop))
    }

    /// That `entitlement` allows less retention than was asked for, if it does.
    pub fn retention_note(&self, entitlement: &Entitlement) -> Option<String> {
        let days = entitlement.retention_days(self.retention_days);
        if days == self.retention_days {
            return None;
        }
        let asked = find(&self.resolved, "retention.days");
        let value = asked.values.first().map_or(UNLIMITED, String::as_str);
        let unit = if value == UNLIMITED { "" } else { " days" };
        Some(format!(
            "retention of {value}{unit} (from {}) is lowered to {days} days, the most that the {} tier allows",
            asked.source,
            entitlement.tier.title()
        ))
    }

    fn assemble(layout: Layout, resolved: Vec<Resolved>, file: Option<PathBuf>) -> Result<Settings, SettingsError> {
        let text = |key| find(&resolved, key).values.first().cloned().unwrap_or_default();
        let number = |key| text(key).parse::<u64>().expect("resolve() let only numbers within their bounds through");
        let size = |key| number(key) as usize;
        let switch = |key| text(key) == "true";
        let tls = tls_of(&layout, &resolved)?;
        let licence_ca = file_of(&layout, &resolved, "licence.ca");
        let listen = find(&resolved, "listen");
        let mut addresses = Vec::new();
        for value in &listen.values {
            let address: SocketAddr = value.parse().expect("resolve() let only addresses through");
            if !address.ip().is_loopback() && tls.is_none() {
                return Err(SettingsError::OffLoopback { address, origin: listen.source.clone() });
            }
            addresses.push(address);
        }
        let limits = Limits {
            connections: size("limits.connections"),
            half_open: size("limits.half_open"),
            in_flight: number("limits.in_flight") as u32,
            in_flight_bytes: size("limits.in_flight_bytes"),
            waiting_bytes: size("limits.waiting_bytes"),
            owed_messages: size("limits.owed_messages"),
            owed_bytes: size("limits.owed_bytes"),
            subscriptions: size("limits.subscriptions"),
            known_agents: size("limits.known_agents"),
            messages_per_second_per_connection: number("limits.messages_per_second_per_connection") as u32,
            burst_per_connection: number("limits.burst_per_connection") as u32,
        };
        Ok(Settings {
            layout,
            cores: number("cores") as u16,
            listen: addresses,
            backend: match text("backend").as_str() {
                "uring" => Backend::Uring,
                "epoll" => Backend::Epoll,
                _ => Backend::Auto,
            },
            log_level: text("log.level"),
            log_format: if text("log.format") == "json" { LogFormat::Json } else { LogFormat::Text },
            durability: Durability::of(&text("persistence.durability")).expect("resolve() let only its names through"),
            flush_interval_ms: number("persistence.flush_interval_ms"),
            max_batch_size: size("persistence.max_batch_size"),
            map_bytes: size("persistence.map_bytes"),
            retention_days: days_of(&text("retention.days")).expect("resolve() let only such times through"),
            db_key: None,
            require_auth: switch("auth.required"),
            tls,
            licence: LicenceSettings {
                given: None,
                server: text("licence.server").trim_end_matches('/').to_owned(),
                ca: licence_ca,
                telemetry: switch("licence.telemetry"),
            },
            limits,
            resolved,
            file,
            warnings: Vec::new(),
        })
    }
}

pub(super) fn find<'a>(resolved: &'a [Resolved], key: &str) -> &'a Resolved {
    resolved.iter().find(|entry| entry.record.key == key).expect("only keys of RECORDS are asked for")
}

fn read_file(flags: &Flags, layout: &Layout) -> Result<(Option<PathBuf>, Vec<FileValue>), SettingsError> {
    let path = flags.config.clone().unwrap_or_else(|| layout.settings_file());
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok((Some(path.clone()), settings_file::parse(&path, &text)?)),
        // Only a file that was named has to exist.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && flags.config.is_none() => Ok((None, Vec::new())),
        Err(error) => Err(SettingsError::File { path: path.display().to_string(), error }),
    }
}

fn resolve(
    record: &'static Record,
    flags: &Flags,
    environment: &Environment,
    entries: &[FileValue],
) -> Result<Resolved, SettingsError> {
    let default = match record.key {
        "cores" => cpus::allowed().len().clamp(1, CORES_MAX as usize).to_string(),
        _ => record.default.to_owned(),
    };
    let mut given: Vec<String> =
        flags.values.iter().filter(|(key, _)| *key == record.key).map(|(_, value)| value.clone()).collect();
    match record.key {
        "data_dir" => given.extend(flags.place.data_dir.iter().map(|path| path.display().to_string())),
        "socket" => given.extend(flags.place.socket.iter().map(|path| path.display().to_string())),
        _ => {}
    }
    let (source, mut values) = if let (Some(flag), false) = (record.flag, given.is_empty()) {
        (Source::Flag(flag), given)
    } else if let Some((variable, value)) =
        record.environment.and_then(|variable| Some((variable, environment.value(variable)?)))
    {
        (Source::Environment(variable), vec![value.to_string_lossy().into_owned()])
    } else if let Some(entry) = entries.iter().find(|entry| entry.key == record.key) {
        (Source::File { path: entry.path.clone(), line: entry.line }, entry.values.clone())
    } else {
        let nothing = default.is_empty();
        (Source::Default, if nothing { Vec::new() } else { vec![default.clone()] })
    };
    for value in &values {
        check(record, value, &source)?;
    }
    if matches!(record.shape, Shape::Days) {
        // 30d, 4w and 720h are one value: so many days.
        for value in values.iter_mut().filter(|value| *value != UNLIMITED) {
            *value = days_of(value).map_or_else(String::new, |days| days.to_string());
        }
    }
    if values.len() > LISTEN_MAX {
        let expected = format!("a list of at most {LISTEN_MAX}");
        return Err(SettingsError::Value { key: record.key, found: values.join(", "), origin: source, expected });
    }
    Ok(Resolved { record, values, source, default })
}

fn check(record: &'static Record, value: &str, source: &Source) -> Result<(), SettingsError> {
    let good = match record.shape {
        Shape::Number { min, max } => value.parse::<u64>().is_ok_and(|number| (min..=max).contains(&number)),
        Shape::Choice(words) => words.contains(&value),
        Shape::Path | Shape::Key | Shape::Licence => !value.is_empty(),
        Shape::Switch => matches!(value, "true" | "false"),
        Shape::Url => is_server_url(value),
        Shape::Days => days_of(value).is_some(),
        Shape::Addresses => value.parse::<SocketAddr>().is_ok(),
    };
    if good {
        return Ok(());
    }
    let expected = record.shape.to_string();
    Err(SettingsError::Value { key: record.key, found: value.to_owned(), origin: source.clone(), expected })
}

/// Where clients find the daemon of this place: where it says that it listens, else where it would.
pub fn socket_of_running(layout: &Layout) -> PathBuf {
    if layout.socket_chosen {
        return layout.socket.clone();
    }
    let recorded = super::lock::holder(&layout.lock_file()).map(|holder| holder.socket);
    recorded.filter(|socket| is_socket(socket)).unwrap_or_else(|| layout.socket.clone())
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    path.as_os_str().len() <= paths::SOCKET_PATH_BYTES_MAX
        && std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::base::limits;
    use crate::base::tier::Tier;

    pub(crate) fn read(
        flags: &[(&'static str, &str)],
        environment: &Environment,
        file: &str,
    ) -> Result<Settings, SettingsError> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("relay.toml"), file).unwrap();
        let place = Place { data_dir: Some(directory.path().into()), global: true, ..Place::default() };
        let values = flags.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        Settings::read(&Flags { place, config: None, values }, environment)
    }

    fn refusal(flags: &[(&'static str, &str)], file: &str) -> String {
        read(flags, &Environment::default(), file).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_those_of_the_limits() {
        let settings = read(&[], &Environment::default(), "").unwrap();
        assert_eq!(settings.limits.connections, limits::CONNECTIONS_MAX);
        assert_eq!(settings.limits.half_open, limits::HALF_OPEN_MAX);
        assert_eq!(settings.limits.in_flight, limits::IN_FLIGHT_MAX);
        assert_eq!(settings.limits.in_flight_bytes, limits::IN_FLIGHT_BYTES_MAX);
        assert_eq!(settings.limits.waiting_bytes, limits::WAITING_BYTES_MAX);
        assert_eq!(settings.limits.owed_messages, limits::OWED_MESSAGES_MAX);
        assert_eq!(settings.limits.owed_bytes, limits::OWED_BYTES_MAX);
        assert_eq!(settings.limits.subscriptions, limits::SUBSCRIPTIONS_MAX);
        assert_eq!(settings.limits.known_agents, limits::KNOWN_AGENTS_MAX);
        assert!(settings.db_key.is_none() && settings.durability == Durability::Batch);
        assert_eq!(settings.flush_interval_ms * 1_000_000, limits::WRITER_FLUSH);
        assert_eq!(settings.max_batch_size, limits::WRITER_TRIGGER_RECORDS);
        assert_eq!(u64::from(settings.retention_days) * 24 * 3_600_000_000_000, limits::RETENTION);
        assert_eq!(usize::from(settings.cores), cpus::allowed().len());
        assert!(settings.warnings.is_empty() && settings.listen.is_empty());
    }

    #[test]
    fn a_flag_beats_the_environment_which_beats_the_file_which_beats_the_default() {
        let environment = Environment::of([("AGENT_RELAY_RETENTION_DAYS", "3")]);
        let file = "cores = 5\n[retention]\ndays = 2\n";
        let settings = read(&[("cores", "4")], &environment, file).unwrap();
        assert_eq!((settings.cores, settings.retention_days), (4, 3));
        assert_eq!(find(&settings.resolved, "cores").source, Source::Flag("--cores"));
        assert_eq!(find(&settings.resolved, "retention.days").source.to_string(), "AGENT_RELAY_RETENTION_DAYS");
        let settings = read(&[], &Environment::default(), file).unwrap();
        assert_eq!((settings.cores, settings.retention_days), (5, 2));
        assert!(find(&settings.resolved, "retention.days").source.to_string().ends_with("relay.toml:3"));
        assert_eq!(find(&settings.resolved, "limits.half_open").source, Source::Default);
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_its_line_and_the_nearest_key() {
        let text = refusal(&[], "cores = 2\n\n[limits]\nin_flght = 3\n");
        assert!(text.contains("relay.toml:4:") && text.contains("\"limits.in_flght\""), "{text}");
        assert!(text.contains("limits.in_flight"), "{text}");
        let text = refusal(&[], "[http]\naddress = \"127.0.0.1:1\"\n");
        assert!(text.contains("relay.toml:1:") && text.contains("not in this version"), "{text}");
        let text = refusal(&[], "data_dir = \"/x\"\n");
        assert!(text.contains("relay.toml:1:") && text.contains("found through it"), "{text}");
    }

    #[test]
    fn a_bad_value_names_key_line_and_bounds() {
        let text = refusal(&[], "\n[limits]\nin_flight = 1\n");
        assert!(text.contains("limits.in_flight") && text.contains(":3)") && text.contains("128 to 1024"), "{text}");
        let text = refusal(&[("cores", "0")], "");
        assert_eq!(text, "cores = \"0\" (from --cores) is not a whole number from 1 to 256");
        assert!(refusal(&[("backend", "kqueue")], "").contains("one of auto, uring, epoll"));
        assert!(refusal(&[], "cores = [\n").contains("relay.toml:"));
        assert!(refusal(&[], "cores = true\n").contains("relay.toml:1"));
        assert!(refusal(&[], "listen = [\"nowhere\"]\n").contains("an address with a port"));
    }

    #[test]
    fn tcp_off_loopback_is_refused_and_loopback_is_not() {
        let text = refusal(&[("listen", "0.0.0.0:7070")], "");
        assert!(text.contains("TLS is required there"), "{text}");
        let file = "listen = [\"127.0.0.1:7070\", \"[::1]:7070\"]\n";
        assert_eq!(read(&[], &Environment::default(), file).unwrap().listen.len(), 2);
    }

    #[test]
    fn retention_is_asked_for_in_days_weeks_or_hours_and_lowered_to_the_tier() {
        let days = |text: &str| read(&[("retention.days", text)], &Environment::default(), "").unwrap().retention_days;
        assert_eq!(["30", "30d", "4w", "36h", "P2D"].map(days), [30, 30, 28, 2, 2]);
        assert_eq!(days("unlimited"), DAYS_MAX);
        for text in ["0", "0d", "-3d", "1y", "40000", "soon", "", "99999999999999w"] {
            let refused = refusal(&[("retention.days", text)], "");
            assert!(refused.contains("from 1 to 36500 days"), "{text}: {refused}");
        }
        let [community, pro, ..] = Tier::ALL.map(Entitlement::of_tier);
        let settings = read(&[("retention.days", "120d")], &Environment::default(), "").unwrap();
        assert_eq!(settings.retention_note(&Entitlement::unlimited()), None);
        assert_eq!(
            settings.retention_note(&pro).unwrap(),
            "retention of 120 days (from --retention) is lowered to 90 days, the most that the Pro tier allows"
        );
        let settings = read(&[], &Environment::default(), "").unwrap();
        assert_eq!(settings.retention_note(&community), None);
    }

    #[test]
    fn the_storage_key_is_a_file_or_a_text_and_is_never_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.key");
        std::fs::write(
            &path,
            "the secret
",
        )
        .unwrap();
        let flag = [("persistence.db_key", path.to_str().unwrap())];
        let file = format!(
            "[persistence]
db_key = \"{}\"
",
            path.display()
        );
        let environment = Environment::of([("AGENT_RELAY_DB_KEY", "another secret")]);
        let cases = [
            (read(&flag, &environment, ""), "the secret", "--db-key"),
            (read(&[], &environment, &file), "another secret", "AGENT_RELAY_DB_KEY"),
            (read(&[], &Environment::default(), &file), "the secret", "relay.toml:2"),
        ];
        for (settings, text, source) in cases {
            let settings = settings.unwrap();
            assert_eq!(settings.db_key.as_ref().unwrap().reveal(), text);
            assert!(!format!("{settings:?}").contains("secret"));
            let shown = find(&settings.resolved, "persistence.db_key");
            assert_eq!(shown.values, ["set"]);
            assert!(shown.source.to_string().ends_with(source));
        }
        let text = refusal(&[("persistence.db_key", "/nowhere/key")], "");
        assert!(text.contains("/nowhere/key") && text.contains("--db-key"), "{text}");
    }

    #[test]
    fn a_setting_that_has_gone_says_what_became_of_it() {
        let text = refusal(
            &[],
            "[limits]
waiting_messages = 3
",
        );
        assert!(text.contains("relay.toml:2:") && text.contains("limits.owed_messages"), "{text}");
        assert!(
            refusal(
                &[],
                "[limits]
history_bytes = 0
"
            )
            .contains("retention.days")
        );
    }

    #[test]
    fn every_default_lies_within_its_own_bounds_and_every_record_speaks() {
        for record in RECORDS {
            assert!(record.sentence.ends_with('.'), "{}", record.key);
            if !record.default.is_empty() {
                check(record, record.default, &Source::Default).unwrap();
            }
        }
    }
}
