//! A way between two hosts that can be muted and cut.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

#[derive(Default)]
struct State {
    /// Nothing passes, and nothing is lost.
    mute_there: bool,
    mute_back: bool,
    /// Connections are refused and broken.
    cut: bool,
    open: Vec<TcpStream>,
}

/// Passes TCP connections on to a host.
#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    state: Arc<(Mutex<State>, Condvar)>,
}

impl Proxy {
    /// A proxy in front of `target`; its threads end with the process.
    pub(crate) fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
        let proxy = Self { address: listener.local_addr().expect("an address"), state: Arc::default() };
        let mine = proxy.clone();
        thread::spawn(move || {
            for near in listener.incoming() {
                let near = near.expect("a connection");
                if mine.state.0.lock().expect("no panic").cut {
                    continue;
                }
                let Ok(far) = TcpStream::connect(target) else { continue };
                mine.join(&near, &far);
            }
        });
        proxy
    }

    /// Lets nothing pass towards the host, from it, or both.
    pub(crate) fn mute(&self, there: bool, back: bool) {
        let mut state = self.state.0.lock().expect("no panic");
        (state.mute_there, state.mute_back) = (there, back);
        self.state.1.notify_all();
    }

    /// Breaks all connections, and refuses new ones until [`Proxy::heal`].
    pub(crate) fn cut(&self) {
        let mut state = self.state.0.lock().expect("no panic");
        state.cut = true;
        for socket in state.open.drain(..) {
            // It may be closed already.
            drop(socket.shutdown(Shutdown::Both));
        }
        self.state.1.notify_all();
    }

    /// Everything passes again.
    pub(crate) fn heal(&self) {
        let mut state = self.state.0.lock().expect("no panic");
        (state.mute_there, state.mute_back, state.cut) = (false, false, false);
        self.state.1.notify_all();
    }

    fn join(&self, near: &TcpStream, far: &TcpStream) {
        let copy = |socket: &TcpStream| socket.try_clone().expect("a descriptor");
        self.state.0.lock().expect("no panic").open.extend([copy(near), copy(far)]);
        for (from, to, there) in [(copy(near), copy(far), true), (copy(far), copy(near), false)] {
            let mine = self.clone();
            thread::spawn(move || mine.pass(from, to, there));
        }
    }

    fn pass(&self, mut from: TcpStream, mut to: TcpStream, there: bool) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = from.read(&mut buffer).unwrap_or(0);
            let mut state = self.state.0.lock().expect("no panic");
            while !state.cut && if there { state.mute_there } else { state.mute_back } {
                state = self.state.1.wait(state).expect("no panic");
            }
            let cut = state.cut;
            drop(state);
            if cut || count == 0 || to.write_all(&buffer[..count]).is_err() {
                // It may be closed already.
                drop(to.shutdown(Shutdown::Both));
                return;
            }
        }
    }
}
