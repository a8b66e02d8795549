//! The metrics server: `GET /metrics` over TCP, off unless asked for.
//!
//! Whoever reaches the address may read, and nothing here changes anything. A connection is one
//! request with one answer; how long it may take and how many there are at once is bounded, so a
//! scraper that hangs holds up nobody for long.

use super::http::{self, Framing};
use super::metrics;
use crate::engine::Store;
use crate::error::{Error, Result};
use crate::replica::Hub;
use std::io::{BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Connections served at once.
const CONNECTIONS_MAX: usize = 16;
/// How long a request and its answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How soon an accept is tried again that found no descriptor.
const EXHAUSTED_REST: Duration = Duration::from_millis(100);

struct Shared {
    store: Arc<Store>,
    hub: Arc<Hub>,
    stopping: AtomicBool,
    open: AtomicUsize,
}

/// A running metrics server.
pub struct Scrape {
    shared: Arc<Shared>,
    address: SocketAddr,
    accepting: Option<JoinHandle<()>>,
}

impl Scrape {
    /// Listens on that address, `ADDR:PORT`.
    ///
    /// # Errors
    /// `Io` when nothing can listen there.
    pub fn start(address: &str, store: Arc<Store>, hub: Arc<Hub>) -> Result<Self> {
        let failed = |error| {
            Error::os(format!("listen for metrics on {address}"), error)
                .hint("give an address of this host and a free port, such as 127.0.0.1:9750")
        };
        let listener = TcpListener::bind(address).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let (stopping, open) = (AtomicBool::new(false), AtomicUsize::new(0));
        let shared = Arc::new(Shared { store, hub, stopping, open });
        let for_thread = Arc::clone(&shared);
        let accepting = std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || accept(&listener, &for_thread))
            .map_err(failed)?;
        Ok(Self { shared, address, accepting: Some(accepting) })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Accepts no more; what is being answered ends by itself.
    pub fn stop(&mut self) {
        let Some(accepting) = self.accepting.take() else { return };
        self.shared.stopping.store(true, Ordering::SeqCst);
        let mut here = self.address;
        if here.ip().is_unspecified() {
            here.set_ip(match here {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        // Wakes the accept; it sees the flag before it serves anything.
        if TcpStream::connect_timeout(&here, PATIENCE).is_ok() {
            let _ = accepting.join();
        }
    }
}

impl Drop for Scrape {
    fn drop(&mut self) {
        self.stop();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        let accepted = listener.accept();
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        let Ok((stream, _)) = accepted else {
            std::thread::sleep(EXHAUSTED_REST);
            continue;
        };
        if shared.open.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS_MAX {
            shared.open.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let place = Place(Arc::clone(shared));
        let served = std::thread::Builder::new().name("scrape".to_owned()).spawn(move || {
            if let Err(error) = serve(&stream, &place.0) {
                tracing::debug!("a scrape: {error}");
            }
            let _ = stream.shutdown(Shutdown::Both);
        });
        if let Err(error) = served {
            tracing::warn!("no thread for a scrape: {error}");
        }
    }
}

/// A connection's place among those served at once.
struct Place(Arc<Shared>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A connection whose reads end at one moment, however little each of them brings.
struct Timely<'a>(&'a TcpStream, Instant);

impl Read for Timely<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let left = self.1.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        self.0.set_read_timeout(Some(left))?;
        (&mut &*self.0).read(buffer)
    }
}

fn serve(stream: &TcpStream, shared: &Shared) -> Result<()> {
    let failed = |error| Error::os("answer a scrape", error);
    stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
    let mut input = BufReader::new(Timely(stream, Instant::now() + PATIENCE));
    let mut output = stream;
    let mut answer = |status, kind: &str, text: &str| {
        http::write_answer(&mut output, status, kind, Framing::Length(text.len() as u64))
            .and_then(|()| output.write_all(text.as_bytes()))
            .map_err(failed)
    };
    let head = match http::read_request(&mut input) {
        Ok(Some(head)) => head,
        Ok(None) => return Ok(()),
        Err(error) => return answer(400, "text/plain", &format!("{error}\n")),
    };
    let path = head.path.split('?').next().unwrap_or_default();
    if head.method != "GET" || path != "/metrics" {
        return answer(404, "text/plain", "there is GET /metrics, and nothing else\n");
    }
    match figures(shared) {
        Ok(text) => answer(200, metrics::CONTENT_TYPE, &text),
        Err(error) => answer(503, "text/plain", &format!("{error}\n")),
    }
}

fn figures(shared: &Shared) -> Result<String> {
    let volumes = shared.store.figures()?;
    let mut status = shared.store.status()?;
    status.sessions = shared.hub.statuses();
    Ok(metrics::text(&status, &volumes))
}
