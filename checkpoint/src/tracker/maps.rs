//! Where a process maps the guest's memory.

use std::fs;
use std::io;
use std::path::PathBuf;

/// A file, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileIdentity {
    /// Device, as `stat` gives it.
    pub dev: u64,
    /// Inode.
    pub ino: u64,
}

/// A piece of a process's address space that maps a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// Offset in the file of the first address.
    pub offset: u64,
    /// Whether writes reach the file.
    pub shared: bool,
    /// Whether it may be written now.
    pub writable: bool,
    /// Whether it may be executed.
    pub executable: bool,
    /// The file; device and inode are zero when there is none.
    pub file: FileIdentity,
    /// Name of the file as the process sees it, or a name in brackets.
    pub name: String,
}

impl Mapping {
    /// Name of the file without the mark of a deleted one.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(self.name.strip_suffix(" (deleted)").unwrap_or(&self.name))
    }
}

/// All mappings of a process.
///
/// # Errors
/// When the process is gone or may not be looked at.
pub fn mappings_of(pid: i32) -> io::Result<Vec<Mapping>> {
    let text = fs::read(format!("/proc/{pid}/maps"))?;
    parse(&String::from_utf8_lossy(&text))
}

fn parse(text: &str) -> io::Result<Vec<Mapping>> {
    text.lines()
        .map(|line| {
            parse_line(line).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, line.to_owned()))
        })
        .collect()
}

/// `7f00-7f10 rw-s 00001000 00:1a 77   /dev/shm/memory (deleted)`
fn parse_line(line: &str) -> Option<Mapping> {
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let rights = fields.next()?.as_bytes();
    let offset = hex(fields.next()?)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let (major, minor) = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let dev = nix::libc::makedev(major, minor);
    let ino = fields.next()?.parse().ok()?;
    let name = fields.next().unwrap_or_default().trim_start().to_owned();
    Some(Mapping {
        start: hex(start)?,
        end: hex(end)?,
        offset,
        shared: *rights.get(3)? == b's',
        writable: *rights.get(1)? == b'w',
        executable: *rights.get(2)? == b'x',
        file: FileIdentity { dev, ino },
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_kind_are_understood() {
        let text = "\
7f5c00000000-7f5d40000000 rw-s 140000000 00:1a 77                       /dev/shm/a b (deleted)
55e0-55f0 r-xp 00000000 fe:00 123456 /usr/bin/qemu
7ffe-7fff r-xp 00000000 00:00 0                          [vdso]
1000-2000 ---p 00000000 00:00 0 \n";
        let all = parse(text).unwrap();
        let memory = &all[0];
        assert_eq!((memory.start, memory.end), (0x7f5c_0000_0000, 0x7f5d_4000_0000));
        assert_eq!(memory.offset, 5 << 30, "offsets above 4 GiB are whole (CK-2)");
        assert!(memory.shared && memory.writable && !memory.executable);
        assert_eq!(memory.file, FileIdentity { dev: 0x1a, ino: 77 });
        assert_eq!(memory.path(), PathBuf::from("/dev/shm/a b"));
        assert!(!all[1].shared && all[1].executable);
        assert_eq!(all[2].name, "[vdso]");
        assert_eq!(all[3].name, "");
        assert!(parse("what is this").is_err());
    }

    #[test]
    fn an_own_mapping_is_found_by_its_file() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(3 << 12).unwrap();
        let map = memmap2::MmapOptions::new().offset(1 << 12).len(2 << 12).map_raw(&file).unwrap();
        let meta = file.metadata().unwrap();
        let identity = FileIdentity { dev: meta.dev(), ino: meta.ino() };
        let pid = i32::try_from(std::process::id()).unwrap();
        let all = mappings_of(pid).unwrap();
        let found: Vec<_> = all.iter().filter(|mapping| mapping.file == identity).collect();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].start, found[0].offset), (map.as_ptr() as u64, 1 << 12));
    }
}
