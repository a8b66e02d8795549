//! Real death: the daemon is killed without a warning while writers verify. What was
//! acknowledged is there afterwards, flushed or not, and no snapshot has changed.
//!
//! `SNAPVOL_ROUNDS` sets how often it is killed (3), `SNAPVOL_SEED` where chance starts.

use crate::support::server::Server;
use crate::support::{ok, scratch};
use snapvol::nbd::client::{Client, Options};
use snapvol::nbd::proto::cmd;
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

const BLOCK: usize = 4096;
const BLOCK_LEN: u32 = 4096;
const BLOCKS: u64 = 4096;
const SIZE: &str = "16M";

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// What a block may hold: the stamps issued since the last one that is sure, it included.
#[derive(Clone, Default)]
struct Block {
    sure: u64,
    issued: Vec<u64>,
}

fn content(block: u64, stamp: u64) -> Vec<u8> {
    let mut data = vec![0; BLOCK];
    if stamp != 0 {
        for (index, word) in (0u64..).zip(data.chunks_exact_mut(8)) {
            word.copy_from_slice(&(stamp << 20 ^ block << 9 ^ index).to_le_bytes());
        }
    }
    data
}

fn connect(store: &Path, export: &str) -> Client {
    let options = Options { structured: true, ..Options::default() };
    Client::unix(&store.join("nbd.sock"), export, &options).unwrap()
}

fn whole(store: &Path, export: &str) -> Vec<u8> {
    let mut client = connect(store, export);
    let mut all = Vec::new();
    while (all.len() as u64) < client.size {
        all.extend(client.read(all.len() as u64, 1 << 20).unwrap());
    }
    client.disconnect().unwrap();
    all
}

/// Writes until the server is gone; notes what was issued and what was acknowledged.
fn write_until_death(
    store: &Path,
    blocks: &mut HashMap<u64, Block>,
    rng: &mut fastrand::Rng,
    next: &mut u64,
) {
    let mut client = connect(store, "v");
    let mut under_way: HashMap<u64, (u64, u64)> = HashMap::new();
    loop {
        // One write of a block at a time, so that their order is known.
        while under_way.len() < 24 {
            let block = rng.u64(0..BLOCKS);
            if under_way.values().any(|(other, _)| *other == block) {
                continue;
            }
            *next += 1;
            let stamp = if rng.u8(0..8) == 0 { 0 } else { *next };
            blocks.entry(block).or_default().issued.push(stamp);
            let (command, payload) =
                if stamp == 0 { (cmd::TRIM, Vec::new()) } else { (cmd::WRITE, content(block, stamp)) };
            let at = block * BLOCK as u64;
            match client.send(command, 0, at, BLOCK_LEN, &payload) {
                Ok(cookie) => drop(under_way.insert(cookie, (block, stamp))),
                Err(_) => return,
            }
        }
        match client.receive() {
            Ok(reply) => {
                assert_eq!(reply.errno, 0);
                if let Some((block, stamp)) = under_way.remove(&reply.cookie) {
                    let block = blocks.get_mut(&block).unwrap();
                    block.sure = stamp;
                    block.issued.clear();
                }
            }
            Err(_) => return,
        }
    }
}

/// Every block holds its last acknowledged content, or one that was under way.
fn check(store: &Path, blocks: &mut HashMap<u64, Block>) {
    let all = whole(store, "v");
    for (number, data) in (0u64..).zip(all.chunks_exact(BLOCK)) {
        let block = blocks.entry(number).or_default();
        let mut allowed = vec![block.sure];
        allowed.extend(&block.issued);
        let found = allowed.iter().find(|stamp| content(number, **stamp) == data);
        let Some(found) = found else {
            panic!("block {number} holds {:02x?}, none of {allowed:?}", &data[..16]);
        };
        *block = Block { sure: *found, issued: Vec::new() };
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    let rounds = number("SNAPVOL_ROUNDS", 3);
    let mut rng = fastrand::Rng::with_seed(number("SNAPVOL_SEED", 1));
    let dir = scratch();
    let store = dir.path().join("s");
    ok(&store, &["init"]);
    ok(&store, &["create", "v", "--size", SIZE]);
    let (mut blocks, mut next) = (HashMap::new(), 0);
    let mut snapshots: Vec<(String, Vec<u8>)> = Vec::new();
    for round in 0..rounds {
        let server = Server::start(&store, &[]);
        check(&store, &mut blocks);
        for (name, image) in &snapshots {
            assert!(whole(&store, &format!("v@{name}")) == *image, "round {round}: v@{name} has changed");
        }
        let life = Duration::from_millis(rng.u64(20..600));
        let mut writer = {
            let (store, mut blocks, mut rng) = (store.clone(), blocks.clone(), rng.fork());
            let mut next = next;
            Some(std::thread::spawn(move || {
                write_until_death(&store, &mut blocks, &mut rng, &mut next);
                (blocks, next)
            }))
        };
        // Snapshots come and go meanwhile; what they hold is read once they are there.
        let name = format!("r{round}");
        std::thread::sleep(life / 2);
        ok(&store, &["snapshot", &format!("v@{name}")]);
        snapshots.push((name.clone(), whole(&store, &format!("v@{name}"))));
        if snapshots.len() > 4 {
            let (gone, _) = snapshots.remove(rng.usize(0..snapshots.len()));
            ok(&store, &["delete", &format!("v@{gone}")]);
        }
        std::thread::sleep(life / 2);
        server.kill();
        (blocks, next) = writer.take().unwrap().join().unwrap();
    }
    let server = Server::start(&store, &[]);
    check(&store, &mut blocks);
    for (name, image) in &snapshots {
        assert!(whole(&store, &format!("v@{name}")) == *image, "v@{name} has changed");
    }
    server.stop();
    ok(&store, &["check"]);
    ok(&store, &["scrub"]);
}
