//! A lean load generator for any NBD server, that checks what it reads:
//! `cargo run --release --example nbd_load -- 'nbd+unix:///vol?socket=nbd.sock' --read 100`.
//!
//! It costs about a microsecond a request, so that a fast server shows. With `--image FILE`
//! it prepares an image whose blocks all have their stamp.

mod cpu;
mod load;
mod pattern;
mod stamp;

use clap::Parser;
use load::{Job, Load, Outcome};
use pattern::{Order, Pattern};
use serde_json::{Value, json};
use snapvol::nbd::client::{Client, Options};
use snapvol::types::parse_size;
use snapvol::{Error, Result};
use stamp::STAMP_BYTES;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Puts load on an NBD export, or makes an image for one.
#[derive(Parser)]
struct Arguments {
    /// The server's unix socket.
    #[arg(long, required_unless_present = "image")]
    unix: Option<PathBuf>,
    /// The export's name.
    #[arg(long, default_value = "")]
    export: String,
    /// Writes an image of `--range` bytes to this file instead.
    #[arg(long)]
    image: Option<PathBuf>,
    /// Bytes of one request.
    #[arg(long, default_value = "4K", value_parser = parse_size)]
    request: u64,
    /// Requests under way, per connection.
    #[arg(long, default_value_t = 32)]
    depth: usize,
    /// Connections, each with a thread and a part of the range of its own.
    #[arg(long, default_value_t = 1)]
    connections: u64,
    /// Reads in a hundred requests; the others are writes.
    #[arg(long, default_value_t = 100)]
    read: u32,
    /// A flush after so many writes, waited for.
    #[arg(long, default_value_t = 0)]
    flush_every: u64,
    /// Where the requests go.
    #[arg(long, value_enum, default_value_t = Order::Random)]
    order: Order,
    /// Bytes of the export to use; all of it unless said.
    #[arg(long, value_parser = parse_size)]
    range: Option<u64>,
    /// Seconds to run.
    #[arg(long)]
    seconds: Option<f64>,
    /// Requests to make, per connection.
    #[arg(long, default_value_t = u64::MAX)]
    requests: u64,
    /// The seed of the pattern.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Does not check what it reads.
    #[arg(long)]
    no_verify: bool,
    /// So many of the blocks written are read back at the end, outside of all measurements.
    #[arg(long, default_value_t = 0)]
    read_back: usize,
    /// Lists pauses between two batches of replies from so many microseconds on.
    #[arg(long, default_value_t = 500)]
    pauses_from: u64,
    /// The server's process, whose processor time and memory are to be told.
    #[arg(long)]
    pid: Option<u32>,
}

fn main() {
    let arguments = Arguments::parse();
    let done = match &arguments.image {
        Some(path) => image(path, arguments.range.unwrap_or(0)),
        None => run(&arguments).and_then(|report| {
            println!("{report}");
            let bad = report["wrong"].as_u64().unwrap_or(1) + report["errors"].as_u64().unwrap_or(1);
            if bad == 0 { Ok(()) } else { Err(Error::corrupt(format!("{bad} requests went wrong"))) }
        }),
    };
    if let Err(error) = done {
        eprintln!("nbd_load: {error}");
        std::process::exit(1);
    }
}

/// Writes an image in pieces of a block, which keeps the page cache's folios small.
fn image(path: &PathBuf, len: u64) -> Result<()> {
    const PIECE: usize = 16 * STAMP_BYTES;
    let os = |error| Error::os(format!("cannot write {}", path.display()), error);
    let mut file = std::fs::File::create(path).map_err(os)?;
    let mut piece = vec![0; PIECE];
    for first in (0..len / STAMP_BYTES as u64).step_by(PIECE / STAMP_BYTES) {
        for (block, data) in (first..).zip(piece.chunks_exact_mut(STAMP_BYTES)) {
            stamp::fill(data, block, 0);
        }
        // A block at a time, as random writes would leave it.
        for block in piece.chunks(STAMP_BYTES) {
            file.write_all(block).map_err(os)?;
        }
    }
    file.set_len(len).and_then(|()| file.sync_all()).map_err(os)
}

fn connect(arguments: &Arguments) -> Result<(OwnedFd, u64)> {
    let path = arguments.unix.clone().unwrap_or_default();
    let os = |error| Error::os(format!("cannot connect to {}", path.display()), error);
    let socket = UnixStream::connect(&path).map_err(os)?;
    let own = socket.try_clone().map_err(os)?;
    // Nothing is under way after the negotiation, so its buffers may go.
    let client = Client::new(Box::new(socket), &arguments.export, &Options::default())?;
    Ok((own.into(), client.size))
}

fn run(arguments: &Arguments) -> Result<Value> {
    let request = arguments.request;
    if request == 0 || !request.is_multiple_of(STAMP_BYTES as u64) {
        return Err(Error::invalid("requests are multiples of 4 KiB"));
    }
    let sockets = (0..arguments.connections).map(|_| connect(arguments)).collect::<Result<Vec<_>>>()?;
    let size = sockets.first().map_or(0, |(_, size)| *size);
    let slots = arguments.range.unwrap_or(size).min(size) / request / arguments.connections.max(1);
    if slots == 0 {
        return Err(Error::invalid("the export is too small for that"));
    }
    let server = arguments.pid.and_then(cpu::process);
    let (clock, begin) = (cpu::monotonic_seconds(), Instant::now());
    let until = arguments.seconds.map(|seconds| begin + Duration::from_secs_f64(seconds));
    let done = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (number, (socket, _)) in (0..).zip(&sockets) {
            let job = Job {
                request_bytes: usize::try_from(request).unwrap_or(usize::MAX),
                depth: arguments.depth.max(1),
                read_percent: arguments.read,
                flush_every: arguments.flush_every,
                until,
                requests_max: arguments.requests,
                verify: !arguments.no_verify,
                pause_min: Duration::from_micros(arguments.pauses_from),
            };
            let seed = arguments.seed.wrapping_mul(1000) + number;
            let order = arguments.order;
            threads.push(scope.spawn(move || {
                let mut load = Load::new(socket, job, Pattern::new(order, number * slots, slots, seed));
                load.run().map(|outcome| (load, outcome))
            }));
        }
        let lost = || std::io::Error::other("a thread of the load generator panicked");
        threads.into_iter().map(|t| t.join().unwrap_or_else(|_| Err(lost()))).collect::<Vec<_>>()
    });
    let used = server.zip(arguments.pid.and_then(cpu::process));
    let os = |error| Error::os("the connection is lost", error);
    let mut outcomes = Vec::new();
    for result in done {
        let (mut load, mut outcome) = result.map_err(os)?;
        outcome.wrong += load.read_back(arguments.read_back).map_err(os)?;
        outcomes.push(outcome);
    }
    let mut report = report(arguments, outcomes, used);
    report["began"] = json!(clock);
    Ok(report)
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn report(arguments: &Arguments, outcomes: Vec<Outcome>, server: Option<((f64, u64), (f64, u64))>) -> Value {
    let mut outcomes = outcomes.into_iter();
    let Some(mut all) = outcomes.next() else { return Value::Null };
    for other in outcomes {
        all.requests += other.requests;
        all.flushes += other.flushes;
        all.wrong += other.wrong;
        all.errors += other.errors;
        all.seconds = all.seconds.max(other.seconds);
        all.cpu_seconds += other.cpu_seconds;
        all.pauses.extend(other.pauses);
        // Both have the same digits, and grow.
        let _ = all.latency.add(&other.latency);
        let _ = all.flush_latency.add(&other.flush_latency);
    }
    let requests = all.requests as f64;
    let microseconds =
        |h: &hdrhistogram::Histogram<u64>, quantile| h.value_at_quantile(quantile) as f64 / 1e3;
    let used = server.map(|(before, after)| after.0 - before.0);
    json!({
        "requests": all.requests,
        "flushes": all.flushes,
        "seconds": all.seconds,
        "per_second": requests / all.seconds,
        "mb_per_second": requests * arguments.request as f64 / all.seconds / 1e6,
        "latency_us": {
            "p50": microseconds(&all.latency, 0.5),
            "p99": microseconds(&all.latency, 0.99),
            "p999": microseconds(&all.latency, 0.999),
            "max": all.latency.max() as f64 / 1e3,
        },
        "flush_us": { "p50": microseconds(&all.flush_latency, 0.5), "p99": microseconds(&all.flush_latency, 0.99) },
        "client_us_per_request": all.cpu_seconds * 1e6 / requests,
        "server_us_per_request": used.map(|seconds| seconds * 1e6 / requests),
        "server_resident": server.map(|(_, after)| after.1),
        "pauses": all.pauses,
        "wrong": all.wrong,
        "errors": all.errors,
    })
}
