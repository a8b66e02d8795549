//! `status`: the daemon, its clients, transfers under way, sessions of replication.

use super::output::{self, human, table};
use crate::control::Access;
use crate::engine::api::{SessionStatus, SpaceInfo, SpaceLevel, Status};
use crate::error::{Error, Result};
use crate::types::Name;

/// Show the daemon, its clients, transfers under way and sessions of replication
#[derive(clap::Args)]
pub(super) struct Args {
    /// Only what is about this volume, or the session of this group
    #[arg(value_name = "VOL")]
    volume: Option<Name>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    let mut status = access.status()?;
    if let Some(volume) = &args.volume {
        only(&mut status, volume.as_str())?;
        if !args.json {
            return output::print(&sessions(&status.sessions, true));
        }
    }
    if args.json { output::print_json(&status) } else { output::print(&text(&status)) }
}

/// Leaves out what is about other volumes.
fn only(status: &mut Status, volume: &str) -> Result<()> {
    let is_there = status.volumes.iter().any(|known| known.name == volume);
    if !is_there && !status.sessions.iter().any(|session| session.unit == volume) {
        return Err(Error::not_found(format!("there is no volume {volume}")));
    }
    let is_of = |export: &str| export.split('@').next() == Some(volume);
    status.volumes.retain(|known| known.name == volume);
    status.clients.retain(|client| is_of(&client.export));
    status.transfers.retain(|transfer| transfer.volume == volume);
    status.sessions.retain(|session| session.unit == volume);
    Ok(())
}

fn text(status: &Status) -> String {
    if !status.running {
        let text = "not served; start it with: snapvol serve\n".to_owned();
        return text + &sessions(&status.sessions, false);
    }
    let pid = status.pid.map(|pid| format!(" as process {pid}")).unwrap_or_default();
    let mut text = format!("served{pid}, version {}, engine {}\n", status.version, status.io_engine);
    for address in &status.listening {
        text.push_str(&format!("listening on {address}\n"));
    }
    text.push_str(&space_line(&status.space));
    text.push_str(&volumes(status));
    if !status.clients.is_empty() {
        let mut rows = vec![["CLIENT OF", "PEER", "ACCESS"].map(str::to_owned).to_vec()];
        for client in &status.clients {
            let access = if client.writable { "read-write" } else { "read-only" };
            rows.push(vec![client.export.clone(), client.peer.clone(), access.to_owned()]);
        }
        text.push_str(&table(&rows, &[]));
    }
    for transfer in &status.transfers {
        let total = transfer.total_bytes.map(|total| format!(" of {}", human(total))).unwrap_or_default();
        text.push_str(&format!(
            "{} {}@{}: {}{total}\n",
            transfer.kind,
            transfer.volume,
            transfer.snapshot,
            human(transfer.data_bytes)
        ));
    }
    text + &sessions(&status.sessions, false)
}

/// A line for each session, and what is worth a line of its own.
fn sessions(all: &[SessionStatus], history: bool) -> String {
    let mut text = String::new();
    for session in all {
        let arrow = if session.role == "receiver" { "<-" } else { "->" };
        text.push_str(&format!("{} {arrow} {}: {}", session.unit, session.peer, session.state));
        if let Some(applied) = session.applied {
            text.push_str(&format!(", set {applied} is there"));
        }
        if session.lag_blocks > 0 {
            text.push_str(&format!(
                ", {:.1} s and {} blocks behind",
                session.lag_seconds, session.lag_blocks
            ));
        }
        if !session.outstanding.is_empty() {
            text.push_str(&format!(", {} sets outstanding", session.outstanding.len()));
        }
        text.push('\n');
        if let Some(set) = &session.set {
            text.push_str(&format!(
                "    set {}{}: {} of {}, {}/s\n",
                set.number,
                if set.whole { " (whole)" } else { "" },
                human(set.sent_bytes),
                human(set.total_bytes),
                human(session.rate)
            ));
        }
        for warning in &session.warnings {
            text.push_str(&format!("    warning: {warning}\n"));
        }
        if let Some(error) = &session.last_error {
            text.push_str(&format!("    {} failures in a row, the last: {error}\n", session.failures));
        }
        for set in session.history.iter().filter(|_| history) {
            let whole = if set.whole { " (whole)" } else { "" };
            text.push_str(&format!(
                "    set {}{whole}: {} in {:.2} s\n",
                set.number,
                human(set.bytes),
                set.seconds
            ));
        }
    }
    text
}

/// What is worth saying of the file system; nothing if there is enough space.
fn space_line(space: &SpaceInfo) -> String {
    let word = match space.level {
        SpaceLevel::Ok => return String::new(),
        SpaceLevel::Low => "low",
        SpaceLevel::VeryLow => "very low",
        SpaceLevel::Critical => "critically low",
    };
    format!(
        "space is {word}: {} of {} are free, {} more are kept back for deletions\n",
        human(space.free),
        human(space.total),
        human(space.reserved)
    )
}

/// The volumes of which there is something to say.
fn volumes(status: &Status) -> String {
    let mut text = String::new();
    for volume in &status.volumes {
        let waiting = match volume.waiting_writes {
            0 => String::new(),
            writes => format!(", {writes} writes wait for space"),
        };
        let dropped = match volume.dropped_snapshots {
            0 => String::new(),
            dropped => format!(", {dropped} snapshots deleted to make room"),
        };
        if let Some(error) = volume.schedule.as_ref().and_then(|schedule| schedule.error.as_ref()) {
            text.push_str(&format!("volume {}: its schedule is tried again: {error}\n", volume.name));
        }
        if volume.state != "ok" || !dropped.is_empty() {
            text.push_str(&format!("volume {}: {}{waiting}{dropped}\n", volume.name, volume.state));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::api::{
        ClientInfo, OutstandingSet, ScheduleStatus, SetHistory, SetProgress, TransferInfo, VolumeStatus,
    };
    use crate::types::OnFull;

    #[test]
    fn words_for_people() {
        assert!(text(&Status::default()).starts_with("not served"));
        let status = Status {
            running: true,
            pid: Some(7),
            version: "0.1.0".into(),
            listening: vec!["nbd://127.0.0.1:10809".into()],
            io_engine: "plain".into(),
            space: SpaceInfo { free: 0, total: 1 << 30, reserved: 20 << 20, level: SpaceLevel::Critical },
            volumes: vec![VolumeStatus {
                name: "db".into(),
                state: "frozen".into(),
                on_full: OnFull::Freeze,
                reserved: 20 << 20,
                waiting_writes: 3,
                dropped_snapshots: 0,
                schedule: Some(ScheduleStatus {
                    error: Some("no space".into()),
                    ..ScheduleStatus::default()
                }),
            }],
            clients: vec![ClientInfo { export: "db".into(), peer: "unix".into(), writable: true }],
            transfers: vec![TransferInfo {
                kind: "send".into(),
                volume: "db".into(),
                snapshot: "a".into(),
                data_bytes: 1024,
                total_bytes: Some(2048),
            }],
            sessions: vec![SessionStatus {
                unit: "db".into(),
                role: "sender".into(),
                peer: "/srv/there/db".into(),
                state: "waiting".into(),
                set: Some(SetProgress { number: 7, whole: false, sent_bytes: 1024, total_bytes: 4096 }),
                applied: Some(6),
                outstanding: vec![OutstandingSet { number: 7, created: String::new() }],
                rate: 512,
                lag_seconds: 2.5,
                lag_blocks: 3,
                failures: 2,
                last_error: Some("no route".into()),
                warnings: vec!["400 s behind".into()],
                history: vec![SetHistory { number: 6, whole: true, bytes: 2048, seconds: 0.5 }],
                ..SessionStatus::default()
            }],
        };
        let expected = "\
served as process 7, version 0.1.0, engine plain
listening on nbd://127.0.0.1:10809
space is critically low: 0 B of 1.0 GiB are free, 20.0 MiB more are kept back for deletions
volume db: its schedule is tried again: no space
volume db: frozen, 3 writes wait for space
CLIENT OF  PEER  ACCESS
db         unix  read-write
send db@a: 1.0 KiB of 2.0 KiB
db -> /srv/there/db: waiting, set 6 is there, 2.5 s and 3 blocks behind, 1 sets outstanding
    set 7: 1.0 KiB of 4.0 KiB, 512 B/s
    warning: 400 s behind
    2 failures in a row, the last: no route
";
        assert_eq!(text(&status), expected);
        let one = sessions(&status.sessions, true);
        assert!(one.ends_with("    set 6 (whole): 2.0 KiB in 0.50 s\n"), "{one}");
        let mut of_volume = status.clone();
        only(&mut of_volume, "db").unwrap();
        assert_eq!((of_volume.sessions.len(), of_volume.clients.len()), (1, 1));
        assert_eq!(only(&mut of_volume, "other").unwrap_err().kind(), crate::ErrorKind::NotFound);
    }
}
