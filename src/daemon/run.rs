//! The daemon from start to stop: lock, sockets, threads, signals, drain.

use super::clerk::{Clerk, Facts, wall_ms};
use super::licence::{self, Licence};
use super::logs::Logs;
use super::registrar::Registrar;
use super::settings::{Backend, Durability, Settings, TlsFiles};
use super::storage::{Storage, StorageBells, StorageError, StorageGauges, StorageThreads};
use super::{cpus, harden, lock, notify, paths};
use crate::base::keys::Ring;
use crate::base::limits::KNOWN_AGENTS_MAX;
use crate::base::tier::{Entitled, Entitlement, Feature, Refused, Tier};
use crate::base::{Mono, ShardId};
use crate::mesh::{Mesh, Notice};
use crate::relay::{self, Bounds};
use crate::shard::{self, Bells, Listener, Reach, Shard};
use crate::tls::{self, Acceptor, TlsError};
use crate::uring::{self, Driver, Report, Waker};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// How long agents may take to read what they were told before the daemon stops without them.
const DRAIN_DEADLINE: Duration = Duration::from_secs(5);

/// Why the daemon did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Another daemon is here, or the place cannot be used.
    #[error(transparent)]
    Lock(#[from] lock::LockError),
    /// The folders cannot be made.
    #[error(transparent)]
    Path(#[from] paths::PathError),
    /// Sockets handed over by the service manager cannot be used.
    #[error(transparent)]
    Inherit(#[from] notify::InheritError),
    /// The service manager listens where others can reach, without what is needed there.
    #[error(
        "the service manager listens on {0}, which others can reach, so TLS is required there: give --tls-cert and --tls-key, or set ListenStream= to 127.0.0.1 or [::1]"
    )]
    Exposed(std::net::SocketAddr),
    /// A TCP address cannot be listened on.
    #[error("cannot listen on {address}: {error}; stop whoever uses it, or give --listen another port")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// A shard could not be set up.
    #[error("shard {shard} could not start: {error}; `relay doctor` shows what this machine allows")]
    Shard {
        /// Which.
        shard: u16,
        /// What the kernel said.
        error: io::Error,
    },
    /// Something is asked for that the licence does not grant.
    #[error("{0}")]
    Tier(#[from] Refused),
    /// The certificates cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The store cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The disk refused to the end.
    #[error(
        "stopped, and {messages} accepted messages that never got to the disk are lost ({reason}); none of them had a \
         durable receipt"
    )]
    Unwritten {
        /// How many.
        messages: u64,
        /// Why, in one word.
        reason: &'static str,
    },
    /// The kernel refused something else.
    #[error("cannot {act}: {error}")]
    System {
        /// What was tried.
        act: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

fn cannot(act: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |error| DaemonError::System { act, error }
}

/// What is said when the daemon is ready: for `up` to print.
pub struct Ready {
    /// The Unix socket.
    pub socket: std::path::PathBuf,
    /// TCP addresses, as bound.
    pub listen: Vec<String>,
    /// Shards and their CPUs.
    pub cpus: Vec<usize>,
    /// What each shard's driver turned out to be.
    pub reports: Vec<Report>,
    /// Things the operator should know.
    pub notes: Vec<String>,
}

/// Runs the daemon on this thread until it is told to stop. `ready` is called once every listener is open.
pub fn run(settings: Settings, ready: impl FnOnce(&Ready)) -> Result<(), DaemonError> {
    // Before any thread starts: it edits the environment, and children of nobody should inherit the sockets.
    let inherited = notify::inherited()?;
    serve_until_stopped(settings, inherited, None, ready)
}

/// The same for `relay bench`: a daemon in the caller's process, on a thread of the caller's, in a directory that the caller
/// made for it, without a licence and without limits. There is no way from outside to make a process do this but that command.
pub fn run_temporary(settings: Settings, ready: impl FnOnce(&Ready)) -> Result<(), DaemonError> {
    serve_until_stopped(settings, notify::Inherited::default(), Some(Entitlement::unlimited()), ready)
}

fn serve_until_stopped(
    settings: Settings,
    inherited: notify::Inherited,
    granted: Option<Entitled>,
    ready: impl FnOnce(&Ready),
) -> Result<(), DaemonError> {
    settings.layout.create()?;
    let mut lock = lock::Lock::take(&settings.layout, jiff::Timestamp::now())?;
    settings.layout.write_project_file(jiff::Timestamp::now()).map_err(cannot("write .project"))?;
    let colour = rustix::termios::isatty(io::stderr());
    let logs = Logs::start(&settings.log_level, settings.log_format, colour);
    harden::keep_secrets_inside();
    // A temporary daemon has none, and needs none.
    let licence = if granted.is_some() { None } else { Some(Licence::start(&settings)) };
    let entitlement = match (&granted, &licence) {
        (Some(granted), _) => granted.clone(),
        (None, Some(licence)) => licence.in_force(),
        (None, None) => Arc::new(Entitlement::of_tier(Tier::Community)),
    };
    licence::gates(&settings, &entitlement)?;
    exposed_on_terms(&inherited, settings.tls.is_some(), &entitlement)?;
    let tls = settings.tls.as_ref().map(load_tls).transpose()?;
    let storage = Storage::open(&settings, (wall_ms() / 1_000) as u32)?;
    let retention_ms = Arc::new(AtomicU64::new(days_ms(entitlement.retention_days(settings.retention_days))));
    let registrar =
        Registrar::open(storage.store.clone(), retention_ms.load(Ordering::Relaxed)).map_err(StorageError::from)?;
    let keys = registrar.ring();
    let socket_file = if inherited.unix.is_empty() { Some(lock.bind(&settings.layout.socket)?) } else { None };
    let mut tcp = inherited.tcp;
    for address in &settings.listen {
        let listener = TcpListener::bind(address).map_err(|error| DaemonError::Listen { address: *address, error })?;
        tcp.push(listener);
    }
    let unix = |descriptor| Listener { descriptor, reach: Reach::Unix };
    let mut listeners: Vec<Listener> = inherited.unix.into_iter().map(|listener| unix(listener.into())).collect();
    if let Some(file) = &socket_file {
        listeners.push(unix(file.listener.try_clone().map_err(cannot("share the socket"))?.into()));
    }
    let mut listen = Vec::new();
    for listener in tcp {
        listener.set_nonblocking(true).map_err(cannot("set up a TCP listener"))?;
        let address = listener.local_addr().ok();
        let local = address.is_some_and(|address| address.ip().is_loopback());
        let reach = if local { Reach::Loopback } else { Reach::Exposed };
        listen.extend(address.map(|address| address.to_string()));
        listeners.push(Listener { descriptor: listener.into(), reach });
    }

    let shards = settings.cores;
    let mesh = Arc::new(Mesh::new(shards));
    let choice = cpus::choose(usize::from(shards));
    let lone = || Waker::lone().map_err(cannot("make an eventfd"));
    let clerk_bell = lone()?;
    let storage_bells = StorageBells::new().map_err(cannot("make an eventfd"))?;
    let signals = Arc::new(Asked::default());
    watch_signals(signals.clone(), clerk_bell.clone())?;

    let started = Shards::start(
        &settings,
        &Doors { entitlement: &entitlement, keys: &keys, tls: tls.as_ref(), listeners: &listeners },
        &storage,
        &mesh,
        &choice.cpus,
        &storage_bells,
        &clerk_bell,
    )?;
    drop(listeners);
    let gauges = StorageGauges::default();
    let shard_bells = started.bells.shards.clone();
    let threads =
        StorageThreads::start(&storage, &settings, &mesh, storage_bells, shard_bells, &gauges, &retention_ms)?;
    let written = gauges.writer.clone();
    let mut notes = settings.warnings.clone();
    notes.extend(settings.retention_note(&entitlement));
    notes.extend(licence.iter().flat_map(Licence::warnings));
    notes.extend(choice.note);
    let facts = Facts {
        started_at_ms: wall_ms(),
        started: Instant::now(),
        listen: listen.clone(),
        cpus: choice.cpus.clone(),
        reports: started.reports.clone(),
        store: storage.store.clone(),
        follower: storage.follower.clone(),
        storage: gauges,
        entitlement,
        registrar,
        retention_ms,
        retention_clock: storage.retention_clock(),
        licence,
    };
    let socket = settings.layout.socket.clone();
    let files = settings.tls.clone();
    notes.extend(tls.iter().flat_map(|tls| tls.warnings().to_vec()));
    let mut clerk = Clerk::new(mesh.clone(), started.bells.clone(), settings, facts);
    ready(&Ready { socket, listen, cpus: choice.cpus, reports: started.reports, notes });
    notify::ready("relaying");
    let reload = || reload_tls(files.as_ref(), &mesh, &started.bells);
    let drained = serve(&mut clerk, &mesh, &clerk_bell, &signals, reload);
    // From here on nobody can connect: the name goes first, so that the next daemon is not mistaken for this one.
    drop(socket_file);
    if drained {
        for thread in started.threads {
            if thread.join().is_err() {
                tracing::error!("a shard ended by panic");
            }
        }
    }
    clerk.stop();
    threads.stop();
    let dropped = logs.dropped();
    if dropped > 0 {
        tracing::warn!(dropped, "log lines were dropped because standard error was slow");
    }
    let messages = written.lost.0.load(Ordering::Acquire);
    let reason = match messages {
        0 => "",
        _ => written.trouble.lock().as_ref().map_or("unknown", |trouble| trouble.kind),
    };
    lock.leave(lock::LastWord { ended_pid: std::process::id(), lost_messages: messages, reason: reason.to_owned() });
    drop(lock);
    if messages > 0 { Err(DaemonError::Unwritten { messages, reason }) } else { Ok(()) }
}

/// The main thread's life. Says whether every shard has drained.
fn serve(clerk: &mut Clerk, mesh: &Mesh, bell: &Waker, signals: &Asked, reload: impl Fn() -> bool) -> bool {
    let mut stopping = None::<Instant>;
    let mut watchdog = notify::Watchdog::of_environment();
    loop {
        let timeout = watchdog.shorten(clerk.turn());
        let asked = signals.stop.load(Ordering::Acquire);
        if signals.reload.swap(false, Ordering::AcqRel) && reload() {
            clerk.note_change("tls");
        }
        match stopping {
            None if asked > 0 || clerk.stop_asked => {
                tracing::info!("stopping: saying BYE to everyone");
                notify::stopping();
                clerk.tell_shards_to_stop();
                stopping = Some(Instant::now());
            }
            Some(_) if clerk.all_finished() => return true,
            // A second signal, or peers that do not read: stop now.
            Some(since) if asked > 1 || since.elapsed() > DRAIN_DEADLINE => {
                tracing::warn!("stopping without waiting for every connection to close");
                return false;
            }
            _ => {}
        }
        watchdog.alive();
        mesh.clerk_sleeper().doze();
        let signalled = signals.stop.load(Ordering::Acquire) != asked || signals.reload.load(Ordering::Acquire);
        if !mesh.anything_for_clerk() && !signalled {
            bell.wait(Some(timeout));
        }
        mesh.clerk_sleeper().awake();
    }
}

/// Reads the certificates.
fn load_tls(files: &TlsFiles) -> Result<Arc<Acceptor>, TlsError> {
    let TlsFiles { cert, key, ca, mutual, .. } = files.clone();
    Acceptor::load(&tls::Files { cert, key, ca, mutual }).map(Arc::new)
}

/// Reads the certificates again. Connections that are there stay as they are; those that come are shown the new ones.
/// Whether there are new ones.
fn reload_tls(files: Option<&TlsFiles>, mesh: &Mesh, bells: &Bells) -> bool {
    let Some(files) = files else {
        tracing::info!("SIGHUP: TLS is off, so there is nothing to read again");
        return false;
    };
    let acceptor = match load_tls(files) {
        Ok(acceptor) => acceptor,
        Err(error) => {
            tracing::error!("SIGHUP: {error}. The certificates of before stay in use");
            return false;
        }
    };
    for warning in acceptor.warnings() {
        tracing::warn!("{warning}");
    }
    for (index, bell) in bells.shards.iter().enumerate() {
        let shard = ShardId(index as u16);
        let mut notice = Notice::Tls(acceptor.clone());
        // Its queue is full of answers, which it takes in its next turn.
        while let Err(back) = mesh.notify(shard, notice) {
            bell.wake();
            std::thread::yield_now();
            notice = back;
        }
        bell.wake();
    }
    tracing::info!(cert = %files.cert.display(), "SIGHUP: new connections are shown the certificates as they are now");
    true
}

/// Sockets that were handed over are held to what `--listen` is.
fn exposed_on_terms(inherited: &notify::Inherited, tls: bool, entitlement: &Entitlement) -> Result<(), DaemonError> {
    for listener in &inherited.tcp {
        let address = listener.local_addr().map_err(cannot("see where the service manager listens"))?;
        if address.ip().is_loopback() {
            continue;
        }
        if !tls {
            return Err(DaemonError::Exposed(address));
        }
        entitlement.require(Feature::TcpTransport)?;
    }
    Ok(())
}

/// Days in milliseconds.
pub(super) fn days_ms(days: u32) -> u64 {
    u64::from(days) * 24 * 3_600_000
}

/// What signals have asked for.
#[derive(Default)]
struct Asked {
    /// How often SIGTERM or SIGINT came.
    stop: AtomicU32,
    /// Whether SIGHUP came.
    reload: AtomicBool,
}

/// Notes signals, and wakes the main thread for each.
fn watch_signals(asked: Arc<Asked>, bell: Waker) -> Result<(), DaemonError> {
    let terminal = rustix::termios::isatty(io::stdin());
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(cannot("watch for signals"))?;
    let watch = move || {
        for signal in signals.forever() {
            match signal {
                // Its terminal was closed: whoever started it in the foreground has gone.
                SIGHUP if terminal && rustix::termios::tcgetattr(io::stdin()).is_err() => {
                    asked.stop.fetch_add(1, Ordering::AcqRel);
                }
                SIGHUP => asked.reload.store(true, Ordering::Release),
                _ => drop(asked.stop.fetch_add(1, Ordering::AcqRel)),
            }
            bell.wake();
        }
    };
    Builder::new().name("relay-signals".into()).spawn(watch).map_err(cannot("watch for signals"))?;
    Ok(())
}

/// The shards, running.
struct Shards {
    threads: Vec<JoinHandle<()>>,
    bells: Bells,
    reports: Vec<Report>,
}

/// Where agents come in, and on what terms.
struct Doors<'a> {
    listeners: &'a [Listener],
    entitlement: &'a Entitled,
    keys: &'a Ring,
    tls: Option<&'a Arc<Acceptor>>,
}

impl Shards {
    /// Starts one thread a shard. Drivers are made on their own threads; nobody turns before all are there.
    fn start(
        settings: &Settings,
        doors: &Doors<'_>,
        storage: &Storage,
        mesh: &Arc<Mesh>,
        cpus: &[usize],
        storage_bells: &StorageBells,
        clerk_bell: &Waker,
    ) -> Result<Shards, DaemonError> {
        let seeds = Seeds::draw()?;
        let mut homes = storage.homes(seeds.names, settings.cores).into_iter();
        let (mut threads, mut bells_out, mut wakers, mut reports) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for index in 0..settings.cores {
            let failed = |error| DaemonError::Shard { shard: index, error };
            let copy = |listener: &Listener| {
                let descriptor = listener.descriptor.try_clone()?;
                Ok(Listener { descriptor, reach: listener.reach })
            };
            let own: Vec<Listener> = doors.listeners.iter().map(copy).collect::<io::Result<_>>().map_err(failed)?;
            let mut options = shard_options(settings, index, storage.epoch, &seeds, doors);
            options.relay.bounds.clock_ahead_ms = storage.clock_ahead_ms();
            let remembered = (storage.rows_of(homes.next().unwrap_or_default()), storage.parted.clone());
            let driver_options = driver_options(settings);
            let (mesh, cpu) = (mesh.clone(), cpus.get(usize::from(index)).copied());
            let (made_in, made) = mpsc::sync_channel::<io::Result<(Waker, Report)>>(1);
            let (bells_in, bells) = mpsc::sync_channel::<Bells>(1);
            let body = move || {
                if let Some(cpu) = cpu
                    && let Err(error) = cpus::pin(cpu)
                {
                    tracing::warn!(shard = index, cpu, %error, "the shard could not be pinned and goes where the kernel puts it");
                }
                let driver = match Driver::new(&driver_options) {
                    Ok(driver) => driver,
                    Err(error) => return drop(made_in.send(Err(error))),
                };
                let _ = made_in.send(Ok((driver.waker(), driver.report().clone())));
                // No bells: another shard failed, and so the daemon does not start.
                let Ok(bells) = bells.recv() else { return };
                if let Err(error) = Shard::new(options, remembered, driver, mesh, bells, own).run() {
                    tracing::error!(shard = index, %error, "a shard's driver failed; the daemon cannot go on");
                    std::process::abort();
                }
            };
            let name = format!("relay-shard-{index}");
            threads.push(Builder::new().name(name).spawn(abort_on_panic(body)).map_err(failed)?);
            let (waker, report) =
                made.recv().unwrap_or_else(|_| Err(io::Error::other("its thread ended early"))).map_err(failed)?;
            wakers.push(waker);
            reports.push(report);
            bells_out.push(bells_in);
        }
        let bells = Bells {
            shards: wakers,
            writer: storage_bells.writer.clone(),
            clerk: clerk_bell.clone(),
            keeper: storage_bells.keeper.clone(),
        };
        for sender in bells_out {
            let _ = sender.send(bells.clone());
        }
        Ok(Shards { threads, bells, reports })
    }
}

/// A thread that breaks a law takes the process with it: going on without it would lose messages quietly.
pub(super) fn abort_on_panic(body: impl FnOnce() + Send + 'static) -> Box<dyn FnOnce() + Send> {
    Box::new(move || {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err() {
            tracing::error!("a thread broke one of its own laws; the daemon stops");
            std::process::abort();
        }
    })
}

/// Random numbers of this run.
struct Seeds {
    names: u64,
    tokens: [u8; 32],
}

impl Seeds {
    fn draw() -> Result<Seeds, DaemonError> {
        let mut bytes = [0; 40];
        getrandom::fill(&mut bytes)
            .map_err(|error| DaemonError::System { act: "draw random numbers", error: io::Error::other(error) })?;
        let (names, tokens) = bytes.split_at(8);
        let mut seeds = Seeds { names: 0, tokens: [0; 32] };
        seeds.names = names.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        seeds.tokens.copy_from_slice(tokens);
        Ok(seeds)
    }

    /// A different secret for each shard.
    fn tokens_of(&self, shard: u16) -> [u8; 32] {
        use sha2::Digest;
        sha2::Sha256::new().chain_update(self.tokens).chain_update(shard.to_le_bytes()).finalize().into()
    }
}

fn shard_options(settings: &Settings, index: u16, epoch: u32, seeds: &Seeds, doors: &Doors<'_>) -> shard::Options {
    let limits = &settings.limits;
    let bounds = Bounds {
        half_open_max: limits.half_open,
        known_agents_max: limits.known_agents.min(KNOWN_AGENTS_MAX),
        subscriptions_max: limits.subscriptions,
        in_flight_max: limits.in_flight,
        in_flight_bytes_max: limits.in_flight_bytes,
        waiting_bytes_max: limits.waiting_bytes,
        waiting_messages_max: limits.owed_messages,
        owed_bytes_max: limits.owed_bytes,
        retention: Mono::ms(days_ms(settings.retention_days)),
        messages_per_second: limits.messages_per_second_per_connection,
        burst: limits.burst_per_connection,
        ..Bounds::default()
    };
    shard::Options {
        relay: relay::Options {
            shard: ShardId(index),
            shards: settings.cores,
            epoch,
            name_seed: seeds.names,
            token_seed: seeds.tokens_of(index),
            bounds,
            strict: settings.durability == Durability::Strict,
            entitlement: doors.entitlement.clone(),
            require_auth: settings.require_auth,
            bind_certificates: settings.tls.as_ref().is_some_and(|tls| tls.bind_names),
            keys: doors.keys.clone(),
        },
        owner_uid: rustix::process::getuid().as_raw(),
        flush_interval: Mono::ms(settings.flush_interval_ms),
        batch_trigger: settings.max_batch_size,
        tls: doors.tls.cloned(),
    }
}

fn driver_options(settings: &Settings) -> uring::Options {
    uring::Options {
        connections_max: settings.limits.connections,
        backend: match settings.backend {
            Backend::Auto => uring::Backend::Auto,
            Backend::Uring => uring::Backend::Uring,
            Backend::Epoll => uring::Backend::Epoll,
        },
        ..uring::Options::default()
    }
}
