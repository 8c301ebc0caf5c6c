//! One thread a shard, one CPU a thread, one shard an agent.

use crate::harness::{Daemon, EPOLL_TWO, Setup, URING_ONE, Way, every_way};
use agent_relay::wire::Wants;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Name and allowed CPUs of each thread.
fn threads(daemon: &Daemon) -> Vec<(String, String)> {
    let mut threads = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap() {
        let Ok(status) = std::fs::read_to_string(task.unwrap().path().join("status")) else { continue };
        let of = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
        threads.push((of("Name:"), of("Cpus_allowed_list:")));
    }
    threads
}

fn shard_cpus(daemon: &Daemon) -> BTreeMap<String, String> {
    threads(daemon).into_iter().filter(|(name, _)| name.starts_with("relay-shard-")).collect()
}

#[test]
fn each_shard_is_pinned_to_the_one_cpu_that_status_names() {
    for way in [Way { cores: 1, ..URING_ONE }, EPOLL_TWO, Way { backend: "auto", cores: 5 }] {
        if !crate::harness::available(way) {
            continue;
        }
        let daemon = Daemon::start(way);
        let cpus = shard_cpus(&daemon);
        assert_eq!(cpus.len(), usize::from(way.cores));
        let status = daemon.status();
        for shard in status["shards"].as_array().unwrap() {
            let name = format!("relay-shard-{}", shard["id"]);
            assert_eq!(cpus[&name], shard["cpu"].to_string(), "{name}: one CPU, and this one");
        }
        let different: BTreeSet<&String> = cpus.values().collect();
        let allowed = rustix::thread::sched_getaffinity(None).unwrap().count() as usize;
        assert_eq!(different.len(), allowed.min(usize::from(way.cores)), "spread over all that are allowed: {cpus:?}");
        // More shards than CPUs work as well.
        let mut peers: Vec<_> = (0..20).map(|index| daemon.native(&format!("agent-{index}"))).collect();
        for (index, peer) in peers.iter_mut().enumerate() {
            let to = format!("agent-{}", (index + 7) % 20);
            peer.send(&to, "hi", Wants::default());
        }
        for peer in &mut peers {
            assert_eq!(peer.delivery().1, "hi");
        }
    }
}

#[test]
fn an_affinity_mask_is_kept() {
    let before = rustix::thread::sched_getaffinity(None).unwrap();
    let Some(only) = (0..1024).rev().find(|cpu| before.is_set(*cpu)) else { return };
    // The mask is the thread's, and its children's.
    std::thread::spawn(move || {
        let mut mask = rustix::thread::CpuSet::new();
        mask.set(only);
        rustix::thread::sched_setaffinity(None, &mask).unwrap();
        let daemon = Setup::new(Way { backend: "auto", cores: 2 }).start();
        for (name, cpus) in threads(&daemon) {
            assert_eq!(cpus, only.to_string(), "{name}");
        }
        let (mut ann, mut bob) = (daemon.native("ann"), daemon.native("bob"));
        ann.send("bob", "two shards on one CPU", Wants::default());
        assert_eq!(bob.delivery().1, "two shards on one CPU");
    })
    .join()
    .unwrap();
}

#[test]
fn an_agent_lives_on_one_shard_and_returns_to_it() {
    every_way(|way| {
        let daemon = Daemon::start(way);
        let names: Vec<String> = (0..50).map(|index| format!("agent-{index}")).collect();
        let shards = |daemon: &Daemon| -> BTreeMap<String, u64> {
            let agents = daemon.ask(agent_relay::wire::QueryKind::Agents, &serde_json::json!({}));
            let agents = agents["agents"].as_array().unwrap().clone();
            agents
                .iter()
                .map(|agent| (agent["name"].as_str().unwrap().into(), agent["shard"].as_u64().unwrap()))
                .collect()
        };
        let peers: Vec<_> = names.iter().map(|name| daemon.native(name)).collect();
        let first = shards(&daemon);
        assert_eq!(first.len(), 50, "each is listed once");
        let used: BTreeSet<u64> = first.values().copied().collect();
        assert_eq!(used, (0..u64::from(way.cores)).collect(), "and none is idle");
        let status = daemon.status();
        for (index, shard) in status["shards"].as_array().unwrap().iter().enumerate() {
            let here = first.values().filter(|home| **home == index as u64).count();
            assert_eq!(shard["agents"], Value::from(here));
        }
        drop(peers);
        daemon.until("all are gone", |daemon| daemon.status()["agents"]["connected"] == 0);
        let _peers: Vec<_> = names.iter().rev().map(|name| daemon.native(name)).collect();
        assert_eq!(shards(&daemon), first);
    });
}
