//! The licence soak: one machine, its clocks, its restarts and the vendor's server, for months, from one seed. The server
//! comes and goes and lies, the wall clock jumps by days both ways, licences end, are renewed and are revoked. What is
//! granted is judged by what really happened, never by the holder's own clock.

use crate::dice::Dice;
use agent_relay::base::tier::Tier;
use agent_relay::licence::{
    Beginning, Cache, Document, GRACE_MS, Given, Holder, Lapse, LicenceKey, Reading, SigningKey, Standing, WARNING_MS,
};
use std::collections::BTreeSet;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
/// When a world begins, in true time.
const BEGIN: u64 = 20_000 * DAY;
/// From a change at the vendor to its effect, while the server answers and the machine runs: a day, and the longest wait
/// between two questions.
const HEARD_WITHIN: u64 = 26 * HOUR;

/// A fault planted around the holder: what a careless version of it would do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Planted {
    /// The licence goes by the wall clock.
    WallClock,
    /// A refusal that bears no signature counts.
    PlainRefusal,
    /// A restart forgets the documents.
    CacheLost,
    /// A restart forgets the time, and believes a clock that was set back.
    ClockLost,
    /// An old answer is as good as a new one.
    Replay,
    /// Nobody is asked again after the first answer.
    NeverAsks,
    /// The shorter retention acts at once.
    NoWarning,
    /// There is no end to the grace.
    EndlessGrace,
}

const PLANTED: [Planted; 8] = [
    Planted::WallClock,
    Planted::PlainRefusal,
    Planted::CacheLost,
    Planted::ClockLost,
    Planted::Replay,
    Planted::NeverAsks,
    Planted::NoWarning,
    Planted::EndlessGrace,
];

/// How the way to the server is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Open,
    Shut,
    /// Answers come, but not the vendor's: unsigned refusals, strangers' signatures, old answers.
    Lying,
}

/// What the judge knows to have been heard last.
#[derive(Clone, Copy, Debug)]
struct Heard {
    at: u64,
    valid_until: u64,
    revoked: bool,
}

struct World {
    dice: Dice,
    planted: Option<Planted>,
    signing: SigningKey,
    key: LicenceKey,
    /// True time.
    now: u64,
    /// How far the wall clock is ahead of it.
    skew: i64,
    boots: u64,
    booted_at: u64,
    /// For `Planted::WallClock`: by how much the boot clock is made to follow the wall clock.
    dragged: i64,
    offline: Option<Document>,
    holder: Holder,
    disk: Cache,
    disk_lapse: Lapse,
    saved_at: u64,
    // The vendor's side.
    tier: Tier,
    valid_until: u64,
    revoked_at: Option<u64>,
    changed_at: u64,
    way: Way,
    way_open_since: u64,
    old_answer: Option<String>,
    // The judge's side.
    heard: Option<Heard>,
    /// The most that the holder's clock may be ahead or behind with a reason: a restart of the machine with a wrong clock,
    /// and nobody asked since.
    lead: u64,
    lag: u64,
    /// The same when the clock was last saved.
    saved_doubt: (u64, u64),
    /// The longest retention that was lost, and when.
    lost: Option<(u32, u64)>,
    retention: Option<u32>,
    seen: BTreeSet<&'static str>,
}

fn days(retention: Option<u32>) -> u32 {
    retention.unwrap_or(u32::MAX)
}

impl World {
    fn new(seed: u64, planted: Option<Planted>) -> World {
        let mut dice = Dice::new(seed);
        let signing = SigningKey::from_random([7; 32]);
        let key = LicenceKey::from_random(Tier::Pro, u128::from(seed)).unwrap();
        let tier = dice.pick(&[Tier::Pro, Tier::Team, Tier::Enterprise]);
        let valid_until = BEGIN + dice.range(1, 60) * DAY + dice.below(DAY);
        let skew = if dice.chance(300) { dice.range(0, 20 * DAY) as i64 - 10 * DAY as i64 } else { 0 };
        let offline = dice.chance(250).then(|| Document {
            offline: true,
            ..Document::of_tier(Tier::Enterprise, key.hash(), BEGIN - dice.below(DAY), valid_until)
        });
        let given = given(offline.as_ref(), &key, &signing);
        let reading = Reading { wall_ms: BEGIN.saturating_add_signed(skew), boot_ms: 0 };
        let disk = Cache::default();
        let beginning = Beginning {
            given,
            public: signing.public(),
            has_server: true,
            cache: &disk,
            lapse: Lapse::default(),
            boot: "0",
        };
        let holder = Holder::new(beginning, reading);
        let mut world = World {
            dice,
            planted,
            signing,
            key,
            now: BEGIN,
            skew,
            boots: 0,
            booted_at: BEGIN,
            dragged: 0,
            holder,
            disk,
            disk_lapse: Lapse::default(),
            saved_at: BEGIN,
            tier,
            valid_until,
            revoked_at: None,
            changed_at: BEGIN,
            way: Way::Open,
            way_open_since: BEGIN,
            old_answer: None,
            heard: None,
            lead: skew.max(0) as u64,
            lag: (-skew).max(0) as u64,
            saved_doubt: (0, 0),
            lost: None,
            retention: None,
            seen: BTreeSet::new(),
            offline,
        };
        if let Some(document) = &world.offline {
            // What was signed a moment ago shows that a clock before that is wrong.
            world.lag = world.lag.min(BEGIN - document.issued_at_ms);
        }
        world.judge();
        world
    }

    fn reading(&self) -> Reading {
        let boot_ms = (self.now - self.booted_at).saturating_add_signed(self.dragged);
        Reading { wall_ms: self.now.saturating_add_signed(self.skew), boot_ms }
    }

    fn mark(&mut self, what: &'static str) {
        self.seen.insert(what);
    }

    fn run(&mut self) {
        let end = BEGIN + self.dice.range(60, 150) * DAY;
        while self.now < end {
            self.happen();
            let look = self.holder.next_look_ms(self.reading()).max(1);
            let step = self.dice.range(MINUTE, 6 * HOUR).min(look);
            self.now += step;
            self.turn();
        }
    }

    /// What the daemon's thread does.
    fn turn(&mut self) {
        let standing = self.holder.standing(self.reading());
        if self.planted == Some(Planted::EndlessGrace) && matches!(standing, Standing::Grace | Standing::Expired) {
            return self.judge();
        }
        let asks = self.planted != Some(Planted::NeverAsks) || self.heard.is_none();
        if let Some(key) = self.holder.wants_answer(self.reading()).filter(|_| asks) {
            assert_eq!(key, self.key.hash());
            assert!(self.offline.is_none(), "an offline licence asks nobody");
            self.ask();
        }
        self.holder.look(self.reading());
        let standing = self.holder.standing(self.reading());
        self.mark(standing.name());
        self.judge();
        if self.now - self.saved_at >= HOUR || self.dice.chance(100) {
            self.save();
        }
    }

    fn ask(&mut self) {
        let (nonce, jitter, reading) = (format!("{:x}", self.dice.any()), self.dice.any(), self.reading());
        match self.way {
            Way::Shut => self.holder.unreachable(reading, "connection refused", jitter),
            Way::Open => {
                let text = self.answer(&nonce).sign(&self.signing);
                self.holder.answered(reading, &text, &nonce, jitter).unwrap();
                self.old_answer.get_or_insert(text);
                self.hear();
            }
            Way::Lying => {
                let replay = self.old_answer.clone().filter(|_| self.dice.chance(400));
                let stranger = SigningKey::from_random([9; 32]);
                let revoked = Document { revoked_at_ms: Some(1), ..self.answer(&nonce) };
                match (replay, self.planted) {
                    (Some(old), Some(Planted::Replay)) => {
                        let signed = agent_relay::licence::Signed::open(&old, self.signing.public()).unwrap();
                        let old_nonce = signed.document().nonce.clone();
                        let _ = self.holder.answered(reading, &old, &old_nonce, jitter);
                    }
                    (_, Some(Planted::PlainRefusal)) => {
                        let _ = self.holder.answered(reading, &revoked.sign(&self.signing), &nonce, jitter);
                    }
                    (Some(old), _) => assert!(self.holder.answered(reading, &old, &nonce, jitter).is_err()),
                    (None, _) => {
                        assert!(self.holder.answered(reading, &revoked.sign(&stranger), &nonce, jitter).is_err());
                    }
                }
                self.mark("lied to");
            }
        }
    }

    /// What the vendor says at this moment.
    fn answer(&self, nonce: &str) -> Document {
        Document {
            nonce: nonce.to_owned(),
            serial: 1,
            revoked_at_ms: self.revoked_at,
            reason: self.revoked_at.map(|_| "revoked".to_owned()),
            ..Document::of_tier(self.tier, self.key.hash(), self.now, self.valid_until)
        }
    }

    fn hear(&mut self) {
        let revoked = self.revoked_at.is_some();
        self.heard = Some(Heard { at: self.now, valid_until: self.valid_until, revoked });
        (self.lead, self.lag) = (0, 0);
    }

    /// The world's moods.
    fn happen(&mut self) {
        if self.dice.chance(12) {
            let way = self.dice.pick(&[Way::Open, Way::Open, Way::Shut, Way::Lying]);
            if way == Way::Open && self.way != Way::Open {
                self.way_open_since = self.now;
            }
            self.way = way;
        }
        if self.dice.chance(8) {
            let jump = self.dice.range(0, 30 * DAY) as i64 - 15 * DAY as i64;
            let before = self.skew;
            self.skew = if self.dice.chance(400) { 0 } else { jump };
            if self.planted == Some(Planted::WallClock) {
                self.dragged += self.skew - before;
            }
            self.mark("clock jumped");
        }
        if self.dice.chance(3) {
            self.change_licence();
        }
        if self.dice.chance(10) {
            self.restart();
        }
        if self.dice.chance(4) {
            self.reboot();
        }
    }

    fn change_licence(&mut self) {
        self.changed_at = self.now;
        match self.dice.below(4) {
            0 => self.revoked_at = Some(self.now),
            1 => {
                self.revoked_at = None;
                self.tier = self.dice.pick(&[Tier::Pro, Tier::Team, Tier::Enterprise]);
            }
            _ => {
                self.valid_until = self.now + self.dice.range(0, 40) * DAY;
                self.mark("renewed");
            }
        }
    }

    fn save(&mut self) {
        let reading = self.reading();
        self.holder.keep(&mut self.disk, reading);
        self.saved_doubt = (self.lead, self.lag);
        self.disk_lapse = self.holder.lapse();
        self.saved_at = self.now;
    }

    /// The daemon stops or crashes, and starts again some time later; the machine goes on.
    fn restart(&mut self) {
        if self.dice.chance(700) {
            self.save();
        } else {
            self.crash();
        }
        self.now += self.dice.pick(&[0, MINUTE, 5 * HOUR, 10 * DAY]);
        self.start();
        self.mark("restarted");
    }

    /// What was not saved is forgotten, by the judge too.
    fn crash(&mut self) {
        let known = self.disk.document(&self.key.hash()).map(|signed| signed.document().clone());
        self.heard = known.map(|document| Heard {
            at: document.issued_at_ms,
            valid_until: document.valid_until_ms,
            revoked: document.revoked_at_ms.is_some(),
        });
        // So is what the server said of the time since then.
        (self.lead, self.lag) = (self.lead.max(self.saved_doubt.0), self.lag.max(self.saved_doubt.1));
        self.mark("crashed");
    }

    /// The machine is switched off and on, perhaps with another clock.
    fn reboot(&mut self) {
        if self.dice.chance(700) {
            self.save();
        } else {
            self.crash();
        }
        let off = self.dice.pick(&[MINUTE, HOUR, 2 * DAY, 20 * DAY]);
        self.now += off;
        if self.dice.chance(200) {
            self.skew = self.dice.range(0, 40 * DAY) as i64 - 20 * DAY as i64;
        }
        self.boots += 1;
        (self.booted_at, self.dragged) = (self.now, 0);
        let unknown = self.now - self.saved_at;
        self.lead = self.lead.max(self.skew.max(0) as u64);
        self.lag = (self.lag + unknown).min((-self.skew).max(0) as u64);
        self.start();
        self.mark("rebooted");
    }

    fn start(&mut self) {
        let given = given(self.offline.as_ref(), &self.key, &self.signing);
        let mut disk = self.disk.clone();
        match self.planted {
            Some(Planted::CacheLost) => disk.remove(&self.key.hash()),
            Some(Planted::ClockLost) => disk.clock = None,
            _ => {}
        }
        if disk.clock.is_none() && self.planted != Some(Planted::ClockLost) {
            // Nothing was ever saved: the wall clock is all there is.
            (self.lead, self.lag) = (self.lead.max(self.skew.max(0) as u64), self.lag.max((-self.skew).max(0) as u64));
        }
        let beginning = Beginning {
            given,
            public: self.signing.public(),
            has_server: true,
            cache: &disk,
            lapse: self.disk_lapse,
            boot: &self.boots.to_string(),
        };
        self.holder = Holder::new(beginning, self.reading());
        // The start asks, if it has to, before the first listener.
        self.turn();
    }

    /// What must be granted, and what must not be, going by what really happened.
    fn judge(&mut self) {
        let granted = self.holder.entitlement().tier != Tier::Community;
        let story = || {
            format!(
                "day {:.2}: {:?}, granted {granted}, heard {:?}, lead {:.2} d, lag {:.2} d, skew {:.2} d, {:?}",
                (self.now - BEGIN) as f64 / DAY as f64,
                self.holder.standing(self.reading()),
                self.heard.map(|heard| (
                    heard.at as i64 - BEGIN as i64,
                    heard.valid_until as i64 - BEGIN as i64,
                    heard.revoked
                )),
                self.lead as f64 / DAY as f64,
                self.lag as f64 / DAY as f64,
                self.skew as f64 / DAY as f64,
                self.way,
            )
        };
        let (earliest, latest) = (self.now.saturating_sub(self.lag), self.now + self.lead);
        if let Some(document) = &self.offline {
            assert!(granted || latest >= document.valid_until_ms, "stopped without cause: {}", story());
            assert!(!granted || earliest < document.valid_until_ms, "went on past its end: {}", story());
        } else {
            match self.heard {
                None => assert!(!granted, "granted by nobody: {}", story()),
                Some(heard) if heard.revoked => assert!(!granted, "revoked and granted: {}", story()),
                Some(heard) if heard.at >= heard.valid_until => assert!(!granted, "ended and granted: {}", story()),
                Some(heard) => {
                    let end = heard.valid_until + GRACE_MS;
                    assert!(granted || latest >= end, "stopped without cause: {}", story());
                    assert!(!granted || earliest < end, "went on past its grace: {}", story());
                }
            }
            let since = self.changed_at.max(self.way_open_since).max(self.booted_at);
            if self.way == Way::Open && self.now - since > HEARD_WITHIN && self.lag == 0 {
                let good = self.revoked_at.is_none() && self.now < self.valid_until;
                let recent = self.heard.is_some_and(|heard| heard.at > since);
                assert!(recent, "not heard of: {}", story());
                assert!(!good || granted, "renewed and not granted: {}", story());
            }
        }
        self.judge_retention();
    }

    fn judge_retention(&mut self) {
        let granted = self.holder.entitlement().retention_days_max;
        let in_force = match self.planted {
            Some(Planted::NoWarning) => granted,
            _ => self.holder.retention_days_max(),
        };
        if let Some(before) = self.retention
            && before > days(granted)
        {
            // From now on there are 7 days of warning.
            let longest =
                self.lost.filter(|(_, at)| self.now < at + WARNING_MS).map_or(before, |(lost, _)| lost.max(before));
            self.lost = Some((longest, self.now));
            self.mark("retention lapsed");
        }
        self.retention = Some(days(granted));
        assert!(days(in_force) >= days(granted), "less is kept than is paid for");
        if let Some((before, at)) = self.lost {
            // A machine whose clock was off may take a part of the warning for time that passed while it was off.
            let warned = self.now - at;
            let slack = self.lead.max(self.lag);
            if days(granted) < before && warned + slack < WARNING_MS && at > self.booted_at && self.saved_at >= at {
                assert!(days(in_force) > days(granted), "shortened after {} hours of warning", warned / HOUR);
            }
            if warned > WARNING_MS + slack + self.lost_slack() {
                assert_eq!(days(in_force), days(granted), "the longer retention has no end");
                self.lost = None;
            }
        }
    }

    /// What a crash may make the warning longer by.
    fn lost_slack(&self) -> u64 {
        60 * DAY
    }
}

fn given(offline: Option<&Document>, key: &LicenceKey, signing: &SigningKey) -> Given {
    match offline {
        Some(document) => Given::parse(&document.sign(signing), signing.public()),
        None => Given::parse(key.reveal(), signing.public()),
    }
}

/// One world's end: what it saw, or what went wrong.
fn soak(seed: u64, planted: Option<Planted>) -> Result<BTreeSet<&'static str>, String> {
    crate::verdict(|| {
        let mut world = World::new(seed, planted);
        world.run();
        world.seen
    })
}

#[test]
fn no_licence_stops_without_cause_or_goes_on_past_its_grace() {
    if let Some(seed) = crate::setting("RELAY_LICENCE_SEED") {
        return match soak(seed, None) {
            Ok(seen) => eprintln!("seed {seed} is fine: {seen:?}"),
            Err(story) => panic!("RELAY_LICENCE_SEED={seed}: {story}"),
        };
    }
    let seeds = crate::setting("RELAY_LICENCE_SEEDS").unwrap_or(300);
    let mut seen = BTreeSet::new();
    let mut failures = Vec::new();
    std::thread::scope(|scope| {
        let part =
            |first: u64| move || (first..seeds).step_by(2).map(|seed| (seed, soak(seed, None))).collect::<Vec<_>>();
        let halves = [scope.spawn(part(0)), scope.spawn(part(1))];
        for (seed, end) in halves.into_iter().flat_map(|half| half.join().unwrap()) {
            match end {
                Ok(marks) => seen.extend(marks),
                Err(story) => failures.push((seed, story)),
            }
        }
    });
    for (seed, story) in failures.iter().take(8) {
        eprintln!("RELAY_LICENCE_SEED={seed}: {story}\n");
    }
    assert!(failures.is_empty(), "{} of {seeds} seeds failed", failures.len());
    let wanted = [
        "clock jumped",
        "crashed",
        "expired",
        "good",
        "grace",
        "lied to",
        "pending",
        "rebooted",
        "renewed",
        "restarted",
        "retention lapsed",
        "revoked",
        "unreachable",
    ];
    let missing: Vec<_> = wanted.iter().filter(|mark| !seen.contains(**mark)).collect();
    assert!(seeds < 200 || missing.is_empty(), "never happened: {missing:?}");
}

#[test]
fn each_planted_fault_of_a_licence_is_found() {
    for planted in PLANTED {
        let found = (0..100).find_map(|seed| Some((seed, soak(seed, Some(planted)).err()?)));
        let (seed, story) = found.unwrap_or_else(|| panic!("{planted:?} was not found in 100 seeds"));
        eprintln!("{planted:?}: seed {seed}: {}", story.lines().nth(1).unwrap_or_default());
    }
}
