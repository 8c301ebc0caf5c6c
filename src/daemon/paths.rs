//! Where everything of one project lies: data directory, project folder, socket, pid file. Daemon and clients ask here,
//! so they always agree. Creates directories; never deletes anything.

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{fs, io};

/// A Unix socket's path has 108 bytes in the kernel's structure, the closing zero included.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;
/// What marks the root of a project, walking up from the working directory.
const ROOT_MARKS: [&str; 6] = [".git", "package.json", "Cargo.toml", "go.mod", "pyproject.toml", ".agent-relay"];

/// The environment as it was when the program started: read once, so that a test can hand in its own.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    variables: BTreeMap<OsString, OsString>,
}

impl Environment {
    /// That of this process.
    pub fn of_process() -> Environment {
        Environment { variables: std::env::vars_os().collect() }
    }

    /// One made of pairs.
    pub fn of<const N: usize>(pairs: [(&str, &str); N]) -> Environment {
        Environment { variables: pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect() }
    }

    /// A variable's value; an empty one counts as not set.
    pub fn value(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    fn home(&self) -> Option<PathBuf> {
        self.value("HOME").map(PathBuf::from).or_else(std::env::home_dir).filter(|home| home.is_absolute())
    }
}

/// Why a place cannot be used. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// Neither a variable nor a home directory says where.
    #[error("there is no home directory; set AGENT_RELAY_DATA_DIR or use --data-dir")]
    NoHome,
    /// The working directory is gone.
    #[error("the working directory cannot be read ({0}); change to one that exists")]
    WorkingDirectory(io::Error),
    /// A directory cannot be made or read.
    #[error("cannot use the directory {path}: {error}; choose another one with --data-dir")]
    Directory {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The directory belongs to somebody else.
    #[error(
        "{path} belongs to user {owner}, not to you; whoever owns it could read or replace the socket. Remove it or use --socket"
    )]
    Foreign {
        /// Which.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Something that is not a plain directory is in the way.
    #[error("{0} is not a directory of its own (a file or a symbolic link is in the way); remove it or use --socket")]
    NotADirectory(PathBuf),
    /// The path asked for does not fit into a socket address.
    #[error(
        "the socket path {path} has {length} bytes; the kernel takes at most 107. Choose a shorter one with --socket"
    )]
    SocketPathLong {
        /// Which.
        path: PathBuf,
        /// Its length.
        length: usize,
    },
}

/// Which place is meant, as flags say it. Empty: that of the project around the working directory.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// `--data-dir`: the base directory.
    pub data_dir: Option<PathBuf>,
    /// `--socket`.
    pub socket: Option<PathBuf>,
    /// `--global`: the base directory itself instead of a project's folder in it.
    pub global: bool,
}

/// Where everything lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// The base directory: the machine's data directory.
    pub base: PathBuf,
    /// The project's root; none with `--global`.
    pub root: Option<PathBuf>,
    /// The project's id, or `global`.
    pub id: String,
    /// The project's folder.
    pub folder: PathBuf,
    /// The socket.
    pub socket: PathBuf,
    /// Whether the socket lies outside the folder because the folder's path is too long for one.
    pub socket_moved: bool,
    /// Whether `--socket` chose it.
    pub socket_chosen: bool,
}

impl Layout {
    /// The layout of `place`. Touches nothing.
    pub fn of(place: &Place, environment: &Environment) -> Result<Layout, PathError> {
        let cwd = std::env::current_dir().map_err(PathError::WorkingDirectory)?;
        Layout::from_directory(place, environment, &cwd)
    }

    /// The same, seen from `cwd`.
    pub fn from_directory(place: &Place, environment: &Environment, cwd: &Path) -> Result<Layout, PathError> {
        let base = match &place.data_dir {
            Some(chosen) => cwd.join(chosen),
            None => base_directory(environment, cwd)?,
        };
        let (root, id, folder) = if place.global {
            (None, "global".to_owned(), base.clone())
        } else {
            let root = project_root(cwd);
            let id = project_id(&root);
            let folder = base.join(&id);
            (Some(root), id, folder)
        };
        let fits = |path: &Path| path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX;
        let (socket, socket_moved) = match &place.socket {
            Some(chosen) => {
                let path = cwd.join(chosen);
                if !fits(&path) {
                    let length = path.as_os_str().len();
                    return Err(PathError::SocketPathLong { path, length });
                }
                (path, false)
            }
            None if fits(&folder.join("relay.sock")) => (folder.join("relay.sock"), false),
            None => {
                let path = short_socket(&folder, environment);
                if !fits(&path) {
                    let length = path.as_os_str().len();
                    return Err(PathError::SocketPathLong { path, length });
                }
                (path, true)
            }
        };
        let socket_chosen = place.socket.is_some();
        Ok(Layout { base, root, id, folder, socket, socket_moved, socket_chosen })
    }

    /// The pid file, beside where the socket normally lies: `relay down` of any version reads it.
    pub fn pid_file(&self) -> PathBuf {
        self.folder.join("relay.sock.pid")
    }

    /// The file whose lock means "a daemon lives here".
    pub fn lock_file(&self) -> PathBuf {
        self.folder.join("relay.lock")
    }

    /// Log of a daemon started with `--detach`.
    pub fn log_file(&self) -> PathBuf {
        self.folder.join("logs").join("relay.log")
    }

    /// The store's folder.
    pub fn store_folder(&self) -> PathBuf {
        self.folder.join("store")
    }

    /// Settings of this project.
    pub fn settings_file(&self) -> PathBuf {
        self.folder.join("relay.toml")
    }

    /// Makes the project's folder (0700), and the socket's when that had to move.
    pub fn create(&self) -> Result<(), PathError> {
        let failed = |error| PathError::Directory { path: self.folder.clone(), error };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(failed)?;
        let metadata = fs::metadata(&self.folder).map_err(failed)?;
        let me = rustix::process::geteuid().as_raw();
        // A folder that the original made is open to others; messages will lie in it.
        if metadata.uid() == me && metadata.mode() & 0o077 != 0 {
            fs::set_permissions(&self.folder, fs::Permissions::from_mode(0o700)).map_err(failed)?;
        }
        if self.socket_moved
            && let Some(directory) = self.socket.parent()
        {
            create_private(directory)?;
        }
        Ok(())
    }

    /// Writes `.project`, which tells people and other tools whose folder this is. Keeps its first `createdAt`.
    pub fn write_project_file(&self, now: jiff::Timestamp) -> io::Result<()> {
        let Some(root) = &self.root else { return Ok(()) };
        let path = self.folder.join(".project");
        let before: Option<ProjectFile> = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let project = ProjectFile {
            project_root: root.to_string_lossy().into_owned(),
            project_id: self.id.clone(),
            created_at: before.map_or_else(|| format!("{now:.3}"), |project| project.created_at),
        };
        let mut text = serde_json::to_vec_pretty(&project).map_err(io::Error::other)?;
        text.push(b'\n');
        replace_file(&path, &text)
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ProjectFile {
    project_root: String,
    project_id: String,
    created_at: String,
}

/// Replaces a file as a whole: readers see the old or the new one, never a half.
pub fn replace_file(path: &Path, content: &[u8]) -> io::Result<()> {
    replace_file_by(path, |file| file.write_all(content))
}

/// The same for what is long, and is written piece by piece.
pub fn replace_file_by(
    path: &Path,
    write: impl FnOnce(&mut io::BufWriter<fs::File>) -> io::Result<()>,
) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let next = PathBuf::from(name);
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
    let mut file = io::BufWriter::new(file);
    write(&mut file)?;
    file.flush()?;
    fs::rename(&next, path)
}

fn base_directory(environment: &Environment, cwd: &Path) -> Result<PathBuf, PathError> {
    if let Some(chosen) = environment.value("AGENT_RELAY_DATA_DIR") {
        return Ok(cwd.join(chosen));
    }
    // The XDG specification says that a relative path is to be ignored.
    if let Some(chosen) = environment.value("XDG_DATA_HOME").map(Path::new).filter(|path| path.is_absolute()) {
        return Ok(chosen.join("agent-relay"));
    }
    environment.home().map(|home| home.join(".agent-relay")).ok_or(PathError::NoHome)
}

/// The first folder from `cwd` upwards that holds a mark of a project; `/` is none. Without one, `cwd` itself.
pub fn project_root(cwd: &Path) -> PathBuf {
    cwd.ancestors()
        .filter(|folder| folder.parent().is_some())
        .find(|folder| ROOT_MARKS.iter().any(|mark| folder.join(mark).exists()))
        .unwrap_or(cwd)
        .to_path_buf()
}

/// 12 hex digits of SHA-256 of the root's absolute path, as `printf %s ROOT | sha256sum` prints them.
pub fn project_id(root: &Path) -> String {
    twelve_digits(root.as_os_str())
}

fn twelve_digits(text: &OsStr) -> String {
    Sha256::digest(text.as_bytes())[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where the socket goes when the folder's own path is too long: named after the folder, so that everybody finds it.
fn short_socket(folder: &Path, environment: &Environment) -> PathBuf {
    let file = format!("{}.sock", twelve_digits(folder.as_os_str()));
    match environment.value("XDG_RUNTIME_DIR").map(Path::new).filter(|path| path.is_absolute() && path.is_dir()) {
        Some(runtime) => runtime.join("agent-relay").join(file),
        None => Path::new("/tmp").join(format!("agent-relay-{}", rustix::process::geteuid().as_raw())).join(file),
    }
}

/// Makes or checks a directory that only we may enter, in a place where others may write: not a link, ours, 0700.
fn create_private(path: &Path) -> Result<(), PathError> {
    let failed = |error: io::Error| PathError::Directory { path: path.to_path_buf(), error };
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(failed(error)),
    }
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Checked through a descriptor: what was looked at is what is changed, whoever renames things meanwhile.
    let directory = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| match error {
        rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR => PathError::NotADirectory(path.to_path_buf()),
        other => failed(other.into()),
    })?;
    let status = rustix::fs::fstat(&directory).map_err(|error| failed(error.into()))?;
    if status.st_uid != rustix::process::geteuid().as_raw() {
        return Err(PathError::Foreign { path: path.to_path_buf(), owner: status.st_uid });
    }
    rustix::fs::fchmod(&directory, Mode::RWXU).map_err(|error| failed(error.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(place: &Place, environment: &Environment, cwd: &str) -> Layout {
        Layout::from_directory(place, environment, Path::new(cwd)).unwrap()
    }

    #[test]
    fn the_data_directory_follows_its_three_rules_in_order() {
        let all = Environment::of([("AGENT_RELAY_DATA_DIR", "/data"), ("XDG_DATA_HOME", "/xdg"), ("HOME", "/home/me")]);
        let place = Place::default();
        assert_eq!(layout(&place, &all, "/nowhere").base, Path::new("/data"));
        let xdg = Environment::of([("AGENT_RELAY_DATA_DIR", ""), ("XDG_DATA_HOME", "/xdg"), ("HOME", "/home/me")]);
        assert_eq!(layout(&place, &xdg, "/nowhere").base, Path::new("/xdg/agent-relay"));
        let relative = Environment::of([("XDG_DATA_HOME", "xdg"), ("HOME", "/home/me")]);
        assert_eq!(layout(&place, &relative, "/nowhere").base, Path::new("/home/me/.agent-relay"));
        let chosen = Place { data_dir: Some("/flag".into()), ..Place::default() };
        assert_eq!(layout(&chosen, &all, "/nowhere").base, Path::new("/flag"));
    }

    #[test]
    fn a_project_is_named_by_its_root_and_global_has_none() {
        let environment = Environment::of([("AGENT_RELAY_DATA_DIR", "/data")]);
        let project = layout(&Place::default(), &environment, "/nowhere");
        // printf %s /nowhere | sha256sum
        assert_eq!(project.id, "001471018cf6");
        assert_eq!(project.socket, Path::new("/data/001471018cf6/relay.sock"));
        assert_eq!(project.pid_file(), Path::new("/data/001471018cf6/relay.sock.pid"));
        let global = layout(&Place { global: true, ..Place::default() }, &environment, "/nowhere");
        assert_eq!((global.root, global.folder), (None, PathBuf::from("/data")));
    }

    #[test]
    fn the_root_is_the_nearest_folder_with_a_mark() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("project/src/room");
        fs::create_dir_all(&deep).unwrap();
        fs::write(directory.path().join("project/go.mod"), "").unwrap();
        assert_eq!(project_root(&deep), directory.path().join("project"));
    }

    #[test]
    fn a_socket_path_that_is_too_long_moves_to_a_short_place_or_is_refused() {
        let long = format!("/data/{}", "x".repeat(100));
        let environment = Environment::of([("AGENT_RELAY_DATA_DIR", long.as_str())]);
        let moved = layout(&Place::default(), &environment, "/nowhere");
        assert!(moved.socket_moved && moved.socket.starts_with("/tmp"), "{moved:?}");
        assert_eq!(moved.socket, layout(&Place::default(), &environment, "/nowhere").socket, "clients find the same");
        let runtime = tempfile::tempdir().unwrap();
        let with_runtime = Environment::of([
            ("AGENT_RELAY_DATA_DIR", long.as_str()),
            ("XDG_RUNTIME_DIR", runtime.path().to_str().unwrap()),
        ]);
        assert!(layout(&Place::default(), &with_runtime, "/nowhere").socket.starts_with(runtime.path()));
        let chosen = Place { socket: Some(format!("{long}/relay.sock").into()), ..Place::default() };
        let error = Layout::from_directory(&chosen, &environment, Path::new("/")).unwrap_err();
        assert!(error.to_string().contains("at most 107"), "{error}");
    }

    #[test]
    fn the_project_folder_is_private_even_when_it_was_not() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place { data_dir: Some(directory.path().join("a/b")), global: true, ..Place::default() };
        let layout = layout(&place, &Environment::default(), "/");
        fs::create_dir_all(&layout.folder).unwrap();
        fs::set_permissions(&layout.folder, fs::Permissions::from_mode(0o755)).unwrap();
        layout.create().unwrap();
        assert_eq!(fs::metadata(&layout.folder).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_link_in_a_shared_place_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path(), &link).unwrap();
        assert!(matches!(create_private(&link), Err(PathError::NotADirectory(_))));
        create_private(&directory.path().join("fresh")).unwrap();
    }

    #[test]
    fn the_project_file_keeps_its_first_date() {
        let directory = tempfile::tempdir().unwrap();
        let place = Place { data_dir: Some(directory.path().into()), ..Place::default() };
        let layout = layout(&place, &Environment::default(), "/nowhere");
        layout.create().unwrap();
        let read = || fs::read_to_string(layout.folder.join(".project")).unwrap();
        layout.write_project_file(jiff::Timestamp::UNIX_EPOCH).unwrap();
        let first = read();
        assert!(
            first.contains("\"projectRoot\": \"/nowhere\"") && first.contains("1970-01-01T00:00:00.000Z"),
            "{first}"
        );
        layout.write_project_file(jiff::Timestamp::now()).unwrap();
        assert_eq!(read(), first);
    }
}
