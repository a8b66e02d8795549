//! `serve`: the daemon. It opens the store, serves its volumes over NBD, answers the
//! control socket, and at the first SIGTERM or SIGINT puts all of it down in order:
//! control first (no new work), then sessions of replication, then NBD, then the store, which settles and marks
//! itself clean. A second signal ends the process at once; nothing acknowledged is lost
//! by that.

mod notify;

use super::create::options;
use super::output;
use crate::control::access::open_locked;
use crate::control::scrape::Scrape;
use crate::control::service::StoreService;
use crate::control::{self, require_store};
use crate::engine::store::OpenOptions;
use crate::engine::{Store, Ticker, Watch};
use crate::error::{Error, ErrorKind, Result};
use crate::io::DriverKind;
use crate::nbd::{Limits, Listen, Server};
use crate::replica::{Hub, warnings};
use crate::types::{Name, OnFull, parse_size};
use rustix::process::{Resource, Rlimit};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How often the space that is left is looked at.
const WATCH_EVERY: Duration = Duration::from_secs(2);
/// How often schedules are looked at.
const TICK_EVERY: Duration = Duration::from_secs(1);

/// Serve all volumes and snapshots over NBD, until SIGTERM or SIGINT
///
/// Prints one line per export and address on stdout once it accepts connections. Logs
/// go to stderr; SNAPVOL_LOG sets their level (error, warn, info, debug, trace).
#[derive(clap::Args)]
pub(super) struct Args {
    /// Make this volume, of that size in bytes, if it is missing; may be repeated
    #[arg(long, value_name = "VOL:SIZE")]
    create: Vec<NewVolume>,

    /// The unix socket to listen on; DIR/nbd.sock unless said
    #[arg(long, value_name = "PATH")]
    unix: Option<PathBuf>,

    /// Listen on TCP too; anybody who reaches the address can read and write. May be repeated
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Vec<String>,

    /// Answer Prometheus with metrics on http://ADDR:PORT/metrics; anybody who reaches the address
    /// can read them
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<String>,

    /// How to talk to the disk: io_uring, plain system calls, or io_uring where the kernel allows it
    #[arg(long, value_enum, default_value_t = IoKind::Auto)]
    io: IoKind,

    /// Engine threads; 0: one a core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,

    /// How many NBD connections are served at once
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65536))]
    max_connections: u32,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum IoKind {
    Auto,
    Uring,
    Plain,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct NewVolume {
    name: Name,
    size: u64,
}

impl FromStr for NewVolume {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((name, size)) = text.split_once(':') else {
            return Err(Error::invalid(format!(
                "'{}' has no size; write it as VOL:SIZE",
                text.escape_debug()
            )));
        };
        let (name, size) = (name.parse()?, parse_size(size)?);
        options(size, 4096, 1, OnFull::default())?;
        Ok(Self { name, size })
    }
}

pub(super) fn run(dir: &Path, args: &Args) -> Result<()> {
    let dir = super::absolute(dir)?;
    // Before anything is opened, so that no signal finds the process without a plan.
    let mut signals = signals()?;
    let descriptors = raise_descriptors();
    let store = open(&dir, args, &mut || signals.pending().next().is_some())?;
    let served = serve(&dir, args, descriptors, &store, &mut signals);
    let closed = store.close();
    if served.is_ok() && closed.is_ok() {
        tracing::info!("the store is closed");
    }
    served.and(closed)
}

/// The first signal arrives here; the second one ends the process with code 1.
fn signals() -> Result<Signals> {
    let failed = |error| Error::os("set up signal handlers", error);
    let stopping = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // The order matters: the first signal finds the flag down and raises it.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&stopping)).map_err(failed)?;
        signal_hook::flag::register(signal, Arc::clone(&stopping)).map_err(failed)?;
    }
    Signals::new([SIGTERM, SIGINT]).map_err(failed)
}

fn open(dir: &Path, args: &Args, stop: &mut dyn FnMut() -> bool) -> Result<Arc<Store>> {
    match require_store(dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Store::init(dir)?;
            tracing::info!("made a store in {}", dir.display());
        }
        other => other?,
    }
    let driver = match args.io {
        IoKind::Auto => DriverKind::Auto,
        IoKind::Uring => DriverKind::Uring,
        IoKind::Plain => DriverKind::Plain,
    };
    let store = open_locked(dir, OpenOptions { driver, threads: args.threads }, stop)?;
    for volume in &args.create {
        if let Err(error) = ensure_volume(&store, volume) {
            // The first error is the one to tell.
            let _ = store.close();
            return Err(error);
        }
    }
    Ok(store)
}

/// Makes the volume unless it exists.
fn ensure_volume(store: &Store, NewVolume { name, size }: &NewVolume) -> Result<()> {
    match store.list(Some(name.as_str())) {
        Ok(info) => {
            if let Some(volume) = info.volumes.first().filter(|volume| volume.size != *size) {
                tracing::warn!(
                    "volume {name} exists with {} bytes, not {size}; it stays as it is",
                    volume.size
                );
            }
            Ok(())
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            store.create(name.as_str(), &options(*size, 4096, 1, OnFull::default())?)?;
            tracing::info!("made volume {name} of {size} bytes");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

// adapter: all that is known here of the NBD server's interface.
fn start_nbd(dir: &Path, args: &Args, descriptors: u64, store: &Arc<Store>) -> Result<Server> {
    let unix = match &args.unix {
        Some(path) => super::absolute(path)?,
        None => dir.join("nbd.sock"),
    };
    let mut listen = vec![Listen::Unix(unix)];
    listen.extend(args.listen.iter().cloned().map(Listen::Tcp));
    let connections = connections_max(args.max_connections, descriptors);
    let limits = Limits { connections, ..Limits::default() };
    Server::start(Arc::clone(store), &listen, limits)
}

/// Starts to answer Prometheus, if that was asked for.
fn start_metrics(args: &Args, store: &Arc<Store>, hub: &Arc<Hub>) -> Result<Option<Scrape>> {
    let Some(address) = &args.metrics else { return Ok(None) };
    let scrape = Scrape::start(address, Arc::clone(store), Arc::clone(hub))?;
    tracing::info!("metrics at http://{}/metrics", scrape.address());
    Ok(Some(scrape))
}

/// Takes all descriptors that the process may have; returns how many that are.
fn raise_descriptors() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let Some(most) = limit.maximum else { return limit.current.unwrap_or(u64::MAX) };
    let wanted = Rlimit { current: Some(most), maximum: Some(most) };
    match rustix::process::setrlimit(Resource::Nofile, wanted) {
        Ok(()) => most,
        Err(_) => limit.current.unwrap_or(most),
    }
}

/// How many connections fit: two descriptors each, and some must be left for the files of
/// the volumes.
fn connections_max(asked: u32, descriptors: u64) -> usize {
    let fit = usize::try_from(descriptors / 4).unwrap_or(usize::MAX).max(1);
    let asked = asked as usize;
    if fit < asked {
        tracing::warn!(
            "{fit} connections at once, not {asked}: the process may have {descriptors} descriptors"
        );
    }
    asked.min(fit)
}

fn serve(dir: &Path, args: &Args, descriptors: u64, store: &Arc<Store>, signals: &mut Signals) -> Result<()> {
    let mut nbd = start_nbd(dir, args, descriptors, store)?;
    let hub = Hub::start(store);
    let service = StoreService::new(Arc::clone(store), nbd.uris(""), Arc::clone(&hub));
    let mut scrape = start_metrics(args, store, &hub)?;
    let mut control = control::Server::start(dir, Arc::new(service))?;
    let watching = watch(store, &hub);
    let ticking = run_schedules(store);
    let announced = announce(store, &nbd);
    if announced.is_ok() {
        notify::send("READY=1");
        tracing::info!("serving {}", dir.display());
        if let Some(signal) = signals.forever().next() {
            let name = if signal == SIGINT { "SIGINT" } else { "SIGTERM" };
            tracing::info!("stopping on {name}; once more ends at once");
        }
    }
    notify::send("STOPPING=1");
    drop(watching);
    drop(ticking);
    if let Some(scrape) = &mut scrape {
        scrape.stop();
    }
    control.stop();
    hub.stop();
    nbd.stop();
    announced
}

/// Looks at the space that is left and at how far sessions are behind every few seconds, until
/// what it returns is dropped.
fn watch(store: &Arc<Store>, hub: &Arc<Hub>) -> Option<Sender<()>> {
    let (stop, stopped) = channel();
    let (store, hub) = (Arc::clone(store), Arc::clone(hub));
    let spawned = std::thread::Builder::new().name("watch".to_owned()).spawn(move || {
        let (mut space, mut sessions) = (Watch::default(), warnings::Watch::default());
        loop {
            store.watch(&mut space);
            hub.watch(&mut sessions);
            if stopped.recv_timeout(WATCH_EVERY) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    });
    if let Err(error) = &spawned {
        tracing::warn!("nobody watches space and sessions: {error}");
    }
    spawned.is_ok().then_some(stop)
}

/// Takes and deletes snapshots by schedule, until what it returns is dropped.
fn run_schedules(store: &Arc<Store>) -> Option<Sender<()>> {
    let (stop, stopped) = channel();
    let store = Arc::clone(store);
    let spawned = std::thread::Builder::new().name("schedule".to_owned()).spawn(move || {
        let mut ticker = Ticker::default();
        loop {
            store.tick(&mut ticker);
            if stopped.recv_timeout(TICK_EVERY) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    });
    if let Err(error) = &spawned {
        tracing::warn!("no snapshot is taken by schedule: {error}");
    }
    spawned.is_ok().then_some(stop)
}

/// Says where the exports are; a store without volumes says where they will be.
fn announce(store: &Store, nbd: &Server) -> Result<()> {
    let mut names = store.exports()?;
    if names.is_empty() {
        names.push(String::new());
    }
    let lines = names.iter().flat_map(|name| nbd.uris(name)).map(|uri| format!("ready {uri}\n"));
    output::print(&lines.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_volumes() {
        let volume: NewVolume = "db:10G".parse().unwrap();
        assert_eq!((volume.name.as_str(), volume.size), ("db", 10 << 30));
        for bad in ["db", "db:", ":1G", "db:513", "db:0", "_db:1G", "db:1G:2"] {
            assert!(bad.parse::<NewVolume>().is_err(), "{bad}");
        }
    }
}
