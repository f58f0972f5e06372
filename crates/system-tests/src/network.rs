//! Private networks: a bridge inside a network namespace of its own, which nothing outside can reach or see.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, anyhow, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::holder::Holder;
use crate::process::{Input, LIMIT, Output, run, run_ok};
use crate::run::Run;
use crate::server::FileServer;

/// Networks cannot reach each other and could all have the same addresses; a number of its own makes logs readable.
static NEXT_SUBNET: AtomicU8 = AtomicU8::new(0);

/// The first host's last byte; those below are for processes of the test.
const FIRST_HOST: u8 = 11;

/// A private network 10.77.x.0/24. The test itself sits on it as 10.77.x.1. It lives as long as any clone of this
/// value and any host on it.
#[derive(Debug, Clone)]
pub struct Network {
    held: Arc<Held>,
}

#[derive(Debug)]
struct Held {
    holder: Holder,
    subnet: u8,
    next_host: AtomicU8,
    run: Arc<Run>,
}

impl Network {
    /// Makes a network.
    ///
    /// # Errors
    /// When this process is not root or a tool is missing that cannot be installed.
    pub fn new() -> Result<Self> {
        let run = Run::current()?;
        let subnet = NEXT_SUBNET.fetch_add(1, Ordering::Relaxed);
        let script = format!(
            "printf '%s\\n' 'link set lo up' 'link add br0 type bridge' 'addr add 10.77.{subnet}.1/24 dev br0' \
             'link set br0 up' | ip -batch -{}",
            Holder::STAY
        );
        let holder = Holder::start(&["--net"], &script, &[]).context("cannot make a network")?;
        let next_host = AtomicU8::new(FIRST_HOST);
        Ok(Self { held: Arc::new(Held { holder, subnet, next_host, run }) })
    }

    /// The address of the test itself, where its servers listen.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.held.subnet, 1)
    }

    /// The network namespace, as a path that can be opened and given to `setns`.
    #[must_use]
    pub fn enter(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.held.holder.pid()))
    }

    /// A command that will run on this network, outside all hosts, as [`Network::address`]: curl, a server, a client.
    #[must_use]
    pub fn command(&self, argv: &[&str]) -> Command {
        let mut command = self.held.holder.enter(&["--net"]);
        command.args(argv);
        command
    }

    /// Runs a command on this network, outside all hosts; how it ended is for the caller to judge.
    ///
    /// # Errors
    /// When it cannot be run, or runs longer than five minutes.
    pub fn exec(&self, argv: &[&str]) -> Result<Output> {
        run(self.command(argv), Input::Nothing, LIMIT)
    }

    /// Runs `work` in a thread of its own on this network. Sockets opened there belong to the network for good, so a
    /// single-threaded runtime started there works; threads started there are on the network as well.
    ///
    /// # Errors
    /// What `work` returns, or when the thread cannot enter the network or panics.
    pub fn run_in<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let enter = || {
            self.join_thread()?;
            work()
        };
        let ended = std::thread::scope(|scope| scope.spawn(enter).join());
        ended.map_err(|panic| {
            anyhow!("a thread on the network panicked: {}", crate::trials::panic_message(&*panic))
        })?
    }

    /// Moves the calling thread onto this network, for good.
    pub(crate) fn join_thread(&self) -> Result<()> {
        let path = self.enter();
        let namespace =
            std::fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .context("cannot enter the network's namespace")
    }

    /// Serves the files under `root` by HTTP at a free port of [`Network::address`], until the value is dropped.
    ///
    /// # Errors
    /// When no port can be opened.
    pub fn serve(&self, root: impl Into<PathBuf>) -> Result<FileServer> {
        FileServer::start(self, root.into())
    }

    pub(crate) fn run(&self) -> &Arc<Run> {
        &self.held.run
    }

    /// Gives the namespace of `host` a cable to the bridge, and the next free address.
    pub(crate) fn attach(&self, host: &Holder) -> Result<Ipv4Addr> {
        let number = self.held.next_host.fetch_add(1, Ordering::Relaxed);
        ensure!((FIRST_HOST..=254).contains(&number), "a network has room for {} hosts", 254 - FIRST_HOST);
        let address = Ipv4Addr::new(10, 77, self.held.subnet, number);
        let network = self.held.holder.pid();
        let cable = format!("v{number}");
        let inside = format!(
            "link set lo up\nlink add host0 type veth peer name {cable} netns {network}\naddr add {address}/24 dev host0\n\
             link set host0 up\nroute add default via {}\n",
            self.address()
        );
        let mut command = host.enter(&["--net"]);
        command.args(["ip", "-batch", "-"]);
        run_ok(command, Input::Bytes(inside.as_bytes())).context("cannot connect the host to its network")?;
        run_ok(self.command(&["ip", "link", "set", &cable, "master", "br0", "up"]), Input::Nothing)?;
        Ok(address)
    }
}
