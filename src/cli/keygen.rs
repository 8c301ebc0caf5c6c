//! `relay keygen`: a key that encrypts the store, in a file that nobody else can read.

use super::Failure;
use super::print;
use crate::store::Key;
use argh::{ArgsInfo, FromArgs};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Make a key that encrypts the store, in a new file that only you can read.
#[derive(FromArgs, ArgsInfo)]
#[argh(
    subcommand,
    name = "keygen",
    help_triggers("-h", "--help"),
    example = "relay keygen --output ~/.config/relay.key
relay up --db-key ~/.config/relay.key",
    note = "256 bits from the kernel. Keep a copy where you would look for it: without its key an encrypted store cannot be
read by anybody. `relay rekey` encrypts a store that is not, or changes its key."
)]
pub(super) struct Keygen {
    /// the file to make; one that exists is never overwritten
    #[argh(option, arg_name = "file")]
    output: PathBuf,
    /// print one JSON value
    #[argh(switch)]
    json: bool,
}

pub(super) fn run(command: &Keygen) -> Result<(), Failure> {
    let path = &command.output;
    let key = Key::generate().ok_or_else(|| Failure::Failed("the kernel gives no random bytes".to_owned()))?;
    write(path, &key).map_err(|error| Failure::Failed(refusal(path, &error)))?;
    if command.json {
        return print::json(&serde_json::json!({ "output": path }));
    }
    print::out(&format!(
        "storage key written to {0}\nStart with `relay up --db-key {0}`. Keep a copy of it elsewhere: nobody can read the store without it.\n",
        print::clean(&path.display().to_string())
    ))
}

/// On the disk, name and all, when this returns; what was begun and not finished is taken away again.
fn write(path: &Path, key: &Key) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let written = file.write_all(key.to_text().as_bytes()).and_then(|()| file.write_all(b"\n"));
    let written = written.and_then(|()| file.sync_all()).and_then(|()| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    });
    if written.is_err() {
        drop(std::fs::remove_file(path));
    }
    written
}

fn refusal(path: &Path, error: &io::Error) -> String {
    let name = path.display();
    match error.kind() {
        io::ErrorKind::AlreadyExists => format!(
            "{name} exists already, and a key is never overwritten: it may be the only one that reads a store. Choose another --output"
        ),
        io::ErrorKind::NotFound => {
            let folder = path.parent().unwrap_or(Path::new("."));
            format!("{name} cannot be made, because there is no folder {0}; `mkdir -p -m 700 {0}`", folder.display())
        }
        _ => format!("{name} cannot be made: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn keygen(path: &Path) -> Result<(), String> {
        match run(&Keygen { output: path.into(), json: false }) {
            Ok(()) => Ok(()),
            Err(Failure::Failed(text)) => Err(text),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_key_is_its_owners_alone_and_is_never_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("relay.key");
        keygen(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(Key::parse(&text).is_ok());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(keygen(&path).unwrap_err().contains("never overwritten"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path().join("elsewhere"), &link).unwrap();
        assert!(keygen(&link).is_err(), "a link is not followed");
        assert!(keygen(&directory.path().join("no/relay.key")).unwrap_err().contains("mkdir -p"));
    }
}
