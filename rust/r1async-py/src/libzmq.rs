//! pyzmq's own libzmq, called without Python: a burst of messages is read and filed by one call, without the GIL.
//!
//! The sockets are pyzmq's. What a message costs in Python is the objects made of it (identity, frame, view) and the
//! calls between them: more than receiving it.
#![expect(
    unsafe_code,
    reason = "a C library has no other calls; each is sound where it says why"
)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;

use libloading::Library;

/// `ZMQ_DONTWAIT`, as in libzmq's `zmq.h`; part of its ABI.
const DONTWAIT: c_int = 1;
const EAGAIN: c_int = 11;
const EINTR: c_int = 4;

/// `zmq_msg_t`: 64 bytes, as aligned as a pointer.
#[repr(C, align(8))]
struct Raw([u8; 64]);

type OnMessage = unsafe extern "C" fn(*mut Raw) -> c_int;
type OnMessageConst = unsafe extern "C" fn(*const Raw) -> c_int;

/// The calls that receiving takes.
#[derive(Debug)]
pub struct Libzmq {
    init: OnMessage,
    receive: unsafe extern "C" fn(*mut Raw, *mut c_void, c_int) -> c_int,
    data: unsafe extern "C" fn(*mut Raw) -> *mut c_void,
    size: unsafe extern "C" fn(*const Raw) -> usize,
    more: OnMessageConst,
    close: OnMessage,
    errno: unsafe extern "C" fn() -> c_int,
    text: unsafe extern "C" fn(c_int) -> *const c_char,
    /// Keeps the code of the calls above in memory.
    _library: Library,
}

impl Libzmq {
    /// The libzmq that the extension module at `path` is linked with: a process must not have two of them.
    ///
    /// # Errors
    /// The module cannot be loaded, or hides the calls: some builds link libzmq into it.
    pub fn of_module(path: &Path) -> Result<Self, libloading::Error> {
        // SAFETY: Python has loaded this very module, so that its initialisers have run: this only counts it once more.
        let library = unsafe { Library::new(path) }?;
        // SAFETY: names and signatures are those of `zmq.h` of libzmq 4.
        unsafe {
            Ok(Self {
                init: *library.get(b"zmq_msg_init\0")?,
                receive: *library.get(b"zmq_msg_recv\0")?,
                data: *library.get(b"zmq_msg_data\0")?,
                size: *library.get(b"zmq_msg_size\0")?,
                more: *library.get(b"zmq_msg_more\0")?,
                close: *library.get(b"zmq_msg_close\0")?,
                errno: *library.get(b"zmq_errno\0")?,
                text: *library.get(b"zmq_strerror\0")?,
                _library: library,
            })
        }
    }

    fn error(&self) -> std::io::Error {
        // SAFETY: both take and return plain values; the text is a constant of the library.
        unsafe {
            let number = (self.errno)();
            // libzmq has numbers of its own, for which the operating system has no text.
            let text = CStr::from_ptr((self.text)(number)).to_string_lossy();
            std::io::Error::other(format!("libzmq: {text} ({number})"))
        }
    }
}

/// One part of a message, or the room for it.
struct Part<'z> {
    zmq: &'z Libzmq,
    raw: Raw,
}

impl<'z> Part<'z> {
    fn empty(zmq: &'z Libzmq) -> Self {
        let mut raw = Raw([0; 64]);
        // SAFETY: it is as large as `zmq_msg_t`, and cannot fail.
        unsafe { (zmq.init)(&raw mut raw) };
        Self { zmq, raw }
    }

    /// Takes the next part; `false`: there is none yet. What it held before is given back.
    ///
    /// # Safety
    /// `socket` is an open socket of this library, used by this thread alone.
    unsafe fn receive(&mut self, socket: *mut c_void, flags: c_int) -> std::io::Result<bool> {
        // SAFETY: the message was initialised; the socket is the caller's promise.
        if unsafe { (self.zmq.receive)(&raw mut self.raw, socket, flags) } >= 0 {
            return Ok(true);
        }
        // SAFETY: it takes nothing.
        match unsafe { (self.zmq.errno)() } {
            EAGAIN => Ok(false),
            // A signal came, for which Python has a handler: its turn is now. Inside a message it has to wait.
            EINTR if flags == DONTWAIT => Ok(false),
            // SAFETY: as this call.
            EINTR => unsafe { self.receive(socket, flags) },
            _ => Err(self.zmq.error()),
        }
    }

    fn bytes(&mut self) -> &[u8] {
        // SAFETY: the message was initialised; its bytes are its own until it is received into or closed, which
        // takes it mutably. No bytes may have no address.
        unsafe {
            match (self.zmq.size)(&raw const self.raw) {
                0 => &[],
                size => {
                    let data = (self.zmq.data)(&raw mut self.raw);
                    std::slice::from_raw_parts(data.cast::<u8>(), size)
                }
            }
        }
    }

    fn has_more(&self) -> bool {
        // SAFETY: the message was initialised.
        unsafe { (self.zmq.more)(&raw const self.raw) != 0 }
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        // SAFETY: it was initialised and is closed once.
        unsafe { (self.zmq.close)(&raw mut self.raw) };
    }
}

/// Reads at most `at_most` messages of a ROUTER and gives each to `file`: its sender and its one frame, or no bytes if
/// it has more than one. Answers how many there were.
///
/// # Errors
/// libzmq refused: the socket was closed, or its context ended.
///
/// # Safety
/// `socket` is an open ROUTER of this library, used by this thread alone.
pub unsafe fn drain(
    zmq: &Libzmq,
    socket: *mut c_void,
    at_most: usize,
    mut file: impl FnMut(&[u8], &[u8]),
) -> std::io::Result<usize> {
    let (mut peer, mut frame) = (Part::empty(zmq), Part::empty(zmq));
    for count in 0..at_most {
        // SAFETY: the caller's promise, here and below.
        if !unsafe { peer.receive(socket, DONTWAIT) }? {
            return Ok(count);
        }
        let mut parts = 0;
        let mut more = peer.has_more();
        while more {
            unsafe { frame.receive(socket, 0) }?;
            more = frame.has_more();
            parts += 1;
        }
        file(peer.bytes(), if parts == 1 { frame.bytes() } else { &[] });
    }
    Ok(at_most)
}
