//! `docs/format.md` as tests see it: its byte tables, compared with what the codecs write.

/// A row of a byte table.
pub(super) struct Row {
    pub offset: usize,
    pub size: usize,
    pub field: String,
}

/// The text of the page.
pub(super) fn text() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/format.md")).unwrap()
}

/// The table under that heading; its rows follow each other without a gap.
pub(super) fn table(heading: &str) -> Vec<Row> {
    let text = text();
    let section = text.split_once(&format!("\n{heading}\n")).expect("the heading is there").1;
    let rows = section.lines().skip_while(|line| !line.starts_with("| ---")).skip(1);
    let mut end = 0;
    rows.take_while(|line| line.starts_with('|'))
        .map(|line| {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let row = Row {
                offset: cells[1].parse().unwrap(),
                size: cells[2].parse().unwrap(),
                field: cells[3].to_owned(),
            };
            assert_eq!(row.offset, end, "{heading}: {}", row.field);
            end += row.size;
            row
        })
        .collect()
}

/// Checks that `bytes` are exactly the table's fields: `field` gives the expected bytes
/// of each, except checksums of "the bytes before" and what is reserved.
pub(super) fn compare(heading: &str, bytes: &[u8], field: impl Fn(&str) -> Vec<u8>) {
    let rows = table(heading);
    assert_eq!(rows.last().map(|row| row.offset + row.size), Some(bytes.len()), "{heading}");
    for row in rows {
        let part = &bytes[row.offset..row.offset + row.size];
        let want = match row.field.as_str() {
            "reserved" => vec![0; row.size],
            "checksum of the bytes before" => crc32c::crc32c(&bytes[..row.offset]).to_le_bytes().to_vec(),
            name => match name.split_once("magic: `") {
                Some((_, magic)) => magic.trim_end_matches('`').as_bytes().to_vec(),
                None => field(name.split([':', ',']).next().unwrap()),
            },
        };
        assert_eq!(part, want, "{heading}: {}", row.field);
    }
}
