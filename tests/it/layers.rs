//! The architecture, enforced: a module imports only from layers below its own, and
//! no file grows too long to hold in the head.
//!
//! The order of the layers is `LAYERS`, from the top down. What stands in a
//! `#[cfg(test)]` item or in a file `tests.rs` may look anywhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// From the top down; `error` and `types` are below everything.
const LAYERS: &[&str] = &[
    "cli",
    "control",
    "replica",
    "nbd",
    "engine",
    "delta",
    "snapshot",
    "store",
    "map",
    "format",
    "transport",
    "io",
];
const FOUNDATIONS: &[&str] = &["error", "types"];
const LINES_MAX: usize = 1000;

#[test]
fn imports_go_downward_only() {
    let source_dir = source_dir();
    let mut wrong = Vec::new();
    for path in sources(&source_dir) {
        let relative = path.strip_prefix(&source_dir).unwrap();
        let Some(layer) = layer_of(relative) else { continue };
        let text = fs::read_to_string(&path).unwrap();
        for (line, target) in crate_uses(&text) {
            if !allowed(&layer, &target) {
                wrong.push(format!("src/{}:{line}: {layer} uses {target}", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "upward imports:\n{}", wrong.join("\n"));
}

#[test]
fn every_module_is_a_layer() {
    let known: BTreeSet<_> = LAYERS.iter().chain(FOUNDATIONS).copied().collect();
    for path in sources(&source_dir()) {
        if let Some(layer) = layer_of(path.strip_prefix(source_dir()).unwrap()) {
            assert!(known.contains(layer.as_str()), "src/{layer} has no place among the layers");
        }
    }
}

#[test]
fn no_file_is_too_long() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut long = Vec::new();
    for dir in ["src", "tests", "benches"] {
        for path in sources(&root.join(dir)) {
            let lines = fs::read_to_string(&path).unwrap().lines().count();
            if lines > LINES_MAX {
                long.push(format!("{}: {lines} lines", path.strip_prefix(root).unwrap().display()));
            }
        }
    }
    assert!(long.is_empty(), "more than {LINES_MAX} lines:\n{}", long.join("\n"));
}

#[test]
fn the_reader_of_imports_sees_what_it_should() {
    let text = r##"
//! crate::cli in a comment
use crate::io::Io; // crate::control
/* crate::engine /* nested */ crate::nbd */
use crate::{map::{BitMap, Page}, store, types::*, self as me};
pub(in crate::delta) fn f() { let s = "crate::nbd"; let t = r#"crate::cli"#; let c = '"'; }
fn g<'a>(x: &'a str) -> crate::Result<()> { crate::error::no(x) }
#[cfg(test)]
mod tests { use crate::cli; fn a() { "}"; } }
#[cfg(test)]
use crate::control;
#[cfg(all(test, target_os = "linux"))]
mod more { use crate::nbd; }
use snapvol::replica;
fn h() { crate :: transport :: open() }
"##;
    let seen: Vec<String> = crate_uses(text).into_iter().map(|(_, target)| target).collect();
    assert_eq!(
        seen,
        ["io", "map", "store", "types", "self", "delta", "Result", "error", "replica", "transport"]
    );
    assert!(allowed("store", "map") && allowed("store", "store") && allowed("io", "error"));
    assert!(!allowed("store", "snapshot") && !allowed("io", "cli") && !allowed("types", "io"));
}

fn source_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All `.rs` files below `dir`, in order.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(dir) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The layer a file belongs to; none for the crate's roots and for test files.
fn layer_of(relative: &Path) -> Option<String> {
    let text = relative.to_str().unwrap();
    let is_test = relative.components().any(|part| {
        let part = part.as_os_str().to_str().unwrap();
        part == "tests" || part == "tests.rs" || part.ends_with("_tests.rs")
    });
    if matches!(text, "lib.rs" | "main.rs") || text.starts_with("bin/") || is_test {
        return None;
    }
    let first = text.split('/').next().unwrap();
    Some(first.trim_end_matches(".rs").to_owned())
}

fn allowed(layer: &str, target: &str) -> bool {
    // Names that the crate's root defines or re-exports are of the foundations.
    let rank = |name: &str| LAYERS.iter().position(|&known| known == name);
    if layer == target || FOUNDATIONS.contains(&target) {
        return true;
    }
    match (rank(layer), rank(target)) {
        (Some(from), Some(to)) => from < to,
        (None, Some(_)) => false,
        (_, None) => true,
    }
}

/// Every `crate::X` or `snapvol::X` outside comments, literals and test items, with
/// its line; the members of `crate::{..}` count one by one.
fn crate_uses(text: &str) -> Vec<(usize, String)> {
    let code = without_test_items(&without_comments_and_literals(text));
    let mut found = Vec::new();
    let words = tokens(&code);
    let mut i = 0;
    while i < words.len() {
        let (offset, word) = words[i];
        let after_path = i > 0 && words[i - 1].1 == "::";
        if (word == "crate" || word == "snapvol")
            && !after_path
            && words.get(i + 1).is_some_and(|next| next.1 == "::")
        {
            let line = code[..offset].matches('\n').count() + 1;
            match words.get(i + 2) {
                Some((_, "{")) => {
                    let mut depth = 1;
                    let mut at_start = true;
                    i += 3;
                    while i < words.len() && depth > 0 {
                        match words[i].1 {
                            "{" => depth += 1,
                            "}" => depth -= 1,
                            "," => at_start = depth == 1,
                            name if at_start && depth == 1 => {
                                found.push((line, name.to_owned()));
                                at_start = false;
                            }
                            _ => {}
                        }
                        i += 1;
                    }
                    continue;
                }
                Some((_, name)) => found.push((line, (*name).to_owned())),
                None => {}
            }
        }
        i += 1;
    }
    found
}

/// Identifiers, `::` and single punctuation characters, with their offsets.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    let mut i = 0;
    while i < bytes.len() {
        let start = i;
        if bytes[i].is_ascii_whitespace() || !bytes[i].is_ascii() {
            i += 1;
            continue;
        } else if bytes[i].is_ascii_alphanumeric() || bytes[i] == b'_' {
            while i < bytes.len() && (bytes[i].is_ascii_alphanumeric() || bytes[i] == b'_') {
                i += 1;
            }
        } else if bytes[i..].starts_with(b"::") {
            i += 2;
        } else {
            i += 1;
        }
        found.push((start, &code[start..i]));
    }
    found
}

/// The text with comments and the insides of literals as spaces, line breaks kept.
fn without_comments_and_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut blank = |from: usize, to: usize| {
        for byte in &mut out[from..to] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
    };
    let mut i = 0;
    while i < bytes.len() {
        let start = i;
        let rest = &bytes[i..];
        let word_before = i > 0 && (bytes[i - 1].is_ascii_alphanumeric() || bytes[i - 1] == b'_');
        if rest.starts_with(b"//") {
            i += rest.iter().position(|&byte| byte == b'\n').unwrap_or(rest.len());
        } else if rest.starts_with(b"/*") {
            let mut depth = 0;
            while i < bytes.len() {
                if bytes[i..].starts_with(b"/*") {
                    depth += 1;
                    i += 2;
                } else if bytes[i..].starts_with(b"*/") {
                    depth -= 1;
                    i += 2;
                    if depth == 0 {
                        break;
                    }
                } else {
                    i += 1;
                }
            }
        } else if let Some(hashes) = raw_string(rest).filter(|_| !word_before) {
            let close = format!("\"{}", "#".repeat(hashes));
            let body = text[i..].find('"').map_or(text.len(), |quote| i + quote + 1);
            i = text[body..].find(&close).map_or(text.len(), |end| body + end + close.len());
        } else if rest[0] == b'"' {
            i += 1;
            while i < bytes.len() && bytes[i] != b'"' {
                i += if bytes[i] == b'\\' { 2 } else { 1 };
            }
            i = (i + 1).min(bytes.len());
        } else if rest[0] == b'\'' {
            // A character's literal; anything else is a lifetime.
            match rest {
                [_, b'\\', ..] => {
                    i += 3;
                    while i < bytes.len() && bytes[i] != b'\'' {
                        i += 1;
                    }
                    i = (i + 1).min(bytes.len());
                }
                _ => {
                    let end = text[i + 1..].char_indices().nth(1).map_or(text.len(), |(at, _)| i + 1 + at);
                    i = if bytes.get(end) == Some(&b'\'') { end + 1 } else { i + 1 };
                }
            }
        } else {
            i += 1;
            continue;
        }
        blank(start, i);
    }
    String::from_utf8(out).unwrap()
}

/// The number of hashes, if a raw string begins here.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let rest = rest.strip_prefix(b"b").unwrap_or(rest).strip_prefix(b"r")?;
    let hashes = rest.iter().take_while(|&&byte| byte == b'#').count();
    (rest.get(hashes) == Some(&b'"')).then_some(hashes)
}

/// The code without the items that `#[cfg(test)]` or `#[cfg(all(test, ..))]` marks.
fn without_test_items(code: &str) -> String {
    let mut out = code.to_owned();
    let mut from = 0;
    while let Some(found) = out[from..].find("#[cfg(") {
        let start = from + found;
        let end_of_attribute = start + matching(&out[start + 1..], '[', ']') + 1;
        let condition: String = out[start..end_of_attribute].split_whitespace().collect();
        from = end_of_attribute;
        if !(condition.starts_with("#[cfg(test)") || condition.starts_with("#[cfg(all(test")) {
            continue;
        }
        // The item ends at its semicolon or with its outermost braces.
        let item = &out[end_of_attribute..];
        let end = match (item.find(';'), item.find('{')) {
            (Some(semicolon), brace) if brace.is_none_or(|brace| semicolon < brace) => semicolon + 1,
            (_, Some(_)) => matching(item, '{', '}'),
            _ => item.len(),
        };
        let blanked: String = out[start..end_of_attribute + end]
            .chars()
            .map(|character| if character == '\n' { '\n' } else { ' ' })
            .collect();
        out.replace_range(start..start + blanked.len().max(end_of_attribute + end - start), &blanked);
    }
    out
}

/// The offset just past the bracket that closes the first `open` in `text`.
fn matching(text: &str, open: char, close: char) -> usize {
    let mut depth = 0;
    for (at, character) in text.char_indices() {
        if character == open {
            depth += 1;
        } else if character == close && depth > 0 {
            depth -= 1;
            if depth == 0 {
                return at + 1;
            }
        }
    }
    text.len()
}
