//! What the agent and its BPF programs tell each other: the variables of `bpf/aware.bpf.c`.

/// Interfaces that count, at most; the first ones do.
pub(crate) const MAX_PORTS: usize = 32;
/// TCP ports that can be named.
pub(crate) const MAX_NAMED: usize = 64;
/// Length of the name of a congestion control, with its NUL.
const NAME_LEN: usize = 16;

/// `struct settings`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Counts the changes of what follows: each flow begins anew after one.
    pub(crate) generation: u32,
    /// Indices of the interfaces behind which Holdfast speculates.
    pub(crate) ports: Vec<i32>,
    /// An ACK that comes within this was forged.
    pub(crate) fast_us: u32,
    /// Two epochs: so long ACKs have to be late, or in time, to be believed.
    pub(crate) proof_us: u32,
    /// `CLOCK_MONOTONIC` until which the ports count.
    pub(crate) valid_until_us: u64,
    /// For the move of sockets.
    pub(crate) from: String,
    /// For the move of sockets, and for those that the hook is shown.
    pub(crate) to: String,
    /// Only connections of these TCP ports are meant; of all when there are none.
    pub(crate) named: Vec<u16>,
    /// Only connections below this control group are meant; zero for all.
    pub(crate) cgroup_id: u64,
    /// The network namespace, as the kernel numbers it.
    pub(crate) netns_cookie: u64,
}

impl Settings {
    /// Length of the variable.
    const LEN: usize = 24 + 4 * MAX_PORTS + 2 * NAME_LEN + 24 + 2 * MAX_NAMED;

    /// The variable's bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let count = self.ports.len().min(MAX_PORTS);
        let mut out = Vec::with_capacity(Self::LEN);
        for word in [self.generation, count as u32, self.fast_us, self.proof_us] {
            out.extend(word.to_ne_bytes());
        }
        out.extend(self.valid_until_us.to_ne_bytes());
        for place in 0..MAX_PORTS {
            out.extend(self.ports.get(place).copied().unwrap_or(0).to_ne_bytes());
        }
        for name in [&self.from, &self.to] {
            let mut field = [0; NAME_LEN];
            let len = name.len().min(NAME_LEN - 1);
            field[..len].copy_from_slice(&name.as_bytes()[..len]);
            out.extend(field);
        }
        out.extend((self.named.len().min(MAX_NAMED) as u64).to_ne_bytes());
        out.extend(self.cgroup_id.to_ne_bytes());
        out.extend(self.netns_cookie.to_ne_bytes());
        for place in 0..MAX_NAMED {
            out.extend(self.named.get(place).copied().unwrap_or(0).to_ne_bytes());
        }
        out
    }
}

/// `struct counters`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Counters {
    /// Flows that began with an open window.
    pub(crate) opened_flows: u64,
    /// Flows that were left to Reno as their ACKs came late: nobody forges them.
    pub(crate) left_late_flows: u64,
    /// For a loss.
    pub(crate) left_loss_flows: u64,
    /// For congestion that was signalled.
    pub(crate) left_ecn_flows: u64,
    /// Flows that came back.
    pub(crate) opened_again_flows: u64,
    /// Sockets whose congestion control was changed while they were there.
    pub(crate) moved_sockets: u64,
    /// ACKs that were timed and came at once.
    pub(crate) in_time_acks: u64,
    /// That did not.
    pub(crate) late_acks: u64,
    /// Connections that got the congestion control as they were made, having been chosen.
    pub(crate) chosen_flows: u64,
}

impl Counters {
    /// Both together.
    pub(crate) const fn plus(&self, other: &Self) -> Self {
        Self {
            opened_flows: self.opened_flows + other.opened_flows,
            left_late_flows: self.left_late_flows + other.left_late_flows,
            left_loss_flows: self.left_loss_flows + other.left_loss_flows,
            left_ecn_flows: self.left_ecn_flows + other.left_ecn_flows,
            opened_again_flows: self.opened_again_flows + other.opened_again_flows,
            moved_sockets: self.moved_sockets + other.moved_sockets,
            in_time_acks: self.in_time_acks + other.in_time_acks,
            late_acks: self.late_acks + other.late_acks,
            chosen_flows: self.chosen_flows + other.chosen_flows,
        }
    }

    /// Reads the variable; what is missing is zero.
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        let word = |place: usize| {
            let bytes = bytes.get(8 * place..8 * place + 8).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u64::from_ne_bytes)
        };
        Self {
            opened_flows: word(0),
            left_late_flows: word(1),
            left_loss_flows: word(2),
            left_ecn_flows: word(3),
            opened_again_flows: word(4),
            moved_sockets: word(5),
            in_time_acks: word(6),
            late_acks: word(7),
            chosen_flows: word(8),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_as_long_as_the_programs_have_them_whatever_is_in_them() {
        let many = Settings {
            ports: (0..100).collect(),
            from: "x".repeat(99),
            named: (0..100).collect(),
            ..Settings::default()
        };
        assert_eq!(many.encode().len(), Settings::LEN);
        assert_eq!(many.encode()[4..8], 32u32.to_ne_bytes());
        let name = &many.encode()[152..168];
        assert_eq!(name, b"xxxxxxxxxxxxxxx\0");
        assert_eq!(many.encode()[184..192], 64u64.to_ne_bytes());
    }

    #[test]
    fn counters_are_read_in_order() {
        let bytes: Vec<u8> = (1..=6u64).flat_map(u64::to_ne_bytes).collect();
        let found = Counters::decode(&bytes);
        assert_eq!((found.opened_flows, found.left_ecn_flows, found.moved_sockets), (1, 4, 6));
        assert_eq!(Counters::decode(&bytes[..9]).left_late_flows, 0);
    }
}
