//! Writes the guest's initramfs: a cpio archive in the "newc" format, made here without other tools.

use crate::modules::{self, ModulesError};
use crate::process::{ProcessError, run_tool};
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use thiserror::Error;

const MODE_DIR: u32 = 0o040_755;
const MODE_FILE: u32 = 0o100_644;
const MODE_PROGRAM: u32 = 0o100_755;
const MODE_LINK: u32 = 0o120_777;
const MODE_CHARACTER: u32 = 0o020_600;
/// Where Debian's loader looks without being told.
const LIBRARIES: &str = "/lib/x86_64-linux-gnu";

/// The initramfs could not be made.
#[derive(Debug, Error)]
pub enum InitramfsError {
    /// A file that belongs into it is not there, or the archive cannot be written.
    #[error("cannot read or write {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// See there.
    #[error(transparent)]
    Modules(#[from] ModulesError),
    /// A program would not start in the guest.
    #[error("{} wants {library}, which is nowhere; mend: scripts/packages, scripts/guest-apps", program.display())]
    NoLibrary {
        /// The program.
        program: PathBuf,
        /// The library.
        library: String,
    },
    /// `ldd` or `xz` failed.
    #[error(transparent)]
    Tool(#[from] ProcessError),
    /// The format has 32 bits for a file's length.
    #[error("{name} is too long for the archive")]
    TooLong {
        /// The entry.
        name: String,
    },
}

/// What a guest's initramfs has besides its init and its modules; places inside are absolute.
#[derive(Debug, Clone)]
pub enum Part {
    /// A program, with its shared libraries.
    Program {
        /// Where it is on the host.
        path: PathBuf,
        /// Its place.
        inside: String,
        /// Where its libraries are looked for before the host's own.
        libraries: Option<PathBuf>,
    },
    /// A file that is made here.
    File {
        /// Its place.
        inside: String,
        /// What is in it.
        content: Arc<[u8]>,
    },
}

impl Part {
    /// A program of the host.
    pub fn program(path: &Path, inside: &str) -> Self {
        Self::Program { path: path.into(), inside: inside.into(), libraries: None }
    }

    /// A file with that content.
    pub fn file(inside: impl Into<String>, content: impl Into<Arc<[u8]>>) -> Self {
        Self::File { inside: inside.into(), content: content.into() }
    }

    /// Its place.
    pub fn inside(&self) -> &str {
        match self {
            Self::Program { inside, .. } | Self::File { inside, .. } => inside,
        }
    }
}

/// Collects the files, then writes them.
pub struct Initramfs {
    archive: Archive,
    modules: Vec<PathBuf>,
}

impl Initramfs {
    /// With `/init` and a console.
    pub fn new(init: &Path) -> Result<Self, InitramfsError> {
        let mut archive = Archive::default();
        archive.device("dev/console", 5, 1)?;
        archive.device("dev/null", 1, 3)?;
        archive.add("init", MODE_PROGRAM, &read(init)?)?;
        Ok(Self { archive, modules: Vec::new() })
    }

    /// Adds the modules and all they need, loaded by init in the right order.
    pub fn modules(mut self, folder: &Path, wanted: &[&str]) -> Result<Self, InitramfsError> {
        for path in modules::load_order(folder, wanted)? {
            if !self.modules.contains(&path) {
                self.modules.push(path);
            }
        }
        Ok(self)
    }

    /// Adds a part.
    pub fn part(mut self, part: &Part) -> Result<Self, InitramfsError> {
        match part {
            Part::Program { path, inside, libraries } => {
                self.archive.add(inside, MODE_PROGRAM, &read(path)?)?;
                for library in shared_libraries(path, libraries.as_deref())? {
                    let name = place_of_library(&library, libraries.as_deref());
                    self.archive.add(&name, MODE_PROGRAM, &read(&library)?)?;
                }
            }
            Part::File { inside, content } => self.archive.add(inside, MODE_FILE, content)?,
        }
        Ok(self)
    }

    /// Adds a symbolic link.
    pub fn link(mut self, inside: &str, target: &str) -> Result<Self, InitramfsError> {
        self.archive.add(inside, MODE_LINK, target.as_bytes())?;
        Ok(self)
    }

    /// Writes the archive to `path`.
    pub fn write(mut self, path: &Path) -> Result<(), InitramfsError> {
        let mut list = String::new();
        for (number, module) in self.modules.iter().enumerate() {
            let name = format!("modules/{number:02}.ko");
            self.archive.add(&name, MODE_FILE, &read_module(module)?)?;
            list.push_str(&format!("/{name}\n"));
        }
        self.archive.add("modules.list", MODE_FILE, list.as_bytes())?;
        let bytes = self.archive.finish()?;
        fs::write(path, bytes).map_err(|source| InitramfsError::File { path: path.into(), source })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, InitramfsError> {
    fs::read(path).map_err(|source| InitramfsError::File { path: path.into(), source })
}

/// Debian 13 compresses its modules; the guest's init loads plain ones.
fn read_module(path: &Path) -> Result<Vec<u8>, InitramfsError> {
    if path.extension().is_none_or(|extension| extension != "xz") {
        return read(path);
    }
    let failed = |source| InitramfsError::File { path: path.into(), source };
    let output = Command::new("xz").arg("-dc").arg(path).output().map_err(failed)?;
    if output.status.success() {
        Ok(output.stdout)
    } else {
        Err(failed(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned())))
    }
}

/// What `ldd` lists; nothing for a static program.
fn shared_libraries(program: &Path, first: Option<&Path>) -> Result<Vec<PathBuf>, InitramfsError> {
    let name = program.to_string_lossy();
    let search = format!("LD_LIBRARY_PATH={}", first.unwrap_or(Path::new("")).display());
    let listed = match run_tool(None, "env", &[&search, "ldd", &name]) {
        Ok(listed) => listed,
        // "not a dynamic executable" is no error here.
        Err(ProcessError::System { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    if let Some(line) = listed.lines().find(|line| line.contains("=> not found")) {
        let library = line.split_whitespace().next().unwrap_or(line).to_owned();
        return Err(InitramfsError::NoLibrary { program: program.into(), library });
    }
    Ok(listed.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// A library of the host keeps its place; others go where the loader looks by itself.
fn place_of_library(library: &Path, first: Option<&Path>) -> String {
    match (first, library.file_name()) {
        (Some(first), Some(name)) if library.starts_with(first) => {
            format!("{LIBRARIES}/{}", name.to_string_lossy())
        }
        _ => library.to_string_lossy().into_owned(),
    }
}

/// The archive's bytes: entries of a 110-byte header in hexadecimal, a name, and the content, each
/// padded to four bytes.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    dirs: BTreeSet<String>,
    names: BTreeSet<String>,
    next_inode: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<(), InitramfsError> {
        let name = name.trim_start_matches('/');
        // Two programs may share a library.
        if !self.names.insert(name.to_owned()) {
            return Ok(());
        }
        self.parents(name)?;
        self.entry(name, mode, content, (0, 0))
    }

    fn device(&mut self, name: &str, major: u32, minor: u32) -> Result<(), InitramfsError> {
        self.parents(name)?;
        self.entry(name, MODE_CHARACTER, &[], (major, minor))
    }

    fn parents(&mut self, name: &str) -> Result<(), InitramfsError> {
        let slashes: Vec<usize> = name.match_indices('/').map(|(at, _)| at).collect();
        for at in slashes {
            let dir = &name[..at];
            if self.dirs.insert(dir.to_owned()) {
                self.entry(dir, MODE_DIR, &[], (0, 0))?;
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        content: &[u8],
        device: (u32, u32),
    ) -> Result<(), InitramfsError> {
        let len = u32::try_from(content.len()).map_err(|_| InitramfsError::TooLong { name: name.into() })?;
        self.next_inode += 1;
        let links = if mode == MODE_DIR { 2 } else { 1 };
        // inode, mode, uid, gid, links, mtime, length, device of the file, device that it is, length
        // of the name with its NUL, checksum (none). No time, so that equal input gives equal output.
        let fields =
            [self.next_inode, mode, 0, 0, links, 0, len, 0, 0, device.0, device.1, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            // A write to a vector does not fail.
            let written = write!(self.bytes, "{field:08x}");
            debug_assert!(written.is_ok());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Result<Vec<u8>, InitramfsError> {
        self.entry("TRAILER!!!", 0, &[], (0, 0))?;
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_archive_is_one_that_cpio_tools_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let (init, path) = (dir.path().join("init"), dir.path().join("archive"));
        fs::write(&init, "#!/bin/sh\n").expect("written");
        let archive = Initramfs::new(&init)
            .and_then(|archive| archive.part(&Part::file("/etc/deep/copy", *b"made here")))
            .and_then(|archive| archive.link("/bin/sh", "busybox"));
        archive.and_then(|archive| archive.write(&path)).expect("made");
        let script = format!("busybox cpio -t <{}", path.display());
        let listed = run_tool(None, "sh", &["-c", &script]).expect("listed");
        for name in ["init", "dev/console", "etc/deep", "etc/deep/copy", "bin/sh", "modules.list"] {
            assert!(listed.lines().any(|line| line == name), "{name} in {listed}");
        }
    }

    #[test]
    fn a_dynamic_program_brings_its_libraries() {
        let libraries = shared_libraries(Path::new("/bin/sh"), None).expect("listed");
        assert!(libraries.iter().any(|path| path.to_string_lossy().contains("libc.so")));
    }

    #[test]
    fn a_library_of_elsewhere_goes_where_the_loader_looks() {
        let elsewhere = Path::new("/srv/tree/lib");
        let place = |path: &str, first| place_of_library(Path::new(path), first);
        assert_eq!(place("/srv/tree/lib/libx.so.1", Some(elsewhere)), "/lib/x86_64-linux-gnu/libx.so.1");
        assert_eq!(place("/lib64/ld.so", Some(elsewhere)), "/lib64/ld.so");
        assert_eq!(place("/lib64/ld.so", None), "/lib64/ld.so");
    }
}
