//! A group of three volumes that follows as one, while everything breaks.
//!
//! To the oracle the three are one volume, whose blocks are theirs one after the other. So what it
//! demands of a state, that production held it at one moment, it demands of all three together: a
//! state in which one volume is ahead of the others never was. That holds
//! - of what the primary ships, when the sets of all volumes are to be shown;
//! - of what the secondary shows, after each commit and after each crash.

use super::machine::{Process, change, image_in, look_closely, production_of, serve_calls, wish};
use super::oracle::{BLOCKS, Image};
use super::ports::{NearPort, Owner};
use crate::engine::api::{CreateOptions, SessionStatus};
use crate::engine::groups::GroupRequest;
use crate::engine::sets::Cut;
use crate::format::session::{Condition, SessionRecord, Side};
use crate::replica::manage::{PolicyChange, Replicate, replicate_on};
use crate::replica::sender;
use crate::replica::wire::{Body, Message};
use crate::snapshot::Who;
use crate::types::{OnFull, Role, SetId};
use bytes::Bytes;
use futures::task::{LocalSpawn, LocalSpawnExt};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// The group.
const GROUP: &str = "g";
/// Its volumes, and the blocks of each.
const VOLUMES: [(&str, usize); 3] = [("x", 8), ("y", 24), ("z", 16)];
const _: () = assert!(VOLUMES[0].1 + VOLUMES[1].1 + VOLUMES[2].1 == BLOCKS);

/// The volume that has a block, and which of its blocks that is.
fn place(block: usize) -> (&'static str, usize) {
    let mut rest = block;
    for (volume, blocks) in VOLUMES {
        if rest < blocks {
            return (volume, rest);
        }
        rest -= blocks;
    }
    panic!("no volume has block {block}")
}

/// What a process does from its start on.
pub(super) async fn live(process: Rc<Process>, spawner: impl LocalSpawn + Clone + 'static) {
    if process.index == 0 {
        primary(process, spawner).await;
    } else {
        secondary(process, spawner).await;
    }
}

/// What the cuts of one number hold, all volumes one after the other; none if one of them is gone.
async fn image_at(process: &Rc<Process>, number: u64) -> Option<Image> {
    let mut image = Image::new();
    for (volume, _) in VOLUMES {
        let cuts = cuts_of(process, volume).await;
        let cut = cuts.iter().find(|cut| cut.set.stamp.number == number)?;
        image.extend(image_in(process, volume, cut.set.target).await);
    }
    Some(image)
}

async fn cuts_of(process: &Rc<Process>, volume: &str) -> Vec<Cut> {
    let core = process.core();
    if !core.has_volume(volume) {
        return Vec::new();
    }
    let cuts = core.cuts(volume).await;
    process.alive().await;
    cuts.expect("a volume")
}

async fn production(process: &Rc<Process>) -> Image {
    let mut image = Image::new();
    for (volume, _) in VOLUMES {
        image.extend(production_of(process, volume).await);
    }
    image
}

/// A sender is about to say something.
pub(super) async fn leaves(process: &Rc<Process>, body: &Body) {
    let shared = &process.shared;
    match body {
        Body::Message(Message::Set { set, .. }) => shared.count(|counts| {
            counts.sets += 1;
            counts.wholes += u64::from(set.stamp.base.is_none());
        }),
        Body::Message(Message::Commit { sets }) => {
            let mut image = Image::new();
            let numbers: BTreeSet<u64> = sets.iter().map(|(_, set)| set.stamp.number).collect();
            assert_eq!((numbers.len(), sets.len()), (1, VOLUMES.len()), "not one state of all: {sets:?}");
            for ((volume, set), (expected, _)) in sets.iter().zip(VOLUMES) {
                assert_eq!(volume, expected);
                image.extend(image_in(process, volume, set.target).await);
            }
            shared.oracle.borrow_mut().shipped(sets[0].1.target, &image);
        }
        _ => {}
    }
}

/// A receiver is about to say something.
pub(super) async fn answers(process: &Rc<Process>, message: &Message) {
    let shared = &process.shared;
    match message {
        Message::Opened { members } => {
            let numbers = |of: fn(&SetId) -> u64| -> BTreeSet<Option<u64>> {
                members.iter().map(|feed| feed.applied.as_ref().map(of)).collect()
            };
            assert_eq!(numbers(|set| set.stamp.number).len(), 1, "some are ahead of the others: {members:?}");
            if let Some(set) = members[0].applied {
                shared.oracle.borrow_mut().confirms(process.index, &set);
            }
            if members.iter().any(|feed| feed.half.is_some()) {
                shared.count(|counts| counts.resumed += 1);
            }
        }
        Message::Committed => {
            look(process).await;
            if let Some(cut) = cuts_of(process, VOLUMES[0].0).await.last() {
                shared.oracle.borrow_mut().confirms(process.index, &cut.set);
            }
            shared.count(|counts| counts.confirmed += 1);
        }
        _ => {}
    }
}

/// What the secondary shows: one state of the group, which was shipped.
async fn look(process: &Rc<Process>) {
    let mut newest = Vec::new();
    for (volume, _) in VOLUMES {
        newest.push(cuts_of(process, volume).await.last().map(|cut| cut.set));
    }
    let numbers: BTreeSet<Option<u64>> =
        newest.iter().map(|set| set.as_ref().map(|set| set.stamp.number)).collect();
    assert_eq!(numbers.len(), 1, "the volumes show different states: {newest:?}");
    if let Some(Some(set)) = newest.first() {
        let image = image_at(process, set.stamp.number).await.expect("the newest states");
        process.shared.oracle.borrow().shows(process.index, set.target, &image);
    }
}

async fn secondary(process: Rc<Process>, spawner: impl LocalSpawn + Clone + 'static) {
    let core = process.core();
    look(&process).await;
    let states: Vec<_> = cuts_of(&process, VOLUMES[0].0)
        .await
        .iter()
        .map(|cut| (cut.set.stamp.number, cut.set.target))
        .collect();
    process.shared.oracle.borrow().still_has(process.index, &states);
    look_closely(&process).await;
    process.shared.up[process.index].set(true);
    loop {
        process.rest().await;
        serve_calls(&process, &core, &spawner);
    }
}

async fn primary(process: Rc<Process>, spawner: impl LocalSpawn + Clone + 'static) {
    let core = process.core();
    for (volume, blocks) in VOLUMES {
        if !core.has_volume(volume) {
            let options = CreateOptions {
                size: blocks as u64 * u64::from(process.shared.block_size),
                block_size: process.shared.block_size,
                granularity: 1,
                on_full: OnFull::Freeze,
            };
            let created = core.create(volume, &options, Role::Primary).await;
            process.alive().await;
            created.expect("a volume that is made");
        }
    }
    if core.group(GROUP).is_none() {
        let volumes = VOLUMES.map(|(volume, _)| volume.to_owned()).to_vec();
        let made = core.group_request(&GroupRequest::Create { group: GROUP.to_owned(), volumes }).await;
        process.alive().await;
        made.expect("a group that is made");
    }
    look_at_marks(&process).await;
    let first = production(&process).await;
    let life = process.shared.oracle.borrow_mut().begin(first);
    let writer = Rc::clone(&process);
    spawner.spawn_local(async move { write(&writer, life).await }).expect("a pool that runs");
    let record = session(&process).await;
    let (owner_says, status) = (Owner::default(), Rc::new(RefCell::new(SessionStatus::default())));
    process.sessions.borrow_mut().push((Rc::clone(&owner_says), Rc::clone(&status)));
    let mut port = NearPort { process: Rc::clone(&process), wire: None, owner: owner_says, status };
    let running = process.core();
    let run = async move { sender::run(&running, &mut port, record.session).await };
    spawner.spawn_local(run).expect("a pool that runs");
    owner(&process).await;
}

/// After an open of the primary: its cuts hold what they held, and deltas can start from what the
/// secondary has.
async fn look_at_marks(process: &Rc<Process>) {
    let core = process.core();
    let (first, _) = VOLUMES[0];
    let mut cuts = BTreeMap::new();
    for cut in cuts_of(process, first).await {
        // One that is not needed any more goes from one volume after the other.
        if let Some(image) = image_at(process, cut.set.stamp.number).await {
            cuts.insert(cut.set.target, image);
        }
    }
    let marks = core.marks(first).await.expect("a volume");
    process.alive().await;
    let marks = marks.into_iter().map(|mark| mark.cut.set.target).collect();
    process.shared.oracle.borrow().still_sends(&cuts, &marks);
}

/// The session, begun if there is none.
async fn session(process: &Rc<Process>) -> SessionRecord {
    let core = process.core();
    if let Some(known) = core.sessions_named(GROUP, Side::Sender).pop() {
        return known;
    }
    let timeout = process.shared.rng.borrow_mut().u64(1..600);
    let request = Replicate {
        volume: GROUP.to_owned(),
        destination: "/m1".to_owned(),
        remote_command: None,
        way_back: Some("/m0".to_owned()),
        way_back_command: None,
        change: PolicyChange { timeout_ms: Some(timeout), ..PolicyChange::default() },
    };
    let begun = replicate_on(&core, request).await;
    process.alive().await;
    begun.expect("a session that begins");
    core.sessions_named(GROUP, Side::Sender).pop().expect("the session")
}

/// The client: one write after the other, to any of the volumes.
async fn write(process: &Rc<Process>, life: usize) {
    let (core, shared) = (process.core(), &process.shared);
    while shared.counts.get().writes < shared.options.writes {
        process.pause().await;
        let (block, trim, flush) = {
            let mut rng = shared.rng.borrow_mut();
            (rng.usize(0..BLOCKS), rng.u32(0..6) == 0, rng.u32(0..10) == 0)
        };
        let stamp = shared.oracle.borrow_mut().write(life, block, trim);
        let (volume, at) = place(block);
        let size = u64::from(shared.block_size);
        let data = Bytes::from(stamp.to_le_bytes().repeat(shared.block_size as usize / 8));
        let done = core.with(volume, move |volume| async move {
            let at = at as u64 * size;
            match trim {
                true => volume.trim_while(Who::Client, &|| true, at, size, false).await?,
                false => volume.write_while(Who::Client, &|| true, at, data, false).await?,
            }
            if flush { volume.flush().await } else { Ok(()) }
        });
        let done = done.await;
        process.alive().await;
        done.expect("a write");
        process.count(|counts| counts.writes += 1);
    }
    shared.written.set(true);
}

/// The owner: wishes by chance, and in the end the look whether all is there.
async fn owner(process: &Rc<Process>) {
    let (core, shared) = (process.core(), Rc::clone(&process.shared));
    let wishes = Cell::new(0u64);
    let record = || core.sessions_named(GROUP, Side::Sender).pop().expect("the session");
    while !shared.calm.get() {
        process.rest().await;
        if !shared.chance(400) {
            continue;
        }
        process.count(|counts| counts.wishes += 1);
        if shared.chance(2) {
            wish(process, &wishes);
            continue;
        }
        let rests = record().condition == Condition::Running && shared.chance(2);
        let timeout = shared.rng.borrow_mut().u64(1..600);
        let condition = if rests { Condition::Paused } else { Condition::Running };
        change(process, record().session, condition, timeout).await;
    }
    change(process, record().session, Condition::Running, 50).await;
    wish(process, &wishes);
    let came_true = |done: &SessionStatus| done.cuts_done >= wishes.get() && done.outstanding.is_empty();
    while !process.sessions.borrow().iter().all(|(_, status)| came_true(&status.borrow())) {
        process.rest().await;
    }
    let here = production(process).await;
    let record = record();
    for (index, (volume, _)) in VOLUMES.into_iter().enumerate() {
        let marks = core.marks(volume).await.expect("a volume");
        process.alive().await;
        assert_eq!(marks.len(), 1, "marks that nobody needs stay: {marks:?}");
        assert!(marks[0].is_bookmark, "what the receiver has keeps before-images: {marks:?}");
        let newest = marks[0].cut.set.target;
        assert_eq!(record.members[index].applied.map(|set| set.target), Some(newest));
        if index == 0 {
            shared.oracle.borrow().holds(newest, &here);
        }
    }
    look_closely(process).await;
    shared.content.set(true);
}
