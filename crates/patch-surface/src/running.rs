//! What processes and the kernel say of themselves.

use patch_backends::stale as reading;
use patch_types::{settings::is_unit_name, stale::Owner};

use crate::text;

/// The map, the control group and the name of a process, all of which it may choose; and a microcode file.
pub fn stale(bytes: &[u8]) {
    for file in reading::replaced_files(bytes) {
        assert!(file.starts_with(b"/"), "no path: {file:?}");
        let shown = reading::shown(&file);
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
    }
    assert!(reading::shown(bytes).chars().count() <= 3100, "more is shown than can be read");
    let all = text(bytes);
    for elsewhere in [false, true] {
        let owner = reading::owner(7, 1000, &all, elsewhere);
        if let Owner::Unit { name } = &owner {
            assert!(is_unit_name(name), "{name:?}");
        }
        let _ = (reading::care(&owner), owner.to_string());
        // Whatever a user names in the group that is his, it is no unit of the system.
        let path = all.lines().next().unwrap_or_default();
        let group = format!("0::/user.slice/user-1000.slice/user@1000.service/{path}\n");
        let owner = reading::owner(7, 1000, &group, elsewhere);
        let of_the_hosts =
            matches!(owner, Owner::Unit { .. } | Owner::Init | Owner::Container { uid: None, .. });
        assert!(!of_the_hosts, "{path:?} is taken for {owner}");
    }
    let _ = reading::microcode_available(bytes, 0x50654, 1);
}
