//! A guest with a real kernel: its nbd driver and its file systems over our exports.
//!
//! Fully emulated, so it needs no rights and no device of the host. It reaches servers
//! on the host's loopback at 10.0.2.2 and takes commands over a virtio port: an emulated
//! serial line loses some when the machine is busy.

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

/// A guest's system, to be booted as often as is wanted.
pub struct System {
    dir: tempfile::TempDir,
}

/// What a guest has besides the usual.
#[derive(Default)]
pub struct Extras<'a> {
    /// The unix socket of an NBD server whose default export is the guest's `/dev/vda`.
    pub disk: Option<&'a Path>,
    /// Ports of the host's loopback, and which ones of the guest they lead to.
    pub forwards: &'a [(u16, u16)],
}

/// A running guest; dropping it switches it off.
pub struct Vm {
    child: Child,
    input: ChildStdin,
    output: Receiver<String>,
    console: PathBuf,
    /// Kept for as long as its only guest runs.
    _system: Option<System>,
}

/// Switches a guest off that another thread talks to.
#[derive(Clone, Copy)]
pub struct Switch(rustix::process::Pid);

impl Switch {
    /// Without a warning. The guest must not have been dropped.
    pub fn off(self) {
        rustix::process::kill_process(self.0, rustix::process::Signal::KILL).unwrap();
    }
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

impl System {
    /// A system that has these programs, with their libraries, in its PATH.
    #[track_caller]
    pub fn new(programs: &[&Path]) -> Self {
        let dir = super::scratch();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vm/mkinitramfs");
        let initramfs = dir.path().join("initramfs");
        super::run(Command::new(script).arg(tools_dir()).arg(&initramfs).args(programs));
        Self { dir }
    }

    /// Boots a guest.
    #[track_caller]
    pub fn boot(&self, extras: &Extras<'_>) -> Vm {
        let tools = tools_dir();
        let console = self.dir.path().join("console");
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
        let forwards = extras.forwards.iter();
        let forwards = forwards.map(|(host, guest)| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
        command.arg("-netdev").arg(format!("user,id=net{}", forwards.collect::<String>()));
        command.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        if let Some(socket) = extras.disk {
            let socket = socket.display();
            command.arg("-blockdev").arg(format!(
                "driver=nbd,node-name=disk,server.type=unix,server.path={socket},cache.direct=on,discard=unmap"
            ));
            command.args(["-device", "virtio-blk-pci,drive=disk,write-cache=on"]);
        }
        command.arg("-kernel").arg(kernel(&tools)).arg("-initrd").arg(self.dir.path().join("initramfs"));
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.args(["-chardev", "stdio,id=scripts,signal=off", "-device", "virtio-serial-pci"]);
        command.args(["-device", "virtserialport,chardev=scripts,nr=1"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), lines_of(&mut child));
        let mut vm = Vm { child, input, output, console, _system: None };
        vm.until("@@READY", BOOT_WITHIN).unwrap_or_else(|why| panic!("boot {why}"));
        vm
    }
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
        let system = System::new(programs);
        let mut vm = system.boot(&Extras::default());
        vm._system = Some(system);
        vm
    }

    /// What switches it off.
    pub fn switch(&self) -> Switch {
        Switch(rustix::process::Pid::from_child(&self.child))
    }

    /// Runs a shell script in the guest: its exit code and what it printed.
    #[track_caller]
    pub fn run(&mut self, script: &str) -> (i32, String) {
        self.run_within(RUN_WITHIN, script)
    }

    /// As [`Vm::run`] with a time limit.
    #[track_caller]
    pub fn run_within(&mut self, limit: Duration, script: &str) -> (i32, String) {
        self.try_run(limit, script).unwrap_or_else(|why| panic!("{script} {why}"))
    }

    /// As [`Vm::run_within`]; why there is no answer, if there is none.
    ///
    /// # Errors
    /// When the time is over, or somebody switched the guest off.
    pub fn try_run(&mut self, limit: Duration, script: &str) -> Result<(i32, String), String> {
        let start = Instant::now();
        // Into a guest that is off it fails, and then so does what follows.
        let _ = writeln!(self.input, "{script}\n@@RUN");
        let (end, output) = self.until("@@EXIT ", limit)?;
        if std::env::var_os("SNAPVOL_TEST_VERBOSE").is_some() {
            eprintln!("guest, {:.2?}: {script}\n{output}", start.elapsed());
        }
        Ok((end.parse().unwrap(), output))
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
        std::fs::read(&self.console)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Reads to the line that begins with `mark`: the rest of that line, and all before.
    fn until(&mut self, mark: &str, limit: Duration) -> Result<(String, String), String> {
        let start = Instant::now();
        let mut output = String::new();
        loop {
            match self.output.recv_timeout(limit.saturating_sub(start.elapsed())) {
                Ok(line) => {
                    if let Some(rest) = line.strip_prefix(mark) {
                        return Ok((rest.trim().to_owned(), output.trim_end().to_owned()));
                    }
                    output.push_str(&line);
                    output.push('\n');
                }
                Err(problem) => {
                    let why = match problem {
                        RecvTimeoutError::Timeout => format!("took longer than {limit:?}"),
                        RecvTimeoutError::Disconnected => "ended the guest".to_owned(),
                    };
                    return Err(format!("{why}\noutput: {output}\nconsole: {}", self.console()));
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
