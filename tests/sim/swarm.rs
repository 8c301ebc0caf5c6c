//! What is drawn for one seed: many faults are often absent, so that those that are there are met at a high rate.

use super::dice::Dice;
use agent_relay::base::{Mono, limits};
use agent_relay::relay::Bounds;

/// A bug planted into the harness, to see that the checkers find it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Mutation {
    DropMail,
    RepeatMail,
    SwapMails,
    LoseCommits,
    CommitEarly,
    LoseWritten,
    DropDelivery,
    RepeatDelivery,
    SwapBytes,
    ForgetClosed,
    ReadPastHello,
    DropFailedCommit,
    ApplyTwice,
    IgnorePosition,
    ForgetMarks,
    HighMarkOnly,
    FetchSkips,
    FetchRepeats,
    ForgetRuns,
    KeepEpoch,
    StrictEarly,
    ForgetParted,
    LoseSeatFreed,
    GrantAnySeat,
    RepeatSeatAsked,
    LoseSeatAnswer,
    KeepRevoked,
    IgnorePause,
    RepeatTokens,
    ForgetResume,
    ForgetOwed,
    RefuseNewcomers,
    LoseRelease,
}

impl Mutation {
    /// All of them.
    pub const ALL: [Mutation; 33] = [
        Mutation::DropMail,
        Mutation::RepeatMail,
        Mutation::SwapMails,
        Mutation::LoseCommits,
        Mutation::CommitEarly,
        Mutation::LoseWritten,
        Mutation::DropDelivery,
        Mutation::RepeatDelivery,
        Mutation::SwapBytes,
        Mutation::ForgetClosed,
        Mutation::ReadPastHello,
        Mutation::DropFailedCommit,
        Mutation::ApplyTwice,
        Mutation::IgnorePosition,
        Mutation::ForgetMarks,
        Mutation::HighMarkOnly,
        Mutation::FetchSkips,
        Mutation::FetchRepeats,
        Mutation::ForgetRuns,
        Mutation::KeepEpoch,
        Mutation::StrictEarly,
        Mutation::ForgetParted,
        Mutation::LoseSeatFreed,
        Mutation::GrantAnySeat,
        Mutation::RepeatSeatAsked,
        Mutation::LoseSeatAnswer,
        Mutation::KeepRevoked,
        Mutation::IgnorePause,
        Mutation::RepeatTokens,
        Mutation::ForgetResume,
        Mutation::ForgetOwed,
        Mutation::RefuseNewcomers,
        Mutation::LoseRelease,
    ];
}

/// The options of one seed. Rates are per mille.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Swarm {
    pub shards: u16,
    pub agents: usize,
    pub rounds: u64,
    pub messages: u64,
    pub window: u32,
    pub bounds: Bounds,
    pub breaks: u64,
    pub slice: u64,
    pub stalls: u64,
    pub shard_stalls: u64,
    pub mail_delay: u64,
    pub writer_delay: u64,
    pub writer_full: u64,
    /// The same for a writer that is behind, beside what really waits for it.
    pub writer_behind: u64,
    /// Batches of all shards that may wait for the writer before it is behind.
    pub press: usize,
    /// Batches that a shard's queue to the writer holds before the shard calls it full.
    pub queue: usize,
    /// Records of one commit.
    pub batch: u32,
    pub strict: bool,
    /// Commits wait for a second.
    pub relaxed: bool,
    pub commit_fails: u64,
    pub disk_full: u64,
    pub checkpoints: u64,
    pub fetch_delay: u64,
    pub fetch_cuts: u64,
    pub crashes: u64,
    /// Of a thousand restarts, so many are orderly.
    pub orderly: u64,
    pub wall_jumps: u64,
    pub away: u64,
    pub step: u64,
    pub jumps: u64,
    pub long_jumps: u64,
    pub twins: u64,
    pub liars: u64,
    pub json: u64,
    pub submitters: u64,
    pub never_ack: u64,
    pub single_ack: u64,
    pub stops_reading: u64,
    pub loses_state: u64,
    pub bye: u64,
    pub ttl: u64,
    pub fanout: u64,
    pub topics: u64,
    pub ghosts: u64,
    pub big: u64,
    pub late: u64,
    /// Agents that may be connected.
    pub seats: Option<u32>,
    /// Changes of that number.
    pub licences: u64,
    /// Messages per second.
    pub rate: Option<u32>,
    /// Agents that have a key.
    pub keys: u64,
    pub require_auth: bool,
    pub per_minute: u32,
    pub revokes: u64,
    /// Names that hold no seat.
    pub internal: u64,
    pub stop_at: Option<u64>,
    pub mutation: Option<Mutation>,
}

impl Swarm {
    /// Draws the options.
    pub fn draw(dice: &mut Dice, mutation: Option<Mutation>) -> Swarm {
        // Each is absent in half of the worlds.
        let mut often_zero = |choices: &[u64]| if dice.chance(500) { 0 } else { dice.pick(choices) };
        let breaks = often_zero(&[1, 5, 20, 60]);
        let stalls = often_zero(&[50, 300, 700]);
        let shard_stalls = often_zero(&[100, 400, 800]);
        let mail_delay = often_zero(&[Mono::ms(1), Mono::ms(30), Mono::ms(500)]);
        let writer_delay = often_zero(&[Mono::ms(5), Mono::ms(100), Mono::ms(3_000)]);
        let writer_full = often_zero(&[5, 50]);
        let writer_behind = often_zero(&[5, 50]);
        let jumps = often_zero(&[3, 15]);
        let long_jumps = if jumps > 0 { often_zero(&[0, 0, 2]) } else { 0 };
        let twins = often_zero(&[100, 300]);
        let liars = often_zero(&[100, 300]);
        let json = often_zero(&[200, 1000]);
        let submitters = often_zero(&[100, 300]);
        let never_ack = often_zero(&[100, 400]);
        let single_ack = often_zero(&[300, 1000]);
        let stops_reading = often_zero(&[5, 40]);
        let loses_state = often_zero(&[100, 500]);
        let bye = often_zero(&[2, 15]);
        let ttl = often_zero(&[100, 600]);
        let fanout = often_zero(&[50, 300]);
        let topics = often_zero(&[100, 400]);
        let ghosts = often_zero(&[30, 200]);
        let big = often_zero(&[20, 100]);
        let late = often_zero(&[200, 800]);
        let commit_fails = often_zero(&[50, 250]);
        let disk_full = often_zero(&[2, 10]);
        let checkpoints = often_zero(&[20, 200, 1000]);
        let fetch_delay = often_zero(&[Mono::ms(2), Mono::ms(50), Mono::ms(1_000)]);
        let fetch_cuts = often_zero(&[200, 800]);
        let crashes = often_zero(&[4, 12, 30]);
        let wall_jumps = often_zero(&[0, 5]);
        let away = often_zero(&[100, 500]);
        let agents = if dice.chance(800) { dice.range(2, 10) } else { dice.range(11, 60) };
        let seats = if dice.chance(400) { Some(dice.pick(&[1, 2, 5, agents / 2 + 1]) as u32) } else { None };
        let rate = if dice.chance(300) { Some(dice.pick(&[1, 5, 30, 500])) } else { None };
        let keys = if dice.chance(300) { dice.pick(&[300, 1000]) } else { 0 };
        let licences = if dice.chance(300) { 20 } else { 0 };
        let revokes = if dice.chance(500) { dice.pick(&[5, 40]) } else { 0 };
        let tiny = dice.chance(350);
        let mut bounds = Bounds::default();
        if tiny {
            let mut maybe = |usual: usize, choices: &[u64]| {
                if dice.chance(500) { dice.pick(choices) as usize } else { usual }
            };
            bounds.half_open_max = maybe(bounds.half_open_max, &[1, 3]);
            bounds.known_agents_max = maybe(bounds.known_agents_max, &[4, 20]);
            bounds.subscriptions_max = maybe(bounds.subscriptions_max, &[1, 2]);
            bounds.in_flight_bytes_max = maybe(bounds.in_flight_bytes_max, &[100, 2_000]);
            bounds.waiting_bytes_max = maybe(bounds.waiting_bytes_max, &[500, 5_000]);
            bounds.waiting_messages_max = maybe(bounds.waiting_messages_max, &[1, 5, 20]);
            bounds.control_per_second = maybe(bounds.control_per_second as usize, &[20, 500]) as u32;
            bounds.control_burst = maybe(bounds.control_burst as usize, &[3, 50]) as u32;
            bounds.owed_bytes_max = maybe(bounds.owed_bytes_max, &[1_000, 20_000]);
            bounds.shard_waiting_bytes_max = maybe(bounds.shard_waiting_bytes_max, &[500, 2_000, 20_000]);
        }
        bounds.in_flight_max = dice.pick(&[1, 3, 16, limits::IN_FLIGHT_MAX]);
        if long_jumps > 0 {
            bounds.retention = Mono::ms(dice.pick(&[60_000, 4_000_000]));
        }
        let rounds = dice.pick(&[60, 150, 250]);
        let mut swarm = Swarm {
            shards: dice.pick(&[1, 2, 2, 3, 4, 8]),
            agents: agents as usize,
            rounds,
            messages: dice.pick(&[2, 10, 30]),
            window: dice.pick(&[0, 1, 4, 64]),
            bounds,
            breaks,
            slice: dice.pick(&[30, 300, 3_000, 1_000_000]),
            stalls,
            shard_stalls,
            mail_delay,
            writer_delay,
            writer_full,
            writer_behind,
            press: dice.pick(&[0, 3, 16, usize::MAX]),
            queue: dice.pick(&[1, 8, 64]),
            batch: dice.pick(&[1, 2, 16, 200, 1_024]),
            strict: dice.chance(300),
            relaxed: dice.chance(250),
            commit_fails,
            disk_full,
            checkpoints,
            fetch_delay,
            fetch_cuts,
            crashes,
            orderly: dice.pick(&[0, 300]),
            wall_jumps,
            away,
            step: dice.pick(&[Mono::ms(1), Mono::ms(10), Mono::ms(120)]),
            jumps,
            long_jumps,
            twins,
            liars,
            json,
            submitters,
            never_ack,
            single_ack,
            stops_reading,
            loses_state,
            bye,
            ttl,
            fanout,
            topics,
            ghosts,
            big,
            late,
            seats,
            licences,
            rate,
            keys,
            require_auth: keys == 1000 && dice.chance(700),
            per_minute: dice.pick(&[600, 6_000]),
            revokes,
            internal: dice.pick(&[0, 0, 100]),
            stop_at: None,
            mutation,
        };
        if dice.chance(60) && mutation.is_none() {
            swarm.stop_at = Some(dice.below(rounds));
        }
        swarm
    }
}
