//! Drills: writable copies, by copy on write, of a state of a volume, under exports of their own.
//!
//! Drill N of VOL is a volume `VOL+N`, a name that users can't give, and a hold `+N`, a tag that
//! they can't give either, on the snapshot of VOL that it shows. What is written to the drill
//! lies in its own volume; everything else is read from the snapshot (`Volume::set_origin`). So
//! VOL goes on, as a secondary too: the hold keeps the state from whoever would delete it.
//!
//! Why a crash is safe: the hold is durable before the drill's volume has its name, and goes only
//! when that name is gone. An open that finds a hold without a volume finishes what was begun:
//! it lets go of it. A volume without a hold can't come to be; if there is one, it stays closed
//! and says so.

use super::api::{CreateOptions, DrillInfo};
use super::batch::Batches;
use super::core::{Core, Place};
use super::store::Store;
use super::thread::Engine;
use super::volumes::{self, rfc3339};
use crate::error::{Error, Result};
use crate::snapshot::SnapshotReader;
use crate::types::{DrillName, Name, OnFull, Role};
use futures::executor::block_on;
use uuid::Uuid;

/// What the first drill of a volume is called unless somebody says otherwise.
const FIRST: &str = "drill";

/// Whether a volume of that name is a drill.
pub(super) fn is_drill(name: &str) -> bool {
    name.parse::<DrillName>().is_ok()
}

/// The tag under which a drill holds what it shows.
fn tag_of(drill: &Name) -> String {
    format!("+{drill}")
}

/// Opens what a volume of that name shows, if it is a drill.
pub(super) fn origin_of(engine: &Engine, name: &str) -> Result<Option<SnapshotReader>> {
    let Ok(drill) = name.parse::<DrillName>() else { return Ok(None) };
    let end = format!("'snapvol drill {} --end {}' removes it", drill.volume, drill.drill);
    let volume = engine.volume(drill.volume.as_str()).map_err(|error| {
        error.context(format!("the volume that drill {name} shows is not open")).hint(end.clone())
    })?;
    let tag = tag_of(&drill.drill);
    let held = volume.origins().into_iter().find(|(_, held)| *held == tag);
    let Some((uuid, _)) = held else {
        return Err(Error::corrupt(format!("the state that drill {name} shows is not held")).hint(end));
    };
    volume.open_snapshot_by_id(uuid).map(Some)
}

/// What `list` says of a volume of that name as a drill.
pub(super) fn described(engine: &Engine, name: &str) -> Option<DrillInfo> {
    let drill: DrillName = name.parse().ok()?;
    let volume = engine.volume(drill.volume.as_str()).ok()?;
    let tag = tag_of(&drill.drill);
    let (uuid, _) = volume.origins().into_iter().find(|(_, held)| *held == tag)?;
    let record = volume.record_of(uuid)?;
    Some(DrillInfo {
        export: name.to_owned(),
        volume: drill.volume.to_string(),
        snapshot: (!record.is_internal()).then(|| record.name.clone()),
        uuid,
        created: rfc3339(record.created_us),
    })
}

impl Core {
    /// Opens the drills once all other volumes are open, and finishes what a crash interrupted.
    pub(super) async fn open_drills(&self, found: Vec<(String, Option<Uuid>)>, batches: &Batches) {
        for (name, _) in found {
            if let Err(error) = self.open_drill(&name, batches).await {
                self.not_opened(name, error);
            }
        }
        for volume in self.volume_names() {
            let origins = self.with(&volume, |volume| async move { Ok(volume.origins()) }).await;
            for (_, tag) in origins.unwrap_or_default() {
                if self.has_volume(&format!("{volume}{tag}")) {
                    continue;
                }
                let released = self.with(&volume, |volume| async move { volume.release_origin(&tag).await });
                if let Err(error) = released.await {
                    tracing::warn!("a drill of {volume} that is gone still holds what it showed: {error}");
                }
            }
        }
    }

    async fn open_drill(&self, name: &str, batches: &Batches) -> Result<()> {
        let of: DrillName = name.parse()?;
        let engine = self.engine_of(of.volume.as_str())?;
        volumes::open(&engine, &self.dir, name, self.tuning, batches).await?;
        self.share_lending(&engine, name);
        self.places_mut().insert(name.to_owned(), Place::Open(engine));
        Ok(())
    }

    /// The drills of a volume, sorted by name.
    fn drills_of(&self, volume: &str) -> Vec<DrillName> {
        let drills = self.names().into_iter().filter_map(|name| name.parse::<DrillName>().ok());
        drills.filter(|drill| drill.volume.as_str() == volume).collect()
    }

    /// Refuses what would take a volume from its drills.
    ///
    /// # Errors
    /// `Conflict`.
    pub(super) fn check_no_drills(&self, volume: &str) -> Result<()> {
        match self.drills_of(volume).first() {
            None => Ok(()),
            Some(DrillName { drill, .. }) => {
                Err(Error::conflict(format!("drill {volume}+{drill} shows a state of volume {volume}"))
                    .hint(format!("'snapvol drill {volume} --end {drill}' ends it")))
            }
        }
    }

    /// Begins a drill: of the named snapshot, or of the youngest state that there is.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when there is no state, or a drill of that name; `Io`, `Full`.
    pub async fn begin_drill(
        &self,
        volume: &str,
        snapshot: Option<&str>,
        name: Option<&str>,
    ) -> Result<DrillInfo> {
        let _admin = self.admin().await;
        let engine = self.engine_of(volume)?;
        let name = DrillName { volume: volume.parse()?, drill: self.free_name(volume, name)? };
        let (full, tag) = (name.to_string(), tag_of(&name.drill));
        let (snapshot, held) = (snapshot.map(str::to_owned), tag.clone());
        let (record, block_size) = self
            .with(volume, |volume| async move {
                // One that could not be ended to the last step.
                volume.release_origin(&held).await?;
                let record = volume.hold_as_origin(snapshot.as_deref(), &held).await?;
                Ok((record, volume.geometry().block_size))
            })
            .await?;
        // A drill is there to be tried out: what finds no space there is told, and nobody waits.
        let options =
            CreateOptions { size: record.size, block_size, granularity: 1, on_full: OnFull::Readonly };
        let made = volumes::create(&engine, &self.dir, &full, &options, Role::Primary).await;
        if let Err(error) = made {
            let released = self.with(volume, |volume| async move { volume.release_origin(&tag).await });
            if let Err(second) = released.await {
                tracing::warn!("the next open of volume {volume} lets go of what was held: {second}");
            }
            return Err(error);
        }
        if let Err(error) = self.open_drill(&full, &Batches::default()).await {
            self.not_opened(full, error.duplicate());
            return Err(error);
        }
        let described = engine.call(move |engine| async move { Ok(described(&engine, &full)) }).await?;
        described.ok_or_else(|| Error::not_found(format!("volume {volume} is gone")))
    }

    /// The name of a new drill.
    fn free_name(&self, volume: &str, name: Option<&str>) -> Result<Name> {
        let taken = |name: &str| self.has_volume(&format!("{volume}+{name}"));
        let Some(name) = name else {
            let mut names = (2u64..).map(|number| format!("{FIRST}{number}"));
            let first = Some(FIRST.to_owned()).filter(|first| !taken(first));
            let free = first.or_else(|| names.find(|name| !taken(name)));
            return free.unwrap_or_default().parse();
        };
        if taken(name) {
            return Err(Error::conflict(format!("there is a drill {volume}+{name} already"))
                .hint(format!("'snapvol drill {volume} --end {name}' ends it; --name gives another name")));
        }
        name.parse()
    }

    /// Ends a drill: what was written to it is gone. Without a name it is the only one.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` while it has clients, unless they are disconnected by `force`, and
    /// without a name when there are several; `Io`.
    pub async fn end_drill(&self, volume: &str, name: Option<&str>, force: bool) -> Result<String> {
        let _admin = self.admin().await;
        let drill = match name {
            Some(name) => DrillName { volume: volume.parse()?, drill: name.parse()? },
            None => self.only_drill(volume)?,
        };
        let (full, tag) = (drill.to_string(), tag_of(&drill.drill));
        if !self.has_volume(&full) {
            return Err(Error::not_found(format!("there is no drill {full}"))
                .hint("'snapvol list' shows those there are"));
        }
        if let Ok(engine) = self.engine_of(&full) {
            let name = full.clone();
            let closed = engine.call(move |engine| async move {
                let clients = engine.clients.of(&name, true).len();
                if clients > 0 && !force {
                    return Err(Error::conflict(format!("drill {name} has {clients} clients connected"))
                        .hint("disconnect them, or use --force"));
                }
                let Ok(found) = engine.volume(&name) else { return Ok(None) };
                // Requests that wait for space would keep their clients connected.
                found.stop_waiting();
                engine.clients.disconnect(&name, true).await;
                engine.volumes.borrow_mut().remove(&name);
                Ok(found.close().await.err())
            });
            if let Some(error) = closed.await? {
                let said = error.duplicate().hint("open the store again, then end the drill");
                self.not_opened(full, said);
                return Err(error);
            }
        }
        let engine = self.engine_of(volume).unwrap_or_else(|_| self.handles[0].clone());
        if let Err(error) = volumes::remove(&engine, &self.dir, &full).await {
            let said = error.duplicate().hint("open the store again, then end the drill");
            self.not_opened(full, said);
            return Err(error);
        }
        self.places_mut().remove(&full);
        if self.engine_of(volume).is_ok() {
            self.with(volume, |volume| async move { volume.release_origin(&tag).await }).await?;
        }
        Ok(full)
    }

    fn only_drill(&self, volume: &str) -> Result<DrillName> {
        let mut drills = self.drills_of(volume);
        match (drills.pop(), drills.is_empty()) {
            (Some(only), true) => Ok(only),
            (Some(last), false) => {
                let others = drills.iter().map(|drill| drill.drill.as_str());
                let all: Vec<_> = others.chain([last.drill.as_str()]).collect();
                Err(Error::conflict(format!("volume {volume} has several drills: {}", all.join(", ")))
                    .hint(format!("name the one that is to end: snapvol drill {volume} --end N")))
            }
            (None, _) => {
                self.engine_of(volume)?;
                Err(Error::not_found(format!("volume {volume} has no drill")))
            }
        }
    }
}

impl Store {
    /// Begins a drill.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Io`, `Full`.
    pub fn begin_drill(&self, volume: &str, snapshot: Option<&str>, name: Option<&str>) -> Result<DrillInfo> {
        block_on(self.core.begin_drill(volume, snapshot, name))
    }

    /// Ends a drill; what is returned is its name.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Io`.
    pub fn end_drill(&self, volume: &str, name: Option<&str>, force: bool) -> Result<String> {
        block_on(self.core.end_drill(volume, name, force))
    }
}
