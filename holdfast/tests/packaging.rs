//! What the units must say for guests to outlive Holdfast.

const SERVICE: &str = include_str!("../../packaging/systemd/holdfast.service");
const HUGE_PAGES: &str = include_str!("../../packaging/systemd/holdfast-hugepages.service");

/// All values of a key, in order.
fn values<'a>(unit: &'a str, key: &str) -> Vec<&'a str> {
    unit.lines()
        .filter_map(|line| line.split_once('=').filter(|(name, _)| *name == key))
        .flat_map(|(_, values)| values.split_whitespace())
        .collect()
}

/// FO-1: after a failover the live guest is a child of the service, and the only copy.
#[test]
fn a_guest_outlives_the_service() {
    assert_eq!(values(SERVICE, "KillMode"), ["process"]);
    assert_eq!(values(SERVICE, "OOMPolicy"), ["continue"], "a guest that is out of memory ends alone");
    assert_eq!(values(SERVICE, "PrivateTmp"), [""; 0], "QEMU's sockets and memory files are seen by both");
}

#[test]
fn the_service_may_do_what_holdfast_does() {
    let may = values(SERVICE, "CapabilityBoundingSet");
    for needed in [
        "CAP_SYS_PTRACE",
        "CAP_SYS_ADMIN",
        "CAP_NET_RAW",
        "CAP_NET_ADMIN",
        "CAP_IPC_LOCK",
        "CAP_DAC_OVERRIDE",
        "CAP_KILL",
        "CAP_CHOWN",
    ] {
        assert!(may.contains(&needed), "{needed} is missing from {may:?}");
    }
}

/// Too few huge pages are no reason not to start: `huge_pages` in the configuration says whether they are.
#[test]
fn too_few_huge_pages_do_not_stop_holdfast() {
    assert!(values(HUGE_PAGES, "RequiredBy").is_empty());
    assert!(values(HUGE_PAGES, "WantedBy").contains(&"holdfast.service"));
    assert_eq!(values(HUGE_PAGES, "Before"), ["holdfast.service"]);
}
