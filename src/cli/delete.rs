//! `delete`: snapshots, or a volume.

use super::args::Target;
use super::{leases, with_store};
use crate::error::{Error, Result};
use crate::types::{Name, SnapName};
use std::path::Path;

/// Delete snapshots, all or none; or a volume
///
/// What a client has open, what is held and what a transfer needs is refused.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Snapshots, or one volume
    #[arg(required = true, value_name = "VOL@SNAP|VOL")]
    targets: Vec<Target>,

    /// Delete a volume together with its snapshots
    #[arg(long)]
    recursive: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    Volume(Name),
    Snapshots(Vec<SnapName>),
}

fn what(targets: &[Target], recursive: bool) -> Result<What> {
    if let [Target { volume, snapshot: None }] = targets {
        return Ok(What::Volume(volume.clone()));
    }
    let mut names = Vec::with_capacity(targets.len());
    for Target { volume, snapshot } in targets {
        let Some(snapshot) = snapshot else {
            return Err(Error::invalid(format!("the volume {volume} can't be deleted together with others"))
                .hint("delete one volume at a time, or snapshots only"));
        };
        names.push(SnapName { volume: volume.clone(), snapshot: snapshot.clone() });
    }
    if recursive {
        return Err(Error::invalid("--recursive is for a volume, not for snapshots"));
    }
    Ok(What::Snapshots(names))
}

pub(super) fn run(dir: &Path, args: &Args) -> Result<()> {
    let what = what(&args.targets, args.recursive)?;
    leases::end(dir, false, |export| match &what {
        What::Volume(volume) => export.volume == *volume,
        What::Snapshots(names) => names
            .iter()
            .any(|name| export.volume == name.volume && export.snapshot.as_ref() == Some(&name.snapshot)),
    })?;
    with_store(dir, |access| match &what {
        What::Volume(volume) => access.delete_volume(volume.as_str(), args.recursive),
        What::Snapshots(names) => access.delete_snapshots(names),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str], recursive: bool) -> Result<What> {
        what(&texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>(), recursive)
    }

    #[test]
    fn one_volume_or_many_snapshots() {
        assert_eq!(parse(&["db"], true).unwrap(), What::Volume("db".parse().unwrap()));
        let two = What::Snapshots(vec!["db@a".parse().unwrap(), "web@b".parse().unwrap()]);
        assert_eq!(parse(&["db@a", "web@b"], false).unwrap(), two);
        assert!(parse(&["db", "web"], false).is_err());
        assert!(parse(&["db@a", "web"], false).is_err());
        assert!(parse(&["db@a"], true).is_err());
    }
}
