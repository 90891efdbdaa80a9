//! Puts the program and its systemd unit where they belong, and takes them away again.
//!
//! A running system is looked at first, and left as it is when the agent could not run there.

use crate::Failure;
use crate::RunOptions;
use crate::congestion;
use crate::probe;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

const PROGRAM: &str = "usr/local/sbin/holdfast-guest";
const UNIT: &str = "etc/systemd/system/holdfast-guest.service";
const WANTED: &str = "etc/systemd/system/multi-user.target.wants/holdfast-guest.service";
const RUN: &str = "holdfast-guest run";
const UNIT_TEXT: &str = include_str!("holdfast-guest.service");

/// Installs into the system whose root is there, and starts the unit if that system runs. The one that runs is refused,
/// untouched, if it lacks something; what the kernel of another one will have is not known.
pub(crate) fn install(root: &Path, options: &RunOptions) -> Result<(), Failure> {
    if root == Path::new("/") {
        probe::refuse(root, &options.choice)?;
        congestion::try_load().map_err(Failure::lacks)?;
    }
    let program = root.join(PROGRAM);
    make_folder_of(&program)?;
    let new = program.with_extension("new");
    let own = std::env::current_exe().map_err(Failure::failed)?;
    fs::copy(own, &new).map_err(at(&new))?;
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).map_err(at(&new))?;
    // The one that runs cannot be written over, but its name can be given away.
    fs::rename(&new, &program).map_err(at(&program))?;
    let unit = root.join(UNIT);
    make_folder_of(&unit)?;
    fs::write(&unit, unit_text(options)).map_err(at(&unit))?;
    println!("installed {} and {}", program.display(), unit.display());
    if is_running_system(root) {
        systemctl(&["daemon-reload"])?;
        systemctl(&["enable", "holdfast-guest.service"])?;
        systemctl(&["restart", "holdfast-guest.service"])?;
        println!("holdfast-guest.service runs; `holdfast-guest status` tells more");
    } else {
        let wanted = root.join(WANTED);
        make_folder_of(&wanted)?;
        if !wanted.is_symlink() {
            symlink(Path::new("/").join(UNIT), &wanted).map_err(at(&wanted))?;
        }
        println!("it starts when that system boots; `holdfast-guest probe`, there, says whether it can run");
    }
    Ok(())
}

/// Removes what [`install`] made; what is not there is no fault.
pub(crate) fn uninstall(root: &Path) -> Result<(), Failure> {
    if is_running_system(root) && root.join(UNIT).exists() {
        systemctl(&["disable", "--now", "holdfast-guest.service"])?;
    }
    for name in [WANTED, UNIT, PROGRAM] {
        let path = root.join(name);
        if path.exists() || path.is_symlink() {
            fs::remove_file(&path).map_err(at(&path))?;
            println!("removed {}", path.display());
        }
    }
    if is_running_system(root) { systemctl(&["daemon-reload"]) } else { Ok(()) }
}

/// The unit, with the options of what it runs.
fn unit_text(options: &RunOptions) -> String {
    let words = options.choice.unit_words() + &options.clock.unit_words();
    UNIT_TEXT.replace(RUN, &format!("{RUN}{words}"))
}

/// Whether it is the system that runs, by systemd.
fn is_running_system(root: &Path) -> bool {
    root == Path::new("/") && Path::new("/run/systemd/system").exists()
}

fn systemctl(words: &[&str]) -> Result<(), Failure> {
    let done = Command::new("systemctl").args(words).status().map_err(Failure::failed)?;
    match done.success() {
        true => Ok(()),
        false => Err(Failure::Failed(format!("systemctl {}: {done}", words.join(" ")))),
    }
}

fn make_folder_of(path: &Path) -> Result<(), Failure> {
    path.parent().map_or(Ok(()), |folder| fs::create_dir_all(folder).map_err(at(folder)))
}

fn at(path: &Path) -> impl Fn(std::io::Error) -> Failure {
    let path = path.to_owned();
    move |fault| Failure::Failed(format!("{}: {fault}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choice::Choice;
    use crate::clock::{ClockOptions, Source};

    fn chosen() -> RunOptions {
        let choice = Choice { ports: vec![80, 443], cgroup: Some("a.slice".into()) };
        RunOptions { choice, clock: ClockOptions { clock: Source::Off, step: false } }
    }

    #[test]
    fn it_is_installed_twice_and_removed_without_a_trace() {
        let dir = tempfile::tempdir().expect("a folder");
        for options in [chosen(), RunOptions::default()] {
            install(dir.path(), &options).expect("installed");
            let mode = fs::metadata(dir.path().join(PROGRAM)).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o755);
            assert_eq!(fs::read_to_string(dir.path().join(UNIT)).expect("there"), unit_text(&options));
            assert_eq!(fs::read_link(dir.path().join(WANTED)).expect("there"), Path::new("/").join(UNIT));
        }
        for _ in 0..2 {
            uninstall(dir.path()).expect("removed");
            for name in [PROGRAM, UNIT, WANTED] {
                assert!(!dir.path().join(name).is_symlink() && !dir.path().join(name).exists(), "{name}");
            }
        }
    }

    #[test]
    fn the_unit_has_the_options_that_were_chosen() {
        let text = unit_text(&chosen());
        assert!(text.contains(" run --port 80,443 --cgroup \"a.slice\" --clock off\n"), "{text}");
        assert_eq!(unit_text(&RunOptions::default()), UNIT_TEXT);
    }

    #[test]
    fn the_unit_starts_the_program_where_it_is_and_undoes_what_a_killed_one_left() {
        for words in [" run\n", " undo\n"] {
            assert!(UNIT_TEXT.contains(&format!("=/{PROGRAM}{words}")), "{words}");
        }
    }
}
