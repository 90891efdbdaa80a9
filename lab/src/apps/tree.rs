//! The files that the applications serve: which there are, and what is in them.
//!
//! Each is a piece of the one seeded stream, cut from a place of its own, so that a client knows every byte of
//! every file without having it.

use crate::initramfs::Part;
use holdfast_guest_init::stream::{Stream, mix};

const SEED: u64 = 0x686f_6c64;
/// From one file's place in the stream to the next one's.
const APART: u64 = 1 << 32;

/// Sizes of pages are of four classes, each ten times the one before, with nine sizes each.
pub(super) const CLASSES: u64 = 4;
const IN_CLASS: u64 = 9;
/// Map outputs, and partitions of each: one for each reducer.
pub(super) const MAPS: u64 = 8;
pub(super) const PARTITIONS: u64 = 8;
pub(super) const PARTITION_BYTES: u64 = 64 << 10;
/// A tree of sources: files of half a KiB to 32 KiB, small ones more often.
const FOLDERS: u64 = 15;
const IN_FOLDER: u64 = 20;

/// Where files of each kind begin in the stream.
const PAGES: u64 = 0;
const MAP_OUTPUTS: u64 = 1000;
const SOURCES: u64 = 2000;

/// Root of what nginx serves.
pub(super) const WEB_ROOT: &str = "/srv/web";
/// Root of what rsync serves.
pub(super) const SOURCE_ROOT: &str = "/srv/source";

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TreeFile {
    /// Absolute, in the guest.
    pub(super) path: String,
    /// Its first byte's offset in the stream.
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

/// The stream of which all files are made.
pub(super) fn stream() -> Stream {
    Stream::new(SEED)
}

/// 36 files of 0.1 to 900 KiB, 5 MB, as one directory of SPECweb99 has them.
pub(super) fn pages() -> Vec<TreeFile> {
    (0..CLASSES * IN_CLASS).map(|n| page(n / IN_CLASS, n % IN_CLASS)).collect()
}

fn page(class: u64, number: u64) -> TreeFile {
    TreeFile {
        path: format!("{WEB_ROOT}/class{class}_{number}"),
        offset: (PAGES + class * IN_CLASS + number) * APART,
        bytes: (number + 1) * 1024 * 10u64.pow(class as u32) / 10,
    }
}

/// The page that a throw of 64 bits falls on: 35, 50, 14 and 1 of 100 are of the classes, evenly within each.
pub(super) fn page_of_mix(throw: u64) -> usize {
    let class = match throw % 100 {
        0..35 => 0,
        35..85 => 1,
        85..99 => 2,
        _ => 3,
    };
    (class * IN_CLASS + (throw >> 32) % IN_CLASS) as usize
}

/// A file each, in which the partitions stand one after the other, as a mapper leaves them.
pub(super) fn map_outputs() -> Vec<TreeFile> {
    let file = |map| TreeFile {
        path: format!("{WEB_ROOT}/map{map}"),
        offset: (MAP_OUTPUTS + map) * APART,
        bytes: PARTITIONS * PARTITION_BYTES,
    };
    (0..MAPS).map(file).collect()
}

/// 300 small files in folders, 2 MB.
pub(super) fn sources() -> Vec<TreeFile> {
    let file = |n: u64| {
        let throw = mix(SEED ^ n);
        TreeFile {
            path: format!("{SOURCE_ROOT}/folder{:02}/file{:02}", n / IN_FOLDER, n % IN_FOLDER),
            offset: (SOURCES + n) * APART,
            bytes: (512 << (throw % 6)) + (throw >> 32) % 512,
        }
    };
    (0..FOLDERS * IN_FOLDER).map(file).collect()
}

/// Files as parts of an initramfs.
pub(super) fn parts(files: &[TreeFile]) -> Vec<Part> {
    let stream = stream();
    let part = |file: &TreeFile| {
        let mut content = vec![0; file.bytes as usize];
        stream.fill(file.offset, &mut content);
        Part::file(file.path.as_str(), content)
    };
    files.iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_files_have_a_path_or_a_byte_of_the_stream_in_common() {
        let all = [pages(), map_outputs(), sources()].concat();
        let paths: HashSet<&str> = all.iter().map(|file| file.path.as_str()).collect();
        let places: HashSet<u64> = all.iter().map(|file| file.offset).collect();
        assert_eq!((paths.len(), places.len()), (all.len(), all.len()));
        assert!(all.iter().all(|file| (1..APART).contains(&file.bytes)));
        let total: u64 = all.iter().map(|file| file.bytes).sum();
        assert!(total < 16 << 20, "the guest boots with {total} bytes");
    }

    #[test]
    fn the_mix_has_the_shares_of_its_classes_and_every_page() {
        let mut hits = [0u32; 36];
        for n in 0..100_000u64 {
            hits[page_of_mix(mix(n))] += 1;
        }
        let shares: Vec<f64> =
            hits.chunks(9).map(|class| f64::from(class.iter().sum::<u32>()) / 1e3).collect();
        for (share, wanted) in shares.iter().zip([35.0, 50.0, 14.0, 1.0]) {
            assert!((share - wanted).abs() < 1.0, "{shares:?}");
        }
        assert!(hits.iter().all(|hits| *hits > 0));
        let sizes: Vec<u64> = pages().iter().map(|page| page.bytes).collect();
        assert_eq!((sizes[0], sizes[8], sizes[9], sizes[35]), (102, 921, 1024, 921_600));
    }
}
