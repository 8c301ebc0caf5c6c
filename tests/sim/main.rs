//! Simulated worlds: the hearts of several shards, driven by one thread from one seed, with everything around them that
//! can go wrong. `RELAY_SIM_SEED=n` tells one seed's story; `RELAY_SIM_SEEDS=n` says how many are tried.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod agent;
mod dice;
mod disk;
mod ledger;
mod licence;
mod limits;
mod link;
mod marks;
mod shard;
mod speech;
mod swarm;
mod world;

use marks::Marks;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use swarm::Mutation;
use world::World;

thread_local! {
    /// Where the last panic of a simulated world was; none outside of one.
    static STORY: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics inside a world are its verdict: kept, not printed.
fn keep_panics_quiet() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            STORY.with_borrow_mut(|story| match story {
                Some(story) => *story = info.to_string(),
                None => usual(info),
            });
        }));
    });
}

/// A world's end: what it saw, or what went wrong.
fn run(seed: u64, mutation: Option<Mutation>, verbose: bool) -> Result<(Marks, u64, u64), String> {
    keep_panics_quiet();
    STORY.set(Some(String::new()));
    let end = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed, mutation, verbose);
        world.run();
        (world.marks, world.hash, world.mutated)
    }));
    let story = STORY.take().unwrap_or_default();
    end.map_err(|_| story)
}

/// The end of anything that panics when a promise is broken: what it gives, or the panic's story.
fn verdict<T>(body: impl FnOnce() -> T) -> Result<T, String> {
    keep_panics_quiet();
    STORY.set(Some(String::new()));
    let end = catch_unwind(AssertUnwindSafe(body));
    let story = STORY.take().unwrap_or_default();
    end.map_err(|_| story)
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn every_promise_holds_in_every_simulated_world() {
    if let Some(seed) = setting("RELAY_SIM_SEED") {
        match run(seed, None, true) {
            Ok((marks, hash, _)) => return eprintln!("seed {seed} is fine: {hash:016x} {marks:#?}"),
            Err(story) => panic!("RELAY_SIM_SEED={seed}: {story}"),
        }
    }
    let first = setting("RELAY_SIM_FIRST").unwrap_or(0);
    let seeds = setting("RELAY_SIM_SEEDS").unwrap_or(2_000);
    let next = AtomicU64::new(first);
    let total = Mutex::new((Marks::default(), Vec::new()));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        break;
                    }
                    let end = run(seed, None, false);
                    let mut total = total.lock().expect("no panic while it is held");
                    match end {
                        Ok((marks, ..)) => total.0.merge(&marks),
                        Err(story) => total.1.push((seed, story)),
                    }
                }
            });
        }
    });
    let (marks, mut failures) = total.into_inner().expect("no panic while it is held");
    failures.sort();
    for (seed, story) in failures.iter().take(12) {
        eprintln!("RELAY_SIM_SEED={seed}: {story}\n");
    }
    assert!(failures.is_empty(), "{} of {seeds} seeds failed, first RELAY_SIM_SEED={}", failures.len(), failures[0].0);
    eprintln!("{marks:#?}");
    if seeds >= 1_000 {
        assert_eq!(marks.missing(), Vec::<&str>::new(), "never happened in {seeds} seeds");
    }
}

#[test]
fn a_seed_tells_the_same_story_twice() {
    for seed in 0..100 {
        let (first, second) = (run(seed, None, false), run(seed, None, false));
        assert_eq!(first.map(|(_, hash, _)| hash), second.map(|(_, hash, _)| hash), "seed {seed}");
    }
}

/// Worlds in which a planted bug must be found.
const PLANTED_SEEDS: u64 = 400;

#[test]
fn each_planted_bug_is_found() {
    std::thread::scope(|scope| {
        for mutation in Mutation::ALL {
            scope.spawn(move || {
                let found = (0..PLANTED_SEEDS).find_map(|seed| Some((seed, run(seed, Some(mutation), false).err()?)));
                let (seed, story) =
                    found.unwrap_or_else(|| panic!("{mutation:?} was not found in {PLANTED_SEEDS} seeds"));
                let line = story.lines().nth(1).unwrap_or_default().to_owned();
                eprintln!("{mutation:?}: seed {seed}: {line}");
            });
        }
    });
}
