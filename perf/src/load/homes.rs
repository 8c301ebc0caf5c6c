//! Which agents live on which shard, found out from outside; for the workloads on two shards.
#![forbid(unsafe_code)]

use super::{Load, Peer, Workload};
use crate::measure;
use crate::talk::{Dialect, Target};
use rustix::event::epoll;

impl<D: Dialect> Load<D> {
    /// Finds out where agents live, as seen from outside: each talks to itself, and the thread whose CPU time grows is
    /// its home. Then pairs them as the workload asks and keeps only those.
    pub(super) fn place(&mut self) -> Result<(), String> {
        const PROBES: u32 = 512;
        self.join()?;
        let mut homes: Vec<(u32, u32)> = Vec::new();
        // The writer works for each message too; a shard says in its thread's name that it is one.
        let mut shards = measure::cpu_by_thread(self.pid());
        shards.retain(|thread, _| measure::thread_name(self.pid(), *thread).contains("shard"));
        if shards.len() != 2 {
            return Err(format!("{} threads call themselves shard; this workload needs two", shards.len()));
        }
        for number in 0..self.peers.len() as u32 {
            let before = measure::cpu_by_thread(self.pid());
            self.peers[number as usize].sender = u32::MAX;
            let expected = self.received + u64::from(PROBES);
            let now = self.now();
            for _ in 0..PROBES / 64 {
                self.speak(number, now, 64)?;
                let wave = self.received + 64;
                while self.received < wave.min(expected) {
                    self.hear_something("a probe")?;
                }
            }
            let grown = |(thread, after): (u32, u64)| (after - before.get(&thread).copied().unwrap_or(0), thread);
            let after = measure::cpu_by_thread(self.pid());
            let busiest = after.into_iter().filter(|(thread, _)| shards.contains_key(thread)).map(grown).max();
            homes.push((busiest.ok_or("the relay has no threads")?.1, number));
        }
        homes.sort_unstable();
        let first_home = homes[0].0;
        let split = homes.iter().position(|(home, _)| *home != first_home).ok_or("all agents live on one shard")?;
        let (here, there) = homes.split_at(split);
        let couples: Vec<(u32, u32)> = if self.plan.workload == Workload::SameShard {
            let half = self.plan.pairs as usize / 2;
            here.chunks_exact(2)
                .take(half)
                .chain(there.chunks_exact(2).take(half))
                .map(|two| (two[0].1, two[1].1))
                .collect()
        } else {
            here.iter().zip(there).take(self.plan.pairs as usize).map(|(one, other)| (one.1, other.1)).collect()
        };
        if couples.len() < self.plan.pairs as usize {
            return Err(format!("only {} pairs could be placed", couples.len()));
        }
        // In the order of the closed loop: senders even, receivers odd. The rest stays connected and silent.
        let mut old: Vec<Option<Peer<D>>> = self.peers.drain(..).map(Some).collect();
        let order = couples.iter().flat_map(|(one, other)| [*one, *other]).collect::<Vec<_>>();
        let spare = (0..old.len() as u32).filter(|number| !order.contains(number)).collect::<Vec<_>>();
        for (place, number) in order.iter().chain(&spare).enumerate() {
            let mut peer = old[*number as usize].take().ok_or("an agent was placed twice")?;
            peer.sender = place as u32 ^ 1;
            if place % 2 == 0 && place < order.len() {
                peer.dialect.address(Target::Agent(order[place + 1]));
            }
            let data = epoll::EventData::new_u64(place as u64);
            epoll::modify(&self.poll, &peer.socket, data, epoll::EventFlags::IN).map_err(|error| error.to_string())?;
            self.peers.push(peer);
        }
        Ok(())
    }
}
