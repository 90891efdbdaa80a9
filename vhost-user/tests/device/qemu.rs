//! A real QEMU (no KVM, no disk): its PXE ROM is a virtio-net driver that keeps asking for an
//! address, which is all the guest this needs. `HOLDFAST_QEMU` names another QEMU to try.

use crate::core::Core;
use crate::machine::{SOON, device, device_of_pairs, wait_event};
use holdfast_vhost_user::features::bits;
use holdfast_vhost_user::{Device, DeviceEvent, MemoryFiles, SocketRole};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// Longest wait for the guest: it boots, then asks every few seconds.
const PATIENCE: Duration = Duration::from_secs(60);

struct Qemu {
    process: Child,
    qmp: BufReader<UnixStream>,
}

impl Qemu {
    fn start(binary: &str, dir: &Path, name: &str, socket: &str, more: &[&str]) -> Self {
        Self::start_with_pairs(binary, dir, name, socket, 1, more)
    }

    fn start_with_pairs(
        binary: &str,
        dir: &Path,
        name: &str,
        socket: &str,
        pairs: u16,
        more: &[&str],
    ) -> Self {
        let mq = if pairs > 1 { "on" } else { "off" };
        let at = |file: &str| dir.join(format!("{name}.{file}")).display().to_string();
        let process = Command::new(binary)
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg"])
            .args(["-machine", "pc,memory-backend=m", "-m", "64"])
            // The ROM gives up some time: then the machine boots again.
            .args(["-boot", "order=n,reboot-timeout=500"])
            .args([
                "-object",
                &format!("memory-backend-file,share=on,id=m,size=64M,mem-path={}", at("memory")),
            ])
            .args(["-chardev", &format!("socket,id=c,{socket}")])
            .args(["-netdev", &format!("vhost-user,id=n,chardev=c,queues={pairs}")])
            .args(["-device", &format!("virtio-net-pci,netdev=n,mac=52:54:00:12:34:56,vectors=0,mq={mq}")])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", at("qmp"))])
            .args(more)
            .stdin(Stdio::null())
            .spawn()
            .expect("QEMU starts");
        let deadline = Instant::now() + SOON;
        let stream = loop {
            match UnixStream::connect(at("qmp")) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "QEMU did not come up: {error}"),
            }
            std::thread::park_timeout(Duration::from_millis(20));
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut qemu = Self { process, qmp: BufReader::new(stream) };
        qemu.line();
        qemu.execute("qmp_capabilities");
        qemu
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.qmp.read_line(&mut line).expect("QEMU answers");
        assert!(!line.is_empty(), "QEMU ended");
        line
    }

    fn execute(&mut self, command: &str) -> String {
        self.send(&format!(r#"{{"execute":"{command}"}}"#))
    }

    fn send(&mut self, request: &str) -> String {
        self.qmp.get_mut().write_all(request.as_bytes()).expect("sends");
        loop {
            let line = self.line();
            assert!(!line.contains(r#""error""#), "{request}: {line}");
            if line.contains(r#""return""#) {
                return line;
            }
        }
    }

    fn kill(mut self) {
        self.process.kill().expect("kills");
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        if let Err(error) = self.process.kill().and_then(|()| self.process.wait().map(|_| ())) {
            eprintln!("QEMU could not be ended: {error}");
        }
    }
}

/// Waits for a frame of the guest.
fn guest_speaks(core: &Core, device: &Device) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let frame = core.frames.recv_timeout(left).unwrap_or_else(|_| {
            let seen: Vec<_> = device.events().try_iter().collect();
            panic!("the guest is silent: {:?} after {seen:?}", device.snapshot())
        });
        assert!(frame.len() >= 14);
        if frame[6..12] == MAC {
            return;
        }
    }
}

fn wait_running(device: &Device, wanted: bool) {
    let event = if wanted { DeviceEvent::Started } else { DeviceEvent::Stopped };
    wait_event(device, |seen| *seen == event);
}

fn qemu_binary() -> Option<String> {
    let binary = std::env::var("HOLDFAST_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
    let found = Command::new(&binary).arg("--version").stdout(Stdio::null()).status().is_ok();
    if !found {
        let reason = format!("cannot run here: no {binary}; mend: apt-get install qemu-system-x86");
        assert!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{reason}");
        eprintln!("{reason}");
    }
    found.then_some(binary)
}

/// Stop and cont many times over, a live migration to another QEMU (LOG_ALL), the death of it, and a
/// new one at the same socket: all against stock QEMU.
#[test]
fn a_stock_qemu_stops_goes_on_migrates_and_comes_back() {
    let Some(binary) = qemu_binary() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let paths = [dir.path().join("a"), dir.path().join("b")];
    let files = MemoryFiles::default();
    let mut core = Core::new();
    let (a, first) = device(&core, SocketRole::Server(paths[0].clone()), &files);
    let (b, second) = device(&core, SocketRole::Client(paths[1].clone()), &files);
    core.run(vec![first, second]);

    let socket = format!("path={}", paths[0].display());
    let mut source = Qemu::start(&binary, dir.path(), "source", &socket, &[]);
    guest_speaks(&core, &a);
    wait_running(&a, true);
    let snapshot = a.snapshot();
    assert_eq!(snapshot.peer_pid, Some(source.process.id() as i32));
    assert!(snapshot.features.has(bits::VERSION_1), "{snapshot:?}");
    let memory = a.memory().expect("memory is known");
    assert_eq!(memory.files().len(), 1);
    assert_eq!(memory.files()[0].len(), 64 << 20);

    for _ in 0..20 {
        source.execute("stop");
        wait_running(&a, false);
        assert_eq!(a.snapshot().rings_running, [false, false]);
        source.execute("cont");
        wait_running(&a, true);
        assert!(Arc::ptr_eq(&memory, &a.memory().expect("memory is known")), "mapped anew");
    }
    while core.frames.try_recv().is_ok() {}
    guest_speaks(&core, &a);

    // The destination listens, as a client device expects.
    let socket = format!("path={},server=on,wait=off", paths[1].display());
    let stream = dir.path().join("stream").display().to_string();
    let incoming = format!("unix:{stream}");
    let mut target = Qemu::start(&binary, dir.path(), "target", &socket, &["-incoming", &incoming]);
    wait_event(&b, |event| matches!(event, DeviceEvent::Connected { .. }));
    source.send(&format!(r#"{{"execute":"migrate","arguments":{{"uri":"{incoming}"}}}}"#));
    let deadline = Instant::now() + PATIENCE;
    let mut logged = false;
    loop {
        let state = source.execute("query-migrate");
        logged |= a.snapshot().logging;
        if state.contains(r#""completed""#) {
            break;
        }
        assert!(!state.contains(r#""failed""#) && Instant::now() < deadline, "{state}");
    }
    assert!(logged, "QEMU had the device log its writes");
    source.kill();
    wait_event(&a, |event| *event == DeviceEvent::Disconnected);
    wait_event(&b, |event| *event == DeviceEvent::AnnounceRequested { mac: MAC });
    while core.frames.try_recv().is_ok() {}
    guest_speaks(&core, &b);
    assert_eq!(b.snapshot().rings_running, [true, true]);
    assert!(target.execute("query-status").contains("running"));
    target.kill();
    wait_event(&b, |event| *event == DeviceEvent::Disconnected);

    // A new machine at the socket of the first.
    let socket = format!("path={}", paths[0].display());
    let again = Qemu::start(&binary, dir.path(), "again", &socket, &[]);
    guest_speaks(&core, &a);
    assert_eq!(a.snapshot().connections, 2);
    again.kill();
    for device in [a, b] {
        let snapshot = device.snapshot();
        assert!(snapshot.faults.is_empty() && snapshot.peer_faults == 0, "{snapshot:?}");
    }
}

/// Fault 13 from this side: Holdfast dies and comes back, the guest and its QEMU stay.
#[test]
fn a_stock_qemu_takes_a_device_that_comes_back() {
    let Some(binary) = qemu_binary() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("net0");
    let socket = format!("path={},reconnect=1", path.display());
    let mut qemu = None;
    for _ in 0..3 {
        let mut core = Core::new();
        let (device, endpoint) = device(&core, SocketRole::Server(path.clone()), &MemoryFiles::default());
        core.run(vec![endpoint]);
        qemu.get_or_insert_with(|| Qemu::start(&binary, dir.path(), "only", &socket, &[]));
        guest_speaks(&core, &device);
        let snapshot = device.snapshot();
        assert!(snapshot.faults.is_empty() && snapshot.peer_faults == 0, "{snapshot:?}");
    }
    assert!(qemu.expect("started").execute("query-status").contains("running"));
}

/// Several queue pairs, of which the guest uses one: the others are negotiated and never run.
#[test]
fn a_stock_qemu_takes_several_queue_pairs() {
    let Some(binary) = qemu_binary() else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("net0");
    let mut core = Core::new();
    let (device, endpoint) =
        device_of_pairs(&core, SocketRole::Server(path.clone()), &MemoryFiles::default(), 2);
    core.run(vec![endpoint]);
    let socket = format!("path={}", path.display());
    let mut qemu = Qemu::start_with_pairs(&binary, dir.path(), "two", &socket, 2, &[]);
    guest_speaks(&core, &device);
    assert_eq!(device.snapshot().rings_running, [true, true, false, false]);
    qemu.execute("stop");
    wait_running(&device, true);
    wait_running(&device, false);
    qemu.execute("cont");
    wait_running(&device, true);
    assert_eq!(device.snapshot().peer_faults, 0);
}
