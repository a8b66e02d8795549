//! A guest with a real kernel: its nbd driver and its file systems over our exports.
//!
//! Fully emulated, so it needs no rights and no device of the host. It reaches servers
//! on the host's loopback at 10.0.2.2 and takes commands over a serial line.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::server::lines_of;

/// The host's loopback, as the guest sees it.
pub const HOST: &str = "10.0.2.2";

const BOOT_WITHIN: Duration = Duration::from_secs(90);
const RUN_WITHIN: Duration = Duration::from_secs(60);

/// A running guest; dropping it switches it off.
pub struct Vm {
    child: Child,
    input: ChildStdin,
    output: Receiver<String>,
    dir: tempfile::TempDir,
}

/// Whether a guest can be booted here (see [`super::have`]).
pub fn have_vm() -> bool {
    let unpacked = tools_dir().join("qemu/usr/bin/qemu-system-x86_64").exists();
    super::available(unpacked, "the emulator (tools/install-test-tools unpacks it)")
        && super::have(&["nbd-client", "mkfs.xfs", "mkfs.ext4", "depmod", "ldd"])
}

fn tools_dir() -> PathBuf {
    std::env::var_os("SNAPVOL_TEST_TOOLS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-tools"), PathBuf::from)
}

impl Vm {
    /// Boots a guest with nothing but the usual tools.
    #[track_caller]
    pub fn boot() -> Self {
        Self::boot_with(&[])
    }

    /// Boots a guest that has these programs, with their libraries, in its PATH.
    #[track_caller]
    pub fn boot_with(programs: &[&Path]) -> Self {
        let tools = tools_dir();
        let dir = super::scratch();
        let initramfs = dir.path().join("initramfs");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/mkinitramfs");
        super::run(Command::new(script).arg(&tools).arg(&initramfs).args(programs));

        let qemu = tools.join("qemu");
        let firmware = ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"];
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
        let mut command = Command::new(qemu.join("usr/bin/qemu-system-x86_64"));
        command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries.map(|path| qemu.join(path))).unwrap());
        for path in firmware {
            command.arg("-L").arg(qemu.join(path));
        }
        command.args(["-machine", "q35", "-accel", "tcg", "-cpu", "max", "-m", "512"]);
        command.args(["-nodefaults", "-display", "none", "-monitor", "none", "-no-reboot"]);
        command.args(["-append", "console=ttyS0 quiet panic=-1 nokaslr mitigations=off"]);
        command.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        command.arg("-kernel").arg(kernel(&tools)).arg("-initrd").arg(&initramfs);
        command.arg("-serial").arg(format!("file:{}", dir.path().join("console").display()));
        command.args(["-serial", "stdio"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), lines_of(&mut child));
        let mut vm = Self { child, input, output, dir };
        vm.until("@@READY", BOOT_WITHIN, "boot");
        vm
    }

    /// Runs a shell script in the guest: its exit code and what it printed.
    #[track_caller]
    pub fn run(&mut self, script: &str) -> (i32, String) {
        self.run_within(RUN_WITHIN, script)
    }

    /// As [`Vm::run`] with a time limit.
    #[track_caller]
    pub fn run_within(&mut self, limit: Duration, script: &str) -> (i32, String) {
        let start = Instant::now();
        writeln!(self.input, "{script}\n@@RUN").unwrap();
        let (end, output) = self.until("@@EXIT ", limit, script);
        if std::env::var_os("SNAPVOL_TEST_VERBOSE").is_some() {
            eprintln!("guest, {:.2?}: {script}\n{output}", start.elapsed());
        }
        (end.parse().unwrap(), output)
    }

    /// Runs a script that must succeed and returns what it printed.
    #[track_caller]
    pub fn ok(&mut self, script: &str) -> String {
        let (code, output) = self.run(&format!("set -e\n{script}"));
        assert_eq!(code, 0, "in the guest: {script}\n{output}\nconsole: {}", self.console());
        output
    }

    /// What the guest's kernel said.
    pub fn console(&self) -> String {
        std::fs::read(self.dir.path().join("console"))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Reads to the line that begins with `mark`: the rest of that line, and all before.
    #[track_caller]
    fn until(&mut self, mark: &str, limit: Duration, what: &str) -> (String, String) {
        let start = Instant::now();
        let mut output = String::new();
        loop {
            match self.output.recv_timeout(limit.saturating_sub(start.elapsed())) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(mark) {
                        return (rest.trim().to_owned(), output.trim_end().to_owned());
                    }
                    output.push_str(&line);
                    output.push('\n');
                }
                Err(problem) => {
                    let why = match problem {
                        RecvTimeoutError::Timeout => format!("took longer than {limit:?}"),
                        RecvTimeoutError::Disconnected => "ended the guest".to_owned(),
                    };
                    panic!("{what} {why}\noutput: {output}\nconsole: {}", self.console());
                }
            }
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn kernel(tools: &Path) -> PathBuf {
    let entries = std::fs::read_dir(tools.join("kernel/boot")).unwrap();
    let mut kernels: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("vmlinuz"))
        .collect();
    kernels.sort();
    kernels.pop().expect("a kernel")
}
