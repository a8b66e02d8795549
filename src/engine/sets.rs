//! Sets: cut and read at the sender, applied and kept at the receiver.
//!
//! Each is a step of a session that leaves a state from which any other step may follow; what
//! comes after what is decided by `replica`. A receiver lets in only sets of the session that
//! feeds the volume and of the role epoch that it knows as the last one.

use super::api::{CreateOptions, Received};
use super::core::Core;
use super::drill::is_drill;
use super::receive::EngineTarget;
use super::send::{self, EngineSource};
use super::together::GroupName;
use super::turns::Turn;
use crate::delta::receiver;
use crate::delta::token::ResumeToken;
use crate::error::{Error, ErrorKind, Result};
use crate::format::session::{Condition, MemberRecord, SessionPolicy, SessionRecord, Side};
use crate::format::state::{BookmarkRecord, LINEAGE_MAX, SnapshotRecord};
use crate::snapshot::Brake;
use crate::types::{Geometry, OnFull, Role, RoleEpoch, SetId, SetStamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::Read;
use uuid::Uuid;

/// A cut, as sessions see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The set that it ends.
    pub set: SetId,
    /// When it was taken, in microseconds since 1970, by this host's clock.
    pub created_us: u64,
}

/// A cut, or what is left of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// It.
    pub cut: Cut,
    /// It can't be read or shipped any more, and a delta can start from it.
    pub is_bookmark: bool,
}

/// Which cuts of a volume are needed, and as what.
#[derive(Default)]
struct Needed {
    /// As states that can be read.
    states: BTreeSet<Uuid>,
    /// As bases of deltas.
    marks: BTreeSet<Uuid>,
    /// The number of the cut that every receiver has, or has passed.
    passed: Option<u64>,
}

/// What a sender asks a receiver to take part in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenFeed {
    /// The session.
    pub session: Uuid,
    /// The sender's store.
    pub store: Uuid,
    /// Made up by the sender for this opening of the session.
    pub opening: Uuid,
    /// The volume at the receiver.
    pub volume: String,
    /// The volume at the sender, for messages.
    pub origin: String,
    /// Bytes of the volume at the sender.
    pub size: u64,
    /// Bytes in a block.
    pub block_size: u32,
    /// Blocks a meta bit.
    pub granularity: u32,
    /// The sender's role epochs, oldest first.
    pub lineage: Vec<RoleEpoch>,
    /// Identities of the sender's snapshots, youngest first; not more than `OFFERS_MAX`.
    pub offers: Vec<Uuid>,
    /// How the sender's volume is reached from the receiver's store; empty: it can't be.
    #[serde(default)]
    pub way_back: String,
    /// The program to run there; empty: `snapvol`.
    #[serde(default)]
    pub way_back_command: String,
}

/// Identities that an [`OpenFeed`] names, at most.
pub const OFFERS_MAX: usize = 8192;

/// How the receiver's line of role epochs stands to the sender's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Relation {
    /// The same line, or the receiver takes the sender's over.
    Follows,
    /// The receiver is further in the sender's own line: the sender is no primary any more.
    Fenced,
    /// Two lines that parted.
    Split,
}

/// What a receiver has of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Feed {
    /// How the lines stand; of a sender that is not followed the rest is empty.
    pub relation: Relation,
    /// The last set that it can't lose.
    pub durable: Option<SetId>,
    /// The last set that it shows.
    pub applied: Option<SetId>,
    /// The identity of what it shows, also where that is no set.
    pub newest: Option<Uuid>,
    /// Identities of all states that it has, youngest first.
    pub held: Vec<Uuid>,
    /// A set that is half received.
    pub half: Option<HalfSet>,
    /// The receiver's role epochs, oldest first.
    #[serde(default)]
    pub lineage: Vec<RoleEpoch>,
    /// What the last turn of the receiver was part of.
    #[serde(default)]
    pub operation: Option<Uuid>,
    /// What the receiver has of its own, where it was the primary before.
    #[serde(default)]
    pub diverged: Option<Diverged>,
}

impl Feed {
    /// Of a volume of which nothing else is said.
    fn nothing(relation: Relation) -> Self {
        Self {
            relation,
            durable: None,
            applied: None,
            newest: None,
            held: Vec::new(),
            half: None,
            lineage: Vec::new(),
            operation: None,
            diverged: None,
        }
    }
}

/// A volume that is to follow a sender.
struct Met {
    uuid: Uuid,
    /// Its role epochs, oldest first.
    lineage: Vec<RoleEpoch>,
    /// What it has of its own.
    diverged: Option<Diverged>,
    /// What is said where it does not follow.
    refusal: Option<Feed>,
}

/// What a receiver has of its own, apart from the sender's line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diverged {
    /// The snapshot of it, which the receiver shows.
    pub shown: Uuid,
    /// Its size in bytes.
    pub size: u64,
    /// The youngest state that both sides have; none: all is to be shipped.
    pub common: Option<Uuid>,
}

/// What a sender makes a set of for a receiver with something of its own.
#[derive(Clone, Debug)]
pub struct OwnChanges {
    /// What the receiver has.
    pub diverged: Diverged,
    /// Bytes that changed there: first byte and count, ascending and disjoint.
    pub ranges: Vec<(u64, u64)>,
}

/// A set that is half received.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HalfSet {
    /// It; none when it comes from no session.
    pub set: Option<SetId>,
    /// Every byte of the volume below this is durable.
    pub durable: u64,
    /// What a stream is resumed with.
    pub token: String,
    /// All of it is there, and waits for the other volumes of its group.
    #[serde(default)]
    pub arrived: bool,
}

/// A set on its way into a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FeedSet {
    /// The session.
    pub session: Uuid,
    /// The opening of the session that brings it.
    pub opening: Uuid,
    /// The volume at the receiver.
    pub volume: String,
    /// The set.
    pub set: SetId,
    /// No mark of any session of the origin is older than this number, where it is known.
    pub keep: Option<u64>,
    /// It is shown only when those of the other volumes of its group are.
    #[serde(default)]
    pub together: bool,
}

/// A volume of a session by which nothing was shipped yet, of the same name on both sides.
#[must_use]
pub fn fresh_member(volume: &str, uuid: Uuid) -> MemberRecord {
    MemberRecord {
        volume: volume.to_owned(),
        uuid,
        far_volume: volume.to_owned(),
        durable: None,
        applied: None,
        target: None,
    }
}

/// Compares two lines of role epochs; `theirs` is the sender's.
#[must_use]
pub fn relation(ours: &[RoleEpoch], theirs: &[RoleEpoch]) -> Relation {
    match (ours.last(), theirs.last()) {
        (None, _) => Relation::Follows,
        (Some(last), Some(_)) if theirs.contains(last) => Relation::Follows,
        (Some(_), Some(last)) if ours.contains(last) => Relation::Fenced,
        _ => Relation::Split,
    }
}

impl Core {
    /// The identity of the store.
    pub fn identity(&self) -> Uuid {
        self.identity
    }

    /// A volume's line of role epochs, begun if there is none yet.
    ///
    /// # Errors
    /// `NotFound`, `Io`, `Full`.
    pub async fn begin_lineage(&self, volume: &str) -> Result<Vec<RoleEpoch>> {
        let begun = self.with(volume, |volume| async move {
            let lineage = volume.lineage();
            if !lineage.is_empty() {
                return Ok(lineage);
            }
            let first = vec![RoleEpoch { counter: 1, identity: volume.io().identity() }];
            volume.set_lineage(first.clone()).await?;
            Ok(first)
        });
        begun.await
    }

    /// Identity, role and cut of a volume that is to be sent.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn unit(&self, volume: &str) -> Result<(Uuid, Role, Geometry)> {
        self.with(volume, |volume| async move { Ok((volume.uuid(), volume.role(), volume.geometry())) }).await
    }

    /// The number of the youngest cut that a volume took or received.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn last_cut(&self, volume: &str) -> Result<u64> {
        self.with(volume, |volume| async move { Ok(volume.last_cut()) }).await
    }

    /// The names of all volumes that are no drills, sorted.
    pub fn volume_names(&self) -> Vec<String> {
        let mut names = self.names();
        names.retain(|name| !is_drill(name));
        names
    }

    /// An identity that nothing else has.
    ///
    /// # Errors
    /// `Interrupted` when the store is closing.
    pub async fn new_identity(&self) -> Result<Uuid> {
        self.on_store(|engine, _| async move { Ok(engine.io.identity()) }).await
    }

    /// Checks that a volume may be sent.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` for a secondary.
    pub async fn check_sendable(&self, volume: &str) -> Result<Uuid> {
        let (uuid, role, _) = self.unit(volume).await?;
        if role != Role::Primary {
            return Err(Error::conflict(format!("volume {volume} is a secondary"))
                .hint("replicate the primary that it follows"));
        }
        Ok(uuid)
    }

    /// The cuts of a volume, oldest first.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn cuts(&self, volume: &str) -> Result<Vec<Cut>> {
        let records = self.with(volume, |volume| async move { Ok(volume.cuts()) }).await?;
        let cut = |record: SnapshotRecord| {
            let set = SetId { stamp: record.set?, target: record.uuid };
            Some(Cut { set, created_us: record.created_us })
        };
        Ok(records.into_iter().filter_map(cut).collect())
    }

    /// What deltas can start from besides users' snapshots, oldest first: the cuts, and what is
    /// left of earlier ones.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn marks(&self, volume: &str) -> Result<Vec<Mark>> {
        let marks = self.with(volume, |volume| async move {
            let cut = |record: SnapshotRecord| {
                let set = SetId { stamp: record.set?, target: record.uuid };
                let cut = Cut { set, created_us: record.created_us };
                Some((record.epoch, Mark { cut, is_bookmark: false }))
            };
            let bookmark = |record: BookmarkRecord| {
                let set = SetId { stamp: record.set, target: record.uuid };
                let cut = Cut { set, created_us: record.created_us };
                (record.epoch, Mark { cut, is_bookmark: true })
            };
            let cuts = volume.cuts().into_iter().filter_map(cut);
            let mut all: Vec<_> = cuts.chain(volume.bookmarks().into_iter().map(bookmark)).collect();
            all.sort_unstable_by_key(|(epoch, _)| *epoch);
            Ok(all.into_iter().map(|(_, mark)| mark).collect())
        });
        marks.await
    }

    /// Identities of the snapshots of a volume, cuts among them, youngest first: what can be
    /// read.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn states(&self, volume: &str) -> Result<Vec<Uuid>> {
        self.known(volume, false).await
    }

    /// The same with the bookmarks: what a delta can start from.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn offers(&self, volume: &str) -> Result<Vec<Uuid>> {
        self.known(volume, true).await
    }

    async fn known(&self, volume: &str, bookmarks: bool) -> Result<Vec<Uuid>> {
        let held = self.with(volume, move |volume| async move {
            let (snapshots, cuts) = (volume.snapshots(), volume.cuts());
            let mut all: Vec<_> = snapshots.into_iter().chain(cuts).map(|r| (r.epoch, r.uuid)).collect();
            if bookmarks {
                all.extend(volume.bookmarks().into_iter().map(|b| (b.epoch, b.uuid)));
            }
            all.sort_unstable();
            all.dedup();
            Ok(all.into_iter().rev().map(|(_, uuid)| uuid).take(OFFERS_MAX).collect())
        });
        held.await
    }

    /// Waits for its turn among those who take, choose and delete the cuts of a volume: what
    /// one of them chose is still there when it has recorded that.
    pub async fn sets_turn(&self, volume: &str) -> Turn {
        self.cutting(volume).wait().await
    }

    /// Takes a cut, in its turn.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when something forbids it; `Io`, `Full`.
    pub async fn cut(&self, _turn: &Turn, volume: &str) -> Result<SetId> {
        self.with(volume, |volume| async move { volume.take_cut().await }).await
    }

    /// Bytes written or discarded since a snapshot or a bookmark, as far as the maps tell.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Io`.
    pub async fn changed_since(&self, volume: &str, state: Uuid) -> Result<u64> {
        let delta = self.with(volume, move |volume| async move {
            // Nobody deletes it meanwhile; of a bookmark all is asked at once.
            let _open = match volume.bookmark(state) {
                Some(_) => None,
                None => Some(volume.open_snapshot_by_id(state)?),
            };
            volume.delta_between(Some(state), None).await
        });
        let (data, discards) = delta.await?.totals();
        Ok(data + discards)
    }

    /// Keeps a volume's writers back for the sake of a session, or lets them pass again.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn set_brake(&self, volume: &str, session: Uuid, brake: Option<Brake>) -> Result<()> {
        let set = self.with(volume, move |volume| async move {
            volume.set_brake(session, brake);
            Ok(())
        });
        set.await
    }

    /// What the stream of a set is made of; the base may be a bookmark.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`.
    pub async fn set_source(
        &self,
        volume: &str,
        base: Option<Uuid>,
        target: Uuid,
        resume: Option<String>,
        own: Option<OwnChanges>,
    ) -> Result<EngineSource> {
        send::open_by_id(self.engine_of(volume)?, volume, base, target, resume, own).await
    }

    /// Deletes the cuts of a volume that none of its sessions needs: neither as the state that
    /// its receiver has nor as the one that it is to get. What every receiver has, or has passed,
    /// is the base of deltas and nothing else: of that a bookmark stays. A cut that some
    /// receiver has yet to reach stays as it is, for that one must not pass it; and so does every
    /// one while somebody compares. Of a secondary nothing is touched.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub async fn prune_sent(&self, volume: &str) -> Result<()> {
        if self.unit(volume).await?.1 != Role::Primary {
            // Its cuts are what it received.
            return Ok(());
        }
        let _turn = self.sets_turn(volume).await;
        let sessions = self.sessions_of(volume, Side::Sender);
        let members: Vec<_> = sessions.iter().filter_map(|session| session.member(volume)).collect();
        let targets: BTreeSet<Uuid> = members.iter().filter_map(|m| m.target).map(|set| set.target).collect();
        let marks = members.iter().flat_map(|member| [member.durable, member.applied]).flatten();
        let mut needed = Needed { marks: marks.map(|set| set.target).collect(), ..Needed::default() };
        // A first set may have arrived, though nobody here has heard of it yet.
        let slowest = members.iter().filter_map(|member| member.applied.or(member.target));
        needed.passed = slowest.map(|set| set.stamp.number).min();
        needed.states = targets;
        if self.turned(volume).is_some() {
            // It is the newest state in common with the volume whose place this one took.
            needed.states.extend(self.roles(volume).await?.restart.map(|set| set.target));
        }
        self.prune_cuts(volume, needed).await
    }

    /// Deletes or shrinks cuts, and forgets bookmarks. What is open stays until the next time.
    async fn prune_cuts(&self, volume: &str, needed: Needed) -> Result<()> {
        if !self.sessions.damaged.is_empty() {
            return Ok(());
        }
        let pruned = self.with(volume, move |volume| async move {
            for cut in volume.cuts() {
                let number = cut.set.map_or(0, |set| set.number);
                let done = if needed.states.contains(&cut.uuid) {
                    Ok(())
                } else if !needed.marks.contains(&cut.uuid) {
                    volume.delete(&[cut.uuid]).await
                } else if needed.passed.is_some_and(|passed| number <= passed) && !volume.is_kept_readable() {
                    volume.shrink(cut.uuid).await
                } else {
                    Ok(())
                };
                match done {
                    Err(error) if error.kind() != ErrorKind::Conflict => return Err(error),
                    _ => {}
                }
            }
            let bookmarks = volume.bookmarks().into_iter().map(|bookmark| bookmark.uuid);
            let gone: Vec<Uuid> = bookmarks.filter(|uuid| !needed.marks.contains(uuid)).collect();
            volume.forget_bookmarks(&gone).await
        });
        pruned.await
    }

    /// Takes part in a session, or goes on with it: says what is here. Of a group all volumes take
    /// part, or none.
    ///
    /// # Errors
    /// `Conflict` for a primary, another session, a volume with other content, or a group that is
    /// another one here.
    pub async fn open_feeds(&self, group: Option<&GroupName>, opens: &[OpenFeed]) -> Result<Vec<Feed>> {
        if let Some(group) = group {
            self.check_group_opens(group, opens)?;
        }
        let mut met = Vec::new();
        for open in opens {
            met.push(self.meet_sender(open).await?);
        }
        if met.iter().any(|met| met.refusal.is_some()) {
            let nothing = |met: Met| Feed { lineage: met.lineage, ..Feed::nothing(Relation::Follows) };
            return Ok(met.into_iter().map(|mut m| m.refusal.take().unwrap_or_else(|| nothing(m))).collect());
        }
        self.join_session(group, opens, &met).await?;
        for (open, met) in opens.iter().zip(&met) {
            self.still_opens(open, met.diverged.is_some()).await?;
            // An earlier opening brings nothing new from here on, but may still be at it: what there
            // is then is not known before it has ended.
            if self.with(&open.volume, |volume| async move { Ok(volume.is_receiving()) }).await? {
                return Err(Error::conflict(format!(
                    "a set from an earlier connection is still being received into volume {}",
                    open.volume
                ))
                .hint("it is tried again"));
            }
        }
        let mut feeds = Vec::new();
        for (open, met) in opens.iter().zip(met) {
            feeds.push(self.begin_feed(open, met, opens.len()).await?);
        }
        if let Some(group) = group {
            self.know_group(group, opens).await?;
        }
        Ok(feeds)
    }

    /// The same of one volume.
    #[cfg(test)]
    pub async fn open_feed(&self, open: &OpenFeed) -> Result<Feed> {
        let mut feeds = self.open_feeds(None, std::slice::from_ref(open)).await?;
        feeds.pop().ok_or_else(|| Error::invalid("the sender names no volume"))
    }

    /// What a receiver says of a volume that takes part now.
    async fn begin_feed(&self, open: &OpenFeed, met: Met, members: usize) -> Result<Feed> {
        let mut feed = self.feed(&open.volume).await?;
        // All of a group has to fit into one message.
        feed.held.truncate(OFFERS_MAX / members.max(1));
        if let Some(diverged) = met.diverged {
            // What it has of its own is no mark; the line is taken over with the set.
            let newest = Some(diverged.shown);
            return Ok(Feed { durable: None, applied: None, newest, diverged: Some(diverged), ..feed });
        }
        if met.lineage.last() != open.lineage.last() {
            let lineage = open.lineage.clone();
            self.with(&open.volume, |volume| async move { volume.set_lineage(lineage).await }).await?;
        }
        Ok(feed)
    }

    /// Finds the volume that is to follow, or makes it, and tells whether it may.
    async fn meet_sender(&self, open: &OpenFeed) -> Result<Met> {
        open.volume.parse::<crate::types::Name>()?;
        if open.store == self.identity {
            return Err(Error::conflict("a volume does not follow another one of the same store"));
        }
        if open.lineage.is_empty() || open.lineage.len() > LINEAGE_MAX || open.offers.len() > OFFERS_MAX {
            return Err(Error::invalid("the sender names no role epoch, or too much"));
        }
        if !self.has_volume(&open.volume) {
            let options = CreateOptions {
                size: open.size,
                block_size: open.block_size,
                granularity: open.granularity,
                on_full: OnFull::Readonly,
            };
            self.create(&open.volume, &options, Role::Secondary).await?;
        }
        self.finish_resync(&open.volume).await?;
        let (uuid, role, geometry) = self.unit(&open.volume).await?;
        let diverged = self.open_resync(open).await?;
        let lineage = self.lineage_of(&open.volume).await?;
        let relation = relation(&lineage, &open.lineage);
        if relation != Relation::Follows && diverged.is_none() {
            let operation = self.roles(&open.volume).await?.operation;
            if relation == Relation::Split && role == Role::Primary {
                self.met_split(&open.volume).await?;
            }
            let feed = Feed { lineage: lineage.clone(), operation, ..Feed::nothing(relation) };
            return Ok(Met { uuid, lineage, diverged: None, refusal: Some(feed) });
        }
        if role == Role::Primary {
            return Err(Error::conflict(format!("volume {} is a primary there", open.volume))
                .hint("demote it there if its own changes may go, or name another volume"));
        }
        if geometry.block_size != open.block_size {
            return Err(Error::conflict(format!(
                "volume {} has blocks of {} bytes there, and of {} here",
                open.volume, geometry.block_size, open.block_size
            ))
            .hint("name another volume"));
        }
        Ok(Met { uuid, lineage, diverged, refusal: None })
    }

    /// A resync may have been given up, or a role changed, while the session was recorded.
    async fn still_opens(&self, open: &OpenFeed, resync: bool) -> Result<()> {
        let (_, role, _) = self.unit(&open.volume).await?;
        let waits = self.resync_of(&open.volume).await?.map(|resync| resync.session);
        if role == Role::Secondary && waits == resync.then_some(open.session) {
            return Ok(());
        }
        if self.fed_by(&open.volume).is_some_and(|record| record.session == open.session) {
            self.forget_session(open.session).await?;
        }
        Err(Error::conflict(format!("the role of volume {} changed meanwhile", open.volume)))
    }

    /// Records the session at the receiver. A volume with content of its own is left alone,
    /// unless the sender knows what it shows.
    async fn join_session(&self, group: Option<&GroupName>, opens: &[OpenFeed], met: &[Met]) -> Result<()> {
        let first = opens.first().ok_or_else(|| Error::invalid("the sender names no volume"))?;
        let known = self.session(first.session).ok();
        if known.as_ref().is_some_and(|known| known.condition == Condition::Ended) {
            return Err(Error::conflict(format!("volume {} was parted from its sender there", first.volume))
                .hint("end the session here, too, with 'unreplicate'"));
        }
        let known = known.filter(|record| record.peer_store == Some(first.store));
        let mut members = Vec::new();
        for (open, met) in opens.iter().zip(met) {
            let resync = met.diverged.is_some();
            self.check_feeders(open, resync).await?;
            let member = known.as_ref().and_then(|known| known.member(&open.volume)).cloned();
            members.push(match member {
                Some(member) => member,
                None => self.new_member(open, met.uuid, resync).await?,
            });
        }
        let group_id = group.map(|group| group.uuid);
        if known.is_some() {
            let opened = self.change_session(first.session, |known| {
                let mut record = known.ok_or_else(|| Error::not_found("the session is gone"))?;
                if record.condition == Condition::Turned {
                    // A turn that nobody is at any more did not come about, and will not.
                    for open in opens {
                        self.check_not_turning(&open.volume)?;
                    }
                    (record.condition, record.turn) = (Condition::Running, None);
                }
                if record.group != group_id {
                    return Err(Error::conflict("the session is one of other volumes here"));
                }
                record.opening = Some(first.opening);
                record.way_back.clone_from(&first.way_back);
                record.way_back_command.clone_from(&first.way_back_command);
                record.members = members;
                Ok(record)
            });
            return opened.await.map(drop);
        }
        let record = SessionRecord {
            session: first.session,
            side: Side::Receiver,
            unit: group.map_or(&first.volume, |group| &group.name).clone(),
            peer_store: Some(first.store),
            destination: String::new(),
            remote_command: String::new(),
            way_back: first.way_back.clone(),
            way_back_command: first.way_back_command.clone(),
            opening: Some(first.opening),
            condition: Condition::Running,
            policy: SessionPolicy::default(),
            members,
            group: group_id,
            turn: None,
        };
        self.change_session(first.session, |_| Ok(record)).await?;
        // Those that were parted from it before have nothing to say any more.
        for open in opens {
            for old in self.sessions_of(&open.volume, Side::Receiver) {
                if old.session != open.session {
                    self.forget_session(old.session).await?;
                }
            }
        }
        Ok(())
    }

    /// No other session feeds a volume, and none is fed by it.
    async fn check_feeders(&self, open: &OpenFeed, resync: bool) -> Result<()> {
        let others = || self.fed_by(&open.volume).filter(|record| record.session != open.session);
        if resync && let Some(other) = others() {
            // It is what an earlier attempt at a resync has left.
            self.forget_session(other.session).await?;
        }
        if let Some(other) = others() {
            return Err(Error::conflict(format!(
                "volume {} is fed by another session, {}",
                open.volume, other.session
            ))
            .hint(format!("'snapvol unreplicate {}' there ends that one", other.unit)));
        }
        if resync { Ok(()) } else { self.check_not_followed(&open.volume) }
    }

    /// A volume that begins to follow.
    async fn new_member(&self, open: &OpenFeed, uuid: Uuid, resync: bool) -> Result<MemberRecord> {
        let feed = self.feed(&open.volume).await?;
        let empty = feed.newest.is_none() && feed.half.is_none() && {
            let in_use = self.with(&open.volume, |volume| async move { Ok(volume.summary().await?.in_use) });
            in_use.await? == 0
        };
        let shown = [feed.newest, feed.applied.map(|set| set.target)];
        let known = shown.into_iter().flatten().any(|state| open.offers.contains(&state));
        if !empty && !known && !resync {
            return Err(Error::conflict(format!(
                "volume {} exists there, and what it shows is no snapshot of {}",
                open.volume, open.origin
            ))
            .hint("delete it there if it may go, or name another volume"));
        }
        Ok(MemberRecord { far_volume: open.origin.clone(), ..fresh_member(&open.volume, uuid) })
    }

    /// What a volume has received.
    ///
    /// # Errors
    /// `NotFound`.
    pub(super) async fn feed(&self, volume: &str) -> Result<Feed> {
        let (cuts, held) = (self.cuts(volume).await?, self.states(volume).await?);
        let found = self.with(volume, |volume| async move {
            let newest = volume.newest_state().map(|record| record.uuid);
            Ok((newest, volume.half_received()))
        });
        let (newest, half) = found.await?;
        let newest = newest.map(|newest| self.original(newest));
        let half = half.map(|(record, _)| HalfSet {
            set: record.set.map(|stamp| SetId { stamp, target: record.target }),
            durable: record.durable,
            arrived: record.arrived,
            token: ResumeToken { target: record.target, base: record.base, durable: record.durable }
                .to_string(),
        });
        let mark = cuts.last().map(|cut| cut.set);
        let lineage = self.with(volume, |volume| async move { Ok(volume.lineage()) }).await?;
        Ok(Feed {
            durable: mark,
            applied: mark,
            newest,
            held,
            half,
            lineage,
            ..Feed::nothing(Relation::Follows)
        })
    }

    /// Applies a set; it is durable and shown when this returns, or, of a group, durable and waiting
    /// for the others. States that nobody needs any more go.
    ///
    /// # Errors
    /// `Conflict` for a set of another session or role epoch, and what a receive says.
    pub async fn receive_set(&self, feed: &FeedSet, input: &mut dyn Read) -> Result<Received> {
        self.check_opening(feed)?;
        let resync = self.resync_of(&feed.volume).await?;
        let lineage = match &resync {
            Some(resync) => resync.lineage.clone(),
            None => self.lineage_of(&feed.volume).await?,
        };
        if lineage.last() != Some(&feed.set.stamp.epoch) {
            return Err(Error::conflict(format!(
                "the set is of another role epoch than volume {} is in",
                feed.volume
            )));
        }
        let mut target = EngineTarget::of_set(self, feed);
        let outcome = receiver::receive(input, &mut target).await;
        target.end().await;
        let outcome = outcome?;
        if resync.is_some() && !feed.together {
            self.finish_resync(&feed.volume).await?;
        }
        self.take_what_is_due(&feed.volume).await;
        if let Some(keep) = feed.keep.filter(|_| !feed.together) {
            self.keep_states(feed.session, &feed.volume, keep).await?;
        }
        Ok(Received {
            volume: feed.volume.clone(),
            snapshot: outcome.header.target.name,
            uuid: outcome.header.target.uuid,
            already: outcome.already,
            data_bytes: outcome.data_bytes,
            discard_bytes: outcome.discard_bytes,
        })
    }

    fn check_feed(&self, session: Uuid, volume: &str) -> Result<()> {
        if self.fed_by(volume).is_some_and(|record| record.session == session) {
            return Ok(());
        }
        Err(Error::conflict(format!("volume {volume} is not fed by this session")))
    }

    /// Refuses what an opening brings that was followed by another one.
    pub(super) fn check_opening(&self, feed: &FeedSet) -> Result<()> {
        self.check_feed(feed.session, &feed.volume)?;
        if self.session(feed.session)?.opening == Some(feed.opening) {
            return Ok(());
        }
        Err(Error::conflict(format!(
            "the session that feeds volume {} was opened again meanwhile",
            feed.volume
        )))
    }

    /// Lets states go that are older than the youngest one up to that number. The newest one
    /// stays in any case.
    ///
    /// # Errors
    /// `Conflict` when the session does not feed the volume; `Io`.
    pub async fn keep_states(&self, session: Uuid, volume: &str, keep: u64) -> Result<()> {
        self.check_feed(session, volume)?;
        let mut cuts = self.cuts(volume).await?;
        let from = cuts.iter().rposition(|cut| cut.set.stamp.number <= keep).unwrap_or(0);
        let states = cuts.split_off(from).into_iter().map(|cut| cut.set.target).collect();
        self.prune_cuts(volume, Needed { states, ..Needed::default() }).await
    }

    /// Drops what is half received.
    ///
    /// # Errors
    /// `Conflict` while it runs, or when the session does not feed the volume.
    pub async fn abort_feed(&self, session: Uuid, volume: &str) -> Result<()> {
        self.check_feed(session, volume)?;
        match self.with(volume, |volume| async move { volume.receive_abort().await }).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    /// Ends a session at its receiver, because its sender says so: what is half received goes,
    /// the newest state stays.
    ///
    /// # Errors
    /// `Conflict` while something is received; `Io`.
    pub async fn close_feed(&self, session: Uuid) -> Result<()> {
        let Ok(record) = self.session(session) else { return Ok(()) };
        if record.side != Side::Receiver {
            return Err(Error::conflict("the session is sent from here"));
        }
        self.drop_halves(&record).await?;
        self.forget_session(session).await
    }

    /// The same, because the owner says so. The session is remembered as ended, so that a sender
    /// which does not know that does not begin it again.
    ///
    /// # Errors
    /// As there.
    pub async fn part_feed(&self, session: Uuid) -> Result<()> {
        self.drop_halves(&self.session(session)?).await?;
        let parted = self.change_session(session, |known| {
            let mut record = known.ok_or_else(|| Error::not_found("the session is gone"))?;
            record.condition = Condition::Ended;
            Ok(record)
        });
        parted.await.map(drop)
    }

    async fn drop_halves(&self, record: &SessionRecord) -> Result<()> {
        if record.condition == Condition::Ended {
            return Ok(());
        }
        for member in record.members.iter().filter(|member| self.has_volume(&member.volume)) {
            self.abort_feed(record.session, &member.volume).await?;
        }
        Ok(())
    }
}

impl EngineTarget<'_> {
    /// The set that a stream must be, if it comes from a session.
    pub(super) fn stamp(&self) -> Option<SetStamp> {
        self.feed.map(|feed| feed.set.stamp)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(identities: &[u128]) -> Vec<RoleEpoch> {
        let epoch = |(at, identity): (usize, &u128)| RoleEpoch {
            counter: at as u64 + 1,
            identity: Uuid::from_u128(*identity),
        };
        identities.iter().enumerate().map(epoch).collect()
    }

    #[test]
    fn of_two_lines_the_older_one_yields() {
        for (ours, theirs, expected) in [
            (&[][..], &[1][..], Relation::Follows),
            (&[1], &[1], Relation::Follows),
            (&[1], &[1, 2], Relation::Follows),
            (&[1], &[1, 2, 3], Relation::Follows),
            (&[1, 2], &[1], Relation::Fenced),
            (&[1, 2, 3], &[1], Relation::Fenced),
            (&[1, 2], &[1, 3], Relation::Split),
            (&[1, 2], &[1, 3, 4], Relation::Split),
            (&[2], &[1], Relation::Split),
            (&[1], &[], Relation::Split),
        ] {
            assert_eq!(relation(&line(ours), &line(theirs)), expected, "{ours:?} {theirs:?}");
        }
    }
}
