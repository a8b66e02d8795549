//! What a volume may hold after a death, sector by sector.
//!
//! Every request of a writer gets a stamp, and a sector's bytes follow from volume, sector
//! and stamp alone, so a sector that was read says which request it comes from; one
//! that is torn or comes from elsewhere says that too. Stamp 0 is zeros.
//!
//! A sector knows the last stamp that is sure and those that came after it. After a
//! death it holds one of these. When a stamp is sure depends on the death: a process
//! that dies loses nothing acknowledged, a power cut nothing flushed.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

/// Bytes in a sector, the unit in which a disk is never torn.
pub const SECTOR: usize = 512;

/// What the next death may take away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// The process goes: what was acknowledged stays.
    Process,
    /// The power goes: what was flushed stays.
    Power,
}

#[derive(Clone, Default)]
struct Sector {
    sure: u64,
    /// Requests since then in their order, and when each was acknowledged.
    later: Vec<(u64, Option<u64>)>,
}

impl Sector {
    /// What a reader may see now: the last one that was acknowledged, or one after it.
    fn now(&self) -> impl Iterator<Item = u64> {
        let at = self.later.iter().rposition(|(_, acknowledged)| acknowledged.is_some());
        let (first, rest) = match at {
            Some(at) => (self.later[at].0, &self.later[at + 1..]),
            None => (self.sure, &self.later[..]),
        };
        std::iter::once(first).chain(rest.iter().map(|(stamp, _)| *stamp))
    }

    fn settle(&mut self, until: u64) {
        let sure = self.later.iter().rposition(|(_, at)| at.is_some_and(|at| at <= until));
        if let Some(at) = sure {
            self.sure = self.later[at].0;
            self.later.drain(..=at);
        }
    }
}

/// What a snapshot, or production, may hold: one stamp for every sector, and others that
/// are as good for some.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    stamps: Vec<u64>,
    others: HashMap<u64, Vec<u64>>,
}

impl Allowed {
    /// Exactly that.
    pub fn exactly(stamps: Vec<u64>) -> Self {
        Self { stamps, others: HashMap::new() }
    }

    /// Whether these stamps may be; else where they are wrong.
    pub fn admits(&self, found: &[u64]) -> Result<(), String> {
        if found.len() != self.stamps.len() {
            return Err(format!("{} sectors instead of {}", found.len(), self.stamps.len()));
        }
        let others = |sector| self.others.get(&sector).map_or(&[][..], Vec::as_slice);
        let wrong: Vec<_> = (0u64..)
            .zip(found.iter().zip(&self.stamps))
            .filter(|(sector, (found, stamp))| found != stamp && !others(*sector).contains(found))
            .map(|(sector, (found, stamp))| {
                format!("sector {sector} holds {found}, not {stamp} nor {:?}", others(sector))
            })
            .collect();
        if wrong.is_empty() {
            return Ok(());
        }
        Err(format!("{} sectors are wrong: {}", wrong.len(), wrong[..wrong.len().min(8)].join("; ")))
    }
}

/// A request that was sent.
#[derive(Clone, Debug)]
pub struct Issued {
    pub sectors: Range<u64>,
    /// The stamp that its sectors get.
    pub stamp: u64,
}

/// All sectors of a volume.
pub struct Model {
    salt: u64,
    death: Death,
    sectors: Vec<Sector>,
    /// Those with something after what is sure.
    unsure: BTreeSet<u64>,
    clock: u64,
    /// What was sent since a take began.
    recorded: Option<Vec<Issued>>,
}

impl Model {
    /// A volume of zeros; `salt` tells it from others.
    pub fn new(salt: u64, sectors: u64, death: Death) -> Self {
        let sectors = vec![Sector::default(); usize::try_from(sectors).unwrap()];
        Self { salt, death, sectors, unsure: BTreeSet::new(), clock: 0, recorded: None }
    }

    pub fn sector_count(&self) -> u64 {
        self.sectors.len() as u64
    }

    fn sector(&mut self, sector: u64) -> &mut Sector {
        &mut self.sectors[usize::try_from(sector).unwrap()]
    }

    /// Notes a request before it is sent.
    pub fn issue(&mut self, issued: &Issued) {
        for sector in issued.sectors.clone() {
            self.sector(sector).later.push((issued.stamp, None));
            self.unsure.insert(sector);
        }
        if let Some(recorded) = &mut self.recorded {
            recorded.push(issued.clone());
        }
    }

    /// Notes that a request was acknowledged; `durable` if it had asked to be.
    pub fn acknowledge(&mut self, issued: &Issued, durable: bool) {
        self.clock += 1;
        let clock = self.clock;
        let durable = durable || self.death == Death::Process;
        for number in issued.sectors.clone() {
            let sector = self.sector(number);
            if let Some(entry) = sector.later.iter_mut().rfind(|(stamp, _)| *stamp == issued.stamp) {
                entry.1 = Some(clock);
            }
            if durable {
                sector.settle(clock);
                if sector.later.is_empty() {
                    self.unsure.remove(&number);
                }
            }
        }
    }

    /// The moment at which a flush is sent.
    pub fn moment(&self) -> u64 {
        self.clock
    }

    /// A flush that was sent at `moment` has returned.
    pub fn flushed(&mut self, moment: u64) {
        let sectors = &mut self.sectors;
        self.unsure.retain(|sector| {
            let sector = &mut sectors[usize::try_from(*sector).unwrap()];
            sector.settle(moment);
            !sector.later.is_empty()
        });
    }

    fn allowed(&self, values: impl Fn(&Sector) -> Vec<u64>) -> Allowed {
        let mut allowed = Allowed::exactly(self.sectors.iter().map(|sector| sector.sure).collect());
        for &number in &self.unsure {
            let at = usize::try_from(number).unwrap();
            let values = values(&self.sectors[at]);
            allowed.stamps[at] = values[0];
            if values.len() > 1 {
                allowed.others.insert(number, values[1..].to_vec());
            }
        }
        allowed
    }

    /// What a read may give while nothing else happens.
    pub fn now(&self, sectors: Range<u64>) -> Allowed {
        let mut allowed = Allowed::default();
        for (at, sector) in (0..).zip(sectors) {
            let values: Vec<u64> = self.sectors[usize::try_from(sector).unwrap()].now().collect();
            allowed.stamps.push(values[0]);
            allowed.others.insert(at, values);
        }
        allowed
    }

    /// What is there after a death.
    pub fn after_death(&self) -> Allowed {
        self.allowed(|sector| {
            std::iter::once(sector.sure).chain(sector.later.iter().map(|(stamp, _)| *stamp)).collect()
        })
    }

    /// A take begins; [`Model::taken`] tells what it may hold.
    pub fn take(&mut self) -> Allowed {
        self.recorded = Some(Vec::new());
        self.allowed(|sector| sector.now().collect())
    }

    /// The take that gave `allowed` is over: what was sent meanwhile may be in it too.
    pub fn taken(&mut self, allowed: &mut Allowed) {
        for issued in self.recorded.take().unwrap_or_default() {
            for sector in issued.sectors {
                allowed.others.entry(sector).or_default().push(issued.stamp);
            }
        }
    }

    /// From now on it is sure to hold exactly that.
    pub fn become_exactly(&mut self, stamps: &[u64]) {
        for (sector, stamp) in self.sectors.iter_mut().zip(stamps) {
            *sector = Sector { sure: *stamp, later: Vec::new() };
        }
        self.unsure.clear();
    }

    /// The bytes of these sectors under a stamp.
    pub fn content(&self, issued: &Issued) -> Vec<u8> {
        let sectors = issued.sectors.clone();
        sectors.flat_map(|sector| content(self.salt, sector, issued.stamp)).collect()
    }

    /// The stamps of what was read from sector `first` on.
    pub fn stamps(&self, first: u64, bytes: &[u8]) -> Result<Vec<u64>, String> {
        let sectors = (first..).zip(bytes.chunks_exact(SECTOR));
        sectors
            .map(|(sector, data)| {
                if data.iter().all(|byte| *byte == 0) {
                    return Ok(0);
                }
                let word = u64::from_le_bytes(*data.first_chunk().unwrap());
                let stamp = word ^ mix(self.salt << 40 ^ sector);
                if content(self.salt, sector, stamp) == data {
                    return Ok(stamp);
                }
                Err(format!("sector {sector} was never written so: {:02x?}", &data[..16]))
            })
            .collect()
    }
}

fn content(salt: u64, sector: u64, stamp: u64) -> [u8; SECTOR] {
    let mut data = [0; SECTOR];
    if stamp != 0 {
        let own = mix(salt << 40 ^ sector);
        for (index, word) in (0u64..).zip(data.as_chunks_mut::<8>().0) {
            let value = if index == 0 { stamp ^ own } else { mix(own ^ stamp << 6 ^ index) };
            *word = value.to_le_bytes();
        }
    }
    data
}

/// The finaliser of splitmix64.
fn mix(value: u64) -> u64 {
    let z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[test]
fn a_flush_covers_what_was_acknowledged_before_it() {
    let mut model = Model::new(1, 8, Death::Power);
    let write = |stamp| Issued { sectors: 0..2, stamp };
    let after = |model: &Model| model.after_death();
    for stamp in [10, 11] {
        model.issue(&write(stamp));
        model.acknowledge(&write(stamp), false);
    }
    let moment = model.moment();
    model.issue(&write(12));
    model.acknowledge(&write(12), false);
    for stamp in [0, 10, 11, 12] {
        assert!(after(&model).admits(&[stamp, 12, 0, 0, 0, 0, 0, 0]).is_ok());
    }
    model.flushed(moment);
    for stamp in [0, 10, 13] {
        assert!(after(&model).admits(&[stamp, 12, 0, 0, 0, 0, 0, 0]).is_err());
    }
    for stamp in [11, 12] {
        assert!(after(&model).admits(&[stamp, 12, 0, 0, 0, 0, 0, 0]).is_ok());
    }
    let bytes = model.content(&write(12));
    assert_eq!(model.stamps(0, &bytes).unwrap(), [12, 12]);
    assert!(model.stamps(1, &bytes).is_err());
}
