//! A store whose bytes are damaged: it is reported with what to do, left as it is, and never delivers what nobody sent.

use crate::daemon::Place;
use crate::dice::{self, Dice};
use agent_relay::client::{Address, Client, Incoming, Options, Outgoing};
use agent_relay::wire::Wants;
use std::fs;
use std::time::Duration;

const MESSAGES: u64 = 1500;
const PAGE: usize = 4096;
/// When nothing has come for so long, nothing more is to be had.
const SILENCE: Duration = Duration::from_millis(1500);

/// What is done to the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Damage {
    /// A bit of the first two pages, which say where everything else is.
    Meta,
    /// A bit of the first 16 bytes of a page.
    Header,
    /// A bit anywhere.
    Bit,
    /// A page of zeros.
    Page,
    /// The end is missing.
    Truncated,
    /// Nothing is left of it.
    Emptied,
    /// Nothing but other bytes.
    Foreign,
}

const DAMAGES: [Damage; 7] =
    [Damage::Meta, Damage::Header, Damage::Bit, Damage::Page, Damage::Truncated, Damage::Emptied, Damage::Foreign];

fn harm(bytes: &mut Vec<u8>, damage: Damage, dice: &mut Dice) {
    let length = bytes.len() as u64;
    let mut flip = |at: u64, dice: &mut Dice| bytes[at as usize] ^= 1 << dice.below(8);
    match damage {
        Damage::Meta => flip(16 + dice.below(152 - 16) + PAGE as u64 * dice.below(2), dice),
        Damage::Header => {
            let page = 2 + dice.below(length / PAGE as u64 - 2);
            flip(page * PAGE as u64 + dice.below(16), dice);
        }
        Damage::Bit => flip(2 * PAGE as u64 + dice.below(length - 2 * PAGE as u64), dice),
        Damage::Page => {
            let page = PAGE * (2 + dice.below(length / PAGE as u64 - 2)) as usize;
            bytes[page..page + PAGE].fill(0);
        }
        Damage::Truncated => bytes.truncate(1 + dice.below(length - 1) as usize),
        Damage::Emptied => bytes.clear(),
        Damage::Foreign => bytes.iter_mut().for_each(|byte| *byte = dice.word() as u8),
    }
}

fn text(number: u64) -> String {
    format!("{number} {}", "0123456789abcdef".repeat(8 + dice::mixed(number) as usize % 32))
}

fn connect(place: &Place, name: &str) -> Result<Client, agent_relay::client::Error> {
    Client::connect(&Address::Unix(place.socket()), &Options::named(name))
}

/// Reads what `bob` is owed; gives the number of messages, all of which are as they were sent.
fn read_all(place: &Place, story: &str) -> u64 {
    let Ok(mut bob) = connect(place, "bob") else { return 0 };
    let mut count = 0;
    while let Ok(Some(incoming)) = bob.next(SILENCE) {
        if let Incoming::Message(message) = incoming {
            let said = message.text().into_owned();
            let number = said.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(u64::MAX);
            assert!(number < MESSAGES && said == text(number), "nobody sent that ({story}): {said:.100}");
            count += 1;
            if count == MESSAGES {
                break;
            }
        }
    }
    count
}

#[test]
fn a_damaged_store_is_reported_and_left_alone_and_delivers_nothing_that_was_not_sent() {
    let mut dice = Dice::new(dice::seed("damaged store"));
    let directory = tempfile::Builder::new().prefix("relay-damage").tempdir().unwrap();
    let place = Place::new(&directory.path().join("data"), directory.path());
    fs::create_dir(&place.data).unwrap();
    let daemon = place.start();
    drop(connect(&place, "bob").unwrap());
    let mut ann = connect(&place, "ann").unwrap();
    for number in 0..MESSAGES {
        let text = text(number);
        let wants = if number + 1 == MESSAGES { Wants::DURABLE } else { Wants::default() };
        ann.queue(&Outgoing { to: "bob", text: Some(&text), wants, ..Outgoing::default() }).unwrap();
        if number % 100 == 0 {
            ann.flush().unwrap();
        }
    }
    let durable = ann.next(crate::swarm::PATIENCE).unwrap();
    assert!(matches!(durable, Some(Incoming::Receipt(_))), "{durable:?}");
    daemon.kill();
    let file = place.store();
    let journal = file.with_file_name("journal");
    let intact = fs::read(&file).unwrap();
    let intact_journal = fs::read(&journal).unwrap();
    let rounds = crate::tally::cycles(42);
    let (mut refused, mut told, mut passed, mut short, mut older, mut whole) = (0, 0, 0, 0, 0, 0);
    let mut ended = Vec::new();
    for round in 0..rounds {
        let damage = DAMAGES[round as usize % DAMAGES.len()];
        let mut bytes = intact.clone();
        harm(&mut bytes, damage, &mut dice);
        fs::write(&file, &bytes).unwrap();
        fs::write(&journal, &intact_journal).unwrap();
        let story = format!("{damage:?}, round {round}");
        let doctor = place.run(&["doctor", "--global"]);
        assert!(matches!(doctor.status.code(), Some(0 | 1)), "{story}: the doctor ends with {}", doctor.status);
        assert!(fs::read(&file).unwrap() == bytes, "{story}: the doctor changed the store");
        let ill = doctor.status.code() == Some(1);
        told += u64::from(ill);
        match place.try_start() {
            Err(said) => {
                refused += 1;
                assert!(!said.contains("panicked"), "{story}: {said}");
                // A signal's end says nothing; everything else says what to do.
                if said.contains("signal") {
                    ended.push(story);
                } else {
                    // The doctor writes nothing, so it does not see the list of free pages.
                    passed += u64::from(!ill);
                    assert!(said.contains("relay doctor") || said.contains("relay restore"), "{story}: {said}");
                    assert!(fs::read(&file).unwrap() == bytes, "{story}: the damaged store was changed");
                    assert!(fs::read(&journal).unwrap() == intact_journal, "{story}: the journal was changed");
                }
            }
            Ok(mut daemon) => {
                assert!(!matches!(damage, Damage::Emptied | Damage::Foreign), "{story} was not noticed");
                let count = read_all(&place, &story);
                let said = daemon.said();
                assert!(!said.contains("panicked"), "{story}: {said}");
                if !daemon.is_alive() {
                    ended.push(format!("{story}, while it ran"));
                } else if count == MESSAGES {
                    whole += 1;
                } else if damage == Damage::Meta {
                    // LMDB's first pages have no checksum: a bit in their transaction numbers makes the one before the
                    // last commit look like the last.
                    older += 1;
                } else {
                    short += 1;
                    let told = said.to_lowercase();
                    let health = place.health();
                    assert!(
                        told.contains("damage") || health.contains("damage"),
                        "{story}: {count} of {MESSAGES} messages, and nobody says why: {health} {said}"
                    );
                }
            }
        }
    }
    eprintln!(
        "RESULT damaged store: {rounds} damages, {told} told by the doctor, {refused} refused ({passed} of them passed by the doctor), {short} with part of the mail and told, {older} a commit back (a bit of a first page), {whole} with all of it, \
         {} ended by a signal {ended:?}",
        ended.len()
    );
    assert!(ended.is_empty(), "damage ended the process: {ended:?}");
    // As it was, it is as good as new.
    fs::write(&file, &intact).unwrap();
    fs::write(&journal, &intact_journal).unwrap();
    let daemon = place.start();
    assert_eq!(read_all(&place, "undamaged"), MESSAGES);
    daemon.kill();
}
