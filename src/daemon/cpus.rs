//! Which CPU each shard runs on: topology and spread by glommio, within the affinity mask; pinning by the kernel's own
//! call, since glommio's is private to its executor.

use glommio::{CpuLocation, CpuSet, PoolPlacement};
use rustix::thread::CpuSet as Mask;
use std::collections::BTreeMap;

/// The CPUs of the shards, in shard order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Choice {
    /// One CPU per shard; they repeat when there are more shards than CPUs.
    pub cpus: Vec<usize>,
    /// Said at start when the machine's topology could not be read: then shards take the CPUs in the mask's order.
    pub note: Option<String>,
}

/// CPUs this process may run on, ascending. At least one.
pub fn allowed() -> Vec<usize> {
    // None is a thread id: the calling thread. At start that is the only one, and the mask is the process's.
    let Ok(mask) = rustix::thread::sched_getaffinity(None) else { return vec![0] };
    let cpus: Vec<usize> = (0..Mask::MAX_CPU).filter(|cpu| mask.is_set(*cpu)).collect();
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// Chooses a CPU for each of `shards` shards.
pub fn choose(shards: usize) -> Choice {
    let allowed = allowed();
    match spread(&allowed, shards) {
        Ok(locations) => Choice { cpus: deal(&locations, shards), note: None },
        Err(error) => Choice {
            cpus: allowed.iter().copied().cycle().take(shards).collect(),
            note: Some(format!(
                "the machine's topology could not be read ({error}); shards take the allowed CPUs in order"
            )),
        },
    }
}

/// As many CPUs as there are shards (or CPUs), as far from each other as glommio can place them.
fn spread(allowed: &[usize], shards: usize) -> Result<Vec<CpuLocation>, String> {
    let online = CpuSet::online().map_err(|error| error.to_string())?.filter(|cpu| allowed.contains(&cpu.cpu));
    let wanted = shards.min(online.len());
    if wanted == 0 {
        return Err("no CPU is both online and allowed".to_owned());
    }
    let mut placement =
        PoolPlacement::MaxSpread(wanted, Some(online.clone())).generate_cpu_set().map_err(|error| error.to_string())?;
    let mut chosen: Vec<usize> =
        (0..wanted).filter_map(|_| placement.next().cpu_binding()).flat_map(IntoIterator::into_iter).collect();
    chosen.sort_unstable();
    chosen.dedup();
    Ok(online.into_iter().filter(|cpu| chosen.contains(&cpu.cpu)).collect())
}

/// Deals CPUs to shards: each next shard goes where the fewest are, on its core, then its package, then its node.
/// Same machine, same answer: glommio's own order changes from run to run. Goes round again when CPUs run out.
pub fn deal(locations: &[CpuLocation], shards: usize) -> Vec<usize> {
    let mut on_cpu: BTreeMap<usize, usize> = BTreeMap::new();
    let mut on_core: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    let mut on_package: BTreeMap<usize, usize> = BTreeMap::new();
    let mut on_node: BTreeMap<usize, usize> = BTreeMap::new();
    let mut dealt = Vec::with_capacity(shards);
    for _ in 0..shards {
        let load = |at: &&CpuLocation| {
            (
                on_cpu.get(&at.cpu).copied().unwrap_or(0),
                on_core.get(&(at.package, at.core)).copied().unwrap_or(0),
                on_package.get(&at.package).copied().unwrap_or(0),
                on_node.get(&at.numa_node).copied().unwrap_or(0),
                at.cpu,
            )
        };
        let Some(at) = locations.iter().min_by_key(load) else { break };
        dealt.push(at.cpu);
        *on_cpu.entry(at.cpu).or_default() += 1;
        *on_core.entry((at.package, at.core)).or_default() += 1;
        *on_package.entry(at.package).or_default() += 1;
        *on_node.entry(at.numa_node).or_default() += 1;
    }
    dealt
}

/// Pins the calling thread to `cpu`.
pub fn pin(cpu: usize) -> std::io::Result<()> {
    if cpu >= Mask::MAX_CPU {
        return Err(std::io::Error::other(format!("CPU {cpu} is beyond what one affinity mask holds")));
    }
    let mut mask = Mask::new();
    mask.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &mask)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (cpu, core, package); one node per package.
    fn machine(cpus: &[(usize, usize, usize)]) -> Vec<CpuLocation> {
        cpus.iter().map(|&(cpu, core, package)| CpuLocation { cpu, core, package, numa_node: package }).collect()
    }

    #[test]
    fn cores_come_before_their_hyper_thread_siblings() {
        let four_cores =
            machine(&[(0, 0, 0), (1, 1, 0), (2, 2, 0), (3, 3, 0), (4, 0, 0), (5, 1, 0), (6, 2, 0), (7, 3, 0)]);
        assert_eq!(deal(&four_cores, 4), [0, 1, 2, 3]);
        assert_eq!(deal(&four_cores, 6), [0, 1, 2, 3, 4, 5]);
        // Siblings numbered side by side, as on many virtual machines.
        assert_eq!(deal(&machine(&[(0, 0, 0), (1, 0, 0), (2, 1, 0), (3, 1, 0)]), 3), [0, 2, 1]);
    }

    #[test]
    fn packages_take_turns() {
        let two_packages = machine(&[(0, 0, 0), (1, 1, 0), (2, 0, 1), (3, 1, 1)]);
        assert_eq!(deal(&two_packages, 4), [0, 2, 1, 3]);
    }

    #[test]
    fn more_shards_than_cpus_go_round_again_evenly() {
        assert_eq!(deal(&machine(&[(0, 0, 0), (1, 1, 0)]), 5), [0, 1, 0, 1, 0]);
        assert!(deal(&[], 3).is_empty());
    }

    #[test]
    fn the_order_of_the_list_does_not_matter() {
        let mut cpus = machine(&[(0, 0, 0), (1, 0, 0), (2, 1, 0), (3, 1, 0), (8, 0, 1), (9, 1, 1)]);
        let before = deal(&cpus, 6);
        cpus.reverse();
        assert_eq!(deal(&cpus, 6), before);
    }

    #[test]
    fn on_this_machine_every_shard_gets_an_allowed_cpu_and_can_be_pinned_to_it() {
        let allowed = allowed();
        for shards in [1, allowed.len(), 2 * allowed.len() + 1] {
            let choice = choose(shards);
            assert_eq!(choice.cpus.len(), shards, "{choice:?}");
            assert!(choice.cpus.iter().all(|cpu| allowed.contains(cpu)), "{choice:?}");
        }
        let wanted = allowed[allowed.len() - 1];
        // Its own thread: the mask of a thread that runs other tests stays as it is.
        std::thread::spawn(move || {
            pin(wanted).unwrap();
            assert_eq!(super::allowed(), [wanted]);
        })
        .join()
        .unwrap();
    }
}
