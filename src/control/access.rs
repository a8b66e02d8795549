//! [`Access`]: a store, whoever has it open.
//!
//! A daemon that answers is asked; otherwise the store is opened here, with its lock.
//! Between the two lies a moment in which a daemon holds the lock but has no socket
//! yet, and another command may hold the lock for as long as it runs; so both ways are
//! tried again for a while before that is called a conflict.

use super::client::Client;
use super::require_store;
use super::wire::{Call, to_texts};
use crate::delta::digest::{Answer, BlockOf, Content, Question};
use crate::engine::Store;
use crate::engine::api::{
    CheckReport, CreateOptions, Diff, DrillInfo, GroupInfo, HalfReceived, Received, ScheduleInfo,
    SendRequest, Status, StoreInfo, UpdateSource,
};
use crate::engine::groups::GroupRequest;
use crate::engine::roles::{RoleAnswer, RoleRequest, Seen, TakeOver};
use crate::engine::sessions::live_file;
use crate::engine::sets::{Feed, FeedSet, OpenFeed, Relation};
use crate::engine::store::OpenOptions;
use crate::engine::together::{CommitSets, GroupName};
use crate::error::{Error, ErrorKind, Result};
use crate::format::upkeep::Schedule;
use crate::replica::manage::{self, FarAnswer, FarRequest, Replicate};
use crate::replica::receiver::{Changes, FarStore};
use crate::replica::{failover, resync};
use crate::types::{OnFull, RoleEpoch, SnapName};
use std::collections::HashMap;
use std::fs::{File, OpenOptions as OpenFileOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long a store that somebody else has locked is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// How long a daemon waits for one that is locked by no daemon: a far program may be applying
/// a set, which ends by itself.
const DAEMON_PATIENCE: Duration = Duration::from_secs(60);
/// How often it is tried in that time.
const LOCK_INTERVAL: Duration = Duration::from_millis(50);

/// A store, open in this process or served by another.
pub enum Access {
    /// Open here; this process holds the lock.
    Local(Arc<Store>),
    /// Served by a daemon.
    Remote(Client),
}

/// Opens the store itself, for a daemon, waiting for whoever holds the lock to go, unless that
/// is another daemon.
///
/// # Errors
/// `NotFound` without a store; `Conflict` if the lock stays held; `Interrupted` when it was to
/// `stop` meanwhile.
pub fn open_locked(dir: &Path, options: OpenOptions, stop: &mut dyn FnMut() -> bool) -> Result<Arc<Store>> {
    require_store(dir)?;
    let begun = Instant::now();
    let mut said = false;
    loop {
        match Store::open(dir, options) {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                let waited = begun.elapsed();
                let another = || Ok::<_, Error>(Client::probe(dir)?.is_some());
                if waited > DAEMON_PATIENCE || waited > LOCK_PATIENCE && another()? {
                    return Err(error);
                }
                if stop() {
                    let why = "it was told to stop while another command was at work in the store";
                    return Err(Error::new(ErrorKind::Interrupted, why));
                }
                if waited > LOCK_PATIENCE && !said {
                    said = true;
                    tracing::warn!("another command is at work in {}; waiting for its end", dir.display());
                }
                std::thread::sleep(LOCK_INTERVAL);
            }
            done => return done,
        }
    }
}

impl Access {
    /// The daemon's if one answers, else the store itself.
    ///
    /// # Errors
    /// `NotFound` without a store; `Conflict` if somebody has it who can't be asked.
    pub fn open(dir: &Path) -> Result<Self> {
        require_store(dir)?;
        let until = Instant::now() + LOCK_PATIENCE;
        loop {
            if let Some(client) = Client::probe(dir)? {
                return Ok(Self::Remote(client));
            }
            match Store::open(dir, OpenOptions::default()) {
                Ok(store) => return Ok(Self::Local(store)),
                Err(error) if error.kind() == ErrorKind::Conflict => {
                    if Instant::now() >= until {
                        return Err(in_use(dir, &error));
                    }
                    std::thread::sleep(LOCK_INTERVAL);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Closes what [`Self::open`] opened.
    ///
    /// # Errors
    /// What the store says when its last bytes can't be written.
    pub fn close(self) -> Result<()> {
        match self {
            Self::Local(store) => store.close(),
            Self::Remote(_) => Ok(()),
        }
    }

    /// Whether a daemon serves the store.
    #[must_use]
    pub fn is_served(&self) -> bool {
        matches!(self, Self::Remote(_))
    }
}

fn in_use(dir: &Path, error: &Error) -> Error {
    Error::conflict(format!(
        "the store in {} is in use by another process that does not answer: {error}",
        dir.display()
    ))
    .hint("wait until the other command has ended, or see who holds it with: fuser -v STORE/lock")
}

/// The operations of [`Store`], with its errors.
#[allow(clippy::missing_errors_doc, reason = "as for the method of the same name of Store")]
impl Access {
    /// Makes a volume.
    pub fn create(&self, volume: &str, options: &CreateOptions) -> Result<()> {
        match self {
            Self::Local(store) => store.create(volume, options),
            Self::Remote(client) => {
                client.call(&Call::Create { volume: volume.to_owned(), options: options.clone() })
            }
        }
    }

    /// Changes what happens when space runs out.
    pub fn set_on_full(&self, volume: &str, on_full: OnFull) -> Result<()> {
        match self {
            Self::Local(store) => store.set_on_full(volume, on_full),
            Self::Remote(client) => client.call(&Call::SetOnFull { volume: volume.to_owned(), on_full }),
        }
    }

    /// All volumes, or one.
    pub fn list(&self, volume: Option<&str>) -> Result<StoreInfo> {
        match self {
            Self::Local(store) => store.list(volume),
            Self::Remote(client) => client.call(&Call::List { volume: volume.map(str::to_owned) }),
        }
    }

    /// Changes a volume's size, in bytes; smaller only with `force`.
    pub fn resize(&self, volume: &str, size: u64, force: bool) -> Result<()> {
        match self {
            Self::Local(store) => store.resize(volume, size, force),
            Self::Remote(client) => client.call(&Call::Resize { volume: volume.to_owned(), size, force }),
        }
    }

    /// Takes snapshots at one instant.
    pub fn snapshot(&self, names: &[SnapName]) -> Result<()> {
        match self {
            Self::Local(store) => store.snapshot(names),
            Self::Remote(client) => client.call(&Call::Snapshot { names: to_texts(names) }),
        }
    }

    /// Deletes snapshots, all or none.
    pub fn delete_snapshots(&self, names: &[SnapName]) -> Result<()> {
        match self {
            Self::Local(store) => store.delete_snapshots(names),
            Self::Remote(client) => client.call(&Call::DeleteSnapshots { names: to_texts(names) }),
        }
    }

    /// Deletes a volume; with its snapshots only if `recursive`.
    pub fn delete_volume(&self, volume: &str, recursive: bool) -> Result<()> {
        match self {
            Self::Local(store) => store.delete_volume(volume, recursive),
            Self::Remote(client) => client.call(&Call::DeleteVolume { volume: volume.to_owned(), recursive }),
        }
    }

    /// Keeps a snapshot from being deleted.
    pub fn hold(&self, name: &SnapName, tag: &str) -> Result<()> {
        match self {
            Self::Local(store) => store.hold(name, tag),
            Self::Remote(client) => client.call(&Call::Hold { name: name.to_string(), tag: tag.to_owned() }),
        }
    }

    /// Takes a hold away.
    pub fn release(&self, name: &SnapName, tag: &str) -> Result<()> {
        match self {
            Self::Local(store) => store.release(name, tag),
            Self::Remote(client) => {
                client.call(&Call::Release { name: name.to_string(), tag: tag.to_owned() })
            }
        }
    }

    /// Makes production equal a snapshot again.
    pub fn rollback(&self, name: &SnapName, force: bool) -> Result<()> {
        match self {
            Self::Local(store) => store.rollback(name, force),
            Self::Remote(client) => client.call(&Call::Rollback { name: name.to_string(), force }),
        }
    }

    /// What changed from a snapshot to another, or to now.
    pub fn diff(&self, from: &SnapName, to: Option<&str>) -> Result<Diff> {
        match self {
            Self::Local(store) => store.diff(from, to),
            Self::Remote(client) => {
                client.call(&Call::Diff { from: from.to_string(), to: to.map(str::to_owned) })
            }
        }
    }

    /// A snapshot, or a delta, as a stream.
    pub fn send(&self, request: &SendRequest) -> Result<Box<dyn Read + Send>> {
        match self {
            Self::Local(store) => store.send(request),
            Self::Remote(client) => client.send(request),
        }
    }

    /// The digests of a range of a snapshot.
    pub fn digests(&self, question: &Question) -> Result<Answer> {
        match self {
            Self::Local(store) => store.digests(question),
            Self::Remote(client) => client.call(&Call::Digests { question: question.clone() }),
        }
    }

    /// The content of a block of the snapshot that a comparison is about; none: it is damaged.
    pub fn content(&self, of: &BlockOf) -> Result<Option<Content>> {
        match self {
            Self::Local(store) => store.content(of),
            Self::Remote(client) => client.call(&Call::Content { of: of.clone() }),
        }
    }

    /// Puts a damaged block of that snapshot right; false: nothing proves that it had this content.
    pub fn restore_content(&self, of: &BlockOf, content: &Content) -> Result<bool> {
        match self {
            Self::Local(store) => store.restore_content(of, content),
            Self::Remote(client) => {
                client.call(&Call::RestoreContent { of: of.clone(), content: content.clone() })
            }
        }
    }

    /// A comparison is done with a volume.
    pub fn end_digests(&self, volume: &str, comparison: Uuid) -> Result<()> {
        match self {
            Self::Local(store) => store.end_digests(volume, comparison),
            Self::Remote(client) => client.call(&Call::EndDigests { volume: volume.to_owned(), comparison }),
        }
    }

    /// For a comparison, or until it is silent for a while, what a volume's receivers have stays
    /// readable here.
    pub fn keep_readable(&self, volume: &str, comparison: Uuid) -> Result<()> {
        match self {
            Self::Local(store) => store.keep_readable(volume, comparison),
            Self::Remote(client) => {
                client.call(&Call::KeepReadable { volume: volume.to_owned(), comparison })
            }
        }
    }

    /// Identities of a volume's snapshots, youngest first; with the `bookmarks` of replication,
    /// which can't be read.
    pub fn offers(&self, volume: &str, bookmarks: bool) -> Result<Vec<Uuid>> {
        match self {
            Self::Local(store) => store.offers(volume, bookmarks),
            Self::Remote(client) => client.call(&Call::Offers { volume: volume.to_owned(), bookmarks }),
        }
    }

    /// Applies a stream; the answer comes when all of it is durable.
    pub fn receive(&self, volume: &str, input: &mut (dyn Read + Send)) -> Result<Received> {
        match self {
            Self::Local(store) => store.receive(volume, input),
            Self::Remote(client) => client.receive(volume, input),
        }
    }

    /// What is half received.
    pub fn receive_status(&self, volume: &str) -> Result<Option<HalfReceived>> {
        match self {
            Self::Local(store) => store.receive_status(volume),
            Self::Remote(client) => client.call(&Call::ReceiveStatus { volume: volume.to_owned() }),
        }
    }

    /// Drops what is half received.
    pub fn receive_abort(&self, volume: &str) -> Result<()> {
        match self {
            Self::Local(store) => store.receive_abort(volume),
            Self::Remote(client) => client.call(&Call::ReceiveAbort { volume: volume.to_owned() }),
        }
    }

    /// Makes a secondary writable.
    pub fn promote(&self, volume: &str, force: bool) -> Result<()> {
        match self {
            Self::Local(store) => store.promote(volume, force),
            Self::Remote(client) => client.call(&Call::Promote { volume: volume.to_owned(), force }),
        }
    }

    /// Makes a primary a secondary.
    pub fn demote(&self, volume: &str, force: bool) -> Result<()> {
        match self {
            Self::Local(store) => store.demote(volume, force),
            Self::Remote(client) => client.call(&Call::Demote { volume: volume.to_owned(), force }),
        }
    }

    /// Begins a drill.
    pub fn begin_drill(&self, volume: &str, snapshot: Option<&str>, name: Option<&str>) -> Result<DrillInfo> {
        match self {
            Self::Local(store) => store.begin_drill(volume, snapshot, name),
            Self::Remote(client) => client.call(&Call::BeginDrill {
                volume: volume.to_owned(),
                snapshot: snapshot.map(str::to_owned),
                name: name.map(str::to_owned),
            }),
        }
    }

    /// Sets a volume's schedule, or ends it.
    pub fn set_schedule(&self, volume: &str, schedule: Option<Schedule>) -> Result<()> {
        match self {
            Self::Local(store) => store.set_schedule(volume, schedule),
            Self::Remote(client) => client.call(&Call::SetSchedule { volume: volume.to_owned(), schedule }),
        }
    }

    /// A volume's schedule and what it took.
    pub fn schedule(&self, volume: &str) -> Result<ScheduleInfo> {
        match self {
            Self::Local(store) => store.schedule(volume),
            Self::Remote(client) => client.call(&Call::Schedule { volume: volume.to_owned() }),
        }
    }

    /// From where a volume is updated.
    pub fn update_source(&self, volume: &str) -> Result<UpdateSource> {
        match self {
            Self::Local(store) => store.update_source(volume),
            Self::Remote(client) => client.call(&Call::UpdateSource { volume: volume.to_owned() }),
        }
    }

    /// Remembers from where a volume is updated, and when it was asked.
    pub fn remember_source(&self, volume: &str, source: UpdateSource) -> Result<()> {
        match self {
            Self::Local(store) => store.remember_source(volume, source),
            Self::Remote(client) => client.call(&Call::RememberSource { volume: volume.to_owned(), source }),
        }
    }

    /// Ends a drill; what is returned is its name.
    pub fn end_drill(&self, volume: &str, name: Option<&str>, force: bool) -> Result<String> {
        match self {
            Self::Local(store) => store.end_drill(volume, name, force),
            Self::Remote(client) => client.call(&Call::EndDrill {
                volume: volume.to_owned(),
                name: name.map(str::to_owned),
                force,
            }),
        }
    }

    /// Does what is asked of groups, and returns those that it was about.
    pub fn group(&self, request: &GroupRequest) -> Result<Vec<GroupInfo>> {
        match self {
            Self::Local(store) => store.group_request(request),
            Self::Remote(client) => client.call(&Call::Group { request: request.clone() }),
        }
    }

    /// The daemon and its clients.
    pub fn status(&self) -> Result<Status> {
        match self {
            Self::Local(store) => {
                let mut status = store.status()?;
                env!("CARGO_PKG_VERSION").clone_into(&mut status.version);
                status.sessions = manage::idle_statuses(store, false);
                Ok(status)
            }
            Self::Remote(client) => client.call(&Call::Status {}),
        }
    }
}

/// Sessions of replication.
#[allow(clippy::missing_errors_doc, reason = "as for the function of the same name of replica::manage")]
impl Access {
    /// Begins a session, or changes its policy.
    pub fn replicate(&self, request: Replicate) -> Result<()> {
        match self {
            Self::Local(store) => manage::replicate(store, request),
            Self::Remote(client) => client.call(&Call::Replicate { request }),
        }
    }

    /// Ends a session; what is returned is for the owner to read.
    pub fn unreplicate(&self, volume: &str, destination: Option<&str>) -> Result<Option<String>> {
        match self {
            Self::Local(store) => {
                let ended = manage::unreplicate(store, volume, destination)?;
                Ok(ended.and_then(|record| manage::say_farewell(store, &record)))
            }
            Self::Remote(client) => client.call(&Call::Unreplicate {
                volume: volume.to_owned(),
                destination: destination.map(str::to_owned),
            }),
        }
    }

    /// Has sessions rest, or go on.
    pub fn pause(&self, volume: &str, destination: Option<&str>, paused: bool) -> Result<()> {
        match self {
            Self::Local(store) => manage::pause(store, volume, destination, paused),
            Self::Remote(client) => client.call(&Call::Pause {
                volume: volume.to_owned(),
                destination: destination.map(str::to_owned),
                paused,
            }),
        }
    }

    /// Wants a cut; returns the sessions and the numbers of the wish.
    ///
    /// # Errors
    /// `Conflict` when nobody runs the sessions.
    pub fn cut(&self, volume: &str) -> Result<Vec<(Uuid, u64)>> {
        match self {
            Self::Local(_) => Err(Error::conflict("the store is not served, so no session runs")
                .hint("start it with: snapvol serve")),
            Self::Remote(client) => client.call(&Call::Cut { volume: volume.to_owned() }),
        }
    }

    /// Makes a receiver the primary, or says what that would do.
    pub fn failover(&self, request: &failover::Request) -> Result<failover::Report> {
        match self {
            Self::Local(store) => failover::failover(store, request),
            Self::Remote(client) => client.call(&Call::Failover { request: request.clone() }),
        }
    }

    /// Has an old primary follow the volume that took its place, or gives that up.
    pub fn resync(&self, request: &resync::Request) -> Result<resync::Report> {
        match self {
            Self::Local(store) => resync::resync(store, request),
            Self::Remote(client) => client.call(&Call::Resync { request: request.clone() }),
        }
    }

    /// Has the receiver of a volume's session become the primary, or a volume that follows.
    ///
    /// # Errors
    /// `Conflict` when nobody serves the primary's store.
    pub fn hand_over(&self, volume: &str, pause_max_ms: u64, force: bool) -> Result<()> {
        match self {
            Self::Local(store) if store.follows(volume) => {
                failover::ask_for_role(store, volume, pause_max_ms, force)
            }
            Self::Local(_) => Err(Error::conflict("the store is not served, so no session runs")
                .hint("start it with: snapvol serve")),
            Self::Remote(client) => {
                client.call(&Call::HandOver { volume: volume.to_owned(), pause_max_ms, force })
            }
        }
    }

    /// What the far end of a session asks.
    pub fn ask(&self, request: &FarRequest) -> Result<FarAnswer> {
        match self {
            Self::Local(store) => manage::ask(store, request),
            Self::Remote(client) => client.call(&Call::Far { request: request.clone() }),
        }
    }

    /// Applies a set.
    pub fn receive_set(&self, feed: &FeedSet, input: &mut (dyn Read + Send)) -> Result<Received> {
        match self {
            Self::Local(store) => manage::receive_set(store, feed, input),
            Self::Remote(client) => client.receive_set(feed, input),
        }
    }
}

/// The store in a directory as the far end of sessions: asked through its daemon, or opened
/// for each thing alone, so that a daemon can be started and stopped at any time.
pub struct FarDir {
    dir: PathBuf,
    /// Files of the sessions that have a connection, locked as long as it lives.
    live: Mutex<HashMap<Uuid, File>>,
}

impl FarDir {
    /// The store in that directory.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), live: Mutex::default() }
    }

    /// From now on, as long as this lives, others see that the session has a connection.
    fn mark_live(&self, session: Uuid) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if live.contains_key(&session) {
            return;
        }
        let path = live_file(&self.dir, session);
        let opened = OpenFileOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        match opened {
            Ok(file) => {
                // Who asks whether it is locked may hold it for a moment.
                let _ = rustix::fs::flock(&file, rustix::fs::FlockOperation::LockShared);
                live.insert(session, file);
            }
            Err(error) => tracing::warn!("cannot open {}: {error}", path.display()),
        }
    }

    pub(super) fn with<T>(&self, work: impl FnOnce(&Access) -> Result<T>) -> Result<T> {
        let access = Access::open(&self.dir)?;
        let done = work(&access);
        let closed = access.close();
        done.and_then(|done| closed.map(|()| done))
    }

    /// The store's identity.
    ///
    /// # Errors
    /// As for opening the store.
    pub fn identity(&self) -> Result<Uuid> {
        match self.with(|access| access.ask(&FarRequest::Identity))? {
            FarAnswer::Identity(identity) => Ok(identity),
            _ => Err(odd_answer()),
        }
    }

    fn done(&self, request: &FarRequest) -> Result<()> {
        match self.with(|access| access.ask(request))? {
            FarAnswer::Done => Ok(()),
            _ => Err(odd_answer()),
        }
    }
}

fn odd_answer() -> Error {
    Error::invalid("the daemon answers something else than was asked")
        .hint("the daemon and this program may be of different versions; restart the daemon")
}

impl FarStore for FarDir {
    async fn open_feeds(&self, group: Option<&GroupName>, opens: &[OpenFeed]) -> Result<Vec<Feed>> {
        let request = FarRequest::Open { group: group.cloned(), members: opens.to_vec() };
        match self.with(|access| access.ask(&request))? {
            FarAnswer::Feeds(feeds) => {
                let all_follow = feeds.iter().all(|feed| feed.relation == Relation::Follows);
                if let Some(open) = opens.first().filter(|_| all_follow) {
                    self.mark_live(open.session);
                }
                Ok(feeds)
            }
            _ => Err(odd_answer()),
        }
    }
    async fn commit_sets(&self, commit: &CommitSets) -> Result<()> {
        self.done(&FarRequest::Commit(commit.clone()))
    }
    async fn receive_set(&self, feed: &FeedSet, input: &mut (dyn Read + Send)) -> Result<Received> {
        self.with(|access| access.receive_set(feed, input))
    }
    async fn abort_feed(&self, session: Uuid, volume: &str) -> Result<()> {
        self.done(&FarRequest::Abort { session, volume: volume.to_owned() })
    }
    async fn keep_states(&self, session: Uuid, volume: &str, keep: u64) -> Result<()> {
        self.done(&FarRequest::Keep { session, volume: volume.to_owned(), keep })
    }
    async fn close_feed(&self, session: Uuid) -> Result<()> {
        self.done(&FarRequest::Close { session })
    }
    async fn take_over(
        &self,
        session: Uuid,
        opening: Uuid,
        volume: &str,
        take: &TakeOver,
    ) -> Result<Vec<RoleEpoch>> {
        let (volume, take) = (volume.to_owned(), Box::new(take.clone()));
        match self.with(|access| access.ask(&FarRequest::TakeOver { session, opening, volume, take }))? {
            FarAnswer::Lineage(lineage) => Ok(lineage),
            _ => Err(odd_answer()),
        }
    }
    async fn changes(&self, session: Uuid, volume: &str, from: u64) -> Result<Changes> {
        let request = FarRequest::Changes { session, volume: volume.to_owned(), from };
        match self.with(|access| access.ask(&request))? {
            FarAnswer::Changes { ranges, next } => Ok((ranges, next)),
            _ => Err(odd_answer()),
        }
    }
    async fn role_request(&self, request: &RoleRequest) -> Result<RoleAnswer> {
        let asked = |access: &Access| {
            let answer = access.ask(&FarRequest::Role(request.clone()))?;
            Ok((answer, access.is_served()))
        };
        match self.with(asked)? {
            (FarAnswer::Role(RoleAnswer::Seen(seen)), served) => {
                Ok(RoleAnswer::Seen(Box::new(Seen { served, ..*seen })))
            }
            (FarAnswer::Role(answer), _) => Ok(answer),
            _ => Err(odd_answer()),
        }
    }
}

/// Verifies a store's structure: by itself, or through the daemon that serves it.
///
/// # Errors
/// `NotFound` without a store, `Conflict` for a repair while it is served.
pub fn check(dir: &Path, repair: bool) -> Result<CheckReport> {
    served_or(dir, &Call::Check { repair }, || Store::check(dir, repair))
}

/// Verifies every stored byte that has a checksum, in the same way.
///
/// # Errors
/// `NotFound` without a store or volume.
pub fn scrub(dir: &Path, volume: Option<&str>) -> Result<CheckReport> {
    let call = Call::Scrub { volume: volume.map(str::to_owned) };
    served_or(dir, &call, || Store::scrub_closed(dir, volume))
}

/// Asks the daemon, or does it here with the store's lock.
fn served_or(dir: &Path, call: &Call, here: impl Fn() -> Result<CheckReport>) -> Result<CheckReport> {
    require_store(dir)?;
    let until = Instant::now() + LOCK_PATIENCE;
    loop {
        if let Some(client) = Client::probe(dir)? {
            return client.call(call);
        }
        match here() {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                if Instant::now() >= until {
                    return Err(in_use(dir, &error));
                }
                std::thread::sleep(LOCK_INTERVAL);
            }
            done => return done,
        }
    }
}
