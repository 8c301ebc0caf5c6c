//! The table of settings: name, sentence, unit, default, bounds, variable, flag. Reads nothing, decides nothing.

use crate::base::limits;
use std::fmt;

/// One setting: help, `relay config`, documents and error texts all come from here.
#[derive(Debug)]
pub struct Record {
    /// Its name in relay.toml (table, dot, key).
    pub key: &'static str,
    /// What it does.
    pub sentence: &'static str,
    /// Unit of a number; empty for other things.
    pub unit: &'static str,
    /// What it may be.
    pub shape: Shape,
    /// Its built-in default, as text; empty: worked out at start, or nothing.
    pub default: &'static str,
    /// The variable that sets it.
    pub environment: Option<&'static str>,
    /// The flag of `relay up` that sets it.
    pub flag: Option<&'static str>,
    /// Whether relay.toml may hold it.
    pub in_file: bool,
}

/// What a value may be.
#[derive(Debug)]
pub enum Shape {
    /// A whole number within bounds.
    Number {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// A path.
    Path,
    /// TCP addresses.
    Addresses,
    /// A time in whole days, written as a number or as a duration, or `unlimited`.
    Days,
    /// `true` or `false`.
    Switch,
    /// A URL of an HTTP server.
    Url,
    /// A licence key, or a licence document. Never shown.
    Licence,
    /// A storage key: a file that holds one, or (from the environment) the key itself. Never shown.
    Key,
}

/// The longest time that can be asked for in days; `unlimited` is this long.
pub const DAYS_MAX: u32 = 36_500;

/// A time in days: `30`, `30d`, `4w`, `36h` (begun days count), `P30D`, or `unlimited`. None: it is no such time, or too long.
pub fn days_of(text: &str) -> Option<u32> {
    let within = |days: u32| (1..=DAYS_MAX).contains(&days).then_some(days);
    if text == UNLIMITED {
        return Some(DAYS_MAX);
    }
    if let Ok(days) = text.parse::<u32>() {
        return within(days);
    }
    let span: jiff::Span = text.parse().ok()?;
    let hours = span.total((jiff::Unit::Hour, jiff::SpanRelativeTo::days_are_24_hours())).ok()?;
    let days = (hours / 24.0).ceil();
    if days.is_finite() && days >= 1.0 && days <= f64::from(DAYS_MAX) { within(days as u32) } else { None }
}

/// The word for a time without end.
pub const UNLIMITED: &str = "unlimited";

impl fmt::Display for Shape {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shape::Number { min, max } => write!(out, "a whole number from {min} to {max}"),
            Shape::Choice(words) => write!(out, "one of {}", words.join(", ")),
            Shape::Path => out.write_str("a path"),
            Shape::Switch => out.write_str("true or false"),
            Shape::Url => out.write_str("a URL that begins with https:// (or http:// on loopback)"),
            Shape::Licence => out.write_str("a licence key such as ar_pro_…, or a licence document"),
            Shape::Addresses => out.write_str("an address with a port, such as 127.0.0.1:7070"),
            Shape::Days => write!(out, "a time from 1 to {DAYS_MAX} days, such as 30d, 4w or 36h, or {UNLIMITED}"),
            Shape::Key => out.write_str("a file that `relay keygen` made"),
        }
    }
}

const fn number(
    key: &'static str,
    sentence: &'static str,
    unit: &'static str,
    default: &'static str,
    min: u64,
    max: u64,
) -> Record {
    let shape = Shape::Number { min, max };
    Record { key, sentence, unit, shape, default, environment: None, flag: None, in_file: true }
}

const fn choice(
    key: &'static str,
    sentence: &'static str,
    words: &'static [&'static str],
    flag: &'static str,
) -> Record {
    let shape = Shape::Choice(words);
    Record { key, sentence, unit: "", shape, default: words[0], environment: None, flag: Some(flag), in_file: true }
}

const fn path(key: &'static str, sentence: &'static str, flag: &'static str) -> Record {
    Record {
        key,
        sentence,
        unit: "",
        shape: Shape::Path,
        default: "",
        environment: None,
        flag: Some(flag),
        in_file: true,
    }
}

const fn switch(key: &'static str, sentence: &'static str, flag: &'static str) -> Record {
    Record { shape: Shape::Switch, default: "false", ..path(key, sentence, flag) }
}

/// More shards than this would spend more memory on their lanes (which grow with the square) than on messages.
pub const CORES_MAX: u64 = 256;
/// TCP addresses to listen on.
pub const LISTEN_MAX: usize = 16;

/// Every setting. What cannot change while the daemon runs is, so far, all of them.
pub const RECORDS: &[Record] = &[
    Record {
        flag: Some("--cores"),
        ..number(
            "cores",
            "Shards: threads that serve connections, each pinned to a CPU. Default: every CPU the affinity mask allows.",
            "threads",
            "",
            1,
            CORES_MAX,
        )
    },
    Record {
        environment: Some("AGENT_RELAY_DATA_DIR"),
        in_file: false,
        ..path("data_dir", "The base directory; each project has a folder of its own in it.", "--data-dir")
    },
    path("socket", "The Unix socket.", "--socket"),
    Record {
        shape: Shape::Addresses,
        ..path(
            "listen",
            "TCP addresses to listen on beside the Unix socket; off loopback with TLS and credentials only.",
            "--listen",
        )
    },
    choice(
        "backend",
        "How a shard waits for its sockets: io_uring where the kernel allows it (auto), or one of the two.",
        &["auto", "uring", "epoll"],
        "--backend",
    ),
    choice(
        "log.level",
        "The least important events that are still logged.",
        &["info", "error", "warn", "debug", "trace"],
        "--log",
    ),
    choice("log.format", "How log lines are written.", &["text", "json"], "--log-format"),
    choice(
        "persistence.durability",
        "When what was accepted is on disk: before its durable receipt (batch), before its delivery too (strict), within a second (relaxed).",
        &["batch", "strict", "relaxed"],
        "--durability",
    ),
    number(
        "persistence.flush_interval_ms",
        "The writer commits when the oldest record has waited this long; at once when somebody waits for a receipt.",
        "ms",
        "50",
        1,
        10_000,
    ),
    number(
        "persistence.max_batch_size",
        "The writer commits when this many records wait; a trigger, not a cap.",
        "messages",
        "100",
        1,
        limits::WRITER_BATCH_RECORDS_MAX as u64,
    ),
    number(
        "persistence.map_bytes",
        "Address space that the store's file is given at first, which costs no memory; it doubles when the file needs more.",
        "bytes",
        "68719476736",
        1 << 20,
        1 << 42,
    ),
    Record {
        environment: Some("AGENT_RELAY_RETENTION_DAYS"),
        flag: Some("--retention"),
        shape: Shape::Days,
        ..number(
            "retention.days",
            "How long messages are kept, and owed to agents who are away; the tier has a maximum.",
            "days",
            "7",
            1,
            DAYS_MAX as u64,
        )
    },
    Record {
        environment: Some("AGENT_RELAY_DB_KEY"),
        shape: Shape::Key,
        ..path(
            "persistence.db_key",
            "The key that encrypts the store: a file here and as a flag, the key's text in the environment.",
            "--db-key",
        )
    },
    Record {
        environment: Some("AGENT_RELAY_REQUIRE_AUTH"),
        ..switch("auth.required", "Whether an agent needs an API key or a token to connect.", "--require-auth")
    },
    Record {
        environment: Some("AGENT_RELAY_TLS_CERT"),
        ..path("tls.cert", "The certificate chain that the relay shows, PEM; TLS is on when it is set.", "--tls-cert")
    },
    Record {
        environment: Some("AGENT_RELAY_TLS_KEY"),
        ..path("tls.key", "The private key of that certificate, PEM.", "--tls-key")
    },
    Record {
        environment: Some("AGENT_RELAY_TLS_CA"),
        ..path("tls.ca", "The authorities whose client certificates are believed, PEM.", "--tls-ca")
    },
    Record {
        environment: Some("AGENT_RELAY_TLS_MUTUAL"),
        ..switch("tls.mutual", "Whether every TLS client must show a certificate of those authorities.", "--tls-mutual")
    },
    Record {
        flag: None,
        default: "true",
        ..switch("tls.enabled", "Whether TLS is on where a certificate is set.", "")
    },
    Record {
        flag: None,
        ..switch(
            "tls.bind_names",
            "Whether a client certificate may only speak for the agents that its subject or alternative names name.",
            "",
        )
    },
    Record {
        environment: Some("AGENT_RELAY_LICENSE_KEY"),
        shape: Shape::Licence,
        flag: None,
        in_file: false,
        ..path("licence.key", "The licence key or document, instead of the activated one.", "")
    },
    Record {
        shape: Shape::Url,
        flag: None,
        // Given when the program is built for the vendor; an evaluation build knows of none.
        default: match option_env!("RELAY_LICENCE_SERVER") {
            Some(url) => url,
            None => "",
        },
        ..path("licence.server", "The licence server.", "")
    },
    Record {
        environment: Some("AGENT_RELAY_LICENSE_CA"),
        flag: None,
        ..path(
            "licence.ca",
            "The authorities that the licence server's certificate is believed by, PEM; without it the public ones.",
            "",
        )
    },
    Record {
        environment: Some("AGENT_RELAY_TELEMETRY"),
        flag: None,
        ..switch(
            "licence.telemetry",
            "Whether daily usage (peak of agents, messages sent) is reported to the licence server.",
            "",
        )
    },
    number(
        "limits.connections",
        "Connections of one shard.",
        "connections",
        "65536",
        16,
        limits::CONNECTIONS_MAX as u64,
    ),
    number(
        "limits.half_open",
        "Connections of one shard that have not said HELLO yet.",
        "connections",
        "1024",
        1,
        limits::HALF_OPEN_MAX as u64,
    ),
    // Less than two acknowledgement strides and a client that acknowledges as documented would stall.
    number(
        "limits.in_flight",
        "Messages sent to one agent and not yet acknowledged.",
        "messages",
        "1024",
        2 * limits::ACK_STRIDE,
        limits::IN_FLIGHT_MAX as u64,
    ),
    number(
        "limits.in_flight_bytes",
        "The same in bytes.",
        "bytes",
        "524288",
        65_536,
        limits::IN_FLIGHT_BYTES_MAX as u64,
    ),
    // At least the largest frame; at most what a whole shard may hold.
    number(
        "limits.waiting_bytes",
        "Bytes waiting in memory for one agent; the rest of what is owed to it waits in the store.",
        "bytes",
        "1048576",
        limits::FRAME_BYTES_MAX as u64,
        limits::SHARD_WAITING_BYTES_MAX as u64,
    ),
    number(
        "limits.owed_messages",
        "Messages owed to one agent, in memory and in the store; beyond it senders hear BUSY.",
        "messages",
        "100000",
        1,
        limits::OWED_MESSAGES_ALLOWED_MAX as u64,
    ),
    // At least the largest frame.
    number(
        "limits.owed_bytes",
        "The same in bytes.",
        "bytes",
        "268435456",
        limits::FRAME_BYTES_MAX as u64,
        limits::OWED_BYTES_ALLOWED_MAX as u64,
    ),
    number(
        "limits.subscriptions",
        "Topics one agent may subscribe to.",
        "topics",
        "256",
        1,
        limits::SUBSCRIPTIONS_MAX as u64,
    ),
    number(
        "limits.known_agents",
        "Agents known at once: connected, owed something, or seen within the retention time.",
        "agents",
        "100000",
        1,
        limits::KNOWN_AGENTS_MAX as u64,
    ),
    number(
        "limits.messages_per_second_per_connection",
        "SENDs per second of one connection; 0: no limit.",
        "messages/s",
        "0",
        0,
        1_000_000,
    ),
    number(
        "limits.burst_per_connection",
        "SENDs one connection may make at once before that rate counts.",
        "messages",
        "100",
        1,
        1_000_000,
    ),
];
