use super::*;
use std::io::Write;
use std::os::unix::net::UnixListener;
use std::thread::{self, JoinHandle};

const LIMIT: Duration = Duration::from_secs(10);
const GREETING: &str =
    r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": []}}"#;

/// A monitor that greets, answers each command by `answer`, and ends when `answer` has nothing to say.
fn monitor(
    answer: impl FnMut(&Value) -> Option<String> + Send + 'static,
) -> (tempfile::TempDir, PathBuf, JoinHandle<()>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = thread::spawn(move || serve(&listener, answer));
    (dir, path, thread)
}

fn serve(listener: &UnixListener, mut answer: impl FnMut(&Value) -> Option<String>) {
    let (mut stream, _) = listener.accept().unwrap();
    writeln!(stream, "{GREETING}\r").unwrap();
    let mut reader = stream.try_clone().unwrap();
    let commands = serde_json::Deserializer::from_reader(&mut reader).into_iter::<Value>();
    for command in commands.map_while(Result::ok) {
        let said =
            if command["execute"] == "qmp_capabilities" { Some(ok(&command)) } else { answer(&command) };
        let Some(said) = said else { return };
        // A client that has seen enough closes the connection.
        if stream.write_all(said.as_bytes()).is_err() {
            return;
        }
    }
}

fn ok(command: &Value) -> String {
    format!("{}\r\n", json!({ "return": {}, "id": command["id"] }))
}

#[test]
fn a_command_is_answered_and_events_are_kept_for_whoever_asks() {
    let (_dir, path, thread) = monitor(|command| {
        let events = r#"{"event": "A", "data": {"n": 1}}
{"event": "B"}
{"event": "A", "data": {"n": 2}}
"#;
        Some(format!("{events}{}", json!({"return": command["arguments"], "id": command["id"]})) + "\n")
    });
    let mut qmp = Qmp::connect(&path, LIMIT).unwrap();
    assert_eq!(qmp.version().unwrap(), (7, 2, 22));
    assert_eq!(qmp.peer_pid().unwrap(), i32::try_from(std::process::id()).unwrap());
    assert_eq!(qmp.execute("echo", json!({"x": [1, 2]})).unwrap(), json!({"x": [1, 2]}));
    let second = qmp.take_event(|event| event.data["n"] == 2).unwrap();
    assert_eq!(second.name, "A");
    assert_eq!(qmp.wait_event("B", LIMIT, |event| event.name == "B").unwrap().data, Value::Null);
    assert_eq!(qmp.take_event(|event| event.name == "B"), None, "an event is taken once");
    drop(qmp);
    thread.join().unwrap();
}

#[test]
fn a_refusal_carries_the_words_of_qemu() {
    let (_dir, path, thread) = monitor(|command| {
        let error = json!({"class": "GenericError", "desc": "Nope"});
        Some(json!({"error": error, "id": command["id"]}).to_string() + "\n")
    });
    let mut qmp = Qmp::connect(&path, LIMIT).unwrap();
    let fault = qmp.execute("stop", Value::Null).unwrap_err();
    assert!(matches!(&fault, QmpError::Refused { class, .. } if class == "GenericError"));
    assert_eq!(fault.to_string(), "QEMU refused stop: Nope");
    drop(qmp);
    thread.join().unwrap();
}

#[test]
fn a_late_reply_does_not_answer_the_next_command() {
    let mut withheld = None;
    let (_dir, path, thread) = monitor(move |command| match &withheld {
        None => {
            withheld = Some(json!({"return": "late", "id": command["id"]}).to_string() + "\n");
            Some(String::new())
        }
        Some(late) => Some(format!("{late}{}\n", json!({"return": "right", "id": command["id"]}))),
    });
    let mut qmp = Qmp::connect(&path, LIMIT).unwrap();
    let fault = qmp.execute_within("slow", Value::Null, Duration::from_millis(20)).unwrap_err();
    assert!(matches!(&fault, QmpError::Timeout { what, .. } if what == "slow"), "{fault}");
    assert_eq!(qmp.execute("next", Value::Null).unwrap(), "right");
    drop(qmp);
    thread.join().unwrap();
}

#[test]
fn a_descriptor_goes_along_with_its_command() {
    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use std::io::IoSliceMut;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let thread = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        writeln!(stream, "{GREETING}").unwrap();
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).unwrap();
        let command: Value = serde_json::from_slice(&buffer[..read]).unwrap();
        stream.write_all(ok(&command).as_bytes()).unwrap();
        let mut space = nix::cmsg_space!(std::os::fd::RawFd);
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg::<UnixAddr>(
            stream.as_raw_fd(),
            &mut slices,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )
        .unwrap();
        let fds: Vec<_> = message
            .cmsgs()
            .unwrap()
            .flat_map(|control| match control {
                ControlMessageOwned::ScmRights(fds) => fds,
                _ => Vec::new(),
            })
            .collect();
        assert_eq!(fds.len(), 1);
        let mut pipe = reopen(fds[0]);
        pipe.write_all(b"through").unwrap();
        stream.write_all(b"{\"return\": {}, \"id\": 2}\n").unwrap();
    });
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let mut qmp = Qmp::connect(&path, LIMIT).unwrap();
    qmp.execute_fd("getfd", json!({"fdname": "x"}), writer.as_fd()).unwrap();
    drop(writer);
    thread.join().unwrap();
    let mut text = String::new();
    std::fs::File::from(reader).read_to_string(&mut text).unwrap();
    assert_eq!(text, "through");

    /// The received descriptor as a file of its own, the received one closed.
    fn reopen(fd: std::os::fd::RawFd) -> std::fs::File {
        let file = std::fs::OpenOptions::new().write(true).open(format!("/proc/self/fd/{fd}")).unwrap();
        nix::unistd::close(fd).unwrap();
        file
    }
}

/// RB-1: whatever comes instead of QMP is an error, never a crash, a hang or memory without bound.
#[test]
fn what_is_not_qmp_ends_in_an_error() {
    let endless = "x".repeat(LINE_LIMIT + 70_000);
    let deep = "[".repeat(100_000) + "\n";
    for junk in [
        "HTTP/1.1 400 Bad Request\n",
        "{}\n",
        "[]\n",
        "null\n",
        "{\"return\": {}}\n",
        "{\"return\": {}, \"id\": 99}\n",
        "{\"error\": 5, \"id\": \"x\"}\n",
        "\u{0}\u{1}\n",
        &deep,
        &endless,
    ] {
        let junk_owned = junk.to_owned();
        let (_dir, path, thread) = monitor(move |_| Some(junk_owned.clone()));
        let mut qmp = Qmp::connect(&path, LIMIT).unwrap();
        let fault = qmp.execute("x", Value::Null).unwrap_err();
        assert!(matches!(fault, QmpError::Malformed { .. }), "{:.40}: {fault}", junk);
        drop(qmp);
        thread.join().unwrap();
    }
}

/// RB-1: events that nobody asks for are bounded.
#[test]
fn unread_events_are_dropped_oldest_first() {
    let (_dir, path, thread) = monitor(|command| {
        let flood: String = (0..3000).map(|n| format!("{}\n", json!({"event": "E", "data": n}))).collect();
        Some(flood + &ok(command))
    });
    let mut qmp = Qmp::connect(&path, LIMIT).unwrap();
    qmp.execute("x", Value::Null).unwrap();
    assert_eq!(qmp.events.len(), EVENT_LIMIT);
    assert_eq!(qmp.events.back().unwrap().data, 2999);
    drop(qmp);
    thread.join().unwrap();
}

#[test]
fn a_monitor_that_ends_is_told_from_one_that_hangs() {
    let (_dir, path, thread) = monitor(|_| None);
    let mut qmp = Qmp::connect(&path, LIMIT).unwrap();
    assert!(matches!(qmp.execute("quit", Value::Null), Err(QmpError::Closed)));
    thread.join().unwrap();
    let (_dir, path, thread) = monitor(|_| Some(String::new()));
    let mut qmp = Qmp::connect(&path, LIMIT).unwrap();
    let short = Duration::from_millis(20);
    assert!(matches!(qmp.execute_within("x", Value::Null, short), Err(QmpError::Timeout { .. })));
    assert!(matches!(qmp.wait_event("E", short, |_| true), Err(QmpError::Timeout { .. })));
    drop(qmp);
    thread.join().unwrap();
}

#[test]
fn a_wrong_or_busy_socket_says_how_to_mend_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let fault = Qmp::connect(&path, LIMIT).unwrap_err();
    assert!(fault.to_string().contains("-qmp unix:"), "{fault}");
    let _silent = UnixListener::bind(&path).unwrap();
    let fault = Qmp::connect(&path, Duration::from_millis(20)).unwrap_err();
    assert!(fault.to_string().contains("socket of its own"), "{fault}");
    let long = dir.path().join("x".repeat(200));
    assert!(matches!(Qmp::connect(&long, LIMIT), Err(QmpError::Connect { .. })));
}
