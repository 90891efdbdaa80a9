//! Tests on a real QEMU with a guest of 25 bytes.

use super::*;
use crate::host_needs;
use crate::pages::{PAGE_SIZE, PageSet};
use crate::tracker::{DirtyTracker, UffdTracker};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Child, Command, Stdio};
use std::thread;

pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Bytes of the test guest's memory.
pub(crate) const MEMORY: u64 = 16 << 20;

/// File pages that the test guest writes, over and over: 128 KiB to 576 KiB.
pub(crate) const WRITTEN: std::ops::Range<u64> = 0x20..0x90;

/// A BIOS that counts, and writes the count to the start of each page of [`WRITTEN`] in turn:
/// ```text
///     cli; xor ax, ax
/// round: inc ax; mov bx, 0x2000
/// page:  mov es, bx; mov [es:0], ax; add bx, 0x100; cmp bx, 0x9000; jb page
///     jmp round
/// ```
const PROGRAM: [u8; 25] = [
    0xfa, 0x31, 0xc0, 0x40, 0xbb, 0x00, 0x20, 0x8e, 0xc3, 0x26, 0xa3, 0x00, 0x00, 0x81, 0xc3, 0x00, 0x01,
    0x81, 0xfb, 0x00, 0x90, 0x72, 0xf0, 0xeb, 0xea,
];

/// Where a processor begins: a far jump to the program.
const RESET: [u8; 5] = [0xea, 0x00, 0x00, 0x00, 0xf0];

/// QEMU's program and first arguments; another one by `HOLDFAST_TEST_QEMU="PROGRAM ARGUMENTS"`.
pub(crate) fn program() -> Vec<String> {
    let chosen = std::env::var("HOLDFAST_TEST_QEMU").unwrap_or_else(|_| "qemu-system-x86_64".to_owned());
    chosen.split_whitespace().map(str::to_owned).collect()
}

/// Whether there is a QEMU; says so if not.
pub(crate) fn has_qemu() -> bool {
    std::env::var_os("HOLDFAST_TEST_QEMU").is_some() || host_needs::has_program("qemu-system-x86_64")
}

/// A directory with a BIOS, on tmpfs.
pub(crate) fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut bios = vec![0_u8; 64 << 10];
    bios[..PROGRAM.len()].copy_from_slice(&PROGRAM);
    bios[0xfff0..0xfff0 + RESET.len()].copy_from_slice(&RESET);
    fs::write(dir.path().join("bios"), bios).unwrap();
    dir
}

/// The command line of the test guest with that memory file.
pub(crate) fn command(dir: &Path, memory: &Path) -> Vec<String> {
    let mut argv = machine(dir);
    let size = MEMORY;
    argv.extend([
        "-object".to_owned(),
        format!("memory-backend-file,id=mem,size={size},mem-path={},share=on", memory.display()),
        "-machine".to_owned(),
        "memory-backend=mem".to_owned(),
    ]);
    argv
}

/// The command line of the test guest without its memory.
fn machine(dir: &Path) -> Vec<String> {
    let mut argv = program();
    let bios = dir.join("bios").display().to_string();
    argv.extend(
        ["-machine", "pc", "-accel", "tcg", "-m", "16M", "-nodefaults", "-display", "none", "-bios", &bios]
            .map(str::to_owned),
    );
    argv
}

/// A QEMU with the test guest.
pub(crate) struct Primary {
    pub(crate) qemu: Qemu,
    pub(crate) memory: PathBuf,
    child: Child,
    pub(crate) dir: tempfile::TempDir,
}

impl Primary {
    pub(crate) fn start() -> Self {
        let dir = place();
        let memory = dir.path().join("memory");
        let argv = command(dir.path(), &memory);
        Self::start_with(dir, argv)
    }

    pub(crate) fn start_with(dir: tempfile::TempDir, argv: Vec<String>) -> Self {
        let socket = dir.path().join("qmp");
        let mut child = Command::new(&argv[0])
            .args(&argv[1..])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", socket.display())])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + LIMIT;
        let qemu = loop {
            match Qemu::connect(&socket, LIMIT) {
                Ok(qemu) => break qemu,
                Err(fault) => {
                    assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "{fault}");
                    thread::sleep(Duration::from_millis(5));
                }
            }
        };
        let memory = dir.path().join("memory");
        Self { qemu, memory, child, dir }
    }

    /// Lets the monitor go, so that another one may have it.
    pub(crate) fn let_go(&mut self) {
        let elsewhere = self.dir.path().join("elsewhere");
        let listener = UnixListener::bind(&elsewhere).unwrap();
        let greeter = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let version = json!({ "qemu": { "major": 0, "minor": 0, "micro": 0 } });
            writeln!(stream, "{}", json!({ "QMP": { "version": version } })).unwrap();
            // A reply before its command would be none.
            assert_ne!(stream.read(&mut [0; 256]).unwrap(), 0);
            writeln!(stream, "{}", json!({ "return": {}, "id": 1 })).unwrap();
        });
        self.qemu = Qemu::connect(&elsewhere, LIMIT).unwrap();
        greeter.join().unwrap();
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        // It may have been killed by the test.
        drop(self.child.kill());
        self.child.wait().unwrap();
    }
}

/// Waits until the guest has written its last page.
pub(crate) fn wait_for_guest(memory: &Path) {
    let deadline = Instant::now() + LIMIT;
    while fs::read(memory).unwrap()[(WRITTEN.end as usize - 1) * PAGE_SIZE] == 0 {
        assert!(Instant::now() < deadline, "the guest does not write");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What is refused of the test guest with those arguments more, or with them instead of its memory.
fn refusals(memory: Option<&str>, more: &str, settings: &InspectSettings) -> Vec<Refusal> {
    let dir = place();
    let mut argv = match memory {
        Some(memory) => [machine(dir.path()), words(memory)].concat(),
        None => command(dir.path(), &dir.path().join("memory")),
    };
    argv.extend(words(more));
    let mut primary = Primary::start_with(dir, argv);
    match primary.qemu.inspect(settings) {
        Ok(_) => Vec::new(),
        Err(InspectError::Refused(refusals)) => refusals,
        Err(other) => panic!("{other}"),
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_guest_that_can_be_protected_is_described() {
    if !has_qemu() || !host_needs::is_root() {
        return;
    }
    let mut primary = Primary::start();
    let facts = primary.qemu.inspect(&InspectSettings::default()).unwrap();
    assert_eq!(facts.pid, i32::try_from(primary.child.id()).unwrap());
    assert_eq!((facts.vcpus, facts.kvm), (1, false));
    assert!(facts.version.0 >= 7 && facts.machine.starts_with("pc-"), "{facts:?}");
    assert_eq!((facts.memory.bytes, facts.memory.file_len), (MEMORY, MEMORY));
    assert_eq!(facts.memory.path, primary.memory);
    assert_eq!(
        facts.memory.file.ino,
        std::os::unix::fs::MetadataExt::ino(&fs::metadata(&primary.memory).unwrap())
    );
    assert_eq!((facts.nics, facts.disks), (vec![], vec![]));
}

#[test]
fn what_cannot_be_protected_is_refused_with_reason_and_mend() {
    if !has_qemu() || !host_needs::is_root() {
        return;
    }
    use RefusalKind::*;
    let disk_dir = tempfile::tempdir().unwrap();
    let disk = disk_dir.path().join("disk");
    fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let disk = format!("-drive file={},format=raw,if=virtio", disk.display());
    let object = |rest: &str| format!("-object memory-backend-{rest} -machine memory-backend=mem");
    let memfd = object("memfd,id=mem,size=16M,share=on");
    let private = object("file,id=mem,size=16M,mem-path=/dev/shm,share=off");
    let on_disk = disk_dir.path().join("memory");
    let on_disk = object(&format!("file,id=mem,size=16M,mem-path={},share=on", on_disk.display()));
    let second = "-object memory-backend-ram,id=other,size=1M -device ivshmem-plain,memdev=other,master=on";
    let balloon = "-device virtio-balloon-pci,free-page-reporting=on";
    let direct = format!("{disk},readonly=on,cache=none");
    let cases: [(Option<&str>, &str, &[RefusalKind], &str); 10] = [
        (Some(""), "", &[MemoryNotShared], "memory-backend-file"),
        (Some(&memfd), "", &[MemoryNotShared], "not a file that others can map"),
        (Some(&private), "", &[MemoryNotShared], "not shared"),
        (Some(&on_disk), "", &[MemoryNotShared], "on a disk"),
        (None, second, &[SeveralMemories, SeveralMemories], "2 pieces"),
        (None, &disk, &[WritableDisk], "accept_unreplicated_disks"),
        (None, &direct, &[DirectDisk], "cache.direct=off"),
        (None, "-nic user,model=e1000", &[ForeignNetwork], "does not pass through Holdfast"),
        (None, balloon, &[MemoryTakenAway], "free-page-reporting=off"),
        (None, "-incoming defer", &[State], "inmigrate"),
    ];
    for (memory, more, kinds, part) in cases {
        let found = refusals(memory, more, &InspectSettings::default());
        let found_kinds: Vec<_> = found.iter().map(|refusal| refusal.kind).collect();
        assert_eq!(found_kinds, kinds, "{memory:?} {more}: {found:?}");
        let told = InspectError::Refused(found).to_string();
        assert!(told.contains(part) && told.contains("mend: "), "{memory:?} {more}: {told}");
    }
    let accept = InspectSettings { accept_unreplicated_disks: true, ..InspectSettings::default() };
    assert_eq!(refusals(None, &disk, &accept), []);
    let harmless = format!("{disk},readonly=on -drive if=ide,media=cdrom -device virtio-balloon-pci");
    assert_eq!(refusals(None, &harmless, &InspectSettings::default()), []);
    let nameless = object("file,id=mem,size=16M,mem-path=/dev/shm,share=on");
    assert_eq!(refusals(Some(&nameless), "", &InspectSettings::default()), [], "a directory gives it a file");
}

/// A vhost-user backend that says as little as QEMU puts up with; ends with the connection.
fn serve_vhost_user(listener: UnixListener) {
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        while let Some((request, size)) = read_header(&mut stream) {
            stream.read_exact(&mut vec![0; size]).unwrap();
            // GET_FEATURES: VERSION_1, LOG_ALL, PROTOCOL_FEATURES; GET_PROTOCOL_FEATURES: MQ, LOG_SHMFD;
            // GET_VRING_BASE; GET_QUEUE_NUM.
            let answer: u64 = match request {
                1 => 1 << 32 | 1 << 26 | 1 << 30,
                15 => 0b11,
                11 => 0,
                17 => 1,
                _ => continue,
            };
            let mut message = [request, 5, 8].map(u32::to_le_bytes).concat();
            message.extend(answer.to_le_bytes());
            stream.write_all(&message).unwrap();
        }
    });
}

fn read_header(stream: &mut UnixStream) -> Option<(u32, usize)> {
    let mut header = [0; 12];
    stream.read_exact(&mut header).ok()?;
    let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
    Some((word(0), word(8) as usize))
}

/// OC-1: a vhost-user device of somebody else's is refused, also when QEMU names the socket otherwise.
#[test]
fn only_holdfasts_own_vhost_user_sockets_are_accepted() {
    if !has_qemu() || !host_needs::is_root() {
        return;
    }
    let dir = place();
    let ports: Vec<_> = ["port0", "port1"].iter().map(|name| dir.path().join(name)).collect();
    let mut argv = command(dir.path(), &dir.path().join("memory"));
    for (number, port) in ports.iter().enumerate() {
        serve_vhost_user(UnixListener::bind(port).unwrap());
        // The second by a detour, which is the same socket.
        let path = if number == 0 { port.clone() } else { dir.path().join("./port1") };
        argv.extend(words(&format!(
            "-chardev socket,id=c{number},path={} -netdev vhost-user,id=n{number},chardev=c{number} \
             -device virtio-net-pci,netdev=n{number},vectors=0,romfile=",
            path.display()
        )));
    }
    let mut primary = Primary::start_with(dir, argv);
    let both = InspectSettings { vhost_user_sockets: ports.clone(), ..InspectSettings::default() };
    let facts = primary.qemu.inspect(&both).unwrap();
    let netdevs: Vec<_> = facts.nics.iter().map(|nic| nic.netdev.as_str()).collect();
    assert_eq!(netdevs, ["n0", "n1"]);
    let one = InspectSettings { vhost_user_sockets: ports[..1].to_vec(), ..InspectSettings::default() };
    let InspectError::Refused(found) = primary.qemu.inspect(&one).unwrap_err() else { panic!("refused") };
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].kind, RefusalKind::ForeignVhost);
    assert!(found[0].found.contains("port1"), "{found:?}");
}

#[test]
fn a_guest_is_halted_saved_and_goes_on_again_and_again() {
    if !has_qemu() {
        return;
    }
    let mut primary = Primary::start();
    let qemu = &mut primary.qemu;
    for _ in 0..60 {
        qemu.prepare().unwrap();
        assert_eq!(qemu.stop().unwrap(), Stopped::ByUs);
        let state = qemu.save_devices().unwrap();
        qemu.cont().unwrap();
        assert!((10_000..2_000_000).contains(&state.len()), "{} bytes", state.len());
    }
    assert_eq!(qemu.run_state().unwrap(), RunState::Running);
}

#[test]
fn a_guest_that_somebody_else_paused_is_told_from_ours() {
    if !has_qemu() {
        return;
    }
    let mut primary = Primary::start();
    assert_eq!(primary.qemu.stop().unwrap(), Stopped::ByUs);
    assert_eq!(primary.qemu.run_state().unwrap(), RunState::Paused);
    assert_eq!(primary.qemu.stop().unwrap(), Stopped::Already);
    primary.qemu.cont().unwrap();
    assert_eq!(primary.qemu.poll_guest_event().unwrap(), None, "our own stops are no news");
    primary.qemu.qmp().execute("system_reset", Value::Null).unwrap();
    let event = primary.qemu.qmp().wait_event("RESET", LIMIT, |event| event.name == "RESET").unwrap();
    assert_eq!(event.name, "RESET");
}

#[test]
fn qemu_gets_its_own_settings_back() {
    if !has_qemu() {
        return;
    }
    let mut primary = Primary::start();
    let settings = |qemu: &mut Qemu| {
        let capabilities = qemu.qmp().execute("query-migrate-capabilities", Value::Null).unwrap();
        (capabilities, qemu.qmp().execute("query-migrate-parameters", Value::Null).unwrap())
    };
    let before = settings(&mut primary.qemu);
    primary.qemu.prepare().unwrap();
    assert_ne!(settings(&mut primary.qemu), before);
    primary.qemu.leave().unwrap();
    assert_eq!(settings(&mut primary.qemu), before);
    primary.qemu.stop().unwrap();
    primary.qemu.save_devices().unwrap();
    primary.qemu.cont().unwrap();
    assert_ne!(settings(&mut primary.qemu), before, "it may be protected again");
}

#[test]
fn memory_in_the_stream_is_noticed() {
    if !has_qemu() {
        return;
    }
    let dir = place();
    let mut random = vec![0; 80 << 20];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut random).unwrap();
    let filling = dir.path().join("filling");
    fs::write(&filling, random).unwrap();
    let mut argv = machine(dir.path());
    argv.extend(words(&format!(
        "-m 128M -device loader,force-raw=on,addr=0x100000,file={}",
        filling.display()
    )));
    let mut primary = Primary::start_with(dir, argv);
    primary.qemu.stop().unwrap();
    let fault = primary.qemu.save_devices().unwrap_err();
    assert!(matches!(fault, QemuError::State(StateError::TooLarge { .. })), "{fault}");
    assert!(fault.to_string().contains("memory-backend-file"), "{fault}");
    primary.qemu.cont().unwrap();
    assert_eq!(primary.qemu.run_state().unwrap(), RunState::Running);
}

/// CK-2: what a guest under QEMU writes is found, all of it, and nothing once it stands still.
#[test]
fn the_writes_of_a_real_guest_are_found() {
    if !has_qemu() || !host_needs::is_root() {
        return;
    }
    let mut primary = Primary::start();
    let facts = primary.qemu.inspect(&InspectSettings::default()).unwrap();
    wait_for_guest(&primary.memory);
    let mut tracker = UffdTracker::attach(facts.pid, facts.memory.file, facts.memory.file_len).unwrap();
    let mut set = PageSet::for_bytes(MEMORY);
    let deadline = Instant::now() + LIMIT;
    while set.len() < WRITTEN.end - WRITTEN.start {
        tracker.collect(&mut set).unwrap();
        assert!(Instant::now() < deadline, "only {set:?} found");
    }
    assert!(set.runs().eq(std::iter::once(WRITTEN)), "{set:?}");
    let mut scans: Vec<_> = (0..51).map(|_| tracker.collect(&mut set).unwrap().took).collect();
    scans.sort();
    println!("scan of {MEMORY} bytes: p50 {:?}, p95 {:?}", scans[25], scans[48]);
    primary.qemu.stop().unwrap();
    tracker.collect(&mut set).unwrap();
    primary.qemu.save_devices().unwrap();
    let before = fs::read(&primary.memory).unwrap();
    set.clear();
    tracker.collect(&mut set).unwrap();
    assert!(set.is_empty(), "{set:?}");
    primary.qemu.cont().unwrap();
    drop(tracker);
    let deadline = Instant::now() + LIMIT;
    while fs::read(&primary.memory).unwrap() == before {
        assert!(Instant::now() < deadline, "the guest does not go on once nobody tracks it");
    }
    assert_eq!(primary.qemu.run_state().unwrap(), RunState::Running);
}

#[test]
fn a_qemu_that_dies_is_noticed_at_every_step() {
    if !has_qemu() {
        return;
    }
    let mut primary = Primary::start();
    primary.qemu.prepare().unwrap();
    primary.kill();
    let closed = |fault: QemuError| assert!(matches!(fault, QemuError::Qmp(QmpError::Closed)), "{fault}");
    closed(primary.qemu.stop().unwrap_err());
    closed(primary.qemu.save_devices().unwrap_err());
    closed(primary.qemu.cont().unwrap_err());
    closed(primary.qemu.poll_guest_event().unwrap_err());
}
