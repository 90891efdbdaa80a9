use super::*;
use std::collections::HashMap;
use std::process::{Command, Stdio};
use std::sync::Barrier;

fn grant(term: u64, holder: &str, solo: bool) -> Grant {
    Grant { term: Term::new(term), holder: holder.to_owned(), solo }
}

fn arbiter() -> (tempfile::TempDir, FileArbiter) {
    let dir = tempfile::tempdir().unwrap();
    let arbiter = FileArbiter::open(dir.path()).unwrap();
    (dir, arbiter)
}

fn visible(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_grant_is_read_back_as_it_was_set() {
    let (dir, arbiter) = arbiter();
    assert_eq!(arbiter.read("vm").unwrap(), None);
    arbiter.compare_and_set("vm", Term::NONE, grant(1, "a", false)).unwrap();
    arbiter.compare_and_set("vm", Term::new(1), grant(2, "b", true)).unwrap();
    assert_eq!(arbiter.read("vm").unwrap(), Some(grant(2, "b", true)));
    assert_eq!(arbiter.read("other").unwrap(), None, "each VM has its own terms");
    assert_eq!(visible(&dir.path().join("vm")), ["term-1", "term-2"], "nothing temporary stays");
}

/// FO-2: of many that race for a term, exactly one wins it, and the losers learn who did.
#[test]
fn exactly_one_of_many_threads_wins_each_term() {
    const RACERS: usize = 8;
    const TERMS: u64 = 25;
    let (_dir, arbiter) = arbiter();
    let start = Barrier::new(RACERS);
    let wins: Vec<Vec<u64>> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..RACERS)
            .map(|racer| {
                let (arbiter, start) = (arbiter.clone(), &start);
                scope.spawn(move || {
                    let name = format!("host-{racer}");
                    (1..=TERMS)
                        .filter(|&term| {
                            start.wait();
                            match arbiter.compare_and_set("vm", Term::new(term - 1), grant(term, &name, true))
                            {
                                Ok(()) => true,
                                Err(CasError::Lost { current }) => {
                                    let current = current.expect("somebody won");
                                    assert!(current.term >= Term::new(term));
                                    assert!(current.term > Term::new(term) || current.holder != name);
                                    false
                                }
                                Err(other) => panic!("{other}"),
                            }
                        })
                        .collect()
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    let mut winners = HashMap::new();
    for term in wins.iter().flatten() {
        *winners.entry(*term).or_insert(0) += 1;
    }
    assert!((1..=TERMS).all(|term| winners.get(&term) == Some(&1)), "one winner a term: {winners:?}");
}

const RACER_DIR: &str = "HOLDFAST_TEST_ARBITER_DIR";

/// The child of the test below: races for every term and prints those that it won.
#[test]
fn racer_process() {
    let Some(dir) = std::env::var_os(RACER_DIR) else { return };
    let arbiter = FileArbiter::open(Path::new(&dir)).unwrap();
    let name = format!("process-{}", std::process::id());
    let mut expected = Term::NONE;
    while expected.get() < 40 {
        match arbiter.compare_and_set("vm", expected, grant(expected.get() + 1, &name, true)) {
            Ok(()) => println!("won {}", expected.get() + 1),
            Err(CasError::Lost { .. }) => {}
            Err(other) => panic!("{other}"),
        }
        expected = arbiter.read("vm").unwrap().expect("granted").term;
    }
}

/// FO-2: the same between processes, which share nothing but the directory.
#[test]
fn exactly_one_of_several_processes_wins_each_term() {
    let (dir, _arbiter) = arbiter();
    let racers: Vec<_> = (0..4)
        .map(|_| {
            Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "arbiter::tests::racer_process", "--nocapture"])
                .env(RACER_DIR, dir.path())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut won: Vec<u64> = Vec::new();
    for racer in racers {
        let output = racer.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        // The harness may print the test's name on the line of its first output.
        won.extend(text.lines().filter_map(|line| line.split("won ").nth(1)?.parse::<u64>().ok()));
    }
    won.sort_unstable();
    assert_eq!(won, (1..=40).collect::<Vec<_>>());
}

/// FO-1: terms only grow, one at a time; a host that thinks in an old term is refused.
#[test]
fn a_stale_or_leaping_term_is_refused() {
    let (_dir, arbiter) = arbiter();
    arbiter.compare_and_set("vm", Term::NONE, grant(1, "a", false)).unwrap();
    arbiter.compare_and_set("vm", Term::new(1), grant(2, "b", false)).unwrap();
    for (expected, asked) in [(0, 1), (1, 2), (5, 6)] {
        let fault = arbiter.compare_and_set("vm", Term::new(expected), grant(asked, "a", true)).unwrap_err();
        assert!(matches!(&fault, CasError::Lost { current: Some(now) } if *now == grant(2, "b", false)));
        assert!(fault.to_string().contains("term 2 belongs to host b"), "{fault}");
    }
    for (expected, asked) in [(2, 2), (2, 4), (2, 1), (u64::MAX, 0)] {
        let fault = arbiter.compare_and_set("vm", Term::new(expected), grant(asked, "a", true)).unwrap_err();
        assert!(matches!(fault, CasError::Arbiter(ArbiterError::NotNext { .. })), "{fault}");
    }
    assert_eq!(arbiter.read("vm").unwrap(), Some(grant(2, "b", false)));
}

/// FO-2: a host that looked before others moved on, and links only now, finds the name taken.
#[test]
fn a_host_that_slept_between_look_and_link_loses() {
    let (dir, arbiter) = arbiter();
    let vm_dir = dir.path().join("vm");
    fs::create_dir(&vm_dir).unwrap();
    let slept = Complete::write(&vm_dir, &grant(1, "slow", true)).unwrap();
    arbiter.compare_and_set("vm", Term::NONE, grant(1, "fast", true)).unwrap();
    arbiter.compare_and_set("vm", Term::new(1), grant(2, "fast", true)).unwrap();
    assert!(!slept.link(&term_path(&vm_dir, Term::new(1))).unwrap());
    assert_eq!(arbiter.read("vm").unwrap(), Some(grant(2, "fast", true)));
}

#[test]
fn a_lost_answer_to_a_link_that_was_made_is_a_win() {
    let (dir, _arbiter) = arbiter();
    let ours = Complete::write(dir.path(), &grant(1, "a", true)).unwrap();
    let name = term_path(dir.path(), Term::new(1));
    assert!(ours.link(&name).unwrap());
    assert!(ours.link(&name).unwrap(), "the name is taken by our own file");
}

/// FO-2: what a crash leaves before the link is not a grant.
#[test]
fn half_a_grant_is_never_seen() {
    let (dir, arbiter) = arbiter();
    let vm_dir = dir.path().join("vm");
    fs::create_dir(&vm_dir).unwrap();
    fs::write(vm_dir.join("new-a-1-0"), "{\"version\":1,\"ter").unwrap();
    assert_eq!(arbiter.read("vm").unwrap(), None);
    arbiter.compare_and_set("vm", Term::NONE, grant(1, "b", true)).unwrap();
    assert_eq!(arbiter.read("vm").unwrap(), Some(grant(1, "b", true)));
}

#[test]
fn a_foreign_or_oversized_file_is_an_error_that_names_it() {
    let (dir, arbiter) = arbiter();
    let vm_dir = dir.path().join("vm");
    fs::create_dir(&vm_dir).unwrap();
    let long = format!("{}{}", " ".repeat(5000), "{}");
    for text in ["", "{}", "not JSON", r#"{"version":2,"term":1,"holder":"a","solo":true}"#, &long] {
        fs::write(vm_dir.join("term-1"), text).unwrap();
        let fault = arbiter.read("vm").unwrap_err();
        assert!(matches!(fault, ArbiterError::Malformed { .. }), "{fault}");
        assert!(fault.to_string().contains("term-1"), "{fault}");
    }
    fs::write(vm_dir.join("term-1"), r#"{"version":1,"term":7,"holder":"a","solo":true}"#).unwrap();
    assert!(arbiter.read("vm").unwrap_err().to_string().contains("under the name of term 1"));
}

#[test]
fn an_unreachable_directory_is_an_error_and_never_a_grant() {
    let (dir, arbiter) = arbiter();
    assert!(matches!(FileArbiter::open(&dir.path().join("absent")), Err(ArbiterError::Unreachable { .. })));
    let path = dir.path().to_owned();
    drop(dir);
    assert!(matches!(arbiter.read("vm"), Err(ArbiterError::Unreachable { .. })));
    let fault = arbiter.compare_and_set("vm", Term::NONE, grant(1, "a", true)).unwrap_err();
    assert!(matches!(fault, CasError::Arbiter(ArbiterError::Unreachable { .. })), "{fault}");
    assert!(fault.to_string().contains("mount the shared filesystem"), "{fault}");
    assert!(!path.exists(), "it was not made by mistake");
}

#[test]
fn names_that_leave_the_directory_are_refused() {
    let (_dir, arbiter) = arbiter();
    for name in ["", ".", "..", "../x", "a/b", ".hidden", "a b", &"x".repeat(65)] {
        assert!(matches!(arbiter.read(name), Err(ArbiterError::Name { .. })), "{name:?}");
        let fault = arbiter.compare_and_set("vm", Term::NONE, grant(1, name, true)).unwrap_err();
        assert!(matches!(fault, CasError::Arbiter(ArbiterError::Name { .. })), "{name:?}");
    }
}
