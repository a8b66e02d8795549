//! `group`: volumes that belong together.

use super::output::{self, table};
use crate::control::Access;
use crate::engine::api::GroupInfo;
use crate::engine::groups::GroupRequest;
use crate::error::Result;
use crate::types::Name;

/// Have volumes belong together: snapshots of all at one instant
///
/// Volumes and groups share one name space; a volume is in one group at most. 'snapshot G@S' takes
/// a snapshot S of each volume of group G, all at one instant and all or none; 'delete G@S' deletes
/// them.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Make a group of volumes
    Create(Members),
    /// Take volumes into a group
    Add(Members),
    /// Take volumes out of a group; they stay
    Remove(Members),
    /// Delete a group; its volumes stay
    Delete(One),
    /// List groups and their volumes
    List(List),
}

#[derive(clap::Args)]
struct Members {
    /// The group
    #[arg(value_name = "GROUP")]
    group: Name,
    /// Volumes
    #[arg(value_name = "VOL", required = true)]
    volumes: Vec<Name>,
}

#[derive(clap::Args)]
struct One {
    /// The group
    #[arg(value_name = "GROUP")]
    group: Name,
}

#[derive(clap::Args)]
struct List {
    /// Only this group; all of them unless named
    #[arg(value_name = "GROUP")]
    group: Option<Name>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Members {
    fn parts(&self) -> (String, Vec<String>) {
        (self.group.to_string(), self.volumes.iter().map(ToString::to_string).collect())
    }
}

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    let request = match &args.action {
        Action::Create(members) => {
            let (group, volumes) = members.parts();
            GroupRequest::Create { group, volumes }
        }
        Action::Add(members) => {
            let (group, volumes) = members.parts();
            GroupRequest::Add { group, volumes }
        }
        Action::Remove(members) => {
            let (group, volumes) = members.parts();
            GroupRequest::Remove { group, volumes }
        }
        Action::Delete(One { group }) => GroupRequest::Delete { group: group.to_string() },
        Action::List(List { group, .. }) => {
            GroupRequest::List { group: group.as_ref().map(ToString::to_string) }
        }
    };
    let groups = access.group(&request)?;
    match &args.action {
        Action::List(List { json: true, .. }) => output::print_json(&groups),
        Action::List(_) => output::print(&text(&groups)),
        _ => Ok(()),
    }
}

fn text(groups: &[GroupInfo]) -> String {
    if groups.is_empty() {
        return "no groups\n".to_owned();
    }
    let mut rows = vec![["GROUP", "VOLUMES"].map(str::to_owned).to_vec()];
    rows.extend(groups.iter().map(|group| vec![group.name.clone(), group.volumes.join(", ")]));
    table(&rows, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_for_people() {
        let group = |name: &str, volumes: &[&str]| GroupInfo {
            name: name.to_owned(),
            uuid: uuid::Uuid::nil(),
            volumes: volumes.iter().map(|volume| (*volume).to_owned()).collect(),
        };
        let expected = "GROUP  VOLUMES\ndb     data, log\nweb    www\n";
        assert_eq!(text(&[group("db", &["data", "log"]), group("web", &["www"])]), expected);
        assert_eq!(text(&[]), "no groups\n");
    }
}
