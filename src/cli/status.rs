//! `status`: the daemon, its clients, transfers under way.

use super::output::{self, human, table};
use crate::control::Access;
use crate::engine::api::{SpaceInfo, SpaceLevel, Status};
use crate::error::Result;

/// Show the daemon, its clients and transfers under way
#[derive(clap::Args)]
pub(super) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    let status = access.status()?;
    if args.json { output::print_json(&status) } else { output::print(&text(&status)) }
}

fn text(status: &Status) -> String {
    if !status.running {
        return "not served; start it with: snapvol serve\n".to_owned();
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
        if volume.state != "ok" || !dropped.is_empty() {
            text.push_str(&format!("volume {}: {}{waiting}{dropped}\n", volume.name, volume.state));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::api::{ClientInfo, TransferInfo, VolumeStatus};
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
            }],
            clients: vec![ClientInfo { export: "db".into(), peer: "unix".into(), writable: true }],
            transfers: vec![TransferInfo {
                kind: "send".into(),
                volume: "db".into(),
                snapshot: "a".into(),
                data_bytes: 1024,
                total_bytes: Some(2048),
            }],
        };
        let expected = "\
served as process 7, version 0.1.0, engine plain
listening on nbd://127.0.0.1:10809
space is critically low: 0 B of 1.0 GiB are free, 20.0 MiB more are kept back for deletions
volume db: frozen, 3 writes wait for space
CLIENT OF  PEER  ACCESS
db         unix  read-write
send db@a: 1.0 KiB of 2.0 KiB
";
        assert_eq!(text(&status), expected);
    }
}
