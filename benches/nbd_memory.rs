//! Serves volumes in memory over NBD, to try clients on and to measure what the
//! protocol alone costs: `cargo run --example nbd_memory -- SOCKET [ADDR:PORT]`.

use snapvol::io::DriverKind;
use snapvol::nbd::memory::{Memory, MemoryExports};
use snapvol::nbd::{Limits, Listen, Server};
use std::io::Read;

fn main() -> snapvol::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().unwrap_or_else(|| "/tmp/nbd_memory.sock".to_owned());
    let mut listen = vec![Listen::Unix(socket.into())];
    listen.extend(arguments.next().map(Listen::Tcp));
    let driver = if std::env::var_os("PLAIN").is_some() { DriverKind::Plain } else { DriverKind::Auto };
    let exports = MemoryExports::new(driver);
    let disk = exports.add("disk", Memory::new(1 << 30));
    disk.snapshot("first");
    exports.add("fixed", Memory::new(10 << 20).read_only());
    let mut server = Server::start(exports, &listen, Limits::default())?;
    for uri in server.uris("disk").into_iter().chain(server.uris("fixed")) {
        println!("ready {uri}");
    }
    // Until standard input ends.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    server.stop();
    Ok(())
}
