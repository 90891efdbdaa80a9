//! How the saved state of a guest's devices is laid out, as the state itself says: which pieces of memory and
//! which devices it has, and how many bytes each of their fields.
//!
//! QEMU begins a state with the list of the memory's pieces and ends it with a description of all sections. A
//! device that was plugged in or out changes one of them, be it only by the length of what it hangs on. So the
//! question whether the machine is still the same costs a comparison of some 100 KiB a checkpoint, and no word
//! on the monitor.

use serde::Deserialize;
use std::collections::BTreeSet;

/// Start of a section, and the section of the memory's pieces: name, instance, version.
const SECTION_START: u8 = 1;
const MEMORY: &[u8] = b"\x03ram\0\0\0\0\0\0\0\x04";
/// The section comes first, after what the configuration needs.
const SEARCHED: usize = 64 << 10;
/// In front of the description at the end, with four bytes of its length.
const DESCRIPTION: u8 = 6;
/// The low bits of the memory's length say what kind of record it is.
const LENGTH_MASK: u64 = !0xfff;

/// The layout of a saved state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout<'a> {
    /// Names, lengths and places of the memory's pieces.
    memory: &'a [u8],
    /// QEMU's description of the sections, in JSON.
    sections: &'a [u8],
}

/// A layout that is kept.
#[derive(Clone, Debug)]
pub(super) struct KeptLayout {
    memory: Vec<u8>,
    sections: Vec<u8>,
}

#[derive(Deserialize)]
struct Description {
    devices: Vec<Section>,
}

#[derive(Deserialize)]
struct Section {
    name: String,
    instance_id: u32,
}

impl<'a> Layout<'a> {
    /// The layout; none if the state does not tell, as those of the oldest machine types do not.
    pub(super) fn of(state: &'a [u8]) -> Option<Self> {
        Some(Self { memory: memory_in(state)?, sections: sections_in(state)? })
    }

    /// For the comparison with later ones.
    pub(super) fn keep(&self) -> KeptLayout {
        KeptLayout { memory: self.memory.to_vec(), sections: self.sections.to_vec() }
    }
}

impl KeptLayout {
    /// Whether a state is laid out like this.
    pub(super) fn is(&self, other: &Layout<'_>) -> bool {
        (self.memory.as_slice(), self.sections.as_slice()) == (other.memory, other.sections)
    }

    /// Names of the pieces and sections that `other` has and this has not, and the reverse; none if either
    /// cannot be read.
    pub(super) fn names_apart(&self, other: &Layout<'_>) -> Option<(Vec<String>, Vec<String>)> {
        let (ours, theirs) = (names(&self.memory, &self.sections)?, names(other.memory, other.sections)?);
        let apart = |more: &BTreeSet<String>, less: &BTreeSet<String>| {
            more.difference(less).cloned().collect::<Vec<String>>()
        };
        Some((apart(&theirs, &ours), apart(&ours, &theirs)))
    }
}

/// The list of the memory's pieces: length of all, then name, length and address of each.
fn memory_in(state: &[u8]) -> Option<&[u8]> {
    let head = &state[..state.len().min(SEARCHED)];
    let start = head
        .windows(MEMORY.len())
        .enumerate()
        .filter(|(at, window)| *window == MEMORY && *at >= 5 && head[at - 5] == SECTION_START)
        .map(|(at, _)| at + MEMORY.len())
        .next()?;
    let total = number(state, start)? & LENGTH_MASK;
    let (mut at, mut sum) = (start + 8, 0_u64);
    while sum < total {
        let (_, length, end) = piece(state, at)?;
        sum = sum.checked_add(length)?;
        at = end;
    }
    (sum == total).then(|| &state[start + 8..at])
}

/// The piece at that place: its name, its length, where the next one is.
fn piece(bytes: &[u8], at: usize) -> Option<(&[u8], u64, usize)> {
    let end = at + 1 + usize::from(*bytes.get(at)?);
    let name = bytes.get(at + 1..end)?;
    let length = number(bytes, end)?;
    number(bytes, end + 8)?;
    Some((name, length, end + 16))
}

fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// The description, which ends where the state ends.
fn sections_in(state: &[u8]) -> Option<&[u8]> {
    let mut end = state.len();
    while let Some(at) = state[..end].iter().rposition(|&byte| byte == DESCRIPTION) {
        let length = state.get(at + 1..at + 5).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        if length.is_some_and(|bytes| u32::from_be_bytes(bytes) as usize == state.len() - at - 5) {
            return Some(&state[at + 5..]);
        }
        // The text itself has no such byte, so that a step or two lead to its beginning, where it has one.
        end = at;
    }
    None
}

fn names(memory: &[u8], sections: &[u8]) -> Option<BTreeSet<String>> {
    let description: Description = serde_json::from_slice(sections).ok()?;
    let mut names: BTreeSet<String> = description
        .devices
        .into_iter()
        .map(|section| match section.instance_id {
            0 => section.name,
            instance => format!("{} ({instance})", section.name),
        })
        .collect();
    let mut at = 0;
    while at < memory.len() {
        let (name, length, end) = piece(memory, at)?;
        let text = String::from_utf8_lossy(name);
        // Firmware's tables are made anew, and longer or shorter, as it finds devices.
        names.insert(match name.starts_with(b"/rom@") {
            true => format!("memory {text}"),
            false => format!("memory {text} of {length} bytes"),
        });
        at = end;
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(pieces: &[(&str, u64)], sections: &str) -> Vec<u8> {
        let total: u64 = pieces.iter().map(|(_, length)| length).sum();
        let mut state = b"QEVM\0\0\0\x03\x01\0\0\0\x02".to_vec();
        state.extend(MEMORY);
        state.extend((total | 4).to_be_bytes());
        for (name, length) in pieces {
            state.push(name.len() as u8);
            state.extend(name.as_bytes());
            state.extend(length.to_be_bytes());
            state.extend(0x10_0000_u64.to_be_bytes());
        }
        state.extend(b"contents \x06 of devices");
        state.push(DESCRIPTION);
        state.extend((sections.len() as u32).to_be_bytes());
        state.extend(sections.as_bytes());
        state
    }

    const SECTIONS: &str =
        r#"{"devices":[{"name":"timer","instance_id":0,"fields":[{"name":"a","size":8}]}]}"#;

    #[test]
    fn what_differs_is_named() {
        let known = state(&[("ram0", 0x40_0000), ("bios", 0x1000)], SECTIONS);
        let kept = Layout::of(&known).unwrap().keep();
        let mut values = known.clone();
        let at = known.windows(8).position(|window| window == b"contents").unwrap();
        values[at] = b'C';
        assert!(kept.is(&Layout::of(&values).unwrap()), "contents are no layout");

        let grown = state(&[("ram0", 0x40_0000), ("dimm", 0x2000), ("bios", 0x1000)], SECTIONS);
        let grown = Layout::of(&grown).unwrap();
        assert!(!kept.is(&grown));
        let (more, less) = kept.names_apart(&grown).unwrap();
        assert_eq!((more.as_slice(), less.len()), (&["memory dimm of 8192 bytes".to_owned()][..], 0));

        let tables = |len| state(&[("ram0", 0x40_0000), ("/rom@etc/acpi/tables", len)], SECTIONS);
        let (short, long) = (tables(0x1000), tables(0x2000));
        let apart = Layout::of(&short).unwrap().keep().names_apart(&Layout::of(&long).unwrap());
        assert_eq!(apart, Some((vec![], vec![])), "the firmware's tables are as long as they are");

        let sections = SECTIONS.replace("}]}]", r#"}]},{"name":"rng","instance_id":1}]"#);
        let plugged = state(&[("ram0", 0x40_0000), ("bios", 0x1000)], &sections);
        let plugged = Layout::of(&plugged).unwrap();
        assert_eq!(kept.names_apart(&plugged), Some((vec!["rng (1)".to_owned()], vec![])));
        assert_eq!(plugged.keep().names_apart(&Layout::of(&known).unwrap()).unwrap().1, ["rng (1)"]);

        let longer = state(&[("ram0", 0x40_0000), ("bios", 0x1000)], &SECTIONS.replace("8}", "12}"));
        let longer = Layout::of(&longer).unwrap();
        assert!(!kept.is(&longer), "a field that grew may be a device without a section");
        assert_eq!(kept.names_apart(&longer), Some((vec![], vec![])));
    }

    /// RB-1: whatever is no state has no layout.
    #[test]
    fn what_is_cut_short_or_garbled_has_no_layout() {
        let whole = state(&[("ram0", 0x40_0000), ("bios", 0x1000)], SECTIONS);
        for end in 0..whole.len() {
            assert_eq!(Layout::of(&whole[..end]), None, "{end}");
        }
        let mut wrong = whole;
        let total = wrong.windows(MEMORY.len()).position(|window| window == MEMORY).unwrap() + MEMORY.len();
        wrong[total + 3] = 1;
        assert_eq!(Layout::of(&wrong), None, "pieces that do not make the sum");
    }
}
