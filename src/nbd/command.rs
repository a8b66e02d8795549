//! Commands: what a request means, whether it may be done, and what the device answers.

use super::metacontext::{Context, Selected};
use super::outbox::Outbox;
use super::proto::{Request, cmd, cmd_flag, errno};
use super::reply::{EXTENTS_MAX, Refusal, Reply};
use crate::engine::device::{Device, Extent, Kind, Piece, ZeroHow};
use crate::error::{Error, ErrorKind};
use crate::types::SECTOR;
use bytes::Bytes;
use std::rc::Rc;

/// The largest payload of a request or a reply, in bytes.
pub const PAYLOAD_SIZE_MAX: u32 = 32 << 20;

/// A device as one client knows it.
pub(super) struct Export {
    pub device: Rc<dyn Device>,
    /// As the client was told; a promotion does not change it for this connection.
    pub read_only: bool,
    /// Structured replies were negotiated.
    pub structured: bool,
    /// The metadata contexts for `BLOCK_STATUS`.
    pub contexts: Vec<Selected>,
}

/// The most that a reply about `len` bytes can take: no extent is smaller than a sector.
pub(super) fn status_size_max(export: &Export, len: u32) -> u64 {
    let extents = (u64::from(len) / SECTOR + 2).min(EXTENTS_MAX as u64);
    export.contexts.len() as u64 * (24 + extents * 8)
}

/// A request that was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read { whole: bool },
    Write { fua: bool },
    Flush,
    Trim { fua: bool },
    Zero(ZeroHow),
    Cache,
    Status { one: bool },
}

impl Command {
    /// What it counts as.
    pub fn kind(self) -> Kind {
        match self {
            Self::Read { .. } => Kind::Read,
            Self::Write { .. } => Kind::Write,
            Self::Flush => Kind::Flush,
            Self::Trim { .. } => Kind::Trim,
            Self::Zero(_) => Kind::Zero,
            Self::Cache => Kind::Cache,
            Self::Status { .. } => Kind::Status,
        }
    }
}

/// What a device answered.
pub(super) enum Answer {
    Done,
    Read(Vec<Piece>),
    Status(Vec<(u32, Vec<Extent>)>),
}

impl Answer {
    pub fn put(self, reply: Reply, request: &Request, out: &mut Outbox) -> Result<(), Refusal> {
        match self {
            Self::Done => {
                reply.done(out);
                Ok(())
            }
            Self::Read(pieces) => {
                reply.read(out, request.offset, request.len, request.has(cmd_flag::DF), pieces)
            }
            Self::Status(contexts) => {
                reply.status(out, request.len, request.has(cmd_flag::REQ_ONE), &contexts)
            }
        }
    }
}

/// Checks a request against the protocol, the export and its size.
pub(super) fn check(export: &Export, request: &Request) -> Result<Command, Refusal> {
    let fua = request.has(cmd_flag::FUA);
    let (command, flags) = match request.command {
        cmd::READ => (Command::Read { whole: request.has(cmd_flag::DF) }, cmd_flag::DF),
        cmd::WRITE => (Command::Write { fua }, 0),
        cmd::FLUSH => (Command::Flush, 0),
        cmd::TRIM => (Command::Trim { fua }, 0),
        cmd::CACHE => (Command::Cache, 0),
        cmd::WRITE_ZEROES => {
            let how = ZeroHow {
                no_hole: request.has(cmd_flag::NO_HOLE),
                fast: request.has(cmd_flag::FAST_ZERO),
                fua,
            };
            (Command::Zero(how), cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO)
        }
        cmd::BLOCK_STATUS => (Command::Status { one: request.has(cmd_flag::REQ_ONE) }, cmd_flag::REQ_ONE),
        _ => return Err(Refusal::new(errno::EINVAL, "unknown command")),
    };
    // FUA is valid on every command; DF only where structured replies were negotiated.
    let df = if export.structured { 0 } else { cmd_flag::DF };
    if request.flags & !(flags & !df | cmd_flag::FUA) != 0 {
        return Err(Refusal::new(errno::EINVAL, "a flag that the command does not have"));
    }
    let writes = matches!(command, Command::Write { .. } | Command::Trim { .. } | Command::Zero(_));
    if writes && export.read_only {
        return Err(Refusal::new(errno::EPERM, "the export is read-only"));
    }
    if request.len > PAYLOAD_SIZE_MAX {
        match command {
            Command::Read { .. } => {
                return Err(Refusal::new(errno::EOVERFLOW, "a read of more than 32 MiB"));
            }
            Command::Write { .. } => {
                return Err(Refusal::new(errno::EINVAL, "a write of more than 32 MiB"));
            }
            _ => {}
        }
    }
    if command == Command::Flush {
        if request.offset != 0 || request.len != 0 {
            return Err(Refusal::new(errno::EINVAL, "a flush covers everything: no offset, no length"));
        }
        return Ok(command);
    }
    let size = export.device.size();
    if request.offset.checked_add(u64::from(request.len)).is_none_or(|end| end > size) {
        let errno = match command {
            Command::Write { .. } | Command::Zero(_) => errno::ENOSPC,
            _ => errno::EINVAL,
        };
        return Err(Refusal::new(errno, format!("past the end of the export at {size}")));
    }
    if matches!(command, Command::Status { .. }) {
        if export.contexts.is_empty() {
            return Err(Refusal::new(errno::EINVAL, "no metadata context was negotiated"));
        }
        if request.len == 0 {
            return Err(Refusal::new(errno::EINVAL, "block status of no bytes"));
        }
    }
    Ok(command)
}

/// Lets the device do what was asked.
pub(super) async fn perform(
    export: &Export,
    request: &Request,
    command: Command,
    data: Bytes,
) -> Result<Answer, Refusal> {
    let device = &export.device;
    let (offset, len) = (request.offset, u64::from(request.len));
    if len == 0 && command != Command::Flush {
        return Ok(if matches!(command, Command::Read { .. }) {
            Answer::Read(Vec::new())
        } else {
            Answer::Done
        });
    }
    let outcome = match command {
        Command::Read { .. } => device.read(offset, len).await.map(Answer::Read),
        Command::Write { fua } => device.write(offset, data, fua).await.map(|()| Answer::Done),
        Command::Flush => device.flush().await.map(|()| Answer::Done),
        Command::Trim { fua } => device.trim(offset, len, fua).await.map(|()| Answer::Done),
        Command::Zero(how) => device.zero(offset, len, how).await.map(|()| Answer::Done),
        // A hint: what is beyond one request's worth is left out.
        Command::Cache => {
            device.cache(offset, len.min(u64::from(PAYLOAD_SIZE_MAX))).await.map(|()| Answer::Done)
        }
        Command::Status { one } => status(export, offset, len, one).await,
    };
    outcome.map_err(|error| refusal_of(&error, command))
}

async fn status(export: &Export, offset: u64, len: u64, one: bool) -> Result<Answer, Error> {
    let runs_max = if one { 1 } else { EXTENTS_MAX };
    let mut contexts = Vec::with_capacity(export.contexts.len());
    for Selected { id, context } in &export.contexts {
        contexts.push((*id, runs(&*export.device, context, offset, len, runs_max).await?));
    }
    Ok(Answer::Status(contexts))
}

/// The first runs of a range, merged; in steps, so that a long range never brings more
/// extents at once than a reply has.
async fn runs(
    device: &dyn Device,
    context: &Context,
    offset: u64,
    len: u64,
    runs_max: usize,
) -> Result<Vec<Extent>, Error> {
    let step = u64::from(device.block_size()) * EXTENTS_MAX as u64;
    let mut runs: Vec<Extent> = Vec::new();
    let mut done = 0;
    while done < len && runs.len() <= runs_max {
        let (at, step) = (offset + done, step.min(len - done));
        let found = match context {
            Context::Allocation => device.allocation(at, step).await?,
            Context::Delta(snapshot) => device.delta(snapshot, at, step).await?,
        };
        let before = done;
        for extent in found {
            done += extent.len;
            let is_full = runs.len() > runs_max;
            match runs.last_mut() {
                Some(last) if last.flags == extent.flags => last.len += extent.len,
                _ if is_full => break,
                _ => runs.push(extent),
            }
        }
        if done == before {
            break;
        }
    }
    Ok(runs)
}

/// An error of the device in the protocol's words, which has its own rules for two.
fn refusal_of(error: &Error, command: Command) -> Refusal {
    let errno = match (error.kind(), command) {
        (ErrorKind::OutOfRange, Command::Write { .. } | Command::Zero(_)) => errno::ENOSPC,
        (ErrorKind::Unsupported, Command::Zero(ZeroHow { fast: true, .. })) => errno::ENOTSUP,
        (ErrorKind::Unsupported, _) => errno::EINVAL,
        (kind, _) => kind.nbd_errno(),
    };
    Refusal::new(errno, error.to_string())
}
