//! The volume: snapshot queue, copy on first write, point-in-time reads.
//!
//! Everything here is a task of one reactor. A method borrows the volume's state, decides,
//! lets go of it, and awaits an operation; what it relied on is checked again where another
//! task may have changed it meanwhile. `ARCHITECTURE.md` follows a write through it.

mod admission;
mod brake;
mod bulk;
mod check;
mod checkpoint;
mod delete;
mod diff;
mod flush;
mod full;
mod images;
mod immediate;
mod info;
mod inspect;
mod locks;
mod maps;
mod mend;
#[cfg(any(test, feature = "simulation"))]
pub mod model;
mod open;
mod origin;
mod pacing;
mod punch;
mod read;
mod reader;
mod receive;
mod recover;
mod repair;
mod resize;
mod restore_image;
mod retained;
mod roles;
mod rollback;
mod seal;
mod sets;
mod settle;
mod slots;
mod take;
mod touched;
mod trim;
mod verify;
mod volume;
mod write;

pub use brake::Brake;
pub use check::check_closed;
pub use delete::DeleteCheck;
pub use diff::{Delta, DeltaRun};
pub use full::{SpaceSummary, Wanted};
pub use immediate::ReadNow;
pub use info::{SnapshotSummary, VolumeSummary};
pub use inspect::{Found, Verified};
pub(crate) use mend::is_damage;
pub use open::Opened;
pub use origin::is_origin_tag;
pub use read::Piece;
pub use reader::SnapshotReader;
pub use receive::{Incoming, ReceiveStart, Receiving};
pub use recover::undecided_takes;
pub use repair::give_up_stage;
pub use roles::{Gate, TurnCheck};
pub use sets::{Readable, cut_name};
pub use take::{TakeRequest, TakeTicket};
pub use volume::{Volume, Who};
