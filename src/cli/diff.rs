//! `diff`: what changed between two snapshots, or since one.

use super::args::Target;
use super::output::{self, human};
use super::with_store;
use crate::engine::api::{Diff, DiffExtent, DiffKind};
use crate::error::{Error, Result};
use crate::types::{Name, SnapName};
use std::fmt::Write;
use std::path::Path;

/// Show what changed from a snapshot to a younger one, or to now
///
/// Never less than what changed; more only where a block was rewritten with what it held.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The older snapshot
    #[arg(value_name = "VOL@A")]
    from: SnapName,

    /// The younger snapshot of the same volume; VOL alone, or nothing, means now
    #[arg(value_name = "VOL[@B]")]
    to: Option<Target>,

    /// Print JSON, offsets and lengths in bytes
    #[arg(long, conflicts_with = "extents")]
    json: bool,

    /// Print one line an extent: offset and length in bytes, then data or discard
    #[arg(long)]
    extents: bool,
}

pub(super) fn run(dir: &Path, args: &Args) -> Result<()> {
    if let Some(to) = args.to.as_ref().filter(|to| to.volume != args.from.volume) {
        return Err(Error::invalid(format!("{} and {to} are not of one volume", args.from)));
    }
    let to = args.to.as_ref().and_then(|to| to.snapshot.as_ref()).map(Name::as_str);
    with_store(dir, |access| {
        let diff = access.diff(&args.from, to)?;
        if args.json {
            output::print_json(&diff)
        } else if args.extents {
            output::print(&extents(&diff.extents))
        } else {
            output::print(&summary(&diff))
        }
    })
}

fn kind(kind: DiffKind) -> &'static str {
    match kind {
        DiffKind::Data => "data",
        DiffKind::Discard => "discard",
    }
}

fn extents(extents: &[DiffExtent]) -> String {
    let mut text = String::new();
    for extent in extents {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{} {} {}", extent.offset, extent.length, kind(extent.kind));
    }
    text
}

fn summary(diff: &Diff) -> String {
    let to = match &diff.to {
        Some(to) => format!("{}@{to}", diff.volume),
        None => "now".to_owned(),
    };
    format!(
        "{}@{} to {to}: {} to write, {} to discard, in {} extent(s)\n",
        diff.volume,
        diff.from,
        human(diff.data_bytes),
        human(diff.discard_bytes),
        diff.extents.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Diff {
        Diff {
            volume: "db".into(),
            from: "a".into(),
            to: None,
            block_size: 4096,
            data_bytes: 8192,
            discard_bytes: 4096,
            extents: vec![
                DiffExtent { offset: 0, length: 8192, kind: DiffKind::Data },
                DiffExtent { offset: 65536, length: 4096, kind: DiffKind::Discard },
            ],
        }
    }

    #[test]
    fn lines_and_summary() {
        assert_eq!(extents(&sample().extents), "0 8192 data\n65536 4096 discard\n");
        assert_eq!(summary(&sample()), "db@a to now: 8.0 KiB to write, 4.0 KiB to discard, in 2 extent(s)\n");
    }

    #[test]
    fn json_as_documented() {
        let json = serde_json::to_value(sample()).unwrap();
        assert_eq!(json["extents"][1]["kind"], "discard");
        assert!(json["to"].is_null() && json.get("to").is_some());
    }
}
