//! The host that the tests run on: every probe for real, and huge pages reserved and given back.

use holdfast_hugepages_setup::{Loan, Report, Root, State, Versions, Wish, huge_pages, inspect, reserve};
use std::collections::HashSet;
use std::fs;
use std::sync::{Mutex, PoisonError};

const TWO_MIB: u64 = 2 << 20;

/// Held by whoever borrows pages of the host, and by whoever wants them to stay as they are.
static PAGES: Mutex<()> = Mutex::new(());

fn report() -> Report {
    inspect(&Root::default(), &Versions { dpdk: Some("DPDK 22.11.11".to_owned()), ..Versions::default() })
}

/// Says why a test cannot run here, and fails where it must.
fn cannot_run(why: &str, mend: &str) {
    println!("cannot run here: {why}; mend: {mend}");
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{why}; mend: {mend}");
}

#[test]
fn every_row_has_an_id_of_its_own_and_every_lack_a_mend() {
    let report = report();
    println!("{}", report.to_table());
    let ids: HashSet<&str> = report.rows.iter().map(|row| row.id).collect();
    assert_eq!(ids.len(), report.rows.len());
    for row in &report.rows {
        assert!(!row.found.is_empty() && !row.needed_for.is_empty(), "{row:?}");
        assert_eq!(row.mend.is_some(), row.state != State::Ok, "{row:?}");
    }
}

#[test]
fn a_look_changes_nothing_and_leaves_nothing_behind() {
    let _pages = PAGES.lock().unwrap_or_else(PoisonError::into_inner);
    let interfaces = || fs::read_dir("/sys/class/net").map(|entries| entries.count()).unwrap_or(0);
    let descriptors = || fs::read_dir("/proc/self/fd").map(|entries| entries.count()).unwrap_or(0);
    let before = huge_pages(&Root::default());
    let first = report();
    let second = report();
    let states = |report: &Report| report.rows.iter().map(|row| row.state).collect::<Vec<_>>();
    assert_eq!(states(&first), states(&second));
    let total =
        |pages: &[holdfast_hugepages_setup::HugePages]| pages.iter().map(|one| one.total).sum::<u64>();
    let after = huge_pages(&Root::default());
    if total(&before) != total(&after) {
        println!("somebody else changed the huge pages meanwhile: {before:?}, {after:?}");
    }
    assert!(interfaces() > 0 && descriptors() > 0);
    let probes = fs::read_dir("/sys/class/net").expect("interfaces").filter_map(Result::ok);
    let left = probes.filter(|entry| entry.file_name().to_string_lossy().starts_with("hfprobe")).count();
    assert_eq!(left, 0, "a TAP interface of the probe is still there");
}

#[test]
fn tracking_works_on_a_kernel_that_is_new_enough() {
    let report = report();
    let state = |id: &str| report.row(id).expect("a row").state;
    if state("kernel") != State::Ok || state("privileges") != State::Ok {
        return cannot_run(
            "the kernel is older than 6.7 or this is not root",
            "run the tests as root on 6.7 or later",
        );
    }
    for id in ["userfaultfd", "pagemap_scan", "ptrace"] {
        assert_eq!(state(id), State::Ok, "{:?}", report.row(id));
    }
}

#[test]
fn pages_are_borrowed_for_real_and_given_back() {
    let _pages = PAGES.lock().unwrap_or_else(PoisonError::into_inner);
    let root = Root::default();
    let total =
        || huge_pages(&root).iter().filter(|one| one.page_bytes == TWO_MIB).map(|one| one.total).sum();
    let before: u64 = total();
    let loan = match Loan::take(&root, TWO_MIB, 3) {
        Ok(loan) => loan,
        Err(fault) => return cannot_run(&fault.to_string(), "run the tests as root on the host"),
    };
    let during: u64 = total();
    // What is there already is no reason to change anything.
    let applied = reserve(&root, Wish { page_bytes: TWO_MIB, pages: 1 }).expect("nothing to do");
    drop(loan);
    assert!(during >= 3, "{before} pages before the loan, {during} during it");
    assert!(!applied.changed(), "{applied}");
}
