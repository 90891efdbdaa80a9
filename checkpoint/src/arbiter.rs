//! Who may go live alone: one compare-and-set per term (FO-2), and terms that only grow (FO-1).
//!
//! The arbiter holds, for each VM, the newest [`Grant`]: a term, the host that holds it, and whether
//! that host may run without a backup. A host that wants to go live, or to go on alone, moves the
//! term from `t` to `t + 1`; of all that try, exactly one succeeds, and the others learn who did.
//! No timer is involved.
//!
//! [`FileArbiter`] keeps its grants on a filesystem that both hosts reach (NFS, a cluster filesystem;
//! one local directory in a laboratory). A grant of term N is the file `DIR/VM/term-N`. It is written
//! whole under a temporary name, synced, and then linked to its name: `link` fails when the name is
//! taken, on NFS as well, so a name is the compare-and-set and a reader never sees half a grant.
//! Terms grow by one at a time and no grant is ever deleted, so that a host which slept between
//! its look and its link cannot find a gap.
//!
//! A filesystem that hangs makes these calls hang; mount it so that it fails instead (NFS: `soft`),
//! and call from a thread that may wait.

use holdfast_epoch::Term;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use thiserror::Error;

/// Longest grant file that is read; a real one has about a hundred bytes.
const GRANT_LIMIT: u64 = 4096;

/// Longest name of a VM or a host.
const NAME_LIMIT: usize = 64;

/// The right to run a VM in a term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The term granted.
    pub term: Term,
    /// Name of the host that holds it.
    pub holder: String,
    /// Whether the holder may transmit without a backup that confirms.
    pub solo: bool,
}

/// Decides which host goes on when the two cannot see each other.
pub trait Arbiter: Send {
    /// The newest grant for a VM; none before the first.
    ///
    /// # Errors
    /// When the arbiter cannot be asked or its answer cannot be understood.
    fn read(&self, vm: &str) -> Result<Option<Grant>, ArbiterError>;

    /// Makes `new` the grant for a VM if the newest one is of term `expected` ([`Term::NONE`] before
    /// the first); `new` must be of the term after it.
    ///
    /// # Errors
    /// [`CasError::Lost`] when somebody else was first; [`CasError::Arbiter`] when the arbiter cannot
    /// be asked, in which case nothing was granted as far as is known: hold everything and ask again.
    fn compare_and_set(&self, vm: &str, expected: Term, new: Grant) -> Result<(), CasError>;
}

/// Why the arbiter could not be asked.
#[derive(Debug, Error)]
pub enum ArbiterError {
    /// The directory, or the filesystem it is on, does not answer as it should.
    #[error(
        "the arbiter's directory {} cannot be used ({what}): {source}; \
         mount the shared filesystem and give this user the right to write there",
        path.display()
    )]
    Unreachable {
        /// The directory or file in question.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A grant's file does not hold a grant.
    #[error("{} is not a grant ({reason}); somebody else wrote there: give Holdfast a directory of its own", path.display())]
    Malformed {
        /// The file in question.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A name that cannot be part of a path.
    #[error(
        "{name:?} cannot be the name of a VM or host: use 1 to {NAME_LIMIT} letters, digits, '-', '_' and '.'"
    )]
    Name {
        /// The name in question.
        name: String,
    },
    /// The grant asked for does not follow the expected one.
    #[error("term {asked} does not follow term {expected}: terms grow by one")]
    NotNext {
        /// Term that was said to be the newest.
        expected: Term,
        /// Term that was asked for.
        asked: Term,
    },
}

/// Why a compare-and-set did not succeed.
#[derive(Debug, Error)]
pub enum CasError {
    /// Somebody else holds a newer term than expected.
    #[error("the arbiter did not grant the term: {}", describe(current.as_ref()))]
    Lost {
        /// The newest grant.
        current: Option<Grant>,
    },
    /// The arbiter could not be asked.
    #[error(transparent)]
    Arbiter(#[from] ArbiterError),
}

fn describe(grant: Option<&Grant>) -> String {
    grant.map_or_else(
        || "no term was ever granted".to_owned(),
        |grant| format!("term {} belongs to host {}", grant.term, grant.holder),
    )
}

/// An arbiter made of files in a directory that both hosts reach.
#[derive(Clone, Debug)]
pub struct FileArbiter {
    dir: PathBuf,
}

/// What a grant's file says.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantFile {
    version: u32,
    term: u64,
    holder: String,
    solo: bool,
}

impl FileArbiter {
    /// An arbiter in the directory `dir`, which must exist: one made by mistake on a host where the
    /// shared filesystem is not mounted would grant each host its own wish.
    ///
    /// # Errors
    /// When the directory is not there.
    pub fn open(dir: &Path) -> Result<Self, ArbiterError> {
        let arbiter = Self { dir: dir.to_owned() };
        arbiter.check_dir()?;
        Ok(arbiter)
    }

    fn check_dir(&self) -> Result<(), ArbiterError> {
        let meta = fs::metadata(&self.dir).map_err(|source| unreachable(&self.dir, "look", source))?;
        if meta.is_dir() {
            Ok(())
        } else {
            Err(unreachable(&self.dir, "look", io::ErrorKind::NotADirectory.into()))
        }
    }

    fn vm_dir(&self, vm: &str) -> Result<PathBuf, ArbiterError> {
        check_name(vm)?;
        Ok(self.dir.join(vm))
    }

    /// The newest term that has a file.
    fn newest(&self, vm_dir: &Path) -> Result<Option<Term>, ArbiterError> {
        let entries = match fs::read_dir(vm_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.check_dir()?;
                return Ok(None);
            }
            Err(source) => return Err(unreachable(vm_dir, "list", source)),
        };
        let mut newest = None;
        for entry in entries {
            let name = entry.map_err(|source| unreachable(vm_dir, "list", source))?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix("term-")?.parse::<u64>().ok());
            newest = newest.max(number);
        }
        Ok(newest.map(Term::new))
    }

    fn read_in(&self, vm_dir: &Path) -> Result<Option<Grant>, ArbiterError> {
        let Some(term) = self.newest(vm_dir)? else { return Ok(None) };
        let path = term_path(vm_dir, term);
        let file = File::open(&path).map_err(|source| unreachable(&path, "open", source))?;
        let mut text = String::new();
        file.take(GRANT_LIMIT + 1)
            .read_to_string(&mut text)
            .map_err(|source| unreachable(&path, "read", source))?;
        parse_grant(&text, term).map(Some).map_err(|reason| ArbiterError::Malformed { path, reason })
    }
}

impl Arbiter for FileArbiter {
    fn read(&self, vm: &str) -> Result<Option<Grant>, ArbiterError> {
        self.read_in(&self.vm_dir(vm)?)
    }

    fn compare_and_set(&self, vm: &str, expected: Term, new: Grant) -> Result<(), CasError> {
        check_name(&new.holder)?;
        if expected.get().checked_add(1) != Some(new.term.get()) {
            return Err(ArbiterError::NotNext { expected, asked: new.term }.into());
        }
        let vm_dir = self.vm_dir(vm)?;
        let current = self.read_in(&vm_dir)?;
        if current.as_ref().map_or(Term::NONE, |grant| grant.term) != expected {
            return Err(CasError::Lost { current });
        }
        match fs::create_dir(&vm_dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(unreachable(&vm_dir, "create", error).into());
            }
            _ => {}
        }
        let complete = Complete::write(&vm_dir, &new)?;
        if complete.link(&term_path(&vm_dir, new.term))? {
            sync_dir(&vm_dir)?;
            Ok(())
        } else {
            Err(CasError::Lost { current: self.read_in(&vm_dir)? })
        }
    }
}

/// A whole grant under a temporary name; the name goes with the value.
struct Complete {
    path: PathBuf,
}

impl Complete {
    fn write(vm_dir: &Path, grant: &Grant) -> Result<Self, ArbiterError> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        // Two hosts may share the directory, so the name has the holder's in it; two processes of one
        // host differ in their id.
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let path = vm_dir.join(format!("new-{}-{}-{serial}", grant.holder, std::process::id()));
        let text = serde_json::to_string(&GrantFile {
            version: 1,
            term: grant.term.get(),
            holder: grant.holder.clone(),
            solo: grant.solo,
        })
        .expect("numbers and a name make JSON");
        // Left over by a crashed process that had the same id: nobody links it any more.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(unreachable(&path, "remove", error));
            }
            _ => {}
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|source| unreachable(&path, "create", source))?;
        let complete = Self { path };
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(|source| unreachable(&complete.path, "write", source))?;
        Ok(complete)
    }

    /// Links the grant to its name; says whether it is there now, and false when the name was taken.
    fn link(&self, name: &Path) -> Result<bool, ArbiterError> {
        match fs::hard_link(&self.path, name) {
            Ok(()) => Ok(true),
            // A server may have linked the file and lost the answer, so that the repeated request fails:
            // the name tells whose file it is.
            Err(error) => match (fs::metadata(name), fs::metadata(&self.path)) {
                (Ok(there), Ok(ours)) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
                _ => Err(unreachable(name, "link", error)),
            },
        }
    }
}

impl Drop for Complete {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a temporary grant stays behind; it may be deleted");
        }
    }
}

fn parse_grant(text: &str, term: Term) -> Result<Grant, String> {
    let file: GrantFile = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if file.version != 1 {
        return Err(format!("it is of version {}, not 1", file.version));
    }
    if file.term != term.get() {
        return Err(format!("it grants term {} under the name of term {term}", file.term));
    }
    check_name(&file.holder).map_err(|error| error.to_string())?;
    Ok(Grant { term, holder: file.holder, solo: file.solo })
}

fn check_name(name: &str) -> Result<(), ArbiterError> {
    let fits = (1..=NAME_LIMIT).contains(&name.len())
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if fits { Ok(()) } else { Err(ArbiterError::Name { name: name.chars().take(NAME_LIMIT).collect() }) }
}

fn term_path(vm_dir: &Path, term: Term) -> PathBuf {
    vm_dir.join(format!("term-{term}"))
}

fn sync_dir(dir: &Path) -> Result<(), ArbiterError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(|source| unreachable(dir, "sync", source))
}

fn unreachable(path: &Path, what: &'static str, source: io::Error) -> ArbiterError {
    ArbiterError::Unreachable { path: path.to_owned(), what, source }
}

#[cfg(test)]
mod tests;
