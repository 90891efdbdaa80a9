//! The guest's network interfaces: cards, which are asked by, and what lies on top of them.

use std::fs;
use std::path::{Path, PathBuf};

/// Ethernet, in the kernel's numbers of link types.
const ETHERNET: &str = "1";

/// The interfaces below a `/sys`.
pub(crate) struct Interfaces {
    class: PathBuf,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    /// Its name.
    pub(crate) name: String,
    /// Its index.
    pub(crate) index: i32,
    /// Names of those it lies on: a VLAN on its card, a bridge or a bond on its members.
    below: Vec<String>,
    card: bool,
    up: bool,
}

impl Interfaces {
    /// Those of a system whose root is there.
    pub(crate) fn new(root: &Path) -> Self {
        Self { class: root.join("sys/class/net") }
    }

    /// All of them; interfaces that go away meanwhile are left out.
    pub(crate) fn all(&self) -> Vec<Interface> {
        let Ok(entries) = fs::read_dir(&self.class) else { return Vec::new() };
        let mut found: Vec<Interface> = entries.flatten().filter_map(|entry| read(&entry.path())).collect();
        found.sort_by_key(|interface| interface.index);
        found
    }
}

/// Ethernet cards that are up.
pub(crate) fn cards(all: &[Interface]) -> impl Iterator<Item = &Interface> {
    all.iter().filter(|interface| interface.card && interface.up)
}

/// The indices of `ports` and of all interfaces that lie on nothing else.
pub(crate) fn with_those_above(all: &[Interface], ports: &[i32]) -> Vec<i32> {
    let mut inside = ports.to_vec();
    // Each round finds those on top of the last one's; there are no more layers than interfaces.
    for _ in 0..all.len() {
        let is_inside =
            |name: &String| all.iter().any(|other| &other.name == name && inside.contains(&other.index));
        let above = all
            .iter()
            .filter(|interface| !inside.contains(&interface.index))
            .filter(|interface| !interface.below.is_empty() && interface.below.iter().all(is_inside));
        let above: Vec<i32> = above.map(|interface| interface.index).collect();
        if above.is_empty() {
            break;
        }
        inside.extend(above);
    }
    inside
}

fn read(path: &Path) -> Option<Interface> {
    let text = |name: &str| Some(fs::read_to_string(path.join(name)).ok()?.trim().to_owned());
    let flags = text("flags")?;
    let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok()?;
    let names = fs::read_dir(path).ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let below: Vec<String> =
        names.filter_map(|name| name.strip_prefix("lower_").map(str::to_owned)).collect();
    Some(Interface {
        name: path.file_name()?.to_str()?.to_owned(),
        index: text("ifindex")?.parse().ok()?,
        card: text("type")? == ETHERNET && path.join("device").exists() && below.is_empty(),
        up: flags & libc::IFF_UP as u32 != 0,
        below,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(list: &[(&str, i32, &str, &[&str])]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("a folder");
        for (name, index, kind, below) in list {
            let path = dir.path().join("sys/class/net").join(name);
            fs::create_dir_all(&path).expect("made");
            let write = |file: &str, text: String| fs::write(path.join(file), text).expect("written");
            write("ifindex", format!("{index}\n"));
            write("type", format!("{}\n", if *kind == "loopback" { 772 } else { 1 }));
            write("flags", if *kind == "down" { "0x1002\n".into() } else { "0x1003\n".into() });
            if matches!(*kind, "card" | "down") {
                fs::create_dir(path.join("device")).expect("made");
            }
            for lower in *below {
                fs::create_dir(path.join(format!("lower_{lower}"))).expect("made");
            }
        }
        dir
    }

    #[test]
    fn cards_that_are_up_are_asked_by_and_nothing_else_is() {
        let list: &[(&str, i32, &str, &[&str])] = &[
            ("lo", 1, "loopback", &[]),
            ("eth0", 2, "card", &[]),
            ("eth1", 3, "down", &[]),
            ("veth7", 9, "virtual", &[]),
            ("eth0.5", 4, "virtual", &["eth0"]),
        ];
        let dir = system(list);
        let all = Interfaces::new(dir.path()).all();
        let names: Vec<&str> = cards(&all).map(|card| card.name.as_str()).collect();
        assert_eq!((all.len(), names), (5, vec!["eth0"]));
        assert!(Interfaces::new(Path::new("/nowhere")).all().is_empty());
    }

    #[test]
    fn what_lies_on_ports_alone_is_with_them() {
        let list: &[(&str, i32, &str, &[&str])] = &[
            ("eth0", 2, "card", &[]),
            ("eth1", 3, "card", &[]),
            ("eth0.5", 4, "virtual", &["eth0"]),
            ("bond0", 5, "virtual", &["eth0", "eth1"]),
            ("br0", 6, "virtual", &["eth0.5"]),
        ];
        let dir = system(list);
        let all = Interfaces::new(dir.path()).all();
        assert_eq!(with_those_above(&all, &[2]), [2, 4, 6]);
        assert_eq!(with_those_above(&all, &[2, 3]), [2, 3, 4, 5, 6]);
        assert_eq!(with_those_above(&all, &[]), [0; 0]);
    }
}
