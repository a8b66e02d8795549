//! A driver for tests and fuzzing: one socket that receives what a script says and
//! keeps what is sent. No system calls, no time; the same script gives the same run.

use super::memory::{Memory, MemoryDevice};
use super::metacontext::{Context, Selected};
use super::transmission::{self, End, Session};
use crate::io::{Driver, FileId, Io, Op, OpId, Outcome, Output, Part, Reactor, Wake};
use bytes::Bytes;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// What happens at the socket, one entry a receive; then the stream ends.
#[derive(Debug, Default)]
pub struct Script {
    /// Chunks to receive.
    pub receive: VecDeque<Bytes>,
    /// What was sent.
    pub sent: Vec<u8>,
    /// Sends fail after so many bytes.
    pub send_limit: Option<usize>,
    /// Sends complete only when nothing else happens any more.
    pub slow_sends: bool,
    /// Bytes received before the first slow send completed.
    pub received_before_send: usize,
    /// Bytes received.
    pub received: usize,
    /// The most that the driver was asked to receive at once.
    pub receive_size_max: usize,
}

struct ScriptDriver {
    script: Rc<RefCell<Script>>,
    /// Operations that complete at the next wait.
    later: VecDeque<(OpId, Outcome)>,
    /// Slow sends.
    sends: VecDeque<(OpId, Outcome)>,
}

struct NoWake;

impl Wake for NoWake {
    fn wake(&self) {}
}

impl Driver for ScriptDriver {
    fn submit(&mut self, id: OpId, op: Op) -> Option<Outcome> {
        let mut script = self.script.borrow_mut();
        let outcome = match op {
            Op::Recv { len, mut into, .. } => {
                script.receive_size_max = script.receive_size_max.max(len);
                let mut chunk = script.receive.pop_front().unwrap_or_default();
                if chunk.len() > len {
                    let rest = chunk.split_off(len);
                    script.receive.push_front(rest);
                }
                script.received += chunk.len();
                into.extend_from_slice(&chunk);
                Ok(Output::Bytes(into))
            }
            Op::Send { data, .. } => {
                for part in data {
                    let Part::Bytes(bytes) = part else { unreachable!("nothing is shown here") };
                    script.sent.extend_from_slice(&bytes);
                }
                let outcome = match script.send_limit {
                    Some(limit) if script.sent.len() > limit => Err(io::ErrorKind::BrokenPipe.into()),
                    _ => Ok(Output::None),
                };
                if script.slow_sends {
                    self.sends.push_back((id, outcome));
                    return None;
                }
                outcome
            }
            Op::Sleep { .. } | Op::Close { .. } => Ok(Output::None),
            _ => Err(io::ErrorKind::Unsupported.into()),
        };
        self.later.push_back((id, outcome));
        None
    }

    fn adopt(&mut self, _: OwnedFd) -> io::Result<FileId> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn wait(&mut self, _: Option<Duration>, done: &mut Vec<(OpId, Outcome)>) {
        if let Some(next) = self.later.pop_front() {
            done.push(next);
        } else if let Some(send) = self.sends.pop_front() {
            let mut script = self.script.borrow_mut();
            if script.received_before_send == 0 {
                script.received_before_send = script.received;
            }
            done.push(send);
        }
    }

    fn waker(&self) -> Arc<dyn Wake> {
        Arc::new(NoWake)
    }

    fn name(&self) -> &'static str {
        "scripted"
    }

    fn boot_id(&self) -> [u8; 16] {
        [0; 16]
    }
}

/// Both kinds of metadata context, for a volume with a snapshot `one`.
#[must_use]
pub fn contexts() -> Vec<Selected> {
    vec![
        Selected { id: 1, context: Context::Allocation },
        Selected { id: 2, context: Context::Delta("one".to_owned()) },
    ]
}

/// Runs a connection over a script to its end.
pub fn run(memory: &Arc<Memory>, session: Session, script: Script) -> (End, Script) {
    let script = Rc::new(RefCell::new(script));
    let mut reactor = Reactor::new(Box::new(ScriptDriver {
        script: Rc::clone(&script),
        later: VecDeque::new(),
        sends: VecDeque::new(),
    }));
    let io: Io = reactor.io();
    let device = Rc::new(MemoryDevice::new(Arc::clone(memory), io.clone()));
    let weak = Rc::downgrade(&device);
    let hung_up = Rc::new(Cell::new(false));
    let hang_up = Rc::clone(&hung_up);
    let end = reactor.block_on(transmission::serve(
        io,
        FileId(0),
        device,
        session,
        Rc::new(move || hang_up.set(true)),
    ));
    assert!(hung_up.get(), "the socket was left open");
    assert_eq!(weak.strong_count(), 0, "the device is still held");
    let script = script.take();
    (end, script)
}
