//! Processors, which of them are kept for the program, and NUMA nodes.

use crate::root::{Root, field, list};
use crate::{Row, State};

/// Numbers of the NUMA nodes; one when the kernel knows none.
pub(crate) fn nodes(root: &Root) -> Vec<u32> {
    let nodes = list(&root.read("sys/devices/system/node/online").unwrap_or_default());
    if nodes.is_empty() { vec![0] } else { nodes }
}

pub(crate) fn rows(root: &Root) -> [Row; 3] {
    [processors(root), isolation(root), numa(root)]
}

fn processors(root: &Root) -> Row {
    const NEEDED: &str = "a polling core and a replication core";
    let online = list(&root.read("sys/devices/system/cpu/online").unwrap_or_default());
    let status = root.read("proc/self/status").unwrap_or_default();
    let allowed = field(&status, "Cpus_allowed_list").map(list).unwrap_or_default();
    let row = Row::ok(
        "cores",
        "cores",
        format!("{} online, this process may use {}", online.len(), allowed.len()),
        NEEDED,
    );
    match allowed.len() {
        0 | 1 => row.lacking(
            State::Missing,
            "give the host (or the affinity of this process, see `taskset -p $$`) at least 2 cores",
        ),
        2 | 3 => {
            row.lacking(State::Limited, "keep idle = \"adaptive\" under [cores]: 4 cores allow \"poll\"")
        }
        _ => row,
    }
}

fn isolation(root: &Root) -> Row {
    const NEEDED: &str = "steady latency of polling cores";
    let read = |name: &str| {
        let text = root.read(format!("sys/devices/system/cpu/{name}")).unwrap_or_default();
        if list(&text).is_empty() { None } else { Some(text) }
    };
    let (isolated, tickless) = (read("isolated"), read("nohz_full"));
    let found = format!(
        "isolated: {}, without ticks: {}",
        isolated.as_deref().unwrap_or("none"),
        tickless.as_deref().unwrap_or("none")
    );
    let row = Row::ok("isolation", "core isolation", found, NEEDED);
    if isolated.is_some() {
        return row;
    }
    row.lacking(
        State::Limited,
        "for idle = \"poll\": isolcpus=… nohz_full=… rcu_nocbs=… with the polling cores on the kernel's command line",
    )
}

fn numa(root: &Root) -> Row {
    let nodes = nodes(root);
    let parts: Vec<String> = nodes
        .iter()
        .map(|node| {
            let cpus = root.read(format!("sys/devices/system/node/node{node}/cpulist")).unwrap_or_default();
            if cpus.is_empty() { format!("node {node}") } else { format!("node {node} with cores {cpus}") }
        })
        .collect();
    Row::ok("numa", "NUMA", parts.join("; "), "placing cores and memory beside the card")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::tests::host;

    #[test]
    fn cores_isolation_and_nodes_are_read_as_the_kernel_writes_them() {
        let (_folder, root) = host(&[
            ("sys/devices/system/cpu/online", "0-7\n"),
            ("sys/devices/system/cpu/isolated", "2-3\n"),
            ("sys/devices/system/cpu/nohz_full", "(null)\n"),
            ("sys/devices/system/node/online", "0-1\n"),
            ("sys/devices/system/node/node0/cpulist", "0-3\n"),
            ("proc/self/status", "Name:\tx\nCpus_allowed_list:\t0-5\n"),
        ]);
        let [cores, isolation, numa] = rows(&root);
        assert_eq!((cores.state, cores.found.as_str()), (State::Ok, "8 online, this process may use 6"));
        assert_eq!(
            (isolation.state, isolation.found.as_str()),
            (State::Ok, "isolated: 2-3, without ticks: none")
        );
        assert_eq!(numa.found, "node 0 with cores 0-3; node 1");
    }

    #[test]
    fn few_cores_are_a_limit_and_one_is_a_lack() {
        for (allowed, state) in [("0", State::Missing), ("0-1", State::Limited), ("0-3", State::Ok)] {
            let status = format!("Cpus_allowed_list:\t{allowed}\n");
            let (_folder, root) = host(&[("proc/self/status", status.as_str())]);
            assert_eq!(rows(&root)[0].state, state, "{allowed}");
        }
    }

    #[test]
    fn an_empty_host_is_reported_and_not_stumbled_over() {
        let (_folder, root) = host(&[]);
        let [cores, isolation, numa] = rows(&root);
        assert_eq!(cores.state, State::Missing);
        assert_eq!(isolation.state, State::Limited);
        assert_eq!(numa.found, "node 0");
    }
}
