//! Huge pages for a while: the laboratory and the tests borrow them and give them back.

use crate::reserve::{Applied, ReserveError, Wish, reserve};
use crate::{HugePages, Root, huge_pages};
use nix::fcntl::{Flock, FlockArg};
use std::fs::File;
use std::io;

const FOLDER: &str = "sys/kernel/mm/hugepages";

/// Huge pages added to those of the host, taken away again on drop. Several processes may borrow at
/// once: each gives back as many as it added, under a lock that all of them take.
#[derive(Debug)]
pub struct Loan {
    root: Root,
    page_bytes: u64,
    added: Vec<(u32, u64)>,
}

impl Loan {
    /// Adds `pages` pages of `page_bytes` bytes to those that are there.
    ///
    /// # Errors
    /// [`ReserveError`]; also when the kernel gave fewer, after what it gave was given back.
    pub fn take(root: &Root, page_bytes: u64, pages: u64) -> Result<Self, ReserveError> {
        let lock = lock(root)?;
        let there: u64 =
            huge_pages(root).iter().filter(|one| one.page_bytes == page_bytes).map(|one| one.total).sum();
        let applied = reserve(root, Wish { page_bytes, pages: there.saturating_add(pages) })?;
        let loan = Self { root: root.clone(), page_bytes, added: added(&applied) };
        // Giving back takes the lock again.
        drop(lock);
        if applied.is_whole() { Ok(loan) } else { Err(ReserveError::Short { applied }) }
    }

    fn give_back(&self) -> Result<(), ReserveError> {
        let _lock = lock(&self.root)?;
        let now = huge_pages(&self.root);
        for &(node, added) in &self.added {
            let here = |one: &&HugePages| one.page_bytes == self.page_bytes && one.node == node;
            if let Some(pages) = now.iter().find(here) {
                crate::reserve::write(&self.root, pages, pages.total.saturating_sub(added))?;
            }
        }
        Ok(())
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Err(fault) = self.give_back() {
            eprintln!("borrowed huge pages cannot be given back: {fault}");
        }
    }
}

fn added(applied: &Applied) -> Vec<(u32, u64)> {
    let nodes = applied.before.iter().zip(&applied.after);
    nodes.map(|((node, before), (_, after))| (*node, after.saturating_sub(*before))).collect()
}

/// Keeps other borrowers out; the lock is on the kernel's own folder, so that no file is left behind.
fn lock(root: &Root) -> Result<Flock<File>, ReserveError> {
    let fault = |fault: io::Error| ReserveError::Write { path: format!("/{FOLDER}"), fault };
    let folder = File::open(root.path(FOLDER)).map_err(fault)?;
    Flock::lock(folder, FlockArg::LockExclusive).map_err(|(_, errno)| fault(errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::tests::host;

    const TWO_MIB: u64 = 2 << 20;

    fn total(root: &Root) -> u64 {
        huge_pages(root).iter().map(|one| one.total).sum()
    }

    #[test]
    fn loans_add_up_and_each_gives_back_its_own() {
        let (_folder, root) = host(&[("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "3")]);
        let first = Loan::take(&root, TWO_MIB, 4).expect("a loan");
        let second = Loan::take(&root, TWO_MIB, 5).expect("a loan");
        assert_eq!(total(&root), 12);
        drop(first);
        assert_eq!(total(&root), 8);
        drop(second);
        assert_eq!(total(&root), 3);
    }

    #[test]
    fn pages_that_somebody_took_away_meanwhile_are_not_taken_away_twice() {
        let file = "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
        let (_folder, root) = host(&[(file, "0")]);
        let loan = Loan::take(&root, TWO_MIB, 4).expect("a loan");
        std::fs::write(root.path(file), "1").expect("a file");
        drop(loan);
        assert_eq!(total(&root), 0);
    }
}
