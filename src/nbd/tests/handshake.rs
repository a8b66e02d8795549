//! Every option, well-formed and not, as bytes in and bytes out.

use super::{converse, exports, go, option, replies};
use crate::engine::ExportInfo;
use crate::nbd::client::context_query;
use crate::nbd::exports::Exports;
use crate::nbd::handshake::{Step, accept, transmission_flags};
use crate::nbd::metacontext::Context;
use crate::nbd::proto::{flag, info, opt, rep};
use bytes::BytesMut;

const FLAGS: [u8; 4] = [0, 0, 0, 3];

/// What a client says after good flags, and the replies to it.
fn say(parts: &[Vec<u8>]) -> (Step, Vec<(u32, u32, Vec<u8>)>) {
    let input: Vec<u8> = FLAGS.to_vec().into_iter().chain(parts.concat()).collect();
    let whole = converse(&input, usize::MAX);
    assert_eq!(whole, converse(&input, 1), "delivery byte by byte makes a difference");
    assert_eq!(whole, converse(&input, 7));
    (whole.0, replies(&whole.1))
}

fn kinds(replies: &[(u32, u32, Vec<u8>)]) -> Vec<u32> {
    replies.iter().map(|(_, kind, _)| *kind).collect()
}

#[test]
fn client_flags() {
    assert_eq!(converse(&[0, 0, 0, 4], 9).0, Step::Close("unknown client flags"));
    assert_eq!(converse(&[0, 0, 0], 9).0, Step::NeedMore);
    // Without fixed newstyle only the oldest option is left.
    let input = [vec![0; 4], option(opt::LIST, &[])].concat();
    assert!(matches!(converse(&input, 99).0, Step::Close(_)));
    let input = [vec![0; 4], option(opt::EXPORT_NAME, b"disk")].concat();
    assert!(matches!(converse(&input, 99).0, Step::Enter(_)));
}

#[test]
fn list_names_every_export() {
    let (step, said) = say(&[option(opt::LIST, &[]), option(opt::LIST, b"x")]);
    assert_eq!(step, Step::NeedMore);
    assert_eq!(kinds(&said), [rep::SERVER, rep::SERVER, rep::ACK, rep::ERR_INVALID]);
    assert_eq!(said[0].2, b"\0\0\0\x04disk");
    assert_eq!(said[1].2, b"\0\0\0\x05fixed");
}

#[test]
fn info_says_what_was_asked() {
    let wanted = [info::NAME, info::DESCRIPTION, info::BLOCK_SIZE, 99];
    let (step, said) = say(&[option(opt::INFO, &go("disk", &wanted)), option(opt::INFO, &go("none", &[]))]);
    assert_eq!(step, Step::NeedMore);
    assert_eq!(kinds(&said), [rep::INFO, rep::INFO, rep::INFO, rep::INFO, rep::ACK, rep::ERR_UNKNOWN]);
    assert_eq!(said[0].2[..10], [0, 0, 0, 0, 0, 0, 4, 0, 0, 0]);
    assert_eq!(said[1].2, [0, 3, 0, 0, 0, 1, 0, 0, 16, 0, 2, 0, 0, 0]);
    assert_eq!(said[2].2, b"\0\x01disk");
    assert!(said[3].2.ends_with(b"volume disk, blocks of 4096 bytes"));
}

#[test]
fn malformed_info_is_refused_and_the_session_goes_on() {
    let mut long_name = go("disk", &[]);
    long_name[3] = 200;
    let mut bad_text = go("disk", &[]);
    bad_text[4] = 0xff;
    let mut trailing = go("disk", &[3]);
    trailing.push(0);
    let bad = [long_name, bad_text, trailing, vec![], vec![0; 3], go("disk", &[3])[..10].to_vec()];
    for data in bad {
        let (step, said) = say(&[option(opt::GO, &data), option(opt::INFO, &data), option(opt::LIST, &[])]);
        assert_eq!(step, Step::NeedMore);
        assert_eq!(kinds(&said)[..2], [rep::ERR_INVALID, rep::ERR_INVALID]);
        assert_eq!(kinds(&said).last(), Some(&rep::ACK));
    }
    let (_, said) = say(&[option(opt::INFO, &go(&"x".repeat(5000), &[]))]);
    assert_eq!(kinds(&said), [rep::ERR_TOO_BIG]);
}

#[test]
fn go_enters() {
    let (step, said) = say(&[option(opt::STRUCTURED_REPLY, &[]), option(opt::GO, &go("disk", &[]))]);
    assert_eq!(kinds(&said), [rep::ACK]);
    let Step::Enter(choice) = step else { panic!("{step:?}") };
    assert_eq!((choice.export.as_str(), choice.structured, choice.contexts.len()), ("disk", true, 0));
    let found = exports().find("disk").unwrap().describe().unwrap();
    let mut out = BytesMut::new();
    accept(&choice, &found, &mut out);
    assert_eq!(kinds(&replies(&out)), [rep::INFO, rep::INFO, rep::ACK]);
    // No default among two.
    let (step, said) = say(&[option(opt::GO, &go("", &[]))]);
    assert_eq!((step, kinds(&said)), (Step::NeedMore, vec![rep::ERR_UNKNOWN]));
}

#[test]
fn export_name_enters_or_closes() {
    let found = exports().find("disk").unwrap().describe().unwrap();
    for (flags, len) in [(1, 134), (3, 10)] {
        let input = [vec![0, 0, 0, flags], option(opt::EXPORT_NAME, b"disk")].concat();
        let (Step::Enter(choice), said) = converse(&input, 5) else { panic!() };
        assert!(said.is_empty());
        let mut out = BytesMut::new();
        accept(&choice, &found, &mut out);
        assert_eq!(out.len(), len);
    }
    assert!(matches!(say(&[option(opt::EXPORT_NAME, b"none")]).0, Step::Close(_)));
    assert!(matches!(say(&[option(opt::EXPORT_NAME, &[0xff])]).0, Step::Close(_)));
}

#[test]
fn flags_say_what_the_export_can_do() {
    let mut info =
        ExportInfo { size: 1, block_size: 4096, read_only: false, multi_conn: true, delta_bases: vec![] };
    let all = transmission_flags(&info, true);
    assert_eq!(all, 0b1101_1110_1101);
    info.read_only = true;
    info.multi_conn = false;
    let few = transmission_flags(&info, false);
    assert_eq!(few, flag::HAS_FLAGS | flag::READ_ONLY | flag::SEND_FLUSH | flag::SEND_FUA | flag::SEND_CACHE);
}

#[test]
fn abort_is_acknowledged() {
    let (step, said) = say(&[option(opt::ABORT, b"whatever"), option(opt::LIST, &[])]);
    assert!(matches!(step, Step::Close(_)));
    assert_eq!(kinds(&said), [rep::ACK]);
}

#[test]
fn what_is_not_there_is_refused() {
    let (step, said) = say(&[
        option(opt::STARTTLS, &[]),
        option(opt::STARTTLS, b"x"),
        option(opt::EXTENDED_HEADERS, &[]),
        option(4, b"disk"),
        option(0, &[]),
        option(u32::MAX, &[1; 1000]),
        option(opt::STRUCTURED_REPLY, b"x"),
    ]);
    assert_eq!(step, Step::NeedMore);
    let unsup = rep::ERR_UNSUP;
    assert_eq!(kinds(&said), [unsup, rep::ERR_INVALID, unsup, unsup, unsup, unsup, rep::ERR_INVALID]);
}

#[test]
fn long_options_are_skipped_and_longer_ones_end_it() {
    let (step, said) = say(&[option(opt::LIST, &vec![1; 70_000]), option(opt::LIST, &[])]);
    assert_eq!(step, Step::NeedMore);
    assert_eq!(kinds(&said), [rep::ERR_TOO_BIG, rep::SERVER, rep::SERVER, rep::ACK]);
    let mut huge = option(opt::LIST, &[]);
    huge[12] = 0xff;
    assert!(matches!(say(&[huge]).0, Step::Close(_)));
    assert!(matches!(say(&[option(opt::EXPORT_NAME, &vec![b'x'; 70_000])]).0, Step::Close(_)));
    let mut bad = option(opt::LIST, &[]);
    bad[0] ^= 1;
    assert_eq!(say(&[bad]).0, Step::Close("bad option magic"));
}

fn contexts(option_type: u32, export: &str, queries: &[&str]) -> Vec<u8> {
    let queries: Vec<String> = queries.iter().map(|query| (*query).to_owned()).collect();
    option(option_type, &context_query(export, &queries))
}

fn context_names(said: &[(u32, u32, Vec<u8>)]) -> Vec<String> {
    let found = said.iter().filter(|(_, kind, _)| *kind == rep::META_CONTEXT);
    found.map(|(_, _, data)| String::from_utf8(data[4..].to_vec()).unwrap()).collect()
}

#[test]
fn contexts_are_listed() {
    let all = ["base:allocation", "snapvol:delta:one", "snapvol:delta:two"];
    let cases: [(&[&str], &[&str]); 5] = [
        (&[], &all),
        (&["base:"], &all[..1]),
        (&["snapvol:delta:", "snapvol:"], &all[1..]),
        (&["snapvol:delta:two"], &all[2..]),
        (&["x-y:z", "base:none"], &[]),
    ];
    for (queries, expected) in cases {
        let (_, said) = say(&[contexts(opt::LIST_META_CONTEXT, "disk", queries)]);
        assert_eq!(context_names(&said), expected, "{queries:?}");
        assert_eq!(kinds(&said).last(), Some(&rep::ACK));
    }
}

#[test]
fn contexts_are_selected_for_one_export() {
    let structured = option(opt::STRUCTURED_REPLY, &[]);
    let set = contexts(opt::SET_META_CONTEXT, "disk", &["snapvol:delta:two", "base:allocation", "base:"]);
    let (step, said) = say(&[structured.clone(), set.clone(), option(opt::GO, &go("disk", &[]))]);
    assert_eq!(context_names(&said), ["snapvol:delta:two", "base:allocation"]);
    let Step::Enter(choice) = step else { panic!() };
    assert_eq!(choice.contexts[0].context, Context::Delta("two".to_owned()));
    assert_ne!(choice.contexts[0].id, choice.contexts[1].id);

    let (Step::Enter(choice), _) =
        say(&[structured.clone(), set.clone(), option(opt::GO, &go("fixed", &[]))])
    else {
        panic!()
    };
    assert!(choice.contexts.is_empty(), "contexts of another export");

    // A later selection replaces the earlier one, also when it fails.
    let bad = contexts(opt::SET_META_CONTEXT, "disk", &["nonsense"]);
    let (Step::Enter(choice), said) = say(&[structured, set.clone(), bad, option(opt::GO, &go("disk", &[]))])
    else {
        panic!()
    };
    assert!(choice.contexts.is_empty());
    assert_eq!(kinds(&said).last(), Some(&rep::ERR_INVALID));

    // Not without structured replies.
    let (_, said) = say(&[set]);
    assert_eq!(kinds(&said), [rep::ERR_INVALID]);
}

#[test]
fn malformed_queries_are_refused() {
    let good = context_query("disk", &["base:".to_owned()]);
    for end in 0..good.len() {
        let (_, said) = say(&[option(opt::LIST_META_CONTEXT, &good[..end])]);
        assert_eq!(kinds(&said), [rep::ERR_INVALID], "{end}");
    }
    let longer = [&good[..], b"x"].concat();
    assert_eq!(kinds(&say(&[option(opt::LIST_META_CONTEXT, &longer)]).1), [rep::ERR_INVALID]);
    let mut many = context_query("disk", &[]);
    many[8] = 0xff;
    assert_eq!(kinds(&say(&[option(opt::LIST_META_CONTEXT, &many)]).1), [rep::ERR_TOO_BIG]);
    let (_, said) = say(&[contexts(opt::LIST_META_CONTEXT, "none", &["base:"])]);
    assert_eq!(kinds(&said), [rep::ERR_UNKNOWN]);
}
