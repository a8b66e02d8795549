//! The handshake (fixed newstyle) as a state machine: bytes in, replies out.
//!
//! It reads no socket and no clock: its owner feeds bytes, calls [`Handshake::advance`]
//! until it wants more, and sends what lies in `out` after each call. One call answers
//! at most one option, so a client that does not take its replies holds up to one of
//! them in memory.
//!
//! When the client has chosen an export, [`Handshake::advance`] says so and waits for
//! the verdict: [`accept`] makes the reply that ends the handshake, from what the device
//! itself says, and [`Handshake::refuse`] goes on haggling.

use super::exports::{Exports, Found};
use super::metacontext::{self, Context, Matches, Selected};
use super::proto::{
    self, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, MAGIC, OPTION_MAGIC, OptionHeader, STRING_SIZE_MAX, flag,
    info, opt, rep, u16_at, u32_at,
};
use super::transmission::PAYLOAD_SIZE_MAX;
use crate::engine::ExportInfo;
use crate::error::{Error, ErrorKind};
use bytes::{Buf, BufMut, BytesMut};

/// The most data that an option may carry.
const OPTION_SIZE_MAX: u32 = 64 << 10;
/// Longer options are skipped and refused up to this size; beyond it the client is cut off.
const OPTION_SKIP_MAX: u32 = 1 << 20;
/// How many options a client may send. Tools that list thousands of exports ask about
/// each of them twice on one connection; nobody needs more.
const OPTIONS_MAX: u32 = 100_000;
/// The most queries in one option.
const QUERIES_MAX: u32 = 256;
/// The most contexts on one connection.
const CONTEXTS_MAX: usize = 16;

/// What the owner has to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Receive more bytes and feed them.
    NeedMore,
    /// Call again; there may be more options in what was fed.
    Again,
    /// Find the export and answer with [`accept`] or [`Handshake::refuse`].
    Enter(Choice),
    /// Send what is in `out`, then close; the text says why.
    Close(&'static str),
}

/// What a client wants to enter the transmission phase with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The canonical name of the export.
    pub export: String,
    /// Structured replies were negotiated.
    pub structured: bool,
    /// The metadata contexts it selected for this export.
    pub contexts: Vec<Selected>,
    how: How,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum How {
    /// `OPT_EXPORT_NAME`; no way to refuse, and perhaps 124 zeros.
    ExportName { zeroes: bool },
    /// `OPT_GO`, with the information that was asked for.
    Go { wanted: Vec<u16> },
}

enum State {
    ClientFlags,
    Options,
    /// The rest of an option that is too long, then its refusal.
    Skipping {
        option: u32,
        left: u32,
    },
}

/// One client's negotiation.
pub struct Handshake {
    state: State,
    input: BytesMut,
    fixed: bool,
    no_zeroes: bool,
    structured: bool,
    /// The contexts selected last, and the canonical name of their export.
    selection: Option<(String, Vec<Selected>)>,
    options: u32,
}

impl Handshake {
    /// A handshake that starts; the greeting is appended to `out`.
    #[must_use]
    pub fn new(out: &mut BytesMut) -> Self {
        out.put_u64(MAGIC);
        out.put_u64(OPTION_MAGIC);
        out.put_u16(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES);
        Self {
            state: State::ClientFlags,
            input: BytesMut::new(),
            fixed: false,
            no_zeroes: false,
            structured: false,
            selection: None,
            options: 0,
        }
    }

    /// Takes bytes that the client sent.
    pub fn feed(&mut self, data: &[u8]) {
        self.input.extend_from_slice(data);
    }

    /// What the client sent after its last option: the first requests.
    #[must_use]
    pub fn into_leftover(self) -> BytesMut {
        self.input
    }

    /// Goes one step further.
    pub fn advance(&mut self, exports: &dyn Exports, out: &mut BytesMut) -> Step {
        match self.state {
            State::ClientFlags => self.client_flags(),
            State::Skipping { option, left } => self.skip(option, left, out),
            State::Options => self.option(exports, out),
        }
    }

    fn client_flags(&mut self) -> Step {
        let Some(flags) = u32_at(&self.input, 0) else { return Step::NeedMore };
        self.input.advance(4);
        if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
            return Step::Close("unknown client flags");
        }
        self.fixed = flags & u32::from(FLAG_FIXED_NEWSTYLE) != 0;
        self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
        self.state = State::Options;
        Step::Again
    }

    fn skip(&mut self, option: u32, left: u32, out: &mut BytesMut) -> Step {
        let here = u32::try_from(self.input.len()).unwrap_or(u32::MAX).min(left);
        self.input.advance(here as usize);
        if here < left {
            self.state = State::Skipping { option, left: left - here };
            return Step::NeedMore;
        }
        self.state = State::Options;
        refuse(out, option, rep::ERR_TOO_BIG, "the option carries too much data");
        Step::Again
    }

    fn option(&mut self, exports: &dyn Exports, out: &mut BytesMut) -> Step {
        let header = match OptionHeader::decode(&self.input) {
            Ok(Some(header)) => header,
            Ok(None) => return Step::NeedMore,
            Err(_) => return Step::Close("bad option magic"),
        };
        if header.len > OPTION_SIZE_MAX {
            if header.len > OPTION_SKIP_MAX || header.option == opt::EXPORT_NAME || !self.fixed {
                return Step::Close("an option is too long");
            }
            self.input.advance(OptionHeader::SIZE);
            self.state = State::Skipping { option: header.option, left: header.len };
            return Step::Again;
        }
        if self.input.len() < OptionHeader::SIZE + header.len as usize {
            return Step::NeedMore;
        }
        self.input.advance(OptionHeader::SIZE);
        let data = self.input.split_to(header.len as usize);
        self.options += 1;
        if self.options > OPTIONS_MAX {
            return Step::Close("too many options");
        }
        if !self.fixed && header.option != opt::EXPORT_NAME {
            return Step::Close("an option that only fixed newstyle has");
        }
        self.answer(header.option, &data, exports, out)
    }

    fn answer(&mut self, option: u32, data: &[u8], exports: &dyn Exports, out: &mut BytesMut) -> Step {
        let outcome = match option {
            opt::EXPORT_NAME => return self.export_name(data, exports),
            opt::ABORT => {
                proto::put_option_reply(out, option, rep::ACK, &[]);
                return Step::Close("the client is done");
            }
            opt::GO | opt::INFO => match self.info_or_go(option, data, exports, out) {
                Ok(Some(choice)) => return Step::Enter(choice),
                Ok(None) => Ok(()),
                Err(refusal) => Err(refusal),
            },
            opt::LIST => list_exports(data, exports, out),
            opt::STRUCTURED_REPLY => nothing_in(data).map(|()| self.structured = true),
            opt::LIST_META_CONTEXT => list_contexts(data, exports, out),
            opt::SET_META_CONTEXT => self.set_contexts(data, exports, out),
            opt::STARTTLS => {
                nothing_in(data).and(Err(Refusal::new(rep::ERR_UNSUP, "this server does not speak TLS")))
            }
            _ => Err(Refusal::new(rep::ERR_UNSUP, "this server does not know the option")),
        };
        match outcome {
            Ok(()) => proto::put_option_reply(out, option, rep::ACK, &[]),
            Err(refusal) => refuse(out, option, refusal.reply, &refusal.text),
        }
        Step::Again
    }

    fn export_name(&self, data: &[u8], exports: &dyn Exports) -> Step {
        let Ok(found) = text(data).and_then(|name| find(exports, name)) else {
            return Step::Close("no such export");
        };
        Step::Enter(self.choice(&*found, How::ExportName { zeroes: !self.no_zeroes }))
    }

    fn choice(&self, found: &dyn Found, how: How) -> Choice {
        let contexts = match &self.selection {
            Some((export, contexts)) if self.structured && export == found.name() => contexts.clone(),
            _ => Vec::new(),
        };
        Choice { export: found.name().to_owned(), structured: self.structured, contexts, how }
    }

    fn info_or_go(
        &self,
        option: u32,
        data: &[u8],
        exports: &dyn Exports,
        out: &mut BytesMut,
    ) -> Result<Option<Choice>, Refusal> {
        let mut fields = Fields(data);
        let name = fields.text()?;
        let count = usize::from(fields.u16()?);
        if fields.0.len() != count * 2 {
            return Err(Refusal::new(rep::ERR_INVALID, "the length does not fit the count of requests"));
        }
        let wanted: Vec<u16> = (0..count).filter_map(|at| u16_at(fields.0, at * 2)).collect();
        let found = find(exports, name)?;
        if option == opt::GO {
            return Ok(Some(self.choice(&*found, How::Go { wanted })));
        }
        let info = found.describe().map_err(|error| Refusal::from(&error))?;
        put_info(out, option, found.name(), &info, self.structured, &wanted);
        Ok(None)
    }

    fn set_contexts(
        &mut self,
        data: &[u8],
        exports: &dyn Exports,
        out: &mut BytesMut,
    ) -> Result<(), Refusal> {
        // Even a failure forgets what was selected before.
        self.selection = None;
        if !self.structured {
            return Err(Refusal::new(rep::ERR_INVALID, "structured replies must be negotiated first"));
        }
        let (found, queries) = context_queries(data, exports)?;
        let info = found.describe().map_err(|error| Refusal::from(&error))?;
        let mut matches = Matches::default();
        queries.iter().for_each(|query| matches.select(query, &info.delta_bases));
        let contexts = matches.into_vec();
        if contexts.len() > CONTEXTS_MAX {
            return Err(Refusal::new(rep::ERR_TOO_BIG, "too many metadata contexts on one connection"));
        }
        let contexts: Vec<Selected> =
            (1..).zip(contexts).map(|(id, context)| Selected { id, context }).collect();
        for selected in &contexts {
            put_context(out, opt::SET_META_CONTEXT, selected.id, &selected.context);
        }
        self.selection = Some((found.name().to_owned(), contexts));
        Ok(())
    }

    /// Tells the client that it can't have what it chose; the handshake goes on unless
    /// the protocol leaves no way to say so.
    pub fn refuse(&mut self, choice: &Choice, error: &Error, out: &mut BytesMut) -> Step {
        match choice.how {
            How::ExportName { .. } => Step::Close("the export cannot be opened"),
            How::Go { .. } => {
                let refusal = Refusal::from(error);
                refuse(out, opt::GO, refusal.reply, &refusal.text);
                Step::Again
            }
        }
    }
}

/// The reply that ends the handshake and starts the transmission phase.
pub fn accept(choice: &Choice, info: &ExportInfo, out: &mut BytesMut) {
    match &choice.how {
        How::ExportName { zeroes } => {
            out.put_u64(info.size);
            out.put_u16(transmission_flags(info, choice.structured));
            if *zeroes {
                out.put_bytes(0, 124);
            }
        }
        How::Go { wanted } => {
            put_info(out, opt::GO, &choice.export, info, choice.structured, wanted);
            proto::put_option_reply(out, opt::GO, rep::ACK, &[]);
        }
    }
}

/// What the export can do, as the protocol says it.
#[must_use]
pub fn transmission_flags(info: &ExportInfo, structured: bool) -> u16 {
    let mut flags = flag::HAS_FLAGS | flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_CACHE;
    if info.read_only {
        flags |= flag::READ_ONLY;
    } else {
        flags |= flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
    }
    if structured {
        flags |= flag::SEND_DF;
    }
    if info.multi_conn {
        flags |= flag::CAN_MULTI_CONN;
    }
    flags
}

/// An error reply to an option.
struct Refusal {
    reply: u32,
    text: String,
}

impl Refusal {
    fn new(reply: u32, text: &str) -> Self {
        Self { reply, text: text.to_owned() }
    }
}

impl From<&Error> for Refusal {
    fn from(error: &Error) -> Self {
        let reply = match error.kind() {
            ErrorKind::NotFound | ErrorKind::Invalid => rep::ERR_UNKNOWN,
            ErrorKind::Interrupted => rep::ERR_SHUTDOWN,
            ErrorKind::Conflict | ErrorKind::ReadOnly => rep::ERR_POLICY,
            _ => rep::ERR_PLATFORM,
        };
        Self { reply, text: error.to_string() }
    }
}

fn refuse(out: &mut BytesMut, option: u32, reply: u32, text: &str) {
    proto::put_option_reply(out, option, reply, proto::cut(text, STRING_SIZE_MAX).as_bytes());
}

/// The fields of an option's data, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn short() -> Refusal {
        Refusal::new(rep::ERR_INVALID, "the option's data is too short")
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], Refusal> {
        let (head, rest) = self.0.split_at_checked(len).ok_or_else(Self::short)?;
        self.0 = rest;
        Ok(head)
    }

    fn u16(&mut self) -> Result<u16, Refusal> {
        u16_at(self.take(2)?, 0).ok_or_else(Self::short)
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        u32_at(self.take(4)?, 0).ok_or_else(Self::short)
    }

    /// A string behind its length.
    fn text(&mut self) -> Result<&'a str, Refusal> {
        let len = self.u32()? as usize;
        text(self.take(len)?)
    }
}

fn text(data: &[u8]) -> Result<&str, Refusal> {
    if data.len() > STRING_SIZE_MAX {
        return Err(Refusal::new(rep::ERR_TOO_BIG, "a string is longer than 4096 bytes"));
    }
    std::str::from_utf8(data).map_err(|_| Refusal::new(rep::ERR_INVALID, "a string is no UTF-8"))
}

fn nothing_in(data: &[u8]) -> Result<(), Refusal> {
    if data.is_empty() { Ok(()) } else { Err(Refusal::new(rep::ERR_INVALID, "the option takes no data")) }
}

fn find(exports: &dyn Exports, name: &str) -> Result<Box<dyn Found>, Refusal> {
    exports.find(name).map_err(|error| Refusal::from(&error))
}

fn list_exports(data: &[u8], exports: &dyn Exports, out: &mut BytesMut) -> Result<(), Refusal> {
    nothing_in(data)?;
    let names = exports.names().map_err(|error| Refusal::from(&error))?;
    for name in names {
        let name = proto::cut(&name, STRING_SIZE_MAX);
        let mut entry = BytesMut::with_capacity(4 + name.len());
        entry.put_u32(u32::try_from(name.len()).unwrap_or(0));
        entry.put_slice(name.as_bytes());
        proto::put_option_reply(out, opt::LIST, rep::SERVER, &entry);
    }
    Ok(())
}

/// The export and the queries of an option about metadata contexts.
fn context_queries<'a>(
    data: &'a [u8],
    exports: &dyn Exports,
) -> Result<(Box<dyn Found>, Vec<&'a str>), Refusal> {
    let mut fields = Fields(data);
    let name = fields.text()?;
    let count = fields.u32()?;
    if count > QUERIES_MAX {
        return Err(Refusal::new(rep::ERR_TOO_BIG, "too many queries in one option"));
    }
    let queries = (0..count).map(|_| fields.text()).collect::<Result<Vec<_>, _>>()?;
    if !fields.0.is_empty() {
        return Err(Refusal::new(rep::ERR_INVALID, "the option's data is too long"));
    }
    if queries.iter().any(|query| !query.contains(':')) {
        return Err(Refusal::new(rep::ERR_INVALID, "a query names no namespace"));
    }
    Ok((find(exports, name)?, queries))
}

fn list_contexts(data: &[u8], exports: &dyn Exports, out: &mut BytesMut) -> Result<(), Refusal> {
    let (found, queries) = context_queries(data, exports)?;
    let info = found.describe().map_err(|error| Refusal::from(&error))?;
    let contexts = if queries.is_empty() {
        metacontext::all(&info.delta_bases)
    } else {
        let mut matches = Matches::default();
        queries.iter().for_each(|query| matches.list(query, &info.delta_bases));
        matches.into_vec()
    };
    contexts.iter().for_each(|context| put_context(out, opt::LIST_META_CONTEXT, 0, context));
    Ok(())
}

fn put_context(out: &mut BytesMut, option: u32, id: u32, context: &Context) {
    let mut data = BytesMut::new();
    data.put_u32(id);
    data.put_slice(context.to_string().as_bytes());
    proto::put_option_reply(out, option, rep::META_CONTEXT, &data);
}

fn put_info(
    out: &mut BytesMut,
    option: u32,
    name: &str,
    info: &ExportInfo,
    structured: bool,
    wanted: &[u16],
) {
    let mut data = BytesMut::new();
    data.put_u16(info::EXPORT);
    data.put_u64(info.size);
    data.put_u16(transmission_flags(info, structured));
    proto::put_option_reply(out, option, rep::INFO, &data);

    data.clear();
    data.put_u16(info::BLOCK_SIZE);
    data.put_u32(1);
    data.put_u32(info.block_size.max(4096));
    data.put_u32(PAYLOAD_SIZE_MAX);
    proto::put_option_reply(out, option, rep::INFO, &data);

    if wanted.contains(&info::NAME) {
        data.clear();
        data.put_u16(info::NAME);
        data.put_slice(name.as_bytes());
        proto::put_option_reply(out, option, rep::INFO, &data);
    }
    if wanted.contains(&info::DESCRIPTION) {
        data.clear();
        data.put_u16(info::DESCRIPTION);
        data.put_slice(describe(name, info.block_size).as_bytes());
        proto::put_option_reply(out, option, rep::INFO, &data);
    }
}

/// The export in words, for people.
fn describe(name: &str, block_size: u32) -> String {
    match name.split_once('@') {
        Some((volume, snapshot)) => {
            format!("snapshot {snapshot} of volume {volume}, blocks of {block_size} bytes")
        }
        None => format!("volume {name}, blocks of {block_size} bytes"),
    }
}
