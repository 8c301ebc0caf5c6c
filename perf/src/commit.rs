//! What one durable thing costs at the least: an LMDB environment as the relay's store opens it, one record a commit, and
//! nothing around it.

use crate::measure;
use crate::outcome::Outcome;
use hdrhistogram::Histogram;
use heed::types::Bytes;
use heed::{CommitOrAbort, EnvOpenOptions, PutFlags};
use std::path::Path;
use std::time::{Duration, Instant};

/// The map; far more than is written.
const MAP_BYTES: usize = 1 << 30;
/// What a message's record is beside its text.
const RECORD_OVERHEAD_BYTES: usize = 160;

/// Commits records of `body_bytes` of text one by one to an environment in `folder`, for as long as `long`.
pub fn run(folder: &Path, body_bytes: usize, long: Duration) -> Result<Outcome, String> {
    work(folder, body_bytes, long).map_err(|error| format!("{}: {error}", folder.display()))
}

fn work(folder: &Path, body_bytes: usize, long: Duration) -> Result<Outcome, heed::Error> {
    std::fs::create_dir_all(folder)?;
    let mut options = EnvOpenOptions::new();
    options.map_size(MAP_BYTES).max_dbs(1);
    // SAFETY: the folder is this run's own; nobody else writes there while the map lives.
    let env = unsafe { options.open(folder)? };
    let made = env.create_databases_and_commit(env.write_txn()?, |opener, transaction| {
        let log = opener.create_database::<Bytes, Bytes>(transaction, Some("log"))?;
        Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(log))
    })?;
    let log = made.unwrap_commit();
    let value = vec![b'x'; body_bytes + RECORD_OVERHEAD_BYTES];
    let mut times = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds");
    let mut number = 0u64;
    let warm = Instant::now();
    let mut commit = || -> Result<Duration, heed::Error> {
        number += 1;
        let began = Instant::now();
        let mut transaction = env.write_txn()?;
        log.put_with_flags(&mut transaction, PutFlags::APPEND, &number.to_be_bytes(), &value)?;
        transaction.commit()?;
        Ok(began.elapsed())
    };
    while warm.elapsed() < long / 4 {
        commit()?;
    }
    let (start, cpu) = (Instant::now(), measure::cpu(std::process::id()));
    while start.elapsed() < long {
        times.saturating_record(commit()?.as_nanos() as u64);
    }
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), measure::cpu(std::process::id()) - cpu);
    let us = |quantile: f64| times.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Outcome {
        messages: times.len(),
        seconds,
        per_second: times.len() as f64 / seconds,
        cpu_us_per_message: cpu as f64 / 1000.0 / times.len().max(1) as f64,
        p50_us: us(0.5),
        p99_us: us(0.99),
        p999_us: us(0.999),
        max_us: times.max() as f64 / 1000.0,
        ..Outcome::default()
    })
}
