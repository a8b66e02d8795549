//! The README's walk-through, run as it is printed.

use std::path::Path;
use std::time::Duration;

use crate::support::{SNAPVOL, describe, have, run, scratch, snapvol, tool_within};

const README: &str = include_str!("../../README.md");

/// What stands before a code block that belongs to the walk.
const MARK: &str = "<!-- walk -->\n```bash\n";

/// The lines of the walk, in their order.
fn walk() -> Vec<&'static str> {
    let mut lines = Vec::new();
    let mut rest = README;
    while let Some((_, block)) = rest.split_once(MARK) {
        let (block, after) = block.split_once("\n```\n").unwrap();
        lines.extend(block.lines());
        rest = after;
    }
    lines
}

/// Runs every line of the walk in a new directory; the first that fails ends it.
#[test]
fn the_walk_works_as_printed() {
    let lines = walk();
    assert!(lines.len() >= 30, "{lines:?}");
    assert_eq!(
        README.matches("<!-- walk -->").count(),
        README.matches(MARK).count(),
        "a mark without a block"
    );
    if !have(&["qemu-io", "nbdinfo"]) {
        return;
    }
    let dir = scratch();
    // What runs in the background must not outlive a line that fails.
    let mut script = "set -eu\ntrap 'jobs -p | xargs -r kill; wait' EXIT\n".to_owned();
    for line in lines {
        script.push_str(&format!("echo {} >&2\n{line}\n", quote(&format!("$ {line}"))));
    }
    let bin = Path::new(SNAPVOL).parent().unwrap().display();
    let path = std::env::var("PATH").unwrap();
    let output = tool_within("bash", Duration::from_secs(240))
        .arg("-c")
        .arg(script)
        .current_dir(dir.path())
        .env("PATH", format!("{bin}:{path}:/usr/sbin:/sbin"))
        .env_remove("SNAPVOL_STORE")
        .env_remove("SNAPVOL_LOG")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", describe(&output));

    let said = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "ready nbd+unix:///vm?socket=",
        "1073741824\n",
        "4.0 MiB to write, 1.0 MiB to discard",
        "1048576 4194304 data\n8388608 1048576 discard\n",
        "@tuesday",
        "secondary",
        " 0 problem(s)",
    ] {
        assert!(said.contains(expected), "no {expected:?} in {said}");
    }
    assert!(!said.contains("verification failed"), "{said}");

    // Monday's and Tuesday's snapshots arrived, and the delta is small beside the whole.
    let there = run(snapvol(&dir.path().join("there")).args(["list", "--json"]));
    assert!(there.contains("\"monday\"") && there.contains("\"tuesday\""), "{there}");
    let delta = std::fs::metadata(dir.path().join("delta.stream")).unwrap().len();
    assert!(delta < 4 << 20, "{delta}");
}

fn quote(line: &str) -> String {
    format!("'{}'", line.replace('\'', r"'\''"))
}

/// What the README says of exit codes is what the program does.
#[test]
fn exit_codes_are_the_programs() {
    let help = run(snapvol(Path::new("unused")).arg("--help"));
    // The help wraps where the terminal ends.
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for line in README.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", code, meaning, ""] = cells[..] else { continue };
        if code.len() != 1 || !code.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let meaning = meaning.split(':').next().unwrap();
        assert!(help.contains(&format!("{code} {meaning}")), "{code} {meaning}: {help}");
    }
}

/// Whatever the README links to is there.
#[test]
fn links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let targets = README.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    let mut seen = 0;
    for (target, _) in targets.filter(|(target, _)| !target.contains("://")) {
        assert!(root.join(target).exists(), "{target}");
        seen += 1;
    }
    assert!(seen >= 6, "{seen}");
}
