//! `list`: volumes and snapshots.

use super::output::{self, human, table};
use crate::control::Access;
use crate::engine::api::{DrillInfo, StoreInfo};
use crate::error::Result;
use crate::types::{Name, Role};

/// List volumes and snapshots, with size, space in use and space saved
#[derive(clap::Args)]
pub(super) struct Args {
    /// Only this volume; all of them unless named
    volume: Option<Name>,

    /// Print JSON, sizes in bytes, times in RFC 3339
    #[arg(long)]
    json: bool,
}

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    let info = access.list(args.volume.as_ref().map(Name::as_str))?;
    if args.json { output::print_json(&info) } else { output::print(&text(&info)) }
}

fn text(info: &StoreInfo) -> String {
    if info.volumes.is_empty() {
        return "no volumes\n".to_owned();
    }
    let header = ["NAME", "SIZE", "IN USE", "SAVED", "STATE", "CREATED", "HOLDS"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    for volume in &info.volumes {
        let role = match volume.role {
            Role::Primary => "primary",
            Role::Secondary => "secondary",
        };
        let role = match &volume.drill {
            None => role.to_owned(),
            Some(DrillInfo { volume, snapshot: Some(snapshot), .. }) => {
                format!("drill of {volume}@{snapshot}")
            }
            Some(DrillInfo { volume, created, .. }) => format!("drill of {volume} at {created}"),
        };
        rows.push(vec![
            volume.name.clone(),
            human(volume.size),
            human(volume.in_use),
            human(volume.saved),
            format!("{role}, {}", volume.state),
        ]);
        for snapshot in &volume.snapshots {
            rows.push(vec![
                format!("  @{}", snapshot.name),
                human(snapshot.size),
                human(snapshot.in_use),
                human(snapshot.saved),
                String::new(),
                snapshot.created.clone(),
                snapshot.holds.join(","),
            ]);
        }
    }
    table(&rows, &[1, 2, 3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::api::{SnapshotInfo, VolumeInfo};
    use crate::types::OnFull;

    fn info() -> StoreInfo {
        StoreInfo {
            store: "/s".into(),
            volumes: vec![VolumeInfo {
                name: "db".into(),
                uuid: uuid::Uuid::nil(),
                role: Role::Primary,
                drill: None,
                state: "ok".into(),
                on_full: OnFull::Freeze,
                size: 10 << 30,
                block_size: 4096,
                granularity: 1,
                in_use: 1536,
                saved: 0,
                snapshots: vec![SnapshotInfo {
                    name: "monday".into(),
                    uuid: uuid::Uuid::nil(),
                    created: "2024-05-06T07:08:09Z".into(),
                    size: 10 << 30,
                    in_use: 4096,
                    saved: 4096,
                    freed_by_delete: 4096,
                    holds: vec!["tape".into()],
                    of: None,
                    set: None,
                }],
            }],
        }
    }

    #[test]
    fn a_table_for_people() {
        let expected = "\
NAME           SIZE   IN USE    SAVED  STATE        CREATED               HOLDS
db         10.0 GiB  1.5 KiB      0 B  primary, ok
  @monday  10.0 GiB  4.0 KiB  4.0 KiB               2024-05-06T07:08:09Z  tape
";
        assert_eq!(text(&info()), expected);
        assert_eq!(text(&StoreInfo { store: "/s".into(), volumes: vec![] }), "no volumes\n");
    }

    #[test]
    fn the_json_has_every_documented_field() {
        let json = serde_json::to_value(info()).unwrap();
        let volume = &json["volumes"][0];
        assert_eq!(json["store"], "/s");
        for field in ["name", "uuid", "role", "state", "size", "block_size", "in_use", "saved", "snapshots"] {
            assert!(!volume[field].is_null(), "{field}");
        }
        assert_eq!(volume["role"], "primary");
        let snapshot = &volume["snapshots"][0];
        for field in ["name", "uuid", "created", "size", "in_use", "saved", "freed_by_delete", "holds"] {
            assert!(!snapshot[field].is_null(), "{field}");
        }
    }
}
