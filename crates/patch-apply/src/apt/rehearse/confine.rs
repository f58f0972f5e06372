//! What a process of an image may do: the capabilities that are left to it, and the system calls that are refused.
//!
//! Namespaces keep it from what is named; this keeps it from what is not: the kernel, the clock, devices, keys, and
//! other namespaces.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::sock_filter;

/// What is left of root: to own, to read and to write files, to become another user, to end its own processes. None of
/// it reaches beyond the image's files and processes. `DAC_READ_SEARCH` is not among them: with it files can be opened
/// by number.
const KEPT: [(CapabilitySet, u32); 11] = [
    (CapabilitySet::CHOWN, 0),
    (CapabilitySet::DAC_OVERRIDE, 1),
    (CapabilitySet::FOWNER, 3),
    (CapabilitySet::FSETID, 4),
    (CapabilitySet::KILL, 5),
    (CapabilitySet::SETGID, 6),
    (CapabilitySet::SETUID, 7),
    (CapabilitySet::SETPCAP, 8),
    (CapabilitySet::NET_BIND_SERVICE, 10),
    (CapabilitySet::SYS_CHROOT, 18),
    (CapabilitySet::SETFCAP, 31),
];

/// Gives up, for good and for all that is started from here on, every capability but those few.
pub(super) fn drop_capabilities() -> io::Result<()> {
    let kept = KEPT.iter().fold(CapabilitySet::empty(), |all, (one, _)| all | *one);
    // A kernel may know of ones that we do not, so they are asked for by number.
    for bit in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if !kept.contains(one) && rustix::thread::capability_is_in_bounding_set(one).unwrap_or(false) {
            rustix::thread::remove_capability_from_bounding_set(one)?;
        }
    }
    // Fails only where there is no ambient set.
    let _ = rustix::thread::clear_ambient_capability_set();
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)?;
    Ok(())
}

/// Refuses, for good and for all that is started from here on, the system calls that [`filter`] names. A program that
/// is set-uid gives nobody more than he has from here on either.
pub(super) fn refuse_system_calls() -> io::Result<()> {
    seccompiler::apply_filter(&filter()).map_err(io::Error::other)
}

// Of classic BPF and of seccomp, from the kernel's `linux/bpf_common.h`, `linux/seccomp.h` and `linux/audit.h`.
const LOAD: u16 = 0x20;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const REFUSE: u32 = 0x0005_0000;
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// The low half of the first argument, on machines that put that first; all that this is built for do.
const FIRST_ARGUMENT: u32 = 16;

const THIRD_ARGUMENT: u32 = 32;

/// Namespaces of every kind, as `clone` takes them: `CLONE_NEWNS`, `CGROUP`, `UTS`, `IPC`, `USER`, `PID`, `NET`.
const NAMESPACES: u32 =
    0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;

/// Sockets of these kinds belong to a network namespace: `AF_UNIX`, `AF_INET`, `AF_INET6`, and [`NETLINK`]. Others (the
/// hypervisor's, the kernel's cryptography) do not.
const FAMILIES: [u32; 3] = [1, 2, 10];
const NETLINK: u32 = 16;

/// The kernel's record of what users do is one for all namespaces. Whoever asks for it takes this answer for a kernel
/// without one; any other answer would be an error to `su`.
const AUDIT: u32 = 9;
const NO_PROTOCOL: u32 = nix::libc::EPROTONOSUPPORT.unsigned_abs();

const NOT_PERMITTED: u32 = nix::libc::EPERM.unsigned_abs();
const NOT_THERE: u32 = nix::libc::ENOSYS.unsigned_abs();
const NO_FAMILY: u32 = nix::libc::EAFNOSUPPORT.unsigned_abs();

/// What an architecture calls the system calls that matter here.
struct Calls {
    /// As the kernel tells it with each call.
    architecture: u32,
    /// From here on the numbers are another architecture's that shares its name.
    most: Option<u32>,
    refused: Vec<u32>,
    /// Answered as if the kernel did not have them: what they ask for lies in memory, and there are older ones.
    unknown: Vec<u32>,
    clone: u32,
    socket: u32,
}

fn numbers(calls: &[nix::libc::c_long]) -> Vec<u32> {
    calls.iter().filter_map(|call| u32::try_from(*call).ok()).collect()
}

fn native() -> Calls {
    use nix::libc::*;
    #[cfg(target_arch = "x86_64")]
    let (architecture, most) = (0xc000_003e, Some(0x4000_0000));
    #[cfg(target_arch = "aarch64")]
    let (architecture, most) = (0xc000_00b7, None);
    let mut refused = numbers(&[
        // Mounts and namespaces.
        SYS_mount,
        SYS_umount2,
        SYS_pivot_root,
        SYS_unshare,
        SYS_setns,
        SYS_move_mount,
        SYS_open_tree,
        SYS_fsopen,
        SYS_fsconfig,
        SYS_fsmount,
        SYS_fspick,
        SYS_mount_setattr,
        // Files by number, quotas, and notifications of whole file systems.
        SYS_name_to_handle_at,
        SYS_open_by_handle_at,
        SYS_quotactl,
        SYS_quotactl_fd,
        SYS_fanotify_init,
        SYS_swapon,
        SYS_swapoff,
        SYS_acct,
        // Keys are not in any namespace.
        SYS_keyctl,
        SYS_add_key,
        SYS_request_key,
        // The kernel, the machine and its clock.
        SYS_init_module,
        SYS_finit_module,
        SYS_delete_module,
        SYS_kexec_load,
        SYS_reboot,
        SYS_settimeofday,
        SYS_clock_settime,
        SYS_adjtimex,
        SYS_clock_adjtime,
        SYS_syslog,
        SYS_bpf,
        SYS_perf_event_open,
        SYS_userfaultfd,
        SYS_vhangup,
        // Other processes' memory and files.
        SYS_ptrace,
        SYS_process_vm_readv,
        SYS_process_vm_writev,
        SYS_kcmp,
        SYS_pidfd_getfd,
        // A way around this very filter.
        SYS_io_uring_setup,
        SYS_io_uring_enter,
        SYS_io_uring_register,
    ]);
    // Newer than the library: `open_tree_attr`.
    refused.push(467);
    #[cfg(target_arch = "x86_64")]
    refused.extend(numbers(&[SYS_iopl, SYS_ioperm, SYS_kexec_file_load, SYS_modify_ldt]));
    Calls {
        architecture,
        most,
        refused,
        unknown: numbers(&[SYS_clone3]),
        clone: numbers(&[SYS_clone]).first().copied().unwrap_or(u32::MAX),
        socket: numbers(&[SYS_socket]).first().copied().unwrap_or(u32::MAX),
    }
}

/// The same for programs of i386 on amd64, by the numbers of the kernel's `syscall_32.tbl`.
#[cfg(target_arch = "x86_64")]
fn foreign() -> Vec<Calls> {
    vec![Calls {
        architecture: 0x4000_0003,
        most: None,
        refused: vec![
            21, 22, 52, 217, 310, 346, 429, 428, 430, 431, 432, 433, 442, 467, 341, 342, 131, 443, 338, 87,
            115, 51, 288, 286, 287, 128, 350, 129, 283, 88, 79, 25, 264, 404, 124, 343, 405, 103, 357, 336,
            374, 111, 26, 347, 348, 349, 438, 425, 426, 427, 110, 101, 123,
        ],
        // `clone3`, and `socketcall`, which keeps its arguments in memory.
        unknown: vec![435, 102],
        clone: 120,
        socket: 359,
    }]
}

#[cfg(not(target_arch = "x86_64"))]
fn foreign() -> Vec<Calls> {
    Vec::new()
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: LOAD, jt: 0, jf: 0, k: offset }
}

fn give(answer: u32) -> sock_filter {
    sock_filter { code: RETURN, jt: 0, jf: 0, k: answer }
}

/// Compares, and goes on with the next instruction if it is so, else with the one after that.
fn unless(code: u16, with: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 1, k: with }
}

/// Everything is allowed but what stands here; what an architecture that is not known asks for is not.
fn filter() -> Vec<sock_filter> {
    let mut program = Vec::new();
    let native = native();
    for calls in std::iter::once(native).chain(foreign()) {
        let body = body(&calls);
        program.push(load(ARCHITECTURE));
        // Distances are small numbers, so what does not concern this architecture is jumped over in one go.
        program.push(sock_filter { code: IF_EQUAL, jt: 1, jf: 0, k: calls.architecture });
        program.push(sock_filter { code: 0x05, jt: 0, jf: 0, k: u32::try_from(body.len()).unwrap_or(0) });
        program.extend(body);
    }
    program.push(give(REFUSE | NOT_THERE));
    program
}

fn body(calls: &Calls) -> Vec<sock_filter> {
    let mut body = vec![load(NUMBER)];
    if let Some(most) = calls.most {
        body.extend([unless(IF_AT_LEAST, most), give(REFUSE | NOT_THERE)]);
    }
    for number in &calls.refused {
        body.extend([unless(IF_EQUAL, *number), give(REFUSE | NOT_PERMITTED)]);
    }
    for number in &calls.unknown {
        body.extend([unless(IF_EQUAL, *number), give(REFUSE | NOT_THERE)]);
    }
    // A new process, but in the namespaces of the one that makes it.
    body.extend([
        sock_filter { code: IF_EQUAL, jt: 0, jf: 4, k: calls.clone },
        load(FIRST_ARGUMENT),
        unless(IF_ANY_BIT, NAMESPACES),
        give(REFUSE | NOT_PERMITTED),
        give(ALLOW),
    ]);
    let mut families: Vec<sock_filter> =
        FAMILIES.iter().flat_map(|family| [unless(IF_EQUAL, *family), give(ALLOW)]).collect();
    families.extend([
        sock_filter { code: IF_EQUAL, jt: 0, jf: 4, k: NETLINK },
        load(THIRD_ARGUMENT),
        unless(IF_EQUAL, AUDIT),
        give(REFUSE | NO_PROTOCOL),
        give(ALLOW),
    ]);
    let over = u8::try_from(families.len() + 2).unwrap_or(u8::MAX);
    body.push(sock_filter { code: IF_EQUAL, jt: 0, jf: over, k: calls.socket });
    body.push(load(FIRST_ARGUMENT));
    body.extend(families);
    body.push(give(REFUSE | NO_FAMILY));
    body.push(give(ALLOW));
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The few instructions that [`filter`] is made of.
    fn answer(program: &[sock_filter], architecture: u32, number: u32, first: u32) -> u32 {
        answer_of(program, architecture, number, first, 0)
    }

    fn answer_of(program: &[sock_filter], architecture: u32, number: u32, first: u32, third: u32) -> u32 {
        let (mut at, mut value) = (0, 0);
        loop {
            let one = &program[at];
            at += 1;
            let mut jump = |is: bool| at += usize::from(if is { one.jt } else { one.jf });
            match one.code {
                LOAD => {
                    value = match one.k {
                        NUMBER => number,
                        ARCHITECTURE => architecture,
                        FIRST_ARGUMENT => first,
                        THIRD_ARGUMENT => third,
                        other => panic!("{other} is not loaded"),
                    }
                }
                IF_EQUAL => jump(value == one.k),
                IF_AT_LEAST => jump(value >= one.k),
                IF_ANY_BIT => jump(value & one.k != 0),
                0x05 => at += usize::try_from(one.k).unwrap(),
                RETURN => return one.k,
                other => panic!("{other:#x} is no instruction"),
            }
        }
    }

    fn number(call: nix::libc::c_long) -> u32 {
        u32::try_from(call).unwrap()
    }

    #[test]
    fn what_reaches_the_kernel_is_refused_and_all_else_is_not() {
        use nix::libc;
        let (program, own) = (filter(), native().architecture);
        for call in
            [libc::SYS_mount, libc::SYS_keyctl, libc::SYS_unshare, libc::SYS_io_uring_setup, libc::SYS_reboot]
        {
            assert_eq!(answer(&program, own, number(call), 0), REFUSE | NOT_PERMITTED, "{call}");
        }
        for call in [libc::SYS_read, libc::SYS_execve, libc::SYS_chroot, libc::SYS_renameat2, libc::SYS_wait4]
        {
            assert_eq!(answer(&program, own, number(call), 0), ALLOW, "{call}");
        }
        assert_eq!(answer(&program, own, number(libc::SYS_clone3), 0), REFUSE | NOT_THERE);
        assert_eq!(
            answer(&program, 0x1234, number(libc::SYS_read), 0),
            REFUSE | NOT_THERE,
            "a foreign machine"
        );
    }

    #[test]
    fn processes_and_sockets_are_made_only_in_the_same_namespaces() {
        use nix::libc;
        let (program, own) = (filter(), native().architecture);
        let clone = |flags| answer(&program, own, number(libc::SYS_clone), flags);
        // What `fork` and `posix_spawn` ask for.
        assert_eq!((clone(0x0120_0011), clone(0x4111)), (ALLOW, ALLOW));
        for namespace in [0x0002_0000, 0x1000_0000, 0x4000_0011] {
            assert_eq!(clone(namespace), REFUSE | NOT_PERMITTED, "{namespace:#x}");
        }
        let socket = |family| answer(&program, own, number(libc::SYS_socket), family);
        assert_eq!((socket(1), socket(2), socket(10), socket(16)), (ALLOW, ALLOW, ALLOW, ALLOW));
        let audit = answer_of(&program, own, number(libc::SYS_socket), NETLINK, AUDIT);
        assert_eq!(audit, REFUSE | NO_PROTOCOL);
        // The hypervisor's, the kernel's cryptography, raw packets.
        assert_eq!(
            (socket(40), socket(38), socket(17)),
            (REFUSE | NO_FAMILY, REFUSE | NO_FAMILY, REFUSE | NO_FAMILY)
        );
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn another_instruction_set_is_no_way_around() {
        use nix::libc;
        let program = filter();
        assert_eq!(answer(&program, 0x4000_0003, 21, 0), REFUSE | NOT_PERMITTED, "mount of i386");
        assert_eq!(answer(&program, 0x4000_0003, 102, 0), REFUSE | NOT_THERE, "socketcall");
        assert_eq!(answer(&program, 0x4000_0003, 3, 0), ALLOW, "read of i386");
        // x32: the same architecture, other numbers.
        let x32 = 0x4000_0000 | number(libc::SYS_mount);
        assert_eq!(answer(&program, native().architecture, x32, 0), REFUSE | NOT_THERE);
    }

    #[test]
    fn capabilities_are_what_they_are_called() {
        for (capability, bit) in KEPT {
            assert_eq!(capability.bits(), 1 << bit);
        }
        // What reaches the kernel, the clock, devices or the network.
        for bit in [2, 12, 13, 14, 16, 17, 19, 21, 22, 23, 24, 25, 27, 29, 30, 34, 37, 38, 39, 40] {
            assert!(!KEPT.iter().any(|(_, kept)| *kept == bit), "{bit}");
        }
    }
}
