//! rsync's daemon in the guest, and copies of its tree into a new folder at the client.
//!
//! A copy is many small exchanges at first and one stream of 2 MB then. Each is compared with what the tree must
//! be, file by file, outside of the time that counts.

use super::figures::{AppFigures, Tally};
use super::tree::{self, SOURCE_ROOT, TreeFile};
use super::{App, AppsError, Unpacked, in_url, left, run, unpacked};
use crate::client::Client;
use crate::guest::GuestSpec;
use crate::initramfs::Part;
use crate::scratch::Scratch;
use holdfast_guest_init::stream::Stream;
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

const PORT: u16 = 873;
pub(super) const PROGRAM: &str = "/usr/bin/rsync";
const CONFIGURATION: &str = "/etc/rsyncd.conf";
const SETTINGS: &str = "\
uid = root
gid = root
use chroot = no
reverse lookup = no
log file = /dev/null
[source]
path = /srv/source
read only = yes
";

pub(super) fn serve(spec: &mut GuestSpec, unpacked: &Unpacked, parts: &mut Vec<Part>) {
    parts.push(unpacked.part(PROGRAM));
    parts.push(Part::file(CONFIGURATION, SETTINGS.as_bytes()));
    let configuration = format!("--config={CONFIGURATION}");
    spec.start_at_boot(PROGRAM, &["--daemon", "--no-detach", &configuration]);
}

pub(super) fn measure(
    client: &Client,
    guest: IpAddr,
    (time, until): (Duration, Instant),
) -> Result<AppFigures, AppsError> {
    drop(client.connect_listening(SocketAddr::new(guest, PORT), left(until))?);
    let (unpacked, scratch) = (unpacked()?, Scratch::new("rsync")?);
    let (files, stream) = (tree::sources(), tree::stream());
    let from = format!("rsync://{}/source/", in_url(guest));
    let (mut all, mut spent) = (Tally::new(), Duration::ZERO);
    // One at least; the last one counts whole, and its time with it.
    while all.errors == 0 && (all.requests == 0 || spent < time) {
        let folder = scratch.memory("copy");
        let mut words = unpacked.command(PROGRAM, until);
        words.extend(["--recursive".into(), from.clone(), folder.display().to_string()]);
        let began = Instant::now();
        let copied = run(client, &words);
        let took = began.elapsed();
        if let Err(fault) = copied {
            all.failed(fault);
            break;
        }
        spent += took;
        all.took(took);
        all.requests += files.len() as u64;
        all.bytes += files.iter().map(|file| file.bytes).sum::<u64>();
        if let Err(fault) = compare(&folder, &files, &stream).and_then(|()| fs::remove_dir_all(&folder)) {
            all.wrong(fault);
            break;
        }
    }
    match all.fault {
        Some(fault) if all.requests == 0 => Err(AppsError::Nothing { app: App::Rsync, fault }),
        _ => Ok(all.figures(spent)),
    }
}

/// An error unless the folder has these files, with these bytes, and no other.
fn compare(folder: &Path, files: &[TreeFile], stream: &Stream) -> io::Result<()> {
    for file in files {
        let path = folder.join(file.path.trim_start_matches(SOURCE_ROOT).trim_start_matches('/'));
        let content = fs::read(&path)?;
        let right =
            content.len() as u64 == file.bytes && stream.first_difference(file.offset, &content).is_none();
        if !right {
            return Err(io::Error::other(format!("{} is not what the guest has", file.path)));
        }
    }
    let found = count(folder)?;
    if found == files.len() {
        return Ok(());
    }
    Err(io::Error::other(format!("{found} files were copied of {} that there are", files.len())))
}

fn count(folder: &Path) -> io::Result<usize> {
    let mut files = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files += if entry.file_type()?.is_dir() { count(&entry.path())? } else { 1 };
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_lacks_has_more_or_differs_is_not_exact() {
        let (files, stream) = (&tree::sources()[..25], tree::stream());
        let dir = tempfile::tempdir().expect("a folder");
        let write = |file: &TreeFile, change: u8| {
            let path = dir.path().join(file.path.trim_start_matches(SOURCE_ROOT).trim_start_matches('/'));
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            let mut content = vec![0; file.bytes as usize];
            stream.fill(file.offset, &mut content);
            content[7] ^= change;
            fs::write(path, content).expect("written");
        };
        let compared = || compare(dir.path(), files, &stream).map_err(|fault| fault.to_string());
        files[1..].iter().for_each(|file| write(file, 0));
        assert!(compared().expect_err("one is lacking").contains("No such file"));
        write(&files[0], 1);
        assert!(compared().expect_err("one differs").contains("folder00/file00"));
        write(&files[0], 0);
        assert_eq!(compared(), Ok(()));
        fs::write(dir.path().join("folder01/more"), "more").expect("written");
        assert!(compared().expect_err("one too many").contains("26 files"));
    }
}
