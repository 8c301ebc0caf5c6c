//! Named reasons: one vocabulary for log, metric, wire and tests. No close, drop or refusal happens without one.

/// Why a connection was closed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum CloseReason {
    /// The peer said BYE.
    Bye = 1,
    /// The peer closed its end, or the connection broke.
    Lost = 2,
    /// The daemon is stopping.
    Shutdown = 3,
    /// No HELLO within 10 s.
    HelloTimeout = 4,
    /// No sign of life for 30 s.
    Silent = 5,
    /// Bytes that are not a frame.
    Corrupt = 6,
    /// A frame that is illegal here.
    Protocol = 7,
    /// A frame longer than 1 MiB.
    FrameTooLong = 8,
    /// Another connection holds, or took, the name.
    DuplicateConnection = 9,
    /// The name breaks the rules.
    BadName = 10,
    /// Every connection slot is in use.
    ConnectionsFull = 11,
    /// Too many connections that have not said HELLO.
    HalfOpenFull = 12,
    /// As many agents as the licence allows are connected.
    AgentLimit = 13,
    /// The daemon knows as many agents as it can.
    KnownAgentsFull = 14,
    /// This user, key or certificate may not do this.
    Forbidden = 15,
    /// The peer's protocol version or dialect is not served.
    Version = 16,
    /// The peer does not read the answers to what it asks.
    SlowReader = 17,
    /// No credential where one is needed, or not a good one.
    Unauthorized = 18,
    /// Too many wrong credentials from where it comes from.
    Throttled = 19,
    /// The key it came in with is gone.
    KeyRevoked = 20,
    /// The credential it came in with has expired.
    KeyExpired = 21,
    /// Where TLS is required, the peer speaks something else.
    TlsRequired = 22,
    /// The TLS handshake failed, or what came later was not correct TLS.
    TlsHandshake = 23,
    /// The peer speaks TLS where it is off.
    TlsOff = 24,
    /// It had not said HELLO when all places of such connections were taken, most of them from where it comes from.
    HalfOpenCrowd = 25,
}

impl CloseReason {
    /// Every reason, for metrics.
    pub const ALL: [CloseReason; 25] = [
        CloseReason::Bye,
        CloseReason::Lost,
        CloseReason::Shutdown,
        CloseReason::HelloTimeout,
        CloseReason::Silent,
        CloseReason::Corrupt,
        CloseReason::Protocol,
        CloseReason::FrameTooLong,
        CloseReason::DuplicateConnection,
        CloseReason::BadName,
        CloseReason::ConnectionsFull,
        CloseReason::HalfOpenFull,
        CloseReason::AgentLimit,
        CloseReason::KnownAgentsFull,
        CloseReason::Forbidden,
        CloseReason::Version,
        CloseReason::SlowReader,
        CloseReason::Unauthorized,
        CloseReason::Throttled,
        CloseReason::KeyRevoked,
        CloseReason::KeyExpired,
        CloseReason::TlsRequired,
        CloseReason::TlsHandshake,
        CloseReason::TlsOff,
        CloseReason::HalfOpenCrowd,
    ];

    /// The reason's name in logs, metrics and `status`.
    pub const fn name(self) -> &'static str {
        match self {
            CloseReason::Bye => "bye",
            CloseReason::Lost => "lost",
            CloseReason::Shutdown => "shutdown",
            CloseReason::HelloTimeout => "hello_timeout",
            CloseReason::Silent => "silent",
            CloseReason::Corrupt => "corrupt",
            CloseReason::Protocol => "protocol",
            CloseReason::FrameTooLong => "frame_too_long",
            CloseReason::DuplicateConnection => "duplicate_connection",
            CloseReason::BadName => "bad_name",
            CloseReason::ConnectionsFull => "connections_full",
            CloseReason::HalfOpenFull => "half_open_full",
            CloseReason::AgentLimit => "agent_limit",
            CloseReason::KnownAgentsFull => "known_agents_full",
            CloseReason::Forbidden => "forbidden",
            CloseReason::Version => "version",
            CloseReason::SlowReader => "slow_reader",
            CloseReason::Unauthorized => "unauthorized",
            CloseReason::Throttled => "throttled",
            CloseReason::KeyRevoked => "key_revoked",
            CloseReason::KeyExpired => "key_expired",
            CloseReason::TlsRequired => "tls_required",
            CloseReason::TlsHandshake => "tls_handshake",
            CloseReason::TlsOff => "tls_off",
            CloseReason::HalfOpenCrowd => "half_open_crowd",
        }
    }
}

/// Why a SEND was not accepted, or why an accepted one failed for a recipient. The number is on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum RefuseReason {
    /// Nobody of that name said HELLO within the grace time.
    NotFound = 1,
    /// The recipient's memory is full: it reads more slowly than it is written to.
    RecipientFull = 2,
    /// The writer's queue is full.
    WriterFull = 3,
    // 4 is not used: a shard whose memory is full lets messages wait in the store.
    /// Too many SENDs of this sender wait for unknown names.
    GraceFull = 5,
    /// The message's time to live ended before it was acknowledged.
    Expired = 6,
    /// The retention time ended before it was acknowledged.
    Retention = 7,
    /// The frame would exceed 1 MiB in the recipient's dialect.
    TooLong = 8,
    /// The rate limit of the connection, key or daemon.
    RateLimited = 9,
    /// The SEND itself is malformed.
    Malformed = 10,
    /// A lane between shards is full.
    LaneFull = 11,
    /// The daemon is stopping.
    Stopping = 12,
    /// The credential may not send.
    Forbidden = 13,
}

impl RefuseReason {
    /// Every reason, for metrics and documents.
    pub const ALL: [RefuseReason; 12] = [
        RefuseReason::NotFound,
        RefuseReason::RecipientFull,
        RefuseReason::WriterFull,
        RefuseReason::GraceFull,
        RefuseReason::Expired,
        RefuseReason::Retention,
        RefuseReason::TooLong,
        RefuseReason::RateLimited,
        RefuseReason::Malformed,
        RefuseReason::LaneFull,
        RefuseReason::Stopping,
        RefuseReason::Forbidden,
    ];

    /// The reason's name in logs, metrics, JSON and `status`.
    pub const fn name(self) -> &'static str {
        match self {
            RefuseReason::NotFound => "not_found",
            RefuseReason::RecipientFull => "recipient_full",
            RefuseReason::WriterFull => "writer_full",
            RefuseReason::GraceFull => "grace_full",
            RefuseReason::Expired => "expired",
            RefuseReason::Retention => "retention",
            RefuseReason::TooLong => "too_long",
            RefuseReason::RateLimited => "rate_limited",
            RefuseReason::Malformed => "malformed",
            RefuseReason::LaneFull => "lane_full",
            RefuseReason::Stopping => "stopping",
            RefuseReason::Forbidden => "forbidden",
        }
    }

    /// The reason of a number read from the wire.
    pub fn from_wire(number: u8) -> Option<RefuseReason> {
        RefuseReason::ALL.into_iter().find(|reason| *reason as u8 == number)
    }
}
