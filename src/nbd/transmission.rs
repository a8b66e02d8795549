//! The transmission phase of one connection, on the thread of its device.
//!
//! One task drives a connection: it receives requests, starts each of them, and sends
//! what replies are ready, one vectored send at a time. A request that needs no wait is
//! done before the next one is looked at; any other goes on as a task of its own, so
//! requests run beside each other and replies go out in whatever order they come.
//!
//! Invariants:
//! - At most [`IN_FLIGHT_MAX`] requests and [`IN_FLIGHT_BYTES_MAX`] bytes of payload are
//!   between their receipt and the send of their reply; the connection receives
//!   nothing more until there is room. So a client that takes no replies stalls itself.
//! - However a connection ends, its requests run to their end first, and what they held
//!   is gone when [`serve`] returns.
//! - A client that leaves a request or replies half done for longer than its patience is
//!   cut off ([`Terms`]).
//! - What a client sends is checked before the device sees it.

pub use super::command::PAYLOAD_SIZE_MAX;
use super::command::{Answer, Command, Export, check, perform, status_size_max};
use super::handshake::Choice;
use super::intake::Intake;
use super::metacontext::Selected;
use super::outbox::{Outbox, Share};
use super::proto::{Request, cmd};
use super::reply::{Refusal, Reply};
use super::terms::{Debt, Part, Terms};
use crate::engine::device::Device;
use crate::io::{FileId, Io};
use bytes::{Bytes, BytesMut};
use futures::future::{Either, join, select};
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// A write of more than that is not even skipped: the client is cut off.
const SKIP_SIZE_MAX: u32 = 4 * PAYLOAD_SIZE_MAX;
/// Requests of one connection between receipt and reply.
pub const IN_FLIGHT_MAX: usize = 512;
/// Bytes of payload of those requests.
pub const IN_FLIGHT_BYTES_MAX: u64 = 64 << 20;
/// Reads of up to so many bytes are tried without a task.
const READ_NOW_MAX: u32 = 1 << 20;
/// What one receive asks for; it doubles from the one to the other while it fills.
const RECEIVE_SIZE_MIN: usize = 32 << 10;
const RECEIVE_SIZE_MAX: usize = 256 << 10;
/// A payload from here on has a buffer of its own.
const BULK_PAYLOAD_MIN: u32 = 32 << 10;
/// What one send carries: below the kernel's limit of 1024 pieces.
const SEND_PARTS_MAX: usize = 512;
const SEND_SIZE_MAX: usize = 2 << 20;
/// So many replies are sent though more requests lie ready: the client has something to do
/// while those are served.
const EARLY_REPLIES: usize = 8;
/// Receives that were done at once, after which the other connections get their turn.
const INLINE_RECEIVES_MAX: u32 = 8;
/// How long a client may take its last replies once the device has gone.
const CLOSE_GRACE: Duration = Duration::from_secs(5);

/// What the handshake leaves to the transmission phase.
#[derive(Debug)]
pub struct Session {
    /// Structured replies were negotiated.
    pub structured: bool,
    /// The metadata contexts for `BLOCK_STATUS`.
    pub contexts: Vec<Selected>,
    /// The reply that ends the handshake, still to be sent.
    pub greeting: Bytes,
    /// What the client sent after its last option.
    pub leftover: BytesMut,
}

impl Session {
    /// What was negotiated, and the bytes around it.
    #[must_use]
    pub fn new(choice: &Choice, greeting: Bytes, leftover: BytesMut) -> Self {
        Self { structured: choice.structured, contexts: choice.contexts.clone(), greeting, leftover }
    }
}

/// Why a connection stopped receiving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The client said so, with `DISC`.
    Disconnect,
    /// The stream ended, or failed.
    Gone,
    /// The device went away, or a reply could not be sent.
    Stopped,
    /// A request had no magic number.
    BadMagic,
    /// A payload was far beyond the limit.
    TooBig,
}

/// Drives a connection to its end and closes the socket, however long that takes.
///
/// `hang_up` shuts the socket down in both directions, so that whatever is under way on
/// it ends; it is called at least once.
pub async fn serve(
    io: Io,
    socket: FileId,
    device: Rc<dyn Device>,
    session: Session,
    hang_up: Rc<dyn Fn()>,
) -> End {
    serve_on(Terms::default(), io, socket, device, session, hang_up).await
}

/// The same on other terms.
pub async fn serve_on(
    terms: Terms,
    io: Io,
    socket: FileId,
    device: Rc<dyn Device>,
    session: Session,
    hang_up: Rc<dyn Fn()>,
) -> End {
    let closed = device.closed();
    let read_only = device.read_only();
    let line = Rc::new(Line {
        io: io.clone(),
        socket,
        export: Export { device, read_only, structured: session.structured, contexts: session.contexts },
        outbox: RefCell::new(Outbox::default()),
        held: Cell::new(Share::default()),
        part: Part::new(terms.budget),
        debt: Debt::default(),
        waker: Cell::new(None),
        starting: Cell::new(false),
        received: Cell::new(false),
        stopping: Cell::new(false),
    });
    line.outbox.borrow_mut().push(session.greeting);
    let end = {
        let watch = async {
            closed.await;
            line.stop();
            io.sleep(CLOSE_GRACE).await;
            hang_up();
            std::future::pending::<()>().await;
        };
        let watch = async {
            let lost = async {
                let Some(patience) = terms.patience else { return };
                loop {
                    io.sleep(Debt::look_every(patience)).await;
                    if line.debt.look() {
                        tracing::warn!("a client left a request or replies half done; cutting it off");
                        line.stop();
                        hang_up();
                        std::future::pending::<()>().await;
                    }
                }
            };
            join(watch, lost).await;
        };
        let receive = async {
            let end = Receiver::new(&line, session.leftover).run().await;
            line.received.set(true);
            line.export.device.leave();
            line.wake();
            end
        };
        let work = join(receive, send_replies(&line, &*hang_up));
        match select(pin!(watch), pin!(work)).await {
            Either::Left(((), _)) => End::Stopped,
            Either::Right(((end, ()), _)) => end,
        }
    };
    hang_up();
    io.close(socket);
    end
}

/// One connection, as its task and those of its requests see it.
struct Line {
    io: Io,
    socket: FileId,
    export: Export,
    outbox: RefCell<Outbox>,
    held: Cell<Share>,
    part: Part,
    /// What keeps the connection waiting for the client.
    debt: Debt,
    /// The connection's task, if it waits for one of its own conditions.
    waker: Cell<Option<Waker>>,
    /// The connection's task is starting a request and will look at the outbox itself.
    starting: Cell<bool>,
    /// Nothing more will be received.
    received: Cell<bool>,
    /// Nothing more shall be received.
    stopping: Cell<bool>,
}

impl Line {
    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn stop(&self) {
        self.stopping.set(true);
        self.wake();
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        std::future::poll_fn(|context| {
            if condition() {
                return Poll::Ready(());
            }
            self.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }

    fn hold(&self, bytes: u64) {
        let held = self.held.get();
        self.now_held(Share { requests: held.requests + 1, bytes: held.bytes + bytes });
    }

    fn release(&self, share: Share) {
        let held = self.held.get();
        self.now_held(Share { requests: held.requests - share.requests, bytes: held.bytes - share.bytes });
    }

    fn now_held(&self, share: Share) {
        self.part.hold(share.requests, share.bytes);
        self.held.set(share);
    }

    fn has_room(&self, bytes: u64) -> bool {
        let held = self.held.get();
        let here =
            held.requests < IN_FLIGHT_MAX && (held.bytes == 0 || held.bytes + bytes <= IN_FLIGHT_BYTES_MAX);
        here && self.part.has(held.requests + 1, held.bytes + bytes)
    }

    fn reply_to(&self, request: &Request) -> Reply {
        Reply { structured: self.export.structured, cookie: request.cookie }
    }

    /// Answers a read that needs no wait; false if it does, or fails.
    fn read_now(&self, request: &Request, bytes: u64) -> bool {
        if request.len == 0 || request.len > READ_NOW_MAX {
            return false;
        }
        let mut outbox = self.outbox.borrow_mut();
        let reply = self.reply_to(request);
        let read = reply.read_now(&mut outbox, request.offset, request.len, |buffer| {
            self.export.device.read_now(request.offset, request.len as usize, buffer)
        });
        // What went wrong, the long way says again.
        let done = matches!(read, Ok(true));
        if done {
            outbox.end(Share { requests: 1, bytes });
        }
        done
    }

    /// Does a write that needs no wait; false if it does, or fails.
    fn write_now(&self, request: &Request, bytes: u64, payload: &Bytes) -> bool {
        let done = self.export.device.write_now(request.offset, payload);
        if done {
            let mut outbox = self.outbox.borrow_mut();
            self.reply_to(request).done(&mut outbox);
            outbox.end(Share { requests: 1, bytes });
        }
        done
    }

    /// Queues a reply that `put` writes, or the refusal that it ends with.
    fn finish(&self, request: &Request, bytes: u64, outcome: Result<Answer, Refusal>) {
        let reply = self.reply_to(request);
        let mut outbox = self.outbox.borrow_mut();
        let outcome = outcome.and_then(|answer| answer.put(reply, request, &mut outbox));
        if let Err(refusal) = outcome {
            tracing::debug!(command = request.command, errno = refusal.errno, "refused: {}", refusal.text);
            reply.refused(&mut outbox, &refusal);
        }
        outbox.end(Share { requests: 1, bytes });
        drop(outbox);
        if !self.starting.get() {
            self.wake();
        }
    }
}

/// Sends what is ready until nothing more can come.
async fn send_replies(line: &Line, hang_up: &dyn Fn()) {
    loop {
        let finished = || line.received.get() && line.held.get().requests == 0;
        line.until(|| !line.outbox.borrow().is_empty() || finished()).await;
        let batch = line.outbox.borrow_mut().take(SEND_PARTS_MAX, SEND_SIZE_MAX);
        if batch.is_empty() {
            return;
        }
        line.debt.reply.set(true);
        let sent = line.io.send(line.socket, batch).await;
        line.debt.reply.set(false);
        line.debt.paid();
        if let Err(error) = sent {
            tracing::debug!("a client takes no replies any more: {error}");
            line.stop();
            hang_up();
            discard_replies(line).await;
            return;
        }
        let released = line.outbox.borrow_mut().release();
        line.release(released);
        line.wake();
    }
}

/// After a failed send: requests under way end, their replies go nowhere.
async fn discard_replies(line: &Line) {
    loop {
        line.outbox.borrow_mut().discard();
        let released = line.outbox.borrow_mut().release();
        line.release(released);
        line.wake();
        if line.received.get() && line.held.get().requests == 0 {
            return;
        }
        let finished = || line.received.get() && line.held.get().requests == 0;
        line.until(|| !line.outbox.borrow().is_empty() || finished()).await;
    }
}

/// The half of a connection that receives requests and starts them.
struct Receiver<'a> {
    line: &'a Rc<Line>,
    intake: Intake,
    receive_size: usize,
    inline_receives: u32,
    /// Long payloads come one after the other: headers are received by themselves, so that
    /// each payload lands where it stays.
    bulk: bool,
}

impl<'a> Receiver<'a> {
    fn new(line: &'a Rc<Line>, leftover: BytesMut) -> Self {
        Self {
            line,
            intake: Intake::new(leftover),
            receive_size: RECEIVE_SIZE_MIN,
            inline_receives: 0,
            bulk: false,
        }
    }

    async fn run(&mut self) -> End {
        loop {
            if let Err(end) = self.step().await {
                return end;
            }
        }
    }

    /// Receives and starts one request.
    async fn step(&mut self) -> Result<(), End> {
        let header = loop {
            if let Some(header) = self.intake.header() {
                break header;
            }
            self.line.debt.request.set(self.intake.is_in_header());
            self.fill(if self.bulk { Request::SIZE } else { self.receive_size }).await?;
        };
        self.line.debt.request.set(false);
        let request = Request::decode(&header).map_err(|_| End::BadMagic)?;
        if request.command == cmd::DISC {
            return Err(End::Disconnect);
        }
        let is_write = request.command == cmd::WRITE;
        self.bulk = is_write && request.len >= BULK_PAYLOAD_MIN;
        if is_write && request.len > SKIP_SIZE_MAX {
            return Err(End::TooBig);
        }
        let command = check(&self.line.export, &request);
        let bytes = match &command {
            Ok(Command::Read { .. } | Command::Write { .. }) => u64::from(request.len),
            Ok(Command::Status { .. }) => status_size_max(&self.line.export, request.len),
            _ => 0,
        };
        if !self.line.has_room(bytes) {
            let line = self.line;
            line.until(|| line.has_room(bytes) || line.stopping.get()).await;
        }
        if self.line.stopping.get() {
            return Err(End::Stopped);
        }
        let mut payload = Bytes::new();
        self.line.hold(bytes);
        if is_write {
            self.line.debt.request.set(true);
            let len = request.len as usize;
            let received = match &command {
                Ok(_) => self.payload(len).await,
                Err(_) => self.skip(len).await.map(|()| Bytes::new()),
            };
            self.line.debt.request.set(false);
            payload = match received {
                Ok(payload) => payload,
                Err(end) => {
                    self.line.release(Share { requests: 1, bytes });
                    return Err(end);
                }
            };
        }
        self.line.debt.paid();
        if let Ok(command) = &command {
            self.line.export.device.count(command.kind(), u64::from(request.len));
        }
        let done = match &command {
            Ok(Command::Read { .. }) => self.line.read_now(&request, bytes),
            Ok(Command::Write { fua: false }) => self.line.write_now(&request, bytes, &payload),
            _ => false,
        };
        if done {
            if self.line.outbox.borrow().replies() >= EARLY_REPLIES {
                self.line.io.yield_now().await;
            }
            return Ok(());
        }
        let line = Rc::clone(self.line);
        self.line.starting.set(true);
        match command {
            Ok(command) => self.line.io.run_or_spawn(async move {
                let outcome = perform(&line.export, &request, command, payload).await;
                line.finish(&request, bytes, outcome);
            }),
            Err(refusal) => line.finish(&request, bytes, Err(refusal)),
        }
        self.line.starting.set(false);
        Ok(())
    }

    /// Receives at most `len` bytes more, after all that was received has been used.
    async fn fill(&mut self, len: usize) -> Result<(), End> {
        let received = self.receive(len, BytesMut::new()).await?;
        if received.len() >= self.receive_size {
            self.receive_size = (self.receive_size * 2).min(RECEIVE_SIZE_MAX);
        } else if received.len() < self.receive_size / 4 {
            self.receive_size = (self.receive_size / 2).max(RECEIVE_SIZE_MIN);
        }
        self.intake.feed(received);
        Ok(())
    }

    /// Receives at most `len` bytes behind those in a buffer, and at least one.
    async fn receive(&mut self, len: usize, into: BytesMut) -> Result<BytesMut, End> {
        if self.inline_receives >= INLINE_RECEIVES_MAX {
            self.inline_receives = 0;
            self.line.io.sleep(Duration::ZERO).await;
        }
        let before = into.len();
        let mut receive = pin!(self.line.io.recv_into(self.line.socket, len, into));
        let mut polls = 0_u32;
        let received = std::future::poll_fn(|context| {
            if self.line.stopping.get() {
                return Poll::Ready(Err(End::Stopped));
            }
            polls += 1;
            match receive.as_mut().poll(context) {
                Poll::Ready(received) => Poll::Ready(received.map_err(|_| End::Gone)),
                Poll::Pending => {
                    self.line.waker.set(Some(context.waker().clone()));
                    Poll::Pending
                }
            }
        })
        .await?;
        if received.len() == before {
            return Err(End::Gone);
        }
        self.line.debt.moved(received.len() - before);
        if polls == 1 {
            self.inline_receives += 1;
            if !self.line.outbox.borrow().is_empty() {
                // Replies that are ready go out before the next requests run.
                self.line.io.yield_now().await;
            }
        } else {
            self.inline_receives = 0;
        }
        Ok(received)
    }

    /// The payload of a write.
    async fn payload(&mut self, len: usize) -> Result<Bytes, End> {
        if let Some(payload) = self.intake.payload(len) {
            return Ok(payload);
        }
        let mut start = self.intake.some(len);
        if start.is_empty() && !self.bulk {
            self.fill(self.receive_size).await?;
            if let Some(payload) = self.intake.payload(len) {
                return Ok(payload);
            }
            start = self.intake.some(len);
        }
        let mut payload = BytesMut::with_capacity(len);
        payload.extend_from_slice(&start);
        drop(start);
        while payload.len() < len {
            payload = self.receive(len - payload.len(), payload).await?;
        }
        Ok(payload.freeze())
    }

    /// Drops the payload of a write that is refused.
    async fn skip(&mut self, len: usize) -> Result<(), End> {
        let mut left = len;
        loop {
            left -= self.intake.some(left).len();
            if left == 0 {
                return Ok(());
            }
            self.fill(self.receive_size).await?;
        }
    }
}
