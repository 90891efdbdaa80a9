//! What Holdfast is measured beside: QEMU's own migration, and memcpy.

use super::row::{Measured, Stage};
use super::{PagePath, Scene};
use crate::bench::stage::{READY, VM};
use crate::cli::Failure;
use holdfast_lab::client::Client;
use holdfast_lab::cpu::{CpuError, CpuTimes};
use holdfast_lab::guest::{Backend, Guest, GuestSpec, Nic};
use holdfast_lab::migration::{Migrated, migrate};
use holdfast_lab::scratch::Scratch;
use holdfast_lab::topology::{Host, Topology, TopologyOptions, guest_ip};
use nix::time::ClockId;
use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Where the other QEMU waits for the guest.
const PORT: u16 = 7402;
/// The interface of the guest's card on either host.
const TAP: &str = "tap0";
/// For the largest guest on the slowest machine.
const MIGRATION: Duration = Duration::from_secs(120);
/// As many bytes at a time as Holdfast captures.
const CHUNK: usize = 1 << 20;

/// QEMU's own migration of the guest from host to host, on the link that has Holdfast's connection.
pub(super) fn qemu(scene: &Scene<'_>) -> Result<Measured, Failure> {
    scene.say(PagePath::Qemu, "boots the guest");
    let topology = Topology::create(&TopologyOptions::default()).map_err(Failure::failed)?;
    let scratch = Scratch::new("migration").map_err(Failure::failed)?;
    let backend = || Backend::Tap { interface: TAP.into() };
    let mut spec = GuestSpec::new(VM, scene.qemu, scene.artifacts, &scratch)
        .map_err(Failure::failed)?
        .nic(Nic::numbered(1, backend()));
    spec.memory_mib = scene.guest_mib;
    (scene.shape())(&mut spec);
    let target = spec.standby("target", &scratch.memory("target.ram"), vec![backend()]);
    let start = |spec: GuestSpec, host: &Host| -> Result<Guest, Failure> {
        host.add_tap(TAP).map_err(Failure::failed)?;
        spec.start(&host.namespace).map_err(Failure::failed)
    };
    let mut source = start(spec, &topology.a)?;
    let mut target = start(target, &topology.b)?;
    source.wait_ready(READY).map_err(Failure::failed)?;
    target.wait_monitor(READY).map_err(Failure::failed)?;
    Client::new(&topology.client)
        .dirty(guest_ip(1).into(), super::fill(scene.guest_mib))
        .map_err(Failure::failed)?;
    scene.say(PagePath::Qemu, "migrates");
    let look = || -> Result<_, CpuError> { Ok((CpuTimes::of(source.pid())?, CpuTimes::of(target.pid())?)) };
    let before = look().map_err(Failure::failed)?;
    let address = SocketAddr::new(topology.b.replication_ip.into(), PORT);
    let migrated = migrate(&source, &target, address, MIGRATION).map_err(Failure::failed)?;
    let after = look().map_err(Failure::failed)?;
    let cpu = vec![
        (Stage::Send, without_vcpus(&before.0, &after.0)),
        (Stage::Apply, without_vcpus(&before.1, &after.1)),
    ];
    Ok(measured(&migrated, cpu))
}

fn measured(migrated: &Migrated, cpu: Vec<(Stage, Duration)>) -> Measured {
    Measured {
        pages: migrated.pages,
        payload_bytes: migrated.pages * migrated.page_bytes,
        wire_bytes: Some(migrated.wire_bytes),
        took: migrated.took,
        epochs: None,
        cpu,
    }
}

/// What a QEMU spent beside running its guest. The threads of a migration end with it: the whole has their time.
fn without_vcpus(before: &CpuTimes, after: &CpuTimes) -> Duration {
    let spent = after.since(before);
    spent.whole().saturating_sub(spent.of_threads(|name| name.starts_with("CPU ")))
}

/// One core that copies as many bytes as the guest has.
pub(super) fn memcpy(guest_mib: u32) -> Result<Measured, Failure> {
    let len = (guest_mib as usize) << 20;
    // Written once, so that both are memory and not only promised.
    let (from, mut to) = (vec![0x5a_u8; len], vec![0xa5_u8; len]);
    let clock = || ClockId::CLOCK_THREAD_CPUTIME_ID.now().map(Duration::from).map_err(Failure::failed);
    let (began, before) = (Instant::now(), clock()?);
    for (to, from) in to.chunks_exact_mut(CHUNK).zip(from.chunks_exact(CHUNK)) {
        to.copy_from_slice(black_box(from));
    }
    let (took, spent) = (began.elapsed(), clock()?.saturating_sub(before));
    black_box(&to);
    Ok(Measured {
        pages: len as u64 / 4096,
        payload_bytes: len as u64,
        wire_bytes: None,
        took,
        epochs: None,
        cpu: vec![(Stage::Copy, spent)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memcpy_copies_all_of_it_and_tells_its_time() {
        let measured = memcpy(3).expect("a clock");
        assert_eq!((measured.pages, measured.payload_bytes), (768, 3 << 20));
        let [(Stage::Copy, spent)] = measured.cpu[..] else { panic!("{measured:?}") };
        assert!(!spent.is_zero() && !measured.took.is_zero());
    }

    #[test]
    fn a_migration_carried_its_pages_whether_they_were_zeros_or_not() {
        let migrated =
            Migrated { took: Duration::from_secs(2), pages: 1000, page_bytes: 4096, wire_bytes: 500 * 4100 };
        let cpu = vec![(Stage::Send, Duration::from_secs(1))];
        let measured = measured(&migrated, cpu.clone());
        assert_eq!((measured.payload_bytes, measured.wire_bytes), (4_096_000, Some(2_050_000)));
        assert_eq!((measured.took, measured.cpu), (Duration::from_secs(2), cpu));
    }
}
