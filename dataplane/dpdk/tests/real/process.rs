//! One start in a process, several processes side by side, and ends without a goodbye.

use crate::support::{Memory, Part, Station, alone, device, open, part, scratch, start, veth, wire};
use holdfast_dpdk::{
    BURST, Eal, EalError, Mbuf, Pool, PoolError, Port, PortConfig, PortError, RegisteredThread,
};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Write};
use std::thread;

fn affinity() -> CpuSet {
    sched_getaffinity(Pid::from_raw(0)).expect("one's own affinity")
}

#[test]
fn a_second_start_is_an_error_and_no_crash() {
    alone(Memory::Ordinary, || {
        let checked = wire("tap", |raw| raw.iface = Some("hftap".to_owned()));
        let eal = start(&checked, Memory::Ordinary);
        assert!(matches!(Eal::init(&[]), Err(EalError::SecondStart)));
        assert!(Eal::version().starts_with("DPDK 2"), "{}", Eal::version());
        Pool::new(eal, 1024, 2048).expect("the first start still stands");
    });
}

#[test]
fn the_starting_thread_and_those_it_makes_keep_the_whole_machine() {
    alone(Memory::Ordinary, || {
        let before = affinity();
        let checked = wire("tap", |raw| raw.iface = Some("hftap".to_owned()));
        let eal = start(&checked, Memory::Ordinary);
        assert_eq!(affinity(), before);
        let other = thread::spawn(move || {
            let _registered = RegisteredThread::new(eal).expect("a slot");
            affinity()
        });
        assert_eq!(other.join().expect("a thread"), before);
        // Nor does any thread of DPDK's own sit on a part of it alone.
        for task in std::fs::read_dir("/proc/self/task").expect("threads") {
            let task = task.expect("a thread").file_name().into_string().expect("a number");
            let pid = Pid::from_raw(task.parse().expect("a number"));
            assert_eq!(sched_getaffinity(pid).expect("an affinity"), before, "thread {task}");
        }
    });
}

#[test]
fn a_start_without_its_huge_pages_says_how_to_get_them() {
    alone(Memory::Ordinary, || {
        let arguments = ["--in-memory", "-m1000000", "--no-pci", "--no-telemetry", "--file-prefix=holdfast"];
        let fault = Eal::init(&arguments.map(str::to_owned)).expect_err("no host has as many");
        assert!(
            fault.to_string().contains("mend: reserve huge pages with `holdfast check-host --apply`"),
            "{fault}"
        );
        assert!(matches!(Eal::init(&[]), Err(EalError::SecondStart)));
    });
}

#[test]
fn frames_go_back_to_their_pool_on_any_thread_and_an_empty_one_gives_none() {
    alone(Memory::Ordinary, || {
        let checked = wire("tap", |raw| raw.iface = Some("hftap".to_owned()));
        let eal = start(&checked, Memory::Ordinary);
        assert!(matches!(Pool::new(eal, 3, 2048), Err(PoolError::TooSmall { .. })));
        assert!(matches!(Pool::new(eal, 1024, u16::MAX), Err(PoolError::FrameTooLarge { .. })));
        let fault = Pool::new(eal, 1 << 22, 9000).expect_err("that is 40 GB");
        assert!(fault.to_string().contains("memory_mb"), "{fault}");

        let pool = Pool::new(eal, 256, 2048).expect("a pool");
        assert_eq!((pool.frames(), pool.frame_max(), pool.free_frames()), (256, 2048, 256));
        assert!(pool.alloc(2049).is_none());
        let frames: Vec<Mbuf> = std::iter::from_fn(|| pool.alloc(60)).collect();
        assert_eq!((frames.len(), pool.free_frames()), (256, 0));
        let mut burst = arrayvec::ArrayVec::<Mbuf, BURST>::new();
        assert!(!pool.alloc_burst(1, 60, &mut burst) && burst.is_empty());

        thread::spawn(move || {
            let _registered = RegisteredThread::new(eal).expect("a slot");
            let _twice = RegisteredThread::new(eal).expect("it has one");
            drop(frames);
            assert_eq!(pool.free_frames(), 256);
            assert!(pool.alloc_burst(BURST, 1000, &mut burst));
            assert!(!pool.alloc_burst(1, 1000, &mut burst), "there is no room for more");
            assert!(burst.iter().all(|frame| frame.len() == 1000));
            assert_eq!(pool.free_frames(), 256 - BURST);
            drop(burst);
            assert_eq!(pool.free_frames(), 256);
        })
        .join()
        .expect("a thread");
        let free = pool.free_frames();
        let had = std::iter::from_fn(|| pool.alloc(60)).collect::<Vec<_>>().len();
        assert!(
            had == free && free < 256,
            "{had} of {free}: what lies in another thread's cache is not counted"
        );
    });
}

#[test]
fn a_frame_grows_and_shrinks_within_its_buffer_alone() {
    alone(Memory::Ordinary, || {
        let checked = wire("tap", |raw| raw.iface = Some("hftap".to_owned()));
        let pool = Pool::new(start(&checked, Memory::Ordinary), 256, 2048).expect("a pool");
        let mut frame = pool.alloc(100).expect("a frame");
        frame.bytes_mut().fill(7);
        assert!(frame.room() >= 2048);
        assert!(frame.set_len(2048));
        assert_eq!(frame.bytes()[..100], [7; 100]);
        assert_eq!(frame.bytes_mut().len(), 2048);
        assert!(!frame.set_len(frame.room() + 1) && !frame.set_len(1 << 20));
        assert_eq!(frame.len(), 2048);
        assert!(frame.set_len(0) && frame.is_empty());
    });
}

#[test]
fn a_port_that_cannot_be_opened_says_why_and_how_to_mend_it() {
    alone(Memory::Ordinary, || {
        veth("hfours", "hftheirs");
        let none = wire("af_packet", |raw| raw.iface = Some("nosuch".to_owned()));
        let taken = wire("tap", |raw| raw.iface = Some("hfours".to_owned()));
        let card = wire("pci", |raw| raw.address = Some("0000:7f:1f.7".to_owned()));
        let folder = wire("memif", |raw| {
            raw.role = Some("server".to_owned());
            raw.socket = Some("/nonexistent/folder/m.sock".to_owned());
        });
        let fine = wire("af_packet", |raw| raw.iface = Some("hfours".to_owned()));
        let eal = start(&card, Memory::Ordinary);
        let pool = Pool::new(eal, 2048, 2048).expect("a pool");
        for (checked, words) in
            [(&none, "ip link"), (&taken, "must not be there yet"), (&card, "vfio-pci"), (&folder, "folder")]
        {
            let fault =
                Port::open(eal, &device(checked), pool, &PortConfig::default()).expect_err("it cannot be");
            let text = fault.to_string();
            println!("{text}\n");
            assert!(text.contains("mend: ") && text.contains(words), "{text}");
        }
        let faults = [
            PortConfig { rx_queues: 0, ..PortConfig::default() },
            PortConfig { rx_queues: 64, ..PortConfig::default() },
            PortConfig { rx_ring: 2048, ..PortConfig::default() },
            PortConfig { mtu: Some(2040), ..PortConfig::default() },
            PortConfig { mtu: Some(1), ..PortConfig::default() },
        ];
        for config in faults {
            let fault = Port::open(eal, &device(&fine), pool, &config).expect_err("it cannot be");
            println!("{fault}\n");
            assert!(matches!(fault, PortError::Config { .. }), "{fault}");
        }
        // None of it is left: the same interface can still be opened, and not twice.
        let opened = Port::open(eal, &device(&fine), pool, &PortConfig::default()).expect("an open port");
        assert_eq!(pool.free_frames(), 2048, "net_af_packet holds no frames");
        drop(opened);
    });
}

/// Both processes have a port and huge pages at the same time; the first echoes to the second's station.
#[test]
fn several_processes_run_side_by_side_on_huge_pages() {
    alone(Memory::Huge, || side_by_side(Memory::Huge));
}

#[test]
fn several_processes_run_side_by_side_without_huge_pages() {
    alone(Memory::Ordinary, || side_by_side(Memory::Ordinary));
}

fn side_by_side(memory: Memory) {
    let tap = part().unwrap_or_else(|| "hftap0".to_owned());
    let checked = wire("tap", |raw| raw.iface = Some(tap.clone()));
    let mut opened = open(&checked, memory);
    let other = part().is_none().then(|| Part::start("hftap1"));
    thread::scope(|scope| {
        let station = Station::on(&tap);
        scope.spawn(move || station.exchange(200, 1514));
        opened.echo(200);
    });
    if let Some(other) = other {
        other.succeed();
    }
}

/// What a process that was killed leaves behind does not keep the next one from its port.
#[test]
fn a_port_opens_again_after_its_process_was_killed() {
    alone(Memory::Ordinary, || {
        let (socket, pipe) = (scratch("sock"), scratch("pipe"));
        let kinds = |kind: &str| {
            wire(kind, |raw| match kind {
                "memif" => {
                    raw.role = Some("server".to_owned());
                    raw.socket = socket.to_str().map(str::to_owned);
                }
                _ => raw.iface = Some("hfours".to_owned()),
            })
        };
        if let Some(part) = part() {
            let (kind, end) = part.split_once(' ').expect("two words");
            let opened = open(&kinds(kind), Memory::Ordinary);
            if end == "last" {
                return drop(opened);
            }
            // The parent waits for the word, then kills.
            let mut word = std::fs::OpenOptions::new().write(true).open(&pipe).expect("a pipe");
            word.write_all(b"open\n").expect("the parent reads");
            loop {
                thread::park();
            }
        }
        for kind in ["tap", "af_packet", "af_xdp", "memif"] {
            if kind == "af_packet" {
                veth("hfours", "hftheirs");
            }
            let _gone = std::fs::remove_file(&pipe);
            nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
            let mut first = Part::start(&format!("{kind} first"));
            let mut line = String::new();
            BufReader::new(std::fs::File::open(&pipe).expect("a pipe")).read_line(&mut line).expect("a word");
            assert_eq!(line, "open\n", "{kind}");
            first.kill();
            Part::start(&format!("{kind} last")).succeed();
        }
        std::fs::remove_file(&pipe).expect("our own pipe");
        assert!(!socket.exists());
    });
}
