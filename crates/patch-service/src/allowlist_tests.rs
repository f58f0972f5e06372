use std::fs;

use super::*;
use crate::testing::Memory;

fn list(text: &str) -> AllowList {
    AllowList::parse(&format!("allowed_ips: [{text}]"), "f").unwrap()
}

#[test]
fn who_is_listed_may_connect() {
    let mixed = list("10.1.2.3, 192.168.0.0/24, 192.168.1.0/24, 0.0.0.0/32");
    let rows = [
        ("10.1.2.3", true),
        ("10.1.2.4", false),
        ("10.1.2.2", false),
        ("192.168.0.0", true),
        ("192.168.1.255", true),
        ("192.168.2.0", false),
        ("0.0.0.0", true),
        ("255.255.255.255", false),
        ("::ffff:10.1.2.3", true),
        ("::ffff:10.1.2.4", false),
        ("::1", false),
        ("::10.1.2.3", false),
    ];
    for (address, wanted) in rows {
        assert_eq!(mixed.permits(address.parse().unwrap()), wanted, "{address}");
    }
    assert!(list("0.0.0.0/0").permits("203.0.113.9".parse().unwrap()));
    assert!(!list("0.0.0.0/0").permits("2001:db8::1".parse().unwrap()));
    assert!(!AllowList::deny_all().permits("127.0.0.1".parse().unwrap()));
}

#[test]
fn what_cannot_be_understood_is_refused_with_line_and_reason() {
    let rows = [
        ("allowed_ips:\n  - 10.0.0.1\n  - ::1\n", "f:3:5: `::1` is not an IPv4 address: IPv6"),
        ("allowed_ips:\n  - \"2001:db8::/32\"\n", "f:2:5: "),
        ("allowed_ips:\n  - 10.0.0.5/24\n", "write 10.0.0.0/24 for the network or 10.0.0.5 for the host"),
        ("allowed_ips:\n  - 10.0.0.0/33\n", "is not an IPv4 network"),
        ("allowed_ips:\n  - 10.0.0\n", "is neither"),
        ("allowed_ips:\n  - 10.0.0.256\n", "is neither"),
        ("allowed_ips:\n  - bad name\n", "is neither"),
        ("allowed_ips:\n  - -x.example\n", "is neither"),
        ("allowed_ips:\n  - ''\n", "an empty entry"),
        ("allowed_ips:\n", "has no value"),
        ("allowed_ip: []\n", "did you mean `allowed_ips`"),
        ("allowed_ips: []\nallowed_ips: []\n", "a second time"),
        ("allowed_ips: 10.0.0.1\n", "f:1"),
        ("", "f"),
        ("[", "f"),
    ];
    for (text, wanted) in rows {
        let error = AllowList::parse(text, "f").unwrap_err().to_string();
        assert!(error.contains(wanted), "{text:?}: {error}");
    }
}

proptest::proptest! {
    #[test]
    fn ranges_agree_with_each_network(
        networks in proptest::collection::vec((proptest::num::u32::ANY, 0_u8..=32), 0..12),
        address in proptest::num::u32::ANY,
        near in 0_usize..12,
    ) {
        let networks: Vec<Ipv4Net> =
            networks.iter().map(|(bits, length)| Ipv4Net::new((*bits).into(), *length).unwrap().trunc()).collect();
        let list = AllowList::from_entries(networks.iter().copied().map(Entry::Network).collect());
        let mut probes = vec![Ipv4Addr::from(address)];
        if let Some(network) = networks.get(near) {
            probes.extend([network.network(), network.broadcast()]);
            probes.push(network.broadcast().to_bits().wrapping_add(1).into());
            probes.push(network.network().to_bits().wrapping_sub(1).into());
        }
        for probe in probes {
            let wanted = networks.iter().any(|network| network.contains(&probe));
            proptest::prop_assert_eq!(list.permits(probe.into()), wanted);
        }
    }
}

async fn changed(memory: &Memory) -> (Vec<String>, Vec<String>) {
    let wait = memory.wait("AllowListChanged", |event| match event {
        DoorEvent::AllowListChanged { added, removed } => Some((added.clone(), removed.clone())),
        _ => None,
    });
    tokio::time::timeout(Duration::from_secs(5), wait).await.expect("within five seconds")
}

async fn refused(memory: &Memory) -> (String, bool) {
    memory
        .wait("AllowListRefused", |event| match event {
            DoorEvent::AllowListRefused { error, denies_all } => Some((error.clone(), *denies_all)),
            _ => None,
        })
        .await
}

#[tokio::test]
async fn a_broken_list_at_the_start_denies_everyone_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("whitelist.yaml");
    fs::write(&file, "allowed_ips: [10.0.0.300]").unwrap();
    let memory = Memory::new();
    let watcher = AllowListWatcher::start(&file, Arc::clone(&memory) as Arc<dyn DoorObserver>).await;
    assert!(refused(&memory).await.1, "there is no earlier list that could hold");
    assert!(!watcher.list().load().permits("10.0.0.3".parse().unwrap()));
}

#[tokio::test]
async fn a_list_that_is_half_written_at_the_start_denies_everyone_until_it_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("whitelist.yaml");
    let whole = "# Who may connect\nallowed_ips:\n  - 10.0.0.1\n  - \"10.3.0.0/16\"\n";
    for half in ["", "# Who may", "# Who may connect\nallowed_ips:\n", &whole[..whole.len() - 5]] {
        fs::write(&file, half).unwrap();
        let memory = Memory::new();
        let watcher = AllowListWatcher::start(&file, Arc::clone(&memory) as Arc<dyn DoorObserver>).await;
        assert!(refused(&memory).await.1, "{half}");
        assert!(watcher.list().load().entries().is_empty(), "{half}");
        fs::write(&file, whole).unwrap();
        assert_eq!(changed(&memory).await.0, ["10.0.0.1", "10.3.0.0/16"], "{half}");
        assert!(watcher.list().load().permits("10.3.4.5".parse().unwrap()));
    }
}

#[tokio::test]
async fn a_change_takes_effect_and_a_fault_keeps_the_last_good_list() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("whitelist.yaml");
    let memory = Memory::new();
    let watcher = AllowListWatcher::start(&file, Arc::clone(&memory) as Arc<dyn DoorObserver>).await;
    assert!(refused(&memory).await.1, "no file denies everyone");
    let status = || watcher.list().status();
    assert!(status().good_at.is_none() && status().problem.is_some());
    let listed = |address: &str| watcher.list().load().permits(address.parse().unwrap());

    fs::write(&file, "allowed_ips: [10.0.0.1, 10.0.0.2]").unwrap();
    assert_eq!(changed(&memory).await, (vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()], vec![]));
    assert!(listed("10.0.0.1"));

    fs::write(dir.path().join("new"), "allowed_ips: [10.0.0.2, 10.3.0.0/16]").unwrap();
    fs::rename(dir.path().join("new"), &file).unwrap();
    assert_eq!(changed(&memory).await, (vec!["10.3.0.0/16".to_owned()], vec!["10.0.0.1".to_owned()]));
    assert!(!listed("10.0.0.1") && listed("10.3.4.5"));

    fs::write(&file, "allowed_ips: [nonsense").unwrap();
    let (error, denies_all) = refused(&memory).await;
    assert!(error.contains("whitelist.yaml:1") && !denies_all, "{error}");
    assert!(listed("10.3.4.5"));
    let was_good = status().good_at;
    assert!(was_good.is_some() && status().problem.as_ref() == Some(&error), "{:?}", status());
    let said = watcher.reload().await.problem.unwrap();
    assert!(said.contains("whitelist.yaml:1"), "{said}");
    assert!(!refused(&memory).await.1, "a reload reports the fault again");
    fs::write(&file, "allowed_ips: [10.3.0.0/16, 10.0.0.9]").unwrap();
    assert_eq!(watcher.reload().await.problem, None);
    assert!(listed("10.0.0.9"), "in effect when the reload has ended");
    assert!(status().problem.is_none() && status().good_at > was_good, "{:?}", status());
    assert_eq!((status().applied, status().refused), (3, 3));
    assert_eq!(changed(&memory).await.0, ["10.0.0.9"]);

    fs::remove_file(&file).unwrap();
    assert!(refused(&memory).await.1);
    assert_eq!(changed(&memory).await.1.len(), 2);
    assert!(!listed("10.3.4.5"));
}

#[tokio::test]
async fn a_pipe_in_place_of_the_list_holds_nobody_up_and_keeps_the_last_good_list() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("whitelist.yaml");
    let put_pipe = || {
        let new = dir.path().join("new");
        rustix::fs::mkfifoat(rustix::fs::CWD, &new, rustix::fs::Mode::RUSR).unwrap();
        fs::rename(new, &file).unwrap();
    };
    put_pipe();
    let memory = Memory::new();
    let watcher = AllowListWatcher::start(&file, Arc::clone(&memory) as Arc<dyn DoorObserver>).await;
    let (error, denies_all) = refused(&memory).await;
    assert!(error.contains("named pipe") && denies_all, "{error}");
    fs::write(dir.path().join("new"), "allowed_ips: [10.0.0.1]").unwrap();
    fs::rename(dir.path().join("new"), &file).unwrap();
    assert_eq!(changed(&memory).await.0, ["10.0.0.1"]);
    put_pipe();
    let (error, denies_all) = refused(&memory).await;
    assert!(error.contains("named pipe") && !denies_all, "{error}");
    assert!(watcher.list().load().permits("10.0.0.1".parse().unwrap()));
}

#[tokio::test]
async fn names_are_resolved_and_failing_ones_reported() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("whitelist.yaml");
    fs::write(&file, "allowed_ips: [localhost, no-such-host.invalid]").unwrap();
    let memory = Memory::new();
    let watcher = AllowListWatcher::start(&file, Arc::clone(&memory) as Arc<dyn DoorObserver>).await;
    assert!(watcher.list().load().permits("127.0.0.1".parse().unwrap()));
    let name = |event: &DoorEvent| match event {
        DoorEvent::NameUnresolved { name, .. } => Some(name.clone()),
        _ => None,
    };
    assert_eq!(memory.wait("NameUnresolved", name).await, "no-such-host.invalid");
    assert!(watcher.list().load().entries().contains("no-such-host.invalid (unresolved)"));
    // A list read anew keeps what was resolved until there is a new answer.
    let before = watcher.list().load();
    let again = AllowList::parse("allowed_ips: [localhost]", "f").unwrap();
    assert!(!again.permits("127.0.0.1".parse().unwrap()));
    assert!(again.with_addresses(|name| before.addresses_of(name)).permits("127.0.0.1".parse().unwrap()));
}

#[tokio::test]
async fn a_dead_resolver_holds_up_neither_the_list_nor_more_than_its_threads() {
    use std::sync::{Condvar, Mutex};

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("whitelist.yaml");
    let names: Vec<String> = (0..8).map(|n| format!("host{n}.example")).collect();
    fs::write(&file, format!("allowed_ips: [{}]", names.join(", "))).unwrap();
    // How many are inside, how many there ever were at a time, and whether the resolver is alive.
    let state = Arc::new((Mutex::new((0_usize, 0_usize, false)), Condvar::new()));
    let inner = Arc::clone(&state);
    let resolver = move |_: &str| {
        let (lock, alive) = &*inner;
        let mut state = lock.lock().unwrap();
        state.0 += 1;
        state.1 = state.1.max(state.0);
        let mut state = alive.wait_while(state, |state| !state.2).unwrap();
        state.0 -= 1;
        Ok(BTreeSet::from([Ipv4Addr::new(10, 9, 9, 9)]))
    };
    let memory = Memory::new();
    let observer = Arc::clone(&memory) as Arc<dyn DoorObserver>;
    let watcher = AllowListWatcher::start_with(&file, observer, Arc::new(resolver)).await;
    let _first = changed(&memory).await;
    assert_eq!(state.0.lock().unwrap().0, LOOKUPS);

    // The list is still obeyed, and asking again and again does not occupy more threads.
    fs::write(&file, format!("allowed_ips: [10.0.0.1, {}]", names.join(", "))).unwrap();
    assert_eq!(changed(&memory).await.0, ["10.0.0.1"]);
    assert_eq!(watcher.reload().await.problem, None);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(state.0.lock().unwrap().0, LOOKUPS);
    assert!(watcher.list().load().entries().contains("host7.example (unresolved)"));

    // Late answers count, and all the others get their turn.
    state.0.lock().unwrap().2 = true;
    state.1.notify_all();
    let mut waiting = names.len();
    while waiting > 0 {
        waiting -= changed(&memory).await.0.len();
    }
    assert!(watcher.list().load().permits("10.9.9.9".parse().unwrap()));
    assert_eq!(state.0.lock().unwrap().1, LOOKUPS);
}

#[tokio::test(start_paused = true)]
async fn names_are_resolved_again_and_again() {
    use std::sync::atomic::{AtomicU8, Ordering};

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("whitelist.yaml");
    fs::write(&file, "allowed_ips: [manager.example]").unwrap();
    let answers = AtomicU8::new(0);
    // Another address each minute; the resolver is away in the third one.
    let resolver = move |_: &str| match answers.fetch_add(1, Ordering::Relaxed) {
        2 => Err(io::Error::other("no answer")),
        n => Ok(BTreeSet::from([Ipv4Addr::new(10, 0, 0, n)])),
    };
    let memory = Memory::new();
    let observer = Arc::clone(&memory) as Arc<dyn DoorObserver>;
    let watcher = AllowListWatcher::start_with(&file, observer, Arc::new(resolver)).await;
    // The clock stands still as long as the resolver works, in a thread of its own.
    let second = || tokio::time::sleep(Duration::from_secs(1));
    let listed = |address: &str| watcher.list().load().permits(address.parse().unwrap());
    assert!(listed("10.0.0.0"));
    let began = tokio::time::Instant::now();
    let change = |event: &DoorEvent| match event {
        DoorEvent::AllowListChanged { added, removed } if !removed.is_empty() => Some(added.clone()),
        _ => None,
    };
    while !listed("10.0.0.1") {
        second().await;
    }
    assert!(began.elapsed() <= RESOLVE_EVERY * 2, "{:?}", began.elapsed());
    assert!(!listed("10.0.0.0"));
    assert_eq!(memory.count(|e| change(e).is_some()), 2, "unresolved to 0, 0 to 1");
    while memory.count(|e| matches!(e, DoorEvent::NameUnresolved { .. })) == 0 {
        second().await;
    }
    assert!(listed("10.0.0.1"), "the last answer holds");
    while !listed("10.0.0.3") {
        second().await;
    }
}
