//! Two machines that change roles, by chance and in any order, while everything breaks.
//!
//! What must hold, beside what [`super::oracle`] says of sets:
//! - whoever starts after another volume took its place acknowledges no write, and neither does one
//!   that was fenced, unless its owner has made it a primary again;
//! - a volume that takes its primary's place goes on from a state that was shipped, and from none
//!   older than it had confirmed;
//! - what an old primary had of its own is in its snapshot, byte for byte, and stays;
//! - a pair that was turned around lost nothing that was acknowledged;
//! - from whatever the commands left, the next ones lead to a pair in which one follows the other.

use super::machine::{Process, VOLUME, image_of, look_closely, production};
use super::oracle::{BLOCKS, Image};
use super::ports::{FarPort, NearPort, Owner, Wire, destination, identity};
use crate::engine::api::{CreateOptions, SessionStatus};
use crate::engine::roles::{RoleAnswer, RoleRequest, Seen};
use crate::error::{Error, ErrorKind, Result};
use crate::format::session::Side;
use crate::replica::failover::{self, Port};
use crate::replica::handover::Wish;
use crate::replica::manage::{PolicyChange, Replicate, replicate_on};
use crate::replica::sender::{self, Event};
use crate::replica::wire::{Body, Message, broke, far_failure};
use crate::replica::{receiver, resync};
use crate::snapshot::Who;
use crate::transport::Destination;
use crate::types::{OnFull, Role, RoleEpoch, Standing};
use bytes::Bytes;
use futures::channel::oneshot;
use futures::task::{LocalSpawn, LocalSpawnExt};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;
use uuid::Uuid;

/// How long another machine may take to answer.
const ANSWER_WAIT: Duration = Duration::from_secs(60);

/// What was seen of roles.
#[derive(Default)]
pub(super) struct Watch {
    /// The line in which each machine's volume became the primary last.
    taken: [Vec<RoleEpoch>; 2],
    /// What the other machine's line was like when each machine's present life began.
    late: [Vec<RoleEpoch>; 2],
    /// What snapshots of an old primary's own state hold.
    kept: BTreeMap<Uuid, Image>,
    /// The life in the oracle that each machine's client writes in.
    life: [usize; 2],
    begun: bool,
}

/// Something that a command may say: it changed nothing, or the next one goes on.
#[track_caller]
fn allowed<T>(what: &str, done: Result<T>) -> Option<T> {
    match done {
        Ok(done) => Some(done),
        Err(error) => {
            let kind = error.kind();
            let may = [ErrorKind::Conflict, ErrorKind::Interrupted, ErrorKind::NotFound, ErrorKind::ReadOnly];
            assert!(may.contains(&kind), "{what}: {error:?}");
            None
        }
    }
}

/// The port of a command.
struct Caller(Rc<Process>);

impl Port for Caller {
    async fn ask(&mut self, there: &str, _: &str, request: RoleRequest) -> Result<RoleAnswer> {
        let (process, shared) = (&self.0, &self.0.shared);
        process.pause().await;
        let there: Destination = there.parse()?;
        let machine: usize = there.store[2..].parse().expect("the number of a machine");
        if !shared.up[machine].get() {
            return Err(Error::new(ErrorKind::Interrupted, "nobody answers"));
        }
        let wire = Wire::default();
        wire.borrow_mut().to_far.push_back((Uuid::nil(), Body::Message(Message::Ask { request })));
        shared.calls[machine].borrow_mut().push(Rc::clone(&wire));
        process.wires.borrow_mut().push(Rc::clone(&wire));
        let until = shared.clock.get() + ANSWER_WAIT;
        loop {
            process.rest().await;
            if shared.options.cuts && !shared.calm.get() && shared.chance(80) {
                wire.borrow_mut().break_off();
            }
            let mut line = wire.borrow_mut();
            match line.to_near.pop_front() {
                Some(Message::Told { answer: RoleAnswer::Seen(seen) }) => {
                    return Ok(RoleAnswer::Seen(Box::new(Seen { served: true, ..*seen })));
                }
                Some(Message::Told { answer }) => return Ok(answer),
                Some(Message::Failed { kind, message, hint }) => {
                    return Err(far_failure(&kind, &message, hint.as_deref()));
                }
                Some(other) => panic!("'{}' answers a question", other.word()),
                None if line.broken || shared.clock.get() >= until => return Err(broke()),
                None => {}
            }
        }
    }

    fn is_connected(&self, _: Uuid) -> bool {
        self.0.shared.chance(4)
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.0.shared.clock.get().as_micros()).unwrap_or(u64::MAX)
    }
}

/// What a process does from its start on.
pub(super) async fn live(process: Rc<Process>, spawner: impl LocalSpawn + Clone + 'static) {
    let (core, me) = (process.core(), process.index);
    {
        let mut watch = process.shared.roles.borrow_mut();
        watch.late[me] = watch.taken[1 - me].clone();
    }
    if me == 0 && !core.has_volume(VOLUME) {
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
    look_at_all(&process).await;
    look_closely(&process).await;
    process.shared.up[me].set(true);
    let (answering, running, writing) = (Rc::clone(&process), Rc::clone(&process), Rc::clone(&process));
    let (for_channels, for_sessions) = (spawner.clone(), spawner.clone());
    let tasks = [
        spawner.spawn_local(async move { answer(&answering, for_channels).await }),
        spawner.spawn_local(async move { run_sessions(&running, for_sessions).await }),
        spawner.spawn_local(async move { write(&writing).await }),
    ];
    tasks.into_iter().for_each(|task| task.expect("a pool that runs"));
    if core.has_volume(VOLUME) {
        admit_writer(&process).await;
    }
    operate(&process).await;
    mend(&process).await;
}

async fn seen(process: &Rc<Process>) -> Option<Seen> {
    let core = process.core();
    if !core.has_volume(VOLUME) {
        return None;
    }
    let seen = core.look(VOLUME).await;
    process.alive().await;
    let seen = seen.expect("a volume");
    if seen.role == Role::Primary {
        process.shared.roles.borrow_mut().taken[process.index].clone_from(&seen.lineage);
    } else {
        // Whatever becomes of it, the client's next life does not begin where this one ends.
        while process.writing.get() {
            process.rest().await;
        }
        process.writes.set(false);
    }
    Some(seen)
}

/// The client may try to write, if the volume is a primary: from here on its state is known.
async fn admit_writer(process: &Rc<Process>) {
    let Some(seen) = seen(process).await else { return };
    if seen.role != Role::Primary || process.writes.get() {
        return;
    }
    let first = production(process).await;
    let life = process.shared.oracle.borrow_mut().begin(first);
    process.shared.roles.borrow_mut().life[process.index] = life;
    process.writes.set(true);
}

/// Serves whoever connects.
async fn answer(process: &Rc<Process>, spawner: impl LocalSpawn) {
    let core = process.core();
    loop {
        process.rest().await;
        let calls = std::mem::take(&mut *process.shared.calls[process.index].borrow_mut());
        for wire in calls {
            process.wires.borrow_mut().push(Rc::clone(&wire));
            let (core, mut port) = (Rc::clone(&core), FarPort { process: Rc::clone(process), wire });
            let serve = async move {
                // What goes wrong on a channel was told to its sender, or nobody is there.
                let _ = receiver::run(&*core, &mut port).await;
                port.process.rest().await;
                if port.wire.borrow().to_near.is_empty() {
                    port.wire.borrow_mut().break_off();
                }
            };
            spawner.spawn_local(serve).expect("a pool that runs");
        }
        if process.shared.chance(400) {
            look_at_all(process).await;
        }
    }
}

/// Runs all sessions that there are, also those that begin later.
async fn run_sessions(process: &Rc<Process>, spawner: impl LocalSpawn) {
    let core = process.core();
    let mut known = BTreeSet::new();
    loop {
        for record in core.sessions() {
            if record.side != Side::Sender || !known.insert(record.session) {
                continue;
            }
            let (owner, status) = (Owner::default(), Rc::new(RefCell::new(SessionStatus::default())));
            process.sessions.borrow_mut().push((Rc::clone(&owner), Rc::clone(&status)));
            let mut port = NearPort { process: Rc::clone(process), wire: None, owner, status };
            let (core, session) = (process.core(), record.session);
            let run = async move { sender::run(&core, &mut port, session).await };
            spawner.spawn_local(run).expect("a pool that runs");
        }
        process.rest().await;
    }
}

/// The client: one write after the other, refused or not.
async fn write(process: &Rc<Process>) {
    let (core, shared, me) = (process.core(), &process.shared, process.index);
    loop {
        process.pause().await;
        let counts = shared.counts.get();
        if counts.writes >= shared.options.writes || counts.refused >= 4 * shared.options.writes {
            shared.written.set(true);
        }
        if !process.writes.get() || shared.calm.get() {
            continue;
        }
        let (block, trim, flush) = {
            let mut rng = shared.rng.borrow_mut();
            (rng.usize(0..BLOCKS), rng.u32(0..6) == 0, rng.u32(0..10) == 0)
        };
        let life = shared.roles.borrow().life[me];
        let stamp = shared.oracle.borrow_mut().write(life, block, trim);
        let size = u64::from(shared.block_size);
        let data = Bytes::from(stamp.to_le_bytes().repeat(shared.block_size as usize / 8));
        process.writing.set(true);
        let done = core.with(VOLUME, move |volume| async move {
            let at = block as u64 * size;
            match trim {
                true => volume.trim_while(Who::Client, &|| true, at, size, false).await?,
                false => volume.write_while(Who::Client, &|| true, at, data, false).await?,
            }
            if flush {
                volume.flush().await?;
            }
            Ok(volume.lineage())
        });
        let done = done.await;
        process.alive().await;
        process.writing.set(false);
        match done {
            Ok(line) => {
                process.count(|counts| counts.writes += 1);
                let late = &shared.roles.borrow().late[me];
                assert!(
                    late.last() == line.last() || line.last().is_none_or(|last| !late.contains(last)),
                    "machine {me} acknowledged a write after another volume had taken its place"
                );
            }
            Err(error) => {
                assert!(
                    matches!(error.kind(), ErrorKind::ReadOnly | ErrorKind::Interrupted),
                    "a write: {error:?}"
                );
                shared.oracle.borrow_mut().refuse(life);
                process.count(|counts| counts.refused += 1);
            }
        }
    }
}

/// Commands by chance.
async fn operate(process: &Rc<Process>) {
    let (core, shared) = (process.core(), Rc::clone(&process.shared));
    while !shared.calm.get() {
        process.rest().await;
        if !shared.roles.borrow().begun && process.index == 0 {
            begin(process).await;
        }
        if !shared.chance(60) {
            continue;
        }
        let Some(seen) = seen(process).await else { continue };
        admit_writer(process).await;
        let roles = core.roles(VOLUME).await.expect("a volume");
        let unsure = core.is_unconfirmed(VOLUME).await.expect("a volume");
        process.alive().await;
        match (seen.role, seen.standing.is_open()) {
            (Role::Secondary, _) if roles.resync.is_some() => match shared.chance(3) {
                true => abort(process).await,
                false => follow_again(process).await,
            },
            (Role::Secondary, _) if shared.chance(2) => take_place(process).await,
            (Role::Primary, false) if shared.chance(2) => follow_again(process).await,
            (Role::Primary, open) if (!open || unsure) && shared.chance(4) => go_alone(process).await,
            (Role::Primary, true) if shared.chance(6) => follow_again(process).await,
            (Role::Primary, true) => hand_over(process).await,
            _ => {}
        }
    }
}

/// The first session of all.
async fn begin(process: &Rc<Process>) {
    let core = process.core();
    let timeout = process.shared.rng.borrow_mut().u64(1..600);
    let request = Replicate {
        volume: VOLUME.to_owned(),
        destination: destination(1),
        remote_command: None,
        way_back: Some(destination(0)),
        way_back_command: None,
        change: PolicyChange { timeout_ms: Some(timeout), ..PolicyChange::default() },
    };
    let begun = replicate_on(&core, request).await;
    process.alive().await;
    begun.expect("a session that begins");
    process.shared.roles.borrow_mut().begun = true;
}

/// A failover here.
async fn take_place(process: &Rc<Process>) {
    let (core, me) = (process.core(), process.index);
    let request = {
        let mut rng = process.shared.rng.borrow_mut();
        let (now, force) = (rng.u32(0..3) == 0, rng.bool());
        failover::Request { volume: VOLUME.to_owned(), now, force, ..failover::Request::default() }
    };
    let done = failover::run(&core, &mut Caller(Rc::clone(process)), &request).await;
    process.alive().await;
    let Some(report) = allowed("failover", done) else { return };
    let roles = core.roles(VOLUME).await.expect("a volume");
    process.alive().await;
    if !process.writes.get() {
        let restart = roles.restart.expect("a restart point");
        let image = production(process).await;
        {
            let oracle = process.shared.oracle.borrow();
            assert_eq!(Some(&image), oracle.image(restart.target), "a failover goes on from something else");
            let confirmed = oracle.confirmed(me).unwrap_or(0);
            assert!(restart.stamp.number >= confirmed, "a failover lost {confirmed}");
        }
        if !report.already {
            process.count(|counts| counts.failovers += 1);
        }
    }
    // From here on whoever is behind this machine's line must not begin to write.
    seen(process).await.expect("a volume");
    admit_writer(process).await;
}

/// The other machine's volume becomes the primary, with all that was acknowledged here.
async fn hand_over(process: &Rc<Process>) {
    let (core, me) = (process.core(), process.index);
    let sessions = process.sessions.borrow().clone();
    let following = sessions.iter().rev().find(|(_, status)| status.borrow().state == "following");
    let Some((owner, _)) = following else { return };
    let pause_max = Duration::from_millis(process.shared.rng.borrow_mut().u64(1..20_000));
    let (answer, mut answered) = oneshot::channel();
    owner.borrow_mut().push_back(Event::HandOver(Wish { pause_max, force: true, answer }));
    let done = loop {
        process.rest().await;
        match answered.try_recv() {
            Ok(None) => {}
            Ok(Some(done)) => break done,
            // The session ended, or the wish was heard by nobody.
            Err(_) => return,
        }
        if process.shared.calm.get() {
            return;
        }
    };
    if allowed("handover", done).is_none() {
        return;
    }
    let wrote = process.writes.replace(false);
    while process.writing.get() {
        process.rest().await;
    }
    let last = core.cuts(VOLUME).await.expect("a volume").pop().expect("a cut").set;
    let line = core.look(VOLUME).await.expect("a volume").lineage;
    process.alive().await;
    // The last set of this machine, unless another one has come from there by now.
    let of_mine = line.last() != Some(&last.stamp.epoch);
    if wrote && of_mine {
        let oracle = process.shared.oracle.borrow();
        let mine = oracle.last_image(process.shared.roles.borrow().life[me]);
        assert_eq!(oracle.image(last.target), Some(&mine), "a handover lost something");
    }
    process.count(|counts| counts.handovers += 1);
}

/// A resync here.
async fn follow_again(process: &Rc<Process>) {
    let (core, me) = (process.core(), process.index);
    let full = process.shared.chance(6);
    let request = resync::Request {
        volume: VOLUME.to_owned(),
        from: Some(destination(1 - me)),
        way_back: Some(destination(me)),
        full,
        force: true,
        ..resync::Request::default()
    };
    let begun = resync::run(&core, &mut Caller(Rc::clone(process)), &request).await;
    process.alive().await;
    let Some(_) = allowed("resync", begun) else { return };
    process.count(|counts| counts.resyncs += 1);
    let resync = core.resync_of(VOLUME).await.expect("a volume");
    process.alive().await;
    while process.writing.get() {
        process.rest().await;
    }
    let wrote = process.writes.replace(false);
    // It may have ended by now; its snapshot is looked at while it is held.
    let Some(resync) = resync else { return };
    let image = image_of(process, resync.diverged).await;
    let mut watch = process.shared.roles.borrow_mut();
    if wrote {
        let last = process.shared.oracle.borrow().last_image(watch.life[me]);
        assert_eq!(image, last, "what machine {me} had of its own is not in its snapshot");
    }
    let known = watch.kept.entry(resync.diverged).or_insert_with(|| image.clone());
    assert_eq!(*known, image, "what was kept changed");
}

async fn abort(process: &Rc<Process>) {
    let (core, me) = (process.core(), process.index);
    let request = resync::Request {
        volume: VOLUME.to_owned(),
        from: Some(destination(1 - me)),
        way_back: Some(destination(me)),
        abort: true,
        ..resync::Request::default()
    };
    let done = resync::abort(&core, &mut Caller(Rc::clone(process)), &request).await;
    process.alive().await;
    if allowed("abort", done).is_some() {
        process.count(|counts| counts.aborts += 1);
        admit_writer(process).await;
    }
}

/// The owner makes this volume a primary, whatever the other one is.
async fn go_alone(process: &Rc<Process>) {
    let done = process.core().promote(VOLUME, true).await;
    process.alive().await;
    if allowed("promote", done).is_some() {
        process.count(|counts| counts.alone += 1);
        admit_writer(process).await;
    }
}

/// Snapshots of own states are as they were, and cuts hold what was shipped under their names.
async fn look_at_all(process: &Rc<Process>) {
    let core = process.core();
    if !core.has_volume(VOLUME) {
        return;
    }
    for uuid in core.offers(VOLUME).await.expect("a volume") {
        let known = {
            let (watch, oracle) = (process.shared.roles.borrow(), process.shared.oracle.borrow());
            watch.kept.get(&uuid).or_else(|| oracle.image(uuid)).cloned()
        };
        let Some(known) = known else { continue };
        let read = core.with(VOLUME, move |volume| async move {
            let reader = volume.open_snapshot_by_id(uuid)?;
            reader.read(0, reader.size()).await
        });
        let read = read.await;
        process.alive().await;
        match read {
            Ok(pieces) => {
                let image = super::machine::stamps(pieces, process.shared.block_size);
                assert_eq!(image, known, "machine {} shows something else as {uuid}", process.index);
            }
            // An older one may go meanwhile.
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}"),
        }
    }
}

/// When nothing breaks any more: whatever was left becomes a pair of which one follows the other.
async fn mend(process: &Rc<Process>) {
    let (core, shared, me) = (process.core(), Rc::clone(&process.shared), process.index);
    let wishes = Cell::new(0u64);
    loop {
        for _ in 0..200 {
            process.rest().await;
        }
        if me == 0 && !shared.roles.borrow().begun {
            begin(process).await;
        }
        let Some(mine) = seen(process).await else { continue };
        admit_writer(process).await;
        let ask = RoleRequest::Look { volume: VOLUME.to_owned() };
        let theirs = Caller(Rc::clone(process)).ask(&destination(1 - me), "", ask).await;
        let Ok(RoleAnswer::Seen(theirs)) = theirs else { continue };
        let resync = core.resync_of(VOLUME).await.expect("a volume");
        process.alive().await;
        let primary = |seen: &Seen| seen.role == Role::Primary && seen.standing.is_open();
        let turned = core.turned(VOLUME).is_some_and(|turned| turned.members[0].applied.is_none());
        match (primary(&mine), primary(&theirs)) {
            (true, true) if me == 1 || is_behind(&mine, &theirs) => follow_again(process).await,
            (false, true) if resync.is_some() || mine.role == Role::Primary => follow_again(process).await,
            (false, true) if turned => take_place(process).await,
            (false, false) if resync.is_some() => abort(process).await,
            (false, false) if mine.standing == Standing::Fenced && me == 0 => go_alone(process).await,
            (false, false) if mine.standing == Standing::Fenced && theirs.role == Role::Secondary => {
                go_alone(process).await;
            }
            (false, false) if mine.role == Role::Secondary && theirs.role == Role::Secondary => {
                take_place(process).await;
            }
            (true, false) if theirs.role == Role::Secondary && is_equal(process, &wishes).await => {
                look_closely(process).await;
                shared.content.set(true);
            }
            _ => {}
        }
    }
}

/// Whether the other line is further in one's own.
fn is_behind(mine: &Seen, theirs: &Seen) -> bool {
    mine.lineage.last().is_some_and(|last| theirs.lineage.contains(last))
}

/// Whether the other machine has all that is here.
async fn is_equal(process: &Rc<Process>, wishes: &Cell<u64>) -> bool {
    let core = process.core();
    let here = production(process).await;
    wishes.set(wishes.get() + 1);
    for (owner, _) in process.sessions.borrow().iter() {
        owner.borrow_mut().push_back(Event::Cut(wishes.get()));
    }
    for _ in 0..2000 {
        process.rest().await;
    }
    let sessions = core.sessions_of(VOLUME, Side::Sender);
    let [session] = &sessions[..] else { return false };
    let Some(applied) = session.members[0].applied else { return false };
    let shipped = process.shared.oracle.borrow().image(applied.target).cloned();
    process.alive().await;
    shipped == Some(here) && session.peer_store == Some(identity(1 - process.index))
}
