//! A shard: one thread, one driver, one heart. The turn is all there is; `ingress` and `egress` are its two halves.
//! Touches no disk, no name server, no outbound connection and no lock.
#![forbid(unsafe_code)]

mod connections;
mod egress;
mod ingress;
mod secure;

use crate::base::keys::Source;
use crate::base::limits::{WRITER_BATCH_BYTES_MAX, WRITER_BATCH_RECORDS_MAX, WRITER_STUCK};
use crate::base::{AgentId, MessageId, Mono, Name, Now, SessionId, ShardId};
use crate::mesh::{ClerkPost, Mesh, Moved, Notice, Post, ShardGauges, WriterPost};
use crate::relay::{self, Event, Fetch, Mail, Outbox, Peer, Reading, Record, Relay, Remembered};
use crate::tls::{Acceptor, Workspace};
use crate::uring::{Driver, ListenerId, ReceiveMode, SendBuffer, Waker};
use crate::wire::json::Scratch;
use connections::{Connection, Connections, Secured, Stage};
use rustix::net::sockopt;
use rustix::time::{ClockId, clock_gettime};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Bytes of answers that may wait for one connection before it is closed: escaped JSON is up to six times as long as
/// the half MiB of messages that a window holds, and some replies come on top.
const EGRESS_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The same before its HELLO, where nothing is said but complaints.
const EARLY_EGRESS_BYTES_MAX: usize = 16 * 1024;
/// How long a connection that was told to close may take to read what it was told.
const LINGER: u64 = Mono::ms(2_000);
/// How long accepting pauses when descriptors run out.
const ACCEPT_PAUSE: u64 = Mono::ms(100);
/// How long a turn waits at most while mail is held because another shard's lane is full.
const HELD_WAIT: Duration = Duration::from_micros(200);
/// Emptied buffers kept for reuse, of each kind.
const SPARES_MAX: usize = 256;
/// Send buffers up to this size are kept in greater number, for fan-outs …
const SMALL_SPARE_BYTES: usize = 1024;
/// … up to this: 16 MiB a shard.
const SMALL_SPARES_MAX: usize = 16_384;
/// Larger ones are freed.
const SPARE_BYTES_MAX: usize = 256 * 1024;

/// What a shard is told once.
pub struct Options {
    /// Its heart's options; `shard` and `shards` are there.
    pub relay: relay::Options,
    /// This process's user: the only one, with root, that may use the Unix socket.
    pub owner_uid: u32,
    /// Records reach the writer at the latest after this many nanoseconds …
    pub flush_interval: u64,
    /// … or when this many wait.
    pub batch_trigger: usize,
    /// What peers are shown and asked for when they speak TLS; none: TLS is off.
    pub tls: Option<Arc<Acceptor>>,
}

/// A listening socket of a shard.
pub struct Listener {
    /// Its descriptor.
    pub descriptor: OwnedFd,
    /// Who can reach it.
    pub reach: Reach,
}

/// Who can reach a listening socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reach {
    /// Users of this machine whom the Unix socket's permissions let in; the kernel says who they are.
    Unix,
    /// Whoever is on this machine.
    Loopback,
    /// Others, too.
    Exposed,
}

/// How to end the other threads' sleep.
#[derive(Clone)]
pub struct Bells {
    /// Each shard's.
    pub shards: Vec<Waker>,
    /// The writer's.
    pub writer: Waker,
    /// The clerk's.
    pub clerk: Waker,
    /// The keeper's.
    pub keeper: Waker,
}

/// A shard, on its own thread.
pub struct Shard {
    driver: Driver,
    listeners: Vec<(ListenerId, Reach)>,
    inner: Inner,
}

/// Everything but the driver, so that completions can be taken while the driver hands them out.
struct Inner {
    shard: ShardId,
    options: Options,
    relay: Relay,
    outbox: Outbox,
    mesh: Arc<Mesh>,
    bells: Bells,
    connections: Connections,
    now: Now,
    /// Whether `now` was read since the driver's wait.
    fresh: bool,
    /// Connections that have received once and may receive again.
    rearm: Vec<SessionId>,
    /// Connections that have something to send or to close.
    due: Vec<SessionId>,
    /// Connections that are gone, whose descriptors the driver still holds.
    doomed: Vec<SessionId>,
    /// Connections at home whose bytes behind the HELLO have not been read.
    unread: Vec<SessionId>,
    /// Connections whose TLS handshake has something to read.
    shaking: VecDeque<SessionId>,
    workspace: Workspace,
    /// Where received bytes are decrypted to; empty between completions.
    plaintext: Vec<u8>,
    accepted: Vec<(ListenerId, OwnedFd)>,
    paused: Vec<(Mono, ListenerId)>,
    lingering: VecDeque<(Mono, SessionId)>,
    holds: Vec<Hold>,
    /// To whom something was pushed in this turn.
    pushed: Vec<bool>,
    writer_pushed: bool,
    clerk_pushed: bool,
    keeper_pushed: bool,
    /// Requests that the keeper's queue did not take: at most one per agent.
    fetch_hold: VecDeque<Fetch>,
    /// What agents say to have read: it goes to the writer behind the records so far.
    readings: Vec<Reading>,
    /// Whether records wait here because the writer has enough to do: its next commit ends the wait.
    behind: bool,
    /// Whether a record of the batch is to be committed without delay.
    urgent: bool,
    batch: Vec<Record>,
    batch_bytes: usize,
    /// Since when records, or progress, wait to be told to the writer.
    records_since: Option<Mono>,
    rang_writer_at: Mono,
    /// What the writer's queue has not taken, each with what it counts as, and the sum of that.
    writer_hold: VecDeque<(WriterPost, u64)>,
    writer_hold_cost: u64,
    writer_was_full: bool,
    pressing: Pressing,
    committed: u64,
    scratch: Scratch,
    spares: Spares,
    nameless: Name,
    receiving: bool,
    stopping: bool,
    turns: u64,
    bytes_in: u64,
    bytes_out: u64,
}

/// Whether this shard leaves senders unread because the writer is behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pressing {
    /// It does not.
    No,
    /// It does; the writer had last taken something at this time, and so much by then.
    Since(Mono, u64),
    /// It did, and the writer took nothing; not again before it has caught up.
    InVain,
}

/// Mail that a full lane did not take.
#[derive(Default)]
struct Hold {
    posts: VecDeque<Post>,
    outcomes: VecDeque<Mail>,
}

/// Emptied buffers.
#[derive(Default)]
struct Spares {
    buffers: Vec<SendBuffer>,
    stashes: Vec<Vec<u8>>,
}

impl Shard {
    /// A shard that is ready to run on this thread.
    pub fn new(
        options: Options,
        remembered: (impl IntoIterator<Item = Remembered>, Vec<(MessageId, Vec<AgentId>)>),
        mut driver: Driver,
        mesh: Arc<Mesh>,
        bells: Bells,
        listeners: Vec<Listener>,
    ) -> Shard {
        let now = clock();
        let mut relay = Relay::new(options.relay.clone());
        let (rows, parted) = remembered;
        relay.restore(now, rows);
        relay.restore_parted(parted);
        let listen = |listener: Listener| (driver.listen(listener.descriptor), listener.reach);
        let listeners: Vec<_> = listeners.into_iter().map(listen).collect();
        let count = usize::from(options.relay.shards);
        let inner = Inner {
            shard: options.relay.shard,
            relay,
            options,
            outbox: Outbox::default(),
            mesh,
            bells,
            connections: Connections::default(),
            now,
            fresh: false,
            rearm: Vec::new(),
            due: Vec::new(),
            doomed: Vec::new(),
            unread: Vec::new(),
            shaking: VecDeque::new(),
            workspace: Workspace::default(),
            plaintext: Vec::new(),
            accepted: Vec::new(),
            paused: Vec::new(),
            lingering: VecDeque::new(),
            holds: (0..count).map(|_| Hold::default()).collect(),
            pushed: vec![false; count],
            writer_pushed: false,
            clerk_pushed: false,
            keeper_pushed: false,
            fetch_hold: VecDeque::new(),
            readings: Vec::new(),
            urgent: false,
            behind: false,
            batch: Vec::new(),
            batch_bytes: 0,
            records_since: None,
            rang_writer_at: Mono(0),
            writer_hold: VecDeque::new(),
            writer_hold_cost: 0,
            writer_was_full: false,
            pressing: Pressing::No,
            committed: 0,
            scratch: Scratch::default(),
            spares: Spares::default(),
            nameless: "".into(),
            receiving: true,
            stopping: false,
            turns: 0,
            bytes_in: 0,
            bytes_out: 0,
        };
        Shard { driver, listeners, inner }
    }

    /// Turns until the daemon stops and everyone has been told BYE.
    pub fn run(mut self) -> std::io::Result<()> {
        while !self.inner.is_done() {
            self.turn()?;
        }
        let last = self.inner.relay.take_gauges();
        let _ = self.inner.mesh.push_clerk(ClerkPost::Finished(self.inner.shard, last.keys, last.sightings));
        self.inner.bells.clerk.wake();
        Ok(())
    }

    /// One turn: wait once, take everything that has arrived, decide, act.
    fn turn(&mut self) -> std::io::Result<()> {
        let Shard { driver, listeners, inner } = self;
        let timeout = inner.doze();
        inner.fresh = false;
        driver.turn(timeout, |completion| inner.take(completion))?;
        inner.mesh.shard_sleeper(inner.shard).awake();
        inner.tick();
        inner.admit(driver, listeners);
        inner.shake_hands();
        inner.drain_mesh(driver);
        inner.perform(driver);
        while inner.read_unread() {
            inner.perform(driver);
            inner.press();
        }
        inner.flush_records(false);
        inner.perform(driver);
        inner.push_holds();
        inner.push_fetches();
        inner.flush(driver);
        inner.end_lingering(driver);
        inner.listen_again(driver);
        inner.rouse(driver);
        let receiving = inner.holds.iter().all(|hold| hold.posts.is_empty() && hold.outcomes.is_empty());
        if inner.stopping {
            for (listener, _) in listeners.drain(..) {
                driver.close_listener(listener);
            }
        }
        inner.turns += 1;
        inner.mesh.publish_presence(inner.shard, inner.relay.presence_generation());
        if receiving != inner.receiving {
            inner.receiving = receiving;
            driver.set_receiving(receiving);
        }
        Ok(())
    }
}

impl Inner {
    /// Reads the clock, once after each wait, and lets time pass before anything else happens: what is overdue now must
    /// not be handed out first.
    fn tick(&mut self) {
        if !self.fresh {
            self.fresh = true;
            self.now = clock();
            self.relay.expire(self.now, &mut self.outbox);
            if self.pressing != Pressing::No {
                self.release();
            }
        }
    }

    /// How long the driver may wait. Whoever pushes after this look finds the sleeper and rings.
    fn doze(&mut self) -> Option<Duration> {
        // Read at the last wake-up: a turn's length early does no harm.
        let now = self.now.mono;
        let mut deadline = self.relay.next_deadline();
        let mut sooner = |at: Mono| deadline = Some(deadline.map_or(at, |deadline: Mono| deadline.min(at)));
        if let Some(since) = self.records_since
            && !self.behind
        {
            sooner(since + self.options.flush_interval);
            if self.urgent {
                sooner(self.rang_writer_at + egress::SESSIONS_INTERVAL);
            }
        }
        if let Some((until, _)) = self.lingering.front() {
            sooner(*until);
        }
        for (until, _) in &self.paused {
            sooner(*until);
        }
        if let Pressing::Since(at, _) = self.pressing {
            sooner(at + WRITER_STUCK);
        }
        let timeout = deadline.map(|deadline| Duration::from_nanos(deadline.since(now)));
        if !self.receiving || !self.writer_hold.is_empty() || !self.fetch_hold.is_empty() {
            return Some(timeout.map_or(HELD_WAIT, |timeout| timeout.min(HELD_WAIT)));
        }
        let awaits = self.relay.awaits_commit() || self.behind;
        self.mesh.await_commit(self.shard, awaits);
        let pressed = matches!(self.pressing, Pressing::Since(..));
        self.mesh.await_writer(self.shard, pressed);
        self.mesh.shard_sleeper(self.shard).doze();
        let busy =
            !self.due.is_empty() || !self.doomed.is_empty() || !self.shaking.is_empty() || !self.outbox.is_empty();
        let waiting = self.mesh.anything_for(self.shard, awaits.then_some(self.committed))
            || (pressed && self.mesh.writer_has_caught_up());
        if busy || waiting { Some(Duration::ZERO) } else { timeout }
    }

    /// New connections, and listeners whose pause is over.
    fn admit(&mut self, driver: &mut Driver, listeners: &[(ListenerId, Reach)]) {
        for (listener, descriptor) in std::mem::take(&mut self.accepted) {
            let reach =
                listeners.iter().find(|(known, _)| *known == listener).map_or(Reach::Exposed, |(_, reach)| *reach);
            let peer = match self.peer_of(&descriptor, reach) {
                Some(peer) => peer,
                None => {
                    tracing::warn!(
                        reason = "forbidden",
                        "another user tried the Unix socket; it serves its owner only"
                    );
                    continue;
                }
            };
            match driver.attach(descriptor) {
                Ok(session) => {
                    let mut connection = Connection::new(peer.clone(), &self.nameless);
                    connection.needs_tls = self.options.tls.is_some() && !peer.owner;
                    self.connections.insert(session, connection);
                    self.rearm.push(session);
                    self.relay.handle(self.now, Event::Opened { session, peer }, &mut self.outbox);
                }
                Err(_) => tracing::warn!(reason = "connections_full", "a connection was refused: every slot is in use"),
            }
        }
        let now = self.now.mono;
        self.paused.retain(|(until, listener)| {
            let over = *until <= now;
            if over {
                driver.pause_accepting(*listener, false);
            }
            !over
        });
    }

    /// Who is at the other end; none for another user on the Unix socket, unless everyone has to show a credential.
    fn peer_of(&self, descriptor: &OwnedFd, reach: Reach) -> Option<Peer> {
        if reach == Reach::Unix {
            let uid = sockopt::socket_peercred(descriptor).ok()?.uid.as_raw();
            let owner = uid == self.options.owner_uid || uid == 0;
            let peer = Peer { owner, source: Source::of_user(uid), ..Peer::default() };
            return (owner || self.options.relay.require_auth).then_some(peer);
        }
        // Small frames must not wait for each other.
        let _ = sockopt::set_tcp_nodelay(descriptor, true);
        let address = rustix::net::getpeername(descriptor).ok().flatten();
        let address = address.and_then(|address| SocketAddr::try_from(address).ok());
        let source = address.map_or(Source::default(), |address| Source::of_address(address.ip()));
        Some(Peer { exposed: reach == Reach::Exposed, source, ..Peer::default() })
    }

    /// Commits first, since they free room; then outcomes, then mail, then the rest.
    fn drain_mesh(&mut self, driver: &mut Driver) {
        let committed = self.mesh.committed(self.shard);
        if committed != self.committed {
            self.committed = committed;
            self.relay.handle(self.now, Event::Committed { through: committed }, &mut self.outbox);
        }
        for from in 0..self.holds.len() {
            let from_shard = ShardId(from as u16);
            while let Some(mail) = self.mesh.pop_outcome(from_shard, self.shard) {
                self.relay.handle(self.now, Event::Mail { from: from_shard, mail }, &mut self.outbox);
            }
            // What this mail causes must find room on the way back; until then it stays where it is bounded.
            if !self.holds[from].outcomes.is_empty() {
                continue;
            }
            for _ in 0..crate::base::limits::LANE_MAILS_MAX {
                match self.mesh.pop_mail(from_shard, self.shard) {
                    Some(Post::Mail(mail)) => {
                        self.relay.handle(self.now, Event::Mail { from: from_shard, mail }, &mut self.outbox);
                    }
                    Some(Post::Connection(moved)) => self.adopt(*moved, driver),
                    None => break,
                }
            }
        }
        if let Some(answers) = self.mesh.pop_looked_up(self.shard) {
            self.relay.handle(self.now, Event::LookedUp(answers), &mut self.outbox);
        }
        while let Some(notice) = self.mesh.pop_notice(self.shard) {
            let event = match notice {
                Notice::Answered(answer) => Event::Answered {
                    session: answer.session,
                    number: answer.number,
                    failed: answer.failed,
                    json: answer.json,
                },
                Notice::Fetched(fetched) => Event::Fetched(fetched),
                Notice::Census(ticket) => Event::Census(ticket),
                Notice::Entitled(entitlement) => Event::Entitled(entitlement),
                Notice::Keys(keys) => Event::Keys(keys),
                Notice::Tls(acceptor) => {
                    self.options.tls = Some(acceptor);
                    continue;
                }
                Notice::Stop => {
                    self.stopping = true;
                    Event::Stop
                }
            };
            self.relay.handle(self.now, event, &mut self.outbox);
        }
    }

    /// Takes in a connection that was accepted elsewhere.
    fn adopt(&mut self, moved: Moved, driver: &mut Driver) {
        let Moved { descriptor, dialect, peer, hello, grant, link, sealed, unread, unsent } = moved;
        let Ok(session) = driver.attach(descriptor) else {
            return tracing::warn!(reason = "connections_full", "a connection found its home full");
        };
        let mut connection = Connection::new(peer.clone(), &self.nameless);
        connection.dialect = Some(dialect);
        connection.stage = Stage::Greeting;
        connection.stash = unread;
        connection.pending.bytes = unsent;
        connection.tls = link.map(|link| Box::new(Secured { sealed, ..Secured::new(*link) }));
        self.connections.insert(session, connection);
        let event = Event::Adopted { session, peer, dialect, hello, grant };
        self.relay.handle(self.now, event, &mut self.outbox);
    }

    /// Connections that have just come home: what lay behind their HELLO is read now; and what lay behind a pause. Only as
    /// many of them as fill a batch: a crowd that is read again must not be more than the writer's queue takes. Says whether
    /// there was any.
    fn read_unread(&mut self) -> bool {
        let mut unread = std::mem::take(&mut self.unread);
        let mut read = 0;
        for id in &unread {
            if self.outbox.records_weight >= WRITER_BATCH_BYTES_MAX
                || self.outbox.records.len() >= WRITER_BATCH_RECORDS_MAX
            {
                break;
            }
            read += 1;
            if let Some(connection) = self.connections.find_mut(*id) {
                let stash = std::mem::take(&mut connection.stash);
                if !stash.is_empty() {
                    self.read(*id, &stash);
                    self.spares.keep_stash(stash);
                }
                // Its peer closed during a pause, and everything has been read that came before.
                if self.connections.find_mut(*id).is_some_and(|connection| connection.ended && !connection.paused) {
                    self.lose(*id);
                }
            }
        }
        let any = read > 0;
        unread.drain(..read);
        unread.append(&mut self.unread);
        self.unread = unread;
        any
    }

    /// Connections without a session receive once more.
    fn listen_again(&mut self, driver: &mut Driver) {
        for id in self.rearm.drain(..) {
            if let Some(connection) = self.connections.find_mut(id)
                && connection.stage == Stage::Fresh
                && connection.closing.is_none()
            {
                driver.receive(id, ReceiveMode::Once);
            }
        }
    }

    fn gauges(&self) -> ShardGauges {
        let busy = clock_gettime(ClockId::ThreadCPUTime);
        ShardGauges {
            turns: self.turns,
            busy_us: busy.tv_sec as u64 * 1_000_000 + busy.tv_nsec as u64 / 1_000,
            lane_hold: self.holds.iter().map(|hold| (hold.posts.len() + hold.outcomes.len()) as u32).sum(),
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
        }
    }

    fn is_done(&self) -> bool {
        self.stopping && self.connections.is_empty() && self.writer_hold.is_empty() && self.batch.is_empty()
    }
}

/// Both clocks, now.
fn clock() -> Now {
    // CLOCK_MONOTONIC counts from the boot; what an earlier process saw may lie before that.
    const BEFORE_BOOT: u64 = 1 << 62;
    let mono = clock_gettime(ClockId::Monotonic);
    let wall = clock_gettime(ClockId::Realtime);
    Now {
        mono: Mono(BEFORE_BOOT + mono.tv_sec as u64 * 1_000_000_000 + mono.tv_nsec as u64),
        wall_ms: wall.tv_sec as u64 * 1_000 + wall.tv_nsec as u64 / 1_000_000,
    }
}
