//! The words in which a store is asked and answers: plain data, the same for a
//! caller in this process and for one at the control socket.
//!
//! Sizes are in bytes, times in RFC 3339, snapshots oldest first.

use crate::format::upkeep::Schedule;
use crate::types::{OnFull, Role};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// What a new volume is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateOptions {
    /// Bytes that clients see.
    pub size: u64,
    /// Bytes in a block.
    pub block_size: u32,
    /// Blocks a meta bit.
    pub granularity: u32,
    /// What happens when space runs out.
    pub on_full: OnFull,
}

/// A store and its volumes, as `list --json` prints them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreInfo {
    /// The store's directory.
    pub store: String,
    /// Sorted by name.
    pub volumes: Vec<VolumeInfo>,
}

/// Volumes that belong together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
    /// The names of its volumes, sorted.
    pub volumes: Vec<String>,
}

/// The file system of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceInfo {
    /// Bytes that are free.
    pub free: u64,
    /// Bytes that it has.
    pub total: u64,
    /// Bytes kept back so that deletions work on a full disk, all volumes together; they are
    /// not among those that are free.
    pub reserved: u64,
    /// How little is free.
    pub level: SpaceLevel,
}

/// How little space is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SpaceLevel {
    /// There is enough.
    #[default]
    Ok,
    /// Less than 20 % is free.
    Low,
    /// Less than 10 %.
    VeryLow,
    /// Less than 5 %, or less than a volume takes in one step.
    Critical,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: Uuid,
    /// Who may change it.
    pub role: Role,
    /// What it shows a copy of, if it is a drill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drill: Option<DrillInfo>,
    /// `ok`, `receiving`, `rolling-back`, `frozen` (writers wait for space), `read-only (disk
    /// full)` (writes are refused for lack of space), `frozen (backlog)` and `read-only (backlog)`
    /// (a session can't keep up), `read-only` (latched after a failed write), `damaged`; of a
    /// primary `unconfirmed` (writers wait for a receiver's word), `fenced`, `handing-over` and
    /// `split`; of a secondary `resyncing`.
    pub state: String,
    /// What happens when space runs out.
    pub on_full: OnFull,
    /// Bytes that clients see.
    pub size: u64,
    /// Bytes in a block.
    pub block_size: u32,
    /// Blocks a meta bit.
    pub granularity: u32,
    /// Bytes in use by production data.
    pub in_use: u64,
    /// Bytes of before-images, all snapshots together.
    pub saved: u64,
    /// Oldest first.
    pub snapshots: Vec<SnapshotInfo>,
}

/// What a drill shows, where nothing was written to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrillInfo {
    /// Its export: `VOL+N`.
    pub export: String,
    /// The volume.
    pub volume: String,
    /// The snapshot; `null` for a state that a session brought.
    pub snapshot: Option<String>,
    /// The identity of that state.
    pub uuid: Uuid,
    /// When it was taken, RFC 3339.
    pub created: String,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Its name.
    pub name: String,
    /// Its identity, the same on every store that holds it.
    pub uuid: Uuid,
    /// When it was taken, RFC 3339.
    pub created: String,
    /// The volume's size then.
    pub size: u64,
    /// Bytes in use then.
    pub in_use: u64,
    /// Bytes of before-images in its own map.
    pub saved: u64,
    /// Bytes of before-images that its deletion would free.
    pub freed_by_delete: u64,
    /// Tags that keep it from being deleted.
    pub holds: Vec<String>,
    /// The identity of the state that it is a second name of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Uuid>,
    /// The number of the set that brought that state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<u64>,
}

/// What a changed extent is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiffKind {
    /// To be written.
    Data,
    /// To be discarded.
    Discard,
}

/// A run of changed bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiffExtent {
    /// Where it starts.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
    /// What happened to it.
    pub kind: DiffKind,
}

/// What changed between two snapshots, as `diff --json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diff {
    /// The volume's name.
    pub volume: String,
    /// The older snapshot's name.
    pub from: String,
    /// The younger snapshot's name; `null`: now.
    pub to: Option<String>,
    /// Bytes in a block.
    pub block_size: u32,
    /// Bytes to write.
    pub data_bytes: u64,
    /// Bytes to discard.
    pub discard_bytes: u64,
    /// Sorted, merged, disjoint.
    pub extents: Vec<DiffExtent>,
}

/// Which stream a sender is to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SendRequest {
    /// The volume.
    pub volume: String,
    /// The snapshot to send.
    pub snapshot: String,
    /// The base by name; none: a whole stream.
    pub from: Option<String>,
    /// Compress the chunks with zstd.
    pub compress: bool,
    /// The token of `receive --status`: leave out what has arrived.
    pub resume: Option<String>,
}

/// How a receive ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// The volume.
    pub volume: String,
    /// The snapshot received.
    pub snapshot: String,
    /// Its identity.
    pub uuid: Uuid,
    /// It was there before; nothing was done.
    pub already: bool,
    /// Bytes of data applied by this call.
    pub data_bytes: u64,
    /// Bytes discarded by this call.
    pub discard_bytes: u64,
}

/// A receive that was begun and not ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HalfReceived {
    /// The volume.
    pub volume: String,
    /// The name of the snapshot that is being received.
    pub snapshot: String,
    /// Its identity.
    pub uuid: Uuid,
    /// The identity of its base; none: a whole stream.
    pub base: Option<Uuid>,
    /// Every byte of the volume below this is durable here.
    pub durable: u64,
    /// What `send --resume` takes.
    pub token: String,
    /// A receive is running at this moment.
    pub running: bool,
}

/// Something that `check` or `scrub` found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The volume, if it lies in one.
    pub volume: Option<String>,
    /// The snapshot, if one is affected.
    pub snapshot: Option<String>,
    /// The file, relative to the store.
    pub file: String,
    /// The block, if one is affected.
    pub block: Option<u64>,
    /// What is wrong, in a sentence.
    pub problem: String,
    /// What was done about it, with `--repair`.
    pub repaired: Option<String>,
    /// What its owner can do about it.
    #[serde(default)]
    pub advice: String,
}

/// What `check` or `scrub` saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Volumes looked at.
    pub volumes: u64,
    /// Snapshots looked at.
    pub snapshots: u64,
    /// Files read.
    pub files: u64,
    /// Bytes whose checksum was verified.
    pub bytes: u64,
    /// Empty when all is well.
    pub findings: Vec<Finding>,
}

/// What the daemon is doing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Whether a daemon serves the store.
    pub running: bool,
    /// The daemon's process number.
    pub pid: Option<u32>,
    /// The program's version.
    pub version: String,
    /// Addresses on which exports are served.
    pub listening: Vec<String>,
    /// `io_uring` or `plain`.
    pub io_engine: String,
    /// The file system of the store.
    #[serde(default)]
    pub space: SpaceInfo,
    /// Its volumes, and how they stand with that space.
    #[serde(default)]
    pub volumes: Vec<VolumeStatus>,
    /// Clients connected.
    pub clients: Vec<ClientInfo>,
    /// Transfers under way.
    pub transfers: Vec<TransferInfo>,
    /// Sessions of replication.
    #[serde(default)]
    pub sessions: Vec<SessionStatus>,
}

/// How a session of replication stands, as one of its ends knows it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Its identity.
    pub session: Uuid,
    /// The volume here.
    pub unit: String,
    /// `sender` or `receiver`.
    pub role: String,
    /// Where it ships to; at a receiver the identity of the sender's store.
    pub peer: String,
    /// `connecting`, `copying`, `following`, `waiting`, `error`, `paused`, `split`, `fenced`,
    /// `handing-over`, `given-way`, `ended`; `turned` at a receiver that took its sender's place;
    /// `stopped` while no daemon runs it.
    pub state: String,
    /// The set that is being shipped.
    pub set: Option<SetProgress>,
    /// The number of the last set that the receiver can't lose.
    pub durable: Option<u64>,
    /// The number of the last set that the receiver shows.
    pub applied: Option<u64>,
    /// Sets that are cut and not applied there, oldest first.
    pub outstanding: Vec<OutstandingSet>,
    /// Bytes a second, of the last few seconds.
    pub rate: u64,
    /// Bytes a second, over all sets of the history.
    pub average_rate: u64,
    /// Seconds by which the receiver is behind; 0 when it shows what is here.
    pub lag_seconds: f64,
    /// Blocks by which it is behind, about.
    pub lag_blocks: u64,
    /// The same in bytes.
    #[serde(default)]
    pub lag_bytes: u64,
    /// Bytes that were sent in this run of the daemon.
    #[serde(default)]
    pub shipped_bytes: u64,
    /// Sets that were applied in this run.
    #[serde(default)]
    pub shipped_sets: u64,
    /// Attempts that failed in this run.
    #[serde(default)]
    pub failed_attempts: u64,
    /// Marks that it has passed, in words.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Failures since something was applied.
    pub failures: u64,
    /// What went wrong last.
    pub last_error: Option<String>,
    /// Cuts that were asked for by hand.
    pub cuts_asked: u64,
    /// Those of them that are applied.
    pub cuts_done: u64,
    /// The last sets, youngest first.
    pub history: Vec<SetHistory>,
}

/// A set on its way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetProgress {
    /// Its number.
    pub number: u64,
    /// It is a whole copy.
    pub whole: bool,
    /// Bytes of its stream that were sent now.
    pub sent_bytes: u64,
    /// Bytes of data and discards that it has, without what had arrived earlier.
    pub total_bytes: u64,
}

/// A set that is not applied yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutstandingSet {
    /// Its number.
    pub number: u64,
    /// When it was cut, RFC 3339.
    pub created: String,
}

/// A set that was applied.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SetHistory {
    /// Its number.
    pub number: u64,
    /// It was a whole copy.
    pub whole: bool,
    /// Bytes of its stream that were sent.
    pub bytes: u64,
    /// From its first byte to its confirmation.
    pub seconds: f64,
}

/// How a volume stands with the space around it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// Its name.
    pub name: String,
    /// As `list` shows it.
    pub state: String,
    /// What happens when space runs out.
    pub on_full: OnFull,
    /// Bytes kept back so that deletions work on a full disk.
    pub reserved: u64,
    /// Requests of writers that wait for space.
    pub waiting_writes: usize,
    /// Snapshots deleted to make room, since the volume was opened.
    pub dropped_snapshots: u64,
    /// Its schedule, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleStatus>,
}

/// A volume's schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleInfo {
    /// The volume.
    pub volume: String,
    /// When it takes snapshots and which it keeps; none: it has no schedule.
    pub schedule: Option<Schedule>,
    /// What came of it.
    #[serde(flatten)]
    pub status: ScheduleStatus,
}

/// From where a volume is updated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateSource {
    /// The volume there, as a destination; empty: nobody said so yet.
    pub source: String,
    /// The program to run there, as its shell takes it; empty: `snapvol`.
    pub remote_command: String,
    /// When it was asked last whether there is something newer, in microseconds since 1970; 0:
    /// never.
    pub checked_us: u64,
}

/// What a schedule did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScheduleStatus {
    /// Snapshots that it took and that are there.
    pub snapshots: usize,
    /// When the youngest of them was taken, RFC 3339.
    pub last: Option<String>,
    /// What keeps it from its work; it is tried again.
    pub error: Option<String>,
}

/// A volume in figures that are at hand at any time, for whoever asks every few seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeFigures {
    /// Its name.
    pub name: String,
    /// Who may change it.
    pub role: Role,
    /// As `list` shows it.
    pub state: String,
    /// Bytes that clients see.
    pub size: u64,
    /// Bytes in use by production data.
    pub in_use: u64,
    /// Bytes of before-images.
    pub saved: u64,
    /// Bytes of its journal.
    pub journal: u64,
    /// Bytes kept back so that deletions work on a full disk.
    pub reserved: u64,
    /// Snapshots that users see.
    pub snapshots: u64,
    /// Requests of writers that wait for space.
    pub waiting_writes: u64,
    /// Snapshots deleted to make room, since the volume was opened.
    pub dropped_snapshots: u64,
    /// Clients that read it or its snapshots, and those that may write.
    pub clients: (u64, u64),
    /// Requests by kind: their number, and the bytes that they were about.
    pub requests: Vec<(&'static str, u64, u64)>,
}

/// A client of an export.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientInfo {
    /// `VOL` or `VOL@SNAP`.
    pub export: String,
    /// Its address, or `unix`.
    pub peer: String,
    /// Whether it may write.
    pub writable: bool,
}

/// A send or receive under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferInfo {
    /// `send` or `receive`.
    pub kind: String,
    /// The volume.
    pub volume: String,
    /// The snapshot.
    pub snapshot: String,
    /// Bytes of data so far.
    pub data_bytes: u64,
    /// Bytes of data in all, where it is known.
    pub total_bytes: Option<u64>,
}
