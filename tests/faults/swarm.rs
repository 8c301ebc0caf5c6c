//! All agents, driven by one thread: it reads, answers and says more until the test has seen enough.

use crate::agent::{Agent, Dialect, Return};
use crate::daemon::Place;
use crate::dice::Dice;
use crate::ledger::{Ledger, Micros, To};
use rustix::event::{PollFd, PollFlags, Timespec};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Nothing on a loaded machine takes longer than this; what does is a failure, and says so.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Swarm {
    pub agents: Vec<Agent>,
    pub ledger: Ledger,
    pub dice: Dice,
    socket: PathBuf,
    begun: Instant,
    /// Messages to everybody may be among the load: everybody is known.
    pub broadcasts: bool,
    /// Length of the bodies; 0: mixed.
    pub kibibytes: usize,
}

impl Swarm {
    /// So many agents, of which the last speak JSON.
    pub(crate) fn new(native: usize, json: usize, socket: PathBuf, seed: u64) -> Swarm {
        let dialect = |index| if index < native { Dialect::Native } else { Dialect::Json };
        Swarm {
            agents: (0..native + json).map(|index| Agent::new(index, dialect(index), seed)).collect(),
            ledger: Ledger::new(native + json, false),
            dice: Dice::new(seed),
            socket,
            begun: Instant::now(),
            broadcasts: false,
            kibibytes: 0,
        }
    }

    pub(crate) fn now(&self) -> Micros {
        self.begun.elapsed().as_micros() as Micros
    }

    /// From now on the disk takes nothing.
    pub(crate) fn disk_fails(&mut self) {
        self.ledger.disk_fails(Some(self.now()));
    }

    /// It takes what it is given again.
    pub(crate) fn disk_works(&mut self) {
        self.ledger.disk_fails(None);
    }

    /// Durable receipts so far.
    pub(crate) fn receipts(&self) -> u64 {
        self.agents.iter().map(|agent| agent.receipts).sum()
    }

    /// Refusals so far.
    pub(crate) fn busy(&self) -> u64 {
        self.agents.iter().map(|agent| agent.busy).sum()
    }

    /// Why messages were refused.
    pub(crate) fn busy_reasons(&self) -> BTreeSet<String> {
        self.agents.iter().flat_map(|agent| agent.busy_reasons.iter().cloned()).collect()
    }

    /// Turns until nothing comes any more for a while, and says no more.
    pub(crate) fn listen_out(&mut self) {
        let mut silent = 0;
        while silent < 10 {
            let before = self.ledger.delivered + self.receipts() + self.busy();
            self.turn(Duration::from_millis(5));
            silent = if self.ledger.delivered + self.receipts() + self.busy() == before { silent + 1 } else { 0 };
        }
    }

    fn pending(&self) -> usize {
        self.agents.iter().map(Agent::pending).sum()
    }

    /// Waits for something to come, at most this long, and takes it.
    pub(crate) fn turn(&mut self, wait: Duration) {
        let now = self.now();
        self.ledger.look(now);
        let mut ready = Vec::new();
        {
            let mut polled = Vec::new();
            let mut whose = Vec::new();
            for agent in &self.agents {
                if let Some(stream) = &agent.stream {
                    let output = if agent.has_output() { PollFlags::OUT } else { PollFlags::empty() };
                    polled.push(PollFd::new(stream, PollFlags::IN | output));
                    whose.push(agent.index);
                }
            }
            let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
            let count = rustix::event::poll(&mut polled, Some(&wait)).unwrap_or(0);
            if count > 0 {
                ready.extend(polled.iter().zip(whose).filter(|(fd, _)| !fd.revents().is_empty()).map(|(_, who)| who));
            }
        }
        let late = ready.is_empty();
        for index in ready {
            self.agents[index].hear(&mut self.ledger, &mut self.dice, now);
            self.agents[index].flush();
        }
        if late {
            for agent in &mut self.agents {
                agent.acknowledge(&mut self.ledger, now);
                agent.flush();
            }
        }
    }

    /// Turns until `enough`.
    pub(crate) fn until(&mut self, what: &str, mut enough: impl FnMut(&mut Swarm) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut told = Instant::now();
        while !enough(self) {
            self.turn(Duration::from_millis(5));
            if told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
                let (open, owed) = self.ledger.waiting();
                eprintln!("still waiting for {what}: {open} without an outcome, {owed} undelivered");
            }
            if Instant::now() > deadline {
                // Whatever has not come by now is missing.
                let (open, owed) = self.ledger.waiting();
                let away: Vec<usize> =
                    self.agents.iter().filter(|agent| !agent.welcome).map(|agent| agent.index).collect();
                self.ledger.settle(self.begun.elapsed().as_micros() as Micros);
                eprintln!("waited too long for {what}");
                self.check();
                panic!("waited too long for {what}: {open} without an outcome, {owed} undelivered, away: {away:?}");
            }
        }
    }

    /// Everybody who is not connected connects; waits until all are welcome.
    pub(crate) fn gather(&mut self) {
        for index in 0..self.agents.len() {
            if self.agents[index].stream.is_none() {
                let how = match self.dice.below(16) {
                    0 => Return::Fresh,
                    1 => Return::Forgetful,
                    _ => Return::Resume,
                };
                assert!(self.agents[index].connect(&self.socket, how), "the daemon said READY and does not listen");
            }
        }
        self.until("every WELCOME", |swarm| swarm.agents.iter().all(|agent| agent.welcome));
    }

    fn say(&mut self, index: usize) {
        let others = self.agents.len() as u64 - 1;
        let to = if self.broadcasts && self.dice.one_in(200) {
            To::Everyone
        } else {
            To::One((index + 1 + self.dice.below(others) as usize) % self.agents.len())
        };
        let now = self.now();
        self.agents[index].say(to, self.kibibytes, &mut self.ledger, now);
    }

    /// Keeps `window` messages of each agent on their way until so many more receipts have come.
    pub(crate) fn saturate(&mut self, window: usize, receipts: u64) {
        let enough = self.receipts() + receipts;
        self.until("receipts under load", |swarm| {
            if swarm.receipts() >= enough {
                return true;
            }
            swarm.fill(window);
            false
        });
    }

    /// Says ever more, of 8 KiB each, until the writer's queue is full and some have heard so: much more waits then than one
    /// commit holds. The window that it took.
    pub(crate) fn overfill(&mut self) -> usize {
        self.kibibytes = 8;
        let mut window = 16;
        self.until("BUSY", |swarm| {
            swarm.fill(window);
            window += 8;
            swarm.busy() >= 20
        });
        window
    }

    /// Everybody comes back to a daemon that was started again, and everything owed with them; then that one is killed, too.
    pub(crate) fn comes_back(&mut self, place: &Place) {
        let daemon = place.start();
        self.gather();
        self.calm();
        daemon.kill();
    }

    /// Every connected agent says messages until `window` are on their way.
    pub(crate) fn fill(&mut self, window: usize) {
        for index in 0..self.agents.len() {
            if !self.agents[index].welcome || self.agents[index].pending() > window / 2 {
                continue;
            }
            while self.agents[index].pending() < window {
                self.say(index);
            }
            self.agents[index].flush();
        }
    }

    /// So many times: a few agents say one message each, and all receipts are awaited.
    pub(crate) fn pace(&mut self, times: u64) {
        for _ in 0..times {
            for _ in 0..=self.dice.below(4) {
                let index = self.dice.below(self.agents.len() as u64) as usize;
                self.say(index);
                self.agents[index].flush();
            }
            self.until("the receipts of a few", |swarm| swarm.pending() == 0);
        }
    }

    /// Some connections break while the daemon lives, and come back.
    pub(crate) fn shake(&mut self) {
        for index in 0..self.agents.len() {
            if self.dice.one_in(6) && self.agents[index].welcome {
                self.agents[index].hang_up(&mut self.ledger);
                assert!(self.agents[index].connect(&self.socket, Return::Resume));
            }
        }
        self.gather();
    }

    /// Says no more and waits until everything has its outcome and is delivered.
    pub(crate) fn calm(&mut self) {
        self.until("quiet", |swarm| swarm.ledger.is_quiet());
        self.ledger.settle(self.begun.elapsed().as_micros() as Micros);
        self.check();
    }

    /// The daemon is dead: takes what it had still written.
    pub(crate) fn bury(&mut self) {
        let (now, deadline) = (self.now(), Instant::now() + PATIENCE);
        for agent in &mut self.agents {
            while agent.hear(&mut self.ledger, &mut self.dice, now) {
                assert!(Instant::now() < deadline, "the socket of a dead daemon does not end");
            }
        }
        self.ledger.daemon_ended(now);
        self.check();
    }

    /// Fails with what the ledger found.
    pub(crate) fn check(&self) {
        let found = self.ledger.violations();
        if !found.is_empty() {
            let lines: Vec<String> = found.iter().map(|violation| format!("  {violation}")).collect();
            panic!("{} broken promises:\n{}", found.len(), lines.join("\n"));
        }
    }
}
