//! The far end of a connection: the program that a sender starts at the receiver's store.
//!
//! One thread reads frames and deals them to the channels, each of which has a thread that
//! serves it; another one sends heartbeats. How much a channel may have waiting is the window,
//! so a slow volume never keeps the others from hearing their messages.

use super::link::{HEARTBEAT, SILENCE_MAX};
use super::receiver::{self, FarStore, Port};
use super::wire::{Body, Frame, Greet, Message, WINDOW, broke};
use crate::error::{Error, ErrorKind, Result};
use bytes::{Buf, Bytes};
use futures::FutureExt;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// Channels at the same time.
const CHANNELS_MAX: usize = 1024;

/// An input that gives up when nothing comes for too long.
pub struct Patient(pub File);

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let timeout = rustix::event::Timespec { tv_sec: SILENCE_MAX.as_secs().cast_signed(), tv_nsec: 0 };
        let mut fds = [rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(0) => Err(std::io::ErrorKind::TimedOut.into()),
            Ok(_) => self.0.read(buffer),
            Err(error) => Err(error.into()),
        }
    }
}

/// Where a channel's frames go, and how many bytes of data wait there.
type Inbox = (Sender<(Uuid, Body)>, Arc<AtomicU64>);

/// What the threads share.
struct Shared<W> {
    output: Mutex<W>,
    start: Instant,
    said: AtomicU64,
    ended: AtomicBool,
}

impl<W: Write> Shared<W> {
    fn say(&self, frame: &Frame) -> Result<()> {
        let said = frame.write(&mut *self.output.lock().unwrap_or_else(PoisonError::into_inner));
        self.said.store(self.millis(), Ordering::Relaxed);
        said
    }

    fn millis(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn beat(&self) {
        while !self.ended.load(Ordering::Relaxed) {
            std::thread::sleep(HEARTBEAT / 4);
            let quiet = self.millis().saturating_sub(self.said.load(Ordering::Relaxed));
            if Duration::from_millis(quiet) >= HEARTBEAT
                && self.say(&Frame::of_connection(Body::Heartbeat)).is_err()
            {
                return;
            }
        }
    }
}

/// Serves a connection until the other side is gone.
///
/// # Errors
/// What is wrong with the connection; what is wrong with a session is told to its sender.
pub fn serve<S, W>(store: &S, identity: Uuid, mut input: impl Read, output: W) -> Result<()>
where
    S: FarStore + Sync,
    W: Write + Send,
{
    let (start, said, ended) = (Instant::now(), AtomicU64::new(0), AtomicBool::new(false));
    let shared = Shared { output: Mutex::new(output), start, said, ended };
    shared.say(&Frame::of_connection(Body::Message(Message::Greet(Greet::of(identity)))))?;
    std::thread::scope(|scope| {
        scope.spawn(|| shared.beat());
        let served = hear(store, identity, &mut input, &shared, scope);
        if let Err(error) = &served {
            // It may be gone.
            let _ = shared.say(&Frame::of_connection(Body::Message(Message::failure(error))));
        }
        shared.ended.store(true, Ordering::Relaxed);
        served
    })
}

fn check_greeting(greet: &Greet, identity: Uuid) -> Result<()> {
    greet.version()?;
    if greet.path.contains(&identity) {
        return Err(Error::conflict("a store would feed itself, over the stores between")
            .hint("replicate to a store that is not on the way from the origin"));
    }
    Ok(())
}

fn hear<'scope, S, W>(
    store: &'scope S,
    identity: Uuid,
    input: &mut impl Read,
    shared: &'scope Shared<W>,
    scope: &'scope std::thread::Scope<'scope, '_>,
) -> Result<()>
where
    S: FarStore + Sync,
    W: Write + Send,
{
    match Frame::read(input)?.map(|frame| frame.body) {
        Some(Body::Message(Message::Greet(greet))) => check_greeting(&greet, identity)?,
        None => return Ok(()),
        Some(_) => return Err(Error::invalid("the other side does not begin with a greeting")),
    }
    let mut channels: HashMap<Uuid, Inbox> = HashMap::new();
    while let Some(frame) = Frame::read(input)? {
        if frame.channel.is_nil() {
            continue;
        }
        if !channels.contains_key(&frame.channel) {
            if !matches!(
                frame.body,
                Body::Message(Message::Open { .. } | Message::Close { .. } | Message::Ask { .. })
            ) {
                // Of a channel that has ended.
                continue;
            }
            if channels.len() >= CHANNELS_MAX {
                return Err(Error::invalid("the other side opens more sessions than it may"));
            }
            let (sender, frames) = channel();
            let waiting = Arc::new(AtomicU64::new(0));
            let port = ChannelPort { shared, channel: frame.channel, frames, waiting: Arc::clone(&waiting) };
            scope.spawn(move || run_channel(store, port));
            channels.insert(frame.channel, (sender, waiting));
        }
        let leaves = matches!(frame.body, Body::Message(Message::Leave));
        if let Some((sender, waiting)) = channels.get(&frame.channel) {
            if let Body::Data(data) = &frame.body {
                let len = data.len() as u64;
                // One frame may pass the window when nothing else waits.
                let before = waiting.fetch_add(len, Ordering::Relaxed);
                if before > 0 && before + len > WINDOW {
                    return Err(Error::invalid("the other side sends more than was asked for"));
                }
            }
            // A channel that has ended hears nothing any more.
            let _ = sender.send((frame.epoch, frame.body));
        }
        if leaves {
            channels.remove(&frame.channel);
        }
    }
    Ok(())
}

fn run_channel<S: FarStore, W: Write + Send>(store: &S, mut port: ChannelPort<'_, W>) {
    let (shared, channel) = (port.shared, port.channel);
    // Store and port wait by themselves, so the future never does.
    let served = catch_unwind(AssertUnwindSafe(|| receiver::run(store, &mut port).now_or_never()));
    let error = match served {
        Ok(Some(Ok(()))) => return,
        Ok(Some(Err(error))) => error,
        Ok(None) | Err(_) => Error::new(ErrorKind::Io, "the program met a fault of its own"),
    };
    tracing::debug!("a session's channel ended: {error}");
    let failed = Body::Message(Message::failure(&error));
    // The sender may be gone.
    let _ = shared.say(&Frame { channel, epoch: Uuid::nil(), body: failed });
}

/// A channel's port on its thread.
struct ChannelPort<'a, W> {
    shared: &'a Shared<W>,
    channel: Uuid,
    frames: Receiver<(Uuid, Body)>,
    /// Bytes of data that were not taken yet.
    waiting: Arc<AtomicU64>,
}

impl<W: Write> ChannelPort<'_, W> {
    /// Bytes of data have left the queue.
    fn took(&self, epoch: Uuid, bytes: usize) -> Result<()> {
        let bytes = bytes as u64;
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        let taken = Body::Message(Message::Taken { bytes });
        self.shared.say(&Frame { channel: self.channel, epoch, body: taken })
    }
}

impl<W: Write + Send> Port for ChannelPort<'_, W> {
    async fn next(&mut self) -> Option<(Uuid, Body)> {
        let (epoch, body) = self.frames.recv().ok()?;
        if let Body::Data(data) = &body {
            self.took(epoch, data.len()).ok()?;
        }
        Some((epoch, body))
    }

    async fn say(&mut self, epoch: Uuid, message: Message) -> Result<()> {
        self.shared.say(&Frame { channel: self.channel, epoch, body: Body::Message(message) })
    }

    async fn stream(&mut self, epoch: Uuid) -> Box<dyn Read + Send + '_> {
        Box::new(SetStream { port: self, epoch, rest: Bytes::new(), over: false })
    }
}

/// The stream of a set, as its frames come.
struct SetStream<'a, 'b, W> {
    port: &'a mut ChannelPort<'b, W>,
    epoch: Uuid,
    rest: Bytes,
    over: bool,
}

impl<W: Write> Read for SetStream<'_, '_, W> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.rest.is_empty() && !self.over {
            let (epoch, body) = self.port.frames.recv().map_err(|_| std::io::Error::other(broke()))?;
            if epoch != self.epoch {
                let error = Error::conflict("a chunk of another role epoch than its set");
                return Err(std::io::Error::other(error));
            }
            match body {
                Body::Data(data) => {
                    self.port.took(epoch, data.len()).map_err(std::io::Error::other)?;
                    self.rest = data;
                }
                Body::Message(Message::End { broken: false }) => self.over = true,
                _ => return Err(std::io::Error::other(broke())),
            }
        }
        let count = self.rest.len().min(buffer.len());
        self.rest.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
