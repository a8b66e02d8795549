//! The state of a volume: it comes back, and nothing that is no state does.

use super::*;
use crate::types::Standing;

/// A state with something in every field.
pub(in crate::format) fn full() -> VolumeState {
    let geometry = Geometry::new(1 << 30, 4096, 4).unwrap();
    let mut state = VolumeState::new(Uuid::from_u128(1), geometry, OnFull::DropOldest, Role::Secondary);
    state.seq = Seq(100);
    state.epoch = Epoch(7);
    state.unsealed = Epoch(6);
    state.checkpoint = CheckpointRecord { file: 2, seq: Seq(90), tail_pages: true };
    state.snapshots = vec![snapshot("first", &["backup", "me"]), snapshot("_hidden", &[])];
    state.layers = vec![layer(2, 4), layer(4, 6)];
    state.segments.insert(1, SegmentRecord { generation: 2, mark: 4096, closed: None });
    state.segments.insert(2, SegmentRecord { generation: 1, mark: 8192, closed: Some(Epoch(3)) });
    state.rollback = Some(Uuid::from_u128(5));
    state.receive = Some(receive());
    state.lineage = vec![role_epoch(1), role_epoch(2)];
    state.last_cut = 77;
    state.bookmarks = vec![bookmark("_set-76"), bookmark("")];
    state.touched =
        vec![TouchedRecord { mark: Epoch(1), file: 88 }, TouchedRecord { mark: Epoch(2), file: 0 }];
    state.active = vec![(0, 1024), (1 << 20, 4096)];
    state.roles.standing = Standing::Fenced;
    state.roles.operation = Some(Uuid::from_u128(10));
    state
}

pub(in crate::format) fn snapshot(name: &str, holds: &[&str]) -> SnapshotRecord {
    SnapshotRecord {
        uuid: Uuid::from_u128(3),
        name: name.to_owned(),
        created_us: 1_700_000_000_000_000,
        epoch: Epoch(2),
        size: 1 << 30,
        in_use: 12,
        holds: holds.iter().map(|&tag| tag.to_owned()).collect(),
        set: (!holds.is_empty()).then(stamp),
    }
}

fn role_epoch(counter: u64) -> RoleEpoch {
    RoleEpoch { counter, identity: Uuid::from_u128(u128::from(counter) << 8) }
}

pub(in crate::format) fn stamp() -> SetStamp {
    SetStamp { epoch: role_epoch(2), number: 12, base: Some(Uuid::from_u128(9)) }
}

fn bookmark(name: &str) -> BookmarkRecord {
    let record = SnapshotRecord { set: Some(stamp()), ..snapshot(name, &[]) };
    BookmarkRecord::of(&record).unwrap()
}

pub(in crate::format) fn layer(first: u64, end: u64) -> LayerRecord {
    LayerRecord {
        first: Epoch(first),
        end: Epoch(end),
        entries: 5,
        live: vec![(1, 3), (2, 2)],
        version: 8,
        pages: 6,
    }
}

pub(in crate::format) fn receive() -> ReceiveRecord {
    ReceiveRecord {
        target: Uuid::from_u128(6),
        name: "coming".to_owned(),
        created_us: 5,
        size: 1 << 29,
        base: Some(Uuid::from_u128(3)),
        before: None,
        durable: 1 << 20,
        aborting: true,
        arrived: false,
        set: Some(stamp()),
        begun_us: 6,
    }
}

fn bytes_of(state: &VolumeState) -> Vec<u8> {
    let mut out = Put::default();
    state.put(&mut out);
    out.0
}

fn read(bytes: &[u8]) -> Result<VolumeState> {
    let mut from = Fields(bytes);
    let state = VolumeState::take(&mut from)?;
    from.end()?;
    Ok(state)
}

#[test]
fn a_state_comes_back() {
    let mut state = full();
    assert_eq!(read(&bytes_of(&state)).unwrap(), state);
    state.receive = None;
    state.rollback = None;
    assert_eq!(read(&bytes_of(&state)).unwrap(), state);
}

/// The bound on counts must not be larger than the smallest thing: a volume with many
/// short names and nothing else in its state would not open again.
#[test]
fn many_short_names_come_back() {
    let geometry = Geometry::new(1 << 30, 4096, 1).unwrap();
    for count in [1, 9, 10, 14, 100, 1000] {
        for name in ["", "1", "12", "123"] {
            let mut state = VolumeState::new(Uuid::nil(), geometry, OnFull::Freeze, Role::Primary);
            state.snapshots = vec![snapshot(name, &[]); count];
            assert_eq!(read(&bytes_of(&state)).unwrap(), state, "{count} of '{name}'");
            (state.snapshots, state.bookmarks) = (Vec::new(), vec![bookmark(name); count]);
            assert_eq!(read(&bytes_of(&state)).unwrap(), state, "{count} of '{name}'");
        }
    }
    let mut state = VolumeState::new(Uuid::nil(), geometry, OnFull::Freeze, Role::Primary);
    for number in 0..100 {
        state.layers.push(LayerRecord { live: Vec::new(), ..layer(number, number + 1) });
        state
            .segments
            .insert(u32::try_from(number).unwrap(), SegmentRecord { generation: 0, mark: 0, closed: None });
    }
    assert_eq!(read(&bytes_of(&state)).unwrap(), state);
}

#[test]
fn what_ends_early_is_damage() {
    let bytes = bytes_of(&full());
    for len in 0..bytes.len() {
        assert_eq!(read(&bytes[..len]).unwrap_err().kind(), crate::ErrorKind::Corrupt, "{len} bytes");
    }
}

#[test]
fn nonsense_is_damage() {
    let good = bytes_of(&full());
    // Geometry: size 0 and beyond 64 TiB, block sizes, granularity; policy; role; file of
    // the checkpoint; a flag.
    for (at, bytes) in [
        (16, &[0; 8][..]),
        (16, &[255; 8]),
        (16, &[1]),
        (24, &[0; 4]),
        (24, &[1, 16, 0, 0]),
        (24, &[0, 0, 0, 128]),
        (28, &[0; 4]),
        (28, &[3, 0, 0, 0]),
        (28, &[255; 4]),
        (32, &[3]),
        (33, &[2]),
        (58, &[3]),
        (67, &[2]),
        (68, &[255; 4]),
    ] {
        let mut bad = good.clone();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(read(&bad).unwrap_err().kind(), crate::ErrorKind::Corrupt, "{bytes:?} at {at}");
    }
}
