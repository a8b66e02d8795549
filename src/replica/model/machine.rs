//! A machine: its disk, the lives of the process on it, and what runs in each.

use super::oracle::{BLOCKS, Image};
use super::ports::{FarPort, NearPort, Owner, Wire, destination, identity};
use super::{Counts, Shared};
use crate::engine::api::{CreateOptions, SessionStatus};
use crate::engine::core::Core;
use crate::engine::model::rig::{Opening, Rig};
use crate::format::session::{Condition, Side};
use crate::io::sim::{Loss, SimDisk, SimOptions};
use crate::replica::manage::{PolicyChange, Replicate, replicate_on};
use crate::replica::receiver;
use crate::replica::sender::{self, Event};
use crate::snapshot::{Piece, Who};
use crate::types::{OnFull, Role};
use bytes::Bytes;
use futures::executor::LocalPool;
use futures::task::{LocalSpawn, LocalSpawnExt};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use uuid::Uuid;

/// The volume's name everywhere.
pub(super) const VOLUME: &str = "v";

/// A machine; the first one is the primary's.
pub(super) struct Machine {
    shared: Rc<Shared>,
    index: usize,
    disk: SimDisk,
    lives_left: u32,
    life: Option<Life>,
}

/// A process on a machine.
struct Life {
    rig: Rig,
    pool: LocalPool,
    process: Rc<Process>,
    mortal: bool,
}

/// What the tasks of a process share.
pub(super) struct Process {
    pub shared: Rc<Shared>,
    pub index: usize,
    disk: SimDisk,
    core: RefCell<Option<Rc<Core>>>,
    /// Channels that end with this process.
    pub wires: RefCell<Vec<Wire>>,
    resting: RefCell<Vec<Waker>>,
    pub sessions: RefCell<Vec<(Owner, Rc<RefCell<SessionStatus>>)>>,
    /// Whether the client here may try to write, and whether it is at it.
    pub writes: Cell<bool>,
    pub writing: Cell<bool>,
}

impl Machine {
    pub fn new(shared: &Rc<Shared>, index: usize) -> Self {
        let options = {
            let mut rng = shared.rng.borrow_mut();
            SimOptions { seed: rng.u64(..), inline: rng.bool(), reorder: rng.u32(0..4) > 0 }
        };
        let disk = SimDisk::new(options);
        Rig::init(&disk);
        let lives_left = shared.options.lives;
        Self { shared: Rc::clone(shared), index, disk, lives_left, life: None }
    }

    /// It will not crash any more.
    pub fn is_safe(&self) -> bool {
        self.life.as_ref().is_some_and(|life| !life.mortal)
    }

    pub fn doing(&self) -> Vec<SessionStatus> {
        let sessions = self.life.as_ref().map(|life| life.process.sessions.borrow().clone());
        sessions.unwrap_or_default().iter().map(|(_, status)| status.borrow().clone()).collect()
    }

    /// One turn of whatever chance says.
    pub fn turn(&mut self) {
        if self.life.is_none() {
            self.life = Some(self.begin());
        }
        if let Some(life) = &mut self.life {
            life.turn(&self.shared);
        }
        if self.disk.is_dead() {
            self.die();
        } else if self.shared.written.get() && self.life.as_ref().is_some_and(|life| life.mortal) {
            // The last life of each, to come to rest in; this one ends as it stands.
            self.lives_left = 0;
            self.disk.crash_after(0);
        }
    }

    fn begin(&mut self) -> Life {
        let options = self.shared.options;
        let mortal = self.lives_left > 0 && (options.deaths || options.power_cuts);
        let engines = {
            let mut rng = self.shared.rng.borrow_mut();
            if mortal {
                match rng.u32(0..6) {
                    0 => self.disk.crash_after(rng.u64(0..120)),
                    1..=3 => self.disk.crash_after(rng.u64(0..1500)),
                    _ => self.disk.crash_after(rng.u64(0..5000)),
                }
            }
            rng.usize(1..=2)
        };
        let rig = Rig::new(&self.disk, engines);
        let process = Rc::new(Process {
            shared: Rc::clone(&self.shared),
            index: self.index,
            disk: self.disk.clone(),
            core: RefCell::default(),
            wires: RefCell::default(),
            resting: RefCell::default(),
            sessions: RefCell::default(),
            writes: Cell::new(false),
            writing: Cell::new(false),
        });
        let pool = LocalPool::new();
        let (task, store, spawner) = (Rc::clone(&process), rig.store(), pool.spawner());
        pool.spawner().spawn_local(live(task, store, spawner)).expect("a pool that runs");
        Life { rig, pool, process, mortal }
    }

    /// The process died, or the machine with it.
    fn die(&mut self) {
        let options = self.shared.options;
        let Some(life) = self.life.take() else { return };
        self.shared.up[self.index].set(false);
        let power = options.power_cuts && (!options.deaths || self.shared.rng.borrow_mut().bool());
        if power {
            let unsynced = self.disk.unsynced().max(1);
            let loss = {
                let mut rng = self.shared.rng.borrow_mut();
                match rng.u32(0..6) {
                    0 => Loss::All,
                    1 => Loss::None,
                    2 => Loss::Alone(rng.usize(0..unsynced)),
                    3 => Loss::AllBut(rng.usize(0..unsynced)),
                    _ => Loss::Random,
                }
            };
            self.disk.power_cut(loss);
        } else {
            self.disk.crash_process();
        }
        for wire in life.process.wires.borrow().iter().chain(self.shared.calls[self.index].borrow().iter()) {
            wire.borrow_mut().break_off();
        }
        self.shared.calls[self.index].borrow_mut().clear();
        drop(life);
        self.lives_left = self.lives_left.saturating_sub(1);
        self.shared.count(|counts| match power {
            true => counts.power_cuts += 1,
            false => counts.deaths += 1,
        });
    }
}

impl Life {
    fn turn(&mut self, shared: &Shared) {
        let (chosen, patient) = {
            let mut rng = shared.rng.borrow_mut();
            (rng.usize(0..=self.rig.engines()), rng.u32(0..16) == 0)
        };
        if chosen < self.rig.engines() {
            self.rig.turn(chosen, patient);
            return;
        }
        for waker in self.process.resting.take() {
            waker.wake();
        }
        self.pool.run_until_stalled();
    }
}

impl Process {
    pub fn core(&self) -> Rc<Core> {
        Rc::clone(self.core.borrow().as_ref().expect("an open store"))
    }

    /// Goes no further in a process that is dead.
    pub async fn alive(&self) {
        if self.disk.is_dead() {
            std::future::pending().await
        }
    }

    /// Lets everything else have a few turns.
    pub async fn pause(&self) {
        let turns = self.shared.rng.borrow_mut().u32(0..4);
        for _ in 0..turns {
            self.rest().await;
        }
        self.alive().await;
    }

    /// Goes on in the next turn.
    pub async fn rest(&self) {
        let mut rested = false;
        poll_fn(move |context| {
            if rested {
                return Poll::Ready(());
            }
            rested = true;
            self.resting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
        self.alive().await;
    }

    pub fn count(&self, change: impl FnOnce(&mut Counts)) {
        self.shared.count(change);
    }
}

/// The stamps in pieces of content.
pub(super) fn stamps(pieces: Vec<Piece>, block_size: u32) -> Image {
    let mut bytes = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Data(data) => bytes.extend_from_slice(&data),
            Piece::Hole(len) => bytes.resize(bytes.len() + usize::try_from(len).expect("a small volume"), 0),
        }
    }
    let stamp_of = |block: &[u8]| {
        let stamp = u64::from_le_bytes(block[..8].try_into().expect("a block"));
        match block.chunks(8).all(|part| part == stamp.to_le_bytes()) {
            true => stamp,
            // A power cut tore a write that was never flushed; it is told apart all the same.
            false => 1 << 63 | u64::from(crc32c::crc32c(block)),
        }
    };
    bytes.chunks(block_size as usize).map(stamp_of).collect()
}

/// What a snapshot holds.
pub(super) async fn image_of(process: &Rc<Process>, snapshot: Uuid) -> Image {
    image_in(process, VOLUME, snapshot).await
}

/// What a snapshot of a volume holds.
pub(super) async fn image_in(process: &Rc<Process>, volume: &str, snapshot: Uuid) -> Image {
    let core = process.core();
    let read = core.with(volume, move |volume| async move {
        let reader = volume.open_snapshot_by_id(snapshot)?;
        reader.read(0, reader.size()).await
    });
    let read = read.await;
    process.alive().await;
    process.count(|counts| counts.compared += 1);
    stamps(read.expect("a snapshot that is read"), process.shared.block_size)
}

/// What production holds.
pub(super) async fn production(process: &Rc<Process>) -> Image {
    production_of(process, VOLUME).await
}

/// What production of a volume holds.
pub(super) async fn production_of(process: &Rc<Process>, volume: &str) -> Image {
    let core = process.core();
    let read = core.with(volume, |volume| async move { volume.read(0, volume.geometry().size).await });
    let read = read.await;
    process.alive().await;
    stamps(read.expect("a volume that is read"), process.shared.block_size)
}

/// What a process does from its start on.
async fn live(process: Rc<Process>, store: Opening, spawner: impl LocalSpawn + Clone + 'static) {
    let core = store.open(identity(process.index), process.shared.block_size).await;
    process.alive().await;
    *process.core.borrow_mut() = Some(Rc::new(core.expect("a store that opens")));
    if process.shared.options.roles {
        super::roles::live(process, spawner).await;
    } else if process.shared.options.group {
        super::groups::live(process, spawner).await;
    } else if process.index == 0 {
        primary(process, spawner).await;
    } else {
        secondary(process, spawner).await;
    }
}

async fn primary(process: Rc<Process>, spawner: impl LocalSpawn + Clone + 'static) {
    let core = process.core();
    if !core.has_volume(VOLUME) {
        let options = CreateOptions {
            size: BLOCKS as u64 * u64::from(process.shared.block_size),
            block_size: process.shared.block_size,
            granularity: 1,
            on_full: OnFull::Freeze,
        };
        let created = core.create(VOLUME, &options, Role::Primary).await;
        process.alive().await;
        created.expect("a volume that is made");
    }
    let mut cuts = BTreeMap::new();
    for cut in core.cuts(VOLUME).await.expect("a volume") {
        cuts.insert(cut.set.target, image_of(&process, cut.set.target).await);
    }
    let marks = core.marks(VOLUME).await.expect("a volume");
    let marks = marks.into_iter().map(|mark| mark.cut.set.target).collect();
    process.shared.oracle.borrow().still_sends(&cuts, &marks);
    let first = production(&process).await;
    let life = process.shared.oracle.borrow_mut().begin(first);
    let writer = Rc::clone(&process);
    spawner.spawn_local(async move { write(&writer, life).await }).expect("a pool that runs");

    // Sessions that there are go on; those that are missing begin, by chance a little later.
    let machines = process.shared.up.len();
    for machine in 1..machines {
        let there = destination(machine);
        let known = core.sessions_of(VOLUME, Side::Sender).into_iter().find(|s| s.destination == there);
        let session = match known {
            Some(known) => known.session,
            None => {
                let later = process.shared.rng.borrow_mut().u32(0..200);
                for _ in 0..later {
                    process.rest().await;
                }
                let timeout = process.shared.rng.borrow_mut().u64(1..600);
                let change = PolicyChange { timeout_ms: Some(timeout), ..PolicyChange::default() };
                let request = Replicate {
                    volume: VOLUME.to_owned(),
                    destination: there.clone(),
                    remote_command: None,
                    way_back: Some(destination(0)),
                    way_back_command: None,
                    change,
                };
                let begun = replicate_on(&core, request).await;
                process.alive().await;
                begun.expect("a session that begins");
                let mut known = core.sessions_of(VOLUME, Side::Sender);
                known.retain(|record| record.destination == there);
                known[0].session
            }
        };
        let (owner, status) = (Owner::default(), Rc::new(RefCell::new(SessionStatus::default())));
        process.sessions.borrow_mut().push((Rc::clone(&owner), Rc::clone(&status)));
        let mut port = NearPort { process: Rc::clone(&process), wire: None, owner, status };
        let running = process.core();
        let run = async move { sender::run(&running, &mut port, session).await };
        spawner.spawn_local(run).expect("a pool that runs");
    }
    owner(&process).await;
}

/// The client of the primary: one write after the other.
async fn write(process: &Rc<Process>, life: usize) {
    let (core, shared) = (process.core(), &process.shared);
    while shared.counts.get().writes < shared.options.writes {
        process.pause().await;
        let (block, trim, flush) = {
            let mut rng = shared.rng.borrow_mut();
            (rng.usize(0..BLOCKS), rng.u32(0..6) == 0, rng.u32(0..10) == 0)
        };
        let stamp = shared.oracle.borrow_mut().write(life, block, trim);
        let size = u64::from(shared.block_size);
        let data = Bytes::from(stamp.to_le_bytes().repeat(shared.block_size as usize / 8));
        let done = core.with(VOLUME, move |volume| async move {
            let at = block as u64 * size;
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

/// The owner of the primary: wishes by chance, and in the end the look whether all is there.
async fn owner(process: &Rc<Process>) {
    let (core, shared) = (process.core(), Rc::clone(&process.shared));
    let wishes = Cell::new(0u64);
    while !shared.calm.get() {
        process.rest().await;
        if !shared.chance(400) {
            continue;
        }
        let sessions = core.sessions_of(VOLUME, Side::Sender);
        let chosen = shared.rng.borrow_mut().usize(0..sessions.len());
        let record = &sessions[chosen];
        process.count(|counts| counts.wishes += 1);
        if shared.chance(2) {
            wish(process, &wishes);
            continue;
        }
        let paused = if record.condition == Condition::Running && shared.chance(2) {
            Condition::Paused
        } else {
            Condition::Running
        };
        let timeout = shared.rng.borrow_mut().u64(1..600);
        change(process, record.session, paused, timeout).await;
    }
    for record in core.sessions_of(VOLUME, Side::Sender) {
        change(process, record.session, Condition::Running, 50).await;
    }
    wish(process, &wishes);
    let came_true = |done: &SessionStatus| done.cuts_done >= wishes.get() && done.outstanding.is_empty();
    while !process.sessions.borrow().iter().all(|(_, status)| came_true(&status.borrow())) {
        process.rest().await;
    }
    let here = production(process).await;
    let marks = core.marks(VOLUME).await.expect("a volume");
    process.alive().await;
    let newest = marks.last().expect("a mark").cut.set;
    assert!(marks.iter().all(|mark| mark.is_bookmark), "what all have keeps before-images: {marks:?}");
    shared.oracle.borrow().holds(newest.target, &here);
    for record in core.sessions_of(VOLUME, Side::Sender) {
        let member = &record.members[0];
        assert_eq!(member.applied.map(|set| set.target), Some(newest.target), "{member:?}");
    }
    assert_eq!(marks.len(), 1, "marks that nobody needs stay: {marks:?}");
    look_closely(process).await;
    shared.content.set(true);
}

pub(super) fn wish(process: &Process, wishes: &Cell<u64>) {
    wishes.set(wishes.get() + 1);
    for (owner, _) in process.sessions.borrow().iter() {
        owner.borrow_mut().push_back(Event::Cut(wishes.get()));
    }
}

pub(super) async fn change(process: &Rc<Process>, session: Uuid, condition: Condition, timeout_ms: u64) {
    let core = process.core();
    let changed = core.change_session(session, |record| {
        let mut record = record.expect("a session");
        (record.condition, record.policy.timeout_ms) = (condition, timeout_ms);
        Ok(record)
    });
    let changed = changed.await;
    process.alive().await;
    changed.expect("a change");
    for (owner, _) in process.sessions.borrow().iter() {
        owner.borrow_mut().push_back(Event::Changed);
    }
}

/// Every checksum of the store.
pub(super) async fn look_closely(process: &Rc<Process>) {
    let report = process.core().verify(None, true).await;
    process.alive().await;
    let findings = report.expect("a scrub").findings;
    assert!(findings.is_empty(), "a scrub finds {findings:?}");
}

async fn secondary(process: Rc<Process>, spawner: impl LocalSpawn + Clone + 'static) {
    let core = process.core();
    look_at_states(&process, true).await;
    look_closely(&process).await;
    process.shared.up[process.index].set(true);
    loop {
        process.rest().await;
        serve_calls(&process, &core, &spawner);
        if process.shared.chance(300) {
            look_at_states(&process, false).await;
        }
    }
}

/// Serves whoever has called meanwhile.
pub(super) fn serve_calls(process: &Rc<Process>, core: &Rc<Core>, spawner: &impl LocalSpawn) {
    let calls = std::mem::take(&mut *process.shared.calls[process.index].borrow_mut());
    for wire in calls {
        process.wires.borrow_mut().push(Rc::clone(&wire));
        let (core, mut port) = (Rc::clone(core), FarPort { process: Rc::clone(process), wire });
        let serve = async move {
            // What goes wrong on a channel was told to its sender, or nobody is there.
            let _ = receiver::run(&*core, &mut port).await;
            port.wire.borrow_mut().break_off();
        };
        spawner.spawn_local(serve).expect("a pool that runs");
    }
}

/// What a secondary has: the states that were shipped, byte for byte, also while another one
/// is being received.
async fn look_at_states(process: &Rc<Process>, opened: bool) {
    let core = process.core();
    if !core.has_volume(VOLUME) {
        process.shared.oracle.borrow().still_has(process.index, &[]);
        return;
    }
    let cuts = core.cuts(VOLUME).await.expect("a volume");
    process.alive().await;
    if opened {
        let states: Vec<(u64, Uuid)> =
            cuts.iter().map(|cut| (cut.set.stamp.number, cut.set.target)).collect();
        process.shared.oracle.borrow().still_has(process.index, &states);
    }
    // The newest one never goes; an older one may while it is looked at.
    if let Some(newest) = cuts.last() {
        let image = image_of(process, newest.set.target).await;
        process.shared.oracle.borrow().shows(process.index, newest.set.target, &image);
    }
}
