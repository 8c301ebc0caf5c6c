//! Power cuts: what was not flushed is gone. kill -9 cannot show that a flush is missing, since the kernel keeps what was
//! written; this can, and `scripts/power-cut.sh --self-test` shows that it does.

use crate::daemon::Place;
use crate::dice;
use crate::mount::{Ext4, with_own_mounts};
use crate::swarm::Swarm;
use crate::tally::{Tally, cycles, skip};
use std::time::Duration;

/// Cycles on one file system; then a new one, so that new stores are cut as well.
const CYCLES_A_DISK: u64 = 30;
const DISK_MEGABYTES: u64 = 400;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    /// As much as goes: the next commit is always on its way.
    Saturated,
    /// A few messages, their receipts, and nothing behind them: the last commit is the last thing that was written.
    Paced,
}

fn cut_power(load: Load, these: u64, seed: u64, tally: &mut Tally, total: u64) -> Result<(), String> {
    let disk = Ext4::new(DISK_MEGABYTES)?;
    let outside = tempfile::Builder::new().prefix("relay-power").tempdir().unwrap();
    let place = Place::new(&disk.path().join("data"), outside.path());
    std::fs::create_dir(&place.data).unwrap();
    // The directory itself is older than the power cut.
    rustix::fs::sync();
    let mut swarm = Swarm::new(16, 4, place.socket(), seed);
    for cycle in 0..these {
        let daemon = place.start();
        tally.started(&daemon);
        swarm.gather();
        swarm.broadcasts = cycle > 0;
        if load == Load::Saturated {
            if swarm.dice.one_in(2) {
                swarm.calm();
            }
            let (window, receipts) = (1 << swarm.dice.below(7), 1 + swarm.dice.below(600));
            swarm.saturate(window, receipts);
        } else {
            swarm.calm();
            let times = 1 + swarm.dice.below(12);
            swarm.pace(times);
        }
        swarm.disk_fails();
        disk.cut();
        // Sometimes the daemon goes on for a while without a disk: it must promise nothing more.
        if swarm.dice.one_in(2) {
            for _ in 0..swarm.dice.below(30) {
                swarm.fill(4);
                swarm.turn(Duration::from_millis(1));
            }
        }
        daemon.kill();
        swarm.bury();
        disk.restore();
        swarm.disk_works();
        tally.cycle("power cut", total);
    }
    let daemon = place.start();
    tally.started(&daemon);
    swarm.gather();
    swarm.calm();
    daemon.kill();
    tally.add(&swarm);
    Ok(())
}

#[test]
fn nothing_durable_is_lost_when_the_power_is_cut() {
    let seed = dice::seed("power cut");
    let total = cycles(60);
    with_own_mounts("power cut", move || {
        let mut tally = Tally::new();
        let mut load = Load::Paced;
        while tally.cycles < total {
            let these = (total - tally.cycles).min(CYCLES_A_DISK);
            let seed = dice::mixed(seed ^ tally.cycles);
            if let Err(why) = cut_power(load, these, seed, &mut tally, total) {
                return skip("root", "power cut", &why);
            }
            load = if load == Load::Paced { Load::Saturated } else { Load::Paced };
        }
        tally.tell("power cut, saturated and paced, 16 native and 4 JSON agents, 2 shards");
    });
}
