//! Huge pages: how many of which size on which NUMA node, and where hugetlbfs is mounted.

use crate::root::Root;
use crate::{Row, State};

/// Huge pages of one size on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugePages {
    /// Bytes of one page.
    pub page_bytes: u64,
    /// The node.
    pub node: u32,
    /// Pages reserved for good: not those that the kernel keeps only until their user lets go of them,
    /// which it counts in `nr_hugepages` too but not when it is told how many there shall be.
    pub total: u64,
    /// Pages that nobody uses or was promised.
    pub free: u64,
}

/// Huge pages by size and node; none when the kernel has none.
///
/// Pages promised to mappings that have not touched them yet are counted for the whole host by the
/// kernel; they are taken off the first nodes here, so that the sum over nodes is right.
#[must_use]
pub fn huge_pages(root: &Root) -> Vec<HugePages> {
    let mut found = Vec::new();
    for folder in root.names("sys/kernel/mm/hugepages") {
        let Some(page_bytes) = page_bytes(&folder) else { continue };
        let global = format!("sys/kernel/mm/hugepages/{folder}");
        let mut promised = root.number(format!("{global}/resv_hugepages")).unwrap_or(0);
        let nodes = crate::cores::nodes(root);
        let by_node = nodes.iter().filter_map(|&node| {
            let place = format!("sys/devices/system/node/node{node}/hugepages/{folder}");
            let total = lasting(root, &place)?;
            Some((node, place, total))
        });
        let mut places: Vec<_> = by_node.collect();
        if places.is_empty() {
            // A kernel without NUMA has only the sum.
            let Some(total) = lasting(root, &global) else { continue };
            places.push((0, global, total));
        }
        for (node, place, total) in places {
            let unused = root.number(format!("{place}/free_hugepages")).unwrap_or(0);
            let taken = promised.min(unused);
            promised -= taken;
            found.push(HugePages { page_bytes, node, total, free: unused - taken });
        }
    }
    found.sort_by_key(|pages| (pages.page_bytes, pages.node));
    found
}

/// Pages below a folder of the kernel's, without those that go with their user.
fn lasting(root: &Root, place: &str) -> Option<u64> {
    let all = root.number(format!("{place}/nr_hugepages")).ok()?;
    Some(all.saturating_sub(root.number(format!("{place}/surplus_hugepages")).unwrap_or(0)))
}

/// `hugepages-2048kB` in bytes.
fn page_bytes(folder: &str) -> Option<u64> {
    let kib: u64 = folder.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    kib.checked_mul(1024).filter(|&bytes| bytes > 0)
}

pub(crate) fn size_text(bytes: u64) -> String {
    match bytes {
        _ if bytes % (1 << 30) == 0 => format!("{}G", bytes >> 30),
        _ if bytes % (1 << 20) == 0 => format!("{}M", bytes >> 20),
        _ => format!("{}K", bytes >> 10),
    }
}

pub(crate) fn rows(root: &Root) -> [Row; 2] {
    [pages_row(&huge_pages(root)), mounts_row(&root.read("proc/mounts").unwrap_or_default())]
}

fn pages_row(pages: &[HugePages]) -> Row {
    const NEEDED: &str = "fast memory for DPDK and guests";
    let row = |found: String| Row::ok("huge_pages", "huge pages", found, NEEDED);
    if pages.is_empty() {
        return row("the kernel has none".to_owned()).lacking(
            State::Limited,
            "set huge_pages = \"off\" under [dpdk]; a kernel with CONFIG_HUGETLBFS has them",
        );
    }
    let parts: Vec<String> = pages
        .iter()
        .filter(|pages| pages.total > 0)
        .map(|one| {
            format!("{} x {} on node {}, {} free", one.total, size_text(one.page_bytes), one.node, one.free)
        })
        .collect();
    if parts.is_empty() {
        let sizes: Vec<String> = {
            let mut sizes: Vec<u64> = pages.iter().map(|one| one.page_bytes).collect();
            sizes.dedup();
            sizes.into_iter().map(size_text).collect()
        };
        return row(format!("none reserved (sizes: {})", sizes.join(", ")))
            .lacking(State::Limited, "holdfast check-host --apply");
    }
    let row = row(parts.join("; "));
    if pages.iter().all(|one| one.free == 0) {
        return row.lacking(State::Limited, "holdfast check-host --apply (all that are reserved are in use)");
    }
    row
}

fn mounts_row(mounts: &str) -> Row {
    const NEEDED: &str = "guest memory on huge pages";
    let places: Vec<String> = mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (place, kind, options) = (words.next()?, words.next()?, words.next().unwrap_or(""));
            if kind != "hugetlbfs" {
                return None;
            }
            let size = options.split(',').find_map(|option| option.strip_prefix("pagesize="));
            Some(size.map_or_else(|| place.to_owned(), |size| format!("{place} ({size})")))
        })
        .collect();
    if places.is_empty() {
        return Row::ok("hugetlbfs", "hugetlbfs", "not mounted", NEEDED).lacking(
            State::Limited,
            "mkdir -p /dev/hugepages && mount -t hugetlbfs hugetlbfs /dev/hugepages",
        );
    }
    Row::ok("hugetlbfs", "hugetlbfs", places.join(", "), NEEDED)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs;

    /// Writes files below a folder of its own.
    pub(crate) fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().expect("a folder");
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("not the root")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        let root = Root::at(folder.path());
        (folder, root)
    }

    #[test]
    fn pages_are_counted_by_size_and_node_less_those_promised() {
        let (_folder, root) = host(&[
            ("sys/devices/system/node/online", "0-1\n"),
            ("sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages", "5\n"),
            ("sys/kernel/mm/hugepages/hugepages-1048576kB/resv_hugepages", "0\n"),
            ("sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", "8\n"),
            ("sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages", "3\n"),
            ("sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages", "8\n"),
            ("sys/devices/system/node/node1/hugepages/hugepages-2048kB/free_hugepages", "8\n"),
            ("sys/devices/system/node/node0/hugepages/hugepages-1048576kB/nr_hugepages", "1\n"),
            ("sys/devices/system/node/node0/hugepages/hugepages-1048576kB/free_hugepages", "1\n"),
        ]);
        let pages = huge_pages(&root);
        let expected = [(2 << 20, 0, 8, 0), (2 << 20, 1, 8, 6), (1 << 30, 0, 1, 1)];
        let found: Vec<_> = pages.iter().map(|p| (p.page_bytes, p.node, p.total, p.free)).collect();
        assert_eq!(found, expected);
        let row = pages_row(&pages);
        assert_eq!(row.state, State::Ok);
        assert_eq!(row.found, "8 x 2M on node 0, 0 free; 8 x 2M on node 1, 6 free; 1 x 1G on node 0, 1 free");
    }

    #[test]
    fn pages_that_go_with_their_user_are_not_counted_as_reserved() {
        let folder = "sys/kernel/mm/hugepages/hugepages-2048kB";
        let (all, surplus) = (format!("{folder}/nr_hugepages"), format!("{folder}/surplus_hugepages"));
        let (_folder, root) = host(&[(&all, "39"), (&surplus, "35")]);
        assert_eq!(huge_pages(&root)[0].total, 4);
    }

    #[test]
    fn a_host_without_pages_is_told_to_apply_and_a_kernel_without_them_to_do_without() {
        let (_folder, root) = host(&[("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0\n")]);
        let [row, _] = rows(&root);
        assert_eq!((row.state, row.found.as_str()), (State::Limited, "none reserved (sizes: 2M)"));
        assert_eq!(row.mend.as_deref(), Some("holdfast check-host --apply"));
        let (_folder, root) = host(&[]);
        assert!(rows(&root)[0].mend.as_deref().expect("a mend").contains("off"));
    }

    #[test]
    fn files_with_nonsense_inside_are_taken_for_no_pages() {
        let (_folder, root) = host(&[
            ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "many"),
            ("sys/kernel/mm/hugepages/hugepages-xkB/nr_hugepages", "1"),
            ("sys/kernel/mm/hugepages/hugepages-0kB/nr_hugepages", "1"),
            ("sys/kernel/mm/hugepages/notes", "1"),
        ]);
        assert_eq!(huge_pages(&root), []);
    }

    #[test]
    fn mounts_of_hugetlbfs_are_listed_with_their_page_size() {
        let row = mounts_row(
            "proc /proc proc rw 0 0\n\
             hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\n\
             none /mnt/huge hugetlbfs rw 0 0\n",
        );
        assert_eq!((row.state, row.found.as_str()), (State::Ok, "/dev/hugepages (2M), /mnt/huge"));
        assert_eq!(mounts_row("").state, State::Limited);
    }
}
