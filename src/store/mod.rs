//! What lies under a volume: its directory, journal, stage, clone volume and save
//! volume. These files know how bytes become durable; they decide nothing about
//! snapshots.

pub mod clone_volume;
pub mod event;
pub mod journal;
pub mod journal_copy;
pub mod paths;
pub mod replay;
pub mod reserve;
pub mod room;
pub mod save;
pub mod small_file;
pub mod stage;

/// Sizes that a volume works with; tests make them small.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// Bytes of a segment of the save volume.
    pub segment_bytes: u64,
    /// Bytes by which a segment's allocation grows.
    pub segment_step_bytes: u64,
    /// Bytes of data that the stage holds.
    pub stage_bytes: u64,
    /// Bytes of journal after which a checkpoint is made.
    pub journal_bytes_max: u64,
    /// Bytes by which the journal's allocation grows.
    pub journal_step_bytes: u64,
    /// Bytes of before-images in one group, at most.
    pub group_bytes_max: u64,
    /// Groups that are settled at the same time, at most.
    pub groups_in_flight_max: usize,
    /// Before-images in a layer after which the next one begins, at most: what a volume holds
    /// in memory of them, and what is sealed at once.
    pub layer_entries_max: usize,
    /// Steps of long work after which the requests of clients get their turn: a map asked for
    /// a page, a staged block put into the journal.
    pub steps_at_once: usize,
    /// So many blocks at least are read, summed up or written beside the engine's thread; what
    /// is less is done sooner than handed over.
    pub beside_blocks_min: usize,
    /// Bytes that a volume with snapshots keeps allocated beside what its stage holds, so
    /// that a deletion works on a full disk.
    pub reserve_bytes: u64,
    /// Bytes of a region of which it is known durably that something in it may have changed
    /// since a mark: what one record costs and what a crash adds to a delta; a power of two.
    pub region_bytes: u64,
    /// So many regions may be active without a checkpoint being made for their sake.
    pub active_regions: u64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            segment_step_bytes: 4 << 20,
            stage_bytes: 16 << 20,
            journal_bytes_max: 64 << 20,
            journal_step_bytes: 1 << 20,
            group_bytes_max: 2 << 20,
            groups_in_flight_max: 3,
            // As many as a hash table of 2^18 places takes before it grows.
            layer_entries_max: 7 << 15,
            steps_at_once: 64,
            beside_blocks_min: 24,
            reserve_bytes: 4 << 20,
            region_bytes: 4 << 20,
            active_regions: 256,
        }
    }
}
